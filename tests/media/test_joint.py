"""The contract with the pinned aiortc and aioice, and that our RTP is really used."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from tests.media.test_peer import SETTINGS, Tone, connect
from tests.support.audio import tone
from tests.support.caller import Microphone
from voice_rtc.config import MediaSettings
from voice_rtc.core.audio import rms_dbfs
from voice_rtc.media import joint
from voice_rtc.media.misfit import Misfit
from voice_rtc.media.peer import Peer, PeerSettings, with_opus_wishes
from voice_rtc.metrics import Metrics


def settings(path: str) -> PeerSettings:
    return replace(SETTINGS, media=MediaSettings(path=path))  # type: ignore[arg-type]


@asynccontextmanager
async def line(
    path: str = "fast",
) -> AsyncIterator[tuple[Peer, RTCPeerConnection, Microphone, Metrics]]:
    metrics = Metrics()
    peer = Peer(settings(path), Tone(), metrics)
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    microphone = Microphone()
    client.addTrack(microphone)
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            await connect(peer, client)
            inbound = tasks.create_task(peer.run_inbound())
            yield peer, client, microphone, metrics
            inbound.cancel()
    finally:
        await client.close()
        await peer.aclose()


def test_the_pinned_versions_are_installed() -> None:
    assert joint.why_not() == ""


@pytest.mark.parametrize("path", ["fast", "stock"])
async def test_both_ways_carry_sound(path: str) -> None:
    async with line(path) as (peer, client, microphone, metrics):
        assert peer.path == path
        microphone.say(tone(1.0))
        levels = [rms_dbfs((await peer.inbound.get()).samples) for _ in range(40)]
        assert max(levels) > -20
        remote = client.getReceivers()[0].track
        heard = np.concatenate(
            [(await remote.recv()).to_ndarray().reshape(-1)[::2] for _ in range(25)]
        )
        assert rms_dbfs(heard[-9600:]) > -20
        assert metrics.registry.get_sample_value("voice_rtc_frames_sent_total") > 20


async def test_no_thread_is_started_for_a_call() -> None:
    async with line() as (peer, _client, microphone, _metrics):
        microphone.say(tone(0.5))
        await peer.inbound.get()
        assert not [t.name for t in threading.enumerate() if t.name == "audio-decoder"][1:]


async def test_reports_are_sent_and_true() -> None:
    async with line() as (peer, client, microphone, _metrics):
        microphone.say(tone(1.0))
        remote = client.getReceivers()[0].track
        kinds: set[str] = set()
        while not {"remote-inbound-rtp", "remote-outbound-rtp"} <= kinds:
            await remote.recv()
            stats = await client.getStats()
            kinds = {each.type for each in stats.values()}
        (theirs,) = [s for s in stats.values() if s.type == "remote-inbound-rtp"]
        assert theirs.packetsLost == 0
        (ours,) = [s for s in stats.values() if s.type == "remote-outbound-rtp"]
        (seen,) = [s for s in stats.values() if s.type == "inbound-rtp"]
        assert 0 < ours.packetsSent <= seen.packetsReceived + 5
        assert peer.frames_received > 0


async def test_the_end_of_the_other_side_is_the_end_of_its_audio() -> None:
    async with line() as (peer, client, microphone, _metrics):
        microphone.say(tone(0.2))
        await peer.inbound.get()
        ended = asyncio.create_task(peer.run_inbound())  # noqa: TID251 - it ends with the client
        await client.close()
        await ended


async def test_a_misfit_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "_RECEIVER_NAMES", ("no_such_name",))
    async with line("auto") as (peer, _client, microphone, _metrics):
        assert peer.path == "stock"
        microphone.say(tone(0.5))
        assert (await peer.inbound.get()).samples.size
    peer = Peer(settings("fast"), Tone(), Metrics())
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    client.addTrack(Microphone())
    with pytest.raises(Misfit, match="no_such_name"):
        await connect(peer, client)
    await client.close()
    await peer.aclose()


async def test_a_flood_of_rtp_and_of_sources_is_bounded() -> None:
    async with line() as (peer, client, microphone, metrics):
        microphone.say(tone(0.2))
        await peer.inbound.get()
        dtls = client.getSenders()[0].transport
        for number in range(2000):
            header = bytes([0x80, 96]) + number.to_bytes(2, "big") + bytes(4)
            await dtls._send_rtp(header + (number % 50).to_bytes(4, "big") + b"\xfc\xff\xfe")
        while not metrics.registry.get_sample_value(
            "voice_rtc_rtp_packets_rejected_total", {"reason": "rate"}
        ):
            await peer.inbound.get()
        (receiver,) = peer._connection.getReceivers()
        assert len(receiver._RTCRtpReceiver__remote_streams) <= 4
        assert len(receiver.transport._rtp_router.ssrc_table) <= 4


async def test_another_version_of_aiortc_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(joint.PINNED, "aiortc", "0.0.1")
    assert "aiortc is" in joint.why_not()
    async with line("auto") as (peer, _client, _microphone, _metrics):
        assert peer.path == "stock"


async def test_the_answer_asks_for_fec_and_pauses_and_names_opus_alone() -> None:
    async with line() as (_peer, client, _microphone, _metrics):
        answer = client.remoteDescription.sdp
    assert "useinbandfec=1" in answer and "usedtx=1" in answer
    assert "PCMU" not in answer


def test_wishes_stand_behind_their_codec() -> None:
    answer = "v=0\r\na=rtpmap:96 opus/48000/2\r\na=rtpmap:0 PCMU/8000\r\n"
    assert with_opus_wishes(answer) == (
        "v=0\r\na=rtpmap:96 opus/48000/2\r\n"
        "a=fmtp:96 minptime=10;useinbandfec=1;usedtx=1\r\na=rtpmap:0 PCMU/8000\r\n"
    )
