"""Where our RTP meets aiortc. Every private name of aiortc and aioice that we touch is here, in
a module beside it (`joint_ice`, `joint_ports`, `joint_sctp`, `joint_srtp`).

aiortc does SDP, ICE, DTLS and SCTP; RTP in both directions goes past it:

    in   `joint_ice.SocketGuard` looks at each datagram of this connection's ICE sockets. SRTP is
         decrypted and handed to `InboundRtp` at once; strangers' datagrams are dropped; the rest
         goes the stock way.
    out  the sender's task only waits; `OutboundRtp` protects its packets with the same SRTP
         session and hands them to the socket of the nominated candidate pair.

RTCP stays aiortc's: its own coroutines send reports, from the statistics that are kept here.
Nothing is patched globally: only objects of one connection get other methods. `why_not` and Misfit
say what keeps the joint from fitting; `media/selftest.py` tries it with real media when the server
starts; where it does not fit the stock tracks are used. Versions are pinned in pyproject.toml, and
tests/media/test_joint.py and test_selftest.py hold the contract.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

from aiortc import RTCRtpReceiver, RTCRtpSender, RTCRtpTransceiver
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import RtcpByePacket

from voice_rtc.config import LimitSettings
from voice_rtc.media import joint_srtp
from voice_rtc.media.joint_srtp import Srtp
from voice_rtc.media.misfit import Misfit, replace_method, require
from voice_rtc.media.rtp_in import CLOCK_HZ, InboundRtp
from voice_rtc.media.rtp_out import OutboundRtp
from voice_rtc.metrics import Metrics

PINNED = {"aiortc": "1.16.0", "aioice": "0.13.0", "pylibsrtp": "1.0.0"}
LEVEL_URI = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"

_SENDER = "_RTCRtpSender__"
_RECEIVER = "_RTCRtpReceiver__"
_SENDER_NAMES = (
    "rtp_started", "rtp_exited", "rtp_timestamp", "ntp_timestamp", "octet_count", "packet_count",
)  # fmt: skip
_RECEIVER_NAMES = ("started", "remote_streams")
_STATISTICS_NAMES = (
    "base_seq", "max_seq", "cycles", "packets_received",
    "_jitter_q4", "_last_arrival", "_last_timestamp",
)  # fmt: skip
_RTP_TIMESTAMP, _NTP_TIMESTAMP = f"{_SENDER}rtp_timestamp", f"{_SENDER}ntp_timestamp"
_PACKET_COUNT, _OCTET_COUNT = f"{_SENDER}packet_count", f"{_SENDER}octet_count"
_DTLS_NAMES = (
    "_rx_srtp", "_tx_srtp", "_rtp_router", "_register_rtp_receiver", "_unregister_rtp_receiver",
)  # fmt: skip
_NTP_EPOCH_SECONDS = 2_208_988_800
"""From 1900, where NTP begins, to 1970."""
_LIFE_SECONDS = 0.1
"""A packet within this of one that was told of is no news."""


_installed = cache(metadata.version)  # it reads a file, and every offer asks


def why_not() -> str:
    """What keeps the joint from fitting this installation; empty when nothing does."""
    for package, wanted in PINNED.items():
        found = _installed(package)
        if found != wanted:
            return f"{package} is {found}, not {wanted}"
    return ""


class _Statistics(StreamStatistics):
    """What receiver reports say of one source; counted without a packet object."""

    def count(self, sequence: int, timestamp: int, now: float) -> None:
        """As `StreamStatistics.add`; ``now`` is in seconds on any clock."""
        self.packets_received += 1
        newest = self.max_seq
        if newest is None:
            self.base_seq = sequence
        elif not 0 < (sequence - newest) & 0xFFFF < 0x8000:
            return  # out of order
        elif sequence < newest:
            self.cycles += 1 << 16
        self.max_seq = sequence
        arrival = int(now * CLOCK_HZ)
        if newest is not None and timestamp != self._last_timestamp:
            assert self._last_arrival is not None and self._last_timestamp is not None
            off = abs((arrival - self._last_arrival) - (timestamp - self._last_timestamp))
            self._jitter_q4 += off - ((self._jitter_q4 + 8) >> 4)
        self._last_arrival = arrival
        self._last_timestamp = timestamp


def opus_only(transceiver: RTCRtpTransceiver) -> frozenset[int]:
    """Have the answer name no other codec; payload types of Opus, empty when it was not offered.

    After the offer is set. Without Opus nothing is changed. Raises Misfit.
    """
    codecs = getattr(transceiver, "_codecs", None)
    if not isinstance(codecs, list):
        raise Misfit("RTCRtpTransceiver has no list of codecs")
    opus = [codec for codec in codecs if codec.mimeType.lower() == "audio/opus"]
    if opus:
        transceiver._codecs = opus
    return frozenset(codec.payloadType for codec in opus)


class Joint:
    """The audio of one connection. `attach` when the offer is set, give `receive_rtp` to a
    `SocketGuard`, `run` in a task of the call, `close` at the end whatever happened."""

    def __init__(
        self, inbound: InboundRtp, outbound: OutboundRtp, limits: LimitSettings, metrics: Metrics
    ) -> None:
        self._most_sources = limits.rtp_sources
        self.on_life: Callable[[], None] = lambda: None
        """Called for each authentic packet."""
        self._inbound = inbound
        self._outbound = outbound
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._receiver: Any = None
        self._dtls: Any = None
        self._session: Any = None
        """The SRTP session that `_unprotect` is of."""
        self._unprotect: Srtp = _refuse
        self._statistics: dict[int, _Statistics] = {}
        """Of each source; aiortc's receiver has the same."""
        self._timer: asyncio.TimerHandle | None = None
        self._life_told_at = -math.inf
        self._receiving = asyncio.Event()
        self._ended = asyncio.Event()
        """The other side said BYE, or the connection is gone."""

    def attach(self, transceiver: RTCRtpTransceiver) -> None:
        """Its audio is ours, both ways. Raises Misfit, and then nothing was changed."""
        require(transceiver.receiver, _RECEIVER, _RECEIVER_NAMES)
        require(transceiver.receiver, "", ("_run_rtcp",))
        require(transceiver.sender, _SENDER, _SENDER_NAMES)
        require(transceiver.sender, "", ("_ssrc",))
        require(transceiver.sender.transport, "", _DTLS_NAMES)
        require(StreamStatistics(CLOCK_HZ), "", _STATISTICS_NAMES)
        joint_srtp.check()
        self._attach_receiver(transceiver.receiver)
        self._attach_sender(transceiver.sender)

    async def run(self) -> None:
        """Send receiver reports until no more audio will come."""
        await self._receiving.wait()
        async with asyncio.TaskGroup() as tasks:
            reports = tasks.create_task(self._receiver._run_rtcp(), name="rtcp")
            await self._ended.wait()
            reports.cancel()
        self._inbound.end()

    @property
    def is_sending(self) -> bool:
        """Is a talk spurt going out?"""
        return self._outbound.is_sending

    def close(self) -> None:
        """Idempotent."""
        self._outbound.stop()
        if self._receiving.is_set():
            self._dtls._unregister_rtp_receiver(self._receiver)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ended.set()
        self._receiving.set()

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now >= self._inbound.next_deadline:
            self._inbound.tick(now)
        self._set_timer()

    def _set_timer(self) -> None:
        """Have `_tick` called when there is something to do.

        A deadline moves on with each packet; only one that comes sooner needs another timer.
        """
        due = self._inbound.next_deadline
        if self._timer is not None:
            if due >= self._timer.when():
                return
            self._timer.cancel()
            self._timer = None
        if due < math.inf and not self._ended.is_set():
            self._timer = self._loop.call_at(due, self._tick)

    def _attach_receiver(self, receiver: RTCRtpReceiver) -> None:
        self._receiver = receiver
        self._dtls = receiver.transport
        stock_rtcp = receiver._handle_rtcp_packet

        async def receive(parameters: Any) -> None:
            """As the stock one, without a decoder thread, and its reports are sent by `run`."""
            if not self._receiving.is_set():
                self._inbound.level_id = _level_id(parameters)
                self._dtls._register_rtp_receiver(receiver, parameters)
                self._receiving.set()

        async def handle_rtcp(packet: Any) -> None:
            if isinstance(packet, RtcpByePacket):
                self._ended.set()
            await stock_rtcp(packet)

        replace_method(receiver, "receive", receive)
        replace_method(receiver, "_handle_rtcp_packet", handle_rtcp)
        replace_method(receiver, "_handle_disconnect", self._ended.set)

    def _attach_sender(self, sender: RTCRtpSender) -> None:
        outbound = self._outbound
        dtls: Any = sender.transport

        async def run(codec: Any) -> None:
            _get(sender, _SENDER, "rtp_started").set()
            try:
                send = self._sending(sender, dtls, outbound)
                outbound.start(send, codec.payloadType, sender._ssrc)
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                pass  # the stock task ends so too: RTCRtpSender.stop() waits for rtp_exited
            finally:
                outbound.stop()
                _get(sender, _SENDER, "rtp_exited").set()

        replace_method(sender, "_run_rtp", run)

    def receive_rtp(self, data: bytes) -> None:
        """A datagram that is SRTP, from an address that belongs to the call."""
        if self._dtls._rx_srtp is not self._session:
            self._session = self._dtls._rx_srtp
            self._unprotect = joint_srtp.unprotector(self._session)
        plain = self._unprotect(data)
        if plain is None:
            self._metrics.rtp_packets_rejected_total.labels("srtp").inc()
            return
        now = self._loop.time()
        if now - self._life_told_at > _LIFE_SECONDS:
            self._life_told_at = now
            self.on_life()
        packet = self._inbound.receive(plain, now)
        if packet is None:
            return
        statistics = self._statistics.get(packet.ssrc) or self._new_source(packet.ssrc)
        if statistics is not None:
            statistics.count(packet.sequence, packet.timestamp, now)
        self._set_timer()

    def _new_source(self, ssrc: int) -> _Statistics | None:
        if len(self._statistics) >= self._most_sources:
            return None
        made = self._statistics[ssrc] = _Statistics(CLOCK_HZ)
        _get(self._receiver, _RECEIVER, "remote_streams")[ssrc] = made
        # RTCP of this source is routed by it.
        self._dtls._rtp_router.ssrc_table[ssrc] = self._receiver
        return made

    def _sending(
        self, sender: RTCRtpSender, dtls: Any, outbound: OutboundRtp
    ) -> Callable[[bytes], None]:
        """Raises Misfit."""
        nominated: dict[int, Any] = dtls.transport._connection._nominated
        protect = joint_srtp.protector(dtls._tx_srtp)
        state, time_ns = vars(sender), time.time_ns
        known: Any = None
        sendto: Callable[[bytes, Any], None]
        address: Any = None

        def send(packet: bytes) -> None:
            nonlocal known, sendto, address
            pair = nominated.get(1)
            if pair is None:
                return
            if pair is not known:
                known, sendto, address = pair, pair.protocol.transport.sendto, pair.remote_addr
            secret = protect(packet)
            if secret is None:
                return
            sendto(secret, address)
            # What the sender reports (RFC 3550 section 6.4.1) say.
            state[_RTP_TIMESTAMP] = outbound.timestamp
            state[_NTP_TIMESTAMP] = ((time_ns() << 32) // 10**9) + (_NTP_EPOCH_SECONDS << 32)
            state[_PACKET_COUNT] = outbound.packets
            state[_OCTET_COUNT] = outbound.bytes

        return send


def _get(owner: Any, prefix: str, name: str) -> Any:
    return getattr(owner, prefix + name)


def _refuse(_packet: bytes) -> None:
    """SRTP is not up."""


def _level_id(parameters: Any) -> int:
    found = (each.id for each in parameters.headerExtensions if each.uri == LEVEL_URI)
    return int(next(found, 0))
