"""One peer connection: SDP, ICE, DTLS, an audio track each way and a data channel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import structlog
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCDtlsTransport,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)

from voice_rtc.config import LimitSettings, MediaSettings
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm
from voice_rtc.core.buffers import Policy
from voice_rtc.core.liveness import LivenessRules
from voice_rtc.errors import BadOffer, NoAudioTrack, StateError, VoiceRtcError
from voice_rtc.inbox import Inbox
from voice_rtc.media.channel import Channel
from voice_rtc.media.guard import check_offer, strip_candidates
from voice_rtc.media.inbound import InboundAudio
from voice_rtc.media.joint import Joint, opus_only, why_not
from voice_rtc.media.joint_ice import SocketGuard
from voice_rtc.media.joint_ports import PortRange, use_ports
from voice_rtc.media.joint_sctp import AssociationGuard
from voice_rtc.media.misfit import Misfit
from voice_rtc.media.opus import OpusError
from voice_rtc.media.outbound import FrameSource, OutboundTrack
from voice_rtc.media.rtp_in import InboundRtp
from voice_rtc.media.rtp_out import OutboundRtp
from voice_rtc.media.watchdog import Watchdog
from voice_rtc.metrics import Metrics

log = structlog.get_logger("voice_rtc.media")

_OPUS = re.compile(r"a=rtpmap:(\d+) opus/48000/2", re.IGNORECASE)
_MESSAGE_SIZE = re.compile(r"a=max-message-size:\d+")


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What a peer needs of the configuration."""

    media: MediaSettings
    limits: LimitSettings
    channel_label: str
    """Label of the data channel that carries events; others are closed."""
    spare_events: frozenset[str] = frozenset()
    """Types of events that may be dropped when the client does not read."""
    ports: PortRange | None = None
    """Where to listen; None: on any port."""
    heartbeat: str = ""
    """Type of the messages by which a client shows that it lives; answered by the same."""


