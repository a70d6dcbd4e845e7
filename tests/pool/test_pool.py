"""The pool with engines that tell which audio they were given, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from tests.support.echo_stt import EchoStt, said
from tests.support.virtual_time import run_virtual
from voice_rtc.config import Settings
from voice_rtc.core.audio import Pcm
from voice_rtc.engines.base import EngineSet, Final, ReplicaSpec
from voice_rtc.engines.fakes import EchoLlm, ThresholdVad, ToneTts
from voice_rtc.errors import (
    CallReplaced,
    EngineUnavailable,
    OutOfGpuMemory,
    QueueFull,
    QueueTimeout,
    StateError,
)
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import GpuReadings
from voice_rtc.pool.lease import Lease, LeaseRequest, Place
from voice_rtc.pool.pool import AudioInputProcessorPool, SttPool


class Rig:
    """A pool and every engine that it ever had, oldest first."""

    def __init__(self, pool: SttPool, engines: list[EchoStt], metrics: Metrics) -> None:
        self.pool = pool
        self.engines = engines
        self.metrics = metrics

    @property
    def loaded(self) -> list[EchoStt]:
        return [engine for engine in self.engines if not engine.closed]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0

    def engine_of(self, lease: Lease) -> EchoStt:
        (found,) = [r.engine for r in self.pool.supervisor.replicas() if lease.call_id in r.leases]
        assert isinstance(found, EchoStt)
        return found


@asynccontextmanager
async def rig(
    *, seconds: float = 0.05, can_multiply: bool = True, **pool: Any
) -> AsyncIterator[Rig]:
    engines: list[EchoStt] = []

    def make(spec: ReplicaSpec) -> EchoStt:
        engines.append(EchoStt(spec, seconds=seconds))
        return engines[-1]

    defaults: dict[str, Any] = {"slots": 2, "spares": 0, "memory_high": 0.998,
                                "memory_critical": 0.999}  # fmt: skip
    settings = Settings(pool={**defaults, **pool})
    first = make(ReplicaSpec(settings.pool.mode))
    stt_factory = make if can_multiply else None
    chosen = EngineSet(ThresholdVad(), first, EchoLlm(), ToneTts(), (), stt_factory)
    metrics = Metrics()
    async with SttPool(settings, chosen, metrics, lambda: GpuReadings((), "")).running() as built:
        yield Rig(built, engines, metrics)
    for engine in engines[1:]:
        assert engine.closed and not engine.sessions


def story(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run_virtual(work())


def pcm(number: int, samples: int = 320) -> Pcm:
    return Pcm(np.full(samples, number, np.int16), 0)


async def transcribe(lease: Lease, utterance: int, number: int, pieces: int = 3) -> str:
    lease.session.begin(utterance)
    for _ in range(pieces):
        lease.session.feed(pcm(number))
    lease.session.finish(utterance)
    return await final(lease)


async def final(lease: Lease) -> str:
    async for result in lease.session.results():
        if isinstance(result, Final):
            return result.text
    raise AssertionError("the session ended")


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Virtual time costs nothing; the bound is for a test that fails."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def test_the_name_of_the_original_plan_is_kept() -> None:
    assert AudioInputProcessorPool is SttPool


def test_a_lease_is_a_slot_with_a_session() -> None:
    async def run() -> None:
        async with rig() as it:
            async with it.pool.lease("a") as lease:
                assert await transcribe(lease, 1, 7) == said(7, 960)
                assert it.pool.statistics().available == 1
                assert it.count("leases_active") == 1
            assert it.pool.statistics().available == 2
            assert it.count("leases_active") == 0 and not it.engines[0].sessions

    story(run)


def test_lease_ids_rise_for_ever() -> None:
    async def run() -> None:
        async with rig() as it:
            ids = []
            for number in range(5):
                async with it.pool.lease(f"call-{number}") as lease:
                    ids.append(lease.id)
            assert ids == sorted(set(ids))

    story(run)


def test_the_line_is_first_come_first_served_with_true_positions() -> None:
    async def run() -> None:
        async with rig(slots=1) as it:
            told: dict[str, list[int]] = {name: [] for name in "bcd"}
            order: list[str] = []

            async def caller(name: str) -> None:
                def on_place(place: Place) -> None:
                    told[name].append(place.position)

                async with it.pool.lease(LeaseRequest(name, on_place=on_place)):
                    order.append(name)
                    await asyncio.sleep(1.0)

            first = await it.pool.allocate_instance("a")
            async with asyncio.TaskGroup() as tasks:
                for name in "bcd":
                    tasks.create_task(caller(name))
                    await asyncio.sleep(0)
                assert it.pool.statistics().waiting == 3
                await it.pool.return_instance(first)
            assert order == ["b", "c", "d"]
            changes = {name: list(dict.fromkeys(positions)) for name, positions in told.items()}
            assert changes == {"b": [1], "c": [2, 1], "d": [3, 2, 1]}

    story(run)


def test_a_full_line_refuses() -> None:
    async def run() -> None:
        async with rig(slots=1, max_waiting=1) as it:
            async with it.pool.lease("a"), asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(it.pool.allocate_instance("b"))
                await asyncio.sleep(0)
                with pytest.raises(QueueFull):
                    it.pool.check_admission("c")
                with pytest.raises(QueueFull):
                    await it.pool.allocate_instance("c")
                waiting.cancel()
            it.pool.check_admission("c")

    story(run)


def test_calls_on_their_way_count_for_admission() -> None:
    async def run() -> None:
        async with rig(slots=2, max_waiting=1) as it:
            it.pool.check_admission("d", coming=["a", "b"])
            with pytest.raises(QueueFull):
                it.pool.check_admission("d", coming=["a", "b", "c"])

    story(run)


def test_waiting_has_an_end() -> None:
    async def run() -> None:
        async with rig(slots=1, max_wait_seconds=5.0) as it:
            async with it.pool.lease("a"):
                with pytest.raises(QueueTimeout):
                    await it.pool.allocate_instance("b")
            assert it.pool.statistics().waiting == 0
            assert it.count("leases_total", result="timed_out") == 1

    story(run)


def test_a_caller_that_comes_back_has_its_place() -> None:
    async def run() -> None:
        async with rig(slots=1) as it:
            places: dict[str, Place] = {}

            def noting(name: str) -> Callable[[Place], None]:
                return lambda place: places.__setitem__(name, place)

            async with it.pool.lease("a"), asyncio.TaskGroup() as tasks:
                first = tasks.create_task(
                    it.pool.allocate_instance(LeaseRequest("b", on_place=noting("b")))
                )
                await asyncio.sleep(0)
                other = tasks.create_task(it.pool.allocate_instance("c"))
                await asyncio.sleep(0)
                it.pool.keep_place("b")
                first.cancel()
                await asyncio.sleep(3.0)
                request = LeaseRequest("b2", resume=places["b"].token, on_place=noting("b2"))
                back = tasks.create_task(it.pool.allocate_instance(request))
                await asyncio.sleep(0)
                assert places["b2"].position == 1
                other.cancel()
                back.cancel()

    story(run)


def test_a_place_is_not_kept_for_ever_nor_for_those_who_hang_up() -> None:
    async def run() -> None:
        async with rig(slots=1, resume_seconds=10.0) as it:
            tokens: list[str] = []
            async with it.pool.lease("a"), asyncio.TaskGroup() as tasks:
                for name, keeps in (("b", True), ("c", False)):
                    request = LeaseRequest(name, on_place=lambda place: tokens.append(place.token))
                    task = tasks.create_task(it.pool.allocate_instance(request))
                    await asyncio.sleep(0)
                    if keeps:
                        it.pool.keep_place(name)
                    task.cancel()
                    await asyncio.sleep(0)
                assert it.pool.statistics().waiting == 1
                await asyncio.sleep(15.0)
                assert it.pool.statistics().waiting == 0
                assert not any(it.pool.has_place(token) for token in tokens)

    story(run)


def test_who_comes_back_while_the_old_connection_still_waits_replaces_it() -> None:
    async def run() -> None:
        async with rig(slots=1) as it:
            tokens: list[str] = []

            async def old() -> None:
                with pytest.raises(CallReplaced):
                    await it.pool.allocate_instance(
                        LeaseRequest("b", on_place=lambda place: tokens.append(place.token))
                    )

            async with asyncio.TaskGroup() as tasks:
                holder = await it.pool.allocate_instance("a")
                tasks.create_task(old())
                await asyncio.sleep(0)
                new = tasks.create_task(
                    it.pool.allocate_instance(LeaseRequest("b2", resume=tokens[0]))
                )
                await asyncio.sleep(0)
                await it.pool.return_instance(holder)
            await it.pool.return_instance(new.result())
            assert it.pool.statistics().leased == 0

    story(run)


@pytest.mark.parametrize("turns", range(6))
def test_cancelling_at_any_moment_leaks_nothing(turns: int) -> None:
    """The task is cancelled after ``turns`` turns of the loop, with and without a free slot."""

    async def run() -> None:
        async with rig(slots=1) as it:
            for busy in (False, True):
                holder = await it.pool.allocate_instance("holder") if busy else None
                async with asyncio.TaskGroup() as tasks:
                    task = tasks.create_task(it.pool.allocate_instance("x"))
                    for turn in range(turns):
                        await asyncio.sleep(0)
                        if turn == 1 and holder is not None:
                            await it.pool.return_instance(holder)
                    task.cancel()
                if not task.cancelled():
                    await it.pool.return_instance(task.result())
                if holder is not None:
                    await it.pool.return_instance(holder)
                assert it.pool.statistics().leased == 0
                assert it.pool.statistics().waiting == 0
                async with it.pool.lease("next") as lease:
                    assert await transcribe(lease, 1, 3) == said(3, 960)

    story(run)


# --------------------------------------------------------------------------- replacement


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("spares", [0, 1])
def test_a_dead_or_hung_engine_costs_no_word(how: str, spares: int) -> None:
    async def run() -> None:
        async with rig(slots=3, spares=spares, seconds=0.2) as it:
            await until(lambda: len(it.loaded) == 1 + spares)
            leases = [await it.pool.allocate_instance(f"call-{n}") for n in range(3)]
            async with asyncio.TaskGroup() as tasks:
                running = []
                for number, lease in enumerate(leases, 1):
                    running.append(tasks.create_task(transcribe(lease, 1, number)))
                await asyncio.sleep(0.1)
                getattr(it.engine_of(leases[0]), how)()
            assert [task.result() for task in running] == [said(n, 960) for n in (1, 2, 3)]
            assert (
                it.count("stt_replays_total", reason="killed")
                + it.count("stt_replays_total", reason="silent")
                + it.count("stt_replays_total", reason="engine_failed")
                >= 3
            )
            await until(lambda: len(it.loaded) == 1 + spares)
            for lease in leases:
                assert await transcribe(lease, 2, 9) == said(9, 960)
                await it.pool.return_instance(lease)

    story(run)


def test_an_engine_out_of_memory_is_quarantined_after_one_failure() -> None:
    async def run() -> None:
        async with rig(seconds=0.1) as it:
            async with it.pool.lease("a") as lease:
                it.engines[0].next_error = OutOfGpuMemory("CUDA out of memory")
                assert await transcribe(lease, 1, 5) == said(5, 960)
            assert it.engines[0].closed and len(it.loaded) == 1
            happened = [each.text for each in it.pool.supervisor.happenings]
            assert any("quarantined" in text for text in happened)

    story(run)


def test_a_successor_that_does_not_load_is_tried_again() -> None:
    async def run() -> None:
        async with rig(seconds=0.1) as it:
            async with it.pool.lease("a") as lease, asyncio.TaskGroup() as tasks:
                made = len(it.engines)
                original = it.pool.supervisor._factory
                assert original is not None

                def failing(spec: ReplicaSpec) -> Any:
                    engine = original(spec)
                    if len(it.engines) <= made + 2:
                        engine.start_error = EngineUnavailable("not yet")  # type: ignore[attr-defined]
                    return engine

                it.pool.supervisor._factory = failing
                task = tasks.create_task(transcribe(lease, 1, 5))
                await asyncio.sleep(0.05)
                it.engines[0].kill()
            assert task.result() == said(5, 960)
            assert len(it.engines) == made + 3

    story(run)


def test_an_operator_restarts_and_quarantines_under_running_calls() -> None:
    async def run() -> None:
        async with rig(seconds=0.1) as it:
            async with it.pool.lease("a") as lease, asyncio.TaskGroup() as tasks:
                task = tasks.create_task(transcribe(lease, 1, 5))
                await asyncio.sleep(0.01)
                (name,) = [replica.name for replica in it.pool.supervisor.replicas()]
                assert name in await it.pool.restart(name)
                await task
                assert task.result() == said(5, 960)
                (name,) = [replica.name for replica in it.pool.supervisor.replicas()]
                await it.pool.quarantine(name)
                assert await transcribe(lease, 2, 6) == said(6, 960)
            assert len(it.engines) == 3 and it.engines[0].closed and it.engines[1].closed

    story(run)


# --------------------------------------------------------------------------------- modes


def test_dedicated_engines_are_loaded_on_demand_and_unloaded_when_idle() -> None:
    async def run() -> None:
        async with rig(mode="dedicated", slots=3, idle_unload_seconds=10.0) as it:
            assert len(it.loaded) == 1
            leases = [await it.pool.allocate_instance(f"call-{n}") for n in range(3)]
            assert len({id(it.engine_of(lease)) for lease in leases}) == 3
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await it.pool.allocate_instance("one too many")
            for lease in leases:
                await it.pool.return_instance(lease)
            assert len(it.loaded) == 3
            await until(lambda: len(it.loaded) == 1)
            async with it.pool.lease("again") as lease:
                assert await transcribe(lease, 1, 4) == said(4, 960)

    story(run)


def test_the_mode_can_be_switched_under_running_calls() -> None:
    async def run() -> None:
        async with rig(slots=2, idle_unload_seconds=5.0) as it:
            old = await it.pool.allocate_instance("old")
            await it.pool.switch_mode("dedicated")
            new = await it.pool.allocate_instance("new")
            assert (old.mode, new.mode) == ("shared", "dedicated")
            assert it.engine_of(old) is not it.engine_of(new)
            assert await transcribe(old, 1, 1) == said(1, 960)
            assert await transcribe(new, 1, 2) == said(2, 960)
            await it.pool.return_instance(old)
            await until(lambda: it.engines[0].closed)
            await it.pool.return_instance(new)
            with pytest.raises(StateError):
                await it.pool.switch_mode("nonsense")

    story(run)


def test_a_share_of_the_calls_tries_another_mode() -> None:
    async def run() -> None:
        settings = {"rollout_mode": "single", "rollout_share": 0.5, "slots": 100}
        async with rig(**settings) as it:
            leases = [await it.pool.allocate_instance(f"call-{n}") for n in range(60)]
            modes = [lease.mode for lease in leases]
            assert 15 <= modes.count("single") <= 45
            assert modes.count("single") + modes.count("shared") == 60
            assert it.count("lease_wait_seconds_count", mode="single") == modes.count("single")
            assert it.pool.mode_of("call-1") == modes[1]
            for lease in leases:
                await it.pool.return_instance(lease)

    story(run)


def test_one_call_can_have_a_replica_of_its_own() -> None:
    async def run() -> None:
        async with rig(isolated_calls=1, seconds=0.1) as it:
            async with it.pool.lease("a") as lease, it.pool.lease("b") as other:
                async with asyncio.TaskGroup() as tasks:
                    task = tasks.create_task(transcribe(lease, 1, 5))
                    await asyncio.sleep(0.01)
                    await it.pool.isolate("a")
                assert task.result() == said(5, 960)
                assert it.engine_of(lease) is not it.engine_of(other)
                assert not it.engine_of(other).sessions - set(it.engines[0].sessions)
                with pytest.raises(StateError):
                    await it.pool.isolate("b")
                it.engine_of(lease).kill()
                assert await transcribe(lease, 2, 6) == said(6, 960)
                replicas = it.pool.supervisor.replicas
                await until(lambda: any(r.role == "isolated" and r.leases for r in replicas()))
                assert it.engine_of(lease) is not it.engine_of(other)
            await until(lambda: len(it.loaded) == 1)

    story(run)


def test_resizing_goes_both_ways_and_running_calls_stay() -> None:
    async def run() -> None:
        async with rig(slots=3) as it:
            leases = [await it.pool.allocate_instance(f"call-{n}") for n in range(3)]
            await it.pool.resize(1)
            assert it.pool.statistics().leased == 3
            for lease in leases:
                assert await transcribe(lease, 1, 2) == said(2, 960)
            for lease in leases:
                await it.pool.return_instance(lease)
            assert it.pool.statistics().slots == 1
            await it.pool.resize(4)
            assert it.pool.statistics().available == 4
            with pytest.raises(StateError):
                await it.pool.resize(100_000)

    story(run)


def test_an_engine_that_is_alone_stays_alone() -> None:
    async def run() -> None:
        async with rig(can_multiply=False) as it:
            with pytest.raises(StateError):
                await it.pool.switch_mode("dedicated")
            with pytest.raises(StateError):
                await it.pool.restart("shared-1")
            async with it.pool.lease("a") as lease:
                assert await transcribe(lease, 1, 5) == said(5, 960)
                with pytest.raises(StateError):
                    await it.pool.isolate("a")

    story(run)


# --------------------------------------------------------------------------------- crowd


def test_five_hundred_callers_on_ten_slots() -> None:
    async def run() -> None:
        async with rig(slots=10, max_waiting=600, max_wait_seconds=86_400.0) as it:
            order: list[int] = []
            busy = 0.0
            loop = asyncio.get_running_loop()

            async def caller(number: int) -> None:
                nonlocal busy
                positions: list[int] = []
                request = LeaseRequest(
                    f"call-{number}", on_place=lambda place: positions.append(place.position)
                )
                async with it.pool.lease(request) as lease:
                    order.append(number)
                    since = loop.time()
                    text = await transcribe(lease, 1, number)
                    assert text == said(number, 960)
                    await asyncio.sleep(1.0 + number % 7)
                    busy += loop.time() - since
                assert positions == sorted(positions, reverse=True)
                if number > 10:
                    assert positions[0] == number - 10 and positions[-1] == 1

            started = loop.time()
            async with asyncio.TaskGroup() as tasks:
                for number in range(1, 501):
                    tasks.create_task(caller(number))
                    await asyncio.sleep(0)
            assert order == list(range(1, 501))
            assert busy / (10 * (loop.time() - started)) > 0.95
            assert it.pool.statistics().leased == 0

    story(run)


def test_a_thousand_connects_and_disconnects_leak_no_lease() -> None:
    async def run() -> None:
        async with rig(slots=8, max_waiting=20) as it:

            async def caller(number: int) -> None:
                try:
                    async with (
                        asyncio.timeout((number % 5) * 0.05),
                        it.pool.lease(f"call-{number}") as lease,
                    ):
                        lease.session.begin(1)
                        lease.session.feed(pcm(number % 100))
                        await asyncio.sleep((number % 3) * 0.05)
                except TimeoutError:
                    return

            for start in range(0, 1000, 20):
                async with asyncio.TaskGroup() as tasks:
                    for number in range(start, start + 20):
                        tasks.create_task(caller(number))
            statistics = it.pool.statistics()
            assert (statistics.leased, statistics.waiting, statistics.available) == (0, 0, 8)
            assert not it.engines[0].sessions

    story(run)
