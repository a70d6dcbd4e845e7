"""Whose words come next: stories, and invariants under random steps."""

from __future__ import annotations

import random

from voice_rtc.core.voicing import Voicing, VoicingPiece, VoicingRules


def first(key: int, caller: str, *, at: float = 0.0, size: int = 20) -> VoicingPiece:
    return VoicingPiece(key, caller, True, size, at)


def later(key: int, caller: str, *, at: float = 0.0, size: int = 20) -> VoicingPiece:
    return VoicingPiece(key, caller, False, size, at)


def voicing(*pieces: VoicingPiece, **rules: float) -> Voicing:
    made = Voicing(VoicingRules(**rules))  # type: ignore[arg-type] # rules come by name
    for piece in pieces:
        assert made.add(piece)
    return made


def all_keys(made: Voicing, now: float = 0.0) -> list[list[int]]:
    batches = []
    while batch := made.take(now):
        batches.append([piece.key for piece in batch])
    return batches


def test_nothing_waits_nothing_is_taken() -> None:
    assert voicing().take(0.0) == []


def test_first_clauses_go_before_later_ones() -> None:
    made = voicing(later(1, "a"), later(2, "b"), first(3, "c"), first(4, "d"))
    assert all_keys(made) == [[3], [4], [1], [2]]


def test_callers_take_turns_and_each_is_served_in_order() -> None:
    made = voicing(later(1, "a"), later(2, "a"), later(3, "a"), later(4, "b"), later(5, "c"))
    assert all_keys(made) == [[1], [4], [5], [2], [3]]


def test_who_asks_again_comes_last() -> None:
    made = voicing(first(1, "a"), first(2, "b"), first(3, "c"))
    assert [piece.key for piece in made.take(0.0)] == [1]
    made.add(first(4, "a"))
    assert all_keys(made) == [[2], [3], [4]]


def test_a_first_clause_does_not_overtake_its_own_callers_words() -> None:
    made = voicing(later(1, "a"), first(2, "a"), later(3, "b"))
    assert all_keys(made) == [[1], [2], [3]]


def test_later_ones_are_not_starved() -> None:
    made = voicing(later(1, "a", at=0.0), first(2, "b", at=0.9), patience_seconds=1.0)
    assert [piece.key for piece in made.take(0.9)] == [2]
    made.add(first(3, "b", at=1.1))
    assert all_keys(made, now=1.1) == [[1], [3]]


def test_what_is_cancelled_is_not_spoken() -> None:
    made = voicing(first(1, "a"), later(2, "a"), first(3, "b"))
    assert made.cancel(1)
    assert not made.cancel(1)
    assert len(made) == 2
    assert all_keys(made) == [[3], [2]]
    assert not made.cancel(3)


def test_past_the_bound_it_refuses() -> None:
    made = voicing(first(1, "a"), first(2, "b"), most_waiting=2)
    assert not made.add(first(3, "c"))
    assert all_keys(made) == [[1], [2]]


def test_a_batch_is_of_one_class_with_one_piece_a_caller() -> None:
    made = voicing(
        *(first(1, "a"), first(2, "a"), first(3, "b"), later(4, "c"), later(5, "d"), later(6, "e")),
        most_firsts=4,
        most_laters=2,
    )
    assert all_keys(made) == [[1, 3], [2], [4, 5], [6]]


def test_a_batch_is_of_like_lengths() -> None:
    made = voicing(
        *(first(1, "a", size=20), first(2, "b", size=200), first(3, "c", size=28)),
        most_firsts=4,
    )
    assert all_keys(made) == [[1, 3], [2]]


def test_whatever_happens_everything_is_served_once_and_in_each_callers_order() -> None:
    dice = random.Random(7)
    for _ in range(200):
        made = voicing(most_firsts=dice.randint(1, 4), most_laters=dice.randint(1, 3))
        added: dict[str, list[int]] = {}
        served: dict[str, list[int]] = {}
        gone: set[int] = set()
        now = 0.0
        for key in range(60):
            now += dice.random() * 0.3
            caller = dice.choice("abcde")
            piece = VoicingPiece(key, caller, dice.random() < 0.4, dice.randint(1, 60), now)
            assert made.add(piece)
            added.setdefault(caller, []).append(key)
            if dice.random() < 0.2 and made.cancel(victim := dice.randint(0, key)):
                gone.add(victim)
            if dice.random() < 0.5:
                for taken in made.take(now):
                    served.setdefault(taken.caller, []).append(taken.key)
        while batch := made.take(now):
            assert len({piece.caller for piece in batch}) == len(batch)
            for taken in batch:
                served.setdefault(taken.caller, []).append(taken.key)
        assert len(made) == 0
        for caller, keys in added.items():
            assert served.get(caller, []) == [key for key in keys if key not in gone]


def test_nobody_is_served_twice_while_another_of_the_same_class_waits() -> None:
    callers = "abcdefgh"
    made = voicing(*(later(number, callers[number % 8]) for number in range(64)))
    order = [piece.caller for _ in range(64) for piece in made.take(0.0)]
    for start in range(0, 64, 8):
        assert sorted(order[start : start + 8]) == list(callers)