class Peer:
    """The server's side of one peer connection, always the answerer.

    ``answer`` once, then ``run_inbound`` in a task of the call, ``aclose`` at the end whatever
    happened. ``inbound`` is the caller's audio; the outbound frames are taken from ``source``.
    """

    def __init__(self, settings: PeerSettings, source: FrameSource, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._source = source
        servers = [RTCIceServer(url) for url in settings.media.ice_servers]
        # Explicit, because aiortc's default asks a public STUN server and waits for it.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._outbound = OutboundTrack(source, metrics)
        loop = asyncio.get_running_loop()
        self._track: asyncio.Future[MediaStreamTrack] = loop.create_future()
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self.channel = Channel(settings.limits, metrics, settings.spare_events, settings.heartbeat)
        self.channel.on_abuse = self._give_up
        self.channel.on_life = self._heard
        self._channels = 0
        self._abuse: asyncio.Future[str] = loop.create_future()
        self._associations: list[AssociationGuard] = []
        self._guards: list[SocketGuard] = []
        self._watchdog: Watchdog | None = None
        self.heard = False
        """The client has shown by its password that it is there."""
        self.inbound: Inbox[Pcm] = Inbox(
            settings.media.inbound_buffer_seconds * LISTEN_RATE_HZ,
            Policy.DROP_OLDEST,
            weigh=lambda pcm: len(pcm.samples),
            on_drop=lambda count: metrics.inbound_dropped_total.inc(count),
        )
        self._audio = InboundAudio(self.inbound, metrics)
        self._rtp: InboundRtp | None = None
        self._joint: Joint | None = None
        self._connection.on("track", self._on_track)
        self._connection.on("datachannel", self._on_channel)
        self._connection.on("connectionstatechange", self._on_state)

    async def answer(self, offer: str) -> str:
        """The SDP answer to ``offer``. Raises BadOffer or NoAudioTrack; then only `aclose`."""
        check_offer(offer, self._settings.limits)
        if not self._settings.media.keep_remote_candidates:
            offer = strip_candidates(offer)
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            audio = self._choose_media()
            self._go_past(audio)
            self._guard_association()
            if self._settings.ports is not None:
                for transport in self._transports(audio):
                    use_ports(transport, self._settings.ports)
            self._shut_sockets(audio)
            await self._connection.setLocalDescription(await self._connection.createAnswer())
            self._guard_sockets()
        except (VoiceRtcError, Misfit):
            raise
        except Exception as error:
            # aiortc's parser fails with whatever the line at hand broke: AssertionError,
            # IndexError, KeyError, AttributeError, StopIteration, UnicodeDecodeError, ...
            raise BadOffer(f"the offer cannot be used ({type(error).__name__})") from error
        return with_opus_wishes(
            with_message_limit(self._connection.localDescription.sdp, self._settings.limits)
        )

    def _go_past(self, audio: RTCRtpTransceiver) -> None:
        """Have the audio go past aiortc's tracks, where that is possible."""
        path = self._settings.media.path
        if path == "stock" or why_not():
            return
        try:
            payload_types = opus_only(audio)
            if not payload_types:
                return  # PCMU or PCMA: aiortc's codecs do
            limits = self._settings.limits
            rtp = InboundRtp(
                self.inbound,
                self._metrics,
                payload_types=payload_types,
                packets_per_second=limits.rtp_packets_per_second,
            )
            outbound = OutboundRtp(
                self._source,
                self._metrics,
                bitrate=self._settings.media.opus_bitrate,
                complexity=self._settings.media.opus_complexity,
            )
            joint = Joint(rtp, outbound, limits, self._metrics)
            joint.attach(audio)
            joint.on_life = self._heard
        except (Misfit, OpusError) as error:
            if path == "fast":
                raise
            log.warning("media_path_stock", reason=str(error))
            return
        self._rtp, self._joint = rtp, joint

    def _guard_association(self) -> None:
        """Bound what data channels may cost."""
        sctp = self._connection.sctp
        if sctp is None:
            return
        guard = AssociationGuard(sctp, self._settings.limits, self._give_up)
        try:
            guard.attach()
        except Misfit as error:
            log.warning("channels_not_guarded", reason=str(error))
            return
        self._associations.append(guard)

    def _shut_sockets(self, audio: RTCRtpTransceiver) -> None:
        """Before there are any: let nothing but connectivity checks through for the time being."""
        limits = self._settings.limits
        guards = [SocketGuard(each, limits, self._metrics) for each in self._transports(audio)]
        try:
            for guard in guards:
                guard.shut()
        except Misfit as error:
            self._without_guard(error)
        else:
            self._guards = guards

    def _guard_sockets(self) -> None:
        """Let nothing of strangers through, and audio go its way."""
        try:
            for guard in self._guards:
                is_audio = guard is self._guards[0]
                guard.attach(self._joint.receive_rtp if self._joint and is_audio else None)
                guard.on_life = self._heard
        except Misfit as error:
            self._without_guard(error)

    def _without_guard(self, error: Misfit) -> None:
        if self._joint is not None:
            raise error
        log.warning("sockets_not_guarded", reason=str(error))
        self._guards = []

    def _transports(self, audio: RTCRtpTransceiver) -> list[RTCDtlsTransport]:
        """The audio's first. It is the only one, unless the client does without BUNDLE."""
        all_of_them = [each.receiver.transport for each in self._connection.getTransceivers()]
        if self._connection.sctp is not None:
            all_of_them.append(self._connection.sctp.transport)
        return list(dict.fromkeys([audio.receiver.transport, *all_of_them]))

    def _choose_media(self) -> RTCRtpTransceiver:
        audio = [t for t in self._connection.getTransceivers() if t.kind == "audio"]
        if not audio:
            raise NoAudioTrack
        for transceiver in self._connection.getTransceivers():
            if transceiver is audio[0]:
                transceiver.sender.replaceTrack(self._outbound)
                transceiver.direction = "sendrecv"
            else:
                # A track that nobody reads would be decoded into an unbounded queue.
                transceiver.direction = "inactive"
        return audio[0]

    async def run_inbound(self) -> None:
        """Read the caller's audio until the track ends. A caller without one is waited for."""
        if self._joint is not None:
            await self._joint.run()
        else:
            await self._audio.run(await self._track)

    async def connected(self) -> None:
        """Wait until ICE and DTLS are up."""
        await self._connected.wait()

    async def lost(self) -> None:
        """Wait until the connection failed or was closed by the other side."""
        await self._lost.wait()

    async def vanished(self, on_suspended: Callable[[bool], None]) -> None:
        """Wait, from when it is connected, until nothing has been heard of the client too long.

        ``on_suspended`` is told when it is silent enough that nothing should be said to it, and
        when it is back.
        """
        if not self._guards:
            await asyncio.get_running_loop().create_future()  # nobody can be asked
        media = self._settings.media
        rules = LivenessRules(media.suspend_seconds, media.end_seconds)

        def suspend(suspended: bool) -> None:
            if self._rtp is not None:
                self._rtp.hold(suspended, asyncio.get_running_loop().time())
            on_suspended(suspended)

        self._watchdog = Watchdog(rules, self._guards[0].ask, suspend)
        await self._watchdog.run()

    async def abused(self) -> str:
        """Wait until the client sends what only an attacker sends; the reason."""
        return await self._abuse

    @property
    def sends_audio(self) -> bool:
        """Did the client offer to receive audio? If not, nobody ever asks for a frame."""
        return any(
            t.kind == "audio" and t.currentDirection in ("sendrecv", "sendonly")
            for t in self._connection.getTransceivers()
        )

    @property
    def frames_received(self) -> int:
        """Audio frames decoded so far."""
        return self._audio.frames if self._rtp is None else self._rtp.frames

    @property
    def path(self) -> Literal["fast", "stock"]:
        """Which way the audio goes."""
        return "stock" if self._joint is None else "fast"

    @property
    def is_sending(self) -> bool:
        """Is sound being sent? The stock track sends for ever, silence too."""
        return self._joint is None or self._joint.is_sending

    async def aclose(self) -> None:
        """Close everything. Idempotent."""
        self.channel.close()
        self._outbound.stop()
        if self._joint is not None:
            self._joint.close()
        self._track.cancel()
        self._abuse.cancel()
        await self._connection.close()
        self.inbound.close()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and not self._track.done():
            self._track.set_result(track)

    def _heard(self) -> None:
        """The client has shown that it is there."""
        self.heard = True
        if self._watchdog is not None:
            self._watchdog.heard()

    def _give_up(self, reason: str) -> None:
        """Read nothing more of the data channels."""
        for association in self._associations:
            association.close()
        self.channel.close()
        self._metrics.channels_abused_total.labels(reason).inc()
        if not self._abuse.done():
            self._abuse.set_result(reason)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._channels += 1
        if self._channels > self._settings.limits.channels:
            self._give_up("channel_count")
        elif channel.label == self._settings.channel_label:
            self.channel.attach(channel)
        else:
            log.info("channel_refused", label=channel.label[:40])
            channel.close()

    def _on_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self._connected.set()
        elif state in ("failed", "closed"):
            self._lost.set()
        elif state not in ("new", "connecting", "disconnected"):
            raise StateError(f"unknown connection state {state}")


def with_message_limit(answer: str, limits: LimitSettings) -> str:
    """The answer with the largest message that is taken: clients then refuse to send larger ones.

    aiortc would announce 256 KiB.
    """
    return _MESSAGE_SIZE.sub(f"a=max-message-size:{limits.channel_message_bytes}", answer)


def with_opus_wishes(answer: str) -> str:
    """The answer with what we want of the other side's Opus encoder (RFC 7587 section 6.1).

    aiortc's answers say nothing of it, and then browsers send neither FEC nor pauses.
    """
    lines = []
    for line in answer.splitlines():
        lines.append(line)
        found = _OPUS.match(line)
        if found is not None:
            lines.append(f"a=fmtp:{found[1]} minptime=10;useinbandfec=1;usedtx=1")
    return "".join(f"{line}\r\n" for line in lines)
