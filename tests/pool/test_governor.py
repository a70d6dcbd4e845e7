"""Pressure moves the pool's quality, size and mode, and all of it comes back; in virtual time.

Governor, supervisor and pool are real; memory and GPUs are what the test says, engines echo.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.support.echo_stt import EchoStt
from tests.support.fake_nvml import FakeNvml, gpu_of
from tests.support.governed import Governed, GpuEcho, Machine, governed, story, until
from tests.support.virtual_time import VirtualTimeLoop
from voice_rtc.core.alerts import AlertEvent, Cleared
from voice_rtc.core.audio import Pcm
from voice_rtc.core.ladder import NAMES
from voice_rtc.engines.base import Final, ReplicaSpec, SttQuality
from voice_rtc.errors import EngineUnavailable, Overloaded
from voice_rtc.pool.lease import Lease

QUALITIES = [
    SttQuality(1.0, economy=False),
    SttQuality(2.0, economy=False),
    SttQuality(None, economy=False),
    SttQuality(None, economy=True),
    SttQuality(None, economy=True),
    SttQuality(None, economy=True),
]
"""What each step of the ladder asks of an engine."""


async def talk(lease: Lease, pause: float = 1.0) -> None:
    """Say something, wait for the transcript, pause, and so on for ever."""
    results, number = lease.session.results(), 0
    while True:
        number += 1
        lease.session.begin(number)
        lease.session.feed(Pcm(np.full(320, 7, np.int16), 0))
        lease.session.finish(number)
        async for result in results:
            if isinstance(result, Final):
                break
        await asyncio.sleep(pause)


@asynccontextmanager
async def talking(it: Governed, *names: str, pause: float = 1.0) -> AsyncIterator[list[Lease]]:
    """These callers have slots and talk until the block ends."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        leases = [await stack.enter_async_context(it.pool.lease(name)) for name in names]
        tasks_of_callers = [tasks.create_task(talk(lease, pause)) for lease in leases]
        try:
            yield leases
        finally:
            for task in tasks_of_callers:
                task.cancel()


class Told:
    """What the calls and the operator are told, with the time."""

    def __init__(self, it: Governed) -> None:
        self.steps: list[tuple[float, int, str]] = []
        """Time, step and whether the engines were asked for its quality by then."""
        self.sentences: list[str] = []
        self.alerts: list[str] = []
        it.pool.supervisor.on_step = self._step
        it.pool.supervisor.governor.alerts.on_alert = self._alert

    def _step(self, step: int, name: str, sentence: str) -> None:
        self.steps.append((asyncio.get_running_loop().time(), step, name))
        self.sentences.append(sentence)

    def _alert(self, event: AlertEvent) -> None:
        cleared = isinstance(event, Cleared)
        self.alerts.append(f"{'-' if cleared else '+'}{event.alert.name}")

    @property
    def walked(self) -> list[int]:
        return [step for _, step, _ in self.steps]


def events(it: Governed) -> list[str]:
    """What happened, oldest first."""
    return [each["text"] for each in reversed(it.status["events"])]


def set_seconds(it: Governed, seconds: float) -> None:
    """Finals of every engine take so long from now on."""
    for engine in it.engines:
        engine.seconds = seconds


# -------------------------------------------------------------------------------- the ladder


