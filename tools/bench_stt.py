"""How many callers a pool carries: live speech, by mode, window and number of callers.

``python -m tools.bench_stt`` feeds N callers in real time (about 40 % talk, a partial every 0.5 s)
to the pool with its real engine in its real process, and notes for each mode and window how long
the final transcripts take and, with a model that understands, how many words are wrong. There is
no WebRTC in it: ``tools.load`` measures whole calls.

``--random turbo`` makes a model of that architecture with random weights first, whose decoder says
15 tokens: the times are real, the text is not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from voice_rtc import logs
from voice_rtc.config import LogSettings, Settings
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples
from voice_rtc.engines.base import EngineSet, Final, Partial, ReplicaSpec, SttFailed, SttMode
from voice_rtc.engines.stt.whisper import WhisperSettings, WhisperStt
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import read_gpus
from voice_rtc.pool.lease import LeaseRequest
from voice_rtc.pool.pool import SttPool
from voice_rtc.pool.status import memory_mb

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_PIECE_SECONDS = 0.1
_TALK_SHARE = 0.4
_WARM_UP_SECONDS = 8.0
"""At the beginning of each case: not counted."""
_SENTENCES = (
    "My code word is falcon river.",
    "What is the weather in Paris today?",
    "Tell me more about London.",
    "This is caller seven, my code word is silver dolphin.",
    "Turn off the lantern.",
)


@dataclass(frozen=True, slots=True)
class Clip:
    """What a caller says."""

    samples: Samples
    text: str
    """Empty: nobody knows."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    mode: SttMode
    window: Literal["short", "full"]
    callers: int
    encoder: str = "auto"


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    finals: list[float] = field(default_factory=list)
    partials: int = 0
    failed: int = 0
    words: int = 0
    errors: int = 0
    seconds: float = 1.0
    late_seconds: float = 0.0
    """How late audio was fed at worst: the bench itself did not keep up."""
    memory_mb: float = 0.0
    gpu_mb: float = 0.0

    def p(self, share: float) -> float:
        """Percentile of the finals' times in seconds."""
        return float(np.percentile(self.finals, 100 * share)) if self.finals else float("nan")


async def run_case(
    case: Case, clips: Sequence[Clip], seconds: float, whisper: WhisperSettings
) -> Outcome:
    """Load the pool for ``case``, let its callers warm it up and then talk for ``seconds``."""
    settings = Settings(
        pool={"mode": case.mode, "slots": case.callers, "spares": 0, "probe": False,
              "memory_high": 0.97, "memory_critical": 0.98, "final_goal_seconds": 60.0},
        stt={"load_deadline_seconds": 600.0},
    )  # fmt: skip

    def make(spec: ReplicaSpec) -> WhisperStt:
        full = case.window == "full"
        return WhisperStt(replace(whisper, mode=spec.mode, full_windows=full, encoder=case.encoder))

    before = sum(gpu.used_mb for gpu in read_gpus().gpus)
    first = make(ReplicaSpec(case.mode))
    await first.start()
    nothing = cast(Any, None)
    engines = EngineSet(nothing, first, nothing, nothing, (), make)
    outcome = Outcome(seconds=seconds)
    try:
        async with SttPool(settings, engines, Metrics(), read_gpus).running() as pool:
            leases = [  # one engine after the other is loaded
                await pool.allocate_instance(LeaseRequest(f"call-{number}"))
                for number in range(case.callers)
            ]
            pids = [pid for r in pool.supervisor.replicas() for pid in r.engine_health().pids]
            async with asyncio.TaskGroup() as tasks:
                for number, lease in enumerate(leases):
                    talk = _talk(lease.session, clips, number, seconds, outcome)
                    tasks.create_task(talk)
                await asyncio.sleep(_WARM_UP_SECONDS + seconds * 0.8)
                outcome.memory_mb = memory_mb(tuple(pids))
                outcome.gpu_mb = sum(gpu.used_mb for gpu in read_gpus().gpus) - before
            for lease in leases:
                await pool.return_instance(lease)
    finally:
        await first.aclose()
    return outcome


async def _talk(
    session: Any, clips: Sequence[Clip], number: int, seconds: float, outcome: Outcome
) -> None:
    """One caller: a sentence in real time, a pause, the next sentence."""
    loop = asyncio.get_running_loop()
    dice = np.random.default_rng(number)
    warm = loop.time() + _WARM_UP_SECONDS
    end = warm + seconds
    done: dict[int, asyncio.Future[Final | SttFailed]] = {}

    async def read() -> None:
        async for result in session.results():
            if isinstance(result, Partial):
                outcome.partials += loop.time() >= warm
            elif not done[result.utterance].done():
                done[result.utterance].set_result(result)

    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read())
        await asyncio.sleep(dice.uniform(0.0, 5.0))
        utterance = 0
        while loop.time() < end:
            utterance += 1
            clip = clips[int(dice.integers(len(clips)))]
            done[utterance] = loop.create_future()
            await _say(session, utterance, clip, outcome)
            finished = loop.time()
            result = await done[utterance]
            if finished >= warm:
                _count(result, clip, loop.time() - finished, outcome)
            pause = len(clip.samples) / LISTEN_RATE_HZ * (1 / _TALK_SHARE - 1)
            await asyncio.sleep(dice.exponential(pause))
        reader.cancel()


