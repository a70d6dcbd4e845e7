"""The bot's mouth and ear: what it sends and what it keeps of what it receives, 20 ms at a time.

Both work on loop time; what the ear hears passed aiortc's jitter buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from tools.wav import is_audible
from voice_rtc.core.audio import SEND_FRAME_SAMPLES, SEND_RATE_HZ, Samples, silence

_LONGEST_HOLE_SECONDS = 60.0
"""A longer hole between two frames is not kept in a recording as silence."""


class News:
    """Wakes whoever waits for something to have happened."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Something happened."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next `tell`."""
        await self._event.wait()


@dataclass(slots=True)
class Speaking:
    """One saying of the bot's speech, as it went out. Times are loop times."""

    first_audible_at: float | None = None
    last_audible_at: float | None = None
    sent: bool = False


class Mouth(MediaStreamTrack):
    """Sends what `say` was given, else silence, 20 ms at a time, paced on absolute time."""

    kind = "audio"

    def __init__(self, news: News) -> None:
        super().__init__()
        self._news = news
        self._unsent = silence(0)
        self._speaking: Speaking | None = None
        self._pts = 0
        self.started_at: float | None = None
        """Loop time of the first frame."""
        self.under: Callable[[float], Samples] | None = None
        """What else the microphone hears: one frame for the loop time given, mixed in."""
        self.kept: list[Samples] | None = None
        """Every frame as it was sent; None keeps nothing."""

    def say(self, samples: Samples) -> Speaking:
        """Begin to speak; 48 kHz mono. Only one at a time."""
        self._unsent = samples
        self._speaking = Speaking()
        return self._speaking

    async def recv(self) -> AudioFrame:
        """The next frame, not before it is due."""
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        if self.started_at is None:
            self.started_at = loop.time()
        await asyncio.sleep(self.started_at + self._pts / SEND_RATE_HZ - loop.time())
        # Interleaved stereo: aiortc's encoder takes 3 dB off mono frames.
        plane = np.repeat(self._microphone(loop.time()), 2).reshape(1, -1)
        frame = AudioFrame.from_ndarray(plane, format="s16", layout="stereo")
        frame.sample_rate = SEND_RATE_HZ
        frame.pts = self._pts
        frame.time_base = Fraction(1, SEND_RATE_HZ)
        self._pts += SEND_FRAME_SAMPLES
        return frame

    def _microphone(self, now: float) -> Samples:
        samples = self._next(now)
        if self.under is not None:
            loud = samples.astype(np.int32) + self.under(now)
            samples = np.clip(loud, -32768, 32767).astype(np.int16)
        if self.kept is not None:
            self.kept.append(samples)
        return samples

    def _next(self, now: float) -> Samples:
        head = self._unsent[:SEND_FRAME_SAMPLES]
        self._unsent = self._unsent[SEND_FRAME_SAMPLES:]
        speaking = self._speaking
        if speaking is not None:
            if is_audible(head):
                speaking.last_audible_at = now
                speaking.first_audible_at = speaking.first_audible_at or now
            if not len(self._unsent):
                speaking.sent = True
                self._speaking = None
                self._news.tell()
        return np.concatenate([head, silence(SEND_FRAME_SAMPLES - len(head))])


@dataclass(frozen=True, slots=True, eq=False)
class HeardFrame:
    """One frame as it came out of aiortc."""

    at: float
    """Loop time of its arrival."""
    pts: int
    """RTP time in samples at 48 kHz, unwrapped."""
    samples: Samples
    """48 kHz mono."""
    audible: bool


class Ear:
    """Keeps everything that was received."""

    def __init__(self, news: News) -> None:
        self._news = news
        self.frames: list[HeardFrame] = []

    async def listen(self, track: MediaStreamTrack) -> None:
        """Read ``track`` to its end."""
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, AudioFrame)  # the transceiver is an audio one
            # aiortc decodes Opus to interleaved stereo, the same on both sides for mono.
            plane = frame.to_ndarray().astype(np.int16, copy=False)
            samples = plane.reshape(-1)[:: len(frame.layout.channels)]
            now = asyncio.get_running_loop().time()
            pts = self._unwrapped(frame.pts or 0)
            self.frames.append(HeardFrame(now, pts, samples, is_audible(samples)))
            self._news.tell()

    def _unwrapped(self, pts: int) -> int:
        if not self.frames:
            return pts
        last = self.frames[-1].pts
        return last + (pts - last + 2**31) % 2**32 - 2**31


def recorded(frames: Sequence[HeardFrame]) -> Samples:
    """The frames put together by their RTP time, 48 kHz mono, holes as silence."""
    pieces: list[Samples] = []
    for before, frame in zip([None, *frames], frames, strict=False):
        hole = frame.pts - before.pts - len(before.samples) if before is not None else 0
        if 0 < hole <= _LONGEST_HOLE_SECONDS * SEND_RATE_HZ:
            pieces.append(silence(hole))
        pieces.append(frame.samples)
    return np.concatenate(pieces) if pieces else silence(0)
