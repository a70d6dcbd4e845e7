"""Chromium for tests: `chromium_page` opens pages, `page_server` is a server that does as told."""

from __future__ import annotations

import functools
import shutil
import subprocess
import wave
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import psutil  # type: ignore[import-untyped]  # has no stubs of its own
import pytest
from playwright._impl._driver import compute_driver_executable
from playwright.async_api import Browser, Page, async_playwright

from .page_server import PageServer

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 10_000.0
FLAGS = [
    "--no-sandbox",  # continuous integration runs as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    # A name that is not this machine, for the page as browsers see it without HTTPS.
    "--host-resolver-rules=MAP insecure.test 127.0.0.1",
]


@dataclass
class ChromiumPage:
    """An open page, and what went wrong in it."""

    page: Page
    problems: list[str] = field(default_factory=list)
    """Console errors and uncaught exceptions, oldest first."""

    async def open(self, url: str) -> None:
        """Load the call page and wait until its script runs."""
        await self.page.goto(url)
        await self.until("window.voiceRtc !== undefined")

    async def state(self, name: str) -> Any:
        """One field of the page's read-only state."""
        return await self.page.evaluate("name => window.voiceRtc[name]", name)

    async def until(self, expression: str) -> None:
        """Wait until a JavaScript expression holds, looked at on every animation frame."""
        await self.page.wait_for_function(expression, timeout=PATIENCE_MS)

    async def press(self, name: str) -> None:
        """Click the button with this accessible name."""
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def call(self) -> None:
        """Press Call and wait until the call stands."""
        await self.press("Call")
        await self.until("voiceRtc.status === 'live'")


class OpenChromium(Protocol):
    """What the `chromium_page` fixture gives."""

    def __call__(
        self,
        *,
        fake_wav: Path | None = None,
        loop_wav: bool = True,
        microphone: Literal["granted", "refused"] = "granted",
        width: int = 1280,
        height: int = 800,
        color_scheme: Literal["light", "dark"] = "light",
        init_script: str = "",
    ) -> Awaitable[ChromiumPage]:
        """Start Chromium with a blank page.

        ``fake_wav`` (an absolute path; 48 kHz mono 16 bit) is what the microphone hears, again and
        again unless ``loop_wav`` is false; without it Chromium's own beeps. ``init_script`` runs in
        the page before its own scripts.
        """
        ...


@pytest.fixture
async def chromium_page() -> AsyncIterator[OpenChromium]:
    """Opens pages, each in a Chromium of its own; closes them and checks that none is left."""
    if problem := _why_not():
        pytest.skip(f"BROWSER TESTS DID NOT RUN: {problem}")
    before = _chromium_processes()
    playwright = await async_playwright().start()
    browsers: list[Browser] = []

    async def open_page(
        *,
        fake_wav: Path | None = None,
        loop_wav: bool = True,
        microphone: Literal["granted", "refused"] = "granted",
        width: int = 1280,
        height: int = 800,
        color_scheme: Literal["light", "dark"] = "light",
        init_script: str = "",
    ) -> ChromiumPage:
        flags = list(FLAGS)
        if fake_wav is not None:
            suffix = "" if loop_wav else "%noloop"
            flags.append(f"--use-file-for-fake-audio-capture={fake_wav}{suffix}")
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        browsers.append(browser)
        context = await browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=color_scheme
        )
        context.set_default_timeout(PATIENCE_MS)
        await context.grant_permissions(["microphone"] if microphone == "granted" else [])
        if init_script:
            await context.add_init_script(init_script)
        return _watched(await context.new_page())

    yield open_page
    # Looked up now: what outlives its parent is nobody's child any more.
    started = _chromium_processes() - before
    async with AsyncExitStack() as stack:
        stack.push_async_callback(playwright.stop)
        for browser in browsers:
            stack.push_async_callback(browser.close)
    _, alive = psutil.wait_procs([process for process in started if _runs(process)], timeout=5)
    assert not alive, f"Chromium processes are left: {alive}"


@pytest.fixture
async def page_server() -> AsyncIterator[PageServer]:
    """A running stand-in server."""
    server = PageServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture(scope="session")
def talking_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of sound that noise suppression takes for a voice: bursts of a buzzing vowel."""
    at = np.arange(2 * 48_000) / 48_000
    pitch = 120 + 25 * np.sin(2 * np.pi * 1.5 * at)
    phase = 2 * np.pi * np.cumsum(pitch) / 48_000
    vowel = sum(np.sin(n * phase) / n for n in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 4 * at), 0, 1)
    samples = (9000 * vowel * syllables).clip(-32767, 32767).astype(np.int16)
    path = tmp_path_factory.mktemp("audio") / "talking.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(samples.tobytes())
    return path


@functools.cache
def _why_not() -> str:
    """What this machine lacks for browser tests; "" when nothing."""
    if CHROMIUM is None:
        return "there is no `chromium` on this machine's PATH"
    node, _ = compute_driver_executable()
    tried = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"Playwright's driver: {tried.stderr.strip()}"


def _watched(page: Page) -> ChromiumPage:
    opened = ChromiumPage(page)

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            opened.problems.append(f"{message.type}: {message.text}")

    def on_page_error(error: Any) -> None:
        opened.problems.append(f"uncaught: {error}")

    page.on("console", on_console)
    page.on("pageerror", on_page_error)
    return opened


def _runs(process: psutil.Process) -> bool:
    """Zombies do not: reaping orphans is the init process's business, and takes its time."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _chromium_processes() -> set[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return {child for child in children if "chrom" in child.name()}
