"""What one client may send on its data channels, and that nobody else hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from signaling.main import Server
from tests.support.audio import tone
from tests.support.caller import Caller, calling
from tests.support.server import serving


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with asyncio.timeout(50), serving() as running:
        yield running


def unbound(caller: Caller) -> None:
    """Let the client send messages of any size, as no honest one does."""
    assert caller.connection.sctp is not None
    caller.connection.sctp._remote_max_message_size = 0


def sample(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0


async def is_thrown_out(server: Server, caller: Caller, reason: str) -> None:
    ended = await caller.event("voice_rtc.call.ended")
    assert ended["reason"] == "channel_abused"
    assert sample(server, "channels_abused_total", reason=reason) == 1


async def talk(caller: Caller) -> None:
    before = len(caller.events)
    await caller.say(tone(0.6))
    await caller.event("response.done", after=before)


async def test_a_message_of_twelve_megabytes_ends_its_own_call_alone(server: Server) -> None:
    async with calling(server.url) as innocent, calling(server.url) as attacker:
        unbound(attacker)
        attacker.channel.send("x" * 12_000_000)
        await is_thrown_out(server, attacker, "channel_bytes")
        await talk(innocent)
        assert [call.id for call in server.registry.calls()] == [innocent.call_id]


async def test_a_message_that_is_too_large_is_refused_and_the_call_goes_on(server: Server) -> None:
    async with calling(server.url) as caller:
        unbound(caller)
        caller.channel.send("x" * 100_000)
        error = await caller.event("error")
        assert error["error"]["code"] == "message_too_large"
        await talk(caller)


async def test_clients_are_told_how_large_a_message_may_be(server: Server) -> None:
    async with calling(server.url) as caller:
        assert "a=max-message-size:16384\r\n" in caller.connection.remoteDescription.sdp
        with pytest.raises(ValueError, match="16384"):
            caller.channel.send("x" * 16_385)


async def test_messages_that_come_too_fast_are_refused_then_the_call_ends(server: Server) -> None:
    async with calling(server.url) as caller:
        while server.registry.active:
            for _ in range(8):
                if caller.channel.readyState == "open":
                    caller.send(type="conversation.item.retrieve", item_id="none")
            await asyncio.sleep(0.02)  # no faster than the datagrams of a call may come
        error = await caller.event("error", lambda event: event["error"]["code"] == "rate_limited")
        assert "20 messages a second" in error["error"]["message"]
        assert sample(server, "channel_messages_rejected_total", reason="rate_limited") > 100
        # With so much to read the client may miss its last event; the call has ended all the same.
        assert sample(server, "calls_total", outcome="channel_abused") == 1
        assert sample(server, "channels_abused_total", reason="channel_flood") == 1


async def test_channels_without_end_end_the_call(server: Server) -> None:
    async with calling(server.url) as caller:
        for number in range(15):
            caller.connection.createDataChannel(f"other-{number}")
        await talk(caller)
        caller.connection.createDataChannel("one too many")
        await is_thrown_out(server, caller, "channel_count")


@pytest.mark.parametrize("message", ["", b"", b"\xff\x00", b'{"type":"nonsense"}', "{"])
async def test_odd_messages_are_answered(server: Server, message: str | bytes) -> None:
    async with calling(server.url) as caller:
        caller.channel.send(message)
        error = await caller.event("error")
        assert error["error"]["code"] in ("invalid_json", "unknown_event")
        caller.send(type="conversation.item.retrieve", item_id="none")
        await caller.event("error", lambda event: event["error"]["code"] == "item_not_found")
