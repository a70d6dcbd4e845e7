"""The lease book: stories, what is refused, and invariants under random steps."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from voice_rtc.core import leases
from voice_rtc.core.leases import (
    PRIOR_HOLD_SECONDS,
    Forgotten,
    Granted,
    LeaseBook,
    LeaseEvent,
    LineRules,
    Moved,
    Revoked,
    TimedOut,
)
from voice_rtc.errors import QueueFull, StateError

RULES = LineRules(max_waiting=3, max_wait_seconds=60.0, absence_seconds=10.0)


def book(slots: int = 1, rules: LineRules = RULES) -> LeaseBook:
    opened = LeaseBook(rules)
    for slot in range(slots):
        opened.add_slot(slot, 0.0)
    return opened


def full_book(*waiting: str) -> LeaseBook:
    """Slot 0 is held by ``holder``; the others have come at 1.0, 2.0, ... and wait."""
    opened = book()
    opened.request("holder", 0.0)
    for at, call in enumerate(waiting, start=1):
        opened.request(call, float(at))
    return opened


def line(opened: LeaseBook) -> list[str]:
    return [place.call for place in opened.waiting_calls(0.0)]


# ----------------------------------------------------------------------------------- granting


def test_a_free_slot_is_granted_at_once():
    assert book().request("a", 5.0) == [Granted("a", slot=0, lease=1, waited_seconds=0.0)]


def test_who_finds_no_slot_is_told_the_place():
    opened = full_book()
    assert opened.request("a", 1.0) == [Moved("a", 1, 1)]
    assert opened.request("b", 2.0) == [Moved("b", 2, 2)]


def test_a_released_slot_goes_to_the_first_and_the_others_move_up():
    opened = full_book("a", "b", "c")
    assert opened.release("holder", 9.0) == [
        Granted("a", slot=0, lease=2, waited_seconds=8.0),
        Moved("b", 1, 2),
        Moved("c", 2, 2),
    ]


def test_a_new_slot_goes_to_the_first_waiter():
    opened = full_book("a", "b")
    assert opened.add_slot(7, 4.0) == [Granted("a", 7, 2, 3.0), Moved("b", 1, 1)]


def test_only_changed_positions_are_announced():
    opened = full_book("a", "b", "c")
    assert opened.release("b", 5.0) == [Moved("c", 2, 2)]
    assert opened.release("c", 6.0) == []


def test_releasing_twice_or_as_a_stranger_does_nothing():
    opened = full_book("a")
    opened.release("a", 2.0)
    before = opened.statistics()
    assert opened.release("a", 3.0) == [] == opened.release("nobody", 3.0)
    assert opened.statistics() == before


def test_a_full_line_refuses_and_changes_nothing():
    opened = full_book("a", "b", "c")
    with pytest.raises(QueueFull):
        opened.request("d", 4.0)
    assert line(opened) == ["a", "b", "c"] and opened.statistics().refused == 1
    opened.release("b", 5.0)
    assert opened.request("d", 6.0) == [Moved("d", 3, 3)]


def test_without_a_line_nobody_waits():
    opened = book(rules=replace(RULES, max_waiting=0))
    opened.request("a", 0.0)
    with pytest.raises(QueueFull):
        opened.request("b", 0.0)


def test_a_smaller_line_sends_nobody_away():
    opened = full_book("a", "b", "c")
    opened.rules = replace(RULES, max_waiting=1)
    assert opened.waiting == 3
    with pytest.raises(QueueFull):
        opened.request("d", 4.0)


def test_who_came_at_the_same_moment_is_lined_up_as_asked():
    opened = book(rules=replace(RULES, max_waiting=9))
    for call in ("holder", "a", "b", "c", "d"):
        opened.request(call, 0.0)
    assert opened.release("b", 0.0) == [Moved("c", 2, 3), Moved("d", 3, 3)]
    assert line(opened) == ["a", "c", "d"]
    assert opened.release("holder", 0.0)[0] == Granted("a", 0, 2, 0.0)


def test_the_longest_wait_counts_whoever_had_it_and_however_it_ended():
    opened = full_book("a", "b")
    opened.release("b", 12.0)
    opened.release("holder", 12.0)
    assert opened.statistics().longest_wait_seconds == 11.0
    opened.request("c", 20.0)
    opened.expire(80.0)
    assert opened.statistics().longest_wait_seconds == 60.0


def test_the_slot_that_was_free_longest_is_granted_first():
    opened = book(slots=3)
    for call in "abc":
        opened.request(call, 0.0)
    opened.release("b", 1.0)
    opened.release("a", 2.0)
    assert opened.request("d", 3.0) == [Granted("d", 1, 4, 0.0)]


def test_lease_numbers_are_never_used_again():
    opened = book()
    numbers = []
    for at in range(5):
        numbers += [event.lease for event in opened.request("a", at) if isinstance(event, Granted)]
        opened.release("a", at)
    assert numbers == [1, 2, 3, 4, 5]


# -------------------------------------------------------------------------------- head starts


def test_a_head_start_overtakes_those_who_came_less_long_ago():
    opened = full_book("a", "b")  # at 1.0 and 2.0
    assert opened.request("vip", 11.5, head_start_seconds=10.0) == [
        Moved("vip", 2, 3),
        Moved("b", 3, 3),
    ]
    assert line(opened) == ["a", "vip", "b"]


def test_a_head_start_never_starves_who_has_waited_longer():
    opened = book(rules=replace(RULES, max_waiting=100, max_wait_seconds=1e9))
    opened.request("holder", 0.0)
    opened.request("patient", 1.0)
    for k in range(40):
        opened.request(f"vip{k}", 2.0 + k, head_start_seconds=10.0)
    ahead = opened.position("patient")
    assert ahead == 1 + 9  # those who came up to 10 s later; the one exactly so comes after
    assert all(f"vip{k}" in line(opened)[:9] for k in range(9))


def test_a_head_start_does_not_shorten_the_wait_that_is_allowed():
    opened = full_book()
    opened.request("vip", 5.0, head_start_seconds=1000.0)
    assert opened.next_deadline == 65.0


# ------------------------------------------------------------------------------------ absence


def test_an_absent_caller_is_passed_over_and_keeps_its_place():
    opened = full_book("a", "b", "c")
    assert opened.step_out("a", 5.0) == []
    assert opened.release("holder", 6.0) == [Granted("b", 0, 2, 4.0), Moved("c", 2, 2)]
    assert opened.step_in("a", "a", 7.0) == [Moved("a", 1, 2)]
    assert opened.release("b", 8.0)[0] == Granted("a", 0, 3, 7.0)


def test_a_caller_may_come_back_as_another_call():
    opened = full_book("a", "b")
    opened.step_out("a", 5.0)
    assert opened.step_in("a", "a2", 6.0) == [Moved("a2", 1, 2)]
    assert opened.position("a") is None and opened.position("a2") == 1
    assert opened.release("a", 7.0) == []
    assert opened.release("holder", 8.0)[0] == Granted("a2", 0, 2, 7.0)


def test_who_comes_back_to_a_free_slot_gets_it():
    opened = full_book("a")
    opened.step_out("a", 5.0)
    assert opened.release("holder", 6.0) == []
    assert opened.step_in("a", "a2", 7.0) == [Granted("a2", 0, 2, 6.0)]


def test_a_new_caller_may_have_the_slot_that_the_absent_left_free():
    opened = full_book("a")
    opened.step_out("a", 5.0)
    opened.release("holder", 6.0)
    assert opened.request("late", 7.0) == [Granted("late", 0, 2, 0.0)]


def test_who_is_absent_too_long_is_forgotten():
    opened = full_book("a", "b")
    opened.step_out("a", 5.0)
    assert opened.next_deadline == 15.0
    assert opened.expire(14.9) == []
    assert opened.expire(15.0) == [Forgotten("a"), Moved("b", 1, 1)]
    with pytest.raises(StateError):
        opened.step_in("a", "a2", 15.0)


def test_stepping_out_again_does_not_prolong_the_absence():
    opened = full_book("a")
    opened.step_out("a", 5.0)
    opened.step_out("a", 12.0)
    assert opened.next_deadline == 15.0


def test_an_absent_caller_hears_nothing_and_is_told_when_back():
    opened = full_book("a", "b", "c")
    opened.step_out("c", 5.0)
    assert opened.release("a", 6.0) == [Moved("b", 1, 2)]
    assert opened.step_in("c", "c", 7.0) == [Moved("c", 2, 2)]


# ------------------------------------------------------------------------------------ deadlines


def test_who_waits_too_long_is_told_so():
    opened = full_book("a", "b")
    assert opened.next_deadline == 61.0
    assert opened.expire(61.0) == [TimedOut("a", 60.0), Moved("b", 1, 1)]
    assert opened.next_deadline == 62.0


def test_a_deadline_at_the_origin_of_time_is_a_deadline():
    opened = book(rules=replace(RULES, max_wait_seconds=60.0))
    opened.request("holder", -60.0)
    opened.request("a", -60.0)
    assert opened.next_deadline == 0.0
    assert opened.expire(0.0) == [TimedOut("a", 60.0)]
    assert opened.next_deadline is None


def test_an_absent_caller_whose_wait_is_over_first_timed_out():
    opened = full_book("a")
    opened.step_out("a", 55.0)
    assert opened.next_deadline == 61.0
    assert opened.expire(100.0) == [TimedOut("a", 99.0)]


def test_longer_waits_may_be_allowed_at_run_time():
    opened = full_book("a")
    opened.rules = replace(RULES, max_wait_seconds=100.0)
    assert opened.expire(61.0) == [] and opened.next_deadline == 101.0


# --------------------------------------------------------------------------- a line that moves


def test_a_line_moves_to_another_book_by_arrival_and_everybody_is_told():
    opened, other = full_book("b", "d"), full_book()
    other.request("a", 0.5)
    other.request("c", 1.5, head_start_seconds=0.2)
    moved = [Moved(call, place, 4) for place, call in enumerate("abcd", start=1)]
    assert opened.take_line(other, 9.0) == moved
    assert line(opened) == ["a", "b", "c", "d"]
    assert other.waiting == 0 and other.release("a", 9.0) == []
    assert other.statistics().left == 2
    assert opened.release("holder", 10.0)[0] == Granted("a", 0, 2, waited_seconds=9.5)


def test_a_line_that_moves_to_free_slots_is_served_but_for_who_is_absent():
    opened, other = book(slots=2), full_book("a", "b")
    other.step_out("a", 2.0)
    assert opened.take_line(other, 3.0) == [Granted("b", 0, 1, 1.0)]
    assert opened.expire(12.0) == [Forgotten("a")]
    assert [hold.call for hold in other.leases()] == ["holder"]


def test_a_call_is_not_in_one_book_twice():
    opened, other = full_book("a"), full_book("b", "a")
    with pytest.raises(StateError):
        opened.take_line(other, 3.0)
    assert line(opened) == ["a"] and line(other) == ["b", "a"]


# ------------------------------------------------------------------------------ slots that go


def test_a_removed_slot_revokes_its_lease():
    opened = full_book("a")
    assert opened.remove_slot(0, 5.0, "engine died") == [Revoked("holder", 0, 1, "engine died")]
    assert opened.slots() == () and opened.lease_of("holder") is None
    assert opened.request("holder", 6.0, head_start_seconds=100.0) == [
        Moved("holder", 1, 2),
        Moved("a", 2, 2),
    ]


def test_a_free_slot_is_removed_without_a_word():
    opened = book(slots=2)
    assert opened.remove_slot(0, 1.0, "") == []
    assert [state.slot for state in opened.slots()] == [1]


def test_a_retiring_slot_goes_when_it_is_released():
    opened = full_book("a")
    assert opened.retire_slot(0) is False
    assert opened.slots()[0].retiring and opened.statistics().retiring == 1
    assert opened.release("holder", 5.0) == []
    assert opened.slots() == () and line(opened) == ["a"]


def test_a_free_slot_retires_at_once():
    opened = book(slots=2)
    assert opened.retire_slot(1) is True
    assert [state.slot for state in opened.slots()] == [0]


def test_a_retiring_slot_may_be_removed_and_added_again():
    opened = full_book()
    opened.retire_slot(0)
    opened.remove_slot(0, 1.0, "gone")
    opened.add_slot(0, 2.0)
    assert not opened.slots()[0].retiring


# ------------------------------------------------------------------- the holder on a new line


def test_a_holder_who_comes_back_has_its_slot_under_a_new_lease():
    opened = full_book("a")
    assert opened.pass_on("holder", "again", 5.0) == [Granted("again", 0, 2, 0.0)]
    assert opened.release("holder", 6.0) == []  # the old call lets go of nothing
    assert line(opened) == ["a"]
    assert opened.release("again", 9.0) == [Granted("a", 0, 3, 8.0)]


def test_for_the_estimate_a_conversation_that_is_passed_on_goes_on():
    opened = full_book()
    opened.pass_on("holder", "again", 60.0)
    assert opened.mean_hold_seconds(60.0) == PRIOR_HOLD_SECONDS + 60.0


# -------------------------------------------------------------------------- what is not allowed


@pytest.mark.parametrize(
    "illegal",
    [
        lambda b: b.request("holder", 9.0),
        lambda b: b.request("a", 9.0),
        lambda b: b.request("new", 9.0, head_start_seconds=-1.0),
        lambda b: b.request("new", 9.0, head_start_seconds=float("inf")),
        lambda b: b.request("new", 9.0, head_start_seconds=float("nan")),
        lambda b: b.add_slot(0, 9.0),
        lambda b: b.remove_slot(5, 9.0, ""),
        lambda b: b.retire_slot(5),
        lambda b: b.holder(5),
        lambda b: b.step_out("holder", 9.0),
        lambda b: b.step_out("nobody", 9.0),
        lambda b: b.step_in("nobody", "x", 9.0),
        lambda b: b.step_in("holder", "x", 9.0),
        lambda b: b.step_in("b", "x", 9.0),
        lambda b: b.step_in("a", "b", 9.0),
        lambda b: b.step_in("a", "holder", 9.0),
        lambda b: b.pass_on("a", "x", 9.0),
        lambda b: b.pass_on("nobody", "x", 9.0),
        lambda b: b.pass_on("holder", "b", 9.0),
        lambda b: b.pass_on("holder", "holder", 9.0),
    ],
)
def test_what_the_state_does_not_allow_changes_nothing(illegal):
    opened = full_book("a", "b")
    opened.step_out("a", 3.0)
    before = (opened.waiting_calls(9.0), opened.slots(), opened.statistics(), opened.next_deadline)
    with pytest.raises(StateError):
        illegal(opened)
    after = (opened.waiting_calls(9.0), opened.slots(), opened.statistics(), opened.next_deadline)
    assert after == before


# ------------------------------------------------------------------------------------ estimates


def test_without_slots_there_is_no_estimate():
    assert LeaseBook(RULES).eta_seconds(1, 0.0) is None


def test_before_anything_is_known_a_short_conversation_is_assumed():
    opened = LeaseBook(RULES, prior_hold_seconds=120.0)
    for slot in range(4):
        opened.add_slot(slot, 0.0)
    assert opened.eta_seconds(2, 0.0) == pytest.approx(2 * 120.0 / 4)


def test_the_estimate_is_time_held_over_leases_ended():
    opened = LeaseBook(RULES, prior_hold_seconds=100.0)
    opened.add_slot(0, 0.0)
    opened.request("a", 0.0)
    opened.release("a", 50.0)
    opened.request("b", 50.0)
    assert opened.mean_hold_seconds(80.0) == pytest.approx((50.0 + 30.0 + 100.0) / 2)


def test_a_revoked_lease_is_time_held_and_no_end():
    opened = LeaseBook(RULES, prior_hold_seconds=100.0)
    opened.add_slot(0, 0.0)
    opened.request("a", 0.0)
    opened.remove_slot(0, 70.0, "died")
    assert opened.mean_hold_seconds(70.0) == pytest.approx(170.0)


def test_slots_that_retire_shorten_nobodys_wait():
    opened = LeaseBook(RULES, prior_hold_seconds=100.0)
    for slot in range(2):
        opened.add_slot(slot, 0.0)
        opened.request(f"c{slot}", 0.0)
    assert opened.eta_seconds(1, 0.0) == 50.0
    opened.retire_slot(0)
    assert opened.eta_seconds(1, 0.0) == 100.0
    opened.retire_slot(1)
    assert opened.eta_seconds(1, 0.0) is None


def test_leases_that_go_on_and_on_lengthen_the_estimate():
    opened = full_book("a")
    early, late = opened.eta_seconds(1, 10.0), opened.eta_seconds(1, 1000.0)
    assert early is not None and late is not None and late > early + 900.0


def test_recent_leases_count_more():
    opened = book()
    clock = 0.0
    for seconds in [600.0] * 50 + [10.0] * 200:
        opened.request("a", clock)
        clock += seconds
        opened.release("a", clock)
    assert opened.mean_hold_seconds(clock) < 25.0  # the plain mean would be 128


def test_the_estimate_of_exponential_leases_is_right():
    chance = random.Random(5)
    opened = book(slots=8, rules=LineRules(max_waiting=400, max_wait_seconds=1e9))
    ends: dict[str, float] = {}
    waited: dict[str, float] = {}

    def note(events: list[LeaseEvent], now: float) -> None:
        for event in events:
            if isinstance(event, Granted):
                ends[event.call] = now + chance.expovariate(1 / 40.0)
                waited[event.call] = event.waited_seconds

    for k in range(400):
        note(opened.request(f"c{k}", 0.0), 0.0)
    promised: dict[str, float] = {}
    while ends:
        call, now = min(ends.items(), key=lambda item: item[1])
        del ends[call]
        note(opened.release(call, now), now)
        if len(waited) == 100:
            places = opened.waiting_calls(now)
            promised = {place.call: now + (place.eta_seconds or 0.0) for place in places}
    errors = [abs(waited[call] / seconds - 1.0) for call, seconds in promised.items()]
    assert len(errors) == 300
    assert sum(errors) / len(errors) < 0.15


# -------------------------------------------------------------------------------- how it looks


def test_the_line_is_shown_with_its_estimates():
    opened = full_book("a", "b")
    opened.request("vip", 3.0, head_start_seconds=1.5)
    opened.step_out("b", 4.0)
    first, second, third = opened.waiting_calls(5.0)
    assert (first.call, first.position, first.waited_seconds) == ("a", 1, 4.0)
    assert (second.call, second.present, second.head_start_seconds) == ("vip", True, 1.5)
    assert (third.call, third.present, third.waited_seconds) == ("b", False, 3.0)
    assert [first.eta_seconds, third.eta_seconds] == [
        opened.eta_seconds(1, 5.0),
        opened.eta_seconds(3, 5.0),
    ]


def test_leases_are_shown_by_call_and_by_slot():
    opened = full_book("a")
    hold = opened.lease_of("holder")
    assert hold is not None and (hold.slot, hold.lease, hold.since) == (0, 1, 0.0)
    assert opened.leases() == (hold,) and opened.slots()[0].hold == hold
    assert opened.holder(0) == "holder" and opened.lease_of("a") is None


def test_its_representation_is_its_status():
    opened = full_book("a", "b")
    opened.step_out("b", 3.0)
    opened.add_slot(1, 4.0)
    opened.retire_slot(0)
    assert repr(opened) == (
        "<LeaseBook 2 of 2 slots leased (1 retiring), 1 waiting (1 absent), last lease 2>"
    )


# --------------------------------------------------------------------------------- random steps


class _Model:
    """What any book must look like after any step, kept by other means than the book's own."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.rules = LineRules(max_waiting=6, max_wait_seconds=30.0, absence_seconds=5.0)
        self.book = LeaseBook(self.rules)
        self.slots: set[int] = set()
        self.retiring: set[int] = set()
        self.now = 0.0
        self.calls = 0
        self.key: dict[str, tuple[float, int]] = {}
        """Who waits and its place in the order of arrival."""
        self.absent: set[str] = set()
        self.holds: dict[str, tuple[int, int]] = {}
        self.told: dict[str, int] = {}
        self.pushed = False
        self.ended: set[str] = set()
        self.last_lease = 0
        self.requested = self.refused = 0

    def step(self) -> None:
        self.now += self.chance.random() * 2.0
        self.pushed = False
        action = self.chance.choices(
            (
                *(self.ask, self.give_back, self.out, self.back, self.pass_on),
                *(self.slot, self.retire, self.expire),
            ),
            (40, 25, 8, 6, 3, 7, 4, 10),
        )[0]
        action()
        self.check()

    def ask(self) -> None:
        self.calls += 1
        self.requested += 1
        call = f"c{self.calls}"
        head_start = self.chance.choice((0.0, 0.0, 0.0, 3.0, 12.0))
        free = self.slots - {slot for slot, _ in self.holds.values()}
        full = not free and len(self.key) >= self.rules.max_waiting
        if full:
            self.refused += 1
            with pytest.raises(QueueFull):
                self.book.request(call, self.now, head_start)
            return
        self.pushed = head_start > 0
        self.key[call] = (self.now - head_start, self.calls)
        self.apply(self.book.request(call, self.now, head_start))

    def give_back(self) -> None:
        known = [*self.holds, *self.key]
        if not known:
            return
        call = self.chance.choice(known)
        if call in self.holds:
            slot = self.holds.pop(call)[0]
            if slot in self.retiring:
                self.retiring.discard(slot)
                self.slots.discard(slot)
        else:
            del self.key[call]
            self.absent.discard(call)
        self.ended.add(call)
        self.apply(self.book.release(call, self.now))

    def out(self) -> None:
        if self.key:
            call = self.chance.choice(list(self.key))
            self.absent.add(call)
            self.apply(self.book.step_out(call, self.now))

    def back(self) -> None:
        if self.absent:
            call = self.chance.choice(sorted(self.absent))
            self.calls += 1
            new = self.chance.choice((call, f"c{self.calls}"))
            self.absent.discard(call)
            self.key[new] = self.key.pop(call)
            self.told.pop(call, None)
            if new != call:
                self.ended.add(call)
            self.apply(self.book.step_in(call, new, self.now))

    def pass_on(self) -> None:
        if self.holds:
            call = self.chance.choice(sorted(self.holds))
            self.calls += 1
            self.requested += 1
            new = f"c{self.calls}"
            slot, _ = self.holds.pop(call)
            self.ended.add(call)
            self.last_lease += 1
            events = self.book.pass_on(call, new, self.now)
            assert events == [Granted(new, slot, self.last_lease, 0.0)]
            self.holds[new] = (slot, self.last_lease)

    def slot(self) -> None:
        slot = self.chance.randrange(5)
        if slot in self.slots:
            self.slots.discard(slot)
            self.retiring.discard(slot)
            self.apply(self.book.remove_slot(slot, self.now, "sick"))
        else:
            self.slots.add(slot)
            self.apply(self.book.add_slot(slot, self.now))

    def retire(self) -> None:
        if self.slots:
            slot = self.chance.choice(sorted(self.slots))
            if self.book.retire_slot(slot):
                self.slots.discard(slot)
                self.retiring.discard(slot)
            else:
                self.retiring.add(slot)

    def expire(self) -> None:
        self.apply(self.book.expire(self.now))
        due = self.book.next_deadline
        assert due is None or due > self.now

    def apply(self, events: list[LeaseEvent]) -> None:
        for event in events:
            assert event.call not in self.ended, "an event after the end"
            match event:
                case Granted(call, slot, lease):
                    present = {c: k for c, k in self.key.items() if c not in self.absent}
                    assert call == min(present, key=present.__getitem__), "not the first in line"
                    assert slot in self.slots and slot not in self.retiring
                    assert slot not in {held for held, _ in self.holds.values()}, "held twice"
                    assert lease > self.last_lease
                    self.last_lease = lease
                    del self.key[call]
                    self.holds[call] = (slot, lease)
                case Moved(call, position, waiting):
                    assert call in self.key and call not in self.absent
                    assert waiting == len(self.key)
                    assert position == sorted(self.key.values()).index(self.key[call]) + 1
                    before = self.told.get(call)
                    assert before != position, "nothing has changed"
                    assert before is None or position < before or self.pushed
                    self.told[call] = position
                case TimedOut(call) | Forgotten(call):
                    del self.key[call]
                    self.absent.discard(call)
                    self.ended.add(call)
                case Revoked(call, slot, lease):
                    assert self.holds.pop(call) == (slot, lease)
                    self.ended.add(call)
        for call in self.absent:
            self.told.pop(call, None)

    def check(self) -> None:
        book, stats = self.book, self.book.statistics()
        places = [book.position(call) for call in sorted(self.key, key=self.key.__getitem__)]
        assert places == [*range(1, len(self.key) + 1)] and stats.waiting == len(self.key)
        assert len(self.key) <= self.rules.max_waiting
        assert (stats.slots, stats.leased) == (len(self.slots), len(self.holds))
        assert (stats.absent, stats.retiring) == (len(self.absent), len(self.retiring))
        assert stats.free + stats.leased == stats.slots
        somebody = len(self.key) > len(self.absent)
        assert not (stats.free and somebody), "a free slot while a caller present waits"
        assert self.told.keys() >= self.key.keys() - self.absent, "not told its place"
        assert (stats.requested, stats.refused) == (self.requested, self.refused)
        assert stats.requested == stats.granted + stats.refused + stats.left + (
            stats.timed_out + stats.forgotten + stats.waiting
        )
        assert stats.granted == stats.released + stats.revoked + stats.leased
        assert (book.next_deadline is None) == (not self.key)

    def check_snapshots(self) -> None:
        leases = {hold.call: (hold.slot, hold.lease) for hold in self.book.leases()}
        assert leases == self.holds
        states = {state.slot: (state.hold, state.retiring) for state in self.book.slots()}
        assert states.keys() == self.slots
        assert {slot for slot, (_, retiring) in states.items() if retiring} == self.retiring
        assert {slot for slot, (hold, _) in states.items() if hold} == {
            slot for slot, _ in self.holds.values()
        }
        places = self.book.waiting_calls(self.now)
        assert [place.call for place in places] == sorted(self.key, key=self.key.__getitem__)
        assert {place.call for place in places if not place.present} == self.absent


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_invariants_hold_under_random_steps(first):
    granted = timed_out = forgotten = revoked = 0
    for seed in range(first, first + 50):
        model = _Model(seed)
        for step in range(300):
            model.step()
            if step % 10 == 0:
                model.check_snapshots()
        stats = model.book.statistics()
        granted += stats.granted
        timed_out += stats.timed_out
        forgotten += stats.forgotten
        revoked += stats.revoked
    assert min(granted, timed_out, forgotten, revoked) > 20  # the steps get everywhere


