"""What a call holds of the pool, and what it is told while it waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from voice_rtc.engines.base import SttMode
from voice_rtc.pool.session import LeasedSession

REPLACED = "replaced"
"""Why a slot was taken back: its caller came back on another connection, which has it now."""


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """One call's hold on a slot."""

    id: int
    """Fencing number: rises with every lease."""
    call_id: str
    session: LeasedSession
    granted_at: float
    """Loop time."""
    waited_seconds: float = 0.0
    slot: int = 0
    mode: SttMode = "shared"
    on_revoked: Callable[[str], None] | None = None
    """Called with the reason when the pool takes the slot back."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a caller stands in the waiting line."""

    position: int
    """1 is next."""
    waiting: int
    """Callers in the line, this one counted."""
    eta_seconds: float | None
    """Estimate; None when nothing is known."""
    token: str
    """Gives the place back after a lost connection: `LeaseRequest.resume`."""


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What a call wants of the pool."""

    call_id: str
    head_start_seconds: float = 0.0
    """Lined up as if it had come so much earlier."""
    resume: str = ""
    """Token of an earlier `Place` of the same caller."""
    on_place: Callable[[Place], None] | None = None
    """Called at each change of the place, and now and then for the estimate."""
    on_revoked: Callable[[str], None] | None = None
    """Called with the reason when the pool takes the slot back."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot for status pages and tests."""

    slots: int
    leased: int
    waiting: int = 0

    @property
    def available(self) -> int:
        """Slots that could be leased now."""
        return max(0, self.slots - self.leased)
