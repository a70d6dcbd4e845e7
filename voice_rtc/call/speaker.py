"""The call's mouth: `core.playout.Playout` where tasks write and the outbound track reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from voice_rtc.core.audio import SEND_FRAME_SAMPLES, Samples
from voice_rtc.core.echo import EchoMonitor
from voice_rtc.core.playout import Heard, Playout
from voice_rtc.metrics import Metrics


class SpeakerListener(Protocol):
    """Told, on the event loop, from within the sender: must only take note."""

    def reply_audible(self, reply: int) -> None:
        """The first sound of ``reply`` goes out with this frame."""
        ...

    def reply_sent(self, reply: int) -> None:
        """That sound was handed to the network."""
        ...

    def reply_played(self, reply: int) -> None:
        """The last sound of ``reply`` went out."""
        ...


class Speaker:
    """Implements ``media.outbound.FrameSource``. Writers wait in `room` when far ahead."""

    def __init__(
        self,
        listener: SpeakerListener,
        ahead_seconds: float,
        clock: Callable[[], float],
        metrics: Metrics,
        duck_seconds: float = 0.3,
    ) -> None:
        self._listener = listener
        self._ahead_seconds = ahead_seconds
        self._clock = clock
        self._metrics = metrics
        self._playout = Playout(pause_seconds=duck_seconds)
        self._echo = EchoMonitor()
        self._room = asyncio.Event()
        self._room.set()
        self._confirmed_at: float | None = None
        self._began: int | None = None
        """The reply whose first sound is in the frame given last."""
        self._wake: Callable[[], None] = _nobody_listens

    def on_sound(self, wake: Callable[[], None]) -> None:
        """``wake`` is called whenever there may be something to play."""
        self._wake = wake

    @property
    def underruns(self) -> int:
        """Times a reply ran dry before its end."""
        return self._playout.underruns

    @property
    def buffered_seconds(self) -> float:
        """How long the sound that is queued lasts."""
        return self._playout.buffered_seconds

    def next_frame(self) -> Samples | None:
        """The next 20 ms, int16 mono 48 kHz, or None for silence."""
        before = self._playout.underruns
        read = self._playout.read(SEND_FRAME_SAMPLES)
        self._metrics.playout_underruns_total.inc(self._playout.underruns - before)
        if read.reply is not None and read.became_audible:
            self._began = read.reply
            self._listener.reply_audible(read.reply)
        if read.reply is not None and read.finished:
            self._listener.reply_played(read.reply)
        self._update_room()
        if read.samples is not None:
            self._echo.played(read.samples, self._clock())
        if self._confirmed_at is not None:
            # The first frame after the cut: at most its fade can still be heard.
            seconds = max(0.0, self._clock() - self._confirmed_at)
            self._metrics.barge_in_silence_seconds.observe(seconds)
            self._confirmed_at = None
        return read.samples

    def frame_sent(self) -> None:
        """See `media.outbound.FrameSource`."""
        if self._began is not None:
            self._listener.reply_sent(self._began)
            self._began = None

    def begin(self, reply: int) -> None:
        """``reply`` has the mouth now; what an older one left is dropped."""
        self._playout.begin(reply)
        self._update_room()

    def segment(self, reply: int, text: str) -> None:
        """What is written from now on speaks ``text``."""
        self._playout.segment(reply, text)

    async def write(self, reply: int, samples: Samples) -> bool:
        """Queue 48 kHz samples; waits while far ahead. False when ``reply`` was cut."""
        await self._room.wait()
        written = self._playout.write(reply, samples)
        self._update_room()
        self._wake()
        return written

    def finish(self, reply: int) -> None:
        """Nothing more will be written for ``reply``."""
        self._playout.finish(reply)
        self._wake()

    def cut(self, reply: int, confirmed_at: float | None) -> Heard:
        """Silence now. ``confirmed_at`` (call clock) is when a barge-in was confirmed."""
        heard = self._playout.clear(reply)
        self._confirmed_at = confirmed_at
        self._update_room()
        self._wake()
        return heard

    def heard(self, reply: int) -> Heard:
        """What the caller got of ``reply`` so far."""
        return self._playout.heard(reply)

    def duck(self, on: bool) -> None:
        """Lower the reply while both speak; it stands still before long."""
        before = self._playout.rewinds
        self._playout.duck(on)
        self._metrics.reply_rewinds_total.inc(self._playout.rewinds - before)
        self._update_room()
        self._wake()

    def echo_in(self, heard: Samples, voiced: int, until_seconds: float) -> float:
        """How much of ``heard`` is what was played; see `EchoMonitor.similarity`."""
        return self._echo.similarity(heard, voiced, until_seconds)

    def left_seconds(self, reply: int) -> float | None:
        """What is left to be played of ``reply``; None when more may be written."""
        return self._playout.left_seconds(reply)

    def _update_room(self) -> None:
        if self._playout.buffered_seconds < self._ahead_seconds:
            self._room.set()
        else:
            self._room.clear()


def _nobody_listens() -> None:
    """Who asks for every frame need not be woken."""
