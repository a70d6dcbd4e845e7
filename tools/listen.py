"""Listen to a recorded call: who spoke when, how loud, over whom, and what.

``python -m tools.listen WAV`` reads a stereo file with the caller left and the agent right, as
``python -m tools.turns --record FOLDER`` writes them, on one clock. Words are those of a second
recogniser: by default the small test Whisper, which knows 235 words in espeak-ng's voice (and
writes nonsense for others); ``--model`` takes any model of faster-whisper.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.second_ear import MODEL, SecondEar
from tools.turn_eval.talks import Moment, Talk, cut_up, exchange, talks
from tools.wav import AUDIBLE_DBFS, UnusableWav, read_stereo
from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, silence
from voice_rtc.errors import EngineError

CALLER, AGENT = "caller", "agent"
_LONGEST_SECONDS = 4.0
"""What the small test Whisper takes at a time."""
_AROUND_SECONDS = 0.3


async def words_of(moments: Sequence[Moment], sound: dict[str, Samples], model: str) -> list[str]:
    """What was said in each stretch. Raises EngineError when the model cannot be loaded."""
    ear = SecondEar(model)
    await ear.start()
    try:
        return [await _words(ear, moment.talk, sound[moment.talk.who]) for moment in moments]
    finally:
        await ear.aclose()


async def _words(ear: SecondEar, talk: Talk, samples: Samples) -> str:
    start, end = round(talk.start * LISTEN_RATE_HZ), round(talk.end * LISTEN_RATE_HZ)
    around = silence(round(_AROUND_SECONDS * LISTEN_RATE_HZ))
    pieces = cut_up(samples[start:end], LISTEN_RATE_HZ, _LONGEST_SECONDS)
    heard = [await ear.hear(np.concatenate([around, piece, around])) for piece in pieces]
    return " ".join(filter(None, heard))


def as_table(moments: Sequence[Moment], said: Sequence[str]) -> Table:
    """One row a stretch."""
    table = Table("from", "who", "long", "level", "before it", "words")
    for moment, text in zip(moments, said, strict=True):
        talk = moment.talk
        table.add_row(
            f"{talk.start:.2f} s",
            talk.who,
            f"{talk.seconds:.2f} s",
            f"{talk.dbfs:.0f} dBFS",
            _before(moment),
            escape(text),
        )
    return table


def _before(moment: Moment) -> str:
    if moment.overlap:
        return f"over the other, {moment.overlap:.2f} s"
    return "" if moment.gap is None else f"silence, {moment.gap:.2f} s"


def told(moments: Sequence[Moment]) -> str:
    """The whole call in a few sentences."""
    lines = []
    for who in (CALLER, AGENT):
        own = [moment.talk for moment in moments if moment.talk.who == who]
        level = f", {np.mean([talk.dbfs for talk in own]):.0f} dBFS" if own else ""
        seconds = sum(talk.seconds for talk in own)
        lines.append(f"{who}: {len(own)} stretches, {seconds:.1f} s{level}")
    gaps = [m.gap for m in moments if m.talk.who == AGENT and m.gap is not None]
    if gaps:
        p50, worst = np.percentile(gaps, [50, 100])
        lines.append(f"caller to agent: {len(gaps)} times, p50 {p50:.2f} s, longest {worst:.2f} s")
    over = [m for m in moments if m.overlap]
    by = [f"{sum(m.talk.who == who for m in over)} by the {who}" for who in (CALLER, AGENT)]
    lines.append(f"overlaps: {', '.join(by)}, {sum(m.overlap for m in over):.1f} s in all")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """The command line. 2 when there is nothing to listen to."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.listen", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("wav", type=Path, help="16 bit PCM, caller left, agent right")
    add("--model", default=str(MODEL), help="of faster-whisper (default: the small test model)")
    add("--no-words", action="store_true", help="do not transcribe")
    add("--audible", type=float, default=AUDIBLE_DBFS, metavar="DBFS", help="default %(default)g")
    arguments = parser.parse_args(given)
    try:
        left, right = read_stereo(arguments.wav, LISTEN_RATE_HZ)
        moments = exchange(
            talks(left, LISTEN_RATE_HZ, CALLER, arguments.audible),
            talks(right, LISTEN_RATE_HZ, AGENT, arguments.audible),
        )
        said = [""] * len(moments)
        if not arguments.no_words:
            sound = {CALLER: left, AGENT: right}
            said = asyncio.run(words_of(moments, sound, arguments.model))
    except (UnusableWav, EngineError) as error:
        print(f"listen: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.print(as_table(moments, said))
    console.print(told(moments), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
