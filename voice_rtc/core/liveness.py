"""Whether the other end of a connection still lives, by when it was last heard.

A caller may send nothing for minutes and be well: muted, without a microphone, or silent under DTX.
So silence alone says nothing. Whoever has not been heard for a while is asked, and a client that
lives must answer (RFC 7675): every ICE agent does, whatever it sends of its own accord.

    quiet for              what follows
    ---------------------  ------------------------------------------------------------------
    ``ask_seconds``        ASK, again each ``ask_interval_seconds`` until something is heard
    ``suspend_seconds``    SUSPEND: nothing is done for a caller who does not hear it
    ``end_seconds``        END

Anything that is heard undoes a suspension at once (RESUME). A server that itself came to nothing
for a while, its event loop being held up, does not hold that against the callers.

Pure: ``now`` is an argument, in seconds on any clock that does not run backwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """How long a caller may be quiet, in seconds."""

    suspend_seconds: float = 3.0
    end_seconds: float = 8.0
    ask_seconds: float = 1.5
    ask_interval_seconds: float = 0.5
    patience_seconds: float = 0.5
    """A look that comes later than this after its deadline is the server's own fault."""

    @property
    def first_ask_seconds(self) -> float:
        """Before a suspension, however soon that comes."""
        return min(self.ask_seconds, self.suspend_seconds / 2)


class Step(Enum):
    """What is to be done."""

    ASK = auto()
    SUSPEND = auto()
    RESUME = auto()
    END = auto()


class Liveness:
    """Tell it what is `heard`, `look` at `next_deadline`. After END nothing more comes of it."""

    def __init__(self, rules: LivenessRules, now: float) -> None:
        """It begins as if something was heard ``now``."""
        self._rules = rules
        self._heard_at = now
        self._asked_at = -math.inf
        self.suspended = False
        self.ended = False

    @property
    def next_deadline(self) -> float:
        """When `look` has something to do; moves on whenever something is heard."""
        rules = self._rules
        marks = [rules.end_seconds]
        if not self.suspended:
            marks.append(rules.suspend_seconds)
        return min(self._ask_at, *(self._heard_at + mark for mark in marks))

    def heard(self, now: float) -> Step | None:
        """The other end has shown that it lives. RESUME if that undoes a suspension."""
        if self.ended:
            return None
        self._heard_at = now
        if not self.suspended:
            return None
        self.suspended = False
        return Step.RESUME

    def look(self, now: float) -> list[Step]:
        """What is to be done ``now``, in this order."""
        if self.ended:
            return []
        self._forgive(now)
        rules, quiet = self._rules, now - self._heard_at
        if quiet >= rules.end_seconds:
            self.ended = True
            return [Step.END]
        steps: list[Step] = []
        if now >= self._ask_at:
            self._asked_at = now
            steps.append(Step.ASK)
        if quiet >= rules.suspend_seconds and not self.suspended:
            self.suspended = True
            steps.append(Step.SUSPEND)
        return steps

    @property
    def _ask_at(self) -> float:
        first = self._heard_at + self._rules.first_ask_seconds
        return max(first, self._asked_at + self._rules.ask_interval_seconds)

    def _forgive(self, now: float) -> None:
        """Nobody looked, so nobody asked and perhaps nobody listened either."""
        late = now - self.next_deadline
        if late > self._rules.patience_seconds:
            self._heard_at += late
            self._asked_at += late
