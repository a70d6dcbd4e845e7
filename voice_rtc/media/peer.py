"""One peer connection: SDP, ICE, DTLS, an audio track each way and a data channel."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
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
from voice_rtc.media.outbound import FrameSource, OutboundTrack
from voice_rtc.metrics import Metrics

log = structlog.get_logger("voice_rtc.media")


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
            self._choose_media()
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except NoAudioTrack:
            raise
        except Exception as error:
            # aiortc's parser fails with whatever the line at hand broke: AssertionError,
            # IndexError, KeyError, AttributeError, StopIteration, UnicodeDecodeError, ...
            raise BadOffer(f"the offer cannot be used ({type(error).__name__})") from error
        return self._connection.localDescription.sdp

    def _choose_media(self) -> None:
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

    async def run_inbound(self) -> None:
        """Read the caller's audio until the track ends. A caller without one is waited for."""
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
        return self._audio.frames

    async def aclose(self) -> None:
        """Close everything. Idempotent."""
        self.channel.close()
        self._outbound.stop()
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
