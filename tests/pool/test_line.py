"""The waiting line of the pool, in virtual time: who is told what, and who gets the slot when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.support.governed import Governed, governed, story
from voice_rtc.errors import CallReplaced, QueueFull
from voice_rtc.pool.lease import Lease, LeaseRequest, Place


class Line:
    """A pool with callers who wait, each by its name."""

    def __init__(self, it: Governed, tasks: asyncio.TaskGroup) -> None:
        self.pool = it.pool
        self.group = it.pool.group
        self.places: dict[str, list[Place]] = {}
        self.revoked: dict[str, str] = {}
        self.calls: dict[str, asyncio.Task[Lease]] = {}
        self._tasks = tasks

    def ask(self, name: str, resume: str = "") -> asyncio.Task[Lease]:
        told = self.places.setdefault(name, [])
        request = LeaseRequest(
            name,
            resume=resume,
            on_place=told.append,
            on_revoked=lambda reason: self.revoked.__setitem__(name, reason),
        )
        self.calls[name] = self._tasks.create_task(self.pool.allocate_instance(request))
        return self.calls[name]

    async def join(self, *names: str) -> None:
        for name in names:
            self.ask(name)
        await settle()

    def positions(self, name: str) -> list[int]:
        return [place.position for place in self.places[name]]

    def token(self, name: str) -> str:
        return self.places[name][-1].token

    def lose(self, name: str) -> None:
        """As a call does whose connection is lost."""
        self.pool.keep_place(name)
        self.calls[name].cancel()

    async def end(self) -> None:
        for task in self.calls.values():
            task.cancel()
        await settle()
        for group in self.pool.groups.values():
            for lease in list(group.leases.values()):
                await self.pool.return_instance(lease)


async def settle() -> None:
    """Whatever needs no time has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def line(**pool: object) -> AsyncIterator[Line]:
    """One slot, which ``holder`` has, unless told otherwise."""
    async with governed(**{"slots": 1, **pool}) as it, asyncio.TaskGroup() as tasks:
        made = Line(it, tasks)
        try:
            yield made
        finally:
            await made.end()
            assert (it.pool.statistics().leased, it.pool.statistics().waiting) == (0, 0)


def names_of(it: Line, mode: str, count: int) -> list[str]:
    """Calls that the rollout puts into this mode."""
    return [n for n in (f"call-{k}" for k in range(99)) if it.pool.mode_of(n) == mode][:count]


def refused(work: Callable[[], object]) -> int | None:
    """Retry-After of what must be refused."""
    with pytest.raises(QueueFull) as caught:
        work()
    return caught.value.retry_after_seconds


def test_every_change_of_a_position_is_told_and_told_once() -> None:
    async def run() -> None:
        async with line() as it:
            await it.join("holder", "b", "c")
            it.calls["b"].cancel()
            await settle()
            assert (it.positions("holder"), it.positions("b"), it.positions("c")) == (
                [],
                [1],
                [2, 1],
            )
            assert [place.waiting for place in it.places["c"]] == [2, 1]

    story(run)


def test_a_slot_goes_on_in_the_same_moment() -> None:
    async def run() -> None:
        async with line() as it:
            await it.join("holder", "b")
            await asyncio.sleep(0.07)  # between two looks of the supervisor
            now = asyncio.get_running_loop().time()
            await it.pool.return_instance(it.calls["holder"].result())
            await settle()
            assert it.calls["b"].result().granted_at == now

    story(run)


def test_a_slot_never_goes_to_a_connection_that_is_known_to_be_lost() -> None:
    async def run() -> None:
        async with line() as it:
            await it.join("holder", "b", "c")
            it.lose("b")  # and before its call has ended:
            await it.pool.return_instance(it.calls["holder"].result())
            await settle()
            assert it.calls["c"].done() and it.pool.has_place(it.token("b"))
            it.ask("b2", it.token("b"))
            await settle()
            assert it.positions("b2") == [1]

    story(run)


def test_a_token_is_good_for_one_use() -> None:
    async def run() -> None:
        async with line() as it:
            await it.join("holder", "b", "c")
            token = it.token("b")
            it.lose("b")
            await settle()
            it.ask("b2", token)
            it.ask("b3", token)
            await settle()
            assert (it.positions("b2"), it.positions("b3")) == ([1], [3])
            assert len({it.token(name) for name in ("b", "b2", "b3", "c")}) == 4

    story(run)


@pytest.mark.parametrize(("seconds", "in_time"), [(9.0, True), (11.0, False)])
def test_a_slot_that_was_granted_unheard_can_be_claimed_for_a_while(
    seconds: float, in_time: bool
) -> None:
    async def run() -> None:
        async with line(resume_seconds=10.0) as it:
            await it.join("holder", "b", "c")
            await it.pool.return_instance(it.calls["holder"].result())
            await settle()
            old = it.calls["b"].result()
            await asyncio.sleep(seconds)
            it.ask("b2", it.token("b"))
            await settle()
            assert it.calls["b2"].done() is in_time
            assert it.revoked == ({"b": "replaced"} if in_time else {})
            assert it.pool.statistics().leased == 1
            await it.pool.return_instance(old)  # as the old call does when it ends
            await settle()
            assert it.calls["c"].done() is not in_time
            if in_time:
                new = it.calls["b2"].result()
                assert new.id > old.id and it.pool.lease_of("b2") is new

    story(run)


