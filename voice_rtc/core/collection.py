"""When a full collection of garbage may stop the server.

A collection of the oldest generation stops everything, for some 10 ms once what was loaded at the
start is frozen. Who is being played a reply could hear that, nobody else can:

    no call           collect
    nobody hears      collect: calls are there, but none is being sent sound
    somebody hears    wait, but for ``most_seconds`` at most, and not when ``most_objects`` or
                      ``most_calls`` are due

It is due when calls ended, since a closed connection is a ring of references, and when enough
objects have lived on. Pure: ``now`` is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["idle", "quiet", "time", "objects", "calls"]


@dataclass(frozen=True, slots=True)
class CollectionRules:
    """Bounds."""

    most_seconds: float = 60.0
    """So long garbage is left at most while somebody hears a reply."""
    most_objects: int = 500_000
    """So many objects at most live on before a collection is due whoever hears."""
    rest_seconds: float = 2.0
    """Calls that end within this are collected together."""
    most_calls: int = 16
    """So many calls that ended are left at most: each has native threads, and is a millisecond."""
    worthwhile_share: float = 0.1
    """Of ``most_objects``; from there on it is worth while without a call that ended."""


class CollectionPlan:
    """Ask `decide` each second or so; tell `call_ended` and `collected`."""

    def __init__(self, rules: CollectionRules = CollectionRules()) -> None:
        self._rules = rules
        self._due_at: float | None = None
        """Since when it is due, or will be."""
        self._ended = 0

    def call_ended(self, now: float) -> bool:
        """There is garbage. True when it may not wait for the next `decide`."""
        self._ended += 1
        if self._due_at is None:
            self._due_at = now + self._rules.rest_seconds
        return self._ended == self._rules.most_calls

    def collected(self) -> None:
        """It was done."""
        self._due_at = None
        self._ended = 0

    def decide(self, now: float, *, objects: int, calls: int, hearing: bool) -> Reason | None:
        """Why to collect now; None: not now.

        ``objects`` live on since the last collection, ``calls`` run, ``hearing``: one of them is
        being sent sound.
        """
        rules = self._rules
        if objects >= rules.most_objects:
            return "objects"
        if self._ended >= rules.most_calls:
            return "calls" if calls else "idle"
        if self._due_at is None and objects >= rules.worthwhile_share * rules.most_objects:
            self._due_at = now
        if self._due_at is None or now < self._due_at:
            return None
        if not calls:
            return "idle"
        if not hearing:
            return "quiet"
        return "time" if now - self._due_at >= rules.most_seconds else None
