"""Measure the audio path: calls per core, delay, what loss does, and calls that come and go.

``python -m tools.bench_media`` starts servers that do media alone, each as a process on a core of
its own, and calls them with bots on another core: ours on both of its ways, and Pipecat and FastRTC
where ``make bench-peers-env`` has installed them. docs/benchmarks.md says how and what came of it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tools.bench_stt import spoken
from tools.impair import Impairment
from tools.media_bench.bots import encoded, with_pauses
from tools.media_bench.capacity import capacity
from tools.media_bench.measure import Bench, cycles, delay, delivered
from tools.media_bench.process import (
    ROOT,
    Candidate,
    candidates,
    cores,
    cpu_seconds,
    on_core,
    stolen,
    work_seconds,
)
from tools.media_bench.report import Figures, render
from tools.media_bench.words import recogniser, understood
from tools.page import write as write_page
from tools.wav import read_wav, resample
from voice_rtc import logs
from voice_rtc.config import LogSettings
from voice_rtc.core.audio import FRAME_SECONDS, SEND_RATE_HZ

_CLIPS = ROOT / "tests" / "data" / "speech"
_MODEL = ROOT / "tests" / "data" / "whisper-synthetic-en"
_TALK_SECONDS, _PAUSE_SECONDS = 4.0, 6.0
_CALLS = 4
"""At once, where it is not calls that are counted."""
_SPEAKERS = 10
_OWN = ("fast", "stock")


class Part(StrEnum):
    """What can be measured."""

    capacity = "capacity"
    vad = "vad"
    pauses = "pauses"
    delay = "delay"
    loss = "loss"
    words = "words"
    cycles = "cycles"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    repeats: int
    seconds: float
    """For each number of callers."""
    few: Sequence[int]
    """Numbers of callers for servers of which each call has its own threads."""
    many: Sequence[int]
    delay_seconds: float
    loss_seconds: float
    networks: dict[str, Impairment]
    word_losses: Sequence[float]
    sentences: int
    cycles: int


def _lossy(loss: float, burst: int = 1) -> Impairment:
    return Impairment(loss=loss, burst=burst, media_only=True)


FULL = Plan(
    repeats=3,
    seconds=8.0,
    few=(4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40),
    many=(10, 20, 40, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150, 160, 180, 200),
    delay_seconds=25.0,
    loss_seconds=30.0,
    networks={
        "1 %": _lossy(0.01),
        "5 %": _lossy(0.05),
        "10 %": _lossy(0.10),
        "20 %": _lossy(0.20),
        "5 % in bursts of 3": _lossy(0.05, burst=3),
        "10 % in bursts of 3": _lossy(0.10, burst=3),
    },
    word_losses=(0.0, 0.01, 0.05, 0.10),
    sentences=60,
    cycles=500,
)
QUICK = Plan(
    repeats=1,
    seconds=3.0,
    few=(2, 4),
    many=(4, 8),
    delay_seconds=4.0,
    loss_seconds=5.0,
    networks={"5 %": _lossy(0.05)},
    word_losses=(0.0, 0.05),
    sentences=10,
    cycles=20,
)


async def measure(
    bench: Bench, plan: Plan, parts: Sequence[Part], servers: Sequence[Candidate]
) -> Figures:
    """All of it, one after the other."""
    figures = Figures(plan.seconds, plan.repeats)
    own = [server for server in servers if server.name in _OWN]
    fast = [server for server in servers if server.name == "fast"]
    for seed in range(plan.repeats):
        for server in servers if Part.capacity in parts else []:
            await _climb(figures, bench, plan, server)
        for server in fast if Part.vad in parts else []:
            await _climb(figures, bench, plan, server, "vad", "--vad")
        for server in fast if Part.pauses in parts else []:
            await _climb(figures, bench, plan, server, "pauses", "--duty", "0.4")
        for server in servers if Part.delay in parts else []:
            await _time(figures, bench, plan, server, seed)
        if Part.loss in parts:
            await _lose(figures, bench, plan, own, seed)
    if Part.words in parts:
        await _listen(figures, bench, plan, own)
    if Part.cycles in parts and fast:
        figures.cycles = await cycles(bench, fast[0], plan.cycles, 2 * _CALLS)
        _tell("fast: calls that come and go")
    return figures


async def _time(figures: Figures, bench: Bench, plan: Plan, server: Candidate, seed: int) -> None:
    for loss in (0.0, 0.01):
        got = await delay(bench, server, loss, plan.delay_seconds, _CALLS, seed)
        figures.delay.setdefault((server.name, loss), []).append(got)
        _tell(f"{server.name}: delay at {loss:.0%} loss")


async def _climb(
    figures: Figures, bench: Bench, plan: Plan, server: Candidate, kind: str = "", *more: str
) -> None:
    counts = plan.many if server.name == "fast" else plan.few
    pauses = kind == "pauses"
    # With pauses the same seconds see few spurts: a whole turn of both sides at least.
    seconds = max(plan.seconds, _TALK_SECONDS + _PAUSE_SECONDS) if pauses else plan.seconds
    climb = await capacity(bench, server, counts, seconds, *more, pauses=pauses)
    key = f"{server.name}+{kind}" if kind else server.name
    figures.capacity.setdefault(key, []).append(climb)
    held = climb.held
    _tell(f"{key}: {held.calls if held else 0} calls; {climb.ended or 'all steps held'}")


async def _lose(
    figures: Figures, bench: Bench, plan: Plan, servers: Sequence[Candidate], seed: int
) -> None:
    for server in servers:
        for name, bad in plan.networks.items():
            got = await delivered(bench, server, bad, plan.loss_seconds, _CALLS, seed)
            figures.delivered.setdefault((server.name, name), []).append(got)
            _tell(f"{server.name}: {got.sound:.1%} delivered at a loss of {name}")


async def _listen(figures: Figures, bench: Bench, plan: Plan, servers: Sequence[Candidate]) -> None:
    clips = (await spoken())[: plan.sentences]
    async with recogniser(str(_MODEL)) as session:
        for number in range(plan.repeats):
            for server in servers:
                for loss in plan.word_losses:
                    got = await understood(
                        bench, server, _lossy(loss), clips, _SPEAKERS, number, session
                    )
                    figures.words.setdefault((server.name, loss), []).append(got)
                    _tell(f"{server.name}: {got.error_rate:.1%} of words wrong at {loss:.0%} loss")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------- set-up


def make_bench(folder: Path, core: int) -> Bench:
    """Human speech for callers and agents, in ``folder``; servers are to run on ``core``."""
    speech = np.concatenate([read_wav(clip) for clip in sorted(_CLIPS.glob("*.wav"))])
    for rate_hz in (24_000, SEND_RATE_HZ):
        raw = resample(speech, SEND_RATE_HZ, rate_hz).astype(np.int16)
        (folder / f"speech-{rate_hz}.raw").write_bytes(raw.tobytes())
    packets = encoded(speech)
    talk, pause = (round(s / FRAME_SECONDS) for s in (_TALK_SECONDS, _PAUSE_SECONDS))
    return Bench(core, folder, packets, with_pauses(packets, talk, pause))


def run(
    plan: Plan, parts: Sequence[Part], names: Sequence[str], peers: Path, folder: Path
) -> tuple[Figures, list[Candidate]]:
    """Everything that can be measured here, and of which servers it was."""
    core, others = cores()
    bench = make_bench(folder, core)
    known = candidates(peers)
    wanted = [known[name] for name in names]
    servers = [server for server in wanted if not server.why_not]
    skipped = [f"{server.title} ({server.why_not})" for server in wanted if server.why_not]
    for line in skipped:
        _tell(f"skipped: {line}")
    before, work = cpu_seconds(), work_seconds(bench.core)
    with on_core(others):
        figures = asyncio.run(measure(bench, plan, parts, servers))
    figures.skipped = skipped
    figures.noise.stolen = stolen(before, cpu_seconds())
    figures.noise.work_before, figures.noise.work_after = work, work_seconds(bench.core)
    return figures, servers


def main(
    part: Annotated[list[Part] | None, typer.Option(help="Measure this; may be repeated.")] = None,
    server: Annotated[
        list[str] | None, typer.Option(help="fast, stock, pipecat, fastrtc; may be repeated.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1)] = None,
    seconds: Annotated[float | None, typer.Option(help="For each number of callers.")] = None,
    calls: Annotated[str, typer.Option(help="Numbers of callers, e.g. 80,100,120.")] = "",
    quick: Annotated[
        bool, typer.Option(help="A few minutes that only show that it works.")
    ] = False,
    peers_venv: Annotated[
        Path, typer.Option(help="Folder with .venv-peers-pipecat and .venv-peers-fastrtc.")
    ] = ROOT,
    logs_in: Annotated[Path | None, typer.Option(help="Keep what the servers say here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures there too.")] = None,
    write: Annotated[bool, typer.Option(help="Write into docs/benchmarks.md.")] = False,
) -> None:
    """Calls per core, delay, loss and life cycle of the audio path."""
    logs.configure(LogSettings(level="error"))
    names = server or list(candidates(peers_venv))
    if unknown := set(names) - set(candidates(peers_venv)):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}", param_hint="--server")
    plan = _changed(QUICK if quick else FULL, repeats, seconds, calls)
    with tempfile.TemporaryDirectory() as made:
        folder = logs_in or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        figures, servers = run(plan, part or list(Part), names, peers_venv, folder)
    if json is not None:
        json.write_text(figures.saved(), encoding="utf-8")
    for name, section in render(figures, servers).items():
        print(section, end="\n\n")
        if write:
            write_page(name, section)


def _changed(plan: Plan, repeats: int | None, seconds: float | None, calls: str) -> Plan:
    if repeats is not None:
        plan = replace(plan, repeats=repeats)
    if seconds is not None:
        plan = replace(plan, seconds=seconds)
    if calls:
        counts = [int(each) for each in calls.split(",")]
        plan = replace(plan, few=counts, many=counts)
    return plan


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
