"""Calls on a fixed range of UDP ports."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from typing import cast

import aiohttp
import pytest
from aioice import stun
from aiortc import RTCConfiguration, RTCPeerConnection

from tests.support.audio import tone
from tests.support.caller import Microphone, calling
from tests.support.network import free_ports
from tests.support.server import serving
from voice_rtc.errors import NoMediaPort
from voice_rtc.media.joint_ports import PortRange


def ports_of(sdp: str) -> set[int]:
    return {int(port) for port in re.findall(r"a=candidate:\S+ 1 udp \d+ \S+ (\d+) ", sdp)}


async def test_calls_stay_in_the_range_and_reuse_it() -> None:
    ports = free_ports(4)
    async with (
        asyncio.timeout(50),
        serving(media={"udp_ports": f"{ports[0]}-{ports[-1]}"}) as server,
    ):
        used: list[set[int]] = []
        async with AsyncExitStack() as stack:
            for _ in range(4):
                caller = await stack.enter_async_context(calling(server.url))
                used.append(ports_of(caller.connection.remoteDescription.sdp))
            assert set().union(*used) == set(ports)
            await _is_refused(server.url)
            await caller.say(tone(0.5))
            await caller.event("response.done")
            refused = server.metrics.registry.get_sample_value(
                "voice_rtc_offers_rejected_total", {"reason": "no_media_port"}
            )
            assert refused == 1 and server.registry.active == 4
        await server.registry.wait_empty()
        async with calling(server.url) as caller:
            assert ports_of(caller.connection.remoteDescription.sdp) <= set(ports)


class StunServer(asyncio.DatagramProtocol):
    """Says that everybody is seen as 198.51.100.7."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request = stun.parse_message(data)
        answer = stun.Message(
            stun.Method.BINDING, stun.Class.RESPONSE, transaction_id=request.transaction_id
        )
        answer.attributes["XOR-MAPPED-ADDRESS"] = ("198.51.100.7", addr[1])
        self.transport.sendto(bytes(answer), addr)


async def test_the_outside_address_of_a_port_is_asked_for() -> None:
    ports = free_ports(4)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(StunServer, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    media = {
        "udp_ports": f"{ports[0]}-{ports[-1]}", "ice_servers": (f"stun:127.0.0.1:{port}",),
        "end_seconds": 60.0,
    }  # fmt: skip
    async with asyncio.timeout(50), serving(media=media) as server:
        async with calling(server.url) as caller:
            sdp = caller.connection.remoteDescription.sdp
        (seen,) = set(re.findall(r" 198.51.100.7 (\d+) typ srflx", sdp))
        assert int(seen) in ports
    transport.close()


async def _is_refused(url: str) -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTrack(Microphone())
    await connection.setLocalDescription(await connection.createOffer())
    async with aiohttp.ClientSession(url) as http:
        body = {"sdp": connection.localDescription.sdp}
        async with http.post("/v1/realtime/calls", json=body) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["error"]["code"] == "no_media_port"
    await connection.close()


def test_ports_are_given_out_in_turn() -> None:
    ports = free_ports(3)
    given = PortRange(ports)
    first, second = given.bind("127.0.0.1"), given.bind("127.0.0.1")
    first.close()
    third = given.bind("127.0.0.1")
    assert [second.getsockname()[1], third.getsockname()[1]] == [ports[1], ports[2]]
    fourth = given.bind("127.0.0.1")
    assert fourth.getsockname()[1] == ports[0]
    with pytest.raises(NoMediaPort):
        given.bind("127.0.0.1")
    for sock in (second, third, fourth):
        sock.close()


def test_an_address_of_another_machine_is_an_error_of_its_own() -> None:
    with pytest.raises(OSError, match="assign"):
        PortRange(free_ports(2)).bind("192.0.2.1")
