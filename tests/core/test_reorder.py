"""Packets in order, and what is missing between them."""

from __future__ import annotations

import random

import pytest

from voice_rtc.core.reorder import MAX_DROPOUT, MAX_MISORDER, Received, ReorderWindow


def push(window: ReorderWindow, number: int, now: float = 0.0) -> list[tuple[int, int]]:
    """Payload and loss before it; the payload tells the number."""
    came = window.push(number % 65536, number * 960 % 2**32, str(number).encode(), now)
    return told(came)


def told(received: list[Received]) -> list[tuple[int, int]]:
    return [(int(each.payload), each.lost) for each in received]


def test_what_is_next_goes_on_at_once() -> None:
    window = ReorderWindow()
    assert [push(window, number) for number in (7, 8, 9)] == [[(7, 0)], [(8, 0)], [(9, 0)]]
    assert window.next_deadline is None


def test_packets_change_places() -> None:
    window = ReorderWindow()
    assert push(window, 1) == [(1, 0)]
    assert push(window, 3) == []
    assert push(window, 2) == [(2, 0), (3, 0)]
    assert (window.statistics.reordered, window.statistics.lost) == (1, 0)


def test_a_hole_is_given_up_when_too_many_wait_behind_it() -> None:
    window = ReorderWindow(hold_packets=2)
    assert [push(window, number) for number in (1, 3, 4)] == [[(1, 0)], [], []]
    assert push(window, 5) == [(3, 1), (4, 0), (5, 0)]
    assert window.statistics.lost == 1


def test_a_hole_is_given_up_in_time_when_the_caller_pauses() -> None:
    window = ReorderWindow(hold_seconds=0.06)
    push(window, 1, 0.0)
    assert push(window, 4, 1.0) == []
    assert window.next_deadline == pytest.approx(1.06)
    assert told(window.expire(1.05)) == []
    assert told(window.expire(1.06)) == [(4, 2)]
    assert window.next_deadline is None


def test_holes_behind_each_other() -> None:
    window = ReorderWindow(hold_packets=2)
    for number in (1, 3, 5):
        push(window, number)
    assert push(window, 6) == [(3, 1)], "the second hole has only two behind it"
    assert push(window, 7) == [(5, 1), (6, 0), (7, 0)]


def test_late_packets_and_copies_are_dropped_and_told_apart() -> None:
    window = ReorderWindow(hold_packets=0)
    push(window, 1)
    assert push(window, 3) == [(3, 1)]
    assert push(window, 2) == [] and push(window, 2) == [] and push(window, 3) == []
    statistics = window.statistics
    assert (statistics.late, statistics.copies, statistics.received) == (1, 2, 5)


def test_a_copy_of_a_held_packet() -> None:
    window = ReorderWindow()
    push(window, 1)
    push(window, 3)
    assert push(window, 3) == []
    assert push(window, 2) == [(2, 0), (3, 0)]
    assert window.statistics.copies == 1


def test_numbers_wrap() -> None:
    window = ReorderWindow()
    assert [push(window, number) for number in (65534, 65536, 65535, 65537)] == [
        [(65534, 0)], [], [(65535, 0), (65536, 0)], [(65537, 0)],
    ]  # fmt: skip


def test_a_jump_is_believed_when_it_is_said_twice() -> None:
    window = ReorderWindow()
    push(window, 1)
    assert push(window, MAX_DROPOUT + 500) == []
    assert push(window, 2) == [(2, 0)], "a stray packet changes nothing"
    assert push(window, MAX_DROPOUT + 700) == []
    (first,) = window.push(MAX_DROPOUT + 701, 5, b"0", 0.0)
    assert first.restarted and first.lost == 0
    (second,) = window.push(MAX_DROPOUT + 702, 6, b"0", 0.0)
    assert not second.restarted
    assert window.statistics.restarts == 1


def test_a_jump_back_is_a_new_beginning_too() -> None:
    window = ReorderWindow()
    push(window, 10_000)
    assert push(window, 10_000 - MAX_MISORDER - 50) == []
    assert push(window, 10_000 - MAX_MISORDER - 49) == [(10_000 - MAX_MISORDER - 49, 0)]


def test_a_restart_forgets_what_was_held() -> None:
    window = ReorderWindow()
    push(window, 1)
    push(window, 3)
    push(window, 30_000)
    assert push(window, 30_001) == [(30_001, 0)]
    assert window.held == 0 and window.next_deadline is None


def test_a_window_makes_sense() -> None:
    with pytest.raises(ValueError):
        ReorderWindow(hold_packets=-1)


@pytest.mark.parametrize("seed", range(40))
def test_any_network(seed: int) -> None:
    """Order kept, nothing twice, every number either delivered or counted as lost."""
    dice = random.Random(seed)
    window = ReorderWindow(dice.randint(0, 4), dice.choice([0.0, 0.06, 0.2]))
    first = dice.randint(0, 65535)
    arrivals: list[tuple[float, int]] = []
    for place in range(400):
        if place and dice.random() < 0.1:
            continue  # lost
        for _ in range(2 if dice.random() < 0.05 else 1):
            late = dice.expovariate(20.0) if place else 0.0
            arrivals.append((place * 0.02 + late, first + place))
    out: list[tuple[int, int]] = []
    for now, number in sorted(arrivals):
        while window.next_deadline is not None and window.next_deadline < now:
            out += told(window.expire(window.next_deadline))
        out += push(window, number, now)
        assert window.held <= window._hold_packets
    out += told(window.expire(1e9))
    expected = first
    for number, lost in out:
        assert number == expected + lost
        expected = number + 1
    statistics = window.statistics
    assert statistics.lost == sum(lost for _, lost in out)
    assert statistics.received == len(out) + statistics.late + statistics.copies
    assert len({number for number, _ in out}) == len(out)
