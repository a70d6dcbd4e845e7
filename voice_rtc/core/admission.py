"""How many slots there are at this moment, and whether anybody is let in, by what is measured now.

The sizing (`core.capacity`) says how many callers a machine should carry. An `AdmissionGate` begins
with that number and corrects it by the times of real finals, and by how busy the server's own
process is, which carries the media of all calls in one event loop:

    finals (95th percentile)         what the gate does when that has lasted ``dwell_seconds``
    -------------------------------  ---------------------------------------------------------
    above the goal                   queue_only: nobody who waits gets a slot
    below ``reopen_share`` of it     a closed gate opens, with fewer slots than when it closed
    below ``grow_share`` of it       an open gate adds slots, while somebody waits and all are taken
    none measured                    up to the sized number slots are added; a closed gate opens
                                     when that has lasted ``window_seconds``

    the server's own process
    -------------------------------
    loop late, or out of processor   refuse: nobody who waits gets a slot, and no call is taken, for
                                     who waits costs it nearly as much as who talks
    well below both bounds           a gate that refuses opens; slots may be added

A process may well use more than a core: engines work in threads of their own, which leave the loop
alone. So the processor counts only where the loop feels it too.

**It does not flap.** What was too many is remembered: the gate opens with fewer slots than there
were callers when it closed, as many as leave finals well within the goal if their time goes with
the number of callers, and goes on from there by evidence alone, but for some minutes not to where
it had to close. Between the bounds for opening and closing it stays as it is. After each move it
forgets what was measured before.

Pure: ``now`` is an argument.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from voice_rtc.core.capacity import percentile
from voice_rtc.core.ladder import Admission


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """How busy the server's own process was in the last seconds. None: not known."""

    loop_lag_seconds: float | None = None
    """How late its event loop ran what was due, 95th percentile."""
    cores: float | None = None
    """Processor time over time, all threads: 1.0 is one core."""


