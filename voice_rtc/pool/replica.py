"""A replica: one loaded STT engine of the pool, its leases and how it is."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from voice_rtc.engines.base import EngineHealth, SttEngine, SttMode, SupportsBusy, SupportsHealth

if TYPE_CHECKING:
    from voice_rtc.core.health import ReplicaHealth
    from voice_rtc.pool.lease import Lease

Role = Literal["serving", "spare", "isolated"]


class State(StrEnum):
    """Where a replica stands in its life."""

    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    """It works, but gets no new leases."""
    QUARANTINED = "quarantined"
    """It is being replaced and does nothing any more."""
    RETIRED = "retired"
    """It ends when its last lease does."""


class Replica:
    """See the module. Times are loop times in seconds."""

    def __init__(
        self,
        name: str,
        mode: SttMode,
        role: Role,
        device: int,
        engine: SttEngine,
        health: ReplicaHealth,
        now: float,
    ) -> None:
        self.name = name
        self.mode: SttMode = mode
        self.role: Role = role
        self.device = device
        self.engine = engine
        # Asked once: to compare with a Protocol takes longer than all the rest of a look.
        self._tells_health = engine if isinstance(engine, SupportsHealth) else None
        self._tells_busy = engine if isinstance(engine, SupportsBusy) else None
        self.health = health
        self.state = State.STARTING
        self.reason = ""
        """Why it is in its state, for people."""
        self.born = now
        self.idle_since = now
        self.watched_since = now
        """When it was loaded; until then, when its loading began."""
        self.leases: dict[str, Lease] = {}
        """Call id -> lease that it serves."""
        self.failures = 0
        self.probe_seconds: float | None = None
        self.probed_at: float | None = None
        self.probing = False

    @property
    def usable(self) -> bool:
        """May audio be sent to it?"""
        return self.state in (State.READY, State.SUSPECT, State.RETIRED)

    @property
    def takes_leases(self) -> bool:
        """May a new lease be bound to it?"""
        return self.state is State.READY and self.role == "serving"

    def bind(self, lease: Lease) -> None:
        """It serves the lease from now on."""
        self.leases[lease.call_id] = lease

    def unbind(self, call_id: str, now: float) -> None:
        """It serves the call no more."""
        if self.leases.pop(call_id, None) is not None and not self.leases:
            self.idle_since = now

    def engine_health(self) -> EngineHealth:
        """What the engine tells of itself; sends a heartbeat where it has one."""
        if self._tells_health is not None:
            return self._tells_health.health()
        if self._tells_busy is not None:
            return EngineHealth(busy_seconds=self._tells_busy.busy_seconds())
        return EngineHealth()

    @property
    def heals_itself(self) -> bool:
        """Does the engine restart its own workers?"""
        return self._tells_health is None

    def __repr__(self) -> str:
        return f"<Replica {self.name} {self.role} {self.state} leases={len(self.leases)}>"
