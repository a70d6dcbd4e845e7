"""What it costs a caller when the speech recognition engine dies or hangs in mid-speech.

``python -m tools.bench_faults`` lets callers speak in real time to the pool with its real engine in
its real process, and again and again sends that process SIGKILL or SIGSTOP while they do. Every
transcript is compared with what was said, and every utterance that a fault fell into with the
undisturbed ones: how much later did its transcript come?

There is no WebRTC in it: ``tools.isolation`` does the same to whole calls.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from tools.bench_stt import Clip, spoken
from tools.page import write
from tools.recognise import words
from voice_rtc import logs
from voice_rtc.config import LogSettings, Settings
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm
from voice_rtc.engines.base import EngineSet, Final, ReplicaSpec, SttFailed
from voice_rtc.engines.stt.whisper import WhisperSettings, WhisperStt
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import GpuReadings
from voice_rtc.pool.lease import Lease
from voice_rtc.pool.pool import SttPool

Kind = Literal["kill", "stop"]
SIGNALS: dict[Kind, signal.Signals] = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

_PIECE_SECONDS = 0.06
_SPARE_SECONDS = 60.0
_SOON_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance of one caller. Times are loop times in seconds."""

    began: float
    finished: float
    """Its audio ended."""
    answered: float
    """Its transcript came."""
    wrong: bool
    """The transcript is not what was said; a failure is wrong too."""

    def contains(self, moment: float) -> bool:
        """Was the utterance open, or its transcript still to come?"""
        return self.began <= moment < self.answered

    @property
    def seconds(self) -> float:
        """From its end to its transcript."""
        return self.answered - self.finished


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    turns: list[Turn] = field(default_factory=list)
    faults: list[tuple[Kind, float]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    """Callers whose session ended."""
    ends: dict[int, float] = field(default_factory=dict)
    """Caller -> when the utterance that it speaks will end."""

    def struck(self, kind: Kind) -> list[Turn]:
        """The turns that a fault of the kind fell into."""
        moments = [at for each, at in self.faults if each == kind]
        return [turn for turn in self.turns if any(turn.contains(at) for at in moments)]

    def spared(self) -> list[Turn]:
        """The turns that no fault fell into."""
        moments = [at for _, at in self.faults]
        return [turn for turn in self.turns if not any(turn.contains(at) for at in moments)]

    def hurried(self, kind: Kind) -> list[Turn]:
        """The struck turns that ended so soon after the fault that it could show."""
        moments = [at for each, at in self.faults if each == kind]
        return [
            turn
            for turn in self.struck(kind)
            if any(turn.contains(at) and turn.finished < at + _SOON_SECONDS for at in moments)
        ]

    def late(self, kind: Kind) -> list[float]:
        """Seconds by which each of these was later than an undisturbed one."""
        usual = float(np.median([turn.seconds for turn in self.spared()]))
        return [max(0.0, turn.seconds - usual) for turn in self.hurried(kind)]


async def run(callers: int, faults: int, model: str) -> Outcome:
    """``faults`` of each kind, in turn, under ``callers`` who speak."""
    clips = await spoken()
    outcome = Outcome()
    settings = Settings(pool={"slots": callers, "spares": 1, "probe": False})

    def make(spec: ReplicaSpec) -> WhisperStt:
        return WhisperStt(WhisperSettings(model, device="cpu", download=False, mode=spec.mode))

    first = make(ReplicaSpec())
    await first.start()
    nothing = cast(Any, None)
    engines = EngineSet(nothing, first, nothing, nothing, (), make)
    try:
        async with SttPool(settings, engines, Metrics(), GpuReadings).running() as pool:
            leases = [await pool.allocate_instance(f"call-{number}") for number in range(callers)]
            over = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                for number, lease in enumerate(leases):
                    tasks.create_task(_talk(lease, clips, number, outcome, over))
                await _break(pool, faults, outcome)
                over.set()
            for lease in leases:
                await pool.return_instance(lease)
    finally:
        await first.aclose()
    return outcome


async def _break(pool: SttPool, faults: int, outcome: Outcome) -> None:
    dice = np.random.default_rng(7)
    loop = asyncio.get_running_loop()
    for number in range(2 * faults):
        kind: Kind = "kill" if number % 2 == 0 else "stop"
        await asyncio.sleep(dice.uniform(2.0, 5.0))
        pid = await _victim(pool)
        # Where it hurts: just before somebody stops speaking.
        soon = min((end for end in outcome.ends.values() if end > loop.time() + 0.4), default=0.0)
        await asyncio.sleep(max(0.0, soon - dice.uniform(0.0, 0.4) - loop.time()))
        os.kill(pid, SIGNALS[kind])
        outcome.faults.append((kind, loop.time()))
        print(f"{kind} {number // 2 + 1} of {faults}", flush=True)
    await asyncio.sleep(5.0)


async def _victim(pool: SttPool) -> int:
    """The process that serves, as soon as there is one in reserve too."""
    async with asyncio.timeout(_SPARE_SECONDS):
        while True:
            ready = [r for r in pool.supervisor.replicas() if r.usable and r.engine_health().pids]
            roles = {replica.role: replica for replica in ready}
            if {"serving", "spare"} <= roles.keys():
                return roles["serving"].engine_health().pids[0]
            await asyncio.sleep(0.1)


async def _talk(
    lease: Lease, clips: Sequence[Clip], number: int, outcome: Outcome, over: asyncio.Event
) -> None:
    """Sentence after sentence, each waited for."""
    dice = np.random.default_rng(number)
    loop = asyncio.get_running_loop()
    results = lease.session.results()
    utterance = 0
    while not over.is_set():
        utterance += 1
        clip = clips[int(dice.integers(len(clips)))]
        began = loop.time()
        outcome.ends[number] = began + len(clip.samples) / LISTEN_RATE_HZ
        await _say(lease, utterance, clip)
        finished = loop.time()
        async for result in results:
            if isinstance(result, Final | SttFailed) and result.utterance == utterance:
                text = result.text if isinstance(result, Final) else ""
                wrong = words(text) != words(clip.text)
                outcome.turns.append(Turn(began, finished, loop.time(), wrong))
                break
        else:
            outcome.ended.append(lease.call_id)
            return
        await asyncio.sleep(dice.uniform(0.1, 0.6))


async def _say(lease: Lease, utterance: int, clip: Clip) -> None:
    loop = asyncio.get_running_loop()
    piece = round(_PIECE_SECONDS * LISTEN_RATE_HZ)
    lease.session.begin(utterance)
    started = loop.time()
    for start in range(0, len(clip.samples), piece):
        due = started + (start + piece) / LISTEN_RATE_HZ
        await asyncio.sleep(max(0.0, due - loop.time()))
        lease.session.feed(Pcm(clip.samples[start : start + piece], start))
    lease.session.finish(utterance)


def render(outcome: Outcome, callers: int, model: str) -> str:
    """The section of docs/benchmarks.md."""
    spared = outcome.spared()
    usual = np.percentile([turn.seconds for turn in spared], [50, 95]) * 1000
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs ({platform.machine()}), "
        f"model {model}, {callers} callers who speak nearly all the time, one engine in reserve. "
        f"Without a fault: {len(spared)} turns, transcript after {usual[0]:.0f} ms (p50), "
        f"{usual[1]:.0f} ms (p95), {sum(turn.wrong for turn in spared)} wrong.",
        "",
        f"| fault | faults | turns struck | calls lost | transcripts wrong | of these ended within "
        f"{_SOON_SECONDS:g} s | later by p50 | p95 | worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, name in (("kill", "SIGKILL"), ("stop", "SIGSTOP")):
        struck, late = outcome.struck(cast(Kind, kind)), outcome.late(cast(Kind, kind))
        p50, p95, worst = np.percentile(late, [50, 95, 100]) * 1000
        lines.append(
            f"| {name} | {sum(each == kind for each, _ in outcome.faults)} | {len(struck)} "
            f"| {len(outcome.ended)} | {sum(turn.wrong for turn in struck)} | {len(late)} "
            f"| {p50:.0f} ms | {p95:.0f} ms | {worst:.0f} ms |"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tests/data/whisper-synthetic-en")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--faults", type=int, default=20, help="of each kind (default 20)")
    parser.add_argument("--write", action="store_true", help="write into docs/benchmarks.md")
    arguments = parser.parse_args()
    logs.configure(LogSettings(level="error"))
    outcome = asyncio.run(run(arguments.callers, arguments.faults, arguments.model))
    section = render(outcome, arguments.callers, Path(arguments.model).name)
    print(section)
    if arguments.write:
        write("bench_faults", section)
    return 1 if outcome.ended else 0


if __name__ == "__main__":
    sys.exit(main())
