"""An engine's own thread: models own their threads, and calls wait for results.

Answers the original plan's ThreadManager. Blocking work never goes to the event loop's default
executor, which belongs to aiortc's Opus encoder. Work that fills Python's interpreter lock for long
goes into a process instead: see `voice_rtc.engines.process`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import structlog

from voice_rtc.errors import EngineTimeout, EngineUnavailable

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger("voice_rtc.engines")


@dataclass(order=True, slots=True)
class _Job:
    priority: int
    order: int
    work: Callable[[], Any] = field(compare=False)
    result: asyncio.Future[Any] = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)


class EngineWorker:
    """One named daemon thread with a bounded inbox; lower ``priority`` runs first, then FIFO.

    Past ``limit`` waiting jobs a new one is refused. Cancelling the future that `submit` returned
    is a fence: a job that has not begun is skipped, the result of one that has is dropped.
    """

    def __init__(self, name: str, *, limit: int = 256) -> None:
        self.name = name
        self._limit = limit
        self._jobs: list[_Job] = []
        self._order = itertools.count()
        self._wakeup = threading.Condition()
        self._closing = False
        self._ended: list[Callable[[], object]] = []
        self._finished = False
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Queue ``work(*args)`` at the ordinary priority 0; see `submit_at`."""
        return self.submit_at(0, work, *args, **kwargs)

    def submit_at(
        self, priority: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Queue ``work`` and return the future of its result, for the running event loop.

        Raises:
            EngineUnavailable: the worker is closed.
            EngineTimeout: the inbox is full.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        with self._wakeup:
            if self._closing:
                raise EngineUnavailable(f"the worker {self.name} is closed")
            if len(self._jobs) >= self._limit:
                raise EngineTimeout(f"the worker {self.name} has {self._limit} jobs waiting")
            job = _Job(priority, next(self._order), lambda: work(*args, **kwargs), result, loop)
            heapq.heappush(self._jobs, job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
                self._thread.start()
            self._wakeup.notify()
        return result

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do ``work(*args)`` on the thread and wait for its result; raises what it raised."""
        return await self.submit(work, *args, **kwargs)

    def busy_seconds(self) -> float:
        """How long the job in progress has run; 0.0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._jobs)

    async def aclose(self, grace_seconds: float = 5.0) -> None:
        """Refuse new jobs, fail waiting ones, let the running one end and wait for the thread.

        A thread that is still busy after ``grace_seconds`` is left behind; being a daemon it does
        not keep the process alive. Idempotent.
        """
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        with self._wakeup:
            self._closing = True
            if self._thread is None or self._finished:
                return
            self._ended.append(lambda: loop.call_soon_threadsafe(_settle, ended, None, None))
            self._wakeup.notify()
        try:
            async with asyncio.timeout(grace_seconds):
                await ended
        except TimeoutError:
            _log.warning("engine_worker_abandoned", worker=self.name, busy=self.busy_seconds())
            return
        # The future is set by the thread's last statement, so this join does not wait.
        self._thread.join()

    def _main(self) -> None:
        while (job := self._next()) is not None:
            self._busy_since = time.monotonic()
            self._do(job)
            del job  # else the last job's arguments (models, audio) live until the next one
        with self._wakeup:
            refused, self._jobs = self._jobs, []
        for job in refused:
            _deliver(job, None, EngineUnavailable(f"the worker {self.name} was closed"))
        with self._wakeup:
            self._finished = True
            for tell in self._ended:
                _tell_loop(tell)

    def _next(self) -> _Job | None:
        with self._wakeup:
            while not self._jobs and not self._closing:
                self._wakeup.wait()
            return None if self._closing else heapq.heappop(self._jobs)

    def _do(self, job: _Job) -> None:
        value, failure = None, None
        if not job.result.cancelled():
            try:
                value = job.work()
            except Exception as error:  # noqa: BLE001 - a root: the waiter gets what was raised
                failure = error
        self._busy_since = None  # before the waiter can look
        _deliver(job, value, failure)


def _deliver(job: _Job, value: Any, error: Exception | None) -> None:
    _tell_loop(lambda: job.loop.call_soon_threadsafe(_settle, job.result, value, error))


def _tell_loop(tell: Callable[[], Any]) -> None:
    try:
        tell()
    except RuntimeError:  # the loop is closed: nobody waits any more
        _log.debug("engine_worker_result_dropped")


def _settle(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
