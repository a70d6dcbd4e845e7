"""Audio in, our own way: RTP packets of one caller become contiguous 16 kHz PCM.

A packet is decoded when it comes, on the event loop: no jitter buffer, no thread, no queue. What is
missing is made whole, so that the sample clock keeps to the caller's:

    a lost packet           the next one's in-band FEC (RFC 6716 section 2.1.7), else concealment,
                            for `_LONGEST_CONCEALED_SECONDS`, else silence
    a pause of the sender   silence (RFC 7587 section 3.1.3, DTX)
    nothing comes at all    silence by the wall clock, sooner after a frame that announced a pause

The object has no clock and no timer: ``now`` is an argument, `next_deadline` says when `tick` is
due. It reads plain RTP; SRTP is its caller's business.
"""

from __future__ import annotations

import math

import numpy as np
import structlog

from voice_rtc.core.audio import LISTEN_RATE_HZ, SILENCE_DBOV, Pcm, Samples, silence
from voice_rtc.core.rates import Bucket
from voice_rtc.core.reorder import Received, ReorderWindow
from voice_rtc.core.rtp import RtpPacket, parse
from voice_rtc.inbox import Inbox
from voice_rtc.media.opus import Decoder, OpusError
from voice_rtc.metrics import Metrics

log = structlog.get_logger("voice_rtc.media")

CLOCK_HZ = 48_000
"""Of Opus timestamps, whatever the rate (RFC 7587 section 4.1)."""

_TIMESTAMPS = (1 << 32) - 1
_RATIO = CLOCK_HZ // LISTEN_RATE_HZ
_FRAME = LISTEN_RATE_HZ // 50
_LONGEST_CONCEALED_SECONDS = 0.1
"""Concealment fades to noise and then to nonsense."""
_LONGEST_FILL_SECONDS = 2.0
"""A longer hole is a new timeline."""
_PAUSE_SECONDS = 0.06
"""Nothing came for so long after a frame that announced a pause."""
_QUIET_SECONDS = 0.3
"""The same in the middle of speech: the network may be slow."""
_DTX_BYTES = 2
"""A frame of so few bytes says that there is nothing to hear (RFC 6716 section 3.1)."""
_SILENT_DBOV = -70
"""A sender that measures so little claims that there is nothing to hear."""
_AUDIBLE = 328
"""Amplitude that such a claim does not go with: -40 dBov."""
_CHECK_EVERY = 10
"""One claim of silence in so many is held against the sound."""
_STRANGER_SECONDS = 0.5
"""Another source is believed when the present one was silent for so long."""


