"""What short windows cost in accuracy: word errors of final transcripts by window.

``python -m tools.bench_windows`` has sentences transcribed by the real engine in its real process,
once for each shortest window of a final. Whisper was trained with windows of 30 s; shorter ones are
much quicker. A doubtful transcript is had once more at 30 s, as in a call.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import soxr

from tools.bench_stt import Clip
from tools.page import write
from tools.recognise import word_error_rate, words
from tools.sentences import sentences
from voice_rtc import logs
from voice_rtc.config import LogSettings
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm
from voice_rtc.core.scheduling import FULL_WINDOW_SECONDS, WINDOWS_SECONDS
from voice_rtc.engines.base import Final, SttFailed, SttTiming, VoiceOptions
from voice_rtc.engines.stt.whisper import WhisperSession, WhisperSettings, WhisperStt
from voice_rtc.engines.tts.espeak import EspeakTts

_VOICES = ("en-us", "en-gb")
_AT_ONCE = 8


@dataclass(slots=True)
class Row:
    """One window."""

    window_seconds: float
    words: int = 0
    errors: int = 0
    right: int = 0
    sentences: int = 0
    retried: int = 0
    """Transcribed once more at 30 s."""
    run_seconds: float = 0.0
    """Of the model, by the wall clock, all sentences together."""


async def spoken(count: int) -> list[Clip]:
    """Different sentences in two voices, 16 kHz."""
    engine = EspeakTts()
    await engine.start()
    clips = []
    for number, text in enumerate(sentences(count, seed=2)):
        voice = VoiceOptions(voice=_VOICES[number % len(_VOICES)])
        chunks = [pcm.samples async for pcm in engine.synthesize(text, voice)]
        samples = soxr.resample(np.concatenate(chunks), engine.rate_hz, LISTEN_RATE_HZ)
        clips.append(Clip(samples.astype(np.int16), text))
    await engine.aclose()
    return clips


async def measure(window_seconds: float, clips: Sequence[Clip], model: str) -> Row:
    """All sentences, some at the same time."""
    settings = WhisperSettings(
        model, device="cpu", download=False, final_window_seconds=window_seconds,
        full_windows=window_seconds >= FULL_WINDOW_SECONDS, partial_seconds=60.0,
    )  # fmt: skip
    row = Row(window_seconds, sentences=len(clips))

    def timed(timing: SttTiming) -> None:
        row.retried += timing.retried

    engine = WhisperStt(settings)
    await engine.start()
    engine.on_timing = timed
    left = iter(clips)

    async def transcribe() -> None:
        session = await engine.open()
        for clip in left:
            _count(row, clip, await _final(session, clip))
        await session.aclose()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(transcribe())
    row.run_seconds = time.perf_counter() - started
    await engine.aclose()
    return row


async def _final(session: WhisperSession, clip: Clip) -> str:
    session.begin(1)
    session.feed(Pcm(clip.samples, 0))
    session.finish(1)
    async for result in session.results():
        if isinstance(result, SttFailed):
            raise result.error
        if isinstance(result, Final):
            return result.text
    raise RuntimeError("the session ended")


def _count(row: Row, clip: Clip, text: str) -> None:
    count = len(words(clip.text))
    rate = word_error_rate(clip.text, text)
    row.words += count
    row.errors += round(rate * count)
    row.right += rate == 0.0


def render(rows: Sequence[Row], model: str) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs ({platform.machine()}), "
        f"model {model}, {rows[0].sentences} espeak-ng sentences of its vocabulary in the voices "
        f"{' and '.join(_VOICES)}, {_AT_ONCE} at a time.",
        "",
        "| shortest window of a final | WER | sentences right | once more at 30 s | sentences/s |",
        "|---|---|---|---|---|",
        *(
            f"| {row.window_seconds:g} s | {row.errors / row.words:.2%} "
            f"| {row.right} of {row.sentences} | {row.retried} "
            f"| {row.sentences / row.run_seconds:.0f} |"
            for row in rows
        ),
    ]
    return "\n".join(lines)


async def _all(given: argparse.Namespace) -> list[Row]:
    clips = await spoken(given.sentences)
    return [await measure(window, clips, given.model) for window in WINDOWS_SECONDS]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tests/data/whisper-synthetic-en")
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--write", action="store_true", help="write into docs/benchmarks.md")
    given = parser.parse_args()
    logs.configure(LogSettings(level="error"))
    section = render(asyncio.run(_all(given)), Path(given.model).name)
    print(section)
    if given.write:
        write("bench_windows", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
