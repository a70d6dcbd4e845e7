"""How many callers a pool carries: live speech, by mode, window and number of callers.

``python -m tools.bench_stt`` feeds N callers in real time (about 40 % talk, a partial every 0.5 s)
to the pool with its real engine in its real process, and notes for each mode and window how long
the final transcripts take and, with a model that understands, how many words are wrong. There is
no WebRTC in it: ``tools.load`` measures whole calls.

``--random turbo`` makes a model of that architecture with random weights first, whose decoder says
15 tokens: the times are real, the text is not.

A case is ``mode:window:callers`` with an optional ``:encoder``. The rows are written into
docs/benchmarks.md under ``--key``; measured on another machine, they come from there by ``--json``
and are written here by ``--from-json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from tools.sentences import sentences
from voice_rtc import logs
from voice_rtc.config import LogSettings, Settings
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples
from voice_rtc.engines.base import EngineSet, Final, Partial, ReplicaSpec, SttFailed, SttMode
from voice_rtc.engines.stt.whisper import WhisperSettings, WhisperStt
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import read_gpus
from voice_rtc.pool.lease import Lease, LeaseRequest
from voice_rtc.pool.pool import SttPool
from voice_rtc.pool.status import memory_mb

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_PIECE_SECONDS = 0.1
_TALK_SHARE = 0.4
_LOADING_AT_ONCE = 4
"""Dedicated engines."""
_SENTENCES = 60


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


@dataclass(frozen=True, slots=True)
class Times:
    """Of each case, in seconds."""

    warm_up: float
    """At its beginning, not counted."""
    talk: float


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
    warm_up_seconds: float = 0.0
    load_seconds: float = 0.0
    """Until every caller had its slot."""
    memory_mb: float = 0.0
    gpu_mb: float = 0.0

    def p(self, share: float) -> float:
        """Percentile of the finals' times in seconds."""
        return float(np.percentile(self.finals, 100 * share)) if self.finals else float("nan")


async def run_case(
    case: Case, clips: Sequence[Clip], times: Times, whisper: WhisperSettings
) -> Outcome:
    """Load the pool for ``case``, let its callers warm it up and then talk."""
    settings = Settings(
        pool={"mode": case.mode, "slots": case.callers, "spares": 0, "probe": False,
              "memory_high": 0.97, "memory_critical": 0.98, "final_goal_seconds": 60.0},
        stt={"load_deadline_seconds": 600.0},
    )  # fmt: skip

    def make(spec: ReplicaSpec) -> WhisperStt:
        full = case.window == "full"
        return WhisperStt(replace(whisper, mode=spec.mode, full_windows=full, encoder=case.encoder))

    before = sum(gpu.used_mb for gpu in read_gpus().gpus)
    started = asyncio.get_running_loop().time()
    first = make(ReplicaSpec(case.mode))
    await first.start()
    nothing = cast(Any, None)
    engines = EngineSet(nothing, first, nothing, nothing, (), make)
    outcome = Outcome(seconds=times.talk, warm_up_seconds=times.warm_up)
    try:
        async with SttPool(settings, engines, Metrics(), read_gpus).running() as pool:
            leases = await _allocate(pool, case.callers)
            outcome.load_seconds = asyncio.get_running_loop().time() - started
            pids = [pid for r in pool.supervisor.replicas() for pid in r.engine_health().pids]
            async with asyncio.TaskGroup() as tasks:
                for number, lease in enumerate(leases):
                    tasks.create_task(_talk(lease.session, clips, number, times, outcome))
                await asyncio.sleep(times.warm_up + times.talk * 0.8)
                outcome.memory_mb = memory_mb(tuple(pids))
                outcome.gpu_mb = sum(gpu.used_mb for gpu in read_gpus().gpus) - before
            for lease in leases:
                await pool.return_instance(lease)
    finally:
        await first.aclose()
    return outcome


async def _allocate(pool: SttPool, callers: int) -> list[Lease]:
    loading = asyncio.Semaphore(_LOADING_AT_ONCE)

    async def one(number: int) -> Lease:
        async with loading:
            return await pool.allocate_instance(LeaseRequest(f"call-{number}"))

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(number)) for number in range(callers)]
    return [task.result() for task in running]


async def _talk(
    session: Any, clips: Sequence[Clip], number: int, times: Times, outcome: Outcome
) -> None:
    """One caller: a sentence in real time, a pause, the next sentence."""
    loop = asyncio.get_running_loop()
    dice = np.random.default_rng(number)
    warm = loop.time() + times.warm_up
    end = warm + times.talk
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
            await asyncio.sleep(min(dice.exponential(pause), end - loop.time()))
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
    """Sentences that the small test model knows the words of, in espeak-ng's voice."""
    import soxr

    from voice_rtc.engines.tts.espeak import EspeakTts

    engine = EspeakTts()
    await engine.start()
    clips = []
    for text in sentences(_SENTENCES):
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


Row = tuple[Case, Outcome]


