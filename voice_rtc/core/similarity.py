"""How alike two texts of a caller are (the original plan's TextSimilarity).

A partial transcript and the final one rarely agree to the letter: case, punctuation, a word in the
middle. Whether an answer to the one also answers the other shows mostly at the end, where the
question is. Three strategies weigh that: ``overall`` compares the texts, ``end`` their last words,
``weighted`` both. The idea, five words and a weight of 0.7 for the end are RealtimeVoiceChat's
(``text_similarity.py``); its normalisation, which knew ASCII only and made "3.5" into "35", is not.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher
from typing import Literal

Strategy = Literal["overall", "end", "weighted"]

_MOST_CHARACTERS = 200
"""Compared from the end, some 35 words: `difflib`'s time grows with the square of the length."""

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ′`´", "'"))
_MARKS = frozenset("%‰°")
"""Punctuation and symbols that are read aloud, besides those of money and mathematics."""

_NEGATED = {
    "cannot": "can not",
    "cant": "can not",
    "shant": "shall not",
    "wont": "will not",
} | {
    f"{verb}nt": f"{verb} not"
    for verb in "are could did do does had has have is must need should was were would".split()
}
"""Without their apostrophes: some write them so, or elsewhere."""
_CONTRACTED = re.compile(r"([^\W\d_]+)n't")
_ELIDED = re.compile(r"n'([^\W\d_].*)")
"""French: n'est, n'ai."""

# Scripts without spaces: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)


def words_of(text: str) -> list[str]:
    """The words of ``text`` as they count: without case, punctuation or ways of writing them.

    Numbers keep what is between their digits and their sign ("3.5", "10:30", "-5"), "don't" is "do
    not", a character of a script without spaces is a word.
    """
    words: list[str] = []
    for word in _spaced(text).split():
        words += _expanded(word)
    return words


def _spaced(text: str) -> str:
    """``text`` casefolded, with a space for everything that is no part of a word."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = folded.translate(_APOSTROPHES)
    padded = f" {folded} "
    return "".join(
        _kept(padded[at - 1], padded[at], padded[at + 1]) for at in range(1, len(padded) - 1)
    )


def _kept(before: str, char: str, after: str) -> str:
    if _UNSPACED.match(char):
        # A vowel sign belongs to the letter before it.
        return char if unicodedata.category(char)[0] == "M" else f" {char}"
    category = unicodedata.category(char)
    if category[0] in "LMN":
        return char
    if char == "'":
        return char if before.isalpha() and after.isalpha() else ""
    if before.isdecimal() and after.isdecimal() and char in ".,:/":
        return char
    if char in "-−" and after.isdecimal() and before.isspace():
        return " -"
    if category in ("Sc", "Sm") or char in _MARKS:
        return f" {char} "
    return " "


def _expanded(word: str) -> list[str]:
    bare = word.replace("'", "")
    if bare in _NEGATED:
        return _NEGATED[bare].split()
    if contracted := _CONTRACTED.fullmatch(word):
        return [*_expanded(contracted[1]), "not"]
    if elided := _ELIDED.fullmatch(word):
        return ["ne", *_expanded(elided[1])]
    return [bare] if bare else []


class TextSimilarity:
    """Compares texts by one strategy; 1.0 is the same, 0.0 nothing in common."""

    def __init__(
        self, strategy: Strategy = "end", tail_words: int = 5, end_weight: float = 0.7
    ) -> None:
        """``end`` looks at the last ``tail_words``; ``weighted`` gives them ``end_weight``."""
        if tail_words < 1 or not 0.0 <= end_weight <= 1.0:
            raise ValueError("at least one word, and a weight from 0 to 1")
        self._strategy = strategy
        self._tail_words = tail_words
        self._end_weight = end_weight

    def ratio(self, first: str, second: str) -> float:
        """How alike they are."""
        return self.ratio_of_words(words_of(first), words_of(second))

    def ratio_of_words(self, first: list[str], second: list[str]) -> float:
        """The same of texts already taken apart by `words_of`."""
        if self._strategy == "overall":
            return _ratio(first, second)
        end = _ratio(first[-self._tail_words :], second[-self._tail_words :])
        if self._strategy == "end":
            return end
        return (1.0 - self._end_weight) * _ratio(first, second) + self._end_weight * end


def _ratio(first: list[str], second: list[str]) -> float:
    if first == second:
        return 1.0
    a, b = (" ".join(words)[-_MOST_CHARACTERS:] for words in (first, second))
    # autojunk drops letters that are frequent in texts of 200 and more, which all are.
    return SequenceMatcher(None, a, b, autojunk=False).ratio()
