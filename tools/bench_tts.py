"""How many voices Kokoro carries: replies asked for clause by clause, in real time.

``python -m tools.bench_tts 1 2`` lets so many voices talk without a pause to the real engine with
its real worker process. A voice asks for the first clause of a reply (four words) and for each
sentence after it as soon as less than two seconds of sound lie ahead, as a call does. Noted are the
seconds from a clause's request to its sound, and how often a voice ran dry: its next sound came
after the last one had been played. There is no WebRTC in it: ``tools.load`` measures whole calls.

Without ``--model`` it makes weights at random first: the times are real, the voice is not, and each
phoneme lasts about three frames.

The rows are written into docs/benchmarks.md under ``--key`` with ``--write``; measured on another
machine, they come from there by ``--json`` and are written here by ``--from-json``.
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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tools.page import write
from voice_rtc.engines.base import TtsTiming, VoiceOptions
from voice_rtc.engines.tts.kokoro import KokoroSettings, KokoroTts
from voice_rtc.errors import EngineError

_AHEAD_SECONDS = 2.0
_STARTS_WITHIN_SECONDS = 4.0
_VOICES = ("af_heart", "am_adam", "bf_emma")
_FIRSTS = (
    "Well, let me see.", "That is quite right.", "I can do that.", "Thank you for waiting.",
    "Oh, how very nice.", "Good morning to you.", "Yes, of course, sir.", "Let us begin there.",
)  # fmt: skip
_LATERS = (
    "There are several ways to look at that, and I will begin with the simplest one.",
    "The next train to the coast leaves at a quarter past nine from platform four.",
    "If you tell me your name and the date, I can look it up at once.",
    "It will be cold in the morning, with a little rain towards the evening.",
    "Most people take the first road on the left and then go on to the bridge.",
    "Shall I read the whole list to you, or only what is new today?",
    "We have kept your table for you, near the window, as you asked.",
)
_LATERS_A_REPLY = 3


@dataclass(slots=True)
class Outcome:
    """What came of one number of voices. Seconds, but for the counts."""

    voices: int
    seconds: float
    firsts: list[float] = field(default_factory=list)
    laters: list[float] = field(default_factory=list)
    dry: int = 0
    spoken_seconds: float = 0.0
    batches: list[int] = field(default_factory=list)
    failed: int = 0


class Watch:
    """Implements `TtsWatcher`."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def tts_spoke(self, timing: TtsTiming) -> None:
        """Note its company."""
        self._outcome.batches.append(timing.batch)

    def tts_cancelled(self) -> None:
        """Replies are never cut here, but a deadline counts as one."""

    def tts_fell_back(self, error: EngineError) -> None:
        """There is no fall-back voice here."""

    def tts_worker_died(self, error: EngineError) -> None:
        """Every piece that was lost has failed by itself."""
        self._outcome.failed += 1


class _Talker:
    """One voice: reply after reply, in real time."""

    def __init__(self, engine: KokoroTts, number: int, warm: float, outcome: Outcome) -> None:
        self._engine = engine
        self._number = number
        self._warm = warm
        self._outcome = outcome
        self._dice = np.random.default_rng(number)
        self._played_until = 0.0

    async def talk(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._dice.uniform(0.0, _STARTS_WITHIN_SECONDS))
        reply = 0
        while loop.time() < end:
            reply += 1
            name = f"{self._number}-{reply}"
            self._played_until = 0.0
            await self._say(_FIRSTS[self._dice.integers(len(_FIRSTS))], name, first=True)
            for at in self._dice.permutation(len(_LATERS))[:_LATERS_A_REPLY]:
                await asyncio.sleep(self._played_until - _AHEAD_SECONDS - loop.time())
                if loop.time() < end:
                    await self._say(_LATERS[at], name, first=False)
            await asyncio.sleep(self._played_until - loop.time())

    async def _say(self, text: str, reply: str, *, first: bool) -> None:
        loop, outcome = asyncio.get_running_loop(), self._outcome
        asked = loop.time()
        voice = _VOICES[self._number % len(_VOICES)]
        options = VoiceOptions(voice, reply=reply, first=first)
        came, seconds = asked, 0.0
        try:
            async for chunk in self._engine.synthesize(text, options):
                came = came if seconds else loop.time()
                seconds += chunk.seconds
        except EngineError:
            outcome.failed += 1
            return
        dry = not first and came > self._played_until
        self._played_until = max(came, self._played_until) + seconds
        if asked >= self._warm:
            (outcome.firsts if first else outcome.laters).append(came - asked)
            outcome.dry += dry
            outcome.spoken_seconds += seconds


