"""Where the time of a turn goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_rtc.core.latency import STAGES, Point, Quantiles, RecentTurns, TurnClock, TurnTimes

AFTER = tuple(Point)[1:]


def clock(*at: float | None, speech_end: float = 10.0) -> TurnClock:
    """A turn that passed its points at these times; None: not at all."""
    turn = TurnClock(speech_end)
    for point, when in zip(AFTER, at, strict=False):
        if when is not None:
            turn.mark(point, when)
    return turn


def test_each_point_ends_its_stage() -> None:
    turn = TurnClock(10.0)
    assert turn.times() == TurnTimes()
    taken = [
        turn.mark(p, at) for p, at in zip(AFTER, (10.5, 10.75, 11.0, 11.5, 11.625), strict=True)
    ]
    assert taken == [0.5, 0.25, 0.25, 0.5, 0.125]
    assert turn.times() == TurnTimes(0.5, 0.25, 0.25, 0.5, 0.125, response=1.625, saved=0.0)


def test_a_point_is_passed_once() -> None:
    turn = clock(10.5)
    assert turn.mark(Point.COMMITTED, 12.0) is None
    assert turn.times().endpoint == 0.5


def test_what_was_not_reached_is_not_known() -> None:
    assert clock(10.5, 11.0).times() == TurnTimes(0.5, 0.5)
    no_voice = clock(10.5, 11.0, 11.25).times()
    assert no_voice.llm_first_token == 0.25 and no_voice.response is None is no_voice.first_packet


def test_the_stage_behind_a_missing_one_begins_where_the_turn_was_seen_last() -> None:
    assert clock(10.5, 11.0, None, 12.0).times() == TurnTimes(0.5, 0.5, None, 1.0)


def test_an_answer_begun_early_is_ready_with_the_transcript() -> None:
    turn = clock(10.5, 10.75, 10.25, 10.5, 10.8125)
    turn.ask(10.125)
    times = turn.times()
    assert (times.llm_first_token, times.tts_first_audio, times.first_packet) == (0, 0, 0.0625)
    assert times.response == 0.8125
    assert times.saved == 0.375, "the answer took so long, and would have taken it again"


def test_an_answer_begun_early_and_still_late_saves_its_head_start() -> None:
    turn = clock(10.5, 10.75, 11.0, 11.25, 11.25)
    turn.ask(10.25)
    assert turn.times().saved == 0.5


def test_an_answer_begun_with_the_transcript_saves_nothing() -> None:
    turn = clock(10.5, 10.75, 11.0, 11.25)
    assert turn.times().saved == 0.0, "nobody was asked"
    turn.ask(10.25)
    turn.ask(10.75)  # what was begun early did not fit
    assert turn.times().saved == 0.0


@given(st.lists(st.floats(0, 5, allow_nan=False), min_size=5, max_size=5), st.floats(0, 5))
def test_the_stages_add_up_to_the_response(steps: list[float], asked: float) -> None:
    at, passed = 10.0, []
    for step in steps:
        at += step
        passed.append(at)
    turn = clock(*passed)
    turn.ask(10.0 + asked)
    times = turn.times()
    total = sum(getattr(times, stage) for stage in STAGES)
    assert times.response is not None and total == pytest.approx(times.response)
    assert 0.0 <= times.saved <= at - 10.0


@given(st.lists(st.none() | st.floats(0, 20), min_size=5, max_size=5), st.permutations(AFTER))
def test_no_order_of_points_makes_time_negative(at: list[float | None], order: list[Point]) -> None:
    turn = TurnClock(10.0)
    for point in order:
        when = at[point - 1]
        if when is not None:
            turn.mark(point, when)
    times = turn.times()
    for point, stage in zip(AFTER, STAGES, strict=True):
        known = getattr(times, stage)
        assert (known is None) is (at[point - 1] is None)
        assert known is None or known >= 0.0


def test_the_newest_turns_are_summed_up() -> None:
    recent = RecentTurns(20)
    assert recent.quantiles() == {} and recent.outcomes() == {} and len(recent) == 0
    for number in range(30):
        recent.add(TurnTimes(endpoint=float(number)), "cut")
    recent.add(TurnTimes(endpoint=1.0, response=2.0, saved=0.5), "heard")
    assert len(recent) == 20 == recent.most
    assert recent.outcomes() == {"cut": 19, "heard": 1}
    found = recent.quantiles()
    assert found["endpoint"] == Quantiles(20, p50=19.0, p95=28.0)
    assert found["response"] == Quantiles(1, 2.0, 2.0)
    assert found["saved"] == Quantiles(20, 0.0, 0.0)
    assert "stt" not in found