def test_a_slot_can_be_claimed_before_its_call_has_heard_of_it() -> None:
    async def run() -> None:
        async with line() as it:
            await it.join("holder", "b")
            new = it.ask("b2", it.token("b"))  # runs after the grant and before b does
            await it.pool.return_instance(it.calls["holder"].result())
            await settle()
            assert it.calls["b"].done() and isinstance(it.calls["b"].exception(), CallReplaced)
            assert it.pool.lease_of("b2") is new.result()

    with pytest.raises(ExceptionGroup) as raised:
        story(run)
    assert raised.group_contains(CallReplaced)  # of the call that was replaced


def test_who_hangs_up_after_its_connection_was_lost_has_no_place_any_more() -> None:
    async def run() -> None:
        async with line() as it:
            await it.join("holder", "b", "c")
            it.lose("b")
            assert it.pool.give_up_place("b") and not it.pool.give_up_place("b")
            await settle()
            assert it.positions("c") == [2, 1]
            assert not it.pool.has_place(it.token("b"))
            assert not it.pool.give_up_place("holder")

    story(run)


def test_each_mode_has_its_own_line_positions_and_bound() -> None:
    async def run() -> None:
        async with line(rollout_mode="single", rollout_share=0.5, max_waiting=1) as it:
            shared, single = names_of(it, "shared", 3), names_of(it, "single", 3)
            await it.join(*single[:1])
            await asyncio.sleep(1.0)  # the second mode is opened for the first who asks
            await it.join(*shared[:1], *single[1:2])
            # Told once before its mode was open, and never while it was served.
            assert [it.positions(name) for name in (shared[0], *single[:2])] == [[], [1], [1]]
            assert it.places[single[1]][-1].waiting == 1
            assert refused(lambda: it.pool.check_admission(single[2])) is not None
            it.pool.check_admission(shared[1])
            coming = [shared[1]]
            assert refused(lambda: it.pool.check_admission(shared[2], coming=coming)) is not None
            it.pool.check_admission(shared[2], coming=single)

    story(run)


def test_a_token_finds_the_line_of_the_other_mode() -> None:
    async def run() -> None:
        async with line(rollout_mode="single", rollout_share=0.5) as it:
            shared, single = names_of(it, "shared", 3), names_of(it, "single", 1)
            await it.join(*shared)
            it.lose(shared[1])
            it.ask(single[0], it.token(shared[1]))
            await settle()
            assert it.positions(single[0]) == [1]
            await it.pool.return_instance(it.calls[shared[0]].result())
            await settle()
            assert it.calls[single[0]].result().mode == "shared"

    story(run)


def test_engines_that_are_loaded_on_demand_need_no_line() -> None:
    async def run() -> None:
        async with line(mode="dedicated", slots=3, max_waiting=0) as it:
            await it.join("a", "b", "c")
            assert refused(lambda: it.pool.check_admission("d")) is not None
            await asyncio.sleep(1.0)
            assert all(it.calls[name].done() for name in "abc")
            with pytest.raises(QueueFull):
                await it.pool.allocate_instance("d")

    story(run)


def test_a_mode_that_nobody_had_yet_is_opened_without_a_line() -> None:
    async def run() -> None:
        async with line(rollout_mode="single", rollout_share=1.0, max_waiting=0) as it:
            it.pool.check_admission("a")
            await it.join("a")
            with pytest.raises(QueueFull):
                await it.pool.allocate_instance("b")
            await asyncio.sleep(1.0)
            assert it.calls["a"].result().mode == "single"

    story(run)


def test_who_is_refused_is_told_when_the_line_will_move() -> None:
    async def run() -> None:
        async with line(max_waiting=1, max_wait_seconds=500.0) as it:
            await it.join("holder", "b")
            check = it.pool.check_admission
            assert refused(lambda: check("c")) == 180  # a conversation, before any was seen
            await asyncio.sleep(100.0)
            assert refused(lambda: check("c")) == 280  # it lasts longer than was thought
            await asyncio.sleep(300.0)
            assert refused(lambda: check("c")) == 100  # then b has waited too long

    story(run)


def test_a_crowd_that_comes_and_goes_leaves_no_token_that_gives_anything_back() -> None:
    async def run() -> None:
        async with line(slots=2, resume_seconds=5.0) as it:
            names = [f"call-{number}" for number in range(30)]
            await it.join(*names)
            told = {name: it.token(name) for name in names[2:]}
            for number, name in enumerate(names):
                if number % 3 == 0:
                    it.lose(name)
                elif number % 3 == 1:
                    it.calls[name].cancel()
            await settle()
            assert {n for n in told if it.pool.has_place(told[n])} == {
                name for name in told if int(name[5:]) % 3 != 1
            }
            await asyncio.sleep(10.0)
            waiting = {each.call for each in it.group.book.waiting_calls(10.0)}
            assert {n for n in told if it.pool.has_place(told[n])} == waiting

    story(run)
