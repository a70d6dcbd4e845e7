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


def test_a_first_clause_of_wide_characters_is_soon_enough():
    assert split("今天天气很好，我们去公园吧。好吗？") == [
        "今天天气很好，",
        "我们去公园吧。",
        "好吗？",
    ]


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
        "It costs $3.50, or 3,50 € elsewhere.",
        "Pi is 3.14159 or so.",
        "Get v2.0.1 or Python 3.12 today.",
        "Call +1 555.123.4567 now.",
        "That is, i.e. this, e.g. that.",
        "C. S. Lewis and the D.C. area.",
        "Wait… what is it?",
        "So... um... yes.",
        '"Really?" she asked.',
        "'Stop!' he cried.",
        "“Is it?” they said.",
        "“He said ‘no.’” and left.",
        "(It is so.) he added.",
        "Use min. 5 and max. 10 of them.",
        "It is approx. 5 km.",
        "Fig. 3 and vol. 2 show it.",
        "Smith et al. found it.",
        "U.S.A. today.",
        "Apple Inc. announced it.",
        "Use .NET or node.js now.",
        "Section 3.2.1 says so.",
        "Mr. and Mrs. Smith came.",
        "El Sr. García vino.",
        "On 5. Mai 2026 beginnt es.",
        "Am 24. Dezember ist Feier.",
        "Das war am 5. und nicht später.",
        "Nr. 5 lebt, d. h. das.",
        "C'est M. Dupont.",
        "He got 5 ft. 3 and left.",
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
        ("I met Max. He is nice.", ["I met Max.", "He is nice."]),
        ("We have 3. Then 4.", ["We have 3.", "Then 4."]),
        ("So it is 5. 6 is more.", ["So it is 5.", "6 is more."]),
        ("Great! 😀 Next.", ["Great!", "😀 Next."]),
        ("# Title\nText here.", ["# Title", "Text here."]),
        ("1) One\n2) Two", ["1) One", "2) Two"]),
        ("a. One\nb. Two", ["a. One", "b. Two"]),
        ("- a\n  - b", ["- a", "- b"]),
        ("It is:\n\n* **A**: x.\n* **B**: y.", ["It is:", "* **A**: x.", "* **B**: y."]),
        ("```py\nx = 1.5\n```\nDone.", ["```py", "x = 1.5", "```\nDone."]),
        ('He said: "No." Then: "Yes."', ['He said: "No."', 'Then: "Yes."']),
        ("(One.) (Two.)", ["(One.)", "(Two.)"]),
        ("She said “he said ‘no.’” Then left.", ["She said “he said ‘no.’”", "Then left."]),
        ("First... Second.", ["First...", "Second."]),
        ("Привет. Как дела?", ["Привет.", "Как дела?"]),
        ("¿Cómo estás? ¡Bien!", ["¿Cómo estás?", "¡Bien!"]),
        ("他说：“你好。”然后走了。", ["他说：“你好。”", "然后走了。"]),
        ("「はい。」次。", ["「はい。」", "次。"]),
        ("नमस्ते। कैसे हैं?", ["नमस्ते।", "कैसे हैं?"]),
        ("مرحبا؟ نعم۔ شكرا.", ["مرحبا؟", "نعم۔", "شكرا."]),
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
    "p.m.", "etc.", "24.", "Dezember", "De", "zember", "(so.)", "”", "Max.", "5", "你好。", "是，",
    "\n", "\n\n", "1.", "- ", "😀", "x" * 60, "",
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
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a, b 1, 2"),
        ("a | b", "a, b"),
        ("***both*** and **a *b* c**", "both and a b c"),
        ("Title\n=====\nText", "Title Text"),
        ("- - [x] *a*", "a"),
        ("1) one", "1) one"),
        ("It is so【4:0†source】 [1], see [^2].", "It is so, see."),
        ("[the text][ref] [2]", "the text"),
        ("It is so.[1][2] [12] Yes[^3]!", "It is so. Yes!"),
        ("a[1] = b[i]", "a[1] = b[i]"),
        ("[link](http://a.b/c_(d)) on", "link on"),
        ("on<!-- not\nthis -->off", "on off"),
        (r"\*not bold\*, a\_b", "not bold, a_b"),
        ("R&amp;D &quot;x&quot;&nbsp;y", 'R&D "x" y'),
        ("Hi :-) there ;) I <3 it :D", "Hi there I it"),
        ("at 3:30 (see: a)", "at 3:30 (see: a)"),
        ("home → work => bed", "home, work, bed"),
        ("├── src", "src"),
        ("Acme™ and ©", "Acme and"),
        ("==high==", "high"),
        ("C# and F#, #tag, @name", "C# and F#, #tag, @name"),
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
