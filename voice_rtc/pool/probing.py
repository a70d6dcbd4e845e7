"""Latency probes: a known sentence goes through an engine as a caller's would."""

from __future__ import annotations

import asyncio
import wave
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples
from voice_rtc.engines.base import Final, SttEngine, SttFailed, SttSession
from voice_rtc.errors import EngineCrashed, EngineError, EngineTimeout

PROBE_TEXT = "My code word is falcon river."
"""What the known sentence says; made with espeak-ng."""
_PIECE_SAMPLES = LISTEN_RATE_HZ // 10


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of one."""

    seconds: float
    """From the end of the sentence to its Final."""
    text: str


class ProbeFailed(EngineError):
    """The engine did not transcribe the known sentence."""

    def __init__(self, cause: EngineError) -> None:
        super().__init__(str(cause), code=cause.code)


@cache
def probe_audio() -> Samples:
    """The known sentence, int16 mono 16 kHz."""
    with resources.files("voice_rtc").joinpath("assets/probe.wav").open("rb") as file:
        with wave.open(file) as clip:
            return np.frombuffer(clip.readframes(clip.getnframes()), dtype="<i2")


async def transcribe_probe(engine: SttEngine, deadline_seconds: float) -> Probe:
    """Raises ProbeFailed."""
    session: SttSession | None = None
    try:
        async with asyncio.timeout(deadline_seconds):
            session = await engine.open()
            return await _transcribe(session)
    except TimeoutError:
        late = EngineTimeout(f"no transcript of the probe within {deadline_seconds:g} s")
        raise ProbeFailed(late) from None
    except EngineError as error:
        raise ProbeFailed(error) from error
    finally:
        if session is not None:
            await session.aclose()


async def _transcribe(session: SttSession) -> Probe:
    loop = asyncio.get_running_loop()
    audio = probe_audio()
    session.begin(1)
    for start in range(0, len(audio), _PIECE_SAMPLES):
        session.feed(Pcm(audio[start : start + _PIECE_SAMPLES], start))
    started = loop.time()
    session.finish(1)
    async for result in session.results():
        if isinstance(result, Final):
            return Probe(loop.time() - started, result.text.strip())
        if isinstance(result, SttFailed):
            failed = result.error
            raise failed if isinstance(failed, EngineError) else EngineCrashed(str(failed))
    raise EngineCrashed("the engine closed the probe's session")
