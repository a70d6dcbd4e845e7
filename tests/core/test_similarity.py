"""How alike two texts are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_rtc.core.similarity import Strategy, TextSimilarity, words_of

LETTERS = "abntoscruwd ABÄÖßéñçαΣσςжゆ今ิที0123456789 .,:'’-−%$€!?…½ﬁ\u0301\n"
TEXTS = st.text(LETTERS, max_size=60)
STRATEGIES: tuple[Strategy, ...] = ("overall", "end", "weighted")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  ... !", []),
        ("Well, I'd say: yes!", ["well", "id", "say", "yes"]),
        ("I don’t, can't, WON'T, cannot", "i do not can not will not can not".split()),
        ("It isnt, do'nt", ["it", "is", "not", "do", "not"]),
        ("Ce n'est pas l'heure.", ["ce", "ne", "est", "pas", "lheure"]),
        ("twenty-five", ["twenty", "five"]),
        ("3.5 and 1,000 at 10:30.", ["3.5", "and", "1,000", "at", "10:30"]),
        ("from 5-9, or -5", ["from", "5", "9", "or", "-5"]),
        ("5% of $20", ["5", "%", "of", "$", "20"]),
        ("Straße ＡＢＣ", ["strasse", "abc"]),
        ("Cafe\u0301", ["café"]),
        ("今何時？", ["今", "何", "時"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ที่นี่", ["ที่", "นี่"]),
    ],
)  # fmt: skip
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What time is it?", "what time is it"),
        ("I don't know.", "I do not know"),
        ("“Hello,” she said", "Hello she said..."),
        ("", "..."),
    ],
)
def test_case_and_punctuation_do_not_count(strategy: Strategy, first: str, second: str) -> None:
    assert TextSimilarity(strategy).ratio(first, second) == 1.0


def test_the_strategies_look_at_different_places() -> None:
    start_differs = (
        "Tomorrow morning can you tell me the way to the station",
        "Yesterday evening can you tell me the way to the station",
    )
    end_differs = (
        "Can you tell me the way to the old station in town",
        "Can you tell me the way to my favourite public garden",
    )
    for texts, end_is_lower in ((start_differs, False), (end_differs, True)):
        overall = TextSimilarity("overall").ratio(*texts)
        end = TextSimilarity("end").ratio(*texts)
        weighted = TextSimilarity("weighted").ratio(*texts)
        assert weighted == pytest.approx(0.3 * overall + 0.7 * end)
        assert (end < overall) is end_is_lower
    assert TextSimilarity("end").ratio(*start_differs) == 1.0


def test_the_end_is_as_long_as_asked_for() -> None:
    texts = ("one thing and another thing", "no thing and another thing")
    assert TextSimilarity("end", tail_words=4).ratio(*texts) == 1.0
    assert TextSimilarity("end", tail_words=5).ratio(*texts) < 1.0


def test_long_texts_are_compared_by_every_letter() -> None:
    """difflib by itself leaves letters out that are frequent in a long text: nearly all."""
    text = "so it was said that the train to the coast would leave a little later than planned " * 3
    changed = text.replace("coast", "south")
    assert 0.9 < TextSimilarity("overall").ratio(text, changed) < 1.0


@pytest.mark.parametrize("given", [{"tail_words": 0}, {"end_weight": 1.1}, {"end_weight": -0.1}])
def test_what_makes_no_sense_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        TextSimilarity("end", **given)  # type: ignore[arg-type]


@given(TEXTS, TEXTS, st.sampled_from(STRATEGIES))
def test_a_ratio_is_one_only_for_the_same(first: str, second: str, strategy: Strategy) -> None:
    ratio = TextSimilarity(strategy, tail_words=100).ratio(first, second)
    assert 0.0 <= ratio <= 1.0
    assert (ratio == 1.0) is (words_of(first) == words_of(second))


@given(TEXTS)
def test_words_are_stable(text: str) -> None:
    """What was taken apart once stays as it is: neither case nor white space is left."""
    words = words_of(text)
    assert words_of(" ".join(words)) == words
    assert all(word == word.casefold() and word and not word.isspace() for word in words)


@given(st.lists(st.sampled_from("I want do not a the ticket please 7".split()), max_size=12))
def test_decoration_never_counts(words: list[str]) -> None:
    decorated = "... " + ", ".join(word.upper() for word in words) + "!?"
    assert words_of(decorated) == words_of(" ".join(words))