UNKNOWN_LOAD = ServerLoad()


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
    loop_lag_seconds: float = 0.05
    """An event loop that is later is too busy."""
    cores: float = 0.9
    """So is a process that uses more, when its loop is late by ``felt_share`` of the bound."""
    felt_share: float = 0.2
    lag_relief_share: float = 0.5
    """The loop is relieved below so much of its bound."""
    cores_relief_share: float = 0.9
    """And the processor below so much of its."""
    load_retreat_share: float = 0.9
    """When the process was too busy it opens with as many as would take so much of its bound. A
    loop far too late says only that it was far too many: then with half of that."""
    near_share: float = 0.9
    """Slots are not added past this share of the callers that were too many,"""
    remember_seconds: float = 60.0
    """for so long after it closed; twice as long each time that it closes again soon after."""
    longest_remember_seconds: float = 960.0
    dwell_seconds: float = 5.0
    """How long a figure must last before the gate or the number of slots moves."""
    window_seconds: float = 30.0
    """How far back finals count."""
    least_finals: int = 5
    """Fewer in the window say nothing."""

    def overload(self, load: ServerLoad) -> str:
        """Why the server's own process is too busy, in a sentence; empty when it is not."""
        lag, cores = load.loop_lag_seconds or 0.0, load.cores or 0.0
        if lag > self.loop_lag_seconds:
            return (
                f"The server's event loop runs {1000 * lag:.0f} ms late (95th percentile); "
                f"{1000 * self.loop_lag_seconds:.0f} ms is the bound."
            )
        if cores > self.cores and lag > self.felt_share * self.loop_lag_seconds:
            return (
                f"The server's own process uses {cores:.2f} of a core and its event loop runs "
                f"{1000 * lag:.0f} ms late; it has one loop for all calls."
            )
        return ""

    def relieved(self, load: ServerLoad) -> bool:
        """Has the process time for more?"""
        lag, cores = load.loop_lag_seconds or 0.0, load.cores or 0.0
        return lag < self.lag_relief_share * self.loop_lag_seconds and (
            cores < self.cores_relief_share * self.cores
            or lag < self.felt_share * self.lag_relief_share * self.loop_lag_seconds
        )


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What the gate wants."""

    slots: int
    """The number of slots to have now; leases held past it run to their own end."""
    state: Admission
    """``queue_only``: nobody who waits is to be granted a slot; ``refuse``: nor any call taken."""
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
    state: Admission = field(default="open", init=False)
    _why: str = field(default="", init=False, repr=False)
    """Why it closed."""
    _finals: deque[tuple[float, float]] = field(init=False, repr=False)
    _too_many: int = field(default=0, init=False, repr=False)
    """Callers when it last closed."""
    _closed_at: float = field(default=-math.inf, init=False, repr=False)
    _remember: float = field(default=0.0, init=False, repr=False)
    """For how long that is remembered."""
    _reopened_slots: int = field(default=0, init=False, repr=False)
    """What a closed gate opens with."""
    _since: float | None = field(default=None, init=False, repr=False)
    """Since when the present wish (queue_only, refuse, open, grow) has lasted."""
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

    def decide(
        self, now: float, leased: int, waiting: int, load: ServerLoad = UNKNOWN_LOAD
    ) -> GateDecision:
        """What to do now, with so many leases held and callers waiting."""
        p95 = self.final_p95_seconds(now)
        crowded = waiting > 0 and leased >= self.slots and self.slots < self._most(now)
        # Who is alone is not what keeps the process busy, and refusing would not help it.
        wish = self._wanted(
            p95, crowded, load if leased or self.state == "refuse" else UNKNOWN_LOAD
        )
        patience = self.rules.dwell_seconds
        if wish == "open" and self.state == "queue_only" and p95 is None:
            patience = self.rules.window_seconds  # it has just forgotten what was measured before
        if self._lasts(wish, now, patience):
            self._act(now, p95, leased, load)
        if self.state != "open":
            self.slots = min(self.slots, leased)
        self.slots = self._bounded(self.slots)
        return GateDecision(self.slots, self.state, self._reason(p95, load))

    def _most(self, now: float) -> int:
        rules = self.rules
        if now - self._closed_at >= self._remember:
            return rules.most
        return min(rules.most, math.floor(rules.near_share * self._too_many))

    def _wanted(self, p95: float | None, crowded: bool, load: ServerLoad) -> str:
        rules = self.rules
        if self.state != "refuse" and rules.overload(load):
            return "refuse"
        relieved = rules.relieved(load)
        if self.state != "open":
            quick = p95 is None or p95 < rules.reopen_share * rules.goal_seconds
            return "open" if quick and relieved else ""
        if p95 is not None and p95 > rules.goal_seconds:
            return "queue_only"
        return "grow" if crowded and relieved and self._may_grow(p95) else ""

    def _may_grow(self, p95: float | None) -> bool:
        if p95 is None:
            return self.slots < self.sized
        return p95 < self.rules.grow_share * self.rules.goal_seconds

    def _lasts(self, wish: str, now: float, patience: float) -> bool:
        if wish != self._wish or self._since is None:
            self._wish, self._since = wish, now
        return bool(wish) and now - self._since >= patience

    def _act(self, now: float, p95: float | None, leased: int, load: ServerLoad) -> None:
        match self._wish:
            case "queue_only":
                self._close("queue_only", self._fewer(p95, leased))
                self._remember_it(now, leased)
                self._why = f"Final transcripts took longer than {self.rules.goal_seconds:.1f} s."
            case "refuse":
                self._close("refuse", self._fewer_by_load(load, leased))
                self._remember_it(now, leased)
                self._why = self.rules.overload(load)
            case "open":
                self.state, self._why = "open", ""
                self.slots = self._reopened_slots
            case "grow":
                self.slots = min(self._grown(), self._most(now))
        # What was measured before says nothing about how it is now.
        self._finals.clear()
        self._wish, self._since = "", None

    def _close(self, state: Admission, slots: int) -> None:
        slots = min(self.slots, slots)
        self._reopened_slots = slots if self.state == "open" else min(self._reopened_slots, slots)
        self.state = state

    def _remember_it(self, now: float, leased: int) -> None:
        rules = self.rules
        again = now - self._closed_at < 2 * self._remember
        longer = min(2 * self._remember, rules.longest_remember_seconds)
        self._remember = longer if again else rules.remember_seconds
        self._too_many, self._closed_at = leased, now

    def _fewer(self, p95: float | None, leased: int) -> int:
        rules = self.rules
        late = max(p95 / rules.goal_seconds, 1.0) if p95 is not None else 1.0
        share = max(rules.retreat_share / late, rules.least_retreat_share)
        return math.floor(share * leased)

    def _fewer_by_load(self, load: ServerLoad, leased: int) -> int:
        rules = self.rules
        late = (load.loop_lag_seconds or 0.0) / rules.loop_lag_seconds
        over = max((load.cores or 0.0) / rules.cores, min(late, 2.0), 1.0)
        share = max(rules.load_retreat_share / over, rules.least_retreat_share)
        return math.floor(share * leased)

    def _grown(self) -> int:
        if self.slots < self.sized:
            return min(self.slots + max(self.slots // _QUICK_GROWTH, 1), self.sized)
        return self.slots + max(self.slots // _SLOW_GROWTH, 1)

    def _bounded(self, slots: int) -> int:
        return max(min(slots, self.rules.most), self.rules.floor)

    def _reason(self, p95: float | None, load: ServerLoad) -> str:
        if self.state == "refuse":
            return self.rules.overload(load) or self._why
        if self.state == "queue_only" and p95 is not None:
            goal = self.rules.goal_seconds
            return f"Final transcripts take {p95:.1f} s; the goal is {goal:.1f} s."
        return self._why
