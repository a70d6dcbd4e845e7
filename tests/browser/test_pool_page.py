"""The pool page in Chromium, over a scripted server: what it shows, and what it lets one do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Locator, expect

from signaling import pool_view
from tests.support.pool_status import TOKEN, PoolRig, call_id
from voice_rtc.errors import Draining

from .conftest import ChromiumPage, OpenChromium

pytestmark = pytest.mark.browser

FIRST = call_id(1)


@pytest.fixture(autouse=True)
def quick_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten events a second: what changes is seen at once."""
    monkeypatch.setattr(pool_view, "FEED_SECONDS", 0.1)


@pytest.fixture
async def rig() -> AsyncIterator[PoolRig]:
    async with PoolRig() as running:
        yield running


async def show(opened: ChromiumPage, rig: PoolRig, token: str = "") -> None:
    """Open the page and wait until it is live."""
    await opened.page.goto(f"{rig.url}/pool" + (f"#token={token}" if token else ""))
    await expect(opened.page.locator("#live-text")).to_have_text("Live")


def rows(opened: ChromiumPage, table: str) -> Locator:
    return opened.page.locator(f"#{table} > *")


async def text_of(opened: ChromiumPage, selector: str) -> str:
    return " ".join((await opened.page.locator(selector).inner_text()).split())


async def test_the_figures_of_a_busy_server(chromium_page: OpenChromium, rig: PoolRig) -> None:
    opened = await chromium_page()
    await show(opened, rig)
    page = opened.page
    await expect(page.locator("#verdict-text")).to_have_text("Full: 7 callers are waiting")
    await expect(page.locator("#verdict")).to_have_attribute("data-level", "bad")
    await expect(page).to_have_title("Full: 7 callers are waiting – voice_rtc pool")
    assert await text_of(opened, ".slots-figure") == "18 of 18 slots leased, 6 out of service"
    tiles = await text_of(opened, "#tiles")
    for words in ("Waiting 7 longest 1m 38s", "p95 410 ms goal 600 ms", "CPU 46 % of 16 cores",
                  "Quality normal step 0 of 5", "Memory 30.7 GB of 128 GB, 6.2 GB ours",
                  "GPU memory, 2 GPUs 141 GB of 163 GB"):  # fmt: skip
        assert words in tiles
    cells = page.get_by_role("img", name="Slots: 18 leased, 6 quarantined")
    await expect(cells.locator("[data-cell=leased]")).to_have_count(18)
    await expect(rows(opened, "alerts")).to_have_count(2)
    assert "Critical Replica shared-2 is in quarantine" in await text_of(opened, "#alerts")

    replicas = page.get_by_role("table", name="Loaded speech recognition engines")
    sick = replicas.get_by_role("row", name="shared-2")
    await expect(sick.get_by_role("cell").first).to_contain_text("quarantined")
    await expect(sick).to_contain_text("3 failures")
    await expect(rows(opened, "line")).to_have_count(7)
    assert "1 rtc_be1e… 1m 38s 14 s" in await text_of(opened, "#line")
    await expect(rows(opened, "line").nth(2)).to_contain_text("(away)")
    await expect(rows(opened, "line").nth(6)).to_contain_text("–")  # no estimate is no zero
    assert "NVIDIA" not in await text_of(opened, "#gpus")
    assert "of 81.6 GB" in await text_of(opened, "#gpus")
    await expect(page.locator("#ladder [aria-current=step]")).to_contain_text("as configured")
    assert "replica shared-2 quarantined" in await text_of(opened, "#events")

    await expect(rows(opened, "calls")).to_have_count(25)
    first = rows(opened, "calls").first
    for words in (FIRST[:8], "caller speaks", "slot 1 · shared-1", "505 ms", "84 ms", "859 ms"):
        await expect(first).to_contain_text(words)
    assert FIRST not in await page.content()
    await expect(first.get_by_role("button", name="Hang up")).to_be_disabled()
    bars = await first.locator(".waterfall span").evaluate_all(
        "spans => spans.map(span => span.getBoundingClientRect().width)"
    )
    assert bars[0] > bars[2] > bars[1] > bars[3] > bars[4] > 0  # 505, 190, 84, 71, 9 ms

    turns = page.get_by_role("table", name="How long the stages of the newest turns took")
    pause = turns.get_by_role("row", name="pause").get_by_role("cell")
    assert await pause.all_inner_texts() == ["645 ms", "780 ms"]
    await expect(rows(opened, "turns")).to_have_count(6)  # nothing was saved: no row
    await expect(page.locator("#turns-note")).to_have_text("Not heard: 1 cut before a sound.")
    await expect(page.locator("#turns-count")).to_have_text("newest 60 turns")
    await page.get_by_role("searchbox").fill("waiting")
    await expect(rows(opened, "calls")).to_have_count(7)

    slots = page.get_by_role("slider", name="Slots, time")
    assert "leased 18, slots 18, waiting 7" in str(await slots.get_attribute("aria-valuetext"))
    await expect(page.locator("#chart-leased-summary")).to_contain_text("from 0 to 7")
    await slots.focus()
    await page.keyboard.press("Home")
    assert "slots 16, waiting 0" in str(await slots.get_attribute("aria-valuetext"))
    assert await page.locator(".chart-cursor line").count() == 6  # all charts read that moment
    assert opened.problems == []