# -------------------------------------------------------------------- five hundred on ten slots


def test_five_hundred_callers_on_ten_slots_are_served_in_order():
    chance = random.Random(1)
    opened = LeaseBook(LineRules(max_waiting=500, max_wait_seconds=1e6, absence_seconds=5.0))
    for slot in range(10):
        opened.add_slot(slot, 0.0)
    arrivals = [(k * 0.02, f"c{k}") for k in range(500)]
    hang_ups: dict[str, float] = {}
    served: list[str] = []
    heard: dict[str, list[int]] = {call: [] for _, call in arrivals}

    def hear(events: list[LeaseEvent], now: float) -> None:
        for event in events:
            match event:
                case Granted(call):
                    served.append(call)
                    hang_ups[call] = now + chance.uniform(20.0, 90.0)
                case Moved(call, position):
                    heard[call].append(position)
        waiting = [call for _, call in arrivals if heard[call] and call not in hang_ups]
        waiting = [call for call in waiting if call not in done]
        assert [heard[call][-1] for call in waiting] == list(range(1, len(waiting) + 1))

    done: set[str] = set()
    for at, call in arrivals:
        hear(opened.request(call, at), at)
    assert opened.waiting == 490
    while hang_ups:
        call, now = min(hang_ups.items(), key=lambda item: item[1])
        del hang_ups[call]
        done.add(call)
        hear(opened.release(call, now), now)
    assert served == [call for _, call in arrivals]
    assert all(heard[call] == list(range(k - 9, 0, -1)) for k, (_, call) in enumerate(arrivals))
    stats = opened.statistics()
    assert (stats.granted, stats.released, stats.leased, stats.waiting) == (500, 500, 0, 0)


def test_a_long_line_is_told_its_estimates_in_no_time(monkeypatch):
    """All of it, each time when a call ends: 224 ms of the event loop, once, for 1000 and 1000."""
    book = LeaseBook(LineRules(max_waiting=300))
    for number in range(300):
        book.add_slot(number, 0.0)
    for number in range(600):
        book.request(f"call-{number}", float(number))
    looks = []
    since = leases._since
    monkeypatch.setattr(leases, "_since", lambda *times: looks.append(times) or since(*times))
    moved = [e for e in book.release("call-0", 700.0) if isinstance(e, Moved)]
    etas = [book.eta_seconds(event.position, 700.0) for event in moved]
    assert len(etas) == 299 and len(looks) < 1000
    mean = book.mean_hold_seconds(700.0)
    assert etas == [pytest.approx(place * mean / 300) for place in range(1, 300)]
    book.release("call-1", 700.0)
    assert book.mean_hold_seconds(700.0) != mean, "what changed is counted"
