"""An event loop on virtual time: sleeps cost nothing and the order of things is fixed."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.support.leaks import no_task_leaks

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):
    """Jumps to the next timer in place of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, selectors._EventMask]]:
        if timeout is None:
            return super().select(None)  # no timer is set: only another thread can wake the loop
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now = round(self.now + timeout, 9)  # a million jumps later it is still true
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """``loop.time()`` starts at 0.0 and moves only while every task waits.

    For code without threads and sockets: a timeout around something that takes real time would
    fire at once.
    """

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jump.now

    def pass_time(self, seconds: float) -> None:
        """As if a task had kept the loop busy for so long."""
        self._jump.now += seconds


def run_virtual(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` on a loop of its own; fails when it leaves tasks behind."""

    async def watched() -> T:
        async with no_task_leaks(patience_seconds=1.0):
            return await coroutine

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(watched())
