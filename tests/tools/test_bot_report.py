"""Figures and checks from what a bot received."""

from __future__ import annotations

import json

import pytest

from tests.tools.bot_stories import (
    ANSWERED,
    LOUD,
    committed,
    created,
    done,
    event,
    frame,
    granted,
    playing,
    understood,
    waiting,
)
from tools.bot_audio import Speaking
from tools.bot_checks import checks_of
from tools.bot_events import Received
from tools.bot_report import (
    BargeInReport,
    BotOptions,
    BotReport,
    Check,
    LineReport,
    Turn,
    TurnReport,
    report_barge_in,
    report_line,
    report_turns,
)
from voice_rtc.core.audio import silence

BARGE_IN = BotOptions(barge_in_seconds=1.0)


def test_lost_frames_are_counted_between_the_first_and_last_audible_one():
    turn = Turn(0, 0.0, Speaking(0.0, 1.0, sent=True))
    frames = [
        frame(1.5, 0, silence(960)),
        frame(2.0, 25, LOUD),
        frame(2.06, 28, LOUD),
        frame(2.08, 29, silence(960)),
    ]
    events = [*ANSWERED[:2], created("r", at=1.2), *ANSWERED[3:]]
    report, _ = report_turns([turn], events, frames)[0]
    assert (report.frames_received, report.frames_expected) == (2, 4)
    assert report.response_seconds == 1.0


CUT = [
    event("output_audio_buffer.cleared", 3.4, response_id="r"),
    event("conversation.item.truncated", 3.4, item_id="i"),
    event(
        "voice_rtc.reply.heard",
        3.4,
        response_id="r",
        text="You",
        complete=False,
        audio_end_ms=900,
    ),
    done("r", "cancelled"),
]
NEXT_ANSWERED = [committed("b"), understood("b", "Stop."), created("s", at=4.5), done("s")]


def barge_in(
    last_audible_at: float, ending: list[Received] = CUT, after: list[Received] = NEXT_ANSWERED
) -> BargeInReport:
    """Spoken over a reply from 3.1 s on, confirmed at 3.4 s unless ``ending`` says else."""
    turns = [
        Turn(0, 0.0, Speaking(0.0, 1.0, sent=True)),
        Turn(4, 3.0, Speaking(3.1, 3.5, sent=True)),
    ]
    first = [committed("a"), understood("a", "Hello."), created("r", at=1.5)]
    events = [*first, playing("started", "r"), *ending, *after]
    frames = [frame(2.0, 0, LOUD), frame(last_audible_at, 60, LOUD), frame(4.6, 200, LOUD)]
    return report_barge_in(turns, events, frames)


def silenced(report: BargeInReport) -> Check:
    checks = checks_of(BARGE_IN, BotReport("", barge_in=report))
    return next(check for check in checks if check.name == "barge-in silenced the reply")


def test_the_times_of_a_barge_in():
    report = barge_in(3.45)
    assert report.silence_seconds == pytest.approx(0.35)
    assert report.silence_after_confirmed_seconds == pytest.approx(0.05)
    assert (report.heard_text, report.heard_complete, report.audio_end_ms) == ("You", False, 900)
    assert report.next_turn_works
    assert not report.ended_before


def test_a_barge_in_is_not_answered_by_a_cancelled_reply():
    assert not barge_in(3.45, after=[*NEXT_ANSWERED[:3], done("s", "cancelled")]).next_turn_works
    assert not barge_in(3.45, after=NEXT_ANSWERED[:2]).next_turn_works


@pytest.mark.parametrize(("last", "passed"), [(3.5, True), (3.69, True), (3.72, False)])
def test_a_reply_that_goes_on_is_not_silenced(last, passed):
    check = silenced(barge_in(last))
    assert check.passed is passed
    assert check.detail == f"{last - 3.4:.3f} s after it was confirmed"


def test_a_reply_whose_sound_ended_before_the_confirmation_is_silent_and_says_so():
    check = silenced(barge_in(3.2))
    assert (check.passed, check.detail) == (True, "the reply ended before")


def test_a_reply_that_was_over_before_the_confirmation_was_not_silenced_and_says_so():
    played = [done("r"), playing("stopped", "r")]
    check = silenced(barge_in(3.2, played))
    assert (check.passed, check.detail) == (False, "the reply ended before")


def test_the_interruption_of_the_next_reply_confirms_nothing():
    played = [done("r"), playing("stopped", "r")]
    next_cut = [
        *NEXT_ANSWERED[:3],
        event("output_audio_buffer.cleared", 4.7, response_id="s"),
        done("s", "cancelled"),
    ]
    report = barge_in(3.2, played, next_cut)
    assert report.silence_after_confirmed_seconds is None


def turn_report(status: str) -> TurnReport:
    return TurnReport(False, "Hello.", "You said", status, 1.0, 2.0, -20.0, 100, 100)


def failing(options: BotOptions, *turns: TurnReport) -> list[str]:
    report = BotReport("", turns=list(turns), barge_in=barge_in(3.45))
    return [check.name for check in checks_of(options, report) if not check.passed]


def test_only_the_reply_that_the_bot_interrupts_may_be_cancelled():
    cut, whole = turn_report("cancelled"), turn_report("completed")
    assert failing(BARGE_IN, cut, whole) == []
    assert failing(BARGE_IN, cut, cut) == ["turn 2 reply completed"]
    assert failing(BotOptions(), cut) == ["turn 1 reply completed"]


def test_a_barge_in_that_never_happened_fails():
    checks = checks_of(BARGE_IN, BotReport(""))
    assert "barge-in happened" in [check.name for check in checks if not check.passed]


def test_a_report_without_checks_has_not_passed():
    assert not BotReport("").passed


def test_how_the_bot_waited_is_reported():
    told = [waiting(2, 1.0), waiting(1, 3.0)]
    assert report_line([*told, granted(4.5), *ANSWERED]) == LineReport([2, 1], 3.5, granted=True)
    assert report_line(told) == LineReport([2, 1], 2.0, granted=False)
    assert report_line(ANSWERED) is None


def test_the_wait_is_in_the_json():
    report = BotReport("", line=LineReport([2, 1], 3.5, granted=True))
    line = json.loads(report.to_json())["line"]
    assert line == {"positions": [2, 1], "waited_seconds": 3.5, "granted": True}
    assert json.loads(BotReport("").to_json())["line"] is None
