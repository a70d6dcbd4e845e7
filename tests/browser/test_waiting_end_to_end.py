"""The call page in the waiting line of the real server, with scripted engines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.async_api import Route, expect

from signaling.main import Server
from tests.support.audio import read_wav, write_wav
from tests.support.caller import calling
from tests.support.server import serving
from voice_rtc.call.call import Call
from voice_rtc.core.audio import SEND_RATE_HZ, silence

from .conftest import ChromiumPage, OpenChromium

pytestmark = pytest.mark.browser

ONE_SLOT: dict[str, Any] = {"pool": {"slots": 1}}


async def join_line(opened: ChromiumPage, server: Server) -> Call:
    """Open the page, call, be told to wait; returns the server's side."""
    await opened.open(server.url)
    await opened.press("Call")
    await opened.until("voiceRtc.status === 'queued'")
    return server.registry.get(await opened.state("callId"))


async def abort(route: Route) -> None:
    """There is no network."""
    await route.abort("internetdisconnected")


def positions(server: Server) -> list[str]:
    """The ids of the calls in the line, in its order."""
    assert server.registry.pool is not None
    return [each["call"] for each in server.registry.pool.status()["line"]["entries"]]


async def test_the_second_caller_waits_and_is_answered(
    chromium_page: OpenChromium, talking_wav: Path, tmp_path: Path
) -> None:
    microphone = tmp_path / "microphone.wav"
    pause = silence(3 * SEND_RATE_HZ)
    story = np.concatenate([read_wav(talking_wav, SEND_RATE_HZ), pause])  # again and again
    write_wav(microphone, story, SEND_RATE_HZ)
    async with asyncio.timeout(55), serving(**ONE_SLOT) as server:
        first = await chromium_page()
        await first.open(server.url)
        await first.call()
        second = await chromium_page(fake_wav=microphone)
        await join_line(second, server)
        status = second.page.locator("#status")
        await expect(status).to_have_text("You are next in line")
        await expect(second.page.locator("#hint")).to_have_text(
            "About 3 minutes. Nobody else is waiting."
        )
        await second.until("voiceRtc.remoteEnergy > 0.001")  # the hold message
        assert await second.state("captions") == []

        await first.press("Hang up")
        await second.until("voiceRtc.status === 'live' && voiceRtc.place === null")
        await expect(status).to_have_text("It is your turn")
        await second.until(
            "voiceRtc.captions.some(c => c.side === 'caller' && c.phase === 'final')"
            " && voiceRtc.captions.some(c => c.side === 'agent' && c.text)"
        )
        await second.press("Hang up")
        await server.registry.wait_empty()
        sample = server.metrics.registry.get_sample_value
        assert sample("voice_rtc_calls_total", {"outcome": "hangup"}) == 2
        assert first.problems == second.problems == []


async def test_a_lost_connection_does_not_cost_the_place(chromium_page: OpenChromium) -> None:
    async with asyncio.timeout(55), serving(**ONE_SLOT) as server, calling(server.url) as first:
        opened = await chromium_page()
        lost = await join_line(opened, server)
        async with calling(server.url) as behind:
            await behind.event("voice_rtc.queue.updated")
            # The first attempt to come back fails.
            await opened.page.route("**/v1/realtime/calls?resume=*", abort, times=1)
            await lost.peer.aclose()  # no word to the page: as if a router had gone
            await opened.until("voiceRtc.status === 'returning'")
            await opened.until("voiceRtc.status === 'queued'")
            returned = await opened.state("callId")
            assert returned != lost.id
            assert positions(server) == [returned, behind.call_id]
            assert (await opened.state("place"))["position"] == 1

            await opened.page.reload()
            await opened.until("window.voiceRtc?.status === 'queued'")
            reloaded = await opened.state("callId")
            assert reloaded not in (returned, lost.id)
            assert positions(server) == [reloaded, behind.call_id]

            await first.hang_up()
            await opened.until("voiceRtc.status === 'live'")
            assert positions(server) == [behind.call_id]
            await opened.press("Hang up")
            await behind.event("voice_rtc.queue.granted")


async def test_a_full_line_says_when_to_call_again(chromium_page: OpenChromium) -> None:
    settings = {"pool": {"slots": 1, "max_waiting": 0}}
    async with asyncio.timeout(55), serving(**settings) as server, calling(server.url) as first:
        opened = await chromium_page()
        await opened.open(server.url)
        await opened.press("Call")
        await opened.until("voiceRtc.lastError?.code === 'pool_full'")
        words = await opened.page.locator("#notice").inner_text()
        assert "its waiting line is full. Call again in " in words
        await first.hang_up()
        await first.event("voice_rtc.call.ended")
        await opened.press("Call again")
        await opened.until("voiceRtc.status === 'live'")


async def test_who_gives_up_while_the_connection_is_lost_is_not_waited_for(
    chromium_page: OpenChromium,
) -> None:
    async with asyncio.timeout(55), serving(**ONE_SLOT) as server, calling(server.url):
        opened = await chromium_page()
        lost = await join_line(opened, server)
        await opened.page.route("**/v1/realtime/calls?resume=*", abort)
        await lost.peer.aclose()
        await opened.until("voiceRtc.status === 'returning'")
        assert positions(server) == [lost.id]
        async with opened.page.expect_response("**/v1/realtime/calls/*") as answer:
            await opened.press("Hang up")
        assert (await answer.value).status == 200
        assert positions(server) == []
