"""Speaking to STT engines as a call would: 20 ms at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.support.audio import resample
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples, silence
from voice_rtc.engines.base import (
    Final,
    Partial,
    SttEngine,
    SttFailed,
    SttSession,
    TtsEngine,
    VoiceOptions,
)

FRAME = 320
"""20 ms at 16 kHz."""


def frames(samples: Samples, at: int = 0) -> Iterator[Pcm]:
    """``samples`` (16 kHz) as they come from the network."""
    for start in range(0, len(samples), FRAME):
        yield Pcm(samples[start : start + FRAME], at + start)


async def say(tts: TtsEngine, text: str, options: VoiceOptions | None = None) -> Samples:
    """All of ``text`` at 16 kHz, with a fifth of a second of silence around it."""
    chunks = [chunk async for chunk in tts.synthesize(text, options or VoiceOptions())]
    assert [chunk.at for chunk in chunks] == list(
        np.cumsum([0, *(len(chunk.samples) for chunk in chunks[:-1])])
    )
    spoken = np.concatenate([chunk.samples for chunk in chunks])
    margin = silence(LISTEN_RATE_HZ // 5)
    return np.concatenate([margin, resample(spoken, tts.rate_hz, LISTEN_RATE_HZ), margin])


def utter(session: SttSession, utterance: int, samples: Samples) -> None:
    """Begin, feed and finish one utterance."""
    session.begin(utterance)
    for pcm in frames(samples):
        session.feed(pcm)
    session.finish(utterance)


async def outcome(session: SttSession, utterance: int) -> tuple[list[str], Final | SttFailed]:
    """The partial texts of ``utterance`` and what it ended with."""
    partials = []
    async for result in session.results():
        assert result.utterance == utterance, "results come in order"
        if isinstance(result, Partial):
            partials.append(result.text)
        else:
            return partials, result
    raise AssertionError("the session was closed")


async def transcribe(engine: SttEngine, samples: Samples) -> str:
    """The final text of one utterance in a session of its own."""
    session = await engine.open()
    utter(session, 1, samples)
    _, result = await outcome(session, 1)
    await session.aclose()
    assert isinstance(result, Final), result
    return result.text


def plain(text: str) -> str:
    """Lower case words without punctuation."""
    kept = "".join(c if c.isalnum() or c in "' -" else " " for c in text.lower())
    return " ".join(kept.split())
