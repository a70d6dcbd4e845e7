"""What one client does harms no other: found by attacking a server, kept as tests."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from signaling.main import Server
from tests.support.audio import tone
from tests.support.caller import Microphone, calling
from tests.support.network import free_ports
from tests.support.openai_server import openai_server
from tests.support.server import serving
from tools.attack import garbage, own_address, strangers
from voice_rtc.core.audio import silence
from voice_rtc.engines.base import EngineSet
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.llm.openai import OpenAiLlm, OpenAiSettings

CALLS = "/v1/realtime/calls"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with asyncio.timeout(50), serving() as running:
        yield running


async def test_a_tiny_max_message_size_ends_nobody_elses_call(server: Server) -> None:
    async with calling(server.url) as innocent, aiohttp.ClientSession(server.url) as http:
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connection.addTrack(Microphone())
        connection.createDataChannel("oai-events")
        await connection.setLocalDescription(await connection.createOffer())
        sdp = re.sub(
            r"a=max-message-size:\d+", "a=max-message-size:50", connection.localDescription.sdp
        )
        headers = {"Content-Type": "application/sdp"}
        async with http.post(CALLS, data=sdp, headers=headers) as response:
            location = response.headers["Location"]
            answer = RTCSessionDescription(await response.text(), "answer")
        await connection.setRemoteDescription(answer)
        call = server.registry.get(location.rsplit("/", 1)[-1])
        await call.peer.connected()
        await call.peer.channel.opened()
        await http.delete(location)
        await innocent.say(tone(0.6))
        await innocent.event("output_audio_buffer.stopped")
        dropped = server.metrics.registry.get_sample_value("voice_rtc_channel_events_dropped_total")
        assert dropped is not None and dropped >= 1
        await connection.close()


async def test_sessions_nested_without_end_leave_no_call_behind(server: Server) -> None:
    nested = '{"a":' * 900 + "1" + "}" * 900
    body = '{"sdp":"v=0\\r\\nm=audio 9 UDP/TLS/RTP/SAVPF 111","session":{"x":' + nested + "}}"
    async with aiohttp.ClientSession(server.url) as http:
        for _ in range(12):
            headers = {"Content-Type": "application/json"}
            async with http.post(CALLS, data=body, headers=headers) as response:
                assert response.status == 400
    assert server.registry.active == 0


async def test_half_characters_from_a_service_do_not_end_the_call() -> None:
    async with asyncio.timeout(50), openai_server("I like \ud83d \ude00 you. Bye.") as service:
        settings = OpenAiSettings("test", service.base_url)
        chosen = EngineSet(
            ThresholdVad(), ScriptedStt(), OpenAiLlm(settings), ToneTts(seconds_per_character=0.01)
        )
        async with serving(chosen) as server, calling(server.url) as caller:
            caller.send(type="response.create")
            done = await caller.event("response.done")
            assert done["response"]["status"] == "completed"


async def test_a_track_that_ends_in_the_middle_of_a_word_ends_the_turn(server: Server) -> None:
    async with calling(server.url) as caller:
        caller.microphone.say(tone(5.0))
        await caller.event("input_audio_buffer.speech_started")
        await caller.connection.getSenders()[0].stop()  # sends an RTCP BYE
        await caller.event("conversation.item.input_audio_transcription.completed")


async def test_a_caller_who_only_sends_gets_text_replies(server: Server) -> None:
    async with aiohttp.ClientSession(server.url) as http:
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connection.addTransceiver(Microphone(), direction="sendonly")
        received: asyncio.Queue[str] = asyncio.Queue()
        channel = connection.createDataChannel("oai-events")
        channel.on("message", received.put_nowait)
        await connection.setLocalDescription(await connection.createOffer())
        body = {"sdp": connection.localDescription.sdp}
        async with http.post(CALLS, json=body) as response:
            answer = RTCSessionDescription(await response.text(), "answer")
        await connection.setRemoteDescription(answer)
        while "session.created" not in await received.get():
            pass
        channel.send('{"type":"response.create"}')
        while '"response.done"' not in (event := await received.get()):
            pass
        assert "output_text" in event and "completed" in event
        await connection.close()


async def test_an_item_cannot_take_the_id_of_a_turn_in_progress(server: Server) -> None:
    async with calling(server.url) as caller:
        caller.microphone.say(tone(1.0))
        started = await caller.event("input_audio_buffer.speech_started")
        caller.send(
            type="conversation.item.create",
            item={
                "id": started["item_id"],
                "role": "user",
                "content": [{"type": "input_text", "text": "mine"}],
            },
        )
        error = await caller.event("error")
        assert error["error"]["code"] == "item_exists"
        await caller.event("output_audio_buffer.started")


async def test_speech_across_a_change_of_turn_detection_is_heard(server: Server) -> None:
    async with calling(server.url) as caller:
        caller.microphone.say(tone(3.0))
        await caller.event("input_audio_buffer.speech_started")
        for detection in (None, {"type": "server_vad"}):
            session = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
            before = len(caller.events)
            caller.send(type="session.update", session=session)
            await caller.event("session.updated", after=before)
        await caller.microphone.spoken.wait()
        done = await caller.event("response.done")
        assert done["response"]["status"] == "completed"
        assert caller.types().count("response.created") == 1
        seconds = sum(
            event["usage"]["seconds"]
            for _, event in caller.events
            if event["type"] == "conversation.item.input_audio_transcription.completed"
        )
        assert seconds >= 3.0


async def test_an_update_does_not_cut_what_push_to_talk_holds(server: Server) -> None:
    async with calling(server.url) as caller:
        manual = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        caller.send(type="session.update", session=manual)
        caller.send(type="input_audio_buffer.clear")
        await caller.event("input_audio_buffer.cleared")
        await caller.say(tone(1.0))
        caller.send(type="session.update", session={"type": "realtime", "instructions": "x"})
        await caller.event("session.updated", lambda e: e["session"]["instructions"] == "x")
        await caller.say(tone(0.5))
        caller.send(type="input_audio_buffer.commit")
        done = await caller.event("conversation.item.input_audio_transcription.completed")
        assert done["usage"]["seconds"] > 1.4


async def test_whoever_asks_for_a_reply_and_cancels_it_at_once_is_told_its_end() -> None:
    slow = EchoLlm((), first_seconds=30.0, delay=asyncio.sleep)
    chosen = EngineSet(ThresholdVad(), ScriptedStt(), slow, ToneTts())
    async with asyncio.timeout(50), serving(chosen) as server, calling(server.url) as caller:
        caller.send(type="response.create")
        caller.send(type="response.cancel")
        done = await caller.event("response.done")
        assert done["response"]["status"] == "cancelled"
        assert caller.types().count("response.created") == 1


async def test_a_caller_who_stops_sending_is_heard_to_stop() -> None:
    async with (
        asyncio.timeout(50),
        serving(media={"inbound_buffer_seconds": 0.5}) as server,
        calling(server.url) as caller,
    ):
        caller.microphone.say(tone(5.0))
        await caller.event("input_audio_buffer.speech_started")
        caller.connection.getSenders()[0].replaceTrack(None)
        await caller.event("conversation.item.input_audio_transcription.completed")
        caller.microphone.say(silence(960))


@pytest.mark.parametrize("path", ["fast", "stock"])
async def test_datagrams_of_strangers_do_no_harm(path: str) -> None:
    """One empty datagram used to end a call, and a stranger's ClientHello broke its set-up."""
    async with asyncio.timeout(50), serving(media={"path": path}) as server:
        async with calling(server.url) as caller:
            lines = caller.connection.remoteDescription.sdp.splitlines()
            candidates = (line.split() for line in lines if line.startswith("a=candidate:"))
            candidate = next(each for each in candidates if "." in each[4])  # an IPv4 one
            address = candidate[4], int(candidate[5])
            hello = b"\x16\xfe\xff" + bytes(10) + b"\x01" + bytes(60)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for datagram in (b"", b"\x00", hello, b"\x80" * 40, b"\x81\xc9" + bytes(30)) * 20:
                    stranger.sendto(datagram, address)
            before = len(caller.events)
            await caller.say(tone(0.8))
            await caller.event(
                "conversation.item.input_audio_transcription.completed", after=before
            )
            sample = server.metrics.registry.get_sample_value
            rejected = {
                reason: sample("voice_rtc_datagrams_rejected_total", {"reason": reason})
                for reason in ("empty", "not_stun", "stranger")
            }
            assert rejected == {"empty": 20, "not_stun": 20, "stranger": 60}


async def test_calls_are_set_up_and_held_under_fire() -> None:
    """Strangers know the ports beforehand: what came while a socket was made broke calls."""
    ports = free_ports(8)
    dice = random.Random(1)
    media = {"udp_ports": f"{ports[0]}-{ports[-1]}"}
    async with asyncio.timeout(50), serving(media=media) as server, AsyncExitStack() as stack:
        sockets = stack.enter_context(strangers(8))

        async def fire() -> None:
            while True:
                for port in ports:
                    for datagram in (b"", garbage(dice)):
                        with suppress(BlockingIOError):
                            dice.choice(sockets).sendto(datagram, (address, port))
                await asyncio.sleep(0.005)

        address = own_address()
        async with asyncio.TaskGroup() as tasks:
            firing = tasks.create_task(fire())
            callers = [await stack.enter_async_context(calling(server.url)) for _ in range(4)]
            for caller in callers:
                await caller.say(tone(0.5))
                await caller.event("response.done")
            firing.cancel()
        assert server.registry.active == 4
        sample = server.metrics.registry.get_sample_value
        for reason in ("empty", "stranger", "stun", "not_stun"):
            assert (sample("voice_rtc_datagrams_rejected_total", {"reason": reason}) or 0) > 10
