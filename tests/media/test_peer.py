"""A peer against a stock aiortc client, on this machine's own address."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pylibsrtp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from OpenSSL import SSL

from tests.support.audio import tone
from tests.support.caller import Microphone
from voice_rtc.config import LimitSettings, MediaSettings
from voice_rtc.core.audio import Samples, rms_dbfs
from voice_rtc.errors import BadOffer, NoAudioTrack
from voice_rtc.media.joint import Joint
from voice_rtc.media.joint_ice import SocketGuard
from voice_rtc.media.joint_sctp import AssociationGuard
from voice_rtc.media.opus import Decoder, Encoder
from voice_rtc.media.peer import Peer, PeerSettings
from voice_rtc.metrics import Metrics

SETTINGS = PeerSettings(MediaSettings(), LimitSettings(), "oai-events")


class Tone:
    """A frame source that plays a tone for ever."""

    def __init__(self) -> None:
        self._frame = tone(0.02, hz=450)

    def next_frame(self) -> Samples | None:
        return self._frame

    def frame_sent(self) -> None:
        """Nothing to note."""

    def on_sound(self, wake: Callable[[], None]) -> None:
        """There always is some."""


async def connect(peer: Peer, client: RTCPeerConnection) -> None:
    await client.setLocalDescription(await client.createOffer())
    answer = await peer.answer(client.localDescription.sdp)
    await client.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    async with asyncio.timeout(10):
        await peer.connected()


async def test_audio_and_events_go_both_ways() -> None:
    peer = Peer(SETTINGS, Tone(), Metrics())
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    microphone = Microphone()
    client.addTrack(microphone)
    channel = client.createDataChannel("oai-events")
    received: asyncio.Queue[str] = asyncio.Queue()
    channel.on("message", received.put_nowait)
    client.createDataChannel("other")
    try:
        async with asyncio.TaskGroup() as tasks:
            await connect(peer, client)
            inbound = tasks.create_task(peer.run_inbound())
            peer.channel.send({"type": "hello"})
            assert await received.get() == '{"type":"hello"}'
            channel.send('{"type":"hi"}')
            assert await anext(peer.channel.messages()) == {"type": "hi"}
            microphone.say(tone(2.0))
            levels = [rms_dbfs((await peer.inbound.get()).samples) for _ in range(80)]
            assert max(levels) > -20
            remote = client.getReceivers()[0].track
            heard = np.concatenate(
                [(await remote.recv()).to_ndarray().reshape(-1)[::2] for _ in range(25)]
            )
            assert rms_dbfs(heard[-9600:]) > -20
            inbound.cancel()
    finally:
        await client.close()
        await peer.aclose()


NATIVE = (SSL.Connection, SSL.Context, pylibsrtp.Session, Decoder, Encoder)
OURS = (Peer, Joint, SocketGuard, AssociationGuard, RTCPeerConnection)


def held_by_calls() -> list[Any]:
    """What a call has of ours and of native memory, and a collection does not free."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, (*OURS, *NATIVE))]


@pytest.mark.parametrize("path", ["fast", "stock"])
async def test_a_closed_peer_leaves_nothing_in_memory(path: Literal["fast", "stock"]) -> None:
    settings = PeerSettings(MediaSettings(path=path), LimitSettings(), "oai-events")
    before = len(held_by_calls())

    async def a_call() -> None:
        peer = Peer(settings, Tone(), Metrics())
        client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        client.addTrack(Microphone())
        client.createDataChannel("oai-events")
        try:
            async with asyncio.TaskGroup() as tasks:
                await connect(peer, client)
                inbound = tasks.create_task(peer.run_inbound())
                await peer.inbound.get()
                assert len(held_by_calls()) > before + len(OURS)
                inbound.cancel()
        finally:
            await client.close()
            await peer.aclose()

    async with asyncio.timeout(20):
        await a_call()
    assert len(held_by_calls()) == before


async def test_video_is_answered_but_not_taken() -> None:
    peer = Peer(SETTINGS, Tone(), Metrics())
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    client.addTrack(Microphone())
    client.addTransceiver("video")
    try:
        await connect(peer, client)
        directions = {t.kind: t.currentDirection for t in client.getTransceivers()}
        assert directions == {"audio": "sendrecv", "video": "inactive"}
    finally:
        await client.close()
        await peer.aclose()


async def test_the_answer_names_a_stream_and_real_addresses() -> None:
    peer = Peer(SETTINGS, Tone(), Metrics())
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    client.addTrack(Microphone())
    try:
        await client.setLocalDescription(await client.createOffer())
        answer = await peer.answer(client.localDescription.sdp)
        assert "a=msid:" in answer and "a=candidate:" in answer
    finally:
        await client.close()
        await peer.aclose()


async def test_a_client_that_leaves_is_noticed() -> None:
    peer = Peer(SETTINGS, Tone(), Metrics())
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    client.addTrack(Microphone())
    try:
        await connect(peer, client)
        await client.close()
        async with asyncio.timeout(10):
            await peer.lost()
    finally:
        await client.close()
        await peer.aclose()


HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"


@pytest.mark.parametrize(
    "sdp",
    [
        HEAD + "m=audio\r\n",
        HEAD + "m=audio 9\r\n",
        HEAD + "m=audio x UDP/TLS/RTP/SAVPF 111\r\n",
        HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n",
        HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=rtpmap:111\r\n",
        HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=fingerprint:x\r\na=setup:?\r\n",
        HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:\ud83d\r\na=extmap:\r\n",
        "v=0\r\n" + "a=" * 8000 + "\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n",
    ],
)
async def test_broken_offers_are_refused_whatever_breaks(sdp: str) -> None:
    peer = Peer(SETTINGS, Tone(), Metrics())
    try:
        with pytest.raises((BadOffer, NoAudioTrack)):
            await peer.answer(sdp)
    finally:
        await peer.aclose()
