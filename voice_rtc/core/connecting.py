"""Who may begin to connect, when many do.

An offer costs its sender nothing and the server sockets, a certificate and time, and who floods a
server with them never connects. So calls that are not connected yet are bounded, for each address
and in all. When all room is taken, whoever has little of it gets some from whoever has most: a
flood from a few addresses is left to compete with itself.

Pure: ages are arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Connecting:
    """A call that was answered and is not connected yet."""

    call_id: str
    origin: str
    """Address that its offer came from."""
    age_seconds: float
    alive: bool
    """Its client has sent an authenticated connectivity check."""


@dataclass(frozen=True, slots=True)
class ConnectingRules:
    """How many may connect at the same time."""

    most: int = 100
    most_per_origin: int = 50
    patience_seconds: float = 5.0
    """Who gave no sign of life for so long makes room for whoever has none yet."""


@dataclass(frozen=True, slots=True)
class Room:
    """What is to be done with one more offer."""

    refusal: Literal["", "origin", "full"] = ""
    """Empty: it is taken. ``origin``: too many from its address; ``full``: too many in all."""
    displaced: str = ""
    """Id of the call that is ended for it; empty: none."""


def room_for(origin: str, connecting: Sequence[Connecting], rules: ConnectingRules) -> Room:
    """Is there room for one more from ``origin``? ``connecting`` has the oldest first."""
    share = Counter(call.origin for call in connecting)
    if share[origin] >= rules.most_per_origin:
        return Room("origin")
    if len(connecting) < rules.most:
        return Room()
    lifeless = [call for call in connecting if not call.alive]
    if not lifeless:
        return Room("full")
    victim = max(lifeless, key=lambda call: share[call.origin])  # the oldest of them
    if share[victim.origin] > share[origin] + 1:
        return Room(displaced=victim.call_id)
    if not share[origin] and lifeless[0].age_seconds > rules.patience_seconds:
        return Room(displaced=lifeless[0].call_id)
    return Room("full")
