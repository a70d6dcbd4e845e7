"""Callers who vanish, callers who only seem to, and callers who come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from signaling.main import Server
from tests.support.audio import tone
from tests.support.caller import Caller, Microphone, calling
from tests.support.server import serving
from tests.support.wire import Wire
from voice_rtc.call.call import Call
from voice_rtc.engines.base import EngineSet
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts

SOON = {"suspend_seconds": 0.6, "end_seconds": 1.6}


@pytest.fixture(params=["fast", "stock"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    slow = ToneTts(seconds_per_character=0.1)  # three seconds of "Hello" and more
    chosen = EngineSet(
        ThresholdVad(), ScriptedStt(), EchoLlm(("Hello to you, and a good day.",)), slow
    )
    media = {"path": request.param, **SOON}
    async with asyncio.timeout(50), serving(chosen, media=media) as running:
        yield running


def sample(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0


async def until_suspended(call: Call, suspended: bool, wire: Wire) -> None:
    while call.state().suspended is not suspended:
        await wire.asked(1)


async def test_a_caller_who_vanishes_is_suspended_then_ended(server: Server) -> None:
    async with calling(server.url) as caller:
        wire = Wire(caller.connection)
        call = server.registry.get(caller.call_id)
        wire.is_cut = True
        await until_suspended(call, True, wire)
        assert sample(server, "calls_suspended") == 1
        await server.registry.wait_empty()
        assert sample(server, "calls_total", outcome="peer_gone") == 1
        assert sample(server, "calls_suspended") == 0
        assert sample(server, "suspensions_total", result="ended") == 1
        assert sample(server, "leases_active") == 0


async def test_a_caller_who_comes_back_hears_the_rest_of_the_reply(server: Server) -> None:
    async with calling(server.url) as caller:
        wire = Wire(caller.connection)
        call = server.registry.get(caller.call_id)
        caller.send(type="response.create")
        await caller.event("output_audio_buffer.started")
        wire.is_cut = True
        await until_suspended(call, True, wire)
        assert call.state().floor == "AGENT"
        wire.is_cut = False
        done = await caller.event("response.done")
        assert done["response"]["status"] == "completed"
        assert not call.state().suspended
        assert sample(server, "suspensions_total", result="resumed") >= 1
        await _is_heard(caller)


async def _is_heard(caller: Caller) -> None:
    before = len(caller.events)
    await caller.say(tone(0.8))
    await caller.event("conversation.item.input_audio_transcription.completed", after=before)


async def test_a_caller_who_turned_the_microphone_off_stays(server: Server) -> None:
    async with calling(server.url) as caller:
        wire = Wire(caller.connection)
        caller.connection.getSenders()[0].replaceTrack(None)
        await wire.asked(10)  # 0.3 s or more lie between two
        assert server.registry.active == 1
        assert sample(server, "suspensions_total", result="resumed") == 0
        assert not server.registry.get(caller.call_id).state().suspended


async def test_a_caller_who_only_listens_stays(server: Server) -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio", direction="recvonly")
    connection.createDataChannel("oai-events")
    await connection.setLocalDescription(await connection.createOffer())
    async with aiohttp.ClientSession(server.url) as http:
        body = {"sdp": connection.localDescription.sdp}
        async with http.post("/v1/realtime/calls", json=body) as response:
            assert response.status == 201
            answer = RTCSessionDescription(await response.text(), "answer")
    await connection.setRemoteDescription(answer)
    wire = Wire(connection)
    await wire.asked(10)
    assert [call.suspended for call in server.registry.snapshot()] == [False]
    await connection.close()


async def test_a_vanished_caller_without_a_data_channel_is_noticed_too(server: Server) -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTrack(Microphone())
    await connection.setLocalDescription(await connection.createOffer())
    async with aiohttp.ClientSession(server.url) as http:
        async with http.post(
            "/v1/realtime/calls", json={"sdp": connection.localDescription.sdp}
        ) as response:
            answer = RTCSessionDescription(await response.text(), "answer")
        call = server.registry.calls()[0]
        await connection.setRemoteDescription(answer)
        await call.peer.connected()
    Wire(connection).is_cut = True
    await server.registry.wait_empty()
    assert sample(server, "calls_total", outcome="peer_gone") == 1
    await connection.close()


async def test_heartbeats_are_answered_however_many_messages_wait(server: Server) -> None:
    async with calling(server.url) as caller:
        for _ in range(200):
            caller.send(type="conversation.item.retrieve", item_id="none")
        caller.send(type="voice_rtc.heartbeat")
        await caller.event("voice_rtc.heartbeat")
        errors = caller.types().count("error")
        assert errors < 100  # those are served at their rate
