"""A second recogniser: did the reply's sound really say the reply's text?

It shares nothing with the server's speech recognition: pocketsphinx, listening for the words of
the expected text among forty common other words in any order, with the expected order being
somewhat likelier. The right text scores a word error rate near 0, another text near or above 1.

A loop of equally likely words, without the order, is too weak for synthetic voices: on ten
espeak-ng replies through Opus the right text scored 0.37 on average and 1.0 at worst, other texts
0.82 at best. With the order weighed by one half, on those ten and on ten more that the weight was
not chosen on: the right text 0.00 each time, other texts 0.82 at best (of 80). The right text with
its second half cut off scored 0.29 to 0.64, but 0.00 for a reply of one word, which half was enough
for. A missing word or two in a long reply may pass: the order helps to fill them in.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pocketsphinx

from tools.wav import UnusableWav, read_wav
from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, silence

PASSING_ERROR_RATE = 0.2
"""At most this word error rate means that the reply was understood as its text."""

DISTRACTORS = tuple(
    "the of and to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use".split()
)
"""Common words, always in the vocabulary, so that a wrong sound has something else to be."""

_ORDER_WEIGHT = 0.5
_DITHER = 20.0
"""Standard deviation in units of the least significant bit: digital silence breaks the decoder."""
_PADDING_SAMPLES = LISTEN_RATE_HZ // 2


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was understood and how far it is from what was expected."""

    text: str
    word_error_rate: float
    """Of the expected words that the dictionary knows; 0.0 is exact, may exceed 1.0."""
    unknown_words: tuple[str, ...]
    """Expected words that are not in the dictionary: left out of the score."""
    scored_words: int
    """Expected words that counted; nothing is known when there are none."""

    @property
    def passed(self) -> bool:
        """Was it understood as the expected text?"""
        return self.scored_words > 0 and self.word_error_rate <= PASSING_ERROR_RATE


def words(text: str) -> list[str]:
    """The words of ``text`` in lower case, without punctuation."""
    return re.findall(
        r"[a-z0-9]+(?:'[a-z]+)*", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Words substituted, left out or added, divided by the words of ``reference``.

    Case and punctuation do not count. An empty reference gives 0.0 for an empty hypothesis, else
    1.0.
    """
    expected, heard = words(reference), words(hypothesis)
    if not expected:
        return 1.0 if heard else 0.0
    return _edits(expected, heard) / len(expected)


def _edits(expected: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance over words."""
    above = list(range(len(heard) + 1))
    for row, wanted in enumerate(expected, 1):
        current = [row]
        for column, got in enumerate(heard, 1):
            substituted = above[column - 1] + (wanted != got)
            current.append(min(substituted, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


def recognise(samples: Samples, expected: str) -> Recognition:
    """Listen to ``samples`` (16 kHz mono) for ``expected``. Blocks, holds the GIL: about 0.2 s."""
    spoken = pronunciations()
    wanted = words(expected)
    known = [word for word in wanted if word in spoken]
    unknown = tuple(dict.fromkeys(word for word in wanted if word not in spoken))
    text = _decode(samples, known, spoken) if known else ""
    return Recognition(text, word_error_rate(" ".join(known), text), unknown, len(known))


def _decode(samples: Samples, known: list[str], spoken: Mapping[str, list[str]]) -> str:
    vocabulary = sorted({*known, *DISTRACTORS})
    with tempfile.TemporaryDirectory() as folder:
        # A dictionary of only these words: with the whole one the decoder takes seconds to build.
        dictionary, model = Path(folder) / "words.dict", Path(folder) / "order.lm"
        dictionary.write_text("".join(line for word in vocabulary for line in spoken[word]))
        model.write_text(_language_model(known, vocabulary))
        decoder = pocketsphinx.Decoder(loglevel="FATAL", lm=str(model), dict=str(dictionary))
    decoder.start_utt()
    decoder.process_raw(prepared(samples).tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return str(hypothesis.hypstr) if hypothesis is not None else ""


def prepared(samples: Samples) -> Samples:
    """Half a second of silence around, and dither, the same for the same length."""
    padded = np.concatenate([silence(_PADDING_SAMPLES), samples, silence(_PADDING_SAMPLES)])
    dither = np.random.default_rng(0).normal(0.0, _DITHER, len(padded))
    return np.clip(padded + dither, -32768, 32767).astype(np.int16)


@functools.cache
def pronunciations() -> dict[str, list[str]]:
    """Word -> its lines in the dictionary that comes with pocketsphinx (``a(2) EY`` is a's)."""
    path = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"))
    lines: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        lines.setdefault(line.split(maxsplit=1)[0].split("(")[0], []).append(line)
    return lines


def _language_model(known: Sequence[str], vocabulary: Sequence[str]) -> str:
    """All words equally likely, mixed with the expected order, in the ARPA format.

    P(b after a) = weight * share of b after a in the expected text + (1 - weight) / all words.
    """
    sequence = ["<s>", *known, "</s>"]
    pairs = Counter(itertools.pairwise(sequence))
    starts = Counter(sequence[:-1])
    even = 1 / (len(vocabulary) + 1)
    unigrams = [f"{math.log10(even):.4f} </s> 0"]
    for word in ["<s>", *vocabulary]:
        probability = -99.0 if word == "<s>" else math.log10(even)
        backoff = math.log10(1 - _ORDER_WEIGHT) if word in starts else 0.0
        unigrams.append(f"{probability:.4f} {word} {backoff:.4f}")
    bigrams = []
    for (first, second), count in sorted(pairs.items()):
        probability = _ORDER_WEIGHT * count / starts[first] + (1 - _ORDER_WEIGHT) * even
        bigrams.append(f"{math.log10(probability):.4f} {first} {second}")
    head = ["\\data\\", f"ngram 1={len(unigrams)}", f"ngram 2={len(bigrams)}"]
    return "\n".join(
        [*head, "", "\\1-grams:", *unigrams, "", "\\2-grams:", *bigrams, "", "\\end\\", ""]
    )


def main() -> int:
    """``python -m tools.recognise WAV "expected text"``: 0 when understood, 1 when not."""
    parser = argparse.ArgumentParser(description="Does a WAV file say the expected text?")
    parser.add_argument("wav", type=Path, help="16 bit PCM WAV file")
    parser.add_argument("expected", help="the text it should say")
    arguments = parser.parse_args()
    try:
        samples = read_wav(arguments.wav, LISTEN_RATE_HZ)
    except UnusableWav as error:
        print(error, file=sys.stderr)
        return 2
    result = recognise(samples, arguments.expected)
    print(f"understood: {result.text}\nword error rate: {result.word_error_rate:.2f}")
    if result.unknown_words:
        print(f"not in the dictionary: {', '.join(result.unknown_words)}")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
