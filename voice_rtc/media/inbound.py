"""Audio in, the stock way: frames that aiortc decoded become PCM on the sample clock."""

from __future__ import annotations

import asyncio

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, silence
from voice_rtc.inbox import Inbox
from voice_rtc.metrics import Metrics

_QUIET_SECONDS = 0.4
_LONGEST_FILL_SECONDS = 2.0
_FRAME_SAMPLES = LISTEN_RATE_HZ // 50


class InboundAudio:
    """Turns one remote track into contiguous 16 kHz mono PCM in ``inbox``.

    Holes in the RTP timeline (loss, DTX) become silence, so that the sample clock keeps to the
    caller's. When nothing at all arrives for a while, silence is made up by the wall clock, so
    that a caller who stops sending is heard to have stopped speaking.
    """

    def __init__(self, inbox: Inbox[Pcm], metrics: Metrics) -> None:
        self._inbox = inbox
        self._metrics = metrics
        self._at = 0
        self._expected_pts: int | None = None
        self._made_up_samples = 0
        self._resampler: AudioResampler | None = None
        self.last_arrival: float | None = None
        """Loop time of the newest frame; None before the first."""
        self.frames = 0

    async def run(self, track: MediaStreamTrack) -> None:
        """Read ``track`` to its end."""
        loop = asyncio.get_running_loop()
        quiet_since = loop.time()
        while True:
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    frame = await track.recv()
            except TimeoutError:
                now = loop.time()
                if self._expected_pts is not None:
                    self._make_up(now - quiet_since)
                quiet_since = now
                continue
            except MediaStreamError:
                return
            assert isinstance(frame, AudioFrame)  # the transceiver is an audio one
            quiet_since = self.last_arrival = loop.time()
            self._take(frame)

    def _take(self, frame: AudioFrame) -> None:
        self.frames += 1
        self._metrics.frames_received_total.inc()
        self._fill_hole(frame)
        self._expected_pts = (frame.pts or 0) + frame.samples
        if self._resampler is None:
            self._resampler = AudioResampler(format="s16", layout="mono", rate=LISTEN_RATE_HZ)
        for converted in self._resampler.resample(frame):
            self._emit(converted.to_ndarray().reshape(-1).astype(np.int16, copy=False))

    def _fill_hole(self, frame: AudioFrame) -> None:
        if self._expected_pts is None or frame.pts is None:
            return
        seconds = (frame.pts - self._expected_pts) / frame.sample_rate
        missing = round(seconds * LISTEN_RATE_HZ) - self._made_up_samples
        self._made_up_samples = 0
        # Half a frame is rounding; more than two seconds is a new timeline, not a hole.
        if _FRAME_SAMPLES // 2 < missing <= _LONGEST_FILL_SECONDS * LISTEN_RATE_HZ:
            self._count_filled(missing, "silence")
            self._emit(silence(missing))

    def _make_up(self, seconds: float) -> None:
        samples = round(seconds * LISTEN_RATE_HZ)
        self._made_up_samples += samples
        self._count_filled(samples, "clock")
        self._emit(silence(samples))

    def _count_filled(self, samples: int, method: str) -> None:
        self._metrics.frames_concealed_total.labels(method).inc(samples / _FRAME_SAMPLES)

    def _emit(self, samples: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> None:
        if len(samples):
            self._inbox.put(Pcm(samples, self._at))
            self._at += len(samples)