@dataclass(frozen=True, slots=True)
class Table:
    """What is written into the page."""

    where: str
    model: str
    goal_seconds: float
    rows: Sequence[Row]

    def render(self, key: str) -> str:
        """The section for docs/benchmarks.md."""
        begin, end = _markers(key)
        late = max(outcome.late_seconds for _, outcome in self.rows)
        first = self.rows[0][1]
        goal = f"p95 <= {self.goal_seconds * 1000:.0f} ms"
        lines = [
            begin,
            f"Measured {datetime.now(UTC):%Y-%m-%d} on {self.where}, model {self.model}, one run "
            f"of {first.seconds:.0f} s each after {first.warm_up_seconds:.0f} s of warm-up; audio "
            f"was fed {late * 1000:.0f} ms late at worst.",
            "",
            f"| mode | window | encoder | callers | finals | p50 | p95 | {goal} | failed "
            "| WER | workers' memory | GPU memory |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            *(self._line(case, got) for case, got in self.rows),
        ]
        return "\n".join([*lines, end])

    def _line(self, case: Case, got: Outcome) -> str:
        wer = f"{got.errors / got.words:.1%}" if got.words else "–"
        gpu = f"{got.gpu_mb / 1024:.1f} GB" if got.gpu_mb else "–"
        cells = [
            case.mode, case.window, case.encoder, case.callers, len(got.finals),
            f"{got.p(0.5) * 1000:.0f} ms", f"{got.p(0.95) * 1000:.0f} ms",
            "yes" if got.p(0.95) <= self.goal_seconds else "**no**", got.failed,
            wer, f"{got.memory_mb:.0f} MB", gpu,
        ]  # fmt: skip  # one line for each two columns
        return f"| {' | '.join(map(str, cells))} |"


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


def saved(rows: Sequence[Row]) -> str:
    """All that was measured, as JSON."""
    return json.dumps([{"case": asdict(case), "outcome": asdict(got)} for case, got in rows])


def loaded(path: Path) -> list[Row]:
    """What `saved` wrote."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [(Case(**each["case"]), Outcome(**each["outcome"])) for each in entries]


# --------------------------------------------------------------------------------- command line


async def _measure(arguments: argparse.Namespace, model: str, times: Times) -> list[Row]:
    clips = noise() if arguments.random else await spoken()
    whisper = WhisperSettings(
        model=model, device=arguments.device, partial_seconds=0.5, download=False
    )
    rows: list[Row] = []
    for text in arguments.cases:
        mode, window, callers, *encoder = text.split(":")
        case = Case(mode, window, int(callers), *(encoder or ["auto"]))
        got = await run_case(case, clips, times, whisper)
        rows.append((case, got))
        print(
            f"{text}: loaded in {got.load_seconds:.1f} s, {len(got.finals)} finals, "
            f"p50 {got.p(0.5):.3f} p95 {got.p(0.95):.3f} s, "
            f"{got.failed} failed, {got.partials} partials, errors {got.errors}/{got.words}, "
            f"fed late by {got.late_seconds:.2f} s, {got.memory_mb:.0f} MB, "
            f"GPU {got.gpu_mb:.0f} MB",
            flush=True,
        )
        if arguments.json is not None:
            arguments.json.write_text(saved(rows), encoding="utf-8")
    return rows


def _rows(arguments: argparse.Namespace, times: Times) -> list[Row]:
    if arguments.from_json:
        return [row for path in arguments.from_json for row in loaded(path)]
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.random:
            from tools.random_whisper import build

            model = build(arguments.random, Path(folder))
        return asyncio.run(_measure(arguments, model, times))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--model", default="tests/data/whisper-synthetic-en")
    add("--random", default="", help="architecture of a random model, e.g. turbo")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--seconds", type=float, default=25.0, help="of talk in each case (default %(default)s)")
    add("--warm-up", type=float, default=8.0, help="before that, not counted")
    add("--goal", type=float, default=0.6, help="seconds within which p95 of finals should be")
    add("--key", default="", help="which section of the page is written")
    add("--where", default=f"{os.cpu_count()} CPUs ({platform.machine()})")
    add("--json", type=Path, help="write the rows there too")
    add("--from-json", type=Path, nargs="+", help="do not measure: take these rows")
    add("cases", nargs="*", help="mode:window:callers[:encoder] ...")
    return parser.parse_args()


def main() -> int:
    """The command line."""
    arguments = _arguments()
    logs.configure(LogSettings(level="error"))
    times = Times(arguments.warm_up, arguments.seconds)
    name = arguments.model and Path(arguments.model).name
    if arguments.random:
        name = f"of the size of {arguments.random} with random weights"
    rows = _rows(arguments, times)
    if not rows:
        print("bench_stt: name at least one case, e.g. shared:short:16", file=sys.stderr)
        return 2
    table = Table(arguments.where, name, arguments.goal, rows)
    section = table.render(arguments.key)
    print(section)
    if arguments.key:
        write(section, arguments.key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
