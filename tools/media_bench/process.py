"""Servers under test as processes of their own, each on one core, and how noisy the machine is."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
_START_SECONDS = 60.0
_POLL_SECONDS = 0.1
_STOP_SECONDS = 15.0
_ASK_SECONDS = 20.0
_TURNS = 7


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that can be measured."""

    name: str
    title: str
    package: str
    python: Path
    module: str
    arguments: tuple[str, ...]
    speech_rate_hz: int
    """At which its agent's speech is made."""

    @property
    def version(self) -> str:
        """Of the project, as installed where it runs."""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        found = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    @property
    def why_not(self) -> str:
        """Why it cannot be measured here; empty when it can."""
        if self.python.exists():
            return ""
        return f"{self.python.parent.parent} is not there: make bench-peers-env"


def candidates(peers: Path) -> dict[str, Candidate]:
    """All of them; ``peers`` is the folder with the environments of other projects."""
    own = Path(sys.executable)

    def of_others(name: str) -> Path:
        return peers / f".venv-peers-{name}" / "bin" / "python"

    known = (
        Candidate(
            "fast", "voice_rtc, its own way", "voice-rtc", own,
            "tools.media_bench.ours", ("--path", "fast"), 48_000,
        ),
        Candidate(
            "stock", "voice_rtc, aiortc's tracks", "voice-rtc", own,
            "tools.media_bench.ours", ("--path", "stock"), 48_000,
        ),
        Candidate(
            "pipecat", "Pipecat SmallWebRTC", "pipecat-ai", of_others("pipecat"),
            "tools.media_bench.pipecat_server", (), 24_000,
        ),
        Candidate(
            "fastrtc", "FastRTC", "fastrtc", of_others("fastrtc"),
            "tools.media_bench.fastrtc_server", (), 24_000,
        ),
    )  # fmt: skip  # a table
    return {each.name: each for each in known}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server at one moment."""

    at: float
    cpu_seconds: float
    """User and system, with all threads."""
    memory_mb: float
    threads: int
    files: int
    """Open file descriptors."""
    state: dict[str, Any]
    """As it tells itself."""
    core_seconds: float
    """That its core was busy, with whatever."""


class Running:
    """A server under test that is up."""

    def __init__(
        self, process: psutil.Process, core: int, url: str, http: aiohttp.ClientSession
    ) -> None:
        self._process = process
        self._core = core
        self._http = http
        self.url = url

    async def snapshot(self) -> Snapshot:
        """CPU, memory and its own state."""
        state = await self.get("/state")
        with self._process.oneshot():
            times = self._process.cpu_times()
            return Snapshot(
                time.monotonic(),
                times.user + times.system,
                self._process.memory_info().rss / 1e6,
                self._process.num_threads(),
                self._process.num_fds(),
                state,
                _busy_seconds(self._core),
            )

    async def get(self, path: str) -> Any:
        """Its answer as JSON."""
        async with self._http.get(path) as response:
            response.raise_for_status()
            return await response.json()

    async def pcm(self, call: str) -> bytes:
        """What it recorded of a call."""
        async with self._http.get(f"/calls/{call}/pcm") as response:
            response.raise_for_status()
            return await response.read()

    async def close_calls(self) -> None:
        """Have it end all calls and collect its garbage."""
        async with self._http.delete("/calls") as response:
            response.raise_for_status()


@asynccontextmanager
async def running(
    candidate: Candidate, core: int, log: Path, *arguments: str
) -> AsyncIterator[Running]:
    """Have it serve on ``core`` within the block; ``log`` gets what it says.

    Raises RuntimeError when it does not come up.
    """
    port = _free_port()
    with log.open("ab") as output, on_core(core):  # a child inherits the core
        process = await asyncio.create_subprocess_exec(
            candidate.python, "-m", candidate.module, "--port", str(port), *candidate.arguments,
            *arguments, cwd=ROOT, stdout=output, stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    timeout = aiohttp.ClientTimeout(total=_ASK_SECONDS)
    try:
        async with aiohttp.ClientSession(url, timeout=timeout) as http:
            await _until_up(http, process, log)
            yield Running(psutil.Process(process.pid), core, url, http)
    finally:
        await _end(process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


async def _until_up(
    http: aiohttp.ClientSession, process: asyncio.subprocess.Process, log: Path
) -> None:
    async with asyncio.timeout(_START_SECONDS):
        while process.returncode is None:
            try:
                async with http.get("/state"):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(_POLL_SECONDS)
    raise RuntimeError(f"the server did not start; what it said is in {log}")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


# ------------------------------------------------------------------------------------- machine


def cores() -> tuple[int, int]:
    """A core for the server and one for the bots. Raises RuntimeError when there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise RuntimeError("server and bots need a core each, and there is only one")
    return allowed[0], allowed[-1]


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread and the processes that it starts run on ``core`` within the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def work_seconds(core: int) -> float:
    """How long a fixed piece of work takes on ``core``: the median of a few turns."""
    with on_core(core):
        return statistics.median(_turn() for _ in range(_TURNS))


def _turn() -> float:
    started = time.perf_counter()
    total = 0
    for number in range(400_000):
        total += number * number % 7
    return time.perf_counter() - started


def cpu_seconds(core: int | None = None) -> list[float]:
    """User, nice, system, idle, iowait, irq, softirq, steal since the start, from /proc/stat.

    Of one core, or of all together.
    """
    name = "cpu" if core is None else f"cpu{core}"
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name} "):
            ticks = os.sysconf("SC_CLK_TCK")
            return [int(value) / ticks for value in line.split()[1:9]]
    raise RuntimeError(f"/proc/stat knows no {name}")


def stolen(before: Sequence[float], after: Sequence[float]) -> float:
    """Share of CPU time that the host gave to others between two `cpu_seconds`."""
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return spent[_STEAL] / sum(spent) if sum(spent) else 0.0


def _busy_seconds(core: int) -> float:
    spent = cpu_seconds(core)
    return sum(spent) - spent[_IDLE] - spent[_WAITING]


_IDLE, _WAITING, _STEAL = 3, 4, 7


def processor() -> str:
    """Its name, as the system tells."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"
