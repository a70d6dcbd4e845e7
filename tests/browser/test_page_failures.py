"""Each failure that the call page can meet ends in a sentence that says what to do."""

from __future__ import annotations

import pytest

from .conftest import ChromiumPage, OpenChromium
from .page_server import PageServer, Refusal

pytestmark = pytest.mark.browser

TEXT_CALL = "Call without a microphone"


async def notice(opened: ChromiumPage) -> str:
    """What the alert says, buttons included; the page must show one."""
    alert = opened.page.get_by_role("alert")
    await alert.wait_for()
    return " ".join((await alert.inner_text()).split())


async def test_refused_calls(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    for code, status, sentence in (
        ("pool_full", 503, "All lines are busy"),
        ("overloaded", 503, "The server is too busy"),
        ("draining", 503, "The server is shutting down It takes no new calls."),
        ("rate_limited", 429, "Too many calls from here"),
        ("unauthorized", 401, "The server wants a key"),
        ("bad_offer", 400, "does not understand this browser's offer"),
        ("engine_unavailable", 502, "The speech engines could not be started"),
        ("never_heard_of", 500, "The server says: said by the server"),
    ):
        page_server.refusals.append(Refusal(status, code))
        await opened.press("Call")
        await opened.until(f"voiceRtc.lastError?.code === '{code}'")
        assert sentence in await notice(opened), code
        assert await opened.state("status") == "failed"
    await opened.press("Call again")
    await opened.until("voiceRtc.status === 'live'")
    assert await opened.page.get_by_role("alert").count() == 0


async def test_loading_engines_are_waited_for(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    page_server.refusals.append(Refusal(503, "engines_loading", retry_after=2))
    await opened.open(page_server.url)
    await opened.press("Call")
    await opened.page.get_by_text("Calling again in 2 s.").wait_for()
    assert "still loading Nothing to do" in await notice(opened)
    await opened.until("voiceRtc.status === 'live'")
    await opened.press("Hang up")

    page_server.refusals.append(Refusal(503, "engines_loading", retry_after=60))
    await opened.press("Call")
    await opened.until("voiceRtc.status === 'loading'")
    await opened.press("Cancel")
    assert await opened.state("status") == "ended"
    assert len(page_server.calls) == 1

    page_server.readiness.update(status="failed", detail="The model cannot be read.", engines=[])
    page_server.refusals.append(Refusal(503, "engines_loading", retry_after=60))
    await opened.open(page_server.url)
    await opened.until("voiceRtc.readiness?.status === 'failed'")
    await opened.press("Call")
    assert "The speech engines could not be started" in await notice(opened)


async def test_refused_microphone_and_a_text_call(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page(microphone="refused")
    await opened.open(page_server.url)
    await opened.press("Call")
    await opened.until("voiceRtc.lastError?.code === 'microphone_refused'")
    assert "The microphone is blocked Allow the microphone" in await notice(opened)
    assert page_server.calls == []

    await opened.press(TEXT_CALL)
    await opened.until("voiceRtc.status === 'live'")
    call = await page_server.next_call()
    assert await opened.page.evaluate("document.activeElement.id") == "text"
    assert await opened.page.get_by_role("button", name="Mute").is_disabled()
    await opened.page.keyboard.type("Hello")
    await opened.page.keyboard.press("Enter")
    await call.next_messages(
        "output_audio_buffer.clear", "conversation.item.create", "response.create"
    )
    call.caller_types("Hello")
    call.agent_starts("Hello to you.")
    await opened.until("voiceRtc.captions.length === 2 && voiceRtc.remoteEnergy > 0.001")
    await call.hears(sound=False)  # packets come, so that the server knows that the page lives
    assert opened.problems == []


async def test_missing_and_busy_microphones(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    for name, sentence in (
        ("NotFoundError", "No microphone was found Plug one in"),
        ("NotReadableError", "The microphone is in use Another program holds it."),
    ):
        await opened.page.evaluate(
            """name => navigator.mediaDevices.getUserMedia =
                 () => Promise.reject(new DOMException("no", name))""",
            name,
        )
        await opened.press("Call")
        text = await notice(opened)
        assert sentence in text
        assert TEXT_CALL in text
        await opened.page.evaluate("delete navigator.mediaDevices.getUserMedia")
        await opened.press("Call again")
        await opened.until("voiceRtc.status === 'live'")
        await opened.press("Hang up")


async def test_unplugged_microphone(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page(
        init_script="""
          const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          navigator.mediaDevices.getUserMedia = async (wanted) => {
            const stream = await open(wanted);
            window.unplug = () => stream.getAudioTracks()[0].dispatchEvent(new Event("ended"));
            return stream;
          };"""
    )
    await opened.open(page_server.url)
    await opened.call()
    await opened.page.evaluate("unplug()")
    assert "The microphone was disconnected" in await notice(opened)
    assert await opened.state("status") == "live"
    await opened.press("Dismiss")
    assert await opened.page.get_by_role("alert").count() == 0
    assert await opened.page.evaluate("document.activeElement.id") == "call"


async def test_page_without_https(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(f"http://insecure.test:{page_server.port}/")
    assert not await opened.page.evaluate("isSecureContext")
    await opened.press("Call")
    assert "needs a secure page Browsers give the microphone only" in await notice(opened)
    await opened.press(TEXT_CALL)
    await opened.until("voiceRtc.status === 'live'")


async def test_server_that_is_down(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    await page_server.stop_listening()
    await opened.press("Call")
    assert "The server does not answer Check that it is running" in await notice(opened)
    await page_server.start()
    await opened.press("Call again")
    await opened.until("voiceRtc.status === 'live'")


async def test_calls_ended_by_the_server(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    endings = (
        ("server_shutdown", "The server is shutting down It ended the call."),
        ("max_duration", "The call reached its maximum length"),
        ("idle", "Nobody said anything for too long"),
        ("peer_gone", "The connection was lost"),
        ("connect_timeout", "No sound connection came about"),
        ("no_slot", "All lines are busy"),
        ("engine_failed", "The speech recognition failed"),
        ("media_stalled", "Your audio stopped arriving"),
        ("lease_lost", "The call lost its place at the speech recogniser"),
        ("internal_error", "Something went wrong on the server"),
        ("never_heard_of", "The server says: said by the server"),
    )
    for number, (reason, sentence) in enumerate(endings, start=1):
        await opened.call()
        call = await page_server.next_call(number)
        call.end(reason)
        await opened.until(f"voiceRtc.lastError?.code === '{reason}'")
        await call.vanish()
        assert not call.hung_up  # the call was over: nothing to tell the server
        text = await notice(opened)
        assert sentence in text
        assert "Call again" in text
    assert await opened.state("status") == "failed"


async def test_lost_connection(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    await opened.call()
    call = await page_server.next_call()
    call.caller_says("Are you there?")
    await opened.until("voiceRtc.captions.length === 1")
    await call.vanish()
    await opened.until("voiceRtc.lastError?.code === 'connection_lost'")
    assert "The connection was lost Check your network" in await notice(opened)
    assert len(await opened.state("captions")) == 1  # what was said stays readable
    await opened.press("Call again")
    await opened.until("voiceRtc.status === 'live'")
    assert await opened.state("captions") == []


async def test_gap_in_the_connection(chromium_page: OpenChromium, page_server: PageServer) -> None:
    """A short gap is said and waited for; a failed connection ends the call."""
    opened = await chromium_page(
        init_script="""
          let forced = "";
          const peers = [];
          window.RTCPeerConnection = class extends RTCPeerConnection {
            constructor(...args) { super(...args); peers.push(this); }
            get connectionState() { return forced || super.connectionState; }
          };
          window.force = (state) => {
            forced = state;
            peers.at(-1).dispatchEvent(new Event("connectionstatechange"));
          };"""
    )
    await opened.open(page_server.url)
    await opened.call()
    call = await page_server.next_call()
    await opened.page.evaluate("force('disconnected')")
    assert await opened.state("status") == "interrupted"
    assert "interrupted" in await opened.page.locator("#status").inner_text()
    assert "interrupted" in await opened.page.locator("#connection").inner_text()
    await opened.page.evaluate("force('connected')")
    assert await opened.state("status") == "live"
    await opened.page.evaluate("force('failed')")
    assert await opened.state("status") == "failed"
    assert "The connection was lost" in await notice(opened)
    await page_server.changes.until(lambda: call.hung_up)


async def test_blocked_sound(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page(
        init_script="""
          const play = HTMLMediaElement.prototype.play;
          HTMLMediaElement.prototype.play = function () {
            HTMLMediaElement.prototype.play = play;
            return Promise.reject(new DOMException("no", "NotAllowedError"));
          };"""
    )
    await opened.open(page_server.url)
    await opened.call()
    assert "The browser holds the sound back" in await notice(opened)
    await opened.press("Start sound")
    call = await page_server.next_call()
    call.agent_starts("Hello.")
    await opened.until("voiceRtc.remoteEnergy > 0.001")
    assert await opened.page.get_by_role("alert").count() == 0


async def test_trouble_that_does_not_end_the_call(
    chromium_page: OpenChromium, page_server: PageServer
) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    await opened.call()
    call = await page_server.next_call()

    item = call.caller_starts()
    kind = "conversation.item.input_audio_transcription.failed"
    call.send(kind, item_id=item, error={"message": "the engine died"})
    await opened.until("voiceRtc.captions[0]?.phase === 'failed'")
    assert "could not be transcribed" in await opened.page.locator("#captions").inner_text()

    # Saying that the reply was over already would only puzzle the caller.
    call.send("error", error={"code": "response_cancel_not_active", "message": "too late"})
    details = {"type": "failed", "error": {"code": "llm_timeout", "message": "It took too long."}}
    response = {"id": "resp_x", "status": "failed", "status_details": details}
    call.send("response.done", response=response)
    await opened.until("voiceRtc.lastError !== null")
    assert "The agent could not answer It took too long." in await notice(opened)

    call.send("voice_rtc.going_away", reason="drain", deadline_seconds=19.2)
    await opened.until("voiceRtc.lastError.code === 'going_away'")
    assert "within 20 seconds" in await notice(opened)
    assert await opened.state("status") == "live"
