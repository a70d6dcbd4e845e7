"""web/heartbeat.js: whether the server still answers; and callers whose browser is gone."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no stubs of its own
import pytest

from tests.support.server import serving

from .conftest import OpenChromium
from .page_server import PageServer

pytestmark = pytest.mark.browser

STORY = """async (story) => {
  const { Heartbeat } = await import("/static/heartbeat.js");
  const heartbeat = new Heartbeat(0);
  const states = [];
  for (const [now, type] of story) {
    if (type === "beat" || type === "beat in line") {
      states.push(heartbeat.beat(now, type === "beat in line"));
    } else heartbeat.heard(type, now);
  }
  return states;
}"""
ANSWER = "voice_rtc.heartbeat"


def beats(start: int, end: int, kind: str = "beat") -> list[list[Any]]:
    return [[1000 * second, kind] for second in range(start, end)]


async def test_a_silent_server_is_a_gap_then_lost(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)

    async def told(story: list[list[Any]]) -> list[str]:
        states: list[str] = await opened.page.evaluate(STORY, story)
        return states

    dies = [[10, ANSWER], *beats(1, 10)]
    assert await told(dies) == ["fine"] * 3 + ["gap"] * 5 + ["lost"]
    in_line = [[10, ANSWER], *beats(1, 5, "beat in line")]
    assert await told(in_line) == ["fine"] * 3 + ["lost"]
    returns = [[10, ANSWER], *beats(1, 6), [5500, "response.done"], *beats(6, 8)]
    assert await told(returns) == ["fine"] * 3 + ["gap"] * 2 + ["fine"] * 2
    never_knew_them = [[10, "session.created"], *beats(1, 20)]
    assert await told(never_knew_them) == ["fine"] * 19
    slept = [[10, ANSWER], [1000, "beat"], [3_600_000, "beat"], *beats(3601, 3605)]
    assert await told(slept) == ["fine"] * 4 + ["gap"] * 2


async def test_the_page_gives_a_silent_server_up(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    await opened.call()
    page_server.calls[0].is_dead = True
    await opened.until("voiceRtc.status === 'interrupted'")
    page_server.calls[0].is_dead = False
    await opened.until("voiceRtc.status === 'live'")
    page_server.calls[0].is_dead = True
    await opened.until("voiceRtc.lastError?.code === 'connection_lost'")


async def test_a_browser_that_is_killed_frees_its_call(chromium_page: OpenChromium) -> None:
    async with asyncio.timeout(55), serving() as server:
        opened = await chromium_page()
        await opened.open(server.url)
        await opened.call()
        for process in psutil.Process().children(recursive=True):
            if "chrom" in process.name():
                process.kill()
        async with asyncio.timeout(15):
            await server.registry.wait_empty()
        sample = server.metrics.registry.get_sample_value
        assert sample("voice_rtc_calls_total", {"outcome": "peer_gone"}) == 1
        assert sample("voice_rtc_leases_active") == 0
        assert sample("voice_rtc_suspensions_total", {"result": "ended"}) == 1
