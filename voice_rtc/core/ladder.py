"""What is given up under load, one step at a time, before anybody is turned away.

    step  name             partials      decoding  new callers
    ----  ---------------  ------------  --------  ------------------------------
    0     normal           as set        full      talk at once
    1     partials_slower  half as many  full      talk at once
    2     no_partials      none          full      talk at once
    3     economy          none          least     talk at once
    4     queue_only       none          least     wait in line, even for a free slot
    5     refuse           none          least     are refused (503, Retry-After)

Partials go first because they cost most and matter least; those who talk already are served
before new ones are taken. The ladder goes up a step when pressure has lasted ``up_seconds`` (less
when memory is critical: the next thing would be the kernel's choice of what to kill) and down a
step when relief has lasted ``down_seconds`` (less when nobody talks: who waits should not wait for
an idle server). Between pressure and relief it stays.

Where an admission gate (`core.admission`) lets nobody in when finals are slow, slow finals do not
climb past economy: turning callers away from the line would quicken nothing.

Without any healthy replica no lower quality helps: after ``up_seconds`` the ladder stands at
queue_only at least, and goes back at once when there is one again.

Pure: the readings come from outside, ``now`` is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Admission = Literal["open", "queue_only", "refuse"]


@dataclass(frozen=True, slots=True)
class LadderStep:
    """What holds on a step."""

    step: int
    """0 is normal."""
    name: str
    partial_factor: float | None
    """Partials come so many times more rarely; None: none at all."""
    economy: bool
    """Smallest beam, short windows, no second try."""
    admission: Admission
    sentence: str
    """For callers; empty on the normal step."""
    reason: str = ""
    """Why it was taken, with figures, for operators."""
    since: float = 0.0
    """``now`` when it was taken."""


STEPS: tuple[LadderStep, ...] = (
    LadderStep(0, "normal", 1.0, False, "open", ""),
    LadderStep(
        1, "partials_slower", 2.0, False, "open",
        "The server is busy: live captions come less often.",
    ),
    LadderStep(
        2, "no_partials", None, False, "open",
        "The server is busy: captions come when you have finished speaking.",
    ),
    LadderStep(
        3, "economy", None, True, "open",
        "The server is very busy: transcripts may be less accurate.",
    ),
    LadderStep(
        4, "queue_only", None, True, "queue_only",
        "The server is at its limit: new callers wait in line.",
    ),
    LadderStep(
        5, "refuse", None, True, "refuse",
        "The server is overloaded and takes no new calls at the moment.",
    ),
)  # fmt: skip
"""The ladder; `LadderStep.step` is the index."""

NAMES = tuple(step.name for step in STEPS)
ECONOMY = NAMES.index("economy")
QUEUE_ONLY = NAMES.index("queue_only")


@dataclass(frozen=True, slots=True)
class LadderRules:
    """What counts as pressure and how long it must last."""

    up_seconds: float = 5.0
    down_seconds: float = 15.0
    idle_down_seconds: float = 2.0
    """Instead of ``down_seconds`` when nobody holds a slot."""
    critical_up_seconds: float = 1.0
    """Instead of ``up_seconds`` when memory is critical."""
    memory_critical: float = 0.93
    """Share of memory in use."""
    memory_margin: float = 0.03
    """Relief is so much below ``memory_critical``."""
    relief_share: float = 0.7
    """Relief is a final p95 below so much of the goal."""
    queue_factor: float = 2.0
    """An engine's queue whose oldest request has waited longer than so many times the goal is
    pressure; relief is below half of that."""


@dataclass(frozen=True, slots=True)
class Readings:
    """How things stand."""

    final_p95_seconds: float | None
    """Of the last half minute or so; None: no finals, which is relief."""
    goal_seconds: float
    memory_fraction: float
    """Share in use, 0.0 to 1.0, of whichever memory is fullest."""
    queue_age_seconds: float
    """Age of the oldest request that waits in an engine."""
    healthy_replicas: int
    leases: int = 1
    """Callers who hold a slot; with none there is no load."""
    gated: bool = False
    """Does a gate see to it that slow finals let nobody in?"""


class Ladder:
    """Where the server stands on the ladder. ``rules`` may be replaced at any time."""

    def __init__(self, rules: LadderRules = LadderRules()) -> None:
        self.rules = rules
        self._level = 0
        """By load alone."""
        self._reason = ""
        self._pressure_since: float | None = None
        self._relief_since: float | None = None
        self._blocked_since: float | None = None
        self._current = STEPS[0]

    @property
    def current(self) -> LadderStep:
        """The present step."""
        return self._current

    def step(self, now: float, readings: Readings) -> LadderStep | None:
        """Look at the readings; the new step when there is one. To be called each second or so."""
        self._weigh(now, readings)
        level, reason = self._level, self._reason
        if self._is_blocked(now, readings) and level < QUEUE_ONLY:
            level, reason = QUEUE_ONLY, "no replica is ready"
        if level == self._current.step:
            return None
        self._current = replace(STEPS[level], reason=reason, since=now)
        return self._current

    def _weigh(self, now: float, readings: Readings) -> None:
        critical = readings.memory_fraction >= self.rules.memory_critical
        pressure = self._pressure(readings)
        if pressure:
            self._relief_since = None
            self._pressure_since = _first(self._pressure_since, now)
            patience = self.rules.critical_up_seconds if critical else self.rules.up_seconds
            top = ECONOMY if readings.gated and not critical else len(STEPS) - 1
            if now - self._pressure_since >= patience and self._level < top:
                self._move(self._level + 1, pressure)
                self._pressure_since = now
            return
        self._pressure_since = None
        if not self._is_relief(readings):
            self._relief_since = None
            return
        self._relief_since = _first(self._relief_since, now)
        rules = self.rules
        patience = rules.down_seconds if readings.leases else rules.idle_down_seconds
        if now - self._relief_since >= patience and self._level:
            self._move(self._level - 1, "the load has gone down")
            self._relief_since = now

    def _move(self, level: int, reason: str) -> None:
        self._level = level
        self._reason = reason if level else ""

    def _pressure(self, readings: Readings) -> str:
        """What presses, in a sentence with figures; empty when nothing does."""
        p95, goal = readings.final_p95_seconds, readings.goal_seconds
        if readings.memory_fraction >= self.rules.memory_critical:
            return f"{readings.memory_fraction:.0%} of the memory is in use"
        if p95 is not None and p95 > goal:
            return f"final transcripts take {p95:.2f} s, the goal is {goal:.2f} s"
        if readings.queue_age_seconds > self.rules.queue_factor * goal:
            return f"a request has waited {readings.queue_age_seconds:.2f} s for an engine"
        return ""

    def _is_relief(self, readings: Readings) -> bool:
        rules, p95, goal = self.rules, readings.final_p95_seconds, readings.goal_seconds
        return (
            (p95 is None or p95 < rules.relief_share * goal)
            and readings.memory_fraction < rules.memory_critical - rules.memory_margin
            and readings.queue_age_seconds < rules.queue_factor * goal / 2
        )

    def _is_blocked(self, now: float, readings: Readings) -> bool:
        if readings.healthy_replicas > 0:
            self._blocked_since = None
            return False
        self._blocked_since = _first(self._blocked_since, now)
        return now - self._blocked_since >= self.rules.up_seconds

    def __repr__(self) -> str:
        return f"<Ladder step {self._current.step} {self._current.name}>"


def _first(since: float | None, now: float) -> float:
    return now if since is None else since