async def test_it_follows_what_happens(chromium_page: OpenChromium, rig: PoolRig) -> None:
    opened = await chromium_page()
    await show(opened, rig)
    page = opened.page
    await page.evaluate("window.row = document.querySelector('#calls tr')")
    before = await page.locator(".chart-line").first.get_attribute("d")
    rig.server.at = 10.0  # two points later
    rig.server.is_troubled, rig.server.queued, rig.server.leased = False, 0, 5
    await expect(page.locator("#verdict-text")).to_have_text("All well: 19 slots free")
    await expect(rows(opened, "calls")).to_have_count(5)
    assert await page.evaluate("window.row.isConnected")  # rows are kept, and the focus in them
    await expect(page.get_by_text("No alerts.")).to_be_visible()
    await expect(page.locator("#alerts-news")).to_contain_text("Alert over: line long.")
    await expect(page.get_by_text("Nobody is waiting.")).to_be_visible()
    assert await page.locator(".chart-line").first.get_attribute("d") != before

    rig.server.step = 4
    await expect(page.locator("#verdict-text")).to_have_text("Overloaded: new calls have to wait")
    await expect(page.locator("#ladder [aria-current=step]")).to_contain_text("new calls wait")
    rig.server.has_pool = False
    await expect(page.locator("#verdict-text")).to_have_text("The speech engines are loading")
    await expect(page.get_by_text("Loading Whisper.")).to_be_visible()
    await expect(page.get_by_text("No replica is loaded.")).to_be_visible()
    await expect(page.locator("#tiles")).to_contain_text("–")
    assert opened.problems == []


async def test_the_token_and_an_action(chromium_page: OpenChromium, rig: PoolRig) -> None:
    opened = await chromium_page()
    page = opened.page
    await show(opened, rig, "nonsense")
    await expect(page.get_by_role("alert").filter(has_text="token in the address")).to_be_visible()
    assert page.url == f"{rig.url}/pool"  # it does not stay in the address
    assert await page.evaluate("sessionStorage.length") == 0
    await expect(page.get_by_role("button", name="Measure again")).to_be_disabled()

    await opened.press("Unlock actions")
    await page.get_by_label("Token").fill("guess")
    await opened.press("Unlock")
    await expect(page.locator("#token-result")).to_have_text("This is not the server's token.")
    await page.get_by_label("Token").fill(TOKEN)
    await opened.press("Unlock")
    await expect(page.locator("#lock")).to_have_text("Lock actions")
    await expect(page.locator("#calls [title]").first).to_have_attribute("title", FIRST)

    # Nothing is done before the question is answered.
    await rows(opened, "calls").first.get_by_role("button", name="Hang up").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text(FIRST)
    await dialog.get_by_role("button", name="Cancel").click()
    assert rig.server.done == []
    await rows(opened, "calls").first.get_by_role("button", name="Hang up").click()
    await dialog.get_by_role("button", name="Hang up").click()
    await expect(dialog.get_by_role("status")).to_have_text("The call is being ended.")
    assert rig.server.done == [("end", f"{FIRST} hangup")]
    await dialog.get_by_role("button", name="Close").click()
    await expect(rows(opened, "calls")).to_have_count(24)

    # What the server refuses is said.
    rig.server.fails_with = Draining()
    await opened.press("Refuse new calls")
    await dialog.get_by_role("button", name="Refuse new calls").click()
    await expect(dialog.get_by_role("status")).to_contain_text("takes no new calls")
    await dialog.get_by_role("button", name="Close").click()
    opened.problems.clear()  # Chromium notes the answers 401 and 503 by itself

    await page.reload()
    await expect(page.locator("#lock")).to_have_text("Lock actions")  # this tab remembers
    await opened.press("Lock actions")
    await expect(page.locator("#lock")).to_have_text("Unlock actions")
    assert await page.evaluate("sessionStorage.length") == 0
    assert opened.problems == []


