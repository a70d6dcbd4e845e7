"""How many calls one core carries: more and more callers, until the server fails them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import psutil

from tools.media_bench.bots import Bot, Crowd, crowd
from tools.media_bench.measure import Bench
from tools.media_bench.process import Candidate, Running
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_FRAME_SAMPLES, SEND_RATE_HZ

MOST_LATE_SECONDS = 0.010
MOST_CPU_SHARE = 0.95
LEAST_SHARE = 0.98
"""Of what should have been heard, and of what should have come."""
BUSY_BOTS = 0.9
_DISTURBED_SHARE = 0.1
"""Of the server's core, taken by others."""
_CONNECTING_AT_ONCE = 4
_TRIES = 2
_TRIES_DISTURBED = 8
_DISTURBED_REST_SECONDS = 5.0
"""Other machines on the same host come and go."""
SLOWER = 1.15
"""Times the CPU a call of the climb's best step: so slow was the host, not the server."""


@dataclass(frozen=True, slots=True)
class Step:
    """So many calls for some seconds."""

    calls: int
    cpu_share: float
    """Of one core, the server."""
    bots_cpu_share: float
    late_p50: float
    late_p99: float
    """Seconds, at the bots."""
    asked_late_p99: float | None
    """Seconds, in our server: when the frames were asked for."""
    bots_late_p99: float
    """Seconds, of the bots' own sending."""
    lost: int
    received_share: float | None
    """Packets that came over those that should have; None: the agent made pauses."""
    heard_share: float | None
    """Audio that came out at the server over what was sent; None: callers made pauses."""
    others_share: float
    """Of the server's core, used by others."""
    memory_mb: float
    threads: int
    slower: float
    """CPU a call over that of the best step of the climb so far."""

    @property
    def disturbed(self) -> str:
        """What spoilt the measurement; empty when nothing did."""
        if self.bots_cpu_share > BUSY_BOTS:
            return f"the bots used {self.bots_cpu_share:.0%} of their core"
        if self.bots_late_p99 > MOST_LATE_SECONDS / 2:
            return f"the bots were {1000 * self.bots_late_p99:.0f} ms late"
        if self.others_share > _DISTURBED_SHARE:
            return f"others used {self.others_share:.0%} of the server's core"
        if self.slower > SLOWER:
            return f"the host was {self.slower - 1:.0%} slower than before"
        return ""

    @property
    def objections(self) -> list[str]:
        """Why the server does not hold so many calls."""
        found = []
        if self.late_p99 > MOST_LATE_SECONDS:
            found.append(f"late p99 {1000 * self.late_p99:.0f} ms")
        if self.cpu_share > MOST_CPU_SHARE:
            found.append(f"CPU {self.cpu_share:.0%}")
        if self.lost:
            found.append(f"{self.lost} lost")
        if self.received_share is not None and self.received_share < LEAST_SHARE:
            found.append(f"sent {self.received_share:.0%}")
        if self.heard_share is not None and self.heard_share < LEAST_SHARE:
            found.append(f"heard {self.heard_share:.0%}")
        return found


@dataclass(slots=True)
class Capacity:
    """One climb."""

    steps: list[Step] = field(default_factory=list)
    idle_mb: float = 0.0
    ended: str = ""
    """Why it went no further."""

    @property
    def held(self) -> Step | None:
        """The most calls that were held."""
        return max((s for s in self.steps if not s.objections), key=lambda s: s.calls, default=None)

    @property
    def mb_per_call(self) -> float:
        """Slope of memory over calls."""
        points = [(0, self.idle_mb), *((step.calls, step.memory_mb) for step in self.steps)]
        calls, memory = zip(*points, strict=True)
        return float(np.polyfit(calls, memory, 1)[0]) if len(points) > 1 else 0.0