async def measure(engine: KokoroTts, voices: int, seconds: float) -> Outcome:
    """Let so many voices talk; the first seconds, in which they begin, do not count."""
    outcome = Outcome(voices, seconds)
    warm = asyncio.get_running_loop().time() + _STARTS_WITHIN_SECONDS
    async with asyncio.TaskGroup() as tasks:
        for number in range(voices):
            talker = _Talker(engine, number, warm, outcome)
            tasks.create_task(talker.talk(warm + seconds))
        await asyncio.sleep(_STARTS_WITHIN_SECONDS)
        engine.watcher = Watch(outcome)
    return outcome


# -------------------------------------------------------------------------------------- table


def render(where: str, rows: Sequence[Outcome]) -> str:
    """The section for docs/benchmarks.md."""
    lines = [
        f"{where}, one run of {rows[0].seconds:.0f} s for each number of voices.",
        "",
        "| voices | first clauses | p50 | p95 | sentences | p50 | p95 | ran dry | pieces a batch "
        "| seconds of speech a second | failed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines)


def _line(row: Outcome) -> str:
    share = row.dry / max(1, len(row.laters))
    batch = float(np.mean(row.batches)) if row.batches else 0.0
    cells = [
        row.voices, len(row.firsts), _ms(row.firsts, 50), _ms(row.firsts, 95), len(row.laters),
        _ms(row.laters, 50), _ms(row.laters, 95), f"{share:.1%}", f"{batch:.1f}",
        f"{row.spoken_seconds / row.seconds:.1f}", row.failed,
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _ms(values: Sequence[float], percentile: float) -> str:
    return f"{float(np.percentile(values, percentile)) * 1000:.0f} ms" if values else "–"


# --------------------------------------------------------------------------------- command line


async def _run(arguments: argparse.Namespace, folder: str) -> tuple[str, list[Outcome]]:
    engine = KokoroTts(
        KokoroSettings(
            model=folder,
            device=arguments.device,
            precision=arguments.precision,
            batch=arguments.batch,
            graphs=not arguments.no_graphs,
            deadline_seconds=120.0,
            hang_seconds=120.0,
            waiting=10_000,
        )
    )
    try:
        started = asyncio.get_running_loop().time()
        await engine.start()
        loaded = asyncio.get_running_loop().time() - started
        print(engine.info.model, engine.info.notes, f"loaded in {loaded:.1f} s", flush=True)
        rows = []
        for voices in arguments.voices:
            rows.append(await measure(engine, voices, arguments.seconds))
            print(_line(rows[-1]), flush=True)
        weights = arguments.model or "random weights"
        cpus = f"{os.cpu_count()} CPUs ({platform.machine()})"
        placement = engine.info.model.partition(" (")[2].removesuffix(")")
        note = engine.info.notes[0].replace(" on this machine", "").removesuffix(".")
        return (
            f"Measured {datetime.now(UTC):%Y-%m-%d} on {placement}; {cpus}, Python "
            f"{platform.python_version()}, {weights}; {note}, alone; loaded in {loaded:.0f} s",
            rows,
        )
    finally:
        await engine.aclose()


def _weights(arguments: argparse.Namespace, scratch: str) -> str:
    if arguments.model:
        return str(arguments.model)
    from tools.random_kokoro import write as write_weights

    write_weights(Path(scratch))
    return scratch


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("voices", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--model", default="", help="directory; none: weights at random")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each number of voices")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--key", default="cpu", help="section of docs/benchmarks.md")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from-json", type=Path)
    arguments = parser.parse_args()
    if arguments.from_json:
        saved = json.loads(arguments.from_json.read_text(encoding="utf-8"))
        where, rows = saved["where"], [Outcome(**row) for row in saved["rows"]]
    else:
        with tempfile.TemporaryDirectory() as scratch:
            where, rows = asyncio.run(_run(arguments, _weights(arguments, scratch)))
    if arguments.json:
        saved = {"where": where, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(saved), encoding="utf-8")
    section = render(where, rows)
    print(section)
    if arguments.write:
        write(f"bench_tts {arguments.key}", section)
    if any(row.failed for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
