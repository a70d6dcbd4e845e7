"""Garbage waits for a moment in which nobody hears, and not for ever."""

import pytest

from voice_rtc.core.collection import CollectionPlan, CollectionRules

RULES = CollectionRules(most_seconds=60.0, most_objects=1000, rest_seconds=2.0)


def plan_after_a_call() -> CollectionPlan:
    plan = CollectionPlan(RULES)
    plan.call_ended(10.0)
    return plan


def test_without_garbage_nothing_is_collected():
    plan = CollectionPlan(RULES)
    for now in range(1000):
        assert plan.decide(now, objects=99, calls=0, hearing=False) is None


@pytest.mark.parametrize(
    ("calls", "hearing", "reason", "at"),
    [(0, False, "idle", 12.0), (3, False, "quiet", 12.0), (3, True, "time", 72.0)],
)
def test_after_a_call_it_comes_when_nobody_hears(calls, hearing, reason, at):
    plan = plan_after_a_call()
    assert plan.decide(at - 0.1, objects=0, calls=calls, hearing=hearing) is None
    assert plan.decide(at, objects=0, calls=calls, hearing=hearing) == reason
    plan.collected()
    assert plan.decide(at + 100, objects=0, calls=calls, hearing=hearing) is None


def test_calls_that_end_one_after_the_other_do_not_put_it_off():
    plan = plan_after_a_call()
    plan.call_ended(11.9)
    assert plan.decide(12.0, objects=0, calls=1, hearing=False) == "quiet"


def test_objects_that_gather_are_collected_without_a_call_that_ended():
    plan = CollectionPlan(RULES)
    assert plan.decide(5.0, objects=100, calls=1, hearing=True) is None
    assert plan.decide(64.9, objects=100, calls=1, hearing=True) is None
    assert plan.decide(65.0, objects=100, calls=1, hearing=True) == "time"


def test_too_many_objects_are_collected_whoever_hears():
    plan = CollectionPlan(RULES)
    assert plan.decide(0.0, objects=1000, calls=9, hearing=True) == "objects"


def test_many_calls_that_ended_do_not_wait_whoever_hears():
    plan = CollectionPlan(RULES)
    urgent = [plan.call_ended(0.0) for _ in range(RULES.most_calls)]
    assert urgent == [False] * (RULES.most_calls - 1) + [True]
    assert plan.decide(0.0, objects=0, calls=9, hearing=True) == "calls"
    plan.collected()
    assert not plan.call_ended(1.0)


def test_many_calls_of_which_none_is_left_are_an_idle_server():
    plan = CollectionPlan(RULES)
    for _ in range(RULES.most_calls):
        plan.call_ended(0.0)
    assert plan.decide(0.0, objects=0, calls=0, hearing=False) == "idle"
