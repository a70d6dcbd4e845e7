"""The call page in the waiting line, against a stand-in server."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Route, expect

from .conftest import ChromiumPage, OpenChromium
from .page_server import PageServer, Refusal, RigCall
from .test_call_page import CONTRAST

pytestmark = pytest.mark.browser

OFF = "Microphone off until it is your turn"


async def wait_in_line(
    opened: ChromiumPage, server: PageServer, position: int = 2, waiting: int = 3
) -> RigCall:
    """Open the page, call, and be told to wait."""
    await opened.open(server.url)
    await opened.press("Call")
    call = await server.next_call()
    call.queue(position, waiting, 58.0, "first-token")
    await opened.until("voiceRtc.status === 'queued'")
    return call


async def text(opened: ChromiumPage, selector: str) -> str:
    return " ".join((await opened.page.locator(selector).inner_text()).split())


async def test_waiting_and_being_served(
    chromium_page: OpenChromium, page_server: PageServer, talking_wav: Path
) -> None:
    opened = await chromium_page(fake_wav=talking_wav)
    call = await wait_in_line(opened, page_server)
    page = opened.page
    assert await text(opened, "#status") == "You are number 2 in line"
    assert await text(opened, "#hint") == "About 1 minute. 3 callers are waiting."
    said = "You are number 2 in line. About 1 minute. 3 callers are waiting."
    assert await text(opened, "#connection") == said
    await expect(page).to_have_title("You are number 2 in line – voice_rtc")
    await expect(page.get_by_text(OFF)).to_be_visible()
    await expect(page.get_by_text("neither heard nor written down")).to_be_visible()
    await expect(page.get_by_label("Message to the agent")).to_be_disabled()
    await expect(page.locator("#figure-time-name")).to_have_text("Waited")
    assert await opened.state("place") == {"position": 2, "waiting": 3, "etaSeconds": 58}
    await call.hears(sound=False)
    call.tone.sounding = True  # the hold message
    await opened.until("voiceRtc.remoteEnergy > 0.001")

    call.queue(1, 2, None, "first-token")
    await expect(page.locator("#status")).to_have_text("You are next in line")
    assert await text(opened, "#hint") == "2 callers are waiting."
    assert await text(opened, "#connection") == said  # so soon it would only disturb

    call.grant()
    await opened.until("voiceRtc.status === 'live'")
    assert await text(opened, "#status") == "It is your turn"
    assert await text(opened, "#connection") == "It is your turn. Connected"
    await expect(page).to_have_title("It is your turn – voice_rtc")
    await expect(page.get_by_text(OFF)).to_be_hidden()
    await expect(page.get_by_label("Message to the agent")).to_be_enabled()
    assert await opened.state("place") is None
    await call.hears(sound=True)
    await expect(page.locator("#status")).to_have_text("Listening")  # it does not say so for ever
    await expect(page).to_have_title("voice_rtc")
    assert opened.problems == []


async def test_mute_and_push_to_talk_are_ready_for_the_turn(
    chromium_page: OpenChromium, page_server: PageServer, talking_wav: Path
) -> None:
    opened = await chromium_page(fake_wav=talking_wav)
    call = await wait_in_line(opened, page_server)
    await opened.press("Mute")
    call.grant()
    await opened.until("voiceRtc.status === 'live'")
    assert await opened.state("muted")
    await call.hears(sound=False)
    await opened.press("Mute")
    await call.hears(sound=True)


async def test_hanging_up_in_line(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    call = await wait_in_line(opened, page_server)
    await opened.press("Hang up")
    await page_server.changes.until(lambda: call.hung_up)
    assert await opened.state("status") == "ended"
    assert await opened.state("place") is None
    await expect(opened.page.locator("#line")).to_be_hidden()
    assert opened.problems == []


async def test_a_lost_connection_calls_again_for_the_place(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    call = await wait_in_line(opened, page_server)
    tried: list[str] = []

    async def no_network(route: Route) -> None:
        tried.append(route.request.url)
        if len(tried) == 1:
            await route.abort("internetdisconnected")
        else:
            await route.continue_()

    await opened.page.route("**/v1/realtime/calls?resume=*", no_network)
    await call.vanish()
    await opened.until("voiceRtc.status === 'returning'")
    assert await text(opened, "#status") == "Getting your place back…"
    assert "Your place in line is kept" in await text(opened, "#hint")
    assert await opened.page.locator("#line > *").count() == 3  # still to be seen
    again = await page_server.next_call(2)
    assert again.resume == "first-token"
    again.queue(2, 3, 40.0, "second-token")
    await opened.until("voiceRtc.status === 'queued'")
    assert (await text(opened, "#connection")).startswith("You are back, your place was kept.")
    assert len(tried) == 2
    assert not call.hung_up  # that would have given the place away

    # A slot was granted while the connection was lost: nobody tells of a place any more.
    await again.vanish()
    third = await page_server.next_call(3)
    assert third.resume == "second-token"
    await opened.until("voiceRtc.status === 'live'")
    assert await text(opened, "#status") == "It is your turn"


async def test_hanging_up_while_the_connection_is_lost_gives_up_the_place(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    call = await wait_in_line(opened, page_server)
    offers = "**/v1/realtime/calls?resume=*"
    await opened.page.route(offers, lambda route: route.abort("internetdisconnected"))
    await call.vanish()
    await opened.until("voiceRtc.status === 'returning'")
    await opened.press("Hang up")
    await page_server.changes.until(lambda: call.hung_up)
    assert await opened.state("status") == "ended"
    await opened.page.unroute(offers)
    await opened.call()  # and the next call is one of its own
    assert (await page_server.next_call(2)).resume == ""


async def test_a_place_that_is_not_kept_any_more(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page(
        init_script="""
          let late = 0;
          const now = Date.now;
          Date.now = () => now() + late;
          window.later = (seconds) => (late += seconds * 1000);"""
    )
    call = await wait_in_line(opened, page_server)
    await opened.page.route("**/v1/realtime/calls?resume=*", lambda route: route.abort())
    async with opened.page.expect_request("**/v1/realtime/calls?resume=*"):
        await call.vanish()
    await opened.page.evaluate("later(30)")
    await opened.until("voiceRtc.lastError?.code === 'place_lost'")
    assert await opened.state("status") == "failed"
    assert "Your place in line was lost" in await text(opened, "#notice")

    await opened.page.unroute("**/v1/realtime/calls?resume=*")
    page_server.refusals.append(Refusal(503, "draining", retry_after=30))
    await opened.press("Call again")
    await opened.until("voiceRtc.lastError?.code === 'draining'")


async def test_a_page_loaded_again_has_its_place(
    chromium_page: OpenChromium, page_server: PageServer, talking_wav: Path
) -> None:
    opened = await chromium_page(fake_wav=talking_wav)
    call = await wait_in_line(opened, page_server)
    await opened.press("Mute")
    await opened.page.reload()
    again = await page_server.next_call(2)
    assert again.resume == "first-token"
    assert not call.hung_up
    assert await opened.page.evaluate("sessionStorage.length") == 0  # a copied tab takes nothing
    again.queue(1, 2, 20.0, "second-token")
    await opened.until("voiceRtc.status === 'queued'")
    assert await text(opened, "#status") == "You are next in line"
    again.grant()
    await opened.until("voiceRtc.status === 'live'")
    assert await opened.state("muted")
    await again.hears(sound=False)

    await opened.page.reload()  # a call that is live is over
    await page_server.changes.until(lambda: again.hung_up)
    await opened.until("window.voiceRtc?.status === 'idle'")


async def test_refusals_with_a_time(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    for code, sentence in (
        ("pool_full", "All lines are busy The server carries as many calls as it can, and"),
        ("overloaded", "The server is too busy It takes no more calls right now."),
        ("draining", "The server is shutting down It takes no new calls."),
    ):
        page_server.refusals.append(Refusal(503, code, retry_after=40))
        await opened.press("Call")
        await opened.until(f"voiceRtc.lastError?.code === '{code}'")
        notice = await text(opened, "#notice")
        assert notice.startswith(sentence)
        assert "Call again in 40 seconds." in notice
        buttons = opened.page.locator("#notice button:visible")
        assert await buttons.all_inner_texts() == ["Call again"]
        await expect(buttons).to_be_enabled()
    await opened.until("document.getElementById('notice-countdown').textContent.startsWith('38 s')")
    page_server.refusals.append(Refusal(503, "pool_full", retry_after=1))
    await opened.press("Call again")
    await expect(opened.page.locator("#notice-countdown")).to_have_text("You can call again now.")
    assert await text(opened, "#connection") == "You can call again now."
    await opened.press("Call again")
    await opened.until("voiceRtc.status === 'live'")
    await expect(opened.page.get_by_role("alert")).to_be_hidden()
    assert len(page_server.calls) == 1


async def test_degraded_for_a_while(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    await opened.call()
    call = await page_server.next_call()
    sentence = "The server is busy: live captions come less often."
    call.send("voice_rtc.degraded", step=1, name="partials_slower", message=sentence)
    news = opened.page.get_by_role("status").filter(has_text=sentence)
    await expect(news).to_be_visible()
    assert (await opened.state("degraded"))["step"] == 1
    assert await opened.state("status") == "live"
    await expect(opened.page.get_by_role("alert")).to_be_hidden()
    call.send("voice_rtc.degraded", step=0, name="normal", message="")
    await expect(news).to_be_hidden()
    assert await opened.state("degraded") is None

    call.send("voice_rtc.degraded", step=2, name="no_partials", message=sentence)
    await expect(news).to_be_visible()
    await opened.press("Hang up")
    await expect(news).to_be_hidden()


async def test_ends_of_the_wait(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    for number, (reason, sentence) in enumerate(
        (
            ("queue_timeout", "It took too long until your turn"),
            ("replaced", "The call goes on elsewhere"),
            ("no_slot", "All lines are busy"),
        ),
        start=1,
    ):
        await opened.press("Call")
        call = await page_server.next_call(number)
        call.queue(1, 1, None, "token")
        await opened.until("voiceRtc.status === 'queued'")
        call.end(reason)
        await opened.until(f"voiceRtc.lastError?.code === '{reason}'")
        await call.vanish()
        assert await opened.state("status") == "failed"
        assert await opened.state("place") is None
        assert sentence in await text(opened, "#notice")


async def test_the_waiting_page_is_for_everybody(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    """Small screens, light and dark, keyboard, reduced motion."""
    opened = await chromium_page(width=390, height=844)
    page = opened.page
    await page.emulate_media(reduced_motion="reduce")
    call = await wait_in_line(opened, page_server, position=60, waiting=100)
    sentence = "The server is very busy: transcripts may be less accurate."
    call.send("voice_rtc.degraded", step=3, name="economy", message=sentence)
    await page.get_by_text(sentence).wait_for()
    for width in (390, 320):
        await page.set_viewport_size({"width": width, "height": 844})
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type] # one of two words
        assert await page.evaluate(CONTRAST) == [], scheme
    moving = "document.getAnimations().filter(a => a.playState === 'running').length"
    assert await page.evaluate(moving) == 0
    await page.emulate_media(reduced_motion="no-preference")
    assert await page.evaluate(moving) == 1

    focused = []
    await page.locator("#call").focus()
    for _ in range(2):
        await page.keyboard.press("Tab")
        focused.append(await page.evaluate("document.activeElement.id"))
    assert focused == ["mute", "ptt"]
    await page.locator("#call").focus()
    await page.keyboard.press("Enter")
    await page_server.changes.until(lambda: call.hung_up)
