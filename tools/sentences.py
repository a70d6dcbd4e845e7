"""Sentences that the small test model (``tests/data/whisper-synthetic-en``) knows the words of."""

from __future__ import annotations

import random

NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty"
).split()
COLOURS = "red blue green yellow orange purple pink brown black white silver golden".split()
ANIMALS = "falcon eagle raven swan tiger lion panther rabbit elephant zebra camel penguin".split()
OBJECTS = (
    "window kitchen garden mirror candle bottle hammer ladder jacket passport laptop camera guitar "
    "piano bridge tower mountain river diamond lantern banana lemon coffee pizza butter"
).split()
NAMES = "Anna Peter Susan David Emma Oliver Victor Maria".split()
CITIES = "London Paris Berlin Madrid Vienna Tokyo Chicago Sydney".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

_KINDS = {
    "number": NUMBERS, "colour": COLOURS, "animal": ANIMALS, "object": OBJECTS, "name": NAMES,
    "city": CITIES, "day": DAYS,
}  # fmt: skip
_PATTERNS = (
    "Hello, my name is {name}.",
    "Hello, this is {name} from {city}.",
    "This is caller {number}, my code word is {animal} {object}.",
    "What is the weather in {city} today?",
    "Tell me a story about the {colour} {animal}.",
    "Tell me more about {city}.",
    "Please open the {object}.",
    "Turn on the {colour} {object}.",
    "Turn off the {object}.",
    "I would like to go to {city} on {day}.",
    "Book a table for {number} on {day}.",
    "Call {name} at {number} on {day}.",
    "Where is the {colour} {object}?",
    "When is the next train to {city}?",
    "The {colour} {animal} is in the {object}.",
    "{name} and {name} are in {city}.",
    "Thank you, {name}, goodbye.",
    "Can you hear me?",
    "What time is it?",
    "Say that again.",
)


def sentences(count: int, seed: int = 1) -> list[str]:
    """``count`` different sentences, the same ones for the same seed."""
    dice = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        text = dice.choice(_PATTERNS).format(
            **{kind: _Words(dice, words) for kind, words in _KINDS.items()}
        )
        found[text] = None
    return list(found)


_CONFUSED = frozenset({"black"})
"""Words that the small test model hears where they are not: "laptop" as "black laptop"."""


class _Words:
    """Another word each time it is written out, so that no sentence says one twice in a row."""

    def __init__(self, dice: random.Random, words: list[str]) -> None:
        self._left = dice.sample(words, len(words))

    def __format__(self, _spec: str) -> str:
        return self._left.pop()


def code_words(count: int, seed: int = 1) -> list[str]:
    """Pairs of words of which no two have a word in common, such as ``falcon river``.

    Raises ValueError for more pairs than there are words.
    """
    dice = random.Random(seed)
    clear = [word for word in COLOURS + ANIMALS if word not in _CONFUSED]
    first = dice.sample(clear, len(clear))
    second = dice.sample(OBJECTS, len(OBJECTS))
    if count > min(len(first), len(second)):
        raise ValueError(f"there are no {count} code words without a word in common")
    return [f"{one} {two}" for one, two in zip(first[:count], second[:count], strict=True)]
