"""Offers that are broken or meant to do harm: refused cheaply, and nothing is sent for them."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator

import aiohttp
import psutil  # type: ignore[import-untyped]  # has no stubs of its own
import pytest

from signaling.main import Server
from tests.loopback.test_offer_flood import an_offer
from tests.support.server import serving
from tools.attack import own_address
from tools.fuzz_offers import fuzz, mutants, send

MANY = {"connecting_calls": 1000, "connecting_calls_per_address": 1000}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    media = {"connect_deadline_seconds": 0.3}
    async with asyncio.timeout(50), serving(limits=MANY, media=media, pool={"slots": 1000}) as it:
        yield it


def sockets() -> int:
    return sum(each.type == socket.SOCK_DGRAM for each in psutil.Process().net_connections())


async def test_broken_offers_are_the_senders_fault_and_leave_nothing(server: Server) -> None:
    before = sockets()
    findings = await fuzz(server.url, await an_offer(), 200, seed=7)
    assert findings.bad == []
    assert findings.statuses[400] > 30 and findings.statuses[201] > 30
    await server.registry.wait_empty()
    assert sockets() == before


def test_the_same_seed_breaks_offers_in_the_same_ways() -> None:
    good = "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n"
    one, other = mutants(good, 3), mutants(good, 3)
    assert [next(one) for _ in range(200)] == [next(other) for _ in range(200)]


@pytest.mark.parametrize(
    ("flood", "statuses"),
    [
        ("a=candidate:{} 1 udp 1 203.0.113.9 {} typ host\r\n" * 8000, {413}),
        ("a=candidate:{} 1 udp 1 203.0.113.9 {} typ host\r\n" * 300, {400}),
        ("m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" * 300, {400}),
        ("a=rtpmap:96 opus/48000/2\r\n" * 900, {400}),
        ("a=ssrc:1 cname:x\r\n" * 900, {400}),
    ],
    ids=["8000 candidates", "300 candidates", "300 m-lines", "900 codecs", "900 sources"],
)
async def test_floods_of_lines_are_refused(server: Server, flood: str, statuses: set[int]) -> None:
    offer = await an_offer()
    async with aiohttp.ClientSession(server.url) as http:
        assert await send(http, offer + flood) in statuses
    assert server.registry.active == 0


@pytest.mark.parametrize(
    "broken",
    [
        ("a=group:BUNDLE 0 1", "a=group:BUNDLE 7 1"),
        ("a=group:BUNDLE 0 1", "a=group:BUNDLE 0 0 1"),
        ("a=mid:0", "a=mid"),
        ("a=mid:0", "a=mid:1"),
    ],
)
async def test_bundles_that_fit_no_line_are_refused(
    server: Server, broken: tuple[str, str]
) -> None:
    offer = await an_offer()
    assert broken[0] in offer
    async with aiohttp.ClientSession(server.url) as http:
        assert await send(http, offer.replace(*broken)) == 400
    assert server.registry.active == 0


async def test_no_packet_leaves_for_an_address_that_an_offer_names(server: Server) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
        victim.bind(("", 0))
        victim.setblocking(False)
        host, port = own_address(), victim.getsockname()[1]
        candidate = f"a=candidate:1 1 udp 2130706431 {host} {port} typ host"
        offer = re.sub(r"a=candidate:.*", candidate, await an_offer())
        offer = re.sub(r"c=IN IP4 \S+", f"c=IN IP4 {host}", offer)
        offer = re.sub(r"a=rtcp:.*", f"a=rtcp:{port} IN IP4 {host}", offer)
        offer = re.sub(r"m=(\w+) \d+ ", rf"m=\1 {port} ", offer)
        assert f"m=audio {port} " in offer and candidate in offer
        async with aiohttp.ClientSession(server.url) as http:
            assert await send(http, offer) == 201
        await server.registry.wait_empty()
        with pytest.raises(BlockingIOError):
            victim.recv(2000)
