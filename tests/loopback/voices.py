"""What loopback tests say and how they are understood."""

from __future__ import annotations

from tests.engines.speech import say as synthesize
from tests.support.audio import resample
from tests.support.caller import Caller
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples
from voice_rtc.engines.tts.espeak import EspeakTts


async def spoken(text: str) -> Samples:
    """``text`` in espeak-ng's voice, 48 kHz."""
    engine = EspeakTts()
    await engine.start()
    try:
        samples = await synthesize(engine, text)
    finally:
        await engine.aclose()
    return resample(samples, LISTEN_RATE_HZ, SEND_RATE_HZ)


async def heard_as(caller: Caller, samples: Samples) -> str:
    """Say ``samples``; what the server understood."""
    before = len(caller.events)
    await caller.say(samples)
    done = await caller.event("conversation.item.input_audio_transcription.completed", after=before)
    text: str = done["transcript"]
    return text