def test_slow_finals_climb_the_ladder_to_the_top_and_quick_ones_come_down() -> None:
    async def run() -> None:
        async with governed(slots=4) as it, talking(it, "a", "b"):
            told, seen = Told(it), set()
            engine = it.engines[0]

            def consistent() -> bool:
                """All who are to know of the step know the same one."""
                ladder = it.status["ladder"]
                step = ladder["step"]
                seen.add(step)
                assert ladder["name"] == NAMES[step]
                assert engine.quality == QUALITIES[step]
                assert it.count("degradation_step") == step
                assert (
                    it.status["admission"]["state"]
                    == (["open"] * 4 + ["queue_only", "refuse"])[step]
                )
                assert bool(ladder["reason"]) == bool(step)
                return True

            await until(consistent)
            await asyncio.sleep(30.0)
            assert told.steps == []
            set_seconds(it, 1.0)
            for step in range(1, 6):
                await until(lambda step=step: consistent() and step in told.walked)
                await asyncio.sleep(1.5)
                consistent()
                assert "take 1.00 s, the goal is 0.60 s" in it.status["ladder"]["reason"]
            with pytest.raises(Overloaded, match="takes no new calls"):
                it.pool.check_admission("late")
            set_seconds(it, 0.05)
            await until(lambda: consistent() and it.status["ladder"]["step"] == 0, 200.0)
            it.pool.check_admission("late")
            assert told.walked == [1, 2, 3, 4, 5, 4, 3, 2, 1, 0] and seen == set(range(6))
            assert [b - a >= 5.0 for (a, *_), (b, *_) in pairwise(told.steps)] == [True] * 9
            assert [bool(sentence) for sentence in told.sentences] == [True] * 9 + [False]
            assert "ladder: refuse (final transcripts take 1.00 s" in "\n".join(events(it))
            assert "+ladder_up" in told.alerts

    story(run)


def test_on_queue_only_new_callers_wait_for_a_free_slot_and_are_served_afterwards() -> None:
    async def run() -> None:
        async with governed(slots=4) as it, AsyncExitStack() as calls:
            async with talking(it, "a", "b"):
                set_seconds(it, 1.0)
                await until(lambda: it.status["ladder"]["name"] == "queue_only", 120.0)
                async with asyncio.TaskGroup() as tasks:
                    waiting = tasks.create_task(calls.enter_async_context(it.pool.lease("c")))
                    await asyncio.sleep(2.0)
                    assert it.status["slots"]["free"] == 0 and not waiting.done()
                    assert it.status["line"]["waiting"] == 1
                    set_seconds(it, 0.05)
                    await until(waiting.done)
                    assert it.status["ladder"]["name"] == "economy"
            assert it.status["slots"]["total"] == 4 and it.status["slots"]["leased"] == 1

    story(run)


def test_a_short_hitch_costs_one_step_and_no_more() -> None:
    """What was slow before a step is not held against the quality after it."""

    async def run() -> None:
        async with governed(slots=4) as it, talking(it, "a", "b", "c"):
            told = Told(it)
            await asyncio.sleep(30.0)
            set_seconds(it, 1.5)
            await asyncio.sleep(4.0)
            set_seconds(it, 0.05)
            await asyncio.sleep(60.0)
            assert told.walked == [1, 0]

    story(run)


def test_one_slow_final_says_nothing_about_the_load() -> None:
    async def run() -> None:
        async with governed(slots=4) as it:
            told = Told(it)
            async with talking(it, "a", pause=20.0):
                set_seconds(it, 0.9)
                await asyncio.sleep(120.0)
            assert told.steps == []

    story(run)


def test_an_engine_that_gives_no_finals_is_noticed_by_who_waits_for_one() -> None:
    async def run() -> None:
        async with governed(slots=4) as it, talking(it, "a"):
            set_seconds(it, 30.0)
            await until(lambda: it.status["ladder"]["step"] == 2)
            assert "for an engine" in it.status["ladder"]["reason"]

    story(run)


def test_without_an_engine_new_callers_wait_and_with_one_they_are_served_at_once() -> None:
    async def run() -> None:
        broken = True

        def make(spec: ReplicaSpec) -> EchoStt:
            engine = EchoStt(spec, seconds=0.05)
            if broken and made:
                engine.start_error = EngineUnavailable("no weights")
            made.append(engine)
            return engine

        made: list[EchoStt] = []
        async with governed(make=make, slots=4) as it:
            told = Told(it)
            made[0].kill()
            await until(lambda: it.status["ladder"]["name"] == "queue_only")
            assert told.walked == [4] and it.status["ladder"]["reason"] == "no replica is ready"
            broken = False
            async with asyncio.timeout(60.0), it.pool.lease("a"):
                assert told.walked == [4, 0]
            assert made[-1].quality == QUALITIES[0]

    story(run)


