"""Were the words that the server remembers of a cut reply in the audio that the caller got?

A second recogniser (pocketsphinx) listens to the audio for the reply's known text from its first
word on, free to stop after any: the words of the prefix that it finds are those that were heard.

Its limits: a word that was cut in its middle may be found or not, so one word more than it found is
let pass (`SPARE_WORDS`). It undercounts where the last words are very quiet, and cannot tell a word
that its dictionary lacks. How many words it finds in replies that were heard to their end is told
beside the result, as a measure of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pocketsphinx

from tools.recognise import prepared, pronunciations, words
from voice_rtc.core.audio import Samples

SPARE_WORDS = 1
_SKIP, _STEP = 0.1, 0.9
"""Odds of stopping and of going on after each word."""


def words_heard(samples: Samples, text: str) -> int:
    """How many words of ``text``, from its first on, are in ``samples`` (16 kHz). Blocks."""
    wanted = words(text)
    known = [(place, word) for place, word in enumerate(wanted, 1) if word in pronunciations()]
    if not known or not len(samples):
        return 0
    found = _found(samples, [word for _, word in known])
    if found == len(known):
        return len(wanted)
    return known[found - 1][0] if found else 0


def is_error(remembered: str, heard: int) -> bool:
    """Does ``remembered`` hold words that were not heard, past what the recogniser may miss?"""
    return len(words(remembered)) > heard + SPARE_WORDS


def _found(samples: Samples, known: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        dictionary, grammar = Path(folder) / "words.dict", Path(folder) / "prefix.fsg"
        lines = (line for word in sorted(set(known)) for line in pronunciations()[word])
        dictionary.write_text("".join(lines))
        grammar.write_text(_prefixes(known))
        decoder = pocketsphinx.Decoder(
            loglevel="FATAL", fsg=str(grammar), dict=str(dictionary), lm=None
        )
    decoder.start_utt()
    decoder.process_raw(prepared(samples).tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return len(str(hypothesis.hypstr).split()) if hypothesis is not None else 0


def _prefixes(known: Sequence[str]) -> str:
    """A finite state grammar of pocketsphinx: every prefix of ``known`` with at least a word."""
    end = len(known)
    lines = ["FSG_BEGIN prefix", f"NUM_STATES {end + 1}", "START_STATE 0", f"FINAL_STATE {end}"]
    for place, word in enumerate(known):
        lines.append(f"TRANSITION {place} {place + 1} {_STEP if place else 1.0} {word}")
        if place:
            lines.append(f"TRANSITION {place} {end} {_SKIP}")
    return "\n".join([*lines, "FSG_END", ""])
