"""Audio out, our own way: one Opus packet every 20 ms while there is sound, nothing in between.

While a call is silent it costs nothing: no timer runs, no packet is sent (RFC 7587 section 3.1.3).
`wake` begins a talk spurt at once, wherever the clock stands; from then on packets are due on
absolute time, so that one that is late does not delay the next. RTP timestamps keep to the wall
clock: the listener hears pauses of their true length. A spurt ends with a little silence: jitter
buffers that count packets, as aiortc's, would keep the end of the last word to themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from secrets import randbits

from voice_rtc.core.audio import FRAME_SECONDS, SEND_FRAME_SAMPLES, SEND_RATE_HZ, silence
from voice_rtc.core.rtp import build
from voice_rtc.media.opus import Encoder
from voice_rtc.media.outbound import FrameSource
from voice_rtc.metrics import Metrics

_TAIL_FRAMES = 6
"""Of silence behind the last sound: aiortc's jitter buffer holds four."""
_RESYNC_SECONDS = 0.2
"""Who is so late gives the missed frames up instead of sending them in a burst."""


class OutboundRtp:
    """The agent's voice to one client. `start` when SRTP is up, `stop` at the end."""

    def __init__(
        self, source: FrameSource, metrics: Metrics, *, bitrate: int, complexity: int
    ) -> None:
        """``bitrate`` in bit/s while there is sound. Raises OpusError when there is no libopus."""
        self._source = source
        self._count_frame = metrics.frames_sent_total.inc
        self._observe_lateness = metrics.send_lateness_seconds.observe
        self._encoder = Encoder(SEND_RATE_HZ, bitrate=bitrate, complexity=complexity)
        self._loop = asyncio.get_running_loop()
        self._send: Callable[[bytes], None] | None = None
        self._payload_type = 0
        self._ssrc = 0
        # Below 2**15: a first packet that is lost must not look as if numbers had wrapped, which
        # SRTP counts (RFC 3711 section 3.3.1).
        self._sequence = randbits(15)
        self._origin = randbits(32)
        self._started_at = 0.0
        self._due = float("-inf")
        self._newest = -1
        """Number of the frame sent last, counted from the start."""
        self._timer: asyncio.TimerHandle | None = None
        self._ticking = False
        self._begins = True
        """The next packet is the first of a spurt."""
        self._tail = 0
        """Frames of silence that are still to be sent."""
        self._silence = silence(SEND_FRAME_SAMPLES)
        self.packets = 0
        self.bytes = 0
        """Of payload."""
        self.timestamp = self._origin
        """RTP timestamp of the newest packet."""
        source.on_sound(self.wake)

    def start(self, send: Callable[[bytes], None], payload_type: int, ssrc: int) -> None:
        """Send from now on; ``send`` protects a packet and hands it to the network."""
        self._send, self._payload_type, self._ssrc = send, payload_type, ssrc
        self._started_at = self._loop.time()
        self.wake()

    def stop(self) -> None:
        """Send nothing more. Idempotent."""
        self._send = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_sending(self) -> bool:
        """Is a talk spurt going out? Nothing is sent in between."""
        return self._timer is not None

    def wake(self) -> None:
        """There may be something to play."""
        if self._send is None or self._timer is not None or self._ticking:
            return
        now = self._loop.time()
        self._due = max(now, self._due + FRAME_SECONDS)
        self._begins = True
        # Through the loop also when it is due now: who wakes us is in the middle of something.
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._send is None:
            return
        now = self._loop.time()
        late = now - self._due
        if late > _RESYNC_SECONDS:
            self._due = now
        self._ticking = True  # what the source tells meanwhile must not wake us a second time
        try:
            samples = self._source.next_frame()
        finally:
            self._ticking = False
        is_sound = samples is not None
        if samples is not None:
            self._tail = _TAIL_FRAMES
        elif self._tail:
            self._tail -= 1
            samples = self._silence
        else:
            return  # until somebody wakes us
        self._observe_lateness(max(0.0, late))
        self._transmit(self._encoder.encode(samples))
        if is_sound:
            self._source.frame_sent()
        if self._send is None:
            return  # the frame ended the call
        self._due += FRAME_SECONDS
        self._timer = self._loop.call_at(self._due, self._tick)

    def _transmit(self, payload: bytes) -> None:
        assert self._send is not None
        number = max(self._newest + 1, round((self._due - self._started_at) / FRAME_SECONDS))
        self.timestamp = (self._origin + number * SEND_FRAME_SAMPLES) % (1 << 32)
        self._sequence = (self._sequence + 1) % (1 << 16)
        packet = build(
            self._payload_type, self._sequence, self.timestamp, self._ssrc, payload,
            marker=self._begins,
        )  # fmt: skip
        self._begins = False
        self._newest = number
        self.packets += 1
        self.bytes += len(payload)
        self._count_frame()
        self._send(packet)
