"""What loss does to words: sentences through a bad network, transcribed as the server got them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from tools.bench_stt import Clip
from tools.impair import Impairment, Network, impaired
from tools.media_bench.bots import Bot, crowd, encoded
from tools.media_bench.measure import Bench
from tools.media_bench.process import Candidate
from tools.recognise import word_error_rate, words
from tools.wav import resample
from voice_rtc.core.audio import FRAME_SECONDS, LISTEN_RATE_HZ, SEND_RATE_HZ, Pcm, Samples, silence
from voice_rtc.engines.base import Final, SttFailed
from voice_rtc.engines.stt.whisper import WhisperSession, WhisperSettings, WhisperStt

_LEAD_SECONDS = 1.5
"""Before the first sentence: the server may miss the very beginning of a call."""
_GAP_SECONDS = 1.0
_MARGIN_SECONDS = 0.4
"""On both sides of a sentence, of the gap."""
_TAIL_SECONDS = 1.0


@dataclass(slots=True)
class Words:
    """How they were understood."""

    sentences: int = 0
    right: int = 0
    words: int = 0
    errors: int = 0

    @property
    def error_rate(self) -> float:
        """Wrong, missing and additional words over those said."""
        return self.errors / self.words if self.words else 0.0

    def add(self, said: str, understood: str) -> None:
        """One more sentence."""
        count = len(words(said))
        errors = round(word_error_rate(said, understood) * count)
        self.sentences += 1
        self.right += not errors
        self.words += count
        self.errors += errors


@dataclass(frozen=True, slots=True)
class _Speech:
    """What one caller says, and where its sentences begin and end at 16 kHz."""

    samples: Samples
    places: list[tuple[int, int]]


async def understood(
    bench: Bench, candidate: Candidate, bad: Impairment, clips: Sequence[Clip],
    calls: int, seed: int, session: WhisperSession,
) -> Words:  # fmt: skip
    """All clips, shared out among callers, through a relay that loses on the way to the server."""
    shares = [clips[number::calls] for number in range(calls)]
    speeches = [_put_together(share) for share in shares]
    async with (
        bench.start(candidate, "record") as server,
        impaired(Network(to_server=bad), seed=seed) as relay,
        crowd(server.url) as callers,
    ):
        for speech in speeches:
            packets = encoded(resample(speech.samples, LISTEN_RATE_HZ, SEND_RATE_HZ))
            await callers.add(Bot(packets, callers.pacer), relay)
        longest = max(len(speech.samples) for speech in speeches) / LISTEN_RATE_HZ
        await asyncio.sleep(longest + FRAME_SECONDS)
        recorded = [np.frombuffer(await server.pcm(bot.id), np.int16) for bot in callers.bots]
    result = Words()
    for share, speech, heard in zip(shares, speeches, recorded, strict=True):
        for clip, (start, end) in zip(share, speech.places, strict=True):
            result.add(clip.text, await _transcribed(session, heard[start:end]))
    return result


@asynccontextmanager
async def recogniser(model: str) -> AsyncIterator[WhisperSession]:
    """A Whisper that transcribes within the block."""
    engine = WhisperStt(WhisperSettings(model, device="cpu", download=False))
    await engine.start()
    try:
        session = await engine.open()
        yield session
        await session.aclose()
    finally:
        await engine.aclose()


def _put_together(clips: Sequence[Clip]) -> _Speech:
    margin = round(_MARGIN_SECONDS * LISTEN_RATE_HZ)
    gap = silence(round(_GAP_SECONDS * LISTEN_RATE_HZ))
    pieces, places = [silence(round(_LEAD_SECONDS * LISTEN_RATE_HZ))], []
    at = len(pieces[0])
    for clip in clips:
        places.append((at - margin, at + len(clip.samples) + margin))
        pieces += [clip.samples, gap]
        at += len(clip.samples) + len(gap)
    pieces.append(silence(round(_TAIL_SECONDS * LISTEN_RATE_HZ)))
    return _Speech(np.concatenate(pieces), places)


async def _transcribed(session: WhisperSession, samples: Samples) -> str:
    if not len(samples):
        return ""  # it never came
    session.begin(1)
    session.feed(Pcm(samples, 0))
    session.finish(1)
    async for result in session.results():
        if isinstance(result, SttFailed):
            raise result.error
        if isinstance(result, Final):
            return result.text
    raise RuntimeError("the recogniser ended")
