"""Pieces worth speaking out of a stream of text."""

from __future__ import annotations

import re

import numpy as np
import pytest

from voice_rtc.core.sentences import SentenceSplitter, speakable


def split(text: str, delta: int = 3, **settings: int) -> list[str]:
    splitter = SentenceSplitter(**settings)
    pieces: list[str] = []
    for start in range(0, len(text), delta):
        pieces += splitter.feed(text[start : start + delta])
    return pieces + splitter.flush()


def later(text: str) -> list[str]:
    """How ``text`` is split after the first piece."""
    return split("Yes. " + text)[1:]


def test_the_first_piece_may_be_a_clause_the_others_are_sentences():
    text = "Sure, I can help you, of course. Just tell me, when? Then we start."
    assert split(text) == [
        "Sure, I can help you,", "of course.", "Just tell me, when?", "Then we start.",
    ]  # fmt: skip


def test_a_first_clause_is_not_too_short():
    assert split("Well, yes, of course it is.")[0] == "Well, yes, of course it is."
    assert split("Well, yes, of course it is.", first_clause_min_characters=4)[0] == "Well,"


def test_a_first_sentence_is_a_piece_however_short():
    assert split("Yes. It is.") == ["Yes.", "It is."]


def test_a_long_first_clause_is_cut_after_six_words():
    text = "this is what it sounds like when a model does not punctuate at all"
    assert split(text)[0] == "this is what it sounds like"


def test_the_first_piece_comes_before_the_sentence_is_written():
    splitter = SentenceSplitter()
    assert splitter.feed("That is a good question, ") == ["That is a good question,"]


def test_a_sentence_comes_as_soon_as_the_next_character_is_there():
    splitter = SentenceSplitter()
    assert splitter.feed("It is done.") == []
    assert splitter.feed(" ") == ["It is done."]


@pytest.mark.parametrize(
    "sentence",
    [
        "Dr. Smith and Mr. Jones met.",
        "Use a tool, e.g. a hammer.",
        "The U.S. Senate voted.",
        "J. R. R. Tolkien wrote it.",
        "It costs 3.5 dollars or 1,000.50 euros.",
        "Open https://example.com/a.b?c=d.e now.",
        "Call me at 5 p.m. sharp.",
        "Apples, pears, etc. are fruit.",
        "See No. 5 there.",
        "Version v1.2.3 is out.",
        "Hmm... let me see.",
        "Das kostet z.B. 3 Euro.",
        "Meet me on Jan. 5 please.",
        "So it's 3:30 now.",
        "Write to a.b@c.de today.",
    ],
)
def test_not_every_full_stop_ends_a_sentence(sentence):
    assert later(sentence + " Next one.") == [sentence, "Next one."]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("I came at 5 p.m. He left.", ["I came at 5 p.m.", "He left."]),
        ("Well... I think so.", ["Well...", "I think so."]),
        ("No. I do not.", ["No.", "I do not."]),
        ('He said "Stop!" Then he went.', ['He said "Stop!"', "Then he went."]),
        ("It is **bold.** Next.", ["It is **bold.**", "Next."]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        ("It was 1999. Then it ended.", ["It was 1999.", "Then it ended."]),
        ("1. Eggs\n2. Milk\n", ["1. Eggs", "2. Milk"]),
        ("- Eggs\n- Milk", ["- Eggs", "- Milk"]),
        ("你好。我很好！你呢？", ["你好。", "我很好！", "你呢？"]),
        ("One\n\nTwo", ["One", "Two"]),
    ],
)
def test_where_sentences_end(text, pieces):
    assert later(text) == pieces


def test_a_piece_without_a_sound_is_not_a_piece_of_its_own():
    assert later("... *** Then. Go.") == ["... *** Then.", "Go."]


def test_a_long_sentence_is_cut_at_a_clause_else_at_a_word():
    clauses = later("word " * 20 + "end, " + "word " * 60)
    assert clauses[0].endswith("end,") and max(map(len, clauses)) <= 240
    words = split("word " * 100, maximum_characters=50)
    assert max(map(len, words)) <= 50 and all(set(w.split()) == {"word"} for w in words)


