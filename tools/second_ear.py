"""The small Whisper of the tests as a second recogniser, in a process of its own.

It knows 235 words in espeak-ng's voice, one short sentence at a time
(``tests/data/whisper-synthetic-en/README.md``).
"""

from __future__ import annotations

from pathlib import Path

from voice_rtc.core.audio import Pcm, Samples
from voice_rtc.engines.base import Final, SttFailed
from voice_rtc.engines.stt.whisper import WhisperSettings, WhisperStt

MODEL = Path(__file__).resolve().parent.parent / "tests" / "data" / "whisper-synthetic-en"


class SecondEar:
    """Transcribes sound that passed through a call."""

    def __init__(self, model: str = str(MODEL)) -> None:
        """``model``: a name or folder of faster-whisper."""
        self._engine = WhisperStt(WhisperSettings(model, device="cpu", download=False))

    async def start(self) -> None:
        """Load. Raises EngineError."""
        await self._engine.start()

    async def hear(self, samples: Samples) -> str:
        """Text of 16 kHz sound; empty when it cannot be transcribed."""
        session = await self._engine.open()
        try:
            session.begin(1)
            session.feed(Pcm(samples, 0))
            session.finish(1)
            async for result in session.results():
                if isinstance(result, Final):
                    return result.text
                if isinstance(result, SttFailed):
                    return ""
            return ""
        finally:
            await session.aclose()

    async def aclose(self) -> None:
        """End its process."""
        await self._engine.aclose()
