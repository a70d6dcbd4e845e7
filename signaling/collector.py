"""Python's garbage collector, kept away from audio: `core.collection` says when it may do all.

Generations 0 and 1 stay automatic: they take little. Generation 2 comes when CPython likes while
the engines load; from `Collector.settle` on it comes when nobody hears it, or by a bound, and what
was loaded by then is frozen: it is not looked at any more.

What calls had of native memory (OpenSSL, libsrtp, libopus) lies in pieces all over glibc's heap,
which keeps it when it is free: after a busy hour a server would look as large as it was then. So an
idle one gives it back.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from voice_rtc.core.collection import CollectionPlan, CollectionRules
from voice_rtc.metrics import Metrics

_LOOK_SECONDS = 0.5
_NEVER = 1_000_000_000
"""Collections of generation 1 before CPython would start one of generation 2 by itself."""
_PAUSES = 4096
"""Kept between two looks; a flood loses the oldest."""


class Calls(Protocol):
    """Who is there; `voice_rtc.call.registry.CallRegistry` is one."""

    @property
    def active(self) -> int:
        """Calls from offer to end."""
        ...

    @property
    def anybody_hears(self) -> bool:
        """Is a call being sent sound?"""
        ...


class Collector:
    """One per process. ``call_ended`` is for the registry."""

    def __init__(self, rules: CollectionRules, calls: Calls, metrics: Metrics) -> None:
        self._plan = CollectionPlan(rules)
        self._calls = calls
        self._metrics = metrics
        self._timer: asyncio.TimerHandle | None = None
        self._settled = False
        self._began = 0.0
        self._pauses: deque[tuple[int, float]] = deque(maxlen=_PAUSES)
        """Generation and seconds. A collection can begin anywhere, in the middle of a metric too,
        whose lock it would wait for: so they are counted later."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look after it inside this block; afterwards all is as it was."""
        before = gc.get_threshold()
        gc.callbacks.append(self._noted)
        self._look()
        try:
            yield
        finally:
            assert self._timer is not None
            self._timer.cancel()
            gc.callbacks.remove(self._noted)
            gc.set_threshold(*before)
            self._count_pauses()

    def call_ended(self) -> None:
        """A closed aiortc connection is a ring of references, with native threads in it."""
        loop = asyncio.get_running_loop()
        if self._plan.call_ended(loop.time()):
            loop.call_soon(self._decide)

    def settle(self) -> None:
        """What is loaded now stays: collect once more and freeze it. From now on CPython starts no
        full collection by itself."""
        self._collect("start")
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], _NEVER)
        self._settled = True

    def _look(self) -> None:
        self._decide()
        self._count_pauses()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _decide(self) -> None:
        reason = self._plan.decide(
            asyncio.get_running_loop().time(),
            objects=_living_on() if self._settled else 0,
            calls=self._calls.active,
            hearing=self._calls.anybody_hears,
        )
        if reason is not None:
            self._collect(reason)

    def _collect(self, reason: str) -> None:
        gc.collect()
        if reason == "idle":  # 1 ms after a few calls, and nobody hears it
            _give_back()
        self._plan.collected()
        self._metrics.gc_full_collections_total.labels(reason).inc()

    def _noted(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self._pauses.append((info["generation"], time.perf_counter() - self._began))

    def _count_pauses(self) -> None:
        while self._pauses:
            generation, seconds = self._pauses.popleft()
            self._metrics.gc_pause_seconds.labels(str(generation)).observe(seconds)


def _give_back() -> None:
    """Free native memory to the system, also from the middle of the heap."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; None where the C library has none."""
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
    return trim


def _living_on() -> int:
    """About how many objects got into generation 2 since its last collection, dead or alive."""
    each, times, _ = gc.get_threshold()
    return gc.get_count()[2] * each * times