def test_a_word_is_never_cut():
    word = "x" * 500
    assert later(f"{word} and more.") == [word, "and more."]


def test_flushing_nothing_gives_nothing():
    splitter = SentenceSplitter()
    assert splitter.feed("  \n ") == [] and splitter.flush() == []


def test_after_a_flush_nothing_is_left():
    splitter = SentenceSplitter()
    splitter.feed("Hello there")
    assert splitter.flush() == ["Hello there"] and splitter.flush() == []


PARTS = [
    "Hello", "there", "Dr.", "e.g.", "U.S.", "3.5", "1,000", "well,", "so:", "...", "…", "Yes.",
    "No.", "Really?", "wait!", "—", "I", "a", "http://a.b/c.", "(see", "below).", '"Stop."', "**",
    "p.m.", "etc.", "5", "你好。", "是，", "\n", "\n\n", "1.", "- ", "😀", "x" * 60, "",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(400))
def test_pieces_keep_the_text_and_do_not_depend_on_the_deltas(seed):
    random = np.random.default_rng(seed)
    text = "".join(
        PARTS[int(random.integers(len(PARTS)))] + (" " if random.random() < 0.9 else "")
        for _ in range(int(random.integers(1, 80)))
    )
    whole = split(text, delta=len(text) or 1, maximum_characters=80)
    assert "".join("".join(whole).split()) == "".join(text.split())
    assert all(piece == piece.strip() != "" for piece in whole)
    assert _runs(" ".join(whole)) == _runs(text)
    for delta in (1, 2, 5, 17):
        assert split(text, delta=delta, maximum_characters=80) == whole


def _runs(text: str) -> list[str]:
    """What must stay whole: runs of letters and digits with the marks inside them, as in 3.5."""
    return re.findall(r"[a-zA-Z0-9]+(?:[.,:/]+[a-zA-Z0-9]+)*", text)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("**Hi** there, *you* and _you_.", "Hi there, you and you."),
        ("# Head\n- one\n* two\n1. three", "Head one two 1. three"),
        ("See [the page](https://x.y/z) or `code`.", "See the page or code."),
        ("![a cat](cat.png) sleeps", "a cat sleeps"),
        ("```python\nprint(1)\n```", "print(1)"),
        ("> quoted", "quoted"),
        ("- [x] done", "done"),
        ("~~old~~ new", "old new"),
        ("**opened here", "opened here"),
        ("closed here** now", "closed here now"),
        ("2 * 3 is 6, 2**3 is 8", "2 * 3 is 6, 2**3 is 8"),
        ("snake_case_name", "snake_case_name"),
        ("I <b>am</b> here", "I am here"),
        ("3 < 5 and 7 > 2", "3 < 5 and 7 > 2"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a b 1 2"),
        ("Great 😀!", "Great!"),
        ("👩‍👩‍👧 family 1️⃣ 🇩🇪", "family 1"),
        ("10 °C for 5 €, naïve café", "10 °C for 5 €, naïve café"),
        ("a\x00b\x1bc\u200bd\ud800", "a b cd"),
        ("  much \t space\r\n here ", "much space here"),
        ("你好。", "你好。"),
    ],
)
def test_what_is_spoken(text, spoken):
    assert speakable(text) == spoken


@pytest.mark.parametrize("text", ["", " \n", "😀", "---", "**", "...", "```", "|---|---|"])
def test_what_has_no_sound_is_empty(text):
    assert speakable(text) == ""


@pytest.mark.parametrize(
    "run", ["-", "_", "*", ">", "|", "=", "~", "`", "#", "- ", "|-", "[", "<a"]
)
def test_long_runs_of_markup_take_no_time_to_speak_of(run: str) -> None:
    # A pattern that tries all ways to cut a run up would not come back within the test's deadline.
    speakable(run * 400 + " Title " + run * 400)
