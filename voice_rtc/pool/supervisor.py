"""Watches over the replicas: loads, probes and replaces them, and binds leases to them.

A replica that died or hangs is replaced under its running calls: a spare (or a new one) takes over
its leases, and each call's session sends it the audio of what was not transcribed yet. What is
sick is decided by `core.health`, here it is observed and carried out. Answers the original plan's
ThreadManager for engines.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from voice_rtc.core.health import (
    Observation,
    Ready,
    Replace,
    ReplicaHealth,
    Restarts,
    Suspect,
)
from voice_rtc.engines.base import (
    EngineSet,
    ReplicaSpec,
    SttMode,
    SttQuality,
    SttTiming,
    SupportsHealth,
    SupportsQuality,
    SupportsTiming,
)
from voice_rtc.errors import (
    EngineCrashed,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    StateError,
)
from voice_rtc.pool import gauges
from voice_rtc.pool.governor import Governor
from voice_rtc.pool.gpu import GpuSource
from voice_rtc.pool.group import Group
from voice_rtc.pool.lease import Lease
from voice_rtc.pool.load import CpuSource, LoopWatch
from voice_rtc.pool.memory import MemorySource
from voice_rtc.pool.probing import ProbeFailed, transcribe_probe
from voice_rtc.pool.replica import Replica, Role, State

if TYPE_CHECKING:
    from voice_rtc.pool.pool import SttPool

_log = structlog.get_logger("voice_rtc.pool")

_HAS_PROC = Path("/proc/self/stat").exists()
_EVENTS_KEPT = 50
_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 2.0
_CLOSING_SECONDS = 10.0
_LAST_WORDS_SECONDS = 0.25
"""How long the results of an engine that was ended are waited for."""
_SPARE_LOOK_SECONDS = 0.1
_SPARES_SECONDS = 1.0
"""How often it is looked whether there is room for a spare meanwhile."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that an operator wants to know of."""

    at: float
    """Loop time."""
    text: str


