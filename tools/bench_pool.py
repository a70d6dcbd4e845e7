"""The pool under a crowd: fairness, hand-over, leaks.

``python -m tools.bench_pool`` first lets 500 callers at once ask the pool, with its real engine in
its real process, for 10 slots; then makes 1,000 real calls, 20 at a time, that connect and hang up
again at once; then lets one caller wait behind another and notes how long after the hang-up the
slot was handed over, as the waiting client sees it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import aiohttp
import numpy as np

from tools.bot_caller import Bot
from tools.bot_report import BotOptions
from tools.page import write
from tools.server import OwnServer, Resources, own_server
from voice_rtc import logs
from voice_rtc.config import LogSettings, Settings
from voice_rtc.engines.base import EngineSet, ReplicaSpec
from voice_rtc.engines.stt.whisper import WhisperSettings, WhisperStt
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import GpuReadings
from voice_rtc.pool.lease import LeaseRequest, Place
from voice_rtc.pool.pool import SttPool

MODEL = Path(__file__).resolve().parent.parent / "tests" / "data" / "whisper-synthetic-en"
_CALL_SECONDS = 30.0
_SETTLE_SECONDS = 5.0


@dataclass(slots=True)
class Crowd:
    """What came of many callers on few slots. Times in seconds."""

    callers: int
    slots: int
    served: list[int] = field(default_factory=list)
    """Callers in the order of their grants."""
    wrong_places: int = 0
    """Announced positions that were not those of a line in order of arrival."""
    busy: float = 0.0
    """Slot-seconds held while anybody waited."""
    waited: float = 0.0
    """For so long somebody did."""
    hand_over: list[float] = field(default_factory=list)
    """From the return of a slot to the next caller's having it."""
    when_free: list[float] = field(default_factory=list)
    """To allocate when a slot is free."""
    left: int = 0
    """Leases afterwards."""

    @property
    def in_order(self) -> bool:
        """First come, first served?"""
        return self.served == sorted(self.served)


@asynccontextmanager
async def real_pool(slots: int, waiting: int) -> AsyncIterator[SttPool]:
    """A pool with the small Whisper in its process."""
    settings = Settings(
        pool={"slots": slots, "spares": 0, "probe": False, "max_waiting": waiting,
              "max_wait_seconds": 3600.0}
    )  # fmt: skip

    def make(spec: ReplicaSpec) -> WhisperStt:
        return WhisperStt(WhisperSettings(str(MODEL), device="cpu", download=False, mode=spec.mode))

    first = make(ReplicaSpec())
    await first.start()
    nothing = cast(Any, None)
    engines = EngineSet(nothing, first, nothing, nothing, (), make)
    try:
        async with SttPool(settings, engines, Metrics(), GpuReadings).running() as pool:
            yield pool
    finally:
        await first.aclose()


async def crowd(callers: int, slots: int) -> Crowd:
    """All ask at once; each holds its slot for about a quarter of a second."""
    found = Crowd(callers, slots)
    loop = asyncio.get_running_loop()
    async with real_pool(slots, callers) as pool:
        for number in range(callers):
            started = loop.time()
            lease = await pool.allocate_instance(f"alone-{number}")
            found.when_free.append(loop.time() - started)
            await pool.return_instance(lease)
        returned: list[float] = []
        nobody_waits = asyncio.Event()

        async def caller(number: int) -> None:
            dice = np.random.default_rng(number)
            places: list[int] = []

            def told(place: Place) -> None:
                if not places or places[-1] != place.position:
                    places.append(place.position)

            lease = await pool.allocate_instance(LeaseRequest(f"call-{number}", on_place=told))
            now = loop.time()
            if number >= slots:
                found.hand_over.append(now - returned.pop(0))
                expected = list(range(number - slots + 1, 0, -1))
                found.wrong_places += places != expected
            found.served.append(number)
            if len(found.served) == callers:
                nobody_waits.set()
            await asyncio.sleep(dice.uniform(0.1, 0.4))
            if pool.group.book.waiting:
                found.busy += loop.time() - now
                returned.append(loop.time())
            await pool.return_instance(lease)

        started = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(callers):
                tasks.create_task(caller(number))
            await nobody_waits.wait()
            found.waited = loop.time() - started
        found.left = pool.statistics().leased
    return found


@dataclass(slots=True)
class Cycles:
    """What came of many short calls."""

    setup: list[float] = field(default_factory=list)
    refused: int = 0
    before: Resources | None = None
    after: Resources | None = None
    seconds: float = 0.0


async def cycles(server: OwnServer, count: int, at_once: int) -> Cycles:
    """Connect and hang up, ``at_once`` at a time; ``at_once`` more first, to warm up."""
    found = Cycles()
    await asyncio.gather(*(_short_call(server, Cycles()) for _ in range(at_once)))
    await asyncio.sleep(_SETTLE_SECONDS)
    found.before = await server.resources()
    loop = asyncio.get_running_loop()
    started = loop.time()
    left = iter(range(count))

    async def calls() -> None:
        for _ in left:
            await _short_call(server, found)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(calls())
    found.seconds = loop.time() - started
    await asyncio.sleep(_SETTLE_SECONDS)
    found.after = await server.resources()
    return found


