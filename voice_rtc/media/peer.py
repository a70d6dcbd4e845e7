"""One peer connection: SDP, ICE, DTLS, an audio track each way and a data channel."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Literal

import structlog
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)

from voice_rtc.config import LimitSettings, MediaSettings
from voice_rtc.core.audio import Pcm
from voice_rtc.core.buffers import Policy
from voice_rtc.errors import BadOffer, NoAudioTrack, StateError
from voice_rtc.inbox import Inbox
from voice_rtc.media.channel import Channel
from voice_rtc.media.guard import check_offer, strip_candidates
from voice_rtc.media.inbound import InboundAudio
from voice_rtc.media.joint import Joint, Misfit, SocketGuard, opus_only, why_not
from voice_rtc.media.opus import OpusError
from voice_rtc.media.outbound import FrameSource, OutboundTrack
from voice_rtc.media.rtp_in import InboundRtp
from voice_rtc.media.rtp_out import OutboundRtp
from voice_rtc.metrics import Metrics

log = structlog.get_logger("voice_rtc.media")

_OPUS = re.compile(r"a=rtpmap:(\d+) opus/48000/2", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What a peer needs of the configuration."""

    media: MediaSettings
    limits: LimitSettings
    channel_label: str
    """Label of the data channel that carries events; others are closed."""
    spare_events: frozenset[str] = frozenset()
    """Types of events that may be dropped when the client does not read."""


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
        self.channel = Channel(settings.limits, metrics, settings.spare_events)
        self.inbound: Inbox[Pcm] = Inbox(
            settings.media.inbound_buffer_seconds,
            Policy.DROP_OLDEST,
            weigh=lambda pcm: pcm.seconds,
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
            await self._connection.setLocalDescription(await self._connection.createAnswer())
            self._guard(audio)
        except (NoAudioTrack, Misfit):
            raise
        except Exception as error:
            # aiortc's parser fails with whatever the line at hand broke: AssertionError,
            # IndexError, KeyError, AttributeError, StopIteration, UnicodeDecodeError, ...
            raise BadOffer(f"the offer cannot be used ({type(error).__name__})") from error
        return with_opus_wishes(self._connection.localDescription.sdp)

    def _go_past(self, audio: RTCRtpTransceiver) -> None:
        """Have the audio go past aiortc's tracks, where that is possible."""
        path = self._settings.media.path
        if path == "stock" or why_not():
            return
        try:
            payload_types = opus_only(audio)
            if not payload_types:
                return  # PCMU or PCMA: aiortc's codecs do
            rtp = InboundRtp(self.inbound, self._metrics, payload_types=payload_types)
            joint = Joint(rtp, OutboundRtp(self._source, self._metrics), self._metrics)
            joint.attach(audio)
        except (Misfit, OpusError) as error:
            if path == "fast":
                raise
            log.warning("media_path_stock", reason=str(error))
            return
        self._rtp, self._joint = rtp, joint

    def _guard(self, audio: RTCRtpTransceiver) -> None:
        """Let nothing of strangers through, and audio go its way."""
        receive_rtp = None if self._joint is None else self._joint.receive_rtp
        try:
            SocketGuard(audio.receiver.transport, self._metrics).attach(receive_rtp)
        except Misfit as error:
            if self._joint is not None:
                raise
            log.warning("sockets_not_guarded", reason=str(error))

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
        await self._connection.close()
        self.inbound.close()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and not self._track.done():
            self._track.set_result(track)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label == self._settings.channel_label:
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
