"""How complete a partial transcript reads, and the pause that follows from it."""

from __future__ import annotations

import pytest

from voice_rtc.core.endpointing import completeness, pause_seconds


@pytest.mark.parametrize(
    "text", ["Hello.", "Really?", "Stop!", 'He said "no."', "It is 3.5.", "你好。", "Yes. "]
)
def test_a_sentence_that_ended_reads_complete(text):
    assert completeness(text) == 1.0


@pytest.mark.parametrize(
    "text",
    ["I was thinking...", "Well…", "first,", "and then", "I want to go to the", "um", "So, uh",
     "ich weiß nicht, ob das aber", "je voudrais un", "quiero que"],
)  # fmt: skip
def test_a_sentence_that_goes_on_reads_unfinished(text):
    assert completeness(text) < 0.2


@pytest.mark.parametrize("text", ["hello there", "what time is it", "go to paris", "42"])
def test_without_punctuation_there_is_no_telling(text):
    assert completeness(text) == 0.5


@pytest.mark.parametrize("text", ["I would like, um.", "We went there and."])
def test_a_full_stop_after_a_hesitation_is_doubtful(text):
    assert 0.1 < completeness(text) < 0.5


@pytest.mark.parametrize("text", ["", "  \n", '"'])
def test_nothing_understood_is_not_complete(text):
    assert completeness(text) == 0.0


def test_the_pause_is_short_for_complete_and_long_for_unfinished_text():
    assert pause_seconds("Done.", 0.5, 1.0) == 0.5
    assert pause_seconds("done", 0.5, 1.0) == 0.75
    assert pause_seconds("", 0.5, 1.0) == 1.0
    assert pause_seconds("and", 0.5, 1.0) == pytest.approx(0.95)