async def _short_call(server: OwnServer, found: Cycles) -> None:
    async with _calling(server) as (bot, http):
        if bot.report.setup_seconds is None:
            found.refused += 1
            return
        found.setup.append(bot.report.setup_seconds)
        await bot.hang_up(http)


@asynccontextmanager
async def _calling(server: OwnServer) -> AsyncIterator[tuple[Bot, aiohttp.ClientSession]]:
    bot = Bot(BotOptions(None, server.url))
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await bot.dial(http, tasks)
                yield bot, http
        finally:
            await bot.close()


async def hand_overs(server: OwnServer, count: int) -> list[float]:
    """Seconds from sending the hang-up of the one call to the waiting one's ``granted``."""
    loop = asyncio.get_running_loop()
    found = []
    for _ in range(count):
        async with _calling(server) as (first, http), _calling(server) as (second, _):
            await second.event("voice_rtc.queue.updated")
            started = loop.time()
            await first.hang_up(http)
            await second.event("voice_rtc.queue.granted")
            at = next(e.at for e in second.events if e.type == "voice_rtc.queue.granted")
            found.append(at - started)
            await second.hang_up(http)
    return found


@asynccontextmanager
async def small_server(port: int, slots: int) -> AsyncIterator[OwnServer]:
    """A server of one's own with the small Whisper."""
    environment = {
        "VOICE_RTC_STT__ENGINE": "faster-whisper",
        "VOICE_RTC_STT__MODEL": str(MODEL),
        "VOICE_RTC_TTS__ENGINE": "espeak-ng",
        "VOICE_RTC_LLM__ENGINE": "eliza",
        "VOICE_RTC_POOL__SLOTS": str(slots),
        "VOICE_RTC_POOL__HOLD_MESSAGE": "",
    }
    async with own_server(port, environment, "--log-level", "error") as server:
        yield server


def render(crowd: Crowd, short: Cycles, handed: Sequence[float], at_once: int) -> str:
    """The section of docs/benchmarks.md."""
    assert short.before is not None and short.after is not None
    before, after = short.before, short.after
    per = _percentiles
    return "\n".join(
        [
            f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs "
            f"({platform.machine()}), model {MODEL.name}.",
            "",
            f"{crowd.callers} callers at once on {crowd.slots} slots: served in the order in which "
            f"they came: {'yes' if crowd.in_order else '**no**'}; callers who were told a wrong "
            f"place: {crowd.wrong_places}; slots in use while anybody waited: "
            f"{crowd.busy / (crowd.slots * crowd.waited):.1%}; leases left: {crowd.left}.",
            "",
            f"{len(short.setup)} real calls, {at_once} at a time, in {short.seconds:.0f} s "
            f"({short.refused} refused): leases {before.leases:g} before, {after.leases:g} after; "
            f"tasks {before.tasks:g} and {after.tasks:g}; threads {before.threads} and "
            f"{after.threads}; memory {before.memory_mb:.0f} and {after.memory_mb:.0f} MB.",
            "",
            "| figure | n | p50 | p99 | worst |",
            "|---|---|---|---|---|",
            f"| slot allocated when one is free | {per(crowd.when_free)} |",
            f"| slot returned to slot granted to the next in line | {per(crowd.hand_over)} |",
            f"| hang-up sent by one client to `queue.granted` at the waiting one | {per(handed)} |",
            f"| call set-up, {at_once} at a time | {per(short.setup)} |",
        ]
    )


def _percentiles(seconds: Sequence[float]) -> str:
    cells = (f"{value * 1000:.1f} ms" for value in np.percentile(seconds, [50, 99, 100]))
    return " | ".join([str(len(seconds)), *cells])


async def _all(given: argparse.Namespace, say: Callable[[str], None]) -> str:
    say("a crowd at the pool")
    many = await crowd(given.callers, given.slots)
    async with small_server(given.port, given.at_once) as server:
        say("short calls")
        short = await cycles(server, given.cycles, given.at_once)
    async with small_server(given.port, 1) as server:
        say("hand-overs")
        handed = await hand_overs(server, given.hand_overs)
    return render(many, short, handed, given.at_once)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--callers", type=int, default=500)
    add("--slots", type=int, default=10)
    add("--cycles", type=int, default=1000)
    add("--at-once", type=int, default=20)
    add("--hand-overs", type=int, default=50)
    add("--port", type=int, default=18_482)
    add("--write", action="store_true", help="write into docs/benchmarks.md")
    given = parser.parse_args()
    logs.configure(LogSettings(level="error"))
    section = asyncio.run(_all(given, lambda line: print(f"bench_pool: {line}", file=sys.stderr)))
    print(section)
    if given.write:
        write("bench_pool", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
