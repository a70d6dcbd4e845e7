"""Delay, loss, and calls that come and go: each takes a server and returns what was seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tools.impair import Impairment, Network, impaired
from tools.media_bench.bots import Bot, Packets, crowd, encoded
from tools.media_bench.process import Candidate, Running, Snapshot, running
from voice_rtc.core.audio import (
    FRAME_SECONDS,
    LISTEN_RATE_HZ,
    SEND_FRAME_SAMPLES,
    SEND_RATE_HZ,
    silence,
)

_FRAME_SAMPLES = LISTEN_RATE_HZ // 50
_TONE_FRAMES, _TONE_PERIOD = 10, 50
_LONGEST_DELAY_SECONDS = 0.95
_EMPTY_SECONDS = 20.0
_REST_SECONDS = 3.0
"""Until a server that collects when it is idle has done so."""
_TALK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and with what measurements are made."""

    core: int
    """The server's; this process is on another."""
    folder: Path
    """Of logs, and of the agent's speech by rate: ``speech-RATE.raw``."""
    speech: Packets
    """Of callers who talk all the time."""
    turns: Packets
    """Of callers who talk 40 % of the time."""
    settle_seconds: float = 2.0
    """Between the last caller's coming and the measurement."""

    def start(
        self, candidate: Candidate, mode: str, *more: str
    ) -> AbstractAsyncContextManager[Running]:
        """`running` for a measurement."""
        arguments = ["--mode", mode, *more]
        if mode == "talk":
            arguments += ["--speech", str(self.folder / f"speech-{candidate.speech_rate_hz}.raw")]
        log = self.folder / f"{candidate.name}.log"
        return running(candidate, self.core, log, *arguments)


# --------------------------------------------------------------------------------------- delay


@dataclass(slots=True)
class Delay:
    """Of a tone, in seconds: packet sent -> PCM out of the server's network side, and back."""

    inbound: list[float] = field(default_factory=list)
    echo: list[float] = field(default_factory=list)
    tones: int = 0

    def add(self, other: Delay) -> None:
        """More of the same."""
        self.inbound += other.inbound
        self.echo += other.echo
        self.tones += other.tones


async def delay(
    bench: Bench, candidate: Candidate, loss: float, seconds: float, calls: int, seed: int
) -> Delay:
    """Tones through the relay, back as an echo; ``loss`` both ways."""
    result = Delay()
    bad = Impairment(loss=loss, media_only=True)
    beeps = tones()
    async with (
        bench.start(candidate, "echo") as server,
        impaired(Network(bad, bad), seed=seed) as relay,
        crowd(server.url) as callers,
    ):
        for number in range(calls):
            start = number * _TONE_PERIOD // calls + _TONE_FRAMES
            bot = Bot(beeps, callers.pacer, start=start, listens=True, marked=0)
            await callers.add(bot, relay)
        await asyncio.sleep(bench.settle_seconds + seconds + _LONGEST_DELAY_SECONDS)
        for bot in callers.bots:
            begins = [
                at for at in bot.mouth.marked_at[1:]
                if at < bot.mouth.marked_at[-1] - _LONGEST_DELAY_SECONDS
            ]  # fmt: skip
            result.tones += len(begins)
            result.inbound += _after(begins, await server.get(f"/calls/{bot.id}/onsets"))
            result.echo += _after(begins, bot.ear.onsets)
    return result


def tones() -> Packets:
    """A second: 0.2 s of 1 kHz, then silence."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(_TONE_FRAMES * SEND_FRAME_SAMPLES) / SEND_RATE_HZ)
    period = np.concatenate(
        [
            (8000 * tone).astype(np.int16),
            silence((_TONE_PERIOD - _TONE_FRAMES) * SEND_FRAME_SAMPLES),
        ]
    )
    return encoded(np.tile(period, 3))[-_TONE_PERIOD:]


def _after(begins: Sequence[float], onsets: Sequence[float]) -> list[float]:
    found = []
    for begin in begins:
        later = [at - begin for at in onsets if 0 < at - begin < _LONGEST_DELAY_SECONDS]
        if later:
            found.append(min(later))
    return found


# ---------------------------------------------------------------------------------------- loss


@dataclass(frozen=True, slots=True)
class Delivered:
    """Shares of the audio that was sent."""

    decoded: float
    """As it was sent."""
    fec: float
    concealed: float
    silent: float
    """Holes that became silence."""

    @property
    def sound(self) -> float:
        """All but the holes."""
        return self.decoded + self.fec + self.concealed


async def delivered(
    bench: Bench, candidate: Candidate, bad: Impairment, seconds: float, calls: int, seed: int
) -> Delivered:
    """Talking callers through a relay that loses on the way to the server."""
    async with (
        bench.start(candidate, "record") as server,
        impaired(Network(to_server=bad), seed=seed) as relay,
        crowd(server.url) as callers,
    ):
        for number in range(calls):
            start = number * len(bench.speech) // calls
            await callers.add(Bot(bench.speech, callers.pacer, start=start), relay)
        await asyncio.sleep(bench.settle_seconds)
        before = await server.snapshot()
        await asyncio.sleep(seconds)
        after = await server.snapshot()
    # By the server's clock, at the moments at which it counted.
    sent = calls * (after.state["at"] - before.state["at"]) / FRAME_SECONDS
    filled = {
        method: (after.state["filled"][method] - before.state["filled"][method]) / sent
        for method in after.state["filled"]
    }
    heard = (after.state["samples"] - before.state["samples"]) / _FRAME_SAMPLES / sent
    silent = filled["silence"] + filled["clock"]
    return Delivered(
        decoded=heard - silent - filled["fec"] - filled["plc"],
        fec=filled["fec"], concealed=filled["plc"], silent=silent,
    )  # fmt: skip


# -------------------------------------------------------------------------------------- cycles


@dataclass(frozen=True, slots=True)
class Cycles:
    """Calls that came and went."""

    count: int
    seconds: float
    before: Snapshot
    after: Snapshot


async def cycles(bench: Bench, candidate: Candidate, count: int, at_once: int) -> Cycles:
    """``count`` times: call, talk, hang up. A tenth as many go before, uncounted."""
    async with bench.start(candidate, "talk") as server, crowd(server.url) as callers:

        async def some(number: int) -> None:
            left = iter(range(number))

            async def one_after_the_other() -> None:
                for _ in left:
                    bot = Bot(bench.speech, callers.pacer)
                    await callers.add(bot)
                    await asyncio.sleep(_TALK_SECONDS)
                    await callers.remove(bot)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(at_once):
                    tasks.create_task(one_after_the_other())

        await some(max(at_once, count // 10))
        before = await _emptied(server)
        started = time.monotonic()
        await some(count)
        seconds = time.monotonic() - started
        return Cycles(count, seconds, before, await _emptied(server))


async def _emptied(server: Running) -> Snapshot:
    """Its state when the last call has ended and its garbage is collected."""
    async with asyncio.timeout(_EMPTY_SECONDS):
        while True:
            if not (await server.snapshot()).state["calls"]:
                break
            await asyncio.sleep(0.1)
    await server.close_calls()
    await asyncio.sleep(_REST_SECONDS)
    return await server.snapshot()