async def capacity(
    bench: Bench, candidate: Candidate, counts: Sequence[int], seconds: float,
    *more: str, pauses: bool = False,
) -> Capacity:  # fmt: skip
    """One climb: until the server fails the same number twice, or oftener when disturbed."""
    result = Capacity()
    async with (
        bench.start(candidate, "talk", *more) as server,
        crowd(server.url) as callers,
    ):
        result.idle_mb = (await server.snapshot()).memory_mb
        for count in counts:
            try:
                await _gather(bench, callers, count, pauses)
                await asyncio.sleep(bench.settle_seconds)
                failed = await _try(server, callers, seconds, pauses, result)
            except (TimeoutError, OSError, aiohttp.ClientError) as error:
                failed = type(error).__name__
            if failed:
                result.ended = f"{count} calls: {failed}"
                break
    return result


async def _gather(bench: Bench, callers: Crowd, count: int, pauses: bool) -> None:
    packets = bench.turns if pauses else bench.speech
    while len(callers.bots) < count:
        there = len(callers.bots)
        bots = [
            Bot(packets, callers.pacer, start=37 * number % len(packets))
            for number in range(there, min(count, there + _CONNECTING_AT_ONCE))
        ]
        await asyncio.gather(*(callers.add(bot) for bot in bots))


async def _try(
    server: Running, callers: Crowd, seconds: float, pauses: bool, result: Capacity
) -> str:
    """Why so many calls are not held; empty when they are."""
    tries = undisturbed = 0
    while True:
        best = min((each.cpu_share / each.calls for each in result.steps), default=float("inf"))
        step = await _step(server, callers, seconds, pauses, best)
        result.steps.append(step)
        tries += 1
        undisturbed += not step.disturbed
        if not step.objections or undisturbed >= _TRIES or tries >= _TRIES_DISTURBED:
            return ", ".join(step.objections)
        if step.disturbed:
            await asyncio.sleep(_DISTURBED_REST_SECONDS)


async def _step(server: Running, callers: Crowd, seconds: float, pauses: bool, best: float) -> Step:
    me, pacer = psutil.Process(), callers.pacer
    before, own = await server.snapshot(), sum(me.cpu_times()[:2])
    for bot in callers.bots:
        bot.keeps = True
    pacer.keeps = True
    started = time.monotonic()
    await asyncio.sleep(seconds)
    for bot in callers.bots:
        bot.keeps = False
    pacer.keeps = False
    took = time.monotonic() - started
    own = sum(me.cpu_times()[:2]) - own
    after = await server.snapshot()
    asked = await server.get(f"/asked?since={before.at}")
    came = [bot.take() for bot in callers.bots]
    late = np.concatenate([each.lateness() for each in came])
    wall, calls = after.at - before.at, len(callers.bots)
    told = after.state["at"] - before.state["at"]
    packets = sum(len(each.at) for each in came)
    heard = after.state["samples"] - before.state["samples"]
    cpu_share = (after.cpu_seconds - before.cpu_seconds) / wall
    return Step(
        calls=calls,
        cpu_share=cpu_share,
        bots_cpu_share=own / took,
        late_p50=float(np.percentile(late, 50)) if len(late) else float("inf"),
        late_p99=float(np.percentile(late, 99)) if len(late) else float("inf"),
        asked_late_p99=_asked_late(asked),
        bots_late_p99=float(np.percentile(pacer.late_seconds, 99)),
        lost=sum(each.lost for each in came),
        received_share=(
            None if pauses else packets * SEND_FRAME_SAMPLES / SEND_RATE_HZ / took / calls
        ),
        heard_share=None if pauses else heard / LISTEN_RATE_HZ / told / calls,
        others_share=(
            (after.core_seconds - before.core_seconds)
            - (after.cpu_seconds - before.cpu_seconds)
        ) / wall,
        memory_mb=after.memory_mb,
        threads=after.threads,
        slower=cpu_share / calls / best,
    )  # fmt: skip


def _asked_late(asked: list[list[float]]) -> float | None:
    """p99 against an even grid through the earliest, of calls that were asked without a pause."""
    late = []
    for times in asked:
        at = np.array(times)
        if len(at) > 1 and np.diff(at).max() < 0.5:
            offset = at - 0.02 * np.arange(len(at))
            late.append(offset - offset.min())
    return float(np.percentile(np.concatenate(late), 99)) if late else None
