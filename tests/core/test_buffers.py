"""Bounded buffers: what is kept, what is dropped, and that it is counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from voice_rtc.core.buffers import BoundedBuffer, BufferStatistics, Policy

OLDEST, NEWEST = Policy.DROP_OLDEST, Policy.REJECT_NEWEST


def drain(buffer: BoundedBuffer[str]) -> list[str]:
    return [buffer.get() for _ in range(len(buffer))]


def filled(policy: Policy, *items: str, limit: float = 3, **more: object) -> BoundedBuffer[str]:
    buffer: BoundedBuffer[str] = BoundedBuffer(limit, policy, **more)  # type: ignore[arg-type]  # a test's shorthand
    for item in items:
        buffer.put(item)
    return buffer


def test_items_come_out_in_their_order():
    assert drain(filled(OLDEST, "a", "b", "c")) == ["a", "b", "c"]


def test_getting_from_an_empty_buffer_is_an_error():
    with pytest.raises(IndexError):
        filled(OLDEST).get()


def test_drop_oldest_makes_room():
    buffer = filled(OLDEST, "a", "b", "c")
    assert buffer.put("d") == ["a"]
    assert buffer.statistics() == BufferStatistics(items=3, weight=3, limit=3, dropped=1)
    assert drain(buffer) == ["b", "c", "d"]


def test_reject_newest_keeps_what_waits():
    buffer = filled(NEWEST, "a", "b", "c")
    assert buffer.put("d") == ["d"]
    assert buffer.statistics().dropped == 1
    assert drain(buffer) == ["a", "b", "c"]


def test_a_heavy_item_takes_the_room_of_several():
    buffer = filled(OLDEST, "a", "bb", limit=4, weigh=len)
    assert buffer.put("ccc") == ["a", "bb"]
    assert buffer.statistics() == BufferStatistics(items=1, weight=3, limit=4, dropped=2)


@pytest.mark.parametrize("policy", list(Policy))
def test_an_item_heavier_than_the_limit_never_fits(policy):
    buffer = filled(policy, "a", limit=3, weigh=len)
    assert buffer.put("xxxx") == ["xxxx"]
    assert drain(buffer) == ["a"]


def test_kept_items_are_passed_over():
    buffer = filled(OLDEST, "KEEP", "b", "c", keep=str.isupper)
    assert buffer.put("d") == ["b"]
    assert drain(buffer) == ["KEEP", "c", "d"]


def test_when_only_kept_items_are_left_the_newest_goes():
    buffer = filled(OLDEST, "A", "B", "C", keep=str.isupper)
    assert buffer.put("d") == ["d"]
    assert drain(buffer) == ["A", "B", "C"]


@pytest.mark.parametrize("policy", list(Policy))
def test_a_kept_item_passes_the_limit(policy):
    buffer = filled(policy, "A", "B", "C", keep=str.isupper)
    assert buffer.put("D") == []
    assert drain(buffer) == ["A", "B", "C", "D"]


def test_clear_drops_uncounted():
    buffer = filled(OLDEST, "a", "b")
    assert buffer.clear() == 2
    assert buffer.statistics() == BufferStatistics(items=0, weight=0, limit=3, dropped=0)


def test_fractions_do_not_drift_away_from_empty():
    buffer: BoundedBuffer[float] = BoundedBuffer(2.0, OLDEST, weigh=float)
    for _ in range(1000):
        buffer.put(0.1)
        buffer.put(0.2)
        buffer.get()
        buffer.get()
    assert buffer.statistics().weight == 0.0


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_must_allow_something(limit):
    with pytest.raises(ValueError, match="limit"):
        BoundedBuffer(limit, OLDEST)


@dataclass(eq=False)
class Parcel:
    weight: float
    kept: bool


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("seed", range(20))
def test_every_item_is_delivered_or_dropped_and_counted(policy, seed):
    random = np.random.default_rng(seed)
    buffer: BoundedBuffer[Parcel] = BoundedBuffer(
        5.0, policy, weigh=lambda p: p.weight, keep=lambda p: p.kept
    )
    put: list[Parcel] = []
    dropped: list[Parcel] = []
    got: list[Parcel] = []
    for _ in range(500):
        if random.random() < 0.6:
            parcel = Parcel(float(random.random() * 3), bool(random.random() < 0.1))
            put.append(parcel)
            dropped += buffer.put(parcel)
        elif len(buffer):
            got.append(buffer.get())
        waiting = buffer.statistics()
        assert waiting.dropped == len(dropped)
    got += [buffer.get() for _ in range(len(buffer))]
    assert not any(parcel.kept for parcel in dropped)
    assert [p for p in put if not any(p is d for d in dropped)] == got
