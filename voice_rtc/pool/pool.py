"""The pool of speech recognition slots (the original plan's AudioInputProcessorPool).

A *slot* is the right of one caller to be transcribed; a *lease* is a call's hold on a slot, and
its id is a fencing number. This pool has a fixed number of slots and no waiting line: a caller
for whom there is no slot is refused before its call begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from voice_rtc.engines.base import SttEngine, SttSession
from voice_rtc.errors import QueueFull
from voice_rtc.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Lease:
    """One call's hold on a slot."""

    id: int
    """Fencing number: rises with every lease."""
    call_id: str
    session: SttSession
    granted_at: float
    """Loop time."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot for status pages and tests."""

    slots: int
    leased: int

    @property
    def available(self) -> int:
        """Slots that could be leased now."""
        return max(0, self.slots - self.leased)


class SttPool:
    """Leases of one shared STT engine. ``slots`` 0 takes what the engine recommends."""

    def __init__(self, engine: SttEngine, slots: int, metrics: Metrics) -> None:
        self._engine = engine
        self._slots = slots or engine.recommended_slots
        self._metrics = metrics
        self._leases: dict[int, Lease] = {}
        self._reserved = 0
        self._last_id = 0
        self._publish()

    def statistics(self) -> PoolStatistics:
        """Slots and how many are taken."""
        return PoolStatistics(self._slots, len(self._leases) + self._reserved)

    async def allocate_instance(self, call_id: str) -> Lease:
        """Take a slot and open its STT session. Raises QueueFull or EngineError."""
        if not self.statistics().available:
            self._metrics.leases_total.labels("refused").inc()
            raise QueueFull
        self._reserved += 1
        try:
            session = await self._engine.open()
        finally:
            self._reserved -= 1
        self._last_id += 1
        lease = Lease(self._last_id, call_id, session, asyncio.get_running_loop().time())
        self._leases[lease.id] = lease
        self._metrics.leases_total.labels("granted").inc()
        self._publish()
        return lease

    async def return_instance(self, lease: Lease) -> None:
        """Give the slot back and close its session. Idempotent."""
        if self._leases.pop(lease.id, None) is None:
            return
        held = asyncio.get_running_loop().time() - lease.granted_at
        self._metrics.lease_hold_seconds.observe(held)
        self._publish()
        await lease.session.aclose()

    @asynccontextmanager
    async def lease(self, call_id: str) -> AsyncIterator[Lease]:
        """Hold a slot for the length of a ``with`` block."""
        lease = await self.allocate_instance(call_id)
        try:
            yield lease
        finally:
            await self.return_instance(lease)

    def _publish(self) -> None:
        statistics = self.statistics()
        self._metrics.leases_active.set(len(self._leases))
        self._metrics.pool_slots.labels("leased").set(statistics.leased)
        self._metrics.pool_slots.labels("free").set(statistics.available)
