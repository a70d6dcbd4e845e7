"""Sentences of the tiny Whisper's lexicon, spoken by espeak-ng once for all tests of a module."""

from __future__ import annotations

import asyncio

from tests.engines.speech import plain, say
from voice_rtc.core.audio import Samples
from voice_rtc.engines.base import VoiceOptions
from voice_rtc.engines.tts.espeak import EspeakTts

SENTENCES = (
    "My code word is falcon river.",
    "What is the weather in Paris today?",
    "Tell me more about London.",
    "This is caller seven, my code word is silver dolphin.",
    "Turn off the lantern.",
    "Remember the purple umbrella.",
    "Can you hear me?",
    "Hold on a minute.",
    "Do you like pizza?",
    "My code word is white penguin.",
    "This is caller two, my code word is green tiger.",
    "Where is the golden eagle?",
    "What is the weather in Tokyo tomorrow?",
    "Turn on the camera.",
    "My code word is orange panther.",
    "What time is it?",
    "Hello, my name is David.",
    "Please open the window.",
    "When is the next train to Berlin?",
    "Good morning.",
    "Book a table for two on Friday.",
    "Call Peter.",
    "Wait a minute.",
    "silver dolphin lantern",
    "purple umbrella turtle",
    "I would like to go to Sydney.",
    "The blue bottle is in the kitchen.",
    "My number is four two seven.",
    "This is caller eleven, my code word is yellow camel.",
    "Where is the chicken?",
)
"""Chosen for faster-whisper transcribing them without error in its 30 s window: 160 words."""


def speak_all(voice: str = "en-us") -> dict[str, Samples]:
    """Each sentence at 16 kHz, with a fifth of a second of silence around it."""

    async def speak() -> dict[str, Samples]:
        engine = EspeakTts()
        await engine.start()
        try:
            options = VoiceOptions(voice=voice)
            return {text: await say(engine, text, options) for text in SENTENCES}
        finally:
            await engine.aclose()

    return asyncio.run(speak())


def word_errors(said: str, heard: str) -> int:
    """Words to change, leave out or add (Levenshtein), without case and punctuation."""
    wanted, got = plain(said).split(), plain(heard).split()
    row = list(range(len(got) + 1))
    for number, word in enumerate(wanted, 1):
        before, row = row, [number]
        for place, other in enumerate(got, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (word != other)))
    return row[-1]
