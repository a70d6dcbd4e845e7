"""The slots of one mode: however their number changes, never are more lent than there are to be."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.support.virtual_time import run_virtual
from voice_rtc.core.leases import LineRules
from voice_rtc.metrics import Metrics
from voice_rtc.pool.group import Group, Waiter
from voice_rtc.pool.lease import LeaseRequest


class Calls:
    """Calls of a group, their leases kept by the book alone."""

    def __init__(self, slots: int) -> None:
        self.group = Group("shared", LineRules(max_waiting=1000, max_wait_seconds=1e6), Metrics())
        self.group.resize(slots, 0.0)
        self.waiters: dict[str, Waiter] = {}

    def come(self, *names: str) -> None:
        for name in names:
            self.waiters[name] = self.group.enter(LeaseRequest(name), 0.0)

    def go(self, *names: str) -> None:
        for name in names:
            self.group.leave(self.waiters.pop(name), 0.0)

    @property
    def talking(self) -> list[str]:
        return sorted(name for name, waiter in self.waiters.items() if waiter.granted.done())

    @property
    def slots(self) -> list[int]:
        return sorted(hold.slot for hold in self.group.book.leases())


def test_who_talks_on_a_slot_that_goes_counts_until_it_is_given_back() -> None:
    async def run() -> None:
        calls = Calls(3)
        calls.come("a", "b", "c", "d", "e")
        calls.group.resize(1, 0.0)
        assert calls.talking == ["a", "b", "c"] and calls.group.slots == 1
        calls.group.resize(3, 0.0)
        assert calls.talking == ["a", "b", "c"], "these are three already"
        calls.go("a")
        assert calls.talking == ["b", "c", "d"]
        calls.group.resize(2, 0.0)
        calls.go("b")
        assert calls.talking == ["c", "d"]
        calls.go("c", "d")
        assert calls.talking == ["e"] and calls.group.slots == 2

    run_virtual(run())


def test_a_hold_grants_nothing_and_makes_no_slots() -> None:
    async def run() -> None:
        calls = Calls(4)
        calls.come("a", "b", "c")
        calls.group.resize(1, 0.0)
        calls.group.hold(True, 0.0)
        calls.come("d")
        calls.go("a")
        assert calls.talking == ["b", "c"], "a slot that is given back is not granted either"
        calls.go("b", "c")
        assert calls.talking == [] and calls.group.slots == 0
        calls.group.hold(False, 0.0)
        assert calls.talking == ["d"] and calls.group.slots == 1

    run_virtual(run())


def test_slots_have_small_numbers_again_and_again() -> None:
    async def run() -> None:
        calls = Calls(2)
        for name in ("a", "b", "c"):
            calls.group.hold(True, 0.0)
            calls.group.hold(False, 0.0)
            calls.come(name)
        assert calls.slots == [1, 2]

    run_virtual(run())


@pytest.mark.parametrize("seed", range(10))
def test_under_random_steps_as_many_talk_as_may(seed: int) -> None:
    async def run() -> None:
        chance = random.Random(seed)
        calls, wanted, held, number = Calls(3), 3, False, 0
        for _ in range(400):
            before = len(calls.talking)
            match chance.choice(("come", "come", "go", "go", "resize", "hold")):
                case "come":
                    number += 1
                    calls.come(f"call-{number}")
                case "go" if calls.waiters:
                    calls.go(chance.choice(sorted(calls.waiters)))
                case "resize":
                    wanted = chance.randrange(0, 8)
                    calls.group.resize(wanted, 0.0)
                case "hold":
                    held = not held
                    calls.group.hold(held, 0.0)
            talking = len(calls.talking)
            assert talking <= max(wanted, before), "more only up to what is wanted"
            if held:
                assert talking <= before
            elif len(calls.waiters) > talking:
                assert talking >= wanted, "nobody waits before a free slot"
            assert calls.group.lent == talking and calls.group.slots <= max(wanted, 0)

    run_virtual(run())


def test_a_line_moves_with_its_tokens() -> None:
    async def run() -> None:
        old, new = Calls(1), Calls(1)
        places: dict[str, str] = {}
        old.come("talks")
        for name in ("a", "b"):
            request = LeaseRequest(name, on_place=lambda p, n=name: places.update({n: p.token}))
            old.waiters[name] = old.group.enter(request, 0.0)
        await asyncio.sleep(0)
        new.group.take_line(old.group, 1.0)
        assert old.group.book.waiting == 0 and old.talking == ["a", "talks"]
        assert old.waiters["a"].group is new.group
        assert new.group.knows(places["b"], 1.0) and not old.group.knows(places["b"], 1.0)
        old.waiters["a"].group.leave(old.waiters["a"], 2.0)
        assert old.waiters["b"].granted.done(), "it was next there"

    run_virtual(run())
