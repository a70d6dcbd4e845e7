"""A bounded buffer that a task can wait on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from voice_rtc.core.buffers import BoundedBuffer, BufferStatistics, Policy

T = TypeVar("T")


class InboxClosed(Exception):  # the end of a stream, as in anyio.EndOfStream
    """The writer closed the inbox and everything in it has been read."""


class Inbox(Generic[T]):
    """One event loop, many writers (`put` never blocks), one reader.

    ``on_drop`` is called with the number of items dropped, so that a counter can be kept.
    """

    def __init__(
        self,
        limit: float,
        policy: Policy,
        *,
        weigh: Callable[[T], float] | None = None,
        keep: Callable[[T], bool] | None = None,
        on_drop: Callable[[int], None] | None = None,
    ) -> None:
        extra = {} if weigh is None else {"weigh": weigh}
        self._buffer: BoundedBuffer[T] = BoundedBuffer(limit, policy, keep=keep, **extra)
        self._on_drop = on_drop
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def put(self, item: T) -> bool:
        """Append ``item`` by the buffer's policy. False when it was dropped or the inbox closed."""
        if self._closed:
            return False
        dropped = self._buffer.put(item)
        self._wake()
        if not dropped:
            return True
        if self._on_drop is not None:
            self._on_drop(len(dropped))
        return not any(lost is item for lost in dropped)

    async def get(self) -> T:
        """Wait for the oldest item. Raises InboxClosed after `close` once all is read."""
        while not len(self._buffer):
            if self._closed:
                raise InboxClosed
            await self._arrival()
        return self._buffer.get()

    def get_nowait(self) -> T | None:
        """The oldest item, or None when empty."""
        return self._buffer.get() if len(self._buffer) else None

    def close(self) -> None:
        """No more items; the reader gets what is there, then InboxClosed."""
        self._closed = True
        self._wake()

    def clear(self) -> int:
        """Drop what waits, uncounted."""
        return self._buffer.clear()

    def __len__(self) -> int:
        return len(self._buffer)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while not len(self._buffer):
            if self._closed:
                raise StopAsyncIteration
            await self._arrival()
        return self._buffer.get()

    def statistics(self) -> BufferStatistics:
        """What waits and what was lost."""
        return self._buffer.statistics()

    def _arrival(self) -> asyncio.Future[None]:
        """Done when there may be something to read. That of a reader who was cancelled is too."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