class Supervisor:
    """One per pool. Its loop is a root: whatever breaks in it is logged, and it goes on."""

    def __init__(
        self,
        pool: SttPool,
        engines: EngineSet,
        gpus: GpuSource,
        memory: MemorySource,
        cpu_seconds: CpuSource,
    ) -> None:
        self._pool = pool
        self._settings = pool.settings.pool
        self._metrics = pool.metrics
        self._first = engines.stt
        self._factory = engines.stt_factory
        self._tasks: asyncio.TaskGroup | None = None
        self._own: set[asyncio.Task[None]] = set()
        self._all: list[Replica] = []
        self._numbers = itertools.count(1)
        self._unbound: dict[str, Lease] = {}
        self._retry: dict[str, tuple[int, float]] = {}
        """Call id -> attempts to bind it since it last worked, loop time of the next."""
        self._binding: set[str] = set()
        self._last_words: set[str] = set()
        """Calls that have not heard yet who was in work when their engine ended."""
        self._isolated: dict[str, Replica] = {}
        self._isolating: set[str] = set()
        """Calls whose own replica is being loaded."""
        self._replacing: dict[str, Replica] = {}
        """By name: those whose successor is to come."""
        self._opening: set[SttMode] = set()
        self._open_failed: dict[SttMode, Restarts] = {}
        self._open_from: dict[SttMode, float] = {}
        """Loop time before which a mode is not opened again for who waits: that failed."""
        self._restarts: dict[tuple[SttMode, Role, int], Restarts] = {}
        self._growth_failed = Restarts()
        self._grow_from = 0.0
        """Loop time before which no further engine is loaded on demand: the last one failed."""
        self._spares_failed = Restarts()
        self._fill_from = 0.0
        """Loop time before which no spare is loaded."""
        self._wake = asyncio.Event()
        self._quality = SttQuality()
        self._stopping = False
        self.happenings: deque[Happening] = deque(maxlen=_EVENTS_KEPT)
        self.loop_watch = LoopWatch(self._metrics.loop_lag_seconds.observe, cpu_seconds)
        self.on_step: Callable[[int, str, str], None] = lambda _step, _name, _text: None
        """Told of each change of the degradation ladder."""
        self.governor = Governor(pool, self, gpus, memory)

    # --------------------------------------------------------------------- life

    @property
    def can_replace(self) -> bool:
        """Can more engines of the kind be loaded?"""
        return self._factory is not None

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Take the first replica into service, size the pool, and begin to watch."""
        self._tasks = tasks
        mode = self._pool.mode
        group = self._pool.group
        first = self._new_replica(mode, "serving", 0, self._first)
        self._enter_service(first)
        await self._start_further(first)
        await self.governor.size_group(group, first)
        if self.can_replace:
            await self._probe(first)
        self.loop_watch.start()
        self._spawn(self._watch(), "pool-supervisor")
        self.refill_spares()
        self.publish()

    async def stop(self) -> None:
        """End the watch and close every engine but the first, which is not ours."""
        self._stopping = True
        self.loop_watch.stop()
        for task in list(self._own):
            task.cancel()
        if self._own:
            await asyncio.wait(self._own, timeout=_CLOSING_SECONDS)
        for replica in self._all:
            if replica.engine is not self._first:
                await self._guarded(replica.engine.aclose())
        self._all.clear()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._tasks is None or self._stopping:
            work.close()
            return
        task = self._tasks.create_task(self._guarded(work), name=name)
        self._own.add(task)
        task.add_done_callback(self._own.discard)
        task.add_done_callback(lambda _: work.close())  # it may have been ended before it began

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 - a root: what breaks here must not end every call
            _log.exception("pool_supervisor_failed")

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        beat = self._settings.heartbeat_seconds
        while True:
            due = loop.time() + beat
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            self._wake.clear()
            now = loop.time()
            lag = max(0.0, now - due)  # 0.0 when woken, unless the loop stood still meanwhile
            try:
                self._tick(now, lag)
            except Exception:  # noqa: BLE001 - a root: without this loop no engine is replaced
                _log.exception("pool_supervisor_failed")

    def _tick(self, now: float, lag: float) -> None:
        for replica in list(self._all):
            self._check(replica, now, lag)
        self._rebind(now)
        self.refill_spares()
        for group in self._pool.groups.values():
            group.expire(now)
        self.governor.tick(now)
        for replica in self._all:
            if self._probe_is_due(replica, now):
                replica.probing = True
                self._spawn(self._probe(replica), f"probe-{replica.name}")

    # ----------------------------------------------------------------- replicas

    def replicas(self) -> tuple[Replica, ...]:
        """All of them, oldest first."""
        return tuple(self._all)

    def _new_replica(self, mode: SttMode, role: Role, device: int, engine: Any) -> Replica:
        name = f"{mode}-{next(self._numbers)}"
        now = asyncio.get_running_loop().time()
        health = ReplicaHealth(self.governor.health_rules())
        replica = Replica(name, mode, role, device, engine, health, now)
        self._all.append(replica)
        return replica

    def _enter_service(self, replica: Replica) -> None:
        engine = replica.engine
        if isinstance(engine, SupportsQuality):
            engine.set_quality(self._quality)
        if isinstance(engine, SupportsTiming):
            engine.on_timing = lambda timing: self._timed(replica.mode, timing)
        replica.state = State.READY
        replica.idle_since = replica.watched_since = asyncio.get_running_loop().time()
        self._wake.set()

    async def start_replica(self, mode: SttMode, role: Role, device: int) -> Replica:
        """Load one more engine. Raises EngineError."""
        replica = self._make_replica(mode, role, device)
        await self._load(replica)
        return replica

    def _make_replica(self, mode: SttMode, role: Role, device: int) -> Replica:
        """Not loaded, but counted from now on. Raises EngineError."""
        if self._factory is None:
            raise EngineUnavailable("this engine cannot be loaded a second time")
        engine = self._factory(ReplicaSpec(mode, device))
        return self._new_replica(mode, role, device, engine)

    async def _load(self, replica: Replica) -> None:
        """Raises EngineError; the replica is gone then."""
        engine = replica.engine
        deadline = self._pool.settings.stt.load_deadline_seconds
        try:
            async with asyncio.timeout(deadline):
                await engine.start()
        except TimeoutError:
            await self._drop(replica)
            raise EngineTimeout(f"{replica.name} did not load within {deadline:g} s") from None
        except BaseException:
            await self._drop(replica)
            raise
        self._enter_service(replica)

    async def _start_or_note(self, mode: SttMode, role: Role, device: int) -> Replica | None:
        try:
            return await self.start_replica(mode, role, device)
        except EngineError as error:
            self._note_not_loaded(mode, role, error)
            return None

    def _note_not_loaded(self, mode: SttMode, role: Role, error: EngineError) -> None:
        self.note(f"a {role} replica could not be loaded: {error}")
        _log.error("replica_start_failed", mode=mode, role=role, error=str(error))

    async def _start_further(self, first: Replica) -> None:
        """A ``shared`` engine runs on every GPU."""
        for device in self.governor.further_devices(first):
            await self._start_or_note(first.mode, "serving", device)

    async def _drop(self, replica: Replica) -> None:
        replica.state = State.RETIRED
        try:
            await replica.engine.aclose()
        finally:
            if not self._stopping and replica in self._all:  # else `stop` sees it to its end
                self._all.remove(replica)

    def retire(self, replica: Replica, why: str) -> None:
        """It is not needed any more: close it now. It must hold no lease."""
        replica.state = State.RETIRED
        self.note(f"replica {replica.name} unloaded: {why}")
        self._spawn(self._drop(replica), f"close-{replica.name}")

    def serving(self, mode: SttMode) -> list[Replica]:
        """Replicas of a mode that carry leases, or are about to."""
        return [
            r
            for r in self._all
            if r.mode == mode
            and r.role == "serving"
            and r.state in (State.STARTING, State.READY, State.SUSPECT)
        ]

    def engines(self, mode: SttMode) -> list[Replica]:
        """Those that serve and those in reserve, oldest first: all that take memory for a mode."""
        return [*self.serving(mode), *self._spares(mode)]

    def _spares(self, mode: SttMode) -> list[Replica]:
        usable = (State.STARTING, State.READY)
        return [r for r in self._all if r.role == "spare" and r.mode == mode and r.state in usable]

    def healthy(self) -> int:
        """Replicas that work, be it slowly."""
        working = (State.READY, State.SUSPECT)
        return sum(r.state in working and r.role == "serving" for r in self._all)

    def set_quality(self, quality: SttQuality) -> None:
        """For all engines, and those to come."""
        self._quality = quality
        for replica in self._all:
            if isinstance(replica.engine, SupportsQuality) and replica.usable:
                replica.engine.set_quality(quality)

    def _lacks_spare(self) -> bool:
        """Should there be one more engine in reserve, where a dead one does not heal itself?"""
        if self._stopping or not self.can_replace or not self.governor.may_load:
            return False
        if len(self._spares(self._pool.mode)) >= self._settings.spares:
            return False
        return any(not replica.heals_itself for replica in self.serving(self._pool.mode))

    async def _fill_spares(self) -> None:
        while self._lacks_spare():
            group = self._pool.group
            device = 0
            if group.mode == "dedicated":  # where a spare is one of those that memory allows
                found = self.governor.next_device(group) if self._room(group) > 0 else None
                if found is None:
                    self._fill_from = asyncio.get_running_loop().time() + _SPARES_SECONDS
                    return
                device = found
            spare = await self._start_or_note(group.mode, "spare", device)
            if spare is None:
                self._spare_lost(asyncio.get_running_loop().time())
                return
            if spare.role == "serving":  # somebody came meanwhile
                group.add_slot(asyncio.get_running_loop().time())
            elif group.mode == self._pool.mode and self._overtake(spare):
                continue
            elif group.mode != self._pool.mode or not self.governor.may_load:
                self.retire(spare, "it is not wanted any more")

    def _spare_lost(self, now: float) -> None:
        """It did not load, or died: the next comes after a while."""
        self._fill_from = now + self._spares_failed.died(now)

    def drop_spares(self, why: str) -> None:
        """Memory is short."""
        for replica in list(self._all):
            if replica.role == "spare" and replica.state is State.READY:
                self.retire(replica, why)

    def keep_as_spare(self, replica: Replica) -> bool:
        """It serves no more, but stays loaded in reserve; False when there are enough."""
        wanted = self._settings.spares if replica.mode == self._pool.mode else 0
        if not self.governor.may_load or len(self._spares(replica.mode)) >= wanted:
            return False
        replica.role = "spare"
        return True

    def refill_spares(self) -> None:
        """See that there are as many as there should be, soon if the last one failed."""
        now = asyncio.get_running_loop().time()
        if now >= self._fill_from and self._lacks_spare():
            self._spawn(self._fill_spares(), "pool-spares")

    # ------------------------------------------------------------------- health

    def _check(self, replica: Replica, now: float, lag: float) -> None:
        watched = (State.STARTING, State.READY, State.SUSPECT)
        if replica.state not in watched or replica.name in self._replacing:
            return
        loading = replica.state is State.STARTING
        health = replica.engine_health()
        if replica.heals_itself:
            return
        failure = health.failure
        seen = Observation(
            # What it did not answer while it loaded is not held against it afterwards.
            silent_seconds=min(health.silent_seconds, now - replica.watched_since),
            busy_seconds=health.busy_seconds,
            process_states=_process_states(health.pids),
            failure=None if failure is None else failure.code,
            failure_text="" if failure is None else str(failure),
            worst_batch_seconds=self.governor.worst_batch_seconds,
            lateness_seconds=lag,
        )
        match replica.health.observe(now, seen, loading=loading):
            case Replace(reason=reason) if loading:
                self._give_up_loading(replica, reason)
            case _ if loading:
                return
            case Ready():
                replica.state, replica.reason = State.READY, ""
            case Suspect(reason=reason):
                if replica.state is not State.SUSPECT:
                    self.note(f"replica {replica.name} is suspect: {reason}")
                replica.state, replica.reason = State.SUSPECT, reason
            case Replace(reason=reason, quarantine=quarantine):
                self.order_replacement(replica, reason, quarantine=quarantine)

    def _give_up_loading(self, replica: Replica, reason: str) -> None:
        """Who loads it hears that it failed, and does what is to be done then."""
        if replica.reason:
            return
        replica.reason = reason
        self.note(f"replica {replica.name} is given up while it loads: {reason}")
        if isinstance(replica.engine, SupportsHealth):
            replica.engine.abort(EngineCrashed(reason))

    def trouble(self, lease: Lease, error: EngineError, owner: object) -> None:
        """An engine failed an utterance of the lease, or is gone; ``owner`` is its replica."""
        group = self._pool.groups[lease.mode]
        if group.leases.get(lease.call_id) is not lease or not self.can_replace:
            return
        now = asyncio.get_running_loop().time()
        self._metrics.engine_failures_total.labels("stt", error.code).inc()
        if isinstance(owner, Replica):
            owner.failures += 1
            if not owner.heals_itself:
                owner.health.failed(now, error.code, str(error))
        if lease.call_id in self._last_words:
            self._last_words.discard(lease.call_id)
            self._wake.set()
        if self._holder(lease) in (owner, None):  # else another has taken over already
            self._await_binding(lease, now)

    def order_replacement(self, replica: Replica, reason: str, *, quarantine: bool) -> None:
        """Have another engine take over, as soon as there is one."""
        if replica.name in self._replacing or not self.can_replace:
            return
        if replica.state is State.STARTING:
            self._give_up_loading(replica, reason)
            return
        if replica.state not in (State.READY, State.SUSPECT):
            return  # it goes already
        self._replacing[replica.name] = replica
        replica.state, replica.reason = State.QUARANTINED, reason
        self._metrics.engine_restarts_total.labels(_slug(reason)).inc()
        _log.warning("replica_replaced", replica=replica.name, reason=reason, final=quarantine)
        self.note(f"replica {replica.name} {'quarantined' if quarantine else 'replaced'}: {reason}")
        now = asyncio.get_running_loop().time()
        if reason != "operator":
            self.governor.replica_lost(now)
        calls = list(replica.leases.values())
        for lease in calls:
            replica.unbind(lease.call_id, now)
            if lease.session.unfinished() and lease.call_id not in self._unbound:
                self._last_words.add(lease.call_id)
            self._await_binding(lease, now)
        if replica.role == "spare":
            self._spare_lost(now)
        if isinstance(replica.engine, SupportsHealth):
            replica.engine.abort(EngineCrashed(f"{replica.name} is replaced: {reason}"))
        heir = self._promote_spare(replica)
        self._rebind(now)
        ids = [lease.call_id for lease in calls]
        self._spawn(self._succeed(replica, heir, ids), f"replace-{replica.name}")

    def _promote_spare(self, replica: Replica) -> Replica | None:
        for spare in self._all:
            if spare.role == "spare" and spare.state is State.READY and spare.mode == replica.mode:
                spare.role = replica.role
                self._replace_in_isolation(replica, spare)
                self.note(f"spare {spare.name} takes over from {replica.name}")
                return spare
        return None

    def _replace_in_isolation(self, old: Replica, new: Replica) -> list[str]:
        """Call ids whose own replica the new one is now: one at most."""
        calls = [call_id for call_id, replica in self._isolated.items() if replica is old]
        self._isolated.update(dict.fromkeys(calls, new))
        return calls

    async def _succeed(self, replica: Replica, heir: Replica | None, calls: list[str]) -> None:
        try:
            await self._hear_out(calls)
            await self._guarded(self._drop(replica))  # a successor comes whatever its end is like
            if heir is None:
                await self._load_successor(replica)
        finally:
            del self._replacing[replica.name]
            self._wake.set()
            self.refill_spares()

    async def _load_successor(self, replica: Replica) -> None:
        heir: Replica | None = None
        while heir is None and not self._stopping and self._is_needed(replica):
            wait = self._restarts_of(replica).died(asyncio.get_running_loop().time())
            if wait:
                self.note(f"the successor of {replica.name} is loaded in {wait:g} s")
            heir = await self._spare_within(wait, replica)
            if heir is not None:
                return
            heir = await self._start_or_note(replica.mode, replica.role, replica.device)
            if heir is not None and self._is_needed(replica):
                for call_id in self._replace_in_isolation(replica, heir):
                    await self._move(self._pool.lease_of(call_id), heir)
            elif heir is not None:
                self.retire(heir, "its call is over")

    async def _spare_within(self, seconds: float, replica: Replica) -> Replica | None:
        """The spare that takes over, if one is ready before the time is up."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0.0:
            await asyncio.sleep(min(_SPARE_LOOK_SECONDS, left))
            if (spare := self._promote_spare(replica)) is not None:
                self._wake.set()
                return spare
        return None

    def _overtake(self, spare: Replica) -> bool:
        """It is ready before the successor of one that serves: they change places."""
        if not self._successor_comes(spare.mode):
            return False
        loading = (r for r in self.serving(spare.mode) if r.state is State.STARTING)
        heir = next(loading, None)
        if heir is None:
            return False
        spare.role, heir.role = "serving", "spare"
        self.note(f"spare {spare.name} takes over; {heir.name} is to be in reserve")
        self._wake.set()
        return True

    async def _hear_out(self, calls: list[str]) -> None:
        """Until these calls have heard which of their utterances were in work at the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                while not self._last_words.isdisjoint(calls):  # noqa: ASYNC110 - many may tell
                    await asyncio.sleep(0.01)
        self._last_words.difference_update(calls)
        self._wake.set()

    def _restarts_of(self, replica: Replica) -> Restarts:
        """Of its like: one that dies again and again does not hold the others up."""
        like = (replica.mode, replica.role, replica.device)
        return self._restarts.setdefault(like, Restarts())

    def _is_needed(self, replica: Replica) -> bool:
        if replica.role == "spare":
            return False  # `refill_spares` sees to that
        if replica.role == "isolated":
            return replica in self._isolated.values()
        return True

    # ------------------------------------------------------------------ binding

    async def bind(self, lease: Lease, group: Group) -> None:
        """Give a new lease an engine. Without one now it gets the next that is well.

        Raises EngineError only where there will never be another engine.
        """
        replica = self._choose(lease)
        if replica is None:
            self._await_binding(lease, asyncio.get_running_loop().time())
            return
        try:
            await self._attach(lease, replica, "bound")
        except EngineError as error:
            if not self.can_replace:
                raise
            self.trouble(lease, error, replica)

    async def _attach(self, lease: Lease, replica: Replica, why: str) -> None:
        self._unbound.pop(lease.call_id, None)
        replica.bind(lease)
        try:
            opened = await replica.engine.open(lease.session.options)
            if replica.leases.get(lease.call_id) is not lease:
                await opened.aclose()  # replaced while it opened: another has the lease, or will
                return
            attached = await lease.session.attach(opened, why, replica)
        except BaseException:
            replica.unbind(lease.call_id, asyncio.get_running_loop().time())
            raise
        if not attached or replica.leases.get(lease.call_id) is not lease:
            replica.unbind(lease.call_id, asyncio.get_running_loop().time())

    async def _move(self, lease: Lease, replica: Replica) -> None:
        """From whichever replica serves the lease to this one."""
        if (old := self._holder(lease)) is not None:
            old.unbind(lease.call_id, asyncio.get_running_loop().time())
        try:
            await self._attach(lease, replica, replica.role)
        except EngineError as error:
            self.trouble(lease, error, replica)

    def unbind(self, lease: Lease) -> None:
        """The lease is over."""
        now = asyncio.get_running_loop().time()
        call_id = lease.call_id
        self._unbound.pop(call_id, None)
        self._retry.pop(call_id, None)
        self._last_words.discard(call_id)
        for replica in self._all:
            replica.unbind(call_id, now)
        isolated = self._isolated.pop(call_id, None)
        if isolated is not None and isolated.state in (State.READY, State.SUSPECT):
            self.retire(isolated, "its call is over")

    def _await_binding(self, lease: Lease, now: float) -> None:
        if lease.call_id in self._unbound:
            return
        tries, _ = self._retry.get(lease.call_id, (0, 0.0))
        wait = 0.0 if tries == 0 else _FIRST_RETRY_SECONDS * 2 ** (tries - 1)
        self._retry[lease.call_id] = (tries + 1, now + min(wait, _LONGEST_RETRY_SECONDS))
        self._unbound[lease.call_id] = lease
        self._wake.set()

    def _rebind(self, now: float) -> None:
        for call_id, lease in list(self._unbound.items()):
            # Without an entry a Final came meanwhile, of the engine that is being replaced.
            _, not_before = self._retry.get(call_id, (0, now))
            if call_id in self._binding or call_id in self._last_words or not_before > now:
                continue
            replica = self._choose(lease)
            if replica is None:
                self.wanted(self._pool.groups[lease.mode])  # its engines may all be gone
                continue
            del self._unbound[call_id]
            old = self._holder(lease)
            if old is not None:
                old.unbind(call_id, now)
            replica.bind(lease)  # at once, so that the next one sees it taken
            self._binding.add(call_id)
            self._spawn(self._bind_again(lease, replica), f"bind-{call_id}")

    async def _bind_again(self, lease: Lease, replica: Replica) -> None:
        try:
            if replica.leases.get(lease.call_id) is not lease:
                return  # moved on meanwhile
            await self._attach(lease, replica, replica.reason or "engine_failed")
        except EngineError as error:
            self.trouble(lease, error, replica)
        else:
            if not lease.session.unfinished():
                self._retry.pop(lease.call_id, None)
        finally:
            self._binding.discard(lease.call_id)
            if lease.call_id in self._unbound:
                self._wake.set()

    def _choose(self, lease: Lease) -> Replica | None:
        own = self._isolated.get(lease.call_id)
        if own is not None and own.state in (State.READY, State.SUSPECT):
            return own
        # While its own is replaced the others serve it.
        alone = lease.mode == "dedicated"
        fitting = [
            replica
            for replica in self._all
            if replica.mode == lease.mode
            and replica.role == "serving"
            and replica.state in (State.READY, State.SUSPECT)
            and not (alone and replica.leases.keys() - {lease.call_id})
        ]
        return min(fitting, key=lambda r: (r.state is not State.READY, len(r.leases)), default=None)

    def _holder(self, lease: Lease) -> Replica | None:
        for replica in self._all:
            if replica.leases.get(lease.call_id) is lease:
                return replica
        return None

    # ------------------------------------------------------------ growth, modes

    def growth(self, group: Group) -> int:
        """Slots that could still be made on demand."""
        if group.mode != "dedicated" or not self.can_replace or not self.governor.may_load:
            return 0
        away = self.governor.fallback
        if group.held or (away is not None and away.before == group.mode):
            return 0
        spares = len(self.engines(group.mode)) - len(self.serving(group.mode))
        return self._room(group) + spares

    def _room(self, group: Group) -> int:
        """Engines that may still be loaded for the group."""
        to_come = sum(name.startswith(f"{group.mode}-") for name in self._replacing)
        return max(0, self.governor.room(group) - to_come)

    def wanted(self, group: Group) -> None:
        """Somebody waits in the group: load an engine for it where that is the way."""
        now = asyncio.get_running_loop().time()
        if self._must_open(group, now):
            self._opening.add(group.mode)
            self._spawn(self._open_group_in_background(group), f"open-{group.mode}")
        if not self.serving(group.mode):
            return
        while now >= self._grow_from and self._lacks_engines(group) and self.growth(group) > 0:
            if not self._grow(group, now):
                return

    def _must_open(self, group: Group, now: float) -> bool:
        """Is there no engine of the mode nor one to come, or no slot on those that there are?"""
        mode = group.mode
        if not self.can_replace or mode in self._opening or now < self._open_from.get(mode, now):
            return False
        if not self.serving(mode):
            return not self._successor_comes(mode)
        return not group.slots and not group.held and self._loaded(mode) is not None

    def _successor_comes(self, mode: SttMode) -> bool:
        return any(r.mode == mode and r.role == "serving" for r in self._replacing.values())

    def _loaded(self, mode: SttMode) -> Replica | None:
        """One that serves the mode now."""
        loaded = (r for r in self.serving(mode) if r.state is not State.STARTING)
        return next(loaded, None)

    def _lacks_engines(self, group: Group) -> bool:
        loading = sum(r.state is State.STARTING for r in self.serving(group.mode))
        return group.book.waiting > loading

    def _grow(self, group: Group, now: float) -> bool:
        """One more engine for those who wait: the spare, else one that is loaded now."""
        spare = next(iter(self._spares(group.mode)), None)
        if spare is not None:
            spare.role = "serving"
            if spare.state is State.READY:
                group.add_slot(now)
            self.refill_spares()
            return True
        device = self.governor.next_device(group)
        if device is None:
            return False
        try:
            replica = self._make_replica(group.mode, "serving", device)
        except EngineError as error:
            self._not_grown(group, error)
            return False
        self._spawn(self._load_for(group, replica), f"grow-{replica.name}")
        return True

    async def _load_for(self, group: Group, replica: Replica) -> None:
        try:
            await self._load(replica)
        except EngineError as error:
            self._not_grown(group, error)
            return
        group.add_slot(asyncio.get_running_loop().time())
        self.publish()

    def _not_grown(self, group: Group, error: EngineError) -> None:
        self._note_not_loaded(group.mode, "serving", error)
        now = asyncio.get_running_loop().time()
        self._grow_from = now + self._growth_failed.died(now)

    async def _open_group_in_background(self, group: Group) -> None:
        try:
            await self._open_group(group)
        except EngineError as error:
            now = asyncio.get_running_loop().time()
            failed = self._open_failed.setdefault(group.mode, Restarts())
            self._open_from[group.mode] = now + failed.died(now)
            self.note(f"mode {group.mode} could not be opened: {error}")
            _log.error("pool_mode_failed", mode=group.mode, error=str(error))

    async def _open_group(self, group: Group) -> None:
        self._opening.add(group.mode)
        try:
            first = self._loaded(group.mode)
            if not self.serving(group.mode) and not self._successor_comes(group.mode):
                device = self.governor.first_device(group.mode)
                first = await self.start_replica(group.mode, "serving", device)
                if self.governor.may_load:
                    await self._start_further(first)
            elif group.slots:
                return
            if first is not None:  # else it is done when there is one: see `_must_open`
                await self.governor.size_group(group, first)
                self.publish()
        finally:
            self._opening.discard(group.mode)

    async def switch_mode(self, mode: SttMode) -> str:
        """An operator wants ``mode`` for new calls. Raises EngineError or StateError."""
        if mode == self._pool.mode:
            self.governor.mode_chosen()
            return f"The mode is {mode} already."
        old = self._pool.mode
        await self._switch_mode(mode)
        self.governor.mode_chosen()
        return f"New calls get mode {mode}; running calls keep {old}."

    async def _switch_mode(self, mode: SttMode) -> None:
        """Calls without a slot get ``mode``. Raises EngineError or StateError."""
        if not self.can_replace:
            raise StateError("this engine cannot be loaded a second time")
        old = self._pool.mode
        await self._open_group(self._pool.group_of(mode))
        self._pool.mode = mode
        if not (self.rolls_out and self._settings.rollout_mode == old):
            group, now = self._pool.group, asyncio.get_running_loop().time()
            group.take_line(self._pool.group_of(old), now)
            self.wanted(group)
        self.drop_spares("the mode changed")
        self.refill_spares()
        self.note(f"mode {old} -> {mode}")

    async def isolate(self, lease: Lease) -> str:
        """Give one call a replica of its own. Raises StateError."""
        if not self.can_replace:
            raise StateError("this engine cannot be loaded a second time")
        calls = self._isolated.keys() | self._isolating
        if lease.call_id in calls:
            raise StateError("the call has a replica of its own already")
        if len(calls) >= self._settings.isolated_calls:
            raise StateError("pool.isolated_calls calls have a replica of their own already")
        self._isolating.add(lease.call_id)
        try:
            replica = await self.start_replica("dedicated", "isolated", 0)
        except EngineError as error:
            raise StateError(f"no replica could be loaded: {error}") from error
        finally:
            self._isolating.discard(lease.call_id)
        if self._pool.groups[lease.mode].leases.get(lease.call_id) is not lease:
            self.retire(replica, "its call is over")
            raise StateError("the call ended meanwhile")
        self._isolated[lease.call_id] = replica
        await self._move(lease, replica)
        self.note(f"a call was given the replica {replica.name} of its own")
        return f"The call has the replica {replica.name} of its own."

    def fall_back(self, mode: SttMode, reason: str, done: Callable[[float, bool], None]) -> None:
        """Change the mode without being asked; ``done`` is told when, and whether it worked."""
        self._spawn(self._fall_back(mode, reason, done), "pool-fallback")

    async def _fall_back(
        self, mode: SttMode, reason: str, done: Callable[[float, bool], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        taken = False
        try:
            if not self.governor.may_load:
                await self._make_room(self._pool.group)
            await self._switch_mode(mode)
            taken = True
            _log.warning("pool_mode_changed", mode=mode, reason=reason)
        except (EngineError, StateError) as error:
            self.note(f"mode {mode} could not be taken: {error}")
            _log.error("pool_fallback_failed", mode=mode, reason=reason, error=str(error))
        finally:
            done(loop.time(), taken)

    async def _make_room(self, group: Group) -> None:
        """Close what is loaded and idle, for the engine of another mode."""
        now = asyncio.get_running_loop().time()
        idle = self.governor.idle(group, now, least=0, patience=0.0)
        for replica in idle:
            replica.state = State.RETIRED  # all at once: nobody is to be bound to the next
        for replica in idle:
            self.note(f"replica {replica.name} unloaded: memory is short")
            await self._drop(replica)

    def resize(self, slots: int) -> str:
        """A fixed number of slots, or 0 for the automatic one."""
        target = self.governor.fix_slots(slots)
        self.note(f"slots set to {target}" + ("" if slots else " (automatic)"))
        self.publish()
        return f"The pool has {target} slots now."

    async def remeasure(self) -> str:
        """Measure anew what the engine carries."""
        serving = self.serving(self._pool.mode)
        if not serving:
            raise StateError("no replica serves now")
        sizing = await self.governor.size_group(self._pool.group, serving[0], fresh=True)
        return sizing.explanation

    # ------------------------------------------------------------------- probes

    def _probe_is_due(self, replica: Replica, now: float) -> bool:
        if replica.probing or not self.can_replace or replica.role == "isolated":
            return False
        if replica.state not in (State.READY, State.SUSPECT):
            return False
        last = replica.probed_at if replica.probed_at is not None else replica.born
        return now - last >= self._settings.probe_interval_seconds

    async def _probe(self, replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        replica.probing = True
        try:
            probe = await transcribe_probe(replica.engine, self.governor.probe_deadline_seconds)
        except ProbeFailed as error:
            self._metrics.probes_total.labels("failed").inc()
            if not replica.heals_itself:
                if error.code == EngineTimeout.code:
                    replica.health.unanswered(loop.time(), str(error))
                else:
                    replica.health.failed(loop.time(), error.code, str(error))
                self._wake.set()
            return
        finally:
            replica.probing = False
            replica.probed_at = loop.time()
        replica.probe_seconds = probe.seconds
        reference = self.governor.reference(replica, probe.text)
        outcome = replica.health.probed(loop.time(), probe.seconds, probe.text, reference)
        self._metrics.probes_total.labels(outcome).inc()
        self._metrics.probe_seconds.set(
            max((r.probe_seconds or 0.0 for r in self._all if r.role == "serving"), default=0.0)
        )
        self._wake.set()

    # ------------------------------------------------------------------ figures

    def final_came(self, lease: Lease, seconds: float) -> None:
        """A call got its Final so long after its utterance ended."""
        self._retry.pop(lease.call_id, None)  # what went wrong before is over
        if (replica := self._holder(lease)) is not None:
            replica.health.answered()
        self._metrics.stt_final_seconds.labels(lease.mode).observe(seconds)
        self.governor.final_took(asyncio.get_running_loop().time(), seconds, lease.mode)

    def _timed(self, mode: SttMode, timing: SttTiming) -> None:
        self._metrics.engine_queue_seconds.labels("stt").observe(timing.queue_seconds)
        self._metrics.stt_batch_size.observe(timing.batch)
        if not timing.final:
            self._metrics.stt_partial_seconds.labels(mode).observe(timing.total_seconds)
            now = asyncio.get_running_loop().time()
            self.governor.partial_took(now, timing.total_seconds)

    def note(self, text: str) -> None:
        """Remember for the page what happened."""
        self.happenings.appendleft(Happening(asyncio.get_running_loop().time(), text))

    def publish(self) -> None:
        """Set the gauges."""
        gauges.publish(self._pool)

    # What the pool asks when it admits calls.

    @property
    def refusal(self) -> str:
        """Why no call is taken; empty: they are."""
        return self.governor.refusal

    @property
    def rolls_out(self) -> bool:
        """Does a share of the calls get another mode?"""
        return self.governor.rolls_out


_LETTERS = {
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
    psutil.STATUS_DEAD: "X",
}


def _process_states(pids: tuple[int, ...]) -> tuple[str, ...]:
    """As `core.health.Observation` wants them."""
    return tuple(_process_state(pid) for pid in pids)


def _process_state(pid: int) -> str:
    """By the kernel's own letter where there is /proc: psutil takes 0.1 ms, five times a second."""
    if not _HAS_PROC:
        return _asked_of_psutil(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            line = file.read()
    except OSError:  # it is gone, maybe between the two steps
        return "X"
    return line.rpartition(b")")[2].split()[0].decode()  # a name may hold anything, brackets too


def _asked_of_psutil(pid: int) -> str:
    try:
        return _LETTERS.get(psutil.Process(pid).status(), "S")
    except psutil.NoSuchProcess:
        return "X"


def _slug(reason: str) -> str:
    """A bounded label: the first word of the reason."""
    return reason.split()[0].strip(":,;").lower()[:24] if reason else "unknown"