async def test_an_action_by_keyboard_alone(chromium_page: OpenChromium, rig: PoolRig) -> None:
    opened = await chromium_page()
    await show(opened, rig, TOKEN)
    page = opened.page
    await expect(page.locator("#lock")).to_have_text("Lock actions")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.keyboard.press("Enter")
    for _ in range(80):
        await page.keyboard.press("Tab")
        name = await page.evaluate("document.activeElement.getAttribute('aria-label')")
        if name == "Restart shared-2":
            break
    assert name == "Restart shared-2"
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "action-cancel"  # nothing by mistake
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#action-result")).to_contain_text("is being replaced")
    await page.keyboard.press("Escape")
    assert await page.evaluate("document.activeElement.getAttribute('aria-label')") == name
    assert rig.server.done == [("restart", "shared-2")]
    await expect(page.locator("#replicas [data-state=starting]")).to_be_visible()
    assert opened.problems == []


async def test_a_lost_connection(chromium_page: OpenChromium, rig: PoolRig) -> None:
    opened = await chromium_page()
    await show(opened, rig)
    page = opened.page
    await rig.stop()
    banner = page.get_by_role("alert").filter(has_text="Stale since")
    await expect(banner).to_contain_text("The figures below are old.")
    await expect(page.locator("#live-text")).to_have_text("Not connected")
    dimmed = "getComputedStyle(document.querySelector('.overview > *')).opacity"
    assert float(await page.evaluate(dimmed)) < 1
    rig.server.queued = 2
    await rig.start()
    await opened.press("Try now")
    await expect(page.locator("#verdict-text")).to_have_text("Full: 2 callers are waiting")
    await expect(page.locator("#stale")).to_be_hidden()
    assert await page.evaluate(dimmed) == "1"
    await rig.stop()
    await expect(banner).to_be_visible()
    await rig.start()
    await expect(page.locator("#stale")).to_be_hidden()  # and by itself


@pytest.fixture
async def closed_rig() -> AsyncIterator[PoolRig]:
    """Shows nothing without the token."""
    async with PoolRig(open_status=False) as running:
        yield running


async def test_a_phone_and_a_server_for_operators_only(
    chromium_page: OpenChromium, closed_rig: PoolRig
) -> None:
    width = 360
    opened = await chromium_page(width=width, height=740, color_scheme="dark")
    page = opened.page
    await page.goto(f"{closed_rig.url}/pool")
    await expect(page.get_by_role("alert")).to_contain_text("to operators only")
    await expect(page.get_by_role("main")).to_be_hidden()
    await opened.press("Enter the token")
    await page.get_by_label("Token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.locator("#live-text")).to_have_text("Live")
    opened.problems.clear()  # Chromium notes the answer 401 by itself

    await expect(rows(opened, "calls")).to_have_count(8)
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    cut = await page.evaluate(
        """[...document.querySelectorAll("main .card *:not(.hidden, .hidden *, thead, thead *)")]
             .filter(each => each.getClientRects().length)
             .filter(each => each.getBoundingClientRect().right > innerWidth)
             .map(each => each.outerHTML.slice(0, 80))"""
    )
    assert cut == []
    small = await page.evaluate(
        """[...document.querySelectorAll("main button")]
             .filter(each => each.getClientRects().length)
             .filter(each => each.getBoundingClientRect().height < 40).length"""
    )
    assert small == 0  # fingers are wide
    await opened.press("Show all 25")
    await expect(rows(opened, "calls")).to_have_count(25)
    assert opened.problems == []
