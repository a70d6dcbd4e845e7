"""Bounded buffers: every queue has a bound, a policy and a counter.

Answers the original plan's BufferManager and QueueManager. This is the pure half; the asyncio
half, which lets a task wait for an item, is `voice_rtc.inbox.Inbox`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

T = TypeVar("T")


class Policy(Enum):
    """What happens to an item that does not fit."""

    DROP_OLDEST = auto()
    REJECT_NEWEST = auto()


@dataclass(frozen=True, slots=True)
class BufferStatistics:
    """A snapshot: what is waiting and what was lost since the start."""

    items: int
    weight: float
    limit: float
    dropped: int


def _one(_item: object) -> float:
    return 1.0


class BoundedBuffer(Generic[T]):
    """A FIFO whose total weight never exceeds ``limit``.

    ``weigh`` gives an item's weight in the unit of ``limit`` (default: each item weighs 1; for
    audio use seconds). An item that alone outweighs the limit is dropped under either policy.
    ``keep`` marks items that DROP_OLDEST must not drop; when only such items are left, the
    newest item is dropped instead if it may be, else it is kept and the bound is passed by it.
    """

    def __init__(
        self,
        limit: float,
        policy: Policy,
        *,
        weigh: Callable[[T], float] = _one,
        keep: Callable[[T], bool] | None = None,
    ) -> None:
        if limit <= 0:
            raise ValueError("limit must be positive")
        self._limit = limit
        self._policy = policy
        self._weigh = weigh
        self._keep = keep
        self._items: deque[tuple[T, float]] = deque()
        """With their weights."""
        self._weight = 0.0
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> list[T]:
        """Append ``item``; return what was dropped for it (``[item]`` when it was refused)."""
        weight = self._weigh(item)
        kept = self._keep is not None and self._keep(item)
        if weight > self._limit and not kept:
            self._dropped += 1
            return [item]
        dropped: list[T] = []
        if self._weight + weight > self._limit:
            if self._policy is Policy.REJECT_NEWEST and not kept:
                self._dropped += 1
                return [item]
            dropped = self._make_room(weight)
            if self._weight + weight > self._limit and not kept:
                self._dropped += 1
                return [*dropped, item]
        self._items.append((item, weight))
        self._weight += weight
        return dropped

    def get(self) -> T:
        """Remove and return the oldest item. Raises IndexError when empty."""
        item, weight = self._items.popleft()
        self._weight -= weight
        if not self._items:
            self._weight = 0.0  # sums of fractions drift; empty is exactly empty
        return item

    def clear(self) -> int:
        """Drop everything, uncounted; return how many items there were."""
        count = len(self._items)
        self._items.clear()
        self._weight = 0.0
        return count

    def statistics(self) -> BufferStatistics:
        """A snapshot for status pages and tests."""
        return BufferStatistics(len(self._items), self._weight, self._limit, self._dropped)

    def _make_room(self, weight: float) -> list[T]:
        dropped: list[T] = []
        spared: deque[tuple[T, float]] = deque()
        while self._items and self._weight + weight > self._limit:
            oldest, its_weight = self._items.popleft()
            if self._keep is not None and self._keep(oldest):
                spared.append((oldest, its_weight))
                continue
            self._weight -= its_weight
            dropped.append(oldest)
        self._items.extendleft(reversed(spared))
        self._dropped += len(dropped)
        return dropped