def test_an_engine_that_comes_later_gets_the_quality_of_the_step() -> None:
    async def run() -> None:
        async with governed(slots=4) as it, talking(it, "a", "b"):
            set_seconds(it, 1.0)
            await until(lambda: it.status["ladder"]["step"] == 3)
            it.engines[0].kill()
            await until(lambda: len(it.loaded) == 1 and it.loaded[0] is not it.engines[0])
            step = it.status["ladder"]["step"]
            assert step >= 3 and it.loaded[0].quality == QUALITIES[step]

    story(run)


# ------------------------------------------------------------------------------------ memory


def test_critical_memory_climbs_within_seconds_and_calm_comes_down() -> None:
    async def run() -> None:
        async with governed(slots=4) as it:
            told = Told(it)
            it.machine.fill(0.95)
            assert await until(lambda: it.status["ladder"]["name"] == "refuse") <= 8.0
            assert told.walked == [1, 2, 3, 4, 5]
            assert it.status["ladder"]["reason"] == "95% of the memory is in use"
            assert it.status["machine"]["memory_pressure"] == "critical"
            assert it.count("memory_pressure") == 2.0
            await asyncio.sleep(20.0)
            assert "+memory_pressure" in told.alerts and "+ladder_up" in told.alerts
            it.machine.fill(0.5)
            await until(lambda: it.status["ladder"]["step"] == 0, 120.0)
            assert told.walked[5:] == [4, 3, 2, 1, 0] and it.count("memory_pressure") == 0.0
            await asyncio.sleep(60.0)
            assert "-memory_pressure" in told.alerts and "-ladder_up" in told.alerts
            assert it.status["alerts"] == []

    story(run)


def test_a_gpu_that_others_fill_is_pressure_too() -> None:
    async def run() -> None:
        machine = Machine(FakeNvml([gpu_of(24), gpu_of(80)]))
        async with governed(machine, lambda spec: GpuEcho(spec, machine), slots=4) as it:
            machine.nvml.gpus[1].used_mb = machine.nvml.gpus[1].total_mb - 1000
            await until(lambda: it.status["machine"]["memory_pressure"] == "critical")
            assert "memory pressure is critical: GPU 1: 1.0 of 79.6 GB free" in events(it)

    story(run)


def test_spares_go_when_memory_is_high_and_come_back() -> None:
    async def run() -> None:
        async with governed(slots=4, spares=2) as it, talking(it, "a") as (lease,):
            await until(lambda: len(it.loaded) == 3)
            it.machine.fill(0.88)
            await until(lambda: len(it.loaded) == 1)
            assert [each["role"] for each in it.status["replicas"]] == ["serving"]
            assert it.status["ladder"]["step"] == 0, "high is no reason to give up quality"
            await asyncio.sleep(30.0)
            assert len(it.loaded) == 1
            it.machine.fill(0.5)
            await until(lambda: len(it.loaded) == 3)
            it.loaded[0].kill()
            await asyncio.sleep(1.0)
            assert lease.session.attached

    story(run)


def test_idle_dedicated_engines_go_at_once_when_memory_is_high() -> None:
    async def run() -> None:
        async with governed(mode="dedicated", slots=5) as it:
            async with talking(it, "a", "b", "c"):
                await asyncio.sleep(2.0)
            async with talking(it, "d"):
                assert len(it.loaded) == 3
                it.machine.fill(0.88)
                assert await until(lambda: len(it.loaded) == 1) <= 3.0

    story(run)


def on_gpu(gigabytes: int) -> tuple[Machine, Callable[[ReplicaSpec], GpuEcho]]:
    machine = Machine(FakeNvml([gpu_of(gigabytes)]))
    return machine, lambda spec: GpuEcho(spec, machine)


