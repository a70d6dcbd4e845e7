"""What the supervisor does when several things happen at once, in virtual time."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.pool.test_pool import Rig, final, pcm, rig, story, transcribe, until
from tests.support.echo_stt import EchoSession, EchoStt, said
from tests.support.virtual_time import VirtualTimeLoop
from voice_rtc.core.health import GONE_STATES
from voice_rtc.engines.base import STT_AS_CONFIGURED, ReplicaSpec, SttEngine, SttOptions
from voice_rtc.errors import EngineCrashed, EngineUnavailable, StateError
from voice_rtc.pool import supervisor as supervisor_module
from voice_rtc.pool.replica import State


def test_a_final_that_comes_while_its_engine_is_replaced_stops_nothing() -> None:
    """It cleared the call's retry time, and every later look at any replica failed on that."""

    async def run() -> None:
        async with rig(seconds=0.2) as it, it.pool.lease("a") as lease, it.pool.lease("b") as other:
            name = it.pool.supervisor.replicas()[0].name
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(transcribe(lease, 1, 5))
                await asyncio.sleep(0)
                # The same moment as the Final's, which is on its way to the reader then.
                asyncio.get_running_loop().call_later(
                    0.2,
                    lambda: it.pool.supervisor.order_replacement(
                        it.pool.replica(name), "dead", quarantine=False
                    ),
                )
            assert first.result() == said(5, 960)
            async with asyncio.timeout(5.0):
                assert await transcribe(lease, 2, 5) == said(5, 960)
                assert await transcribe(other, 1, 6) == said(6, 960)
            await until(lambda: not it.pool.supervisor._unbound)

    story(run)


