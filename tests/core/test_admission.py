"""The admission gate: when it closes and opens, how many slots it allows, and that it is steady."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from voice_rtc.core.admission import UNKNOWN_LOAD, AdmissionGate, GateRules, ServerLoad

GATE = GateRules(goal_seconds=0.6, floor=2, most=40, dwell_seconds=5.0, window_seconds=20.0)


class GateStory:
    """A gate, fed with four finals a second."""

    def __init__(self, slots: int = 20, rules: GateRules = GATE) -> None:
        self.gate = AdmissionGate(rules, slots)
        self.now = 0.0

    def live(
        self,
        seconds: float,
        final: float | None,
        leased: int,
        waiting: int = 0,
        load: ServerLoad = UNKNOWN_LOAD,
    ) -> str:
        """How the gate stands after so many seconds of such finals."""
        for _ in range(round(seconds * 4)):
            self.now += 0.25
            if final is not None:
                self.gate.observe(self.now, final)
            self.decision = self.gate.decide(self.now, leased, waiting, load)
        return self.decision.state

    @property
    def slots(self) -> int:
        return self.decision.slots

    def slots_or(self, start: int) -> int:
        return self.decision.slots if hasattr(self, "decision") else start


def test_quick_finals_keep_it_open_and_its_size():
    story = GateStory()
    assert story.live(60.0, 0.2, leased=10) == "open"
    assert (story.slots, story.decision.reason) == (20, "")


def test_slow_finals_close_it_and_shrink_it_to_what_is_leased():
    story = GateStory()
    assert story.live(5.0, 0.9, leased=12) == "open"
    assert story.live(3.0, 0.9, leased=12) == "queue_only"
    assert story.slots == 12
    assert story.live(3.0, 0.9, leased=9) == "queue_only"
    assert story.slots == 9
    assert story.decision.reason == "Final transcripts take 0.9 s; the goal is 0.6 s."


def test_a_short_peak_does_not_close_it():
    story = GateStory()
    story.live(30.0, 0.2, leased=12)
    story.live(0.5, 3.0, leased=12)
    assert story.live(30.0, 0.2, leased=12) == "open"
    assert story.slots == 20


def test_it_opens_again_only_well_below_the_goal():
    story = GateStory()
    story.live(10.0, 0.9, leased=12)
    assert story.live(60.0, 0.55, leased=12) == "queue_only"
    assert story.live(30.0, 0.4, leased=12) == "open"


def test_it_opens_again_when_nothing_is_measured_any_more():
    story = GateStory()
    story.live(10.0, 0.9, leased=12)
    assert story.live(60.0, None, leased=0) == "open"


def test_it_does_not_flap():
    story = GateStory()
    changes = 0
    before = "open"
    for k in range(100):
        now = story.live(1.0, 0.65 if k % 2 else 0.55, leased=12)
        changes += now != before
        before = now
    assert changes <= 1


def test_it_grows_while_somebody_waits_and_finals_are_quick():
    story = GateStory(slots=10)
    story.live(8.0, 0.2, leased=10, waiting=5)
    assert story.slots == 11
    story.live(8.0, 0.2, leased=10, waiting=5)
    assert story.slots == 11  # the new slot is not even used
    story.live(300.0, 0.2, leased=100, waiting=5)
    assert story.slots == 40  # no further


@pytest.mark.parametrize(
    ("final", "leased", "waiting"), [(0.2, 10, 0), (0.45, 10, 5), (0.2, 9, 5), (None, 10, 5)]
)
def test_it_does_not_grow_without_need_or_measure(final, leased, waiting):
    story = GateStory(slots=10)
    story.live(60.0, final, leased=leased, waiting=waiting)
    assert story.slots == 10


def test_after_a_shrink_it_grows_again():
    story = GateStory()
    story.live(6.25, 0.9, leased=12)
    assert story.slots == 12
    assert story.live(8.0, 0.2, leased=4, waiting=3) == "open"
    assert story.slots == 5  # finals took half as long again as they should
    story.live(6.0, 0.2, leased=5, waiting=3)
    assert story.slots == 6  # and up to what was measured at the start
    story.live(30.0, 0.2, leased=20, waiting=3)
    assert story.slots == 10  # not to where it was too much, for a minute
    story.live(60.0, 0.2, leased=20, waiting=3)
    assert story.slots >= 20
    story.live(200.0, 0.2, leased=40, waiting=3)
    assert story.slots == 40


def test_it_keeps_its_floor():
    story = GateStory()
    story.live(10.0, 0.9, leased=0)
    assert story.slots == 2


def test_its_bounds_may_change_under_it():
    story = GateStory()
    story.gate.rules = replace(GATE, most=5)
    story.live(1.0, 0.2, leased=10)
    assert story.slots == 5


def test_a_few_finals_say_nothing():
    gate = AdmissionGate(GATE, 20)
    for now in (0.0, 5.0, 10.0, 15.0, 40.0, 60.0):
        gate.observe(now, 9.0)
        assert gate.decide(now, 10, 0).state == "open"


def test_memory_of_the_gate_is_bounded():
    gate = AdmissionGate(replace(GATE, window_seconds=1e9), 20)
    for k in range(5000):
        gate.observe(k / 1000, 0.2)
    assert len(gate._finals) <= 512


def test_it_does_not_open_for_those_who_were_too_many():
    story = GateStory()
    story.live(6.25, 0.65, leased=20, waiting=5)
    assert story.live(8.0, 0.2, leased=20, waiting=5) == "open"
    assert story.slots == 12, "a slot is granted only when nine have left"


@pytest.mark.parametrize(("final", "slots"), [(0.61, 12), (0.75, 10), (1.0, 7), (5.0, 5)])
def test_it_retreats_by_as_much_as_finals_were_late(final, slots):
    story = GateStory()
    story.live(6.25, final, leased=20)
    assert story.live(8.0, 0.1, leased=0) == "open"
    assert story.slots == slots


def test_without_finals_it_stays_closed_for_a_whole_window():
    story = GateStory()
    story.live(6.25, 0.9, leased=12)
    assert story.live(GATE.window_seconds - 5.0, None, leased=12) == "queue_only"
    assert story.decision.reason == "Final transcripts took longer than 0.6 s."
    assert story.live(10.0, None, leased=12) == "open"


def test_a_gate_that_lost_nearly_all_slots_gets_them_back_though_nothing_is_measured():
    """One caller alone makes too few finals to tell anything."""
    story = GateStory()
    story.live(10.0, 0.9, leased=2, waiting=5)
    story.live(40.0, None, leased=0, waiting=0)
    assert story.slots == GATE.floor
    leased = 0
    for _ in range(150):
        leased = min(leased + 1, story.slots)
        story.live(1.0, None, leased=leased, waiting=5)
    assert story.slots == 20, "what the sizing gave, and no more without evidence"


@pytest.mark.parametrize("carried", [6, 15, 19])
def test_under_a_lasting_crowd_it_finds_what_can_be_carried_and_stays_there(carried):
    """Finals take longer the more talk: 0.6 s with ``carried`` callers."""
    story = GateStory()
    leased, changes, before, history = 0, 0, "open", []
    for second in range(1800):
        ended = second % 6 == 0 and leased > 0
        leased -= ended
        if story.gate.state == "open" and leased < story.gate.slots:
            leased += 1
        state = story.live(1.0, 0.6 * leased / carried, leased, waiting=50)
        changes += state != before
        before = state
        history.append(leased)
    assert changes <= 12, "half an hour"
    last = history[-600:]
    assert carried * 0.55 <= sum(last) / len(last) <= carried
    assert max(last) <= carried + 1


def test_slots_stay_within_bounds_whatever_comes():
    chance = random.Random(5)
    story = GateStory()
    for _ in range(2000):
        story.live(
            chance.choice((0.25, 2.0, 8.0)),
            chance.choice((None, 0.1, 0.3, 0.5, 0.7, 3.0)),
            leased=chance.randrange(0, 60),
            waiting=chance.randrange(0, 3),
        )
        assert GATE.floor <= story.slots <= GATE.most
        assert bool(story.decision.reason) == (story.decision.state != "open")


def test_what_was_too_many_is_remembered_longer_each_time():
    story = GateStory(slots=30)
    peaks = []
    for _ in range(5):
        began = story.now
        while story.live(1.0, 0.1 if story.slots_or(30) < 20 else 0.9, 20, waiting=5) == "open":
            pass
        peaks.append(story.now - began)
        while story.live(1.0, 0.1, leased=5, waiting=5) != "open":
            pass
    assert peaks[0] < 10.0 and peaks[1:] == sorted(peaks[1:])
    assert peaks[1] < 120.0 < 300.0 < peaks[4] < 1000.0


# ----------------------------------------------------------------- the server's own process


LATE = ServerLoad(loop_lag_seconds=0.08, cores=0.7)
IDLE = ServerLoad(loop_lag_seconds=0.002, cores=0.2)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (LATE, "The server's event loop runs 80 ms late (95th percentile); 50 ms is the bound."),
        (
            ServerLoad(0.02, 1.25),
            "The server's own process uses 1.25 of a core and its event loop runs 20 ms late; "
            "it has one loop for all calls.",
        ),
        (ServerLoad(0.02, 0.9), ""),
        (ServerLoad(0.01, 3.0), ""),
        (ServerLoad(0.05, 0.5), ""),
        (ServerLoad(None, 3.0), ""),
        (ServerLoad(0.2, None), "The server's event loop runs 200 ms late"),
        (UNKNOWN_LOAD, ""),
    ],
)
def test_a_process_is_too_busy_when_its_loop_is_late_or_feels_a_full_core(load, words):
    assert GATE.overload(load).startswith(words) and bool(GATE.overload(load)) == bool(words)


@pytest.mark.parametrize(
    ("load", "relieved"),
    [
        (ServerLoad(0.024, 0.5), True),
        (ServerLoad(0.026, 0.5), False),
        (ServerLoad(0.02, 0.80), True),
        (ServerLoad(0.02, 0.82), False),
        (ServerLoad(0.004, 2.0), True),
        (UNKNOWN_LOAD, True),
    ],
)
def test_relief_is_well_below_both_bounds(load, relieved):
    assert GATE.relieved(load) is relieved and not (relieved and GATE.overload(load))


def test_a_busy_process_refuses_and_opens_with_fewer_slots():
    story = GateStory()
    assert story.live(4.0, 0.2, leased=20, load=LATE) == "open"
    assert story.live(2.0, 0.2, leased=20, load=LATE) == "refuse"
    assert story.decision.reason == GATE.overload(LATE)
    between = ServerLoad(0.03, 0.85)
    assert story.live(60.0, 0.2, leased=15, load=between) == "refuse"
    assert story.decision.reason == GATE.overload(LATE), "why it closed"
    assert story.live(4.0, None, leased=15, load=IDLE) == "refuse"
    assert story.live(2.0, None, leased=15, load=IDLE) == "open", (
        "finals are not what it waited for"
    )
    assert story.slots == 11 and story.decision.reason == ""


@pytest.mark.parametrize(
    ("load", "slots"),
    [
        (ServerLoad(0.051, 0.5), 17),
        (ServerLoad(0.02, 0.95), 17),
        (ServerLoad(0.02, 1.2), 13),
        (ServerLoad(5.0, 0.99), 9),
        (ServerLoad(0.02, 9.0), 5),
    ],
)
def test_it_retreats_by_as_much_as_the_process_was_too_busy(load, slots):
    story = GateStory()
    assert story.live(6.0, None, leased=20, load=load) == "refuse"
    assert story.live(6.0, None, leased=0, load=IDLE) == "open"
    assert story.slots == slots


def test_a_server_without_calls_refuses_nobody():
    """It was busy loading, or others use the machine: refusing would not help it."""
    made = AdmissionGate(GateRules(dwell_seconds=2.0), 10)
    for now in range(60):
        assert made.decide(float(now), 0, 0, LATE).state == "open"


def test_a_short_peak_of_the_process_refuses_nobody():
    story = GateStory()
    for _ in range(20):
        story.live(4.0, 0.2, leased=20, load=LATE)
        assert story.live(1.0, 0.2, leased=20, load=IDLE) == "open"


def test_no_slots_are_added_to_a_process_that_has_little_time_left():
    story = GateStory()
    story.live(60.0, 0.1, leased=20, waiting=5, load=ServerLoad(0.03, 0.5))
    story.live(60.0, 0.1, leased=20, waiting=5, load=ServerLoad(0.02, 0.85))
    assert story.slots == 20
    story.live(6.0, 0.1, leased=20, waiting=5, load=IDLE)
    assert story.slots == 22


def test_a_gate_that_is_closed_for_late_finals_may_come_to_refuse():
    story = GateStory()
    assert story.live(7.0, 0.9, leased=20) == "queue_only"
    assert story.live(6.0, 0.9, leased=20, load=LATE) == "refuse"
    assert story.live(40.0, 0.1, leased=5, load=IDLE) == "open"
    assert story.slots == 8, "the lower of what finals and the process left room for"