def test_dedicated_falls_back_to_shared_at_critical_memory_and_returns_when_it_is_calm() -> None:
    async def run() -> None:
        machine, make = on_gpu(24)
        async with governed(machine, make, mode="dedicated") as it, AsyncExitStack() as calls:
            told = Told(it)
            old = [await calls.enter_async_context(it.pool.lease(f"old-{n}")) for n in range(3)]
            assert it.by_device == {0: 3}
            machine.fill(0.95)
            await until(lambda: it.status["mode"] == "shared")
            fallback = it.status["fallback"]
            assert (fallback["from"], fallback["to"]) == ("dedicated", "shared")
            assert fallback["reason"].startswith("95% of the memory is in use (memory: ")
            await asyncio.sleep(2.0)
            assert "+engine_fallback" in told.alerts
            assert [lease.mode for lease in old] == ["dedicated"] * 3
            machine.fill(0.86)  # not critical any more, and not calm
            await until(lambda: it.status["admission"]["state"] == "open", 120.0)
            new = await calls.enter_async_context(it.pool.lease("new"))
            assert new.mode == "shared"
            await asyncio.sleep(120.0)
            assert it.status["mode"] == "shared"
            machine.fill(0.5)
            assert 60.0 <= await until(lambda: it.status["mode"] == "dedicated", 90.0) <= 75.0
            assert it.status["fallback"] is None
            again = await calls.enter_async_context(it.pool.lease("again"))
            assert (again.mode, new.mode) == ("dedicated", "shared")
            await asyncio.sleep(40.0)
            assert "-engine_fallback" in told.alerts

    story(run)


def test_idle_engines_make_room_for_the_one_that_serves_all() -> None:
    """On a full GPU nothing could be loaded beside them."""

    async def run() -> None:
        machine, make = on_gpu(8)
        async with governed(machine, make, mode="dedicated") as it:
            machine.nvml.gpus[0].used_mb += 4700  # 492 MB are left
            await until(lambda: it.status["mode"] == "shared", 30.0)
            assert [engine.spec.mode for engine in it.loaded] == ["shared"]
            machine.nvml.gpus[0].used_mb -= 4700
            await until(lambda: it.status["mode"] == "dedicated", 120.0)
            async with it.pool.lease("a") as lease:
                assert lease.mode == "dedicated"

    story(run)


def test_who_waits_is_not_left_behind_when_the_mode_changes() -> None:
    async def run() -> None:
        async with governed(mode="dedicated", slots=1) as it, AsyncExitStack() as calls:
            old = await calls.enter_async_context(it.pool.lease("old"))
            async with asyncio.TaskGroup() as tasks:
                waiting = [
                    tasks.create_task(calls.enter_async_context(it.pool.lease(f"waits-{n}")))
                    for n in range(2)
                ]
                await asyncio.sleep(1.0)
                assert it.status["line"]["waiting"] == 2
                await it.pool.resize(0)
                await it.pool.switch_mode("shared")
                await until(lambda: all(task.done() for task in waiting), 5.0)
            assert [task.result().mode for task in waiting] == ["shared"] * 2
            assert old.mode == "dedicated" and old.session.attached

    story(run)


def test_a_fallback_that_does_not_work_is_tried_again_and_never_claimed() -> None:
    async def run() -> None:
        made: list[EchoStt] = []

        def make(spec: ReplicaSpec) -> EchoStt:
            made.append(EchoStt(spec, seconds=0.05))
            if spec.mode == "shared" and len(made) < 4:
                made[-1].start_error = EngineUnavailable("no memory")
            return made[-1]

        async with governed(make=make, mode="dedicated", slots=2) as it, talking(it, "a"):
            it.machine.fill(0.95)
            await until(lambda: len(made) == 3)
            assert it.status["fallback"] is None and it.status["mode"] == "dedicated"
            assert await until(lambda: it.status["mode"] == "shared") <= 12.0
            assert it.status["fallback"]["to"] == "shared"
            happened = [text for text in events(it) if "mode shared could not be taken" in text]
            assert happened == ["mode shared could not be taken: no memory"] * 2

    story(run)


def test_memory_that_is_critical_from_the_start_is_no_reason_not_to_start() -> None:
    async def run() -> None:
        machine = Machine()
        machine.fill(0.95)
        async with governed(machine, mode="dedicated", slots=2) as it:
            await until(lambda: it.status["mode"] == "shared")
            machine.fill(0.5)
            await until(lambda: it.status["mode"] == "dedicated", 120.0)
            await until(lambda: it.status["ladder"]["step"] == 0, 120.0)
            async with it.pool.lease("a") as lease:
                assert lease.mode == "dedicated"

    story(run)


