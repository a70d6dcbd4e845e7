"""What the TTS engines have in common about text and chunks of audio."""

from __future__ import annotations

import re
from collections.abc import Iterator

from voice_rtc.core.audio import Pcm, Samples
from voice_rtc.engines.base import VoiceOptions

AS_CONFIGURED = VoiceOptions()
"""The engine's own voice and speed."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_PIECE_END = re.compile(r"[.!?;:,…]\s+|\s+")
CHUNK_SECONDS = 0.1
"""Length of the pieces in which finished audio is handed over."""


def clean(text: str) -> str:
    """``text`` without control characters (espeak-ng takes some as commands), "" if unspeakable."""
    text = _CONTROL.sub(" ", text).strip()
    return text if any(character.isalnum() for character in text) else ""


def pieces(text: str, longest: int) -> Iterator[str]:
    """Cut ``text`` into pieces of at most ``longest`` characters, between sentences or words."""
    while len(text) > longest:
        cut = _last_end(text, longest)
        yield text[:cut].strip()
        text = text[cut:].strip()
    if text:
        yield text


def chunks(samples: Samples, at: int, rate_hz: int) -> Iterator[Pcm]:
    """``samples`` as runs of 100 ms, the first at index ``at``."""
    size = int(rate_hz * CHUNK_SECONDS)
    for start in range(0, len(samples), size):
        yield Pcm(samples[start : start + size], at + start, rate_hz)


def _last_end(text: str, longest: int) -> int:
    """Where to cut: after the last punctuation, else the last space, else in the word."""
    ends = [match for match in _PIECE_END.finditer(text, 0, longest) if match.end() > longest // 3]
    punctuated = [match.end() for match in ends if not match.group()[0].isspace()]
    if punctuated:
        return punctuated[-1]
    return ends[-1].end() if ends else longest
