"""web/line.js, web/words.js and web/errors.js: what is made of the waiting line, without a call."""

from __future__ import annotations

from typing import Any

import pytest

from voice_rtc.call.call import REASONS

from .conftest import ChromiumPage, OpenChromium
from .page_server import PageServer

pytestmark = pytest.mark.browser

STORY = """async (story) => {
  const { WaitingLine } = await import("/static/line.js");
  const line = new WaitingLine();
  return story.map(([now, step, ...place]) => {
    let meant = null;
    if (step === "lost") line.doubt();
    else if (step === "settled") meant = line.settle();
    else meant = line.apply({
      type: `voice_rtc.queue.${step}`, position: place[0], waiting: place[1],
      eta_seconds: place[2] ?? null, resume_token: "token",
    }, now);
    return [meant, line.place?.position ?? null, line.announcement];
  });
}"""

CALL = """async ([file, name, ...given]) => {
  return (await import(`/static/${file}.js`))[name](...given);
}"""


@pytest.fixture
async def opened(chromium_page: OpenChromium, page_server: PageServer) -> ChromiumPage:
    page = await chromium_page()
    await page.open(page_server.url)
    return page


async def test_a_screen_reader_is_told_news_and_seldom(opened: ChromiumPage) -> None:
    story: list[list[Any]] = [
        [0, "updated", 3, 3, 100],
        [5, "updated", 3, 4, 95],  # the same place: no news
        [6, "updated", 2, 3, 60],  # news, but so soon
        [20, "updated", 2, 3, 55],
        [60, "updated", 1, 1, None],
        [61, "granted"],
    ]
    third = "You are number 3 in line. About 2 minutes. 3 callers are waiting."
    second = "You are number 2 in line. About 1 minute. 3 callers are waiting."
    next_ = "You are next in line. Nobody else is waiting."
    assert await opened.page.evaluate(STORY, story) == [
        ["moved", 3, third],
        ["moved", 3, third],
        ["moved", 2, third],
        ["moved", 2, second],
        ["moved", 1, next_],
        ["granted", None, ""],
    ]


async def test_a_lost_connection_keeps_the_place_or_the_slot(opened: ChromiumPage) -> None:
    story: list[list[Any]] = [
        [0, "updated", 2, 2],
        [1, "lost"],
        [2, "updated", 2, 2],  # at once, however short ago the last announcement was
        [3, "lost"],
        [4, "updated", 4, 4],
        [5, "settled"],
        [6, "lost"],
        [7, "settled"],  # granted meanwhile: no place was told
        [8, "granted"],  # to who does not wait
    ]
    place = "You are number 2 in line. 2 callers are waiting."
    back = f"You are back, your place was kept. {place}"
    worse = "You are back in line. You are number 4 in line. 4 callers are waiting."
    assert await opened.page.evaluate(STORY, story) == [
        ["moved", 2, place],
        [None, 2, place],
        ["back", 2, back],
        [None, 2, back],
        ["back", 4, worse],
        [False, 4, worse],
        [None, 4, worse],
        [True, None, ""],
        [None, None, ""],
    ]


async def test_estimates(opened: ChromiumPage) -> None:
    for seconds, words in (
        (0, "Less than a minute"),
        (30, "About 1 minute"),
        (89, "About 1 minute"),
        (90, "About 2 minutes"),
        (3600, "About 60 minutes"),
        (3660, "More than an hour"),
    ):
        assert await opened.page.evaluate(CALL, ["line", "etaWords", seconds]) == words


async def test_the_picture_of_a_long_line_stays_small(opened: ChromiumPage) -> None:
    short = {"position": 2, "waiting": 3}
    ahead, me, behind = ({"kind": kind} for kind in ("ahead", "me", "behind"))
    marks = await opened.page.evaluate(CALL, ["line", "lineMarks", short])
    assert marks == [ahead, me, behind]
    long = {"position": 60, "waiting": 100}
    marks = await opened.page.evaluate(CALL, ["line", "lineMarks", long])
    assert marks == [*[ahead] * 4, {"more": 55}, me, *[behind] * 4, {"more": 36}]


async def test_every_end_of_a_call_has_a_sentence(opened: ChromiumPage) -> None:
    unknown = await opened.page.evaluate(CALL, ["errors", "noticeFor", "never_heard_of"])
    notices = {}
    for reason in REASONS:
        if await opened.page.evaluate(CALL, ["errors", "isQuietEnd", reason]):
            continue
        notices[reason] = await opened.page.evaluate(CALL, ["errors", "noticeFor", reason])
        assert notices[reason]["title"] != unknown["title"], reason
        assert notices[reason]["text"].endswith("."), reason
    assert set(REASONS) - set(notices) == {"hangup"}