class InboundRtp:
    """See the module. Feed `receive`, call `tick` at `next_deadline`, `end` when no more comes."""

    def __init__(
        self,
        inbox: Inbox[Pcm],
        metrics: Metrics,
        *,
        payload_types: frozenset[int],
        level_id: int = 0,
        packets_per_second: float = 150.0,
    ) -> None:
        """``payload_types`` are those of Opus, ``level_id`` the audio level's extension; 0: none.

        Raises OpusError when there is no libopus.
        """
        self._inbox = inbox
        self._metrics = metrics
        self._payload_types = payload_types
        self.level_id = level_id
        """Of the audio level's header extension; 0: not negotiated."""
        self._window = ReorderWindow()
        self._decoder = Decoder(LISTEN_RATE_HZ)
        self._bucket = Bucket(packets_per_second, packets_per_second)
        self._ssrc: int | None = None
        self._expected: int | None = None
        """Timestamp that follows on what was played."""
        self._at = 0
        self._duration = _FRAME
        """Of the newest packet, in samples."""
        self._paused = False
        """The newest packet announced a pause."""
        self._heard_until = 0.0
        """Until when there is sound, by the wall clock."""
        self._last_came = 0.0
        self._made_up = 0
        """Samples of silence since the newest packet."""
        self._counted_lost = 0
        self._held = False
        self.next_deadline = math.inf
        """When `tick` has something to do; never before the first packet and while held."""
        self.frames = 0
        """Packets played."""
        self._count_frame = metrics.frames_received_total.inc
        self._claims = 0
        """Packets that their sender said to be silent."""
        self._believes_levels = True

    # ------------------------------------------------------------------------ what comes

    def receive(self, data: bytes, now: float) -> RtpPacket | None:
        """One RTP packet, decrypted. Returns it, for statistics, when it is taken."""
        packet = parse(data, self.level_id)
        if packet is None:
            self._reject("not_rtp")
            return None
        if reason := self._objection(packet, now):
            self._reject(reason)
            return None
        if packet.payload:
            self._last_came = now
            if self._window.is_next(packet.sequence):
                level = packet.level_dbov if self._believes_levels else None
                self._play(packet.payload, packet.timestamp, 0, level)
                self._heard_until = now
            else:
                released = self._window.push(packet.sequence, packet.timestamp, packet.payload, now)
                self._play_all(released, now)
            self._set_due()
        return packet

    def _objection(self, packet: RtpPacket, now: float) -> str:
        if packet.payload_type not in self._payload_types:
            return "payload_type"
        if not self._bucket.take(now):
            return "rate"
        return "" if packet.ssrc == self._ssrc or self._is_ours(packet.ssrc, now) else "ssrc"

    def tick(self, now: float) -> None:
        """What is due by the wall clock: held packets, silence."""
        if self._ssrc is None:
            return
        self._play_all(self._window.expire(now), now)
        if self._window.held == 0 and now >= self._quiet_at:
            self._make_up(now - self._heard_until)
            self._heard_until = now
        self._set_due()

    def _set_due(self) -> None:
        if self._held:
            self.next_deadline = math.inf
        elif self._window.held:
            self.next_deadline = self._window.next_deadline or math.inf
        else:
            self.next_deadline = self._quiet_at

    @property
    def _quiet_at(self) -> float:
        """When silence is to be made up."""
        return self._heard_until + (_PAUSE_SECONDS if self._paused else _QUIET_SECONDS)

    def hold(self, held: bool, now: float) -> None:
        """Make no silence up for a caller who is not heard of, or do so again from ``now``."""
        self._held = held
        if not held:
            self._heard_until = max(self._heard_until, now)
        if self._ssrc is not None:
            self._set_due()

    def end(self, seconds: float = 1.0) -> None:
        """No more will come: silence of ``seconds``, so that a word that was cut ends too."""
        self._make_up(seconds)

    # --------------------------------------------------------------------- whether it may

    def _is_ours(self, ssrc: int, now: float) -> bool:
        if ssrc == self._ssrc:
            return True
        if self._ssrc is not None and now - self._last_came < _STRANGER_SECONDS:
            return False
        if self._ssrc is not None:
            # As after a change of microphone: other numbers, another timeline.
            self._window = ReorderWindow()
            self._counted_lost = 0
            self._expected = None
        self._ssrc = ssrc
        self._heard_until = now
        return True

    def _reject(self, reason: str) -> None:
        self._metrics.rtp_packets_rejected_total.labels(reason).inc()

    # -------------------------------------------------------------------------- playing

    def _play_all(self, released: list[Received], now: float) -> None:
        for packet in released:
            if packet.restarted:
                self._expected = None
            # Levels are not kept with packets that wait: those are few.
            self._play(packet.payload, packet.timestamp, packet.lost, None)
        if released:
            self._heard_until = now
            lost = self._window.statistics.lost
            if lost != self._counted_lost:
                self._metrics.rtp_packets_lost_total.inc(lost - self._counted_lost)
                self._counted_lost = lost

    def _play(self, payload: bytes, timestamp: int, lost: int, level: int | None) -> None:
        try:
            duration = self._decoder.duration(payload)
        except OpusError:
            self._reject("not_opus")
            return  # its place is a hole, filled before the next
        if timestamp != self._expected or self._made_up:
            self._fill_hole(payload, timestamp, lost)
        try:
            samples = self._decoder.decode(payload)
        except OpusError:
            self._reject("not_opus")
            return
        self.frames += 1
        self._count_frame()
        self._duration = duration
        self._paused = len(payload) <= _DTX_BYTES
        self._expected = (timestamp + _RATIO * duration) & _TIMESTAMPS
        if level is not None and level <= _SILENT_DBOV:
            level = self._checked_level(level, samples)
        self._emit(samples, level)

    def _checked_level(self, level: int, samples: Samples) -> int | None:
        """A claim of silence, unless its sender was found to say so of speech."""
        self._claims += 1
        if self._claims % _CHECK_EVERY == 1 and np.ptp(samples.astype(np.int32)) > 2 * _AUDIBLE:
            self._believes_levels = False
            log.warning("audio_levels_not_believed", said=level)
            return None
        return level

    def _fill_hole(self, payload: bytes, timestamp: int, lost: int) -> None:
        """What is missing before a packet of ``timestamp``, with what it carries of that."""
        if self._expected is None:
            self._made_up = 0
            return
        missing = _signed(timestamp - self._expected) // _RATIO - self._made_up
        self._made_up = 0
        if not 0 < missing <= _LONGEST_FILL_SECONDS * LISTEN_RATE_HZ:
            return
        recovered = min(self._duration, missing) if lost else 0
        longest = int(_LONGEST_CONCEALED_SECONDS * LISTEN_RATE_HZ)
        concealed = min(missing, lost * self._duration, longest) - recovered
        self._conceal(concealed)
        self._silence(missing - max(concealed, 0) - recovered, "silence")
        if recovered:
            self._recover(payload, recovered)

    def _conceal(self, samples: int) -> None:
        whole = samples // _SHORTEST * _SHORTEST
        if whole > 0:
            self._emit(self._decoder.conceal(whole))
            self._count("plc", whole)
        if samples - whole > 0:
            self._silence(samples - whole, "silence")

    def _recover(self, payload: bytes, samples: int) -> None:
        whole = samples // _SHORTEST * _SHORTEST
        if whole:
            try:
                self._emit(self._decoder.recover(payload, whole))
                self._count("fec", whole)
            except OpusError:
                self._silence(whole, "silence")
        self._silence(samples - whole, "silence")

    def _make_up(self, seconds: float) -> None:
        samples = round(seconds * LISTEN_RATE_HZ)
        self._made_up += samples
        self._silence(samples, "clock")

    def _silence(self, samples: int, method: str) -> None:
        self._count(method, samples)
        # In pieces: the inbox drops whole ones, and a long one might not fit at all.
        for start in range(0, samples, _FRAME):
            self._emit(silence(min(_FRAME, samples - start)), SILENCE_DBOV)

    def _count(self, method: str, samples: int) -> None:
        if samples > 0:
            self._metrics.frames_concealed_total.labels(method).inc(samples / _FRAME)

    def _emit(self, samples: Samples, level_dbov: int | None = None) -> None:
        if len(samples):
            self._inbox.put(Pcm(samples, self._at, level_dbov=level_dbov))
            self._at += len(samples)


_SHORTEST = LISTEN_RATE_HZ // 400
"""libopus conceals in units of 2.5 ms."""


def _signed(difference: int) -> int:
    """Of two 32 bit timestamps."""
    wrapped = difference & _TIMESTAMPS
    return wrapped - (1 << 32) if wrapped >= 1 << 31 else wrapped
