"""Audio in, the stock way: frames that aiortc decoded become PCM on the sample clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import soxr
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Pcm, Samples, silence
from voice_rtc.core.decimate import Decimator
from voice_rtc.inbox import Inbox
from voice_rtc.metrics import Metrics

_QUIET_SECONDS = 0.4
_LONGEST_FILL_SECONDS = 2.0
_LAST_SECONDS = 1.0
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
        self._converter: Callable[[Samples], Samples] | None = None
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
                # The track can end in the middle of a word (RTCP BYE): then the word ends too.
                self._make_up(_LAST_SECONDS)
                return
            assert isinstance(frame, AudioFrame)  # the transceiver is an audio one
            quiet_since = loop.time()
            self._take(frame)

    def _take(self, frame: AudioFrame) -> None:
        self.frames += 1
        self._metrics.frames_received_total.inc()
        self._fill_hole(frame)
        self._expected_pts = (frame.pts or 0) + frame.samples
        if self._converter is None:
            self._converter = _converter(frame.sample_rate)
        self._emit(self._converter(_mono(frame)))

    def _fill_hole(self, frame: AudioFrame) -> None:
        if self._expected_pts is None or frame.pts is None:
            return
        seconds = (frame.pts - self._expected_pts) / frame.sample_rate
        missing = round(seconds * LISTEN_RATE_HZ) - self._made_up_samples
        self._made_up_samples = 0
        # Half a frame is rounding; more than two seconds is a new timeline, not a hole.
        if _FRAME_SAMPLES // 2 < missing <= _LONGEST_FILL_SECONDS * LISTEN_RATE_HZ:
            self._fill(missing, "silence")

    def _make_up(self, seconds: float) -> None:
        samples = round(seconds * LISTEN_RATE_HZ)
        self._made_up_samples += samples
        self._fill(samples, "clock")

    def _fill(self, samples: int, method: str) -> None:
        self._metrics.frames_concealed_total.labels(method).inc(samples / _FRAME_SAMPLES)
        # In pieces: the inbox drops whole ones, and a long one might not fit at all.
        for start in range(0, samples, _FRAME_SAMPLES):
            self._emit(silence(min(_FRAME_SAMPLES, samples - start)))

    def _emit(self, samples: Samples) -> None:
        if len(samples):
            self._inbox.put(Pcm(samples, self._at))
            self._at += len(samples)


def _mono(frame: AudioFrame) -> Samples:
    """The frame's samples, channels averaged; aiortc's decoders give packed s16."""
    packed = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
    if packed.shape[1] == 1:
        mono: Samples = packed[:, 0].astype(np.int16, copy=False)
    else:
        mono = (packed.sum(axis=1, dtype=np.int32) // packed.shape[1]).astype(np.int16)
    return mono


def _converter(rate_hz: int) -> Callable[[Samples], Samples]:
    """To 16 kHz: Opus comes at 48 kHz; PCMU and PCMA at 8 kHz."""
    if rate_hz == SEND_RATE_HZ:
        return Decimator().feed
    if rate_hz == LISTEN_RATE_HZ:
        return lambda samples: samples
    stream = soxr.ResampleStream(rate_hz, LISTEN_RATE_HZ, 1, dtype="int16")
    return lambda samples: np.asarray(stream.resample_chunk(samples), dtype=np.int16)
