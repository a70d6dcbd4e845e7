"""The pause that ends a turn: by words, by answers, by the caller's own pauses, by latency."""

from __future__ import annotations

import numpy as np
import pytest

from voice_rtc.core.endpointing import PACES, Endpointing, doubt

SHORTEST, LONGEST = 0.5, 2.0
USUAL = 0.6875
"""The pause after words without punctuation."""


def pause(*partials: str, asked: str | None = None, machine: Endpointing | None = None) -> float:
    """Of a new turn with these partials, after the agent said ``asked``."""
    endpointing = machine or Endpointing()
    if asked is not None:
        endpointing.replied(asked)
    endpointing.begin()
    for text in partials:
        endpointing.partial(text)
    return endpointing.pause(SHORTEST, LONGEST)


def used_to(*pauses: float) -> Endpointing:
    """A caller who went on after each of these."""
    endpointing = Endpointing()
    for number, seconds in enumerate(pauses):
        endpointing.begin()
        endpointing.partial(f"part {number}")
        endpointing.went_on(seconds)
        endpointing.partial(f"part {number} and more")
    return endpointing


# ------------------------------------------------------------------------ how a partial ends


@pytest.mark.parametrize(
    "text",
    ["Hello there.", "Really?", "Stop!", 'He said "no."', "It is 3.5.", "你好。", "Yes. ",
     "क्या आप ठीक हैं।", "كيف حالك؟", "I am sure that?"],
)  # fmt: skip
def test_a_sentence_that_ended_reads_complete(text):
    assert doubt(text) == 0.0


@pytest.mark.parametrize(
    "text",
    ["I was thinking...", "Well…", "um", "So, uh", "和…", "I want this and", "ich will das und"],
)
def test_a_caller_who_says_that_more_comes_is_waited_for_longest(text):
    assert doubt(text) == 1.0
    assert pause(text) == LONGEST


@pytest.mark.parametrize(
    "text",
    ["first,", "I want to go to the", "ich weiß nicht, ob das aber", "je voudrais un",
     "quiero que", "首先，", "one thing:"],
)  # fmt: skip
def test_a_sentence_that_goes_on_reads_unfinished(text):
    assert 0.5 <= doubt(text) < 1.0


@pytest.mark.parametrize("text", ["hello there", "go to paris", "42", "", "  \n", '"'])
def test_without_punctuation_there_is_no_telling(text):
    assert doubt(text) == 0.125
    assert pause(text) == pytest.approx(USUAL)


def test_without_any_partial_it_is_the_same():
    assert pause() == pytest.approx(USUAL)


@pytest.mark.parametrize("text", ["I would like, um.", "We went there and."])
def test_a_full_stop_after_a_hesitation_is_doubtful(text):
    assert USUAL < pause(text) < 1.2


# ------------------------------------------------------------------------------- stability


def test_partials_with_the_same_words_are_averaged():
    assert pause("I think.") == SHORTEST
    assert pause("I think...", "I think.") == pytest.approx(1.25)
    assert pause("I think...", "I think...", "i think", "I think.") == pytest.approx(
        1.297, abs=0.001
    )


def test_other_words_begin_anew():
    assert pause("I think...", "I think so.") == SHORTEST
    assert pause("I think so.", "I think so, but...") == LONGEST


def test_only_the_newest_partials_count():
    assert pause("Well...", *["Well."] * 8) == SHORTEST


def test_a_new_turn_knows_nothing_of_the_last_one():
    endpointing = Endpointing()
    endpointing.partial("I was...")
    assert pause(machine=endpointing) == pytest.approx(USUAL)


# ------------------------------------------------------------------------- short answers


@pytest.mark.parametrize("text", ["yes", "Yeah", "okay", "nein", "OUI", "はい", "नहीं", "да"])
def test_yes_and_no_are_answers_in_themselves(text):
    assert pause(text) == SHORTEST


@pytest.mark.parametrize("text", ["Monday", "at seven", "42", "twenty", "パリ", "восемь часов"])
def test_one_or_two_words_answer_a_question(text):
    assert pause(text) == pytest.approx(USUAL)
    assert pause(text, asked="When shall I call you?") == SHORTEST
    assert pause(text, asked="いつですか？") == SHORTEST
    assert pause(text, asked="That is what I know.") == pytest.approx(USUAL)


@pytest.mark.parametrize(
    "text", ["Monday,", "uh", "at the", "yes,", "the blue one", "昨日は友達と"]
)
def test_what_goes_on_or_is_longer_is_no_short_answer(text):
    assert pause(text, asked="When?") >= USUAL - 1e-9


def test_a_slow_speaker_need_not_wait_after_a_yes():
    slow = used_to(*[1.5] * 16)
    assert pause("perhaps", machine=slow) > 1.2
    assert pause("yes", machine=slow) == SHORTEST


# ----------------------------------------------------------------------------- dictation


@pytest.mark.parametrize(
    "text", ["0 1 7", "0176 234.", "555-1234", "zero one seven.", "null eins sieben", "B A U E R"]
)
def test_dictation_is_waited_for(text):
    assert pause(text) == pytest.approx(1.25)
    assert pause(text, asked="And then?") == pytest.approx(1.25)


