"""Where our RTP meets aiortc. Every private name of aiortc and aioice that we touch is here, in
`joint_ice` or in `joint_sctp`.

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
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

import pylibsrtp
from aiortc import RTCRtpReceiver, RTCRtpSender, RTCRtpTransceiver, clock
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import RtcpByePacket

from voice_rtc.config import LimitSettings
from voice_rtc.media.rtp_in import CLOCK_HZ, InboundRtp
from voice_rtc.media.rtp_out import OutboundRtp
from voice_rtc.metrics import Metrics

PINNED = {"aiortc": "1.16.0", "aioice": "0.13.0"}
LEVEL_URI = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"

_SENDER = "_RTCRtpSender__"
_RECEIVER = "_RTCRtpReceiver__"
_SENDER_NAMES = (
    "rtp_started", "rtp_exited", "rtp_timestamp", "ntp_timestamp", "octet_count", "packet_count",
)  # fmt: skip
_RECEIVER_NAMES = ("started", "remote_streams")
_DTLS_NAMES = (
    "_rx_srtp", "_tx_srtp", "_rtp_router", "_register_rtp_receiver", "_unregister_rtp_receiver",
)  # fmt: skip
_TICK_SECONDS = 0.05


_installed = cache(metadata.version)  # it reads a file, and every offer asks


def why_not() -> str:
    """What keeps the joint from fitting this installation; empty when nothing does."""
    for package, wanted in PINNED.items():
        found = _installed(package)
        if found != wanted:
            return f"{package} is {found}, not {wanted}"
    return ""


class Misfit(Exception):
    """A private name is not there or is not what it was. `str(error)` says which."""


class _Seen:
    """What `StreamStatistics.add` reads of a packet."""

    __slots__ = ("sequence_number", "timestamp")

    def __init__(self) -> None:
        self.sequence_number = 0
        self.timestamp = 0


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
        self._seen = _Seen()
        self._timer: asyncio.TimerHandle | None = None
        self._receiving = asyncio.Event()
        self._ended = asyncio.Event()
        """The other side said BYE, or the connection is gone."""

    def attach(self, transceiver: RTCRtpTransceiver) -> None:
        """Its audio is ours, both ways. Raises Misfit, and then nothing was changed."""
        _require(transceiver.receiver, _RECEIVER, _RECEIVER_NAMES)
        _require(transceiver.receiver, "", ("_run_rtcp",))
        _require(transceiver.sender, _SENDER, _SENDER_NAMES)
        _require(transceiver.sender, "", ("_ssrc",))
        _require(transceiver.sender.transport, "", _DTLS_NAMES)
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
        now = self._loop.time()
        due = self._inbound.next_deadline
        if due is not None and now >= due:
            self._inbound.tick(now)
        if not self._ended.is_set():
            self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)

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
        session = self._dtls._rx_srtp
        if session is not None:
            self._take(session, data, self._loop.time())
        if self._timer is None and not self._ended.is_set():
            self._tick()

    def _take(self, session: Any, data: bytes, now: float) -> None:
        try:
            plain = session.unprotect(data)
        except pylibsrtp.Error:
            self._metrics.rtp_packets_rejected_total.labels("srtp").inc()
            return
        self.on_life()
        packet = self._inbound.receive(plain, now)
        if packet is None:
            return
        streams = _get(self._receiver, _RECEIVER, "remote_streams")
        statistics = streams.get(packet.ssrc)
        if statistics is None:
            if len(streams) >= self._most_sources:
                return
            statistics = streams[packet.ssrc] = StreamStatistics(CLOCK_HZ)
            # RTCP of this source is routed by it.
            self._dtls._rtp_router.ssrc_table[packet.ssrc] = self._receiver
        self._seen.sequence_number = packet.sequence
        self._seen.timestamp = packet.timestamp
        statistics.add(self._seen)

    def _sending(
        self, sender: RTCRtpSender, dtls: Any, outbound: OutboundRtp
    ) -> Callable[[bytes], None]:
        def send(packet: bytes) -> None:
            pair = dtls.transport._connection._nominated.get(1)
            if pair is None or dtls._tx_srtp is None:
                return
            pair.protocol.transport.sendto(dtls._tx_srtp.protect(packet), pair.remote_addr)
            # What the sender reports (RFC 3550 section 6.4.1) say.
            _set(sender, _SENDER, "rtp_timestamp", outbound.timestamp)
            _set(sender, _SENDER, "ntp_timestamp", clock.current_ntp_time())
            _set(sender, _SENDER, "packet_count", outbound.packets)
            _set(sender, _SENDER, "octet_count", outbound.bytes)

        return send


def _require(owner: Any, prefix: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not hasattr(owner, prefix + name):
            raise Misfit(f"{type(owner).__name__} has no {name}")


def _get(owner: Any, prefix: str, name: str) -> Any:
    return getattr(owner, prefix + name)


def _set(owner: Any, prefix: str, name: str, value: Any) -> None:
    setattr(owner, prefix + name, value)


def replace_method(owner: Any, name: str, method: Any) -> None:
    """Have this one object use ``method``. Raises Misfit."""
    if not callable(getattr(owner, name, None)):
        raise Misfit(f"{type(owner).__name__} has no {name}")
    setattr(owner, name, method)


def _level_id(parameters: Any) -> int:
    found = (each.id for each in parameters.headerExtensions if each.uri == LEVEL_URI)
    return int(next(found, 0))
