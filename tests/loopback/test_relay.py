"""Clients that get through by a TURN server only: coturn, with the credentials that we give out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from aiortc import RTCConfiguration, RTCIceServer
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from signaling.main import Server
from tests.support.audio import speech_clips
from tests.support.caller import calling
from tests.support.server import serving
from tests.support.turn import SECRET, Relay, needs_coturn, relaying
from voice_rtc.core.audio import SEND_RATE_HZ

pytestmark = needs_coturn


async def relay_only(url: str) -> RTCConfiguration:
    """What a client makes of the server's answer."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/realtime/ice") as response:
        assert response.headers["Cache-Control"] == "no-store"
        (server,) = (await response.json())["ice_servers"]
    entry = RTCIceServer(server["urls"], server["username"], server["credential"])
    return RTCConfiguration([entry], iceTransportPolicy=RTCIceTransportPolicy.RELAY)


def comes_from(server: Server, call_id: str) -> int:
    """The port that the server sends the call's audio to."""
    connection = server.registry.get(call_id).peer._connection
    (transceiver,) = connection.getTransceivers()
    return int(transceiver.receiver.transport.transport._connection._nominated[1].remote_addr[1])


def through(relay: Relay) -> dict[str, object]:
    return {"urls": [relay.url], "secret": SECRET}


async def test_a_client_behind_a_relay_talks(tmp_path: Path) -> None:
    clip = speech_clips(SEND_RATE_HZ)[0].samples
    async with (
        asyncio.timeout(50),
        relaying(tmp_path) as relay,
        serving(relay=through(relay)) as server,
        calling(server.url, ice=await relay_only(server.url)) as caller,
    ):
        port = comes_from(server, caller.call_id)
        assert relay.first_port <= port <= relay.last_port
        await caller.say(clip)
        await caller.event("conversation.item.input_audio_transcription.completed")
        await caller.event("output_audio_buffer.stopped")
        assert abs(caller.audio()).max() > 1000
        await caller.hang_up()
        await server.registry.wait_empty()