@pytest.mark.parametrize("text", ["42", "1985.", "two"])
def test_a_number_is_dictation_only_where_one_was_asked_for(text):
    assert pause(text, asked="How many?") == SHORTEST
    assert pause(text, asked="What is your phone number?") == pytest.approx(1.25)


def test_what_is_said_with_a_number_is_no_dictation():
    assert pause("It is 555 1234.", asked="What is your phone number?") == SHORTEST


# ------------------------------------------------------------------------------ the voice


def test_a_voice_that_sounds_finished_or_not_counts_for_a_third():
    endpointing = Endpointing()
    endpointing.partial("go to paris")
    endpointing.judged(0.0)
    assert endpointing.pause(SHORTEST, LONGEST) == pytest.approx(USUAL + 0.35 * 0.875 * 1.5)
    endpointing.judged(1.0)
    assert SHORTEST < endpointing.pause(SHORTEST, LONGEST) < USUAL


def test_a_voice_does_not_make_a_short_answer_longer():
    endpointing = Endpointing()
    endpointing.partial("Yeah.")
    endpointing.judged(0.0)
    assert endpointing.pause(SHORTEST, LONGEST) == SHORTEST


def test_a_voice_is_forgotten_with_its_pause():
    endpointing = Endpointing()
    endpointing.partial("go to paris")
    endpointing.judged(0.0)
    endpointing.went_on(0.5)
    assert endpointing.pause(SHORTEST, LONGEST) == pytest.approx(USUAL)


# --------------------------------------------------------------- the caller's own pauses


def test_a_slow_speaker_gets_more_time_and_a_fast_one_less():
    slow, fast = used_to(*[1.2] * 16), used_to(*[0.25] * 16)
    for words in ("go to paris", "Go to Paris."):
        assert pause(words, machine=fast) <= pause(words) < pause(words, machine=slow)
    assert pause("go to paris", machine=fast) < USUAL
    assert pause("Go to Paris...", machine=fast) < LONGEST


def test_one_long_pause_changes_less_than_many():
    once, often = used_to(1.5), used_to(*[1.5] * 10)
    assert USUAL < pause("go to paris", machine=once) < pause("go to paris", machine=often)


def test_a_caller_can_become_faster():
    caller = used_to(*[1.5] * 16, *[0.3] * 16)
    assert pause("go to paris", machine=caller) < USUAL


def test_one_pause_in_ten_may_be_longer_than_what_is_waited_for():
    assert pause("go to paris", machine=used_to(*[0.4] * 9, 1.9)) < pause(
        "go to paris", machine=used_to(*[0.4] * 8, 1.9, 1.9)
    )


def test_a_pause_that_was_followed_by_no_words_says_nothing():
    endpointing = Endpointing()
    for _ in range(16):
        endpointing.begin()
        endpointing.partial("go to paris")
        endpointing.went_on(1.9)
        endpointing.partial("Go to Paris")
    assert pause("go to paris", machine=endpointing) == pytest.approx(USUAL)


# ---------------------------------------------------------------------------- the floor


def test_no_pause_is_shorter_than_recognition_takes():
    endpointing = Endpointing()
    for seconds in (0.7, 0.8, 5.0):
        endpointing.took(seconds)
    assert endpointing.floor_seconds == pytest.approx(0.9)
    assert pause("Yes.", machine=endpointing) == pytest.approx(0.9)
    assert pause("Well...", machine=endpointing) == LONGEST


def test_the_floor_follows_the_newest_transcripts():
    endpointing = Endpointing()
    for seconds in [0.9] * 8 + [0.1] * 8:
        endpointing.took(seconds)
    assert pause("Yes.", machine=endpointing) == SHORTEST


def test_the_floor_is_no_longer_than_the_longest_pause():
    endpointing = Endpointing()
    endpointing.took(8.0)
    assert pause("Yes.", machine=endpointing) == LONGEST


# ---------------------------------------------------------------------------- the rules


def test_a_fixed_pause_is_not_changed_by_anything():
    endpointing = used_to(*[1.5] * 16)
    endpointing.took(3.0)
    for text in ("yes", "Well...", "0 1 7", ""):
        endpointing.partial(text)
        assert endpointing.pause(0.3, 0.3) == 0.3


def test_every_pause_is_within_the_rules():
    random = np.random.default_rng(1)
    texts = ["", "yes", "Yes.", "well...", "1 2 3", "go to", "um.", "and so", "a,", "嗯…"]
    endpointing = Endpointing()
    for _ in range(3000):
        match int(random.integers(7)):
            case 0:
                endpointing.begin()
            case 1:
                endpointing.partial(str(random.choice(texts)))
            case 2:
                endpointing.replied(str(random.choice(["Yes?", "No.", "Your number?"])))
            case 3:
                endpointing.went_on(float(random.random() * 5 - 1))
            case 4:
                endpointing.judged(float(random.random()))
            case 5:
                endpointing.took(float(random.random() * 3))
            case _:
                shortest = float(random.random() * 2)
                longest = float(random.random() * 4)
                found = endpointing.pause(shortest, longest)
                assert shortest <= found <= max(shortest, longest)


def test_the_presets_are_in_order():
    assert PACES["eager"] < PACES["default"] == 1.0 < PACES["relaxed"]
