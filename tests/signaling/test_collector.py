"""Python's garbage collector under the server's care, on virtual time."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import pytest

from signaling.collector import Collector
from tests.support.virtual_time import run_virtual
from voice_rtc.core.collection import CollectionRules
from voice_rtc.metrics import Metrics

PIECES, PIECE_BYTES = 4000, 16_000


@cache
def libc() -> Any:
    loaded = ctypes.CDLL(None)
    loaded.malloc.restype = ctypes.c_void_p
    loaded.malloc.argtypes = [ctypes.c_size_t]
    loaded.free.argtypes = [ctypes.c_void_p]
    return loaded


def native(size: int) -> int:
    """A block of the C heap that is written to."""
    address: int = libc().malloc(size)
    ctypes.memset(address, 1, size)
    return address


def resident() -> int:
    memory: int = psutil.Process().memory_info().rss
    return memory


@dataclass
class FewCalls:
    active: int = 1
    anybody_hears: bool = True


class Ring:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    before = gc.get_threshold(), list(gc.callbacks)
    yield
    gc.unfreeze()
    assert (gc.get_threshold(), list(gc.callbacks)) == before


def full(metrics: Metrics, reason: str) -> float:
    name = "voice_rtc_gc_full_collections_total"
    return metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0


def old_ring() -> weakref.ref[Ring]:
    """One that generations 0 and 1 do not find any more."""
    ring = Ring()
    gc.collect(1)
    gc.collect(1)
    return weakref.ref(ring)


def test_garbage_waits_for_silence() -> None:
    calls, metrics = FewCalls(), Metrics()

    async def story() -> None:
        collector = Collector(CollectionRules(most_seconds=60.0), calls, metrics)
        with collector.running():
            collector.settle()
            garbage = old_ring()
            collector.call_ended()
            await asyncio.sleep(30.0)
            assert garbage() is not None and full(metrics, "start") == 1
            calls.anybody_hears = False
            await asyncio.sleep(1.0)
            assert garbage() is None and full(metrics, "quiet") == 1
            calls.anybody_hears = True
            garbage = old_ring()
            collector.call_ended()
            await asyncio.sleep(63.0)
            assert garbage() is None and full(metrics, "time") == 1

    run_virtual(story())
    pauses = metrics.registry.get_sample_value
    assert (pauses("voice_rtc_gc_pause_seconds_count", {"generation": "2"}) or 0) >= 3
    assert (pauses("voice_rtc_gc_pause_seconds_sum", {"generation": "2"}) or 0) > 0


def test_python_does_not_collect_all_by_itself_but_what_gathers_is_bounded() -> None:
    metrics = Metrics()

    async def story() -> None:
        collector = Collector(CollectionRules(most_objects=100_000), FewCalls(), metrics)
        with collector.running():
            collector.settle()
            before = gc.get_stats()[2]["collections"]
            alive: list[list[int]] = [[] for _ in range(150_000)]
            assert gc.get_stats()[2]["collections"] == before
            await asyncio.sleep(1.0)
            assert gc.get_stats()[2]["collections"] == before + 1
            await asyncio.sleep(10.0)
            assert full(metrics, "objects") == 1 and len(alive) == 150_000

    run_virtual(story())


def test_until_all_is_loaded_python_does_as_it_likes() -> None:
    async def story() -> None:
        before = gc.get_threshold()
        with Collector(CollectionRules(), FewCalls(), Metrics()).running():
            assert gc.get_threshold() == before

    run_virtual(story())


@pytest.mark.skipif(not hasattr(libc(), "malloc_trim"), reason="the C library has no malloc_trim")
def test_an_idle_server_gives_native_memory_back() -> None:
    """Freed below a block that stays, as the memory of calls is, glibc keeps it."""
    calls = FewCalls(active=1, anybody_hears=False)
    blocks = [native(PIECE_BYTES) for _ in range(PIECES)]
    pinned = blocks.pop()
    for block in blocks:
        libc().free(block)
    kept = resident()

    async def story() -> None:
        collector = Collector(CollectionRules(), calls, Metrics())
        with collector.running():
            collector.call_ended()
            await asyncio.sleep(5.0)
            assert resident() > kept - PIECES * PIECE_BYTES // 4  # calls are there: not now
            calls.active = 0
            collector.call_ended()
            await asyncio.sleep(5.0)
            assert resident() < kept - PIECES * PIECE_BYTES // 2

    run_virtual(story())
    libc().free(pinned)
