"""The call page in Chromium against a stand-in server: what a call can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import ChromiumPage, OpenChromium
from .page_server import PageServer, RigCall

pytestmark = pytest.mark.browser

REPLY = "Start in Alfama. From there you see the whole town."

TYPED = ("output_audio_buffer.clear", "conversation.item.create", "response.create")
"""Silence first: a reply may be on its way of which the page was not told yet."""


async def begin(opened: ChromiumPage, server: PageServer) -> RigCall:
    """Open the page, call, and return the server's side of the call."""
    await opened.open(server.url)
    await opened.call()
    return await server.next_call()


async def captions(opened: ChromiumPage) -> list[str]:
    """The captions as the page shows them, one string per turn."""
    items = opened.page.locator("#captions > li")
    return [" ".join(text.split()) for text in await items.all_inner_texts()]


async def test_a_call_from_beginning_to_end(
    chromium_page: OpenChromium, page_server: PageServer, talking_wav: Path
) -> None:
    opened = await chromium_page(fake_wav=talking_wav)
    call = await begin(opened, page_server)
    assert await opened.state("callId") == call.id
    await call.hears(sound=True)
    await opened.until("voiceRtc.localLevel > 0.1")

    question = call.caller_starts()
    await opened.until("voiceRtc.floor === 'caller'")
    assert await captions(opened) == ["You Listening…"]
    call.caller_partial(question, "where do I")
    await opened.until("voiceRtc.captions[0].text === 'where do I'")
    call.caller_ends(question, "Where do I start?")
    await opened.until("voiceRtc.floor === 'thinking'")
    answer = call.agent_starts(REPLY)
    await opened.until("voiceRtc.remoteEnergy > 0.001 && voiceRtc.remoteLevel > 0.5")
    assert await opened.page.locator("#status").inner_text() == "Agent is speaking"
    call.agent_ends(answer, REPLY, response_ms=640, stt_ms=88)
    await opened.until("voiceRtc.metrics.response_ms === 640")
    assert await captions(opened) == ["You Where do I start?", f"Agent {REPLY}"]
    assert await opened.page.locator("#figure-response").inner_text() == "640 ms"
    await opened.until("/^\\d+ ms$/.test(document.getElementById('figure-round-trip').textContent)")
    announced = await opened.page.locator("#announcer > p").all_text_contents()
    assert announced == ["You: Where do I start?", f"Agent: {REPLY}"]

    await opened.press("Hang up")
    await page_server.changes.until(lambda: call.hung_up)
    assert await opened.state("status") == "ended"
    assert await opened.state("callId") is None
    assert opened.problems == []


