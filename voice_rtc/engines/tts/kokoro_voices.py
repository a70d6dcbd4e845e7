"""The voices of Kokoro by name, alone or blended: ``af_heart*0.6+am_adam*0.4``.

A blend is the weighted mean of the voices' style tables. Weights are relative; without one a voice
counts 1. Pure: whether the voices exist is for the caller to say.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

_NAME = re.compile(r"[ab][a-z]_[a-z0-9]{1,32}")
"""English ones: a voice's first letter is its language, a American, b British."""
_PART = re.compile(r"\s*([a-z_0-9]{1,40})\s*(?:\*\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*)?")
_MOST_PARTS = 4
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class VoiceBlend:
    """Voices and their shares, which sum to 1; equal blends compare equal."""

    parts: tuple[tuple[str, float], ...]

    @property
    def british(self) -> bool:
        """By the voice with the largest share: it decides on the pronunciation."""
        name, _ = max(self.parts, key=lambda part: part[1])
        return name.startswith("b")

    def __str__(self) -> str:
        if len(self.parts) == 1:
            return self.parts[0][0]
        return "+".join(f"{name}*{share:g}" for name, share in self.parts)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A piece of text to be spoken."""

    text: str
    voice: VoiceBlend
    speed: float


def named_in(text: str) -> tuple[str, ...]:
    """The voices that ``text`` names, whether they exist or not."""
    return tuple(name for part in text.split("+") if (name := part.partition("*")[0].strip()))


def parse_voice(text: str, known: Container[str]) -> VoiceBlend | None:
    """The blend that ``text`` asks for; None when it cannot be had or is not understood."""
    if not text or len(text) > _LONGEST:
        return None
    shares: dict[str, float] = {}
    for part in text.split("+"):
        found = _PART.fullmatch(part)
        if found is None or _NAME.fullmatch(found[1]) is None or found[1] not in known:
            return None
        weight = 1.0 if found[2] is None else float(found[2])
        shares[found[1]] = shares.get(found[1], 0.0) + weight
    shares = {name: share for name, share in shares.items() if share > 0.0}
    total = sum(shares.values())
    if not shares or len(shares) > _MOST_PARTS:
        return None
    return VoiceBlend(tuple((name, shares[name] / total) for name in sorted(shares)))
