"""Where the time of a turn goes: what the call page makes of it, and draws."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import ChromiumPage, OpenChromium
from .page_server import PageServer, RigCall

pytestmark = pytest.mark.browser

TIMES = {
    "endpoint_ms": 500.0,
    "stt_ms": 100.0,
    "llm_first_token_ms": 250.0,
    "tts_first_audio_ms": 140.0,
    "first_packet_ms": 10.0,
    "response_ms": 1000.0,
    "saved_ms": 0.0,
}
UNREACHED = {"tts_first_audio_ms": None, "first_packet_ms": None, "response_ms": None}

FEED = """async (events) => {
  const { Timing, turnWords, savedWords } = await import("/static/timing.js");
  const timing = new Timing();
  const news = events.map((event) => timing.apply(event));
  const { turns, answered } = timing;
  timing.clear();
  return { news, turns, answered, words: turns.map(turnWords), saved: turns.map(savedWords),
    left: timing.turns.length };
}"""

BARS = """(items) => items.map((item) => {
  const whole = item.querySelector(".waterfall").getBoundingClientRect();
  const parts = [...item.querySelectorAll(".waterfall > span")];
  return parts.map((part) => {
    const box = part.getBoundingClientRect();
    return [part.dataset.stage, Math.round((100 * box.width) / whole.width),
      box.right <= whole.right + 0.5];
  });
})"""


def metrics(outcome: str = "heard", **changes: Any) -> dict[str, Any]:
    """A `voice_rtc.turn.metrics` event."""
    return {"type": "voice_rtc.turn.metrics", "outcome": outcome, **TIMES, **changes}


def tell(call: RigCall, event: dict[str, Any]) -> None:
    call.send(event["type"], **{key: value for key, value in event.items() if key != "type"})


async def turns_told(opened: ChromiumPage, server: PageServer) -> RigCall:
    """A call with three turns: heard, cut, and heard after a long pause."""
    await opened.open(server.url)
    await opened.call()
    call = await server.next_call()
    tell(call, metrics())
    tell(call, metrics("cut", **UNREACHED))
    tell(call, metrics(endpoint_ms=1500.0, response_ms=2000.0, saved_ms=240.0))
    await opened.until("voiceRtc.turns.length === 3")
    return call


async def test_turns_from_events(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.page.goto(page_server.url)
    events = [
        metrics("nothing", **UNREACHED),
        metrics(),
        metrics("cut", **UNREACHED),
        {"type": "voice_rtc.turn.metrics", "response_ms": None},
        metrics("failed", **UNREACHED),
        metrics("silent", **UNREACHED, saved_ms=12.4),
    ]
    told = await opened.page.evaluate(FEED, events)
    assert told["news"] == [False, True, True, False, True, True]
    assert [turn["number"] for turn in told["turns"]] == [4, 3, 2, 1]
    assert told["words"] == ["no sound", "failed", "cut short", "1000 ms"]
    assert [bool(words) for words in told["saved"]] == [True, False, False, False]
    assert [turn["total_ms"] for turn in told["turns"]] == [850, 850, 850, 1000]
    assert told["answered"]["number"] == 1 and told["left"] == 0
    many = await opened.page.evaluate(FEED, [metrics() for _ in range(30)])
    assert [turn["number"] for turn in many["turns"]] == list(range(30, 22, -1))


async def test_the_newest_turns_are_drawn(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page(width=360, height=740)
    await opened.open(page_server.url)
    assert await opened.page.locator("#timing").is_hidden()
    await turns_told(opened, page_server)
    bars = await opened.page.locator("#timing-bars > li").evaluate_all(BARS)
    assert all(inside for bar in bars for *_, inside in bar)
    widths = [{stage: width for stage, width, _ in bar} for bar in bars]
    assert list(widths[0]) == ["endpoint", "stt", "llm", "tts", "packet"]
    assert list(widths[1]) == ["endpoint", "stt", "llm"]
    assert widths[0]["endpoint"] == pytest.approx(75, abs=2)
    assert widths[2]["endpoint"] == pytest.approx(25, abs=2)
    words = await opened.page.locator("#timing-bars .timing-words").all_inner_texts()
    assert words == ["2000 ms", "cut short", "1000 ms"]
    stages = await opened.page.locator("#timing-stages dd").all_inner_texts()
    assert stages == ["1500 ms", "100 ms", "250 ms", "140 ms", "10 ms", "2000 ms"]
    assert "240 ms saved" in await opened.page.locator("#timing-saved").inner_text()
    assert await opened.page.locator("#figure-response").inner_text() == "2000 ms"
    width = await opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360, "nothing sticks out on a phone"
    assert opened.problems == []


async def test_screen_readers_get_a_table(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    await turns_told(opened, page_server)
    table = opened.page.get_by_role("table", name="Response times of the newest turns")
    heads = await table.get_by_role("columnheader").all_inner_texts()
    assert heads[0] == "Turn" and heads[-2:] == ["Response", "Saved"]
    assert await table.get_by_role("row").count() == 1 + 3
    cells = await table.get_by_role("row").nth(2).get_by_role("cell").all_inner_texts()
    assert await table.get_by_role("rowheader").all_inner_texts() == ["Turn 3", "Turn 2", "Turn 1"]
    assert cells == ["500 ms", "100 ms", "250 ms", "–", "–", "cut short", "0 ms"]
    assert await opened.page.locator("#timing-bars").get_attribute("aria-hidden") == "true"


async def test_a_cut_turn_leaves_the_last_response_and_a_new_call_begins_anew(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    call = await turns_told(opened, page_server)
    tell(call, metrics("cut", **UNREACHED))
    await opened.until("voiceRtc.turns.length === 4")
    assert await opened.page.locator("#figure-response").inner_text() == "2000 ms"
    assert (await opened.state("metrics"))["response_ms"] == 2000
    await opened.press("Hang up")
    assert await opened.page.locator("#timing-bars > li").count() == 4, "still to be looked at"
    await opened.call()
    assert await opened.state("turns") == []
    assert await opened.page.locator("#timing").is_hidden()