def test_an_operators_mode_is_not_changed_back() -> None:
    async def run() -> None:
        async with governed(mode="dedicated", slots=2) as it:
            it.machine.fill(0.95)
            await until(lambda: it.status["mode"] == "shared")
            await it.pool.switch_mode("shared")
            it.machine.fill(0.5)
            await asyncio.sleep(200.0)
            assert it.status["mode"] == "shared" and it.status["fallback"] is None

    story(run)


def test_no_calls_are_sent_to_a_trial_of_dedicated_while_memory_is_short() -> None:
    async def run() -> None:
        trial: dict[str, Any] = {"rollout_mode": "dedicated", "rollout_share": 1.0}
        async with governed(slots=4, **trial) as it:
            async with it.pool.lease("a") as lease:
                assert lease.mode == "dedicated"
            it.machine.fill(0.88)
            await until(lambda: it.status["machine"]["memory_pressure"] == "high")
            async with it.pool.lease("b") as lease:
                assert lease.mode == "shared"

    story(run)


# --------------------------------------------------------------------------------- admission


class CrowdedEcho(EchoStt):
    """Finals take 0.6 s, the goal, when ``carried`` callers have sessions, more with more."""

    carried = 20

    @property
    def recommended_slots(self) -> int:
        """Twice what is true."""
        return 2 * self.carried

    @property
    def seconds(self) -> float:
        """By the crowd."""
        return 0.6 * len(self.sessions) / self.carried

    @seconds.setter
    def seconds(self, _seconds: float) -> None:
        """Not to be set."""


class Crowd:
    """Callers who come one after the other, wait, talk for a while, and go."""

    def __init__(self, it: Governed, tasks: asyncio.TaskGroup) -> None:
        self.it = it
        self._tasks = tasks
        self.come = self.served = 0

    def join(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.come += 1
            self._tasks.create_task(self._call(f"call-{self.come}", seconds))

    async def _call(self, name: str, seconds: float) -> None:
        async with self.it.pool.lease(name) as lease:
            self.served += 1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await talk(lease, pause=4.0)


def test_admission_closes_when_finals_are_late_and_those_who_wait_are_served_later() -> None:
    async def run() -> None:
        async with governed(make=CrowdedEcho, max_waiting=500) as it, asyncio.TaskGroup() as tasks:
            assert it.status["slots"]["total"] == 40
            crowd = Crowd(it, tasks)
            crowd.join(26, 90.0)
            await until(lambda: it.status["admission"]["state"] == "queue_only", 40.0)
            assert "the goal is 0.6 s" in it.status["admission"]["reason"]
            assert it.status["slots"]["free"] == 0
            crowd.join(5, 30.0)
            await asyncio.sleep(5.0)
            assert it.status["line"]["waiting"] == 5 and crowd.served == 26
            await until(lambda: it.status["admission"]["state"] == "open", 200.0)
            await until(lambda: crowd.served == 31, 60.0)
            assert any(
                "admission queue_only: Final transcripts take" in text for text in events(it)
            )

    story(run)


def test_under_a_lasting_crowd_admission_finds_its_level_and_does_not_flap() -> None:
    async def run() -> None:
        settings = {"max_waiting": 500, "max_wait_seconds": 86_000.0, "heartbeat_seconds": 0.5}
        async with governed(make=CrowdedEcho, **settings) as it, asyncio.TaskGroup() as tasks:
            crowd, changes, states, talk_level = Crowd(it, tasks), 0, "open", []
            told = Told(it)
            for number in range(250):
                crowd.join(1, 60.0 + number * 37 % 180)
            for second in range(1800):
                await asyncio.sleep(1.0)
                state = it.status["admission"]["state"]
                changes += state != states
                states = state
                if second > 600:
                    talk_level.append(it.status["slots"]["leased"])
                if crowd.served == crowd.come:
                    break
            assert changes <= 4 and told.walked == [1, 2, 3, 2, 1, 0], "nobody is turned away"
            assert 11 <= sum(talk_level) / len(talk_level) <= 20 and max(talk_level) <= 20
            await until(lambda: crowd.served == crowd.come, 2000.0)

    story(run)


def test_shared_slots_grow_while_finals_are_quick_and_somebody_waits_and_are_not_used_up() -> None:
    async def run() -> None:
        async with governed(max_slots=12) as it, asyncio.TaskGroup() as tasks:
            assert it.status["slots"]["total"] == it.status["slots"]["target"] == 4
            crowd = Crowd(it, tasks)
            crowd.join(20, 120.0)
            await asyncio.sleep(1.0)
            assert it.status["slots"]["leased"] == 4 and it.status["line"]["waiting"] == 16
            await until(lambda: it.status["slots"]["total"] == 12, 100.0)
            await asyncio.sleep(5.0)
            assert it.status["slots"]["leased"] == it.status["slots"]["target"] == 12
            assert it.status["slots"]["max"] == 12
            await until(lambda: crowd.served == 20, 200.0)
            assert it.status["slots"]["total"] == 12

    story(run)


def test_a_fixed_number_of_slots_stays_whatever_is_measured() -> None:
    async def run() -> None:
        async with governed(make=CrowdedEcho, slots=30) as it, asyncio.TaskGroup() as tasks:
            crowd = Crowd(it, tasks)
            crowd.join(30, 60.0)
            await asyncio.sleep(20.0)
            assert it.status["slots"]["leased"] == it.status["slots"]["total"] == 30
            assert it.status["admission"]["state"] == "open"
            assert it.status["ladder"]["step"] >= 1, "the ladder does what it can"

    story(run)


def test_each_mode_answers_for_its_own_finals() -> None:
    """Slow finals of a mode under trial do not close the other."""

    async def run() -> None:
        def make(spec: ReplicaSpec) -> EchoStt:
            return EchoStt(spec, seconds=1.0 if spec.mode == "single" else 0.05)

        trial: dict[str, Any] = {"rollout_mode": "single", "rollout_share": 0.5}
        async with governed(make=make, **trial) as it, AsyncExitStack() as calls:
            names = [f"call-{n}" for n in range(40)]
            tried = [name for name in names if it.pool.mode_of(name) == "single"]
            usual = [name for name in names if it.pool.mode_of(name) == "shared"]
            await calls.enter_async_context(talking(it, *tried[:3], *usual[:3]))
            group = it.pool.groups["single"]
            await until(lambda: group.held)
            assert it.status["admission"]["state"] == "open"
            async with asyncio.timeout(1.0):
                await calls.enter_async_context(it.pool.lease(usual[3]))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0), it.pool.lease(tried[3]):
                    pass

    story(run)


