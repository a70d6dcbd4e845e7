"""RTP packets of one source in their order, and what is missing between them.

This is order, not pacing: speech recognition is no loudspeaker, so a packet that is next goes on at
once. Only behind a hole packets are held, until the missing one comes, more than ``hold_packets``
wait, or the oldest has waited ``hold_seconds`` (a caller who pauses sends nothing more that could
push them out).

    push(7) -> [7]    push(9) -> []    push(8) -> [8, 9]            reordered
    push(7) -> [7]    push(9) -> []    push(10) -> []    push(11) -> [9 (lost 1), 10, 11]

Late packets, which were given up, and copies are dropped and counted. A source that starts again
with other numbers is followed when two packets in a row say so (RFC 3550 appendix A.1).

Pure: no clock, ``now`` is seconds on any clock that does not run back.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_DROPOUT = 3000
"""A jump ahead by more is a new beginning, RFC 3550 appendix A.1."""
MAX_MISORDER = 100
"""A jump back by more is a new beginning."""
_MODULUS = 1 << 16


@dataclass(slots=True)  # not frozen: that doubles the time of making one
class Received:
    """A packet in its turn."""

    payload: bytes
    timestamp: int
    """Of RTP, 32 bit."""
    lost: int = 0
    """Packets given up immediately before this one."""
    restarted: bool = False
    """The first of a source that began anew: its timestamp has nothing to do with those before."""


@dataclass(slots=True)
class ReorderStatistics:
    """Counts since the beginning."""

    received: int = 0
    """Packets that came, late ones and copies too."""
    lost: int = 0
    """Given up."""
    late: int = 0
    """Came after they were given up; `lost` counts them too."""
    copies: int = 0
    reordered: int = 0
    """Came after a later one and were still in time."""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    payload: bytes
    timestamp: int
    since: float


class ReorderWindow:
    """Packets in by `push`, packets in order out of it and of `expire`."""

    def __init__(self, hold_packets: int = 2, hold_seconds: float = 0.06) -> None:
        if hold_packets < 0 or hold_seconds < 0.0:
            raise ValueError("nothing can be held for less than no time")
        self._hold_packets = hold_packets
        self._hold_seconds = hold_seconds
        self._next: int | None = None
        """Sequence number of the packet that is next, extended beyond 16 bits."""
        self._held: dict[int, _Held] = {}
        """By extended sequence number."""
        self._given_up: set[int] = set()
        """The newest of those that were: their late arrival is told from a copy."""
        self._stranger: int | None = None
        """Sequence number that would confirm a new beginning."""
        self._restarted = False
        self.statistics = ReorderStatistics()

    def is_next(self, sequence: int) -> bool:
        """Take a packet in that may go on at once, as nearly all do: the next one, nothing held.

        False: it was not taken, `push` it.
        """
        number = sequence if self._next is None else self._next
        if sequence != number % _MODULUS or self._held or self._restarted:
            return False
        self.statistics.received += 1
        self._stranger = None
        self._next = number + 1
        return True

    def push(self, sequence: int, timestamp: int, payload: bytes, now: float) -> list[Received]:
        """Take a packet (16 bit ``sequence``) in; those whose turn it is come out."""
        self.statistics.received += 1
        number = self._extended(sequence)
        if number is None:
            return []
        assert self._next is not None
        if number < self._next:
            self._too_late(number)
            return []
        if number in self._held:
            self.statistics.copies += 1
            return []
        if number == self._next and not self._held:
            self._next += 1
            return [self._out(payload, timestamp, 0)]
        if any(other > number for other in self._held):
            self.statistics.reordered += 1
        self._held[number] = _Held(payload, timestamp, now)
        return self._release(now)

    def expire(self, now: float) -> list[Received]:
        """To be called at `next_deadline`; harmless at any other time."""
        return self._release(now)

    @property
    def next_deadline(self) -> float | None:
        """When a held packet has waited long enough; None when none is held."""
        oldest = min((held.since for held in self._held.values()), default=None)
        return None if oldest is None else oldest + self._hold_seconds

    @property
    def held(self) -> int:
        """Packets that wait behind a hole."""
        return len(self._held)

    def _extended(self, sequence: int) -> int | None:
        """The number beyond 16 bits; None for a packet that cannot be of this source yet."""
        if self._next is None:
            self._next = sequence
            return sequence
        ahead = (sequence - self._next) % _MODULUS
        if ahead >= _MODULUS // 2:
            ahead -= _MODULUS
        if -MAX_MISORDER <= ahead <= MAX_DROPOUT:
            self._stranger = None
            return self._next + ahead
        if sequence != self._stranger:
            self._stranger = (sequence + 1) % _MODULUS
            return None
        self._restart(sequence)
        return sequence

    def _restart(self, sequence: int) -> None:
        self.statistics.restarts += 1
        self._stranger = None
        self._held.clear()
        self._given_up.clear()
        self._next = sequence
        self._restarted = True

    def _too_late(self, number: int) -> None:
        if number in self._given_up:
            self._given_up.discard(number)
            self.statistics.late += 1
        else:
            self.statistics.copies += 1

    def _release(self, now: float) -> list[Received]:
        out: list[Received] = []
        while self._held:
            assert self._next is not None
            first = min(self._held)
            if first > self._next and not self._gives_up(now):
                break
            lost = self._skip_to(first)
            held = self._held.pop(first)
            out.append(self._out(held.payload, held.timestamp, lost))
            self._next = first + 1
        return out

    def _gives_up(self, now: float) -> bool:
        if len(self._held) > self._hold_packets:
            return True
        deadline = self.next_deadline
        return deadline is not None and now >= deadline

    def _skip_to(self, first: int) -> int:
        assert self._next is not None
        lost = first - self._next
        if lost:
            self.statistics.lost += lost
            self._given_up.update(range(max(self._next, first - MAX_MISORDER), first))
            self._given_up = {each for each in self._given_up if each >= first - MAX_MISORDER}
        return lost

    def _out(self, payload: bytes, timestamp: int, lost: int) -> Received:
        restarted, self._restarted = self._restarted, False
        return Received(payload, timestamp, lost, restarted)
