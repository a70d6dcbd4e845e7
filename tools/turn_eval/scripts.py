"""What the scripted callers do: a list of data, varied by a seed.

A script is a short exchange. Each of its steps is either *said* once the agent is quiet, or done
*over* its reply. Sentences are made of the words that the small test Whisper knows
(`tools.sentences`), so that a recogniser's mistakes do not stand in for mistakes of turn taking;
"um" and some backchannels are not among them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tools.sentences import ANIMALS, CITIES, COLOURS, DAYS, NAMES, NUMBERS

Role = Literal["turn", "interruption", "noise"]

CALLER_VOICES = ("en-us", "en", "en-us+f2", "en-us+f3", "en-us+m3")
SOUNDS = ("cough", "click", "burst")
"""Not words: `tools.turn_eval.sounds` makes them."""
BACKCHANNELS = ("mm hmm", "yeah", "okay", "right", "uh-huh")


@dataclass(frozen=True, slots=True)
class Piece:
    """Something said in one breath, or a sound."""

    text: str
    """Words, or one of `SOUNDS`; empty: the caller only listens."""
    pause: float = 0.0
    """Seconds of silence before it."""
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the caller does."""

    pieces: tuple[Piece, ...]
    role: Role = "turn"
    over_seconds: float | None = None
    """Done so long after the reply became audible; None: said when the agent is quiet."""
    keys: tuple[str, ...] = ()
    """The words that were put into the sentence, lower case, in the order they are said."""

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Background:
    """What the microphone hears all the time, beside the caller."""

    kind: Literal["babble", "echo"]
    level_db: float
    """Babble: against the caller's speech; echo: against what was received."""
    delay_seconds: float = 0.0
    """Echo: from the loudspeaker to the microphone."""


@dataclass(frozen=True, slots=True)
class Script:
    """One exchange."""

    kind: str
    steps: tuple[Step, ...]
    voice: str = CALLER_VOICES[0]
    background: Background | None = None

    @property
    def turns(self) -> int:
        """Steps that want an answer."""
        return sum(step.role != "noise" for step in self.steps)


# ------------------------------------------------------------------------------------- texts

_SLOTS = {
    "animal": ANIMALS, "city": CITIES, "colour": COLOURS, "day": DAYS, "name": NAMES,
    "number": NUMBERS,
}  # fmt: skip
_PLAIN = (
    "What is the weather in {city} today?",
    "Turn on the {colour} lantern.",
    "I would like to go to {city} on {day}.",
    "The {colour} {animal} is in the garden.",
    "When is the next train to {city}?",
    "Tell me more about {city}.",
    "Book a table for {number} on {day}.",
)
_STORIES = (
    "Tell me a story about the {colour} {animal}.",
    "Tell me a story about the {animal}.",
)
_PAUSED = (
    ("I would like to go to {city}", "on {day}."),
    ("Call {name}", "at {number} on {day}."),
    ("What is the weather", "in {city} today?"),
    ("Book a table for {number}", "on {day}."),
    ("{name} and {name}", "are in {city}."),
    ("Tell me a story", "about the {colour} {animal}."),
    ("The {colour} {animal}", "is in the garden."),
)
_HESITANT = (
    ("I would like to go to, um", "{city} on {day}."),
    ("Hello, this is {name}, um", "from {city}."),
    ("Call {name}, um", "at {number} on {day}."),
    ("Turn on the, um", "{colour} lantern."),
)
_LAST_WORD = (
    ("My code word is {colour}", "{animal}."),
    ("I would like to go to {city} on", "{day}."),
    ("What is the weather in {city}", "today?"),
    ("Call {name} at", "{number}."),
)
_FOLLOWED = (
    ("Tell me more about {city}.", "What is the weather in {city} today?"),
    ("I would like to go to {city}.", "Book a table for {number}."),
    ("Where is the {colour} {animal}?", "Call {name} at {number}."),
)
_TWO_PART = (
    ("What is the weather in {city} today?", "When is the next train to {city}?"),
    ("Where is the {colour} {animal}?", "When is the next train to {city}?"),
    ("When is the next train to {city}?", "And to {city}?"),
)
_CORRECTIONS = (
    "No, tell me more about {city}.",
    "What is the weather in {city} today?",
    "Call {name} at {number} on {day}.",
    "Say that again.",
)
_ASKING = ("Book a table for {number} on {day}.", "Can you hear me?")
"""Answered by a question (`tools.turn_eval.partner`)."""
_SHORT = ("Yes.", "No.", "Seven.", "Twelve.", "Okay.")


def _filled(dice: random.Random, *templates: str) -> tuple[list[str], tuple[str, ...]]:
    """The templates with words in their slots, no word twice, and the words in order."""
    keys: list[str] = []

    def word(slot: re.Match[str]) -> str:
        keys.append(dice.choice([each for each in _SLOTS[slot[1]] if each not in keys]))
        return keys[-1]

    return [re.sub(r"\{(\w+)\}", word, template) for template in templates], tuple(keys)