async def _say(session: Any, utterance: int, clip: Clip, outcome: Outcome) -> None:
    loop = asyncio.get_running_loop()
    piece = round(_PIECE_SECONDS * LISTEN_RATE_HZ)
    session.begin(utterance)
    started = loop.time()
    for start in range(0, len(clip.samples), piece):
        due = started + (start + piece) / LISTEN_RATE_HZ
        await asyncio.sleep(max(0.0, due - loop.time()))
        outcome.late_seconds = max(outcome.late_seconds, loop.time() - due)
        session.feed(Pcm(clip.samples[start : start + piece], start))
    session.finish(utterance)


def _count(result: Final | SttFailed, clip: Clip, seconds: float, outcome: Outcome) -> None:
    if isinstance(result, SttFailed):
        outcome.failed += 1
        return
    outcome.finals.append(seconds)
    if clip.text:
        from tools.recognise import word_error_rate, words

        count = len(words(clip.text))
        outcome.words += count
        outcome.errors += round(word_error_rate(clip.text, result.text) * count)


# ------------------------------------------------------------------------------------- speech


async def spoken() -> list[Clip]:
    """Sentences of the small test model's lexicon in espeak-ng's voice."""
    import soxr

    from voice_rtc.engines.tts.espeak import EspeakTts

    engine = EspeakTts()
    await engine.start()
    clips = []
    for text in _SENTENCES:
        chunks = [pcm.samples async for pcm in engine.synthesize(text)]
        samples = soxr.resample(np.concatenate(chunks), engine.rate_hz, LISTEN_RATE_HZ)
        clips.append(Clip(samples.astype(np.int16), text))
    await engine.aclose()
    return clips


def noise() -> list[Clip]:
    """Utterances of about 4 s, for a model that understands nothing."""
    dice = np.random.default_rng(1)
    lengths = np.clip(dice.gamma(2.0, 2.0, 24), 0.5, 14.0)
    return [
        Clip(dice.normal(0, 1500, round(s * LISTEN_RATE_HZ)).astype(np.int16), "") for s in lengths
    ]


# -------------------------------------------------------------------------------------- table


def render(rows: Sequence[tuple[Case, Outcome]], model: str, where: str, key: str) -> str:
    """The section for docs/benchmarks.md."""
    begin, end = _markers(key)
    lines = [
        begin,
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {where}, model {model}; callers talk "
        f"{_TALK_SHARE:.0%} of the time, fed in real time, a partial every 0.5 s; through the pool "
        "and the engine's own process, without WebRTC.",
        "",
        "| mode | window | encoder | callers | finals | p50 | p95 | failed | partials/s | WER | "
        "workers' memory | GPU memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, got in rows:
        wer = f"{got.errors / got.words:.1%}" if got.words else "–"
        lines.append(
            f"| {case.mode} | {case.window} | {case.encoder} | {case.callers} | {len(got.finals)} "
            f"| {got.p(0.5) * 1000:.0f} ms | {got.p(0.95) * 1000:.0f} ms | {got.failed} "
            f"| {got.partials / got.seconds:.0f} | {wer} | {got.memory_mb:.0f} MB "
            f"| {got.gpu_mb:.0f} MB |"
        )
    return "\n".join([*lines, end])


def _markers(key: str) -> tuple[str, str]:
    return f"<!-- bench_stt {key}: begin -->", f"<!-- bench_stt {key}: end -->"


def write(section: str, key: str) -> None:
    """Put the section into the page in place of the one before."""
    begin, end = _markers(key)
    page = PAGE.read_text(encoding="utf-8")
    head, found, rest = page.partition(begin)
    if not found:
        raise SystemExit(f"docs/benchmarks.md has no place for {key}")
    PAGE.write_text(f"{head}{section}{rest.partition(end)[2]}", encoding="utf-8")


async def _all(arguments: argparse.Namespace) -> list[tuple[Case, Outcome]]:
    clips = noise() if arguments.random else await spoken()
    whisper = WhisperSettings(
        model=arguments.model, device=arguments.device, partial_seconds=0.5, download=False
    )
    rows = []
    for text in arguments.cases:
        mode, window, callers, *encoder = text.split(":")
        case = Case(mode, window, int(callers), *(encoder or ["auto"]))
        got = await run_case(case, clips, arguments.seconds, whisper)
        rows.append((case, got))
        print(
            f"{text}: {len(got.finals)} finals p50 {got.p(0.5):.3f} p95 {got.p(0.95):.3f} s, "
            f"{got.failed} failed, {got.partials} partials, errors {got.errors}/{got.words}, "
            f"fed late by {got.late_seconds:.2f} s, {got.memory_mb:.0f} MB, "
            f"GPU {got.gpu_mb:.0f} MB",
            flush=True,
        )
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tests/data/whisper-synthetic-en")
    parser.add_argument("--random", default="", help="architecture of a random model, e.g. turbo")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=25.0, help="of talk in each case")
    parser.add_argument("--key", default="", help="which section of the page is written")
    parser.add_argument("--where", default=f"{os.cpu_count()} CPUs ({platform.machine()})")
    parser.add_argument("cases", nargs="+", help="mode:window:callers[:encoder] ...")
    arguments = parser.parse_args()
    logs.configure(LogSettings(level="error"))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.random:
            from tools.random_whisper import build

            arguments.model = build(arguments.random, Path(folder))
        rows = asyncio.run(_all(arguments))
    name = arguments.random or Path(arguments.model).name
    section = render(rows, name, arguments.where, arguments.key)
    print(section)
    if arguments.key:
        write(section, arguments.key)
    late = statistics.fmean(outcome.late_seconds for _, outcome in rows)
    print(f"audio was fed at most {late:.2f} s late on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
