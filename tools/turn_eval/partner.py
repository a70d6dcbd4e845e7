"""What the evaluation's own language model says: long enough to speak over, and known words.

It quotes the caller, so that a reply shows what it answers, and goes on in sentences that the small
test Whisper understands and that hold no script's `keys`. Sense is not wanted of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from tools.bot_events import Json

_QUOTED_WORDS = 14
_STORY = (
    "Please open the window. Turn off the laptop. Can you hear me? Please open the bottle. "
    "Turn off the camera. What time is it? Please open the passport. Turn off the guitar. "
    "Say that again. Please open the kitchen. Turn off the piano.",
    "Turn off the hammer. Please open the mirror. What time is it? Turn off the candle. "
    "Please open the garden. Can you hear me? Turn off the lantern. Please open the jacket. "
    "Say that again. Turn off the tower. Please open the bridge.",
)
_NORMAL = (
    "Please open the window. Turn off the laptop.",
    "Turn off the camera. Please open the bottle.",
    "Please open the kitchen. Turn off the piano.",
)
_QUESTIONS = {"book": "Yes or no?", "can you hear me": "What time is it?"}


def answer(messages: Sequence[Json]) -> str:
    """A story where one was asked for, a question where something is missing, else a sentence."""
    said = [str(each["content"]) for each in messages if each["role"] == "user"]
    newest = said[-1] if said else ""
    quoted = " ".join(newest.split()[-_QUOTED_WORDS:]).rstrip(" .,!?")
    lower = newest.lower()
    question = next((text for word, text in _QUESTIONS.items() if word in lower), None)
    choice = zlib.crc32(newest.encode("utf-8", "replace"))
    tails = _STORY if "story" in lower else _NORMAL
    return f"{quoted or 'Okay'}. {question or tails[choice % len(tails)]}"
