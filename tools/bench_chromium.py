"""How long sound takes from Chromium to a server that echoes, and back.

``python -m tools.bench_chromium`` opens a page whose microphone is a file with bursts of a tone. It
listens to the microphone and to what comes back in one audio graph and so on one clock: Opus and
its 20 ms, the network of this machine, the server, and Chromium's jitter buffer are in between;
devices are not. Servers are those of `tools.bench_media`, in its processes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import shutil
import sys
import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import numpy as np
from aiohttp import web
from playwright.async_api import async_playwright

from tools.media_bench.process import ROOT, Candidate, candidates, cores, running
from tools.page import write

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
_RATE_HZ = 48_000
_BURST_SECONDS, _PERIOD_SECONDS = 0.12, 0.73
_TONE_HZ, _AMPLITUDE = 440.0, 16_000
_PAGE = Path(__file__).parent / "media_bench" / "echo.html"


@dataclass(frozen=True, slots=True)
class Loop:
    """One server's round trips."""

    title: str
    sent: int
    milliseconds: Sequence[float]
    buffered_milliseconds: float
    """Mean, of the sound in Chromium's jitter buffer, as it says itself."""

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.milliseconds or [np.nan], share))


def pairs(sent: Sequence[float], heard: Sequence[float]) -> list[float]:
    """Milliseconds from each burst to its echo; a burst whose echo is missing has none."""
    found = []
    for start, end in zip(sent, [*sent[1:], float("inf")], strict=True):
        echo = next((at for at in heard if start < at < end), None)
        if echo is not None:
            found.append((echo - start) * 1000)
    return found


def bursts_file(path: Path) -> None:
    """What the microphone hears, again and again."""
    at = np.arange(int(_PERIOD_SECONDS * _RATE_HZ)) / _RATE_HZ
    sound = _AMPLITUDE * np.sin(2 * np.pi * _TONE_HZ * at) * (at < _BURST_SECONDS)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, _RATE_HZ, 0, "NONE", ""))
        file.writeframes(np.tile(sound.astype("<i2"), 100).tobytes())


async def measure(candidate: Candidate, bursts: int, folder: Path) -> Loop:
    """Raises RuntimeError when the server does not come up, playwright's Error from the page."""
    sound = folder / "bursts.wav"
    bursts_file(sound)
    log = folder / "server.log"
    async with (
        running(candidate, cores()[0], log, "--mode", "echo") as server,
        Page(server.url) as url,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[*_FLAGS, f"--use-file-for-fake-audio-capture={sound}"],
        )
        page = await browser.new_page()
        await page.goto(url)
        await page.wait_for_function("window.measure")
        found = await page.evaluate(
            "seconds => measure(seconds)", bursts * _PERIOD_SECONDS + _PERIOD_SECONDS / 2
        )
        await browser.close()
    took = pairs(found["sent"][:bursts], found["heard"])
    return Loop(candidate.title, bursts, took, 1000 * found["buffered"])


class Page:
    """The page, and the server's signaling under the same origin; gives the URL."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._http: aiohttp.ClientSession
        self._runner: web.AppRunner

    async def __aenter__(self) -> str:
        self._http = aiohttp.ClientSession(self._server)
        app = web.Application()
        app.add_routes([web.get("/", self._index), web.post("/calls", self._offer)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/"

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _index(self, _request: web.Request) -> web.Response:
        return web.Response(text=_PAGE.read_text(encoding="utf-8"), content_type="text/html")

    async def _offer(self, request: web.Request) -> web.Response:
        async with self._http.post("/calls", json={"sdp": await request.text()}) as answer:
            answer.raise_for_status()
            return web.Response(text=(await answer.json())["sdp"])


def render(loops: Sequence[Loop], browser: str) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} with {browser}, aiortc "
        f"{importlib.metadata.version('aiortc')}, bursts of 120 ms of a 440 Hz tone.",
        "",
        "| server | bursts heard | p50 | p95 | of it in Chromium's jitter buffer |",
        "|---|---|---|---|---|",
        *(
            f"| {each.title} | {len(each.milliseconds)} of {each.sent} "
            f"| {each.quantile(0.5):.0f} ms | {each.quantile(0.95):.0f} ms "
            f"| {each.buffered_milliseconds:.0f} ms |"
            for each in loops
        ),
    ]
    return "\n".join(lines)


async def _all(given: argparse.Namespace) -> str:
    known = candidates(given.peers_folder)
    loops = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.servers:
            candidate = known[name]
            if candidate.why_not:
                print(f"{candidate.title} is left out: {candidate.why_not}", file=sys.stderr)
                continue
            loops.append(await measure(candidate, given.bursts, Path(folder)))
            print(loops[-1].title, loops[-1].milliseconds, file=sys.stderr, flush=True)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=_FLAGS
        )
        version = browser.version
        await browser.close()
    return render(loops, f"Chromium {version}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("servers", nargs="*", default=["fast", "stock", "pipecat", "fastrtc"])
    parser.add_argument("--bursts", type=int, default=40)
    parser.add_argument("--peers-folder", type=Path, default=ROOT)
    parser.add_argument("--write", action="store_true", help="write into docs/benchmarks.md")
    given = parser.parse_args()
    section = asyncio.run(_all(given))
    print(section)
    if given.write:
        write("bench_chromium", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
