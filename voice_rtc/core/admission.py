"""How many slots there are at this moment, and whether anybody is let in, by what is measured now.

The sizing (`core.capacity`) says how many callers a machine should carry. An `AdmissionGate` begins
with that number and corrects it by the times of real finals:

    finals (95th percentile)         what the gate does when that has lasted ``dwell_seconds``
    -------------------------------  ---------------------------------------------------------
    above the goal                   closes: nobody who waits gets a slot
    below ``reopen_share`` of it     a closed gate opens, with fewer slots than when it closed
    below ``grow_share`` of it       an open gate adds slots, while somebody waits and all are taken
    none measured                    up to the sized number slots are added; a closed gate opens
                                     when that has lasted ``window_seconds``

**It does not flap.** What was too many is remembered: the gate opens with fewer slots than there
were callers when it closed, as many as leave finals well within the goal if their time goes with
the number of callers, and goes on from there by evidence alone. Between the bounds for opening and
closing it stays as it is. After each move it forgets what was measured before.

Pure: ``now`` is an argument.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from voice_rtc.core.capacity import percentile


@dataclass(frozen=True, slots=True)
class GateRules:
    """When the gate closes and opens, and how the number of slots moves."""

    goal_seconds: float = 0.6
    floor: int = 1
    """Never fewer slots."""
    most: int = 1000
    """Never more."""
    reopen_share: float = 0.8
    """Below so much of the goal a closed gate opens."""
    grow_share: float = 0.6
    """Below so much of the goal, and with somebody waiting, slots are added."""
    retreat_share: float = 0.65
    """It opens with as many slots as would take so much of the goal: little enough for the ladder
    (`core.ladder`) to come down again."""
    least_retreat_share: float = 0.25
    """It never opens with less than this share of the callers that there were."""
    dwell_seconds: float = 5.0
    """How long a figure must last before the gate or the number of slots moves."""
    window_seconds: float = 30.0
    """How far back finals count."""
    least_finals: int = 5
    """Fewer in the window say nothing."""


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What the gate wants."""

    slots: int
    """The number of slots to have now; leases held past it run to their own end."""
    state: Literal["open", "closed"]
    """closed: nobody who waits is to be granted a slot."""
    reason: str
    """A sentence; empty when there is nothing to tell."""


_MOST_FINALS = 512
_QUICK_GROWTH = 4
"""Up to the sized number a quarter of the slots is added at a time."""
_SLOW_GROWTH = 10
"""Beyond it a tenth."""


@dataclass(slots=True)
class AdmissionGate:
    """Feed it with `observe`, ask it with `decide` about every second.

    ``rules`` may be replaced at any time.
    """

    rules: GateRules
    sized: int
    """The number that the sizing gave."""
    slots: int = field(init=False)
    """The present number."""
    closed: bool = field(default=False, init=False)
    _finals: deque[tuple[float, float]] = field(init=False, repr=False)
    _reopened_slots: int = field(default=0, init=False, repr=False)
    """What a closed gate opens with."""
    _since: float | None = field(default=None, init=False, repr=False)
    """Since when the present wish (close, open, grow) has lasted."""
    _wish: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        self._finals = deque(maxlen=_MOST_FINALS)
        self.slots = self._bounded(self.sized)

    def observe(self, now: float, final_seconds: float) -> None:
        """A final came ``final_seconds`` after its utterance ended."""
        self._finals.append((now, final_seconds))

    def final_p95_seconds(self, now: float) -> float | None:
        """The rolling 95th percentile; None when too little was measured lately."""
        oldest = now - self.rules.window_seconds
        while self._finals and self._finals[0][0] < oldest:
            self._finals.popleft()
        if len(self._finals) < self.rules.least_finals:
            return None
        return percentile((seconds for _, seconds in self._finals), 0.95)

    def decide(self, now: float, leased: int, waiting: int) -> GateDecision:
        """What to do now, with so many leases held and callers waiting."""
        p95 = self.final_p95_seconds(now)
        wish = self._wanted(p95, leased, waiting)
        patience = self.rules.dwell_seconds
        if wish == "open" and p95 is None:
            patience = self.rules.window_seconds  # it has just forgotten what was measured before
        if self._lasts(wish, now, patience):
            self._act(p95, leased)
        if self.closed:
            self.slots = min(self.slots, leased)
        self.slots = self._bounded(self.slots)
        state: Literal["open", "closed"] = "closed" if self.closed else "open"
        return GateDecision(self.slots, state, self._reason(p95))

    def _wanted(self, p95: float | None, leased: int, waiting: int) -> str:
        rules = self.rules
        if self.closed:
            relieved = p95 is None or p95 < rules.reopen_share * rules.goal_seconds
            return "open" if relieved else ""
        if p95 is not None and p95 > rules.goal_seconds:
            return "close"
        crowded = waiting > 0 and leased >= self.slots and self.slots < rules.most
        return "grow" if crowded and self._may_grow(p95) else ""

    def _may_grow(self, p95: float | None) -> bool:
        if p95 is None:
            return self.slots < self.sized
        return p95 < self.rules.grow_share * self.rules.goal_seconds

    def _lasts(self, wish: str, now: float, patience: float) -> bool:
        if wish != self._wish or self._since is None:
            self._wish, self._since = wish, now
        return bool(wish) and now - self._since >= patience

    def _act(self, p95: float | None, leased: int) -> None:
        match self._wish:
            case "close":
                self.closed = True
                self._reopened_slots = min(self.slots, self._fewer(p95, leased))
            case "open":
                self.closed = False
                self.slots = self._reopened_slots
            case "grow":
                self._grow()
        # What was measured before says nothing about how it is now.
        self._finals.clear()
        self._wish, self._since = "", None

    def _fewer(self, p95: float | None, leased: int) -> int:
        rules = self.rules
        late = max(p95 / rules.goal_seconds, 1.0) if p95 is not None else 1.0
        share = max(rules.retreat_share / late, rules.least_retreat_share)
        return math.floor(share * leased)

    def _grow(self) -> None:
        if self.slots < self.sized:
            more = max(self.slots // _QUICK_GROWTH, 1)
            self.slots = min(self.slots + more, self.sized)
        else:
            self.slots += max(self.slots // _SLOW_GROWTH, 1)

    def _bounded(self, slots: int) -> int:
        return max(min(slots, self.rules.most), self.rules.floor)

    def _reason(self, p95: float | None) -> str:
        if not self.closed:
            return ""
        goal = self.rules.goal_seconds
        if p95 is None:
            return f"Final transcripts took longer than {goal:.1f} s."
        return f"Final transcripts take {p95:.1f} s; the goal is {goal:.1f} s."
