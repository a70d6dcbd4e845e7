"""Who gets room when more want to connect than may."""

from __future__ import annotations

from voice_rtc.core.connecting import Connecting, ConnectingRules, Room, room_for

RULES = ConnectingRules(most=10, most_per_origin=6, patience_seconds=5.0)


def calls(*origins: str, age: float = 1.0, alive: bool = False) -> list[Connecting]:
    """Oldest first; ids are the origin and a number."""
    return [
        Connecting(f"{origin}{number}", origin, age, alive) for number, origin in enumerate(origins)
    ]


def test_with_room_anybody_is_taken() -> None:
    assert room_for("a", [], RULES) == Room()
    assert room_for("a", calls(*"aaaaabbbb"), RULES) == Room()


def test_an_address_has_a_bound_of_its_own() -> None:
    assert room_for("a", calls(*"aaaaaa"), RULES) == Room("origin")
    assert room_for("b", calls(*"aaaaaa"), RULES) == Room()


def test_who_comes_from_elsewhere_displaces_the_oldest_of_whoever_has_most() -> None:
    full = calls(*"baaaaaabbc")
    assert room_for("d", full, RULES) == Room(displaced="a1")
    assert room_for("c", full, RULES) == Room(displaced="a1")


def test_a_flood_from_several_addresses_competes_with_itself() -> None:
    full = calls(*"aaaaabbbbb")
    assert room_for("a", full, RULES) == Room("full")
    assert room_for("honest", full, RULES) == Room(displaced="a0")


def test_who_has_given_a_sign_of_life_is_not_displaced() -> None:
    alive = calls(*"aaaaa", alive=True)
    assert room_for("d", alive + calls(*"bbbbc"), RULES) == Room(displaced="b0")
    assert room_for("d", alive + calls(*"bcefg", alive=True), RULES) == Room("full")


def test_with_an_address_each_the_oldest_gives_way_in_time() -> None:
    young = calls(*"abcdefghij", age=4.9)
    assert room_for("k", young, RULES) == Room("full")
    old = calls("a", age=5.1) + calls(*"bcdefghij")
    assert room_for("k", old, RULES) == Room(displaced="a0")
    assert room_for("j", old, RULES) == Room("full")