async def test_an_interrupted_reply_shows_what_was_heard(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    call = await begin(opened, page_server)
    answer = call.agent_starts(REPLY)
    await opened.until("voiceRtc.floor === 'agent'")
    call.caller_starts()
    call.agent_interrupted(answer, heard="Start in Alfama.")
    await opened.until("voiceRtc.captions[0].interrupted")
    turn = opened.page.locator("#captions > li").first
    unheard = turn.locator("s")
    assert await unheard.text_content() == "Not heard: From there you see the whole town."
    assert "interrupted" in await turn.inner_text()
    shown = (await turn.locator(".turn-text").text_content() or "").split("Not heard:")[0]
    assert shown.strip() == "Start in Alfama."
    announced = await opened.page.locator("#announcer > p").all_text_contents()
    assert announced == ["Agent: Start in Alfama. (interrupted)"]
    assert (await opened.state("captions"))[1]["side"] == "caller"


async def test_text_from_the_wire_stays_text(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    hostile = "<img src=x onerror=alert(1)> & <b>bold</b>"
    page_server.readiness["notes"] = [hostile]
    opened = await chromium_page()
    call = await begin(opened, page_server)
    call.caller_says(hostile)
    call.send("error", error={"code": "odd", "message": hostile})
    await opened.until("voiceRtc.lastError !== null")
    assert await captions(opened) == [f"You {hostile}"]
    assert await opened.page.locator("#notice-text").inner_text() == hostile
    assert await opened.page.locator("#captions img, #notice img, #server-notes img").count() == 0


async def test_typing_interrupts_the_reply(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    call = await begin(opened, page_server)
    text = opened.page.get_by_label("Message to the agent")
    await text.fill("  How far is it?  ")
    await text.press("Enter")
    _, created, _ = await call.next_messages(*TYPED)
    content = [{"type": "input_text", "text": "How far is it?"}]
    assert created["item"] == {"type": "message", "role": "user", "content": content}
    assert await text.input_value() == ""
    call.caller_types("How far is it?")
    call.agent_starts(REPLY)
    await opened.until("voiceRtc.floor === 'agent'")
    await text.fill("Thanks")
    await opened.press("Send")
    await call.next_messages(
        "response.cancel",
        "output_audio_buffer.clear",
        "conversation.item.create",
        "response.create",
    )
    assert (await captions(opened))[0] == "You How far is it?"


async def test_stop_reply(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    call = await begin(opened, page_server)
    stop = opened.page.get_by_role("button", name="Stop reply")
    assert await stop.is_disabled()
    answer = call.agent_starts(REPLY)
    await stop.click()
    await call.next_messages("response.cancel", "output_audio_buffer.clear")
    call.agent_interrupted(answer, heard="")
    # The reply was stopped before a word of it was heard: it is no part of the conversation.
    await opened.until("voiceRtc.floor === 'listening' && voiceRtc.captions.length === 0")
    assert await stop.is_disabled()


async def test_mute(
    chromium_page: OpenChromium, page_server: PageServer, talking_wav: Path
) -> None:
    opened = await chromium_page(fake_wav=talking_wav)
    call = await begin(opened, page_server)
    await call.hears(sound=True)
    mute = opened.page.get_by_role("button", name="Mute")
    await mute.click()
    assert await mute.get_attribute("aria-pressed") == "true"
    await call.hears(sound=False)
    assert await opened.page.locator("#status").inner_text() == "You are muted"
    await mute.click()
    assert await mute.get_attribute("aria-pressed") == "false"
    await call.hears(sound=True)


async def test_push_to_talk(
    chromium_page: OpenChromium, page_server: PageServer, talking_wav: Path
) -> None:
    opened = await chromium_page(fake_wav=talking_wav)
    call = await begin(opened, page_server)
    await opened.press("Push to talk")
    (update,) = await call.next_messages("session.update")
    assert update["session"] == {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    await call.hears(sound=False)

    # The space bar talks although the button that was clicked last has the focus.
    assert await opened.page.evaluate("document.activeElement.id") == "ptt"
    answer = call.agent_starts(REPLY)
    await opened.until("voiceRtc.floor === 'agent'")
    await opened.page.keyboard.down("Space")
    await call.next_messages(
        "response.cancel", "output_audio_buffer.clear", "input_audio_buffer.clear"
    )
    call.agent_interrupted(answer, heard="Start")
    await call.hears(sound=True)
    await opened.page.keyboard.up("Space")
    await call.next_messages("input_audio_buffer.commit", "response.create")

    hold = await opened.page.get_by_role("button", name="Hold to talk").bounding_box()
    assert hold is not None
    await opened.page.mouse.move(hold["x"] + hold["width"] / 2, hold["y"] + hold["height"] / 2)
    await opened.page.mouse.down()
    await call.next_messages("output_audio_buffer.clear", "input_audio_buffer.clear")
    await call.hears(sound=True)
    await opened.page.mouse.up()
    await call.next_messages("input_audio_buffer.commit", "response.create")
    await call.hears(sound=False)

    # In the text field a space is a space.
    await opened.page.get_by_label("Message to the agent").press_sequentially("a b")
    assert await opened.page.get_by_label("Message to the agent").input_value() == "a b"

    await opened.press("Push to talk")
    (update,) = await call.next_messages("session.update")
    assert update["session"]["audio"]["input"]["turn_detection"] == {"type": "server_vad"}
    await call.hears(sound=True)
    assert opened.problems == []


async def test_a_tap_on_the_talk_key_is_not_a_turn(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    await opened.press("Push to talk")  # before the call: it begins that way
    await opened.call()
    call = await page_server.next_call()
    await call.next_messages("session.update")
    await opened.page.evaluate(
        """() => ["keydown", "keyup"].forEach((type) => {
             document.body.dispatchEvent(new KeyboardEvent(type, { key: " ", bubbles: true }));
           })"""
    )
    await call.next_messages(
        "output_audio_buffer.clear", "input_audio_buffer.clear", "input_audio_buffer.clear"
    )
    assert (await opened.state("lastError"))["title"] == "That was too short"


async def test_leaving_the_page_hangs_up(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    call = await begin(opened, page_server)
    await opened.page.goto("about:blank")
    await page_server.changes.until(lambda: call.hung_up)


async def test_keyboard_alone(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    assert await tab(opened) == "call"
    await opened.page.keyboard.press("Enter")
    await opened.until("voiceRtc.status === 'live'")
    call = await page_server.next_call()
    assert [await tab(opened) for _ in range(2)] == ["mute", "ptt"]
    await opened.page.keyboard.press("Enter")
    await call.next_messages("session.update")
    # A control reached with the keyboard keeps its space bar.
    await opened.page.keyboard.press("Space")
    await call.next_messages("session.update")
    assert await tab(opened) == "captions-scroll"
    assert await tab(opened) == "text"
    await opened.page.keyboard.type("Hello")
    await opened.page.keyboard.press("Enter")
    await call.next_messages(*TYPED)
    visible = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
    assert await opened.page.evaluate(visible)
    assert [await tab(opened) for _ in range(3)] == ["send", "", ""]  # response times, sound
    await opened.page.keyboard.press("Enter")
    assert [await tab(opened) for _ in range(2)] == ["microphone", "speaker"]
    await opened.page.locator("#call").focus()
    await opened.page.keyboard.press("Space")
    await page_server.changes.until(lambda: call.hung_up)


async def tab(opened: ChromiumPage) -> str:
    """Press Tab; the id of what has the focus now (a summary has none)."""
    await opened.page.keyboard.press("Tab")
    return str(await opened.page.evaluate("document.activeElement.id"))


async def test_engines_and_progress(chromium_page: OpenChromium, page_server: PageServer) -> None:
    ready = dict(page_server.readiness)
    page_server.readiness.update(status="loading", progress=["loading speech to text"], engines=[])
    opened = await chromium_page()
    await opened.open(page_server.url)
    await opened.until("voiceRtc.readiness?.status === 'loading'")
    words = opened.page.locator("#server-text")
    assert await words.inner_text() == "Server is loading: loading speech to text"
    page_server.readiness = ready
    await opened.until("voiceRtc.readiness.status === 'ready'")
    assert await words.inner_text() == "Server ready"
    await opened.page.get_by_text("Engines", exact=True).click()
    engines = await opened.page.locator("#engines > li").all_inner_texts()
    assert len(engines) == 4
    for part in ("Speech to text", "faster-whisper · base.en", "The weights are", "A GPU would"):
        assert part in engines[1]


async def test_phone_width(chromium_page: OpenChromium, page_server: PageServer) -> None:
    """Nothing is wider than the screen, and everything can be hit with a finger."""
    opened = await chromium_page(width=390, height=844)
    call = await begin(opened, page_server)
    await opened.press("Push to talk")
    call.caller_says("W" * 200)
    call.agent_starts("https://example.org/" + "path/" * 40)
    call.send("error", error={"code": "odd", "message": "x" * 300})
    await opened.until("voiceRtc.lastError !== null && voiceRtc.captions.length === 2")
    await opened.page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    for width in (390, 320):
        await opened.page.set_viewport_size({"width": width, "height": 844})
        assert await opened.page.evaluate("document.documentElement.scrollWidth") <= width
    for box in await opened.page.locator("button:visible, select:visible, input:visible").all():
        size = await box.bounding_box()
        assert size is not None
        assert size["height"] >= 44, await box.get_attribute("id")


async def test_every_control_has_a_name(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    await begin(opened, page_server)
    await opened.press("Push to talk")
    await opened.page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    session = await opened.page.context.new_cdp_session(opened.page)
    tree: dict[str, Any] = await session.send("Accessibility.getFullAXTree")
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if node.get("role", {}).get("value") in ("button", "textbox", "combobox", "meter", "region")
    ]
    assert len(named) >= 12
    assert [role for role, name in named if not name] == []


CONTRAST = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backdrop = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((channels(color)[3] ?? 1) > 0) return color;
    }
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const relevant = walker.currentNode.data.trim() && node.checkVisibility();
    if (!relevant || node.closest("button:disabled, .hidden, script")) continue;
    const [a, b] = [getComputedStyle(node).color, backdrop(node)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${node.textContent}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


async def test_contrast_in_light_and_dark(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    """All text keeps the 4.5 to 1 of WCAG 2.2, success criterion 1.4.3."""
    motionless = "*, *::before, *::after { transition: none !important }"
    opened = await chromium_page(color_scheme="light")
    call = await begin(opened, page_server)
    await opened.page.add_style_tag(content=motionless)
    call.caller_says("Where do I start?")
    answer = call.agent_starts(REPLY)
    call.agent_interrupted(answer, heard="Start in Alfama.")
    call.send("error", error={"code": "odd", "message": "said by the server"})
    await opened.until("voiceRtc.lastError !== null")
    await opened.page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    backdrops = set()
    for scheme in ("light", "dark"):
        await opened.page.emulate_media(color_scheme=scheme)
        assert await opened.page.evaluate(CONTRAST) == [], scheme
        backdrop = "getComputedStyle(document.body).backgroundColor"
        backdrops.add(await opened.page.evaluate(backdrop))
    assert len(backdrops) == 2