def test_a_mode_that_was_left_while_closed_opens_again() -> None:
    async def run() -> None:
        async with governed(make=CrowdedEcho) as it, asyncio.TaskGroup() as tasks:
            crowd = Crowd(it, tasks)
            crowd.join(26, 120.0)
            await until(lambda: it.pool.groups["shared"].held, 40.0)
            await it.pool.switch_mode("single")
            assert it.status["admission"]["state"] == "open"
            await until(lambda: not it.pool.groups["shared"].held, 200.0)

    story(run)


# ---------------------------------------------------------------------- the server's own process


class Busy:
    """Work on the server's event loop, for so many seconds at a time."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.seconds = 0.0
        self._task = tasks.create_task(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        while True:
            await asyncio.sleep(0.0171)  # never in step with the beats that measure it
            loop.pass_time(self.seconds)

    def end(self) -> None:
        self._task.cancel()


def test_a_late_event_loop_turns_calls_away_until_it_has_time_again() -> None:
    async def run() -> None:
        async with governed() as it, asyncio.TaskGroup() as tasks, AsyncExitStack() as calls:
            told, busy = Told(it), Busy(tasks)
            await calls.enter_async_context(it.pool.lease("a"))
            await asyncio.sleep(30.0)
            assert it.status["admission"] == {"state": "open", "reason": ""}
            busy.seconds = 0.08
            await until(lambda: it.status["admission"]["state"] == "refuse", 30.0)
            why = it.status["admission"]["reason"]
            assert "event loop runs" in why and "50 ms is the bound" in why
            assert it.status["machine"]["loop_lag_ms"] > 50.0
            assert it.status["slots"]["free"] == 0 and it.status["ladder"]["step"] == 0
            with pytest.raises(Overloaded, match="event loop runs"):
                it.pool.check_admission("b")
            waiting = tasks.create_task(calls.enter_async_context(it.pool.lease("b")))
            await asyncio.sleep(30.0)
            assert not waiting.done() and "+server_busy" in told.alerts
            assert "server_busy" in [each["name"] for each in it.status["alerts"]]
            busy.seconds = 0.03
            await asyncio.sleep(60.0)
            assert it.status["admission"]["state"] == "refuse", "better, but not well"
            busy.seconds = 0.005
            assert await until(waiting.done, 40.0) <= 25.0
            it.pool.check_admission("c")
            await asyncio.sleep(40.0)
            busy_alerts = [alert for alert in told.alerts if "server_busy" in alert]
            assert busy_alerts == ["+server_busy", "-server_busy"]
            busy.end()

    story(run)


def test_a_process_that_uses_its_core_up_turns_calls_away_if_its_loop_feels_it() -> None:
    async def run() -> None:
        async with governed() as it, asyncio.TaskGroup() as tasks:
            busy = Busy(tasks)
            caller = await it.pool.allocate_instance("a")  # nobody is refused without a call
            it.machine.use_cores(1.7)  # engines, in threads of their own
            await asyncio.sleep(60.0)
            assert it.status["admission"]["state"] == "open"
            assert it.status["machine"]["server_cores"] == pytest.approx(1.7)
            busy.seconds = 0.02
            await until(lambda: it.status["admission"]["state"] == "refuse", 30.0)
            assert "uses 1.70 of a core" in it.status["admission"]["reason"]
            it.machine.use_cores(0.7)
            await until(lambda: it.status["admission"]["state"] == "open", 30.0)
            busy.end()
            await it.pool.return_instance(caller)

    story(run)


def test_a_busy_process_does_not_flap_admission() -> None:
    """Each call costs 0.06 of a core; a hundred want in, at most some fifteen may."""

    async def run() -> None:
        patient: dict[str, Any] = {"max_wait_seconds": 86_000.0, "heartbeat_seconds": 0.5}

        def make(spec: ReplicaSpec) -> CrowdedEcho:
            engine = CrowdedEcho(spec)
            engine.carried = 200  # recognition is no limit
            return engine

        async with governed(make=make, max_slots=40, **patient) as it, asyncio.TaskGroup() as tasks:
            crowd, busy, changes, before, levels = Crowd(it, tasks), Busy(tasks), 0, "open", []
            for number in range(100):
                crowd.join(1, 60.0 + number * 37 % 120)
            for second in range(1200):
                leased = it.pool.statistics().leased
                it.machine.use_cores(0.06 * leased)
                busy.seconds = 0.02 if leased > 12 else 0.001
                await asyncio.sleep(1.0)
                state = it.status["admission"]["state"]
                changes += state != before
                before = state
                if second > 300 and crowd.served < crowd.come:
                    levels.append(leased)
            assert crowd.served == crowd.come, "nobody is forgotten"
            assert changes <= 8
            assert 9 <= sum(levels) / len(levels) <= 15.5, levels
            busy.end()

    story(run)


def test_with_fixed_slots_a_busy_process_is_told_of_and_nothing_more() -> None:
    async def run() -> None:
        async with governed(slots=4) as it, asyncio.TaskGroup() as tasks:
            told, busy = Told(it), Busy(tasks)
            busy.seconds = 0.08
            await until(lambda: told.alerts == ["+server_busy"])
            assert it.status["admission"]["state"] == "open"
            it.pool.check_admission("a")
            busy.end()

    story(run)


def test_slots_are_as_many_as_the_server_carries_the_media_of() -> None:
    async def run() -> None:
        media = {"call_core_share": 0.3}
        async with governed(media=media) as it:
            assert it.status["slots"]["total"] == it.status["slots"]["target"] == 3
            assert it.status["sizing"]["explanation"].endswith(
                "The server's own process carries about 3 calls: each takes 0.3 of a core, and its "
                "one event loop has 0.9."
            )
        async with governed(media=media, slots=8) as it:
            assert it.status["slots"]["total"] == 8
            assert it.status["sizing"]["explanation"].endswith("Beyond that audio suffers.")

    story(run)
