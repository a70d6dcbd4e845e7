"""webrtcvad as a VAD of its own, and as the gate in front of Silero.

It costs about 2 microseconds for 20 ms, so it runs on the event loop.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples, silence
from voice_rtc.engines.base import EngineInfo, VadWindow
from voice_rtc.errors import EngineUnavailable

FRAME_SAMPLES = 320
"""20 ms at 16 kHz; webrtcvad takes 10, 20 or 30 ms."""
_SMOOTHING_FRAMES = 5


class SpeechFrames:
    """webrtcvad over a contiguous stream: which 20 ms frames sound like speech."""

    def __init__(self, aggressiveness: int) -> None:
        import webrtcvad

        self._vad = webrtcvad.Vad(aggressiveness)
        self._rest = silence(0)

    def feed(self, samples: Samples) -> list[bool]:
        """A verdict for each frame that ``samples`` (16 kHz int16) completes."""
        data = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(data) // FRAME_SAMPLES * FRAME_SAMPLES
        self._rest = data[whole:]
        return [
            bool(self._vad.is_speech(data[start : start + FRAME_SAMPLES].tobytes(), LISTEN_RATE_HZ))
            for start in range(0, whole, FRAME_SAMPLES)
        ]

    def skip(self) -> None:
        """What came is known to be silent."""
        self._rest = silence(0)


class WebRtcVad:
    """The plain alternative to Silero: no model, and easily fooled by noise.

    Windows are 320 samples; the probability is the share of speech among the last five frames.
    """

    def __init__(self, aggressiveness: int = 3, *, reason: str = "") -> None:
        self._aggressiveness = aggressiveness
        self.info = EngineInfo(
            "vad",
            "webrtcvad",
            reason=reason,
            notes=("Mistakes noise for speech more often than Silero does.",),
        )

    async def start(self) -> None:
        """Nothing to load. Raises EngineUnavailable when webrtcvad is not installed."""
        try:
            SpeechFrames(self._aggressiveness)
        except ImportError as error:
            raise EngineUnavailable(f"webrtcvad cannot be imported: {error}") from error

    async def aclose(self) -> None:
        """Nothing to free."""

    def open(self) -> WebRtcVadSession:
        """A fresh session."""
        return WebRtcVadSession(self._aggressiveness)


class WebRtcVadSession:
    """webrtcvad's state for one call."""

    _frames: SpeechFrames
    _recent: deque[bool]
    _at: int
    _expected: int

    def __init__(self, aggressiveness: int) -> None:
        self._aggressiveness = aggressiveness
        self._reset(0)

    async def feed(self, pcm: Pcm) -> list[VadWindow]:
        """One window per 20 ms frame completed."""
        if pcm.at != self._expected:
            self._reset(pcm.at)
        self._expected = pcm.end
        windows = []
        for speech in self._frames.feed(pcm.samples):
            self._recent.append(speech)
            share = sum(self._recent) / _SMOOTHING_FRAMES
            windows.append(VadWindow(self._at, FRAME_SAMPLES, share))
            self._at += FRAME_SAMPLES
        return windows

    def close(self) -> None:
        """Forget the state."""
        self._reset(0)

    def _reset(self, at: int) -> None:
        self._frames = SpeechFrames(self._aggressiveness)
        self._recent = deque(maxlen=_SMOOTHING_FRAMES)
        self._at = at
        self._expected = at
