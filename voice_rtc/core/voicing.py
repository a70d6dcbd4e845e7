"""Whose words are spoken next, when one synthesiser speaks for many calls.

Pure: no threads, no clock. A worker that has nothing to do asks `Voicing.take`.

    First clauses before later ones   a caller waits in silence for the first one
    A later one that waited long      counts as a first one: replies in progress must not run dry
    Among equals                      the callers take turns, in the order in which they asked
    Within one caller                 in order
    A batch                           holds pieces of one class, one a caller, of like length

Pieces past the bound are refused; the caller is spoken to by another voice.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VoicingPiece:
    """A few words that are to be spoken."""

    key: int
    """Unique among those that wait."""
    caller: str
    first: bool
    """It begins a reply: nothing is heard before it is there."""
    size: int
    """Any measure of its length, such as characters."""
    asked_at: float
    """Seconds, on the clock of `Voicing.take`."""


@dataclass(frozen=True, slots=True)
class VoicingRules:
    """Bounds."""

    most_waiting: int = 256
    patience_seconds: float = 1.0
    """A later piece that waited so long is served as a first one."""
    most_firsts: int = 1
    """Pieces in a batch that begin replies."""
    most_laters: int = 1
    """Pieces in a batch of others: a first one that comes meanwhile waits for its end."""
    spread: float = 1.5
    """Longest over shortest piece of a batch: all take the time of the longest."""


class Voicing:
    """The pieces that wait. One per worker."""

    def __init__(self, rules: VoicingRules = VoicingRules()) -> None:
        self._rules = rules
        self._ring: OrderedDict[str, deque[VoicingPiece]] = OrderedDict()
        """Caller -> pieces; whose turn it is comes first. Nobody is in it without a piece."""
        self._waiting: dict[int, VoicingPiece] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, piece: VoicingPiece) -> bool:
        """Queue ``piece``; its caller comes last if nothing of it waits yet. False: no room."""
        if len(self._waiting) >= self._rules.most_waiting:
            return False
        self._waiting[piece.key] = piece
        self._ring.setdefault(piece.caller, deque()).append(piece)
        return True

    def cancel(self, key: int) -> bool:
        """Forget a piece. False when it does not wait, such as because it has begun."""
        piece = self._waiting.pop(key, None)
        if piece is None:
            return False
        pieces = self._ring[piece.caller]
        pieces.remove(piece)
        if not pieces:
            del self._ring[piece.caller]
        return True

    def take(self, now: float) -> list[VoicingPiece]:
        """The next batch, the most urgent piece first; empty when nothing waits."""
        urgent = [piece for piece in self._heads() if self._urgent(piece, now)]
        found = urgent or list(self._heads())
        most = self._rules.most_firsts if urgent else self._rules.most_laters
        batch: list[VoicingPiece] = []
        for piece in found:
            if len(batch) < most and self._alike([*batch, piece]):
                batch.append(piece)
        for piece in batch:
            self._take_out(piece)
        return batch

    def _heads(self) -> Iterator[VoicingPiece]:
        return (pieces[0] for pieces in self._ring.values())

    def _urgent(self, piece: VoicingPiece, now: float) -> bool:
        return piece.first or now - piece.asked_at >= self._rules.patience_seconds

    def _alike(self, pieces: list[VoicingPiece]) -> bool:
        sizes = [max(1, piece.size) for piece in pieces]
        return max(sizes) <= self._rules.spread * min(sizes)

    def _take_out(self, piece: VoicingPiece) -> None:
        """Its caller has had a turn and, with more to say, comes last."""
        del self._waiting[piece.key]
        pieces = self._ring[piece.caller]
        pieces.popleft()
        if pieces:
            self._ring.move_to_end(piece.caller)
        else:
            del self._ring[piece.caller]