def opens_in(engine: EchoStt, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of the engine take so long to make, as those with a recorder do."""
    at_once = engine.open

    async def slowly(options: SttOptions = STT_AS_CONFIGURED) -> EchoSession:
        session = await at_once(options)
        await asyncio.sleep(seconds)
        return session

    monkeypatch.setattr(engine, "open", slowly)


def test_a_session_that_a_dead_engine_opens_late_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call has another by then, and would have been mute for ever."""

    async def run() -> None:
        async with rig(seconds=0.2, spares=1) as it, asyncio.TaskGroup() as tasks:
            await until(lambda: len(it.loaded) == 2)
            opens_in(it.engines[0], 1.0, monkeypatch)
            opening = tasks.create_task(it.pool.allocate_instance("a"))
            await asyncio.sleep(0.1)
            it.engines[0].kill()
            lease = await opening
            async with asyncio.timeout(5.0):
                assert await transcribe(lease, 1, 5) == said(5, 960)
            assert it.engine_of(lease) is it.engines[1]
            assert not it.engines[0].sessions
            await it.pool.return_instance(lease)

    story(run)


# --------------------------------------------------------------------------- isolated calls


def loads_in(engine: EchoStt, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the engine takes so long."""

    async def slowly() -> None:
        await asyncio.sleep(seconds)
        if engine.start_error is not None:
            raise engine.start_error

    monkeypatch.setattr(engine, "start", slowly)


def loading_takes(it: Rig, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for all engines to come."""
    supervisor = it.pool.supervisor
    make = supervisor._factory
    assert make is not None

    def slow(spec: ReplicaSpec) -> SttEngine:
        engine = make(spec)
        assert isinstance(engine, EchoStt)
        loads_in(engine, seconds, monkeypatch)
        return engine

    monkeypatch.setattr(supervisor, "_factory", slow)


def test_isolating_a_call_twice_at_once_loads_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other stayed in memory for ever."""

    async def run() -> None:
        async with rig(isolated_calls=1) as it, it.pool.lease("a"), it.pool.lease("b"):
            loading_takes(it, 1.0, monkeypatch)
            answers = await asyncio.gather(
                *(it.pool.isolate(call) for call in "aab"), return_exceptions=True
            )
            assert [type(answer) for answer in answers] == [str, StateError, StateError]
            assert len(it.loaded) == 2

    story(run)


def test_an_isolated_engine_that_fails_at_once_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with rig() as it, it.pool.lease("a") as lease:
            make = it.pool.supervisor._factory
            assert make is not None

            def failing(spec: ReplicaSpec) -> SttEngine:
                engine = make(spec)
                if len(it.engines) == 2:

                    async def refuse(_options: SttOptions) -> EchoSession:
                        it.engines[1].kill()
                        raise EngineCrashed("gone")

                    monkeypatch.setattr(engine, "open", refuse)
                return engine

            monkeypatch.setattr(it.pool.supervisor, "_factory", failing)
            await it.pool.isolate("a")
            assert await transcribe(lease, 1, 5) == said(5, 960)
            assert it.engine_of(lease) is it.engines[2]

    story(run)


def test_a_call_that_ends_while_its_own_engine_is_replaced_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with rig() as it:
            async with it.pool.lease("a"):
                await it.pool.isolate("a")
                loading_takes(it, 1.0, monkeypatch)
                it.engines[1].kill()
                await until(lambda: len(it.engines) == 3)
            await asyncio.sleep(3.0)
            assert it.loaded == it.engines[:1]
            assert [replica.role for replica in it.pool.supervisor.replicas()] == ["serving"]

    story(run)


def test_an_isolated_call_is_served_by_the_others_while_its_own_engine_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with rig(slots=1) as it, it.pool.lease("a") as lease:
            await it.pool.isolate("a")
            loading_takes(it, 5.0, monkeypatch)
            own = it.engine_of(lease)
            own.kill()
            async with asyncio.timeout(1.0):
                assert await transcribe(lease, 1, 5) == said(5, 960)
            assert it.engine_of(lease) is it.engines[0]
            await until(lambda: it.engine_of(lease) is it.engines[2])
            assert await transcribe(lease, 2, 6) == said(6, 960)
            assert not it.engines[0].sessions

    story(run)


# ----------------------------------------------------------------------------- whose silence


def test_a_loop_that_stood_still_accuses_no_engine_even_when_it_is_woken() -> None:
    """The answer to the heartbeat is in the pipe, behind the wake-up in the loop's queue."""

    async def run() -> None:
        async with rig(seconds=0.1) as it, it.pool.lease("a") as lease:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualTimeLoop)
            engine = it.engines[0]
            await asyncio.sleep(0.45)
            engine.stop()
            await asyncio.sleep(0.2)  # a heartbeat is sent, and the next look is a while off
            it.pool.supervisor._wake.set()
            loop.pass_time(2.0)
            await asyncio.sleep(0)
            engine.stopped, engine._silent_since = False, None
            assert await transcribe(lease, 1, 5) == said(5, 960)
            assert it.engines == [engine] and it.count("stt_replays_total", reason="silent") == 0

    story(run)


# ------------------------------------------------------------------------------ while it loads


class Loading(EchoStt):
    """Takes 3 s to load, and meanwhile is alive, stopped or dead as it is told."""

    async def start(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0.1)
            while self.stopped and self.failure is None:  # noqa: ASYNC110 - it hangs
                await asyncio.sleep(0.1)
            if self.failure is not None:
                raise EngineUnavailable(f"it cannot be loaded: {self.failure}")


def loads_three_seconds(it: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(spec: ReplicaSpec) -> Loading:
        it.engines.append(Loading(spec, seconds=0.05))
        return it.engines[-1]  # type: ignore[return-value]

    monkeypatch.setattr(it.pool.supervisor, "_factory", make)


def test_a_successor_that_hangs_while_it_loads_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not after the load deadline, which allows for a download: the calls wait."""

    async def run() -> None:
        async with rig() as it, it.pool.lease("a") as lease, asyncio.TaskGroup() as tasks:
            loads_three_seconds(it, monkeypatch)
            task = tasks.create_task(transcribe(lease, 1, 5))
            await asyncio.sleep(0)
            it.engines[0].kill()
            await until(lambda: len(it.engines) == 2)
            it.engines[1].stop()
            async with asyncio.timeout(70.0):
                assert await task == said(5, 960)
            assert len(it.engines) == 3

    story(run)


def test_what_it_did_not_answer_while_it_loaded_is_forgiven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with rig() as it, it.pool.lease("a") as lease, asyncio.TaskGroup() as tasks:
            loads_three_seconds(it, monkeypatch)
            task = tasks.create_task(transcribe(lease, 1, 5))
            await asyncio.sleep(0)
            it.engines[0].kill()
            await until(lambda: len(it.engines) == 2)
            loop = asyncio.get_running_loop()
            it.engines[1]._silent_since = loop.time()
            (replica,) = it.pool.supervisor.replicas()
            await until(lambda: replica.state is State.READY)
            loop.call_later(0.005, setattr, it.engines[1], "_silent_since", None)
            assert await task == said(5, 960)
            assert len(it.engines) == 2

    story(run)


def test_an_operator_restarts_one_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets one successor, as any that does not load, and not two."""

    async def run() -> None:
        async with rig() as it, it.pool.lease("a") as lease, asyncio.TaskGroup() as tasks:
            loads_three_seconds(it, monkeypatch)
            task = tasks.create_task(transcribe(lease, 1, 5))
            await asyncio.sleep(0)
            it.engines[0].kill()
            await until(lambda: len(it.engines) == 2)
            (replica,) = it.pool.supervisor.replicas()
            await it.pool.restart(replica.name)
            assert await task == said(5, 960)
            await asyncio.sleep(10.0)
            assert len(it.engines) == 3 and it.loaded == it.engines[2:]

    story(run)


# ------------------------------------------------------------------------- engines of a mode


def serving(it: Rig, mode: str) -> int:
    return sum(r.mode == mode and r.role == "serving" for r in it.pool.supervisor.replicas())


def test_going_back_to_a_mode_whose_engine_is_being_replaced_loads_no_second_one() -> None:
    async def run() -> None:
        async with rig(mode="single") as it:
            await it.pool.switch_mode("shared")
            for lives in (True, False):  # after the second death the successor has to wait
                (old,) = [r for r in it.pool.supervisor.replicas() if r.mode == "single"]
                old.engine.kill()  # type: ignore[attr-defined]
                await until(lambda old=old: old not in it.pool.supervisor.replicas())
                await until(lambda lives=lives: serving(it, "single") == lives)
            await it.pool.switch_mode("single")
            await asyncio.sleep(10.0)
            assert serving(it, "single") == 1
            async with it.pool.lease("a") as lease:
                assert await transcribe(lease, 1, 5) == said(5, 960)

    story(run)


def test_going_back_to_a_mode_that_has_an_engine_and_no_slots_gives_it_slots() -> None:
    async def run() -> None:
        async with rig(mode="single", idle_unload_seconds=20.0) as it:
            await it.pool.switch_mode("shared")
            await asyncio.sleep(10.0)
            await it.pool.supervisor.start_replica("single", "serving", 0)
            await until(lambda: serving(it, "single") == 1)
            await it.pool.switch_mode("single")
            async with asyncio.timeout(5.0), it.pool.lease("a") as lease:
                assert await transcribe(lease, 1, 5) == said(5, 960)

    story(run)


def test_a_call_whose_mode_has_no_engine_left_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own was the only one in use, so the others were unloaded when the mode changed."""

    async def run() -> None:
        async with rig(idle_unload_seconds=5.0) as it, it.pool.lease("a") as lease:
            await it.pool.isolate("a")
            await it.pool.switch_mode("single")
            await until(lambda: serving(it, "shared") == 0)
            make = it.pool.supervisor._factory
            assert make is not None

            def only_shared(spec: ReplicaSpec) -> SttEngine:
                engine = make(spec)
                assert isinstance(engine, EchoStt)
                if spec.mode == "dedicated":
                    engine.start_error = EngineUnavailable("no room")
                return engine

            monkeypatch.setattr(it.pool.supervisor, "_factory", only_shared)
            it.engine_of(lease).kill()
            async with asyncio.timeout(5.0):
                assert await transcribe(lease, 1, 5) == said(5, 960)

    story(run)


def test_an_engine_that_dies_again_and_again_does_not_hold_up_another() -> None:
    async def run() -> None:
        async with rig(seconds=0.05) as it, it.pool.lease("a"), it.pool.lease("b") as other:
            await it.pool.isolate("a")
            for _ in range(6):
                own = it.pool.supervisor._isolated["a"]
                await until(lambda own=own: own.state is State.READY)
                own.engine.kill()  # type: ignore[attr-defined]
                await until(lambda own=own: it.pool.supervisor._isolated["a"] is not own)
            it.engines[0].kill()
            async with asyncio.timeout(1.0):
                assert await transcribe(other, 1, 5) == said(5, 960)

    story(run)


def test_a_mode_that_cannot_be_opened_is_tried_ever_more_rarely() -> None:
    async def run() -> None:
        async with rig(rollout_mode="single", rollout_share=1.0) as it:
            make = it.pool.supervisor._factory
            assert make is not None

            def failing(spec: ReplicaSpec) -> SttEngine:
                engine = make(spec)
                assert isinstance(engine, EchoStt)
                engine.start_error = EngineUnavailable("no such model")
                return engine

            it.pool.supervisor._factory = failing
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(it.pool.allocate_instance("a"))
                await asyncio.sleep(60.0)
                waiting.cancel()
            assert 3 <= len(it.engines) <= 10

    story(run)


def test_an_engine_that_cannot_even_be_closed_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with rig() as it, it.pool.lease("a") as lease:

            async def fail() -> None:
                raise OSError("the device is gone")

            with monkeypatch.context() as patch:
                patch.setattr(it.engines[0], "aclose", fail)
                it.engines[0].kill()
                async with asyncio.timeout(5.0):
                    assert await transcribe(lease, 1, 5) == said(5, 960)
            assert it.engine_of(lease) is it.engines[1]
            assert not it.pool.supervisor._replacing

    story(run)


def test_what_is_being_closed_when_the_pool_ends_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one that cannot be closed keeps the others from nothing."""

    async def run() -> None:
        closed: list[EchoStt] = []
        async with rig(spares=2) as it:
            await until(lambda: len(it.loaded) == 3)

            def closing(engine: EchoStt, *, fails: bool = False) -> None:
                at_once = engine.aclose

                async def slowly() -> None:
                    await at_once()
                    if fails:
                        raise OSError("the device is gone")
                    await asyncio.sleep(2.0)
                    closed.append(engine)

                monkeypatch.setattr(engine, "aclose", slowly)

            closing(it.engines[1])
            closing(it.engines[2])
            it.engines[1].kill()
            await until(lambda: it.engines[1].closed)
            await until(lambda: len(it.engines) == 4, seconds=5.0)
            closing(it.engines[3], fails=True)
        assert set(closed) == {it.engines[1], it.engines[2]}

    story(run)


# ----------------------------------------------------------------------------------- spares


def spares(it: Rig) -> list[str]:
    return [f"{r.mode} {r.state}" for r in it.pool.supervisor.replicas() if r.role == "spare"]


def fails_to_load(it: Rig, numbers: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines with these numbers, counted from 0."""
    make = it.pool.supervisor._factory
    assert make is not None

    def failing(spec: ReplicaSpec) -> SttEngine:
        engine = make(spec)
        assert isinstance(engine, EchoStt)
        if len(it.engines) - 1 in numbers:
            engine.start_error = EngineUnavailable("not now")
        return engine

    monkeypatch.setattr(it.pool.supervisor, "_factory", failing)


def test_a_spare_that_does_not_load_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with rig(spares=1) as it:
            fails_to_load(it, range(2, 5), monkeypatch)
            await until(lambda: spares(it) == ["shared ready"])
            it.engines[1].kill()
            await until(lambda: spares(it) == [])
            await until(lambda: spares(it) == ["shared ready"], seconds=10.0)
            assert len(it.engines) == 6

    story(run)


def test_spares_that_die_at_once_are_loaded_ever_more_rarely() -> None:
    async def run() -> None:
        async with rig(spares=1) as it:
            for _ in range(600):
                for engine in it.loaded[1:]:
                    engine.kill()
                await asyncio.sleep(0.1)
            assert 3 <= len(it.engines) <= 12

    story(run)


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_a_spare_that_loads_while_the_mode_changes_does_not_stay(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with rig(mode=mode, spares=1, idle_unload_seconds=5.0) as it:
            await until(lambda: len(spares(it)) == 1)
            loading_takes(it, 3.0, monkeypatch)
            it.engines[1].kill()
            await until(lambda: spares(it) == [f"{mode} starting"])
            it.pool.mode = "single"  # as if its engine had been loaded before
            await it.pool.supervisor._open_group(it.pool.group)
            await asyncio.sleep(20.0)
            assert spares(it) == ["single ready"]
            assert len(it.loaded) == 2

    story(run)


def test_an_engine_that_answers_heartbeats_and_nothing_else_is_replaced() -> None:
    async def run() -> None:
        async with rig(probe_interval_seconds=5.0) as it, it.pool.lease("a") as lease:
            it.engines[0].seconds = 1e6
            lease.session.begin(1)
            lease.session.feed(pcm(5))
            lease.session.finish(1)
            async with asyncio.timeout(60.0):
                assert await final(lease) == said(5, 320)
            assert it.engines[0].closed

    story(run)


# ------------------------------------------------------------------------------- real processes


@pytest.mark.parametrize("has_proc", [True, False])
async def test_the_state_of_a_process_is_seen(
    has_proc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_HAS_PROC", has_proc)
    process = await asyncio.create_subprocess_exec("sleep", "60")
    states = supervisor_module._process_states
    assert not set(states((process.pid,))) & GONE_STATES.keys()
    process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(10.0):
        while states((process.pid,)) != ("T",):  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)
    process.kill()
    await process.wait()
    assert states((process.pid,)) == ("X",)


def loads_one_after_the_other(
    it: Rig, seconds: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next engines take so long to load; 0.0: they fail at once."""
    make = it.pool.supervisor._factory
    assert make is not None
    times = iter(seconds)

    def timed(spec: ReplicaSpec) -> SttEngine:
        engine = make(spec)
        assert isinstance(engine, EchoStt)
        takes = next(times, 0.0)
        if takes:
            loads_in(engine, takes, monkeypatch)
        else:
            engine.start_error = EngineUnavailable("not now")
        return engine

    monkeypatch.setattr(it.pool.supervisor, "_factory", timed)


@pytest.mark.parametrize("heir", [9.0, 0.0])
@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_a_spare_that_is_ready_before_the_successor_takes_over(
    heir: float, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be that still loading, or not even that because it failed."""

    async def run() -> None:
        async with rig(mode=mode, spares=1) as it, it.pool.lease("a") as lease:
            await until(lambda: spares(it) == [f"{mode} ready"])
            loads_one_after_the_other(it, (3.0, heir, *[heir] * 9), monkeypatch)
            it.engines[1].kill()
            await until(lambda: spares(it) == [f"{mode} starting"])
            it.engines[0].kill()
            async with asyncio.timeout(4.0):
                assert await transcribe(lease, 1, 5) == said(5, 960)
            assert it.engine_of(lease) is it.engines[2]
            await asyncio.sleep(20.0)
            assert serving(it, mode) == 1
            if heir:
                assert spares(it) == [f"{mode} ready"] and len(it.loaded) == 2

    story(run)
