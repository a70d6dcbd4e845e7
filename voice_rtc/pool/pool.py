"""The pool of speech recognition slots (the original plan's AudioInputProcessorPool).

A *slot* is the right of one caller to be transcribed, a *lease* a call's hold on it, a *replica*
one loaded engine. Who gets which slot is decided by `core.leases`, how many slots there are by
`sizing` and by measured times, which replicas are well by `supervisor`. Here the three meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from voice_rtc.config import Settings
from voice_rtc.core.leases import Granted, LineRules
from voice_rtc.engines.base import EngineSet, SttMode, SttOptions
from voice_rtc.errors import (
    CallReplaced,
    EngineError,
    Overloaded,
    QueueFull,
    StateError,
    UnknownCall,
)
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import GpuSource, read_gpus
from voice_rtc.pool.group import Group, Waiter
from voice_rtc.pool.lease import Lease, LeaseRequest, Place, PoolStatistics
from voice_rtc.pool.load import CpuSource
from voice_rtc.pool.memory import MemorySource, read_machine
from voice_rtc.pool.replica import Replica, State
from voice_rtc.pool.session import LeasedSession
from voice_rtc.pool.status import PoolStatus
from voice_rtc.pool.supervisor import Supervisor

__all__ = [
    "AudioInputProcessorPool",
    "Lease",
    "LeaseRequest",
    "Place",
    "PoolStatistics",
    "SttPool",
]

_log = structlog.get_logger("voice_rtc.pool")


class SttPool:
    """Slots for calls. Use within `running`.

    ``engines.stt`` is started and becomes the first replica; ``engines.stt_factory`` makes more.
    """

    def __init__(
        self,
        settings: Settings,
        engines: EngineSet,
        metrics: Metrics,
        gpus: GpuSource = read_gpus,
        memory: MemorySource = read_machine,
        cpu_seconds: CpuSource = time.process_time,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.mode: SttMode = settings.pool.mode
        self.groups: dict[SttMode, Group] = {}
        self.options = SttOptions(prompt=settings.stt.prompt)
        self.supervisor = Supervisor(self, engines, gpus, memory, cpu_seconds)
        self.view = PoolStatus(self, self.supervisor)
        self._running = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SttPool]:
        """Size the pool, then watch over its replicas until the block ends."""
        async with asyncio.TaskGroup() as tasks:
            await self.supervisor.start(tasks)
            self._running = True
            try:
                yield self
            finally:
                self._running = False
                await self.supervisor.stop()

    # ------------------------------------------------------------------- leases

    @property
    def group(self) -> Group:
        """The group of the present mode, where new calls go."""
        return self.group_of(self.mode)

    def group_of(self, mode: SttMode) -> Group:
        """The group of a mode; made when it is first asked for, without slots."""
        if mode not in self.groups:
            self.groups[mode] = Group(mode, self._line_rules(), self.metrics)
        return self.groups[mode]

    def _line_rules(self, to_come: int = 0) -> LineRules:
        pool = self.settings.pool
        most = pool.max_waiting + to_come
        return LineRules(most, pool.max_wait_seconds, pool.resume_seconds)

    def _to_come(self, group: Group) -> int:
        """Slots that are being made, or will be for whoever asks: not even a line is needed."""
        serving = self.supervisor.serving(group.mode)
        if not serving and not group.slots:
            return 1 if self.supervisor.can_replace else 0
        if group.mode != "dedicated":
            return 0
        loading = sum(replica.state is State.STARTING for replica in serving)
        return self.supervisor.growth(group) + loading

    def _group_for(self, call_id: str, resume: str) -> Group:
        """Where the call is lined up: where it was before, else by its id."""
        now = asyncio.get_running_loop().time()
        known = (group for group in self.groups.values() if group.knows(resume, now))
        return next(known, None) or self.group_of(self.mode_of(call_id))

    def mode_of(self, call_id: str) -> SttMode:
        """Which mode a call gets: the rollout's share of them is chosen by call id."""
        pool = self.settings.pool
        if pool.rollout_mode and self.supervisor.rolls_out:
            digest = hashlib.sha256(call_id.encode()).digest()
            if int.from_bytes(digest[:8], "big") < pool.rollout_share * 2**64:
                return pool.rollout_mode
        return self.mode

    def statistics(self) -> PoolStatistics:
        """Slots, how many are taken, and who waits; all modes."""
        return PoolStatistics(
            sum(group.slots for group in self.groups.values()),
            sum(group.lent for group in self.groups.values()),
            sum(group.book.waiting for group in self.groups.values()),
        )

    def check_admission(self, call_id: str, resume: str = "", coming: Iterable[str] = ()) -> None:
        """Raises QueueFull or Overloaded when the offer of this call should be refused now.

        ``coming`` are the ids of calls let in before that have not asked for their slot yet. Who
        has a place already is let in.
        """
        if self.has_place(resume):
            return
        if refusal := self.supervisor.refusal:
            self.metrics.leases_total.labels("refused").inc()
            raise Overloaded(refusal)
        group = self.group_of(self.mode_of(call_id))
        ahead = sum(self.mode_of(each) == group.mode for each in coming) + group.book.waiting
        free = group.book.statistics().free
        if ahead >= free + self._to_come(group) + self.settings.pool.max_waiting:
            raise self._refusal(group)

    def _refusal(self, group: Group) -> QueueFull:
        self.metrics.leases_total.labels("refused").inc()
        seconds = group.retry_after_seconds(asyncio.get_running_loop().time())
        return QueueFull(retry_after_seconds=seconds)

    def has_place(self, resume: str) -> bool:
        """Does the token give back a place in a line, or the slot that was granted to it?"""
        now = asyncio.get_running_loop().time()
        return any(group.knows(resume, now) for group in self.groups.values())

    async def allocate_instance(self, request: LeaseRequest | str) -> Lease:
        """Wait for a slot and open a session on it.

        Cancelling gives up the place. Raises QueueFull, QueueTimeout, CallReplaced or StateError.
        """
        if isinstance(request, str):
            request = LeaseRequest(request)
        loop = asyncio.get_running_loop()
        group = self._group_for(request.call_id, request.resume)
        group.book.rules = self._line_rules(self._to_come(group))
        try:
            waiter = group.enter(request, loop.time())
        except QueueFull:
            raise self._refusal(group) from None
        try:
            self.supervisor.wanted(group)
            granted = await waiter.granted
            lease = self._lease(waiter.group, waiter, granted)
            await self.supervisor.bind(lease, waiter.group)
        except BaseException:  # whatever it was: the slot must go on to the next
            await self._take_back(waiter.group, waiter)
            raise
        return lease

    async def return_instance(self, lease: Lease) -> None:
        """Give the slot back and close its session. Idempotent."""
        group = self.groups[lease.mode]
        if group.leases.get(lease.call_id) is not lease:
            return
        now = asyncio.get_running_loop().time()
        self.metrics.lease_hold_seconds.observe(now - lease.granted_at)
        self._release(group, lease, now)
        await lease.session.aclose()

    @asynccontextmanager
    async def lease(self, request: LeaseRequest | str) -> AsyncIterator[Lease]:
        """Hold a slot for the length of a ``with`` block; see `allocate_instance`."""
        lease = await self.allocate_instance(request)
        try:
            yield lease
        finally:
            await self.return_instance(lease)

    def keep_place(self, call_id: str) -> None:
        """The connection of a caller is lost: if it waits, its place is kept for a while."""
        now = asyncio.get_running_loop().time()
        for group in self.groups.values():
            group.keep_place(call_id, now)

    def give_up_place(self, call_id: str) -> bool:
        """The caller hung up, be its connection there or lost. False when it has no place."""
        now = asyncio.get_running_loop().time()
        return any(group.give_up_place(call_id, now) for group in self.groups.values())

    def lease_of(self, call_id: str) -> Lease:
        """Raises UnknownCall when the call holds no slot."""
        for group in self.groups.values():
            if (lease := group.leases.get(call_id)) is not None:
                return lease
        raise UnknownCall("no call with this id holds a slot")

    def _lease(self, group: Group, waiter: Waiter, granted: Granted) -> Lease:
        now = asyncio.get_running_loop().time()
        hold = group.book.lease_of(granted.call)
        if hold is None or hold.lease != granted.lease:
            raise CallReplaced  # between the grant and now
        session = LeasedSession(
            self.options,
            keep_bytes=round(self.settings.pool.call_memory_mb * 1e6),
            replays=self.supervisor.can_replace,
            on_trouble=lambda error, owner: self.supervisor.trouble(lease, error, owner),
            on_final=lambda seconds: self.supervisor.final_came(lease, seconds),
            on_not_kept=self.metrics.replay_audio_dropped_total.inc,
            on_replay=lambda why: self.metrics.stt_replays_total.labels(why).inc(),
        )
        lease = Lease(
            granted.lease,
            granted.call,
            session,
            now,
            granted.waited_seconds,
            granted.slot,
            group.mode,
            waiter.request.on_revoked,
        )
        del group.waiters[granted.call]
        group.leases[granted.call] = lease
        self.supervisor.publish()
        return lease

    async def _take_back(self, group: Group, waiter: Waiter) -> None:
        now = asyncio.get_running_loop().time()
        lease = group.leases.get(waiter.request.call_id)
        if lease is not None:
            self._release(group, lease, now)
        group.leave(waiter, now)
        self.supervisor.publish()
        if lease is not None:
            await lease.session.aclose()

    def _release(self, group: Group, lease: Lease, now: float) -> None:
        """Synchronous book-keeping: nothing can come between."""
        self.metrics.leases_total.labels("returned").inc()
        self.supervisor.unbind(lease)
        group.give_back(lease, now)
        self.supervisor.publish()

    # ------------------------------------------------------------- for operators

    def status(self) -> dict[str, Any]:
        """All figures of the pool; see docs/pool.md."""
        return self.view.status()

    def history(self) -> dict[str, Any]:
        """The last hour."""
        return self.view.history()

    def newest_point(self) -> dict[str, Any] | None:
        """The newest point of the history."""
        return self.view.newest_point()

    def replica(self, name: str) -> Replica:
        """Raises UnknownCall."""
        for each in self.supervisor.replicas():
            if each.name == name:
                return each
        raise UnknownCall(f"no replica is named {name[:64]}", code="replica_not_found")

    async def quarantine(self, replica: str) -> str:
        """Take a replica out of service for good; another takes over."""
        return await self._replace(replica, quarantine=True)

    async def restart(self, replica: str) -> str:
        """Load a replica anew; its calls go on."""
        return await self._replace(replica, quarantine=False)

    async def _replace(self, name: str, *, quarantine: bool) -> str:
        if not self.supervisor.can_replace:
            raise StateError("this engine cannot be loaded a second time")
        found = self.replica(name)
        self.supervisor.order_replacement(found, "operator", quarantine=quarantine)
        return f"{name} is being replaced; its calls go on."

    async def resize(self, slots: int) -> str:
        """Have so many slots from now on; 0 goes back to the automatic figure."""
        if not 0 <= slots <= self.settings.pool.max_slots:
            raise StateError(
                f"slots must be between 0 and pool.max_slots ({self.settings.pool.max_slots})"
            )
        return self.supervisor.resize(slots)

    async def switch_mode(self, mode: str) -> str:
        """New calls get this mode; running ones stay as they are."""
        if mode not in ("shared", "dedicated", "single"):
            raise StateError(f"there is no mode {mode[:32]!r}; known: shared, dedicated, single")
        try:
            return await self.supervisor.switch_mode(mode)  # type: ignore[arg-type] # checked above
        except EngineError as error:
            raise StateError(f"the mode was not changed: {error}") from error

    async def isolate(self, call_id: str) -> str:
        """Give one call a replica of its own, to look for a fault."""
        return await self.supervisor.isolate(self.lease_of(call_id))

    async def probe(self) -> str:
        """Measure anew what the engine carries, and size the pool by it."""
        return await self.supervisor.remeasure()


AudioInputProcessorPool = SttPool
"""The name in the original plan."""