def _said(
    dice: random.Random, templates: tuple[str, ...], pause: tuple[float, float] = (0.0, 0.0)
) -> Step:
    texts, keys = _filled(dice, *templates)
    speed = round(dice.uniform(0.9, 1.15), 2)
    pauses = [0.0] + [round(dice.uniform(*pause), 2) for _ in texts[1:]]
    pieces = tuple(Piece(text, gap, speed) for text, gap in zip(texts, pauses, strict=True))
    return Step(pieces, keys=tuple(key.lower() for key in keys))


def _over(dice: random.Random, step: Step, role: Role, when: tuple[float, float]) -> Step:
    return Step(step.pieces, role, round(dice.uniform(*when), 2), step.keys)


def _one(dice: random.Random, texts: tuple[str, ...]) -> Step:
    return _said(dice, (dice.choice(texts),))


# ------------------------------------------------------------------------------------- kinds

_EARLY, _LATE, _ANY = (0.5, 0.5), (3.0, 5.0), (1.0, 4.0)


def _plain(dice: random.Random) -> Script:
    return Script("plain", (_one(dice, _PLAIN),))


def _pause(dice: random.Random) -> Script:
    return Script("pause in a sentence", (_said(dice, dice.choice(_PAUSED), (0.5, 1.5)),))


def _um(dice: random.Random) -> Script:
    return Script("hesitation", (_said(dice, dice.choice(_HESITANT), (0.5, 1.5)),))


def _last_word(dice: random.Random) -> Script:
    return Script("pause before the last word", (_said(dice, dice.choice(_LAST_WORD), (0.5, 1.2)),))


def _short_answer(dice: random.Random) -> Script:
    return Script("short answer", (_one(dice, _ASKING), _one(dice, _SHORT)))


def _follow_up(dice: random.Random) -> Script:
    return Script("fast follow-up", (_said(dice, dice.choice(_FOLLOWED), (0.3, 0.7)),))


def _two_part(dice: random.Random) -> Script:
    return Script("two-part question", (_said(dice, dice.choice(_TWO_PART), (0.2, 0.5)),))


def _backchannel(dice: random.Random) -> Script:
    mhm = _over(dice, _one(dice, BACKCHANNELS), "noise", _ANY)
    return Script("backchannel", (_one(dice, _STORIES), mhm))


def _sound(dice: random.Random) -> Script:
    sound = _over(dice, _one(dice, SOUNDS), "noise", _ANY)
    return Script("cough, click, noise", (_one(dice, _STORIES), sound))


def _listening(dice: random.Random, kind: str, background: Background) -> Script:
    """Says something, and only listens to all of the reply, with something in the background."""
    listen = Step((Piece(""),), "noise", 0.1)
    return Script(kind, (_one(dice, _STORIES), listen), background=background)


def _babble(dice: random.Random) -> Script:
    return _listening(dice, "babble at -20 dB", Background("babble", -20.0))


def _echo(dice: random.Random) -> Script:
    level = dice.choice((-20.0, -10.0))
    delay = round(dice.uniform(0.15, 0.3), 3)
    return _listening(dice, f"echo at {level:g} dB", Background("echo", level, delay))


def _interruption(dice: random.Random, kind: str, when: tuple[float, float]) -> Script:
    cut = _over(dice, _one(dice, _CORRECTIONS), "interruption", when)
    return Script(kind, (_one(dice, _STORIES), cut))


def _early(dice: random.Random) -> Script:
    return _interruption(dice, "interruption, early", _EARLY)


def _late(dice: random.Random) -> Script:
    return _interruption(dice, "interruption, late", _LATE)


def _repeated(dice: random.Random) -> Script:
    story = _over(dice, _one(dice, _STORIES), "interruption", _ANY)
    again = _over(dice, _one(dice, _CORRECTIONS), "interruption", (0.7, 2.0))
    return Script("interruption, repeated", (_one(dice, _STORIES), story, again))


def _stop(dice: random.Random) -> Script:
    stop = _over(dice, _one(dice, ("Stop.", "Wait.")), "interruption", _ANY)
    return Script("stop, wait", (_one(dice, _STORIES), stop))


_ROUND: tuple[Callable[[random.Random], Script], ...] = (
    _plain, _pause, _pause, _pause, _um, _um, _last_word, _last_word, _short_answer, _short_answer,
    _follow_up, _follow_up, _two_part, _backchannel, _backchannel, _backchannel, _sound, _sound,
    _babble, _echo, _echo, _early, _late, _repeated, _stop,
)  # fmt: skip
"""How often each kind comes for every time that all of them came."""


def scripts(turns: int, seed: int = 1) -> list[Script]:
    """Scripts with at least ``turns`` turns in all; the same ones for the same seed."""
    chosen: list[Script] = []
    for script in _endless(random.Random(seed)):
        if sum(each.turns for each in chosen) >= turns:
            return chosen
        chosen.append(script)
    raise AssertionError("it has no end")


def _endless(dice: random.Random) -> Iterator[Script]:
    while True:
        for make in dice.sample(_ROUND, len(_ROUND)):
            script = make(dice)
            yield Script(script.kind, script.steps, dice.choice(CALLER_VOICES), script.background)
