"""The degradation ladder: how fast it goes up and down, and what each step means."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from voice_rtc.core.ladder import (
    NAMES,
    QUEUE_ONLY,
    STEPS,
    Ladder,
    LadderRules,
    LadderStep,
    Readings,
)

RULES = LadderRules(up_seconds=5.0, down_seconds=15.0, critical_up_seconds=1.0)
CALM = Readings(0.2, 0.6, memory_fraction=0.5, queue_age_seconds=0.0, healthy_replicas=1)
SLOW = replace(CALM, final_p95_seconds=0.9)
BETWEEN = replace(CALM, final_p95_seconds=0.5)


class Story:
    """A ladder looked at four times a second."""

    def __init__(self) -> None:
        self.ladder = Ladder(RULES)
        self.now = 0.0
        self.changes: list[tuple[float, LadderStep]] = []

    def live(self, seconds: float, readings: Readings) -> str:
        for _ in range(round(seconds * 4)):
            self.now += 0.25
            change = self.ladder.step(self.now, readings)
            if change is not None:
                self.changes.append((self.now, change))
        return self.ladder.current.name

    @property
    def walked(self) -> list[str]:
        return [change.name for _, change in self.changes]


def test_calm_changes_nothing():
    story = Story()
    assert story.live(100.0, CALM) == "normal"
    assert story.changes == []


def test_pressure_must_last():
    story = Story()
    assert story.live(5.0, SLOW) == "normal"
    assert story.live(0.25, SLOW) == "partials_slower"


def test_pressure_goes_up_step_by_step_to_the_top():
    story = Story()
    story.live(60.0, SLOW)
    assert story.walked == list(NAMES[1:])
    times = [at for at, _ in story.changes]
    assert [b - a for a, b in pairwise(times)] == [5.0] * 4


def test_relief_comes_down_step_by_step_and_slower():
    story = Story()
    story.live(60.0, SLOW)
    story.changes.clear()
    story.live(100.0, CALM)
    assert story.walked == list(reversed(NAMES[:-1]))
    times = [at for at, _ in story.changes]
    assert [b - a for a, b in pairwise(times)] == [15.0] * 4


def test_between_pressure_and_relief_it_stays():
    story = Story()
    story.live(6.0, SLOW)
    assert story.live(300.0, BETWEEN) == "partials_slower"


def test_interrupted_pressure_starts_over():
    story = Story()
    for _ in range(10):
        story.live(4.0, SLOW)
        story.live(1.0, BETWEEN)
    assert story.changes == []


def test_interrupted_relief_starts_over():
    story = Story()
    story.live(6.0, SLOW)
    for _ in range(5):
        story.live(10.0, CALM)
        assert story.live(1.0, BETWEEN) == "partials_slower"


def test_silence_is_relief():
    story = Story()
    story.live(6.0, SLOW)
    assert story.live(20.0, replace(CALM, final_p95_seconds=None)) == "normal"


def test_where_nobody_is_let_in_slow_finals_turn_nobody_away():
    story = Story()
    assert story.live(100.0, replace(SLOW, gated=True)) == "economy"
    assert story.live(11.0, SLOW) == "refuse", "nobody else bounds the number of callers"
    assert story.live(100.0, replace(SLOW, gated=True)) == "refuse", "relief alone leads down"
    critical = replace(CALM, memory_fraction=0.95, gated=True)
    assert Story().live(10.0, critical) == "refuse", "each connection takes memory"


def test_who_waits_does_not_wait_for_an_idle_server():
    story = Story()
    story.live(60.0, SLOW)
    story.changes.clear()
    assert story.live(11.0, replace(CALM, final_p95_seconds=None, leases=0)) == "normal"
    times = [at for at, _ in story.changes]
    assert [b - a for a, b in pairwise(times)] == [2.0] * 4


def test_an_idle_server_without_memory_is_not_calm():
    story = Story()
    assert story.live(60.0, replace(CALM, memory_fraction=0.95, leases=0)) == "refuse"


@pytest.mark.parametrize(
    ("readings", "words"),
    [
        (SLOW, "take 0.90 s, the goal is 0.60 s"),
        (replace(CALM, queue_age_seconds=1.5), "waited 1.50 s"),
        (replace(CALM, memory_fraction=0.95), "95% of the memory"),
    ],
)
def test_the_reason_has_figures(readings, words):
    story = Story()
    story.live(6.0, readings)
    assert words in story.ladder.current.reason
    assert story.ladder.current.since == story.changes[-1][0]


def test_critical_memory_goes_up_faster():
    story = Story()
    story.live(6.5, replace(CALM, memory_fraction=0.94))
    assert story.ladder.current.name == "refuse"


def test_memory_just_below_critical_is_no_relief():
    story = Story()
    story.live(1.5, replace(CALM, memory_fraction=0.94))
    assert story.live(60.0, replace(CALM, memory_fraction=0.91)) == "partials_slower"
    assert story.live(16.0, replace(CALM, memory_fraction=0.89)) == "normal"


@pytest.mark.parametrize(
    "edge",
    [
        replace(CALM, final_p95_seconds=0.6),
        replace(CALM, final_p95_seconds=0.42),
        replace(CALM, queue_age_seconds=1.2),
        replace(CALM, queue_age_seconds=0.6),
        replace(CALM, queue_age_seconds=0.9),
    ],
)
def test_the_bounds_are_neither_pressure_nor_relief(edge):
    story = Story()
    assert story.live(60.0, edge) == "normal"
    story.live(6.0, SLOW)
    assert story.live(60.0, edge) == "partials_slower"


def test_memory_at_the_bound_is_critical():
    story = Story()
    assert story.live(1.25, replace(CALM, memory_fraction=0.93)) == "partials_slower"


def test_a_machine_that_is_always_rather_full_is_normal():
    story = Story()
    assert story.live(300.0, replace(CALM, memory_fraction=0.91)) == "normal"


def test_without_replicas_new_callers_wait_and_then_all_is_as_before():
    story = Story()
    dead = replace(CALM, healthy_replicas=0)
    assert story.live(5.0, dead) == "normal"
    assert story.live(1.0, dead) == "queue_only"
    assert story.ladder.current.reason == "no replica is ready"
    assert story.live(0.25, CALM) == "normal"


def test_a_replica_replaced_quickly_is_not_noticed():
    story = Story()
    for _ in range(5):
        story.live(2.0, replace(CALM, healthy_replicas=0))
        story.live(10.0, CALM)
    assert story.changes == []


def test_without_replicas_a_higher_step_is_kept():
    story = Story()
    story.live(60.0, SLOW)
    assert story.live(6.0, replace(BETWEEN, healthy_replicas=0)) == "refuse"


def test_what_the_steps_mean():
    assert [step.step for step in STEPS] == list(range(len(STEPS)))
    assert [step.partial_factor for step in STEPS] == [1.0, 2.0, None, None, None, None]
    assert [step.economy for step in STEPS] == [False, False, False, True, True, True]
    assert [step.admission for step in STEPS] == ["open"] * 4 + ["queue_only", "refuse"]
    assert STEPS[QUEUE_ONLY].name == "queue_only"
    assert not STEPS[0].sentence and all(step.sentence.endswith(".") for step in STEPS[1:])


def test_rules_may_change_at_run_time():
    story = Story()
    story.ladder.rules = replace(RULES, up_seconds=1.0)
    assert story.live(1.25, SLOW) == "partials_slower"


@pytest.mark.parametrize("seed", range(20))
def test_under_random_readings_it_moves_one_step_at_a_time_and_never_in_haste(seed):
    chance = random.Random(seed)
    ladder, now, last, before = Ladder(RULES), 0.0, 0.0, 0
    for _ in range(400):
        readings = Readings(
            chance.choice((None, 0.1, 0.5, 0.9)), 0.6, chance.choice((0.5, 0.91)),
            chance.choice((0.0, 0.0, 0.8, 2.0)), healthy_replicas=1,
        )  # fmt: skip
        for _ in range(chance.randrange(1, 40)):
            now += 0.5
            change = ladder.step(now, readings)
            if change is None:
                continue
            assert abs(change.step - before) == 1
            assert now - last >= (5.0 if change.step > before else 15.0)
            assert bool(change.reason) == bool(change.step)
            before, last = change.step, now
            assert ladder.current is change and change.name in repr(ladder)
