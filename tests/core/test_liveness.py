"""Stories of callers who fall silent, with time as an argument."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from voice_rtc.core.liveness import Liveness, LivenessRules, Step


def live(
    liveness: Liveness, until: float, answers: Callable[[float], bool] = lambda _: False
) -> list[tuple[float, Step]]:
    """Look at each deadline; ``answers`` says whether a question at that time is answered."""
    story: list[tuple[float, Step]] = []
    while not liveness.ended and (now := liveness.next_deadline) <= until:
        for step in liveness.look(now):
            story.append((round(now, 3), step))
            if step is Step.ASK and answers(now) and liveness.heard(now) is Step.RESUME:
                story.append((round(now, 3), Step.RESUME))
    return story


def without_asking(story: list[tuple[float, Step]]) -> list[tuple[float, Step]]:
    return [(now, step) for now, step in story if step is not Step.ASK]


def test_who_sends_is_not_even_asked() -> None:
    liveness = Liveness(LivenessRules(), 0.0)
    for packet in range(1, 1000):
        assert liveness.heard(packet * 0.02) is None
        assert liveness.next_deadline == pytest.approx(packet * 0.02 + 1.5)
        assert liveness.look(packet * 0.02) == []


def test_pauses_of_dtx_are_not_asked_about() -> None:
    liveness = Liveness(LivenessRules(), 0.0)
    for packet in range(1, 100):
        liveness.heard(packet * 0.4)
        assert live(liveness, packet * 0.4 + 0.39) == []


def test_who_vanishes_is_asked_then_suspended_then_ended() -> None:
    story = live(Liveness(LivenessRules(), 10.0), 100.0)
    assert without_asking(story) == [(13.0, Step.SUSPEND), (18.0, Step.END)]
    asked = [now for now, step in story if step is Step.ASK]
    assert asked[:4] == [11.5, 12.0, 12.5, 13.0] and asked[-1] == 17.5


def test_who_is_muted_and_answers_lives_for_ever() -> None:
    story = live(Liveness(LivenessRules(), 0.0), 3600.0, answers=lambda _: True)
    assert without_asking(story) == []
    assert len(story) == 2400  # once in 1.5 s


def test_who_answers_one_question_in_three_lives_too() -> None:
    asked = iter(range(100_000))
    story = live(Liveness(LivenessRules(), 0.0), 3600.0, answers=lambda _: next(asked) % 3 == 2)
    assert without_asking(story) == []


def test_who_comes_back_in_time_goes_on() -> None:
    liveness = Liveness(LivenessRules(), 0.0)
    assert (3.0, Step.SUSPEND) in live(liveness, 7.9)
    assert liveness.suspended
    assert liveness.heard(7.9) is Step.RESUME
    assert not liveness.suspended
    assert liveness.heard(7.92) is None
    assert without_asking(live(liveness, 60.0)) == [(10.92, Step.SUSPEND), (15.92, Step.END)]


def test_nothing_comes_after_the_end() -> None:
    liveness = Liveness(LivenessRules(), 0.0)
    live(liveness, 8.0)
    assert liveness.ended
    assert liveness.heard(8.01) is None
    assert liveness.look(9.0) == []


def test_a_server_that_was_held_up_asks_before_it_judges() -> None:
    liveness = Liveness(LivenessRules(), 0.0)
    assert liveness.look(30.0) == [Step.ASK]
    story = live(liveness, 100.0)
    assert without_asking(story) == [(31.5, Step.SUSPEND), (36.5, Step.END)]


def test_a_short_patience_still_asks_first() -> None:
    rules = LivenessRules(suspend_seconds=0.4, end_seconds=1.0)
    story = live(Liveness(rules, 0.0), 10.0)
    assert story[0] == (0.2, Step.ASK)
    assert without_asking(story) == [(0.4, Step.SUSPEND), (1.0, Step.END)]
