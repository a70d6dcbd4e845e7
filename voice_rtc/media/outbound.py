"""Audio out, the stock way: an aiortc track that is asked for a frame every 20 ms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from voice_rtc.core.audio import FRAME_SECONDS, SEND_FRAME_SAMPLES, SEND_RATE_HZ, Samples, silence
from voice_rtc.metrics import Metrics

_TIME_BASE = Fraction(1, SEND_RATE_HZ)
_RESYNC_SECONDS = 0.2


class FrameSource(Protocol):
    """Where outbound audio comes from."""

    def next_frame(self) -> Samples | None:
        """The next 20 ms: int16 mono, 960 samples at 48 kHz, or None for silence."""
        ...

    def frame_sent(self) -> None:
        """The frame given last, which was sound, is handed to the network.

        On the stock way: to aiortc, which has yet to encode it.
        """
        ...

    def on_sound(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever there may be something to play after a None."""
        ...


class OutboundTrack(MediaStreamTrack):
    """Paces a `FrameSource` on absolute time: lateness of one frame does not delay the next."""

    kind = "audio"

    def __init__(self, source: FrameSource, metrics: Metrics) -> None:
        super().__init__()
        self._source = source
        self._metrics = metrics
        self._due: float | None = None
        self._pts = 0
        self._silence = _stereo(silence(SEND_FRAME_SAMPLES))

    async def recv(self) -> AudioFrame:
        """The next frame, not before it is due. Raises MediaStreamError once stopped."""
        if self.readyState != "live":
            raise MediaStreamError
        await self._wait_until_due()
        samples = self._source.next_frame()
        plane = self._silence if samples is None else _stereo(samples)
        frame = AudioFrame.from_ndarray(plane, format="s16", layout="stereo")
        frame.sample_rate = SEND_RATE_HZ
        frame.pts = self._pts
        frame.time_base = _TIME_BASE
        self._pts += SEND_FRAME_SAMPLES
        self._metrics.frames_sent_total.inc()
        if samples is not None:
            self._source.frame_sent()
        return frame

    async def _wait_until_due(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._due is None:
            self._due = now
        self._due += FRAME_SECONDS
        if now - self._due > _RESYNC_SECONDS:
            # After a long stall the missed frames are not sent in a burst.
            self._pts += round((now - self._due) / FRAME_SECONDS) * SEND_FRAME_SAMPLES
            self._due = now
        if self._due > now:
            await asyncio.sleep(self._due - now)
        late = asyncio.get_running_loop().time() - self._due
        self._metrics.send_lateness_seconds.observe(max(0.0, late))


def _stereo(samples: Samples) -> Samples:
    """Interleaved stereo, shape ``(1, 2n)``: aiortc's encoder takes 3 dB off mono frames."""
    return np.repeat(samples, 2).reshape(1, -1)
