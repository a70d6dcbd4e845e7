"""Offers that nobody follows up keep no honest caller out."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
from aiortc import RTCConfiguration, RTCPeerConnection

from tests.support.audio import tone
from tests.support.caller import Microphone, calling
from tests.support.server import serving

CALLS = "/v1/realtime/calls"
LIMITS = {"connecting_calls": 6, "connecting_calls_per_address": 4}


async def an_offer() -> str:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTrack(Microphone())
    connection.createDataChannel("oai-events")
    await connection.setLocalDescription(await connection.createOffer())
    sdp = connection.localDescription.sdp
    await connection.close()
    return sdp


async def post(url: str, sdp: str, address: str, times: int) -> list[tuple[int, str]]:
    """Status and code of each answer."""
    answers = []
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with aiohttp.ClientSession(url, connector=connector) as http:
        for _ in range(times):
            async with http.post(CALLS, json={"sdp": sdp}) as response:
                code = ""
                if response.status != 201:
                    code = (await response.json())["error"]["code"]
                    assert int(response.headers["Retry-After"]) > 0
                answers.append((response.status, code))
    return answers


async def test_a_flood_from_some_addresses_leaves_room_for_another() -> None:
    sdp = await an_offer()
    async with asyncio.timeout(50), serving(limits=LIMITS) as server:
        first = await post(server.url, sdp, "127.0.0.2", 7)
        assert Counter(first) == {(201, ""): 4, (429, "rate_limited"): 3}
        second = await post(server.url, sdp, "127.0.0.3", 7)
        # It gets as much as the first, at its expense, and not more.
        assert Counter(second) == {(201, ""): 3, (503, "overloaded"): 4}
        async with calling(server.url) as honest:
            await honest.say(tone(0.5))
            await honest.event("response.done")
        rejected = server.metrics.registry.get_sample_value
        assert rejected("voice_rtc_offers_rejected_total", {"reason": "rate_limited"}) == 3


async def test_offers_that_nobody_follows_are_gone_at_the_deadline() -> None:
    sdp = await an_offer()
    media = {"connect_deadline_seconds": 0.5}
    async with asyncio.timeout(50), serving(limits=LIMITS, media=media) as server:
        assert await post(server.url, sdp, "127.0.0.2", 4) == [(201, "")] * 4
        await server.registry.wait_empty()
        ended = server.metrics.registry.get_sample_value(
            "voice_rtc_calls_total", {"outcome": "connect_timeout"}
        )
        assert ended == 4
        assert await post(server.url, sdp, "127.0.0.2", 1) == [(201, "")]
