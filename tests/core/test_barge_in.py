"""What takes the floor from a reply: the rules, the words, and what is known of a call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.audio import noise
from voice_rtc.core.audio import LISTEN_RATE_HZ, silence
from voice_rtc.core.barge_in import (
    BargeInRules,
    Interrupts,
    IsNothing,
    Overlap,
    Surroundings,
    Undecided,
    UsualLevel,
    Verdict,
    WordPace,
    judge,
    speech_level_dbfs,
    words_of,
)

RULES = BargeInRules()
WORDS = replace(RULES, policy="words")
ANY = replace(RULES, policy="any")
ECHO = Surroundings(echo=0.9)
QUIET = Surroundings(below_usual_db=20.0)
NORMAL = Surroundings(echo=0.4, below_usual_db=5.0)


def weigh(
    spoken: float, text: str = "", *, rules: BargeInRules = RULES, due: float | None = 0.8,
    stopped: bool = False, age: float | None = None, around: Surroundings = NORMAL,
    was_echo: bool = False,
) -> Verdict:  # fmt: skip
    if age is None:
        age = spoken + (0.2 if stopped else 0.0)
    return judge(Overlap(spoken, age, text, due, stopped, around, was_echo), rules)


def lacking(verdict: Verdict) -> float:
    assert isinstance(verdict, Undecided)
    return verdict.again_seconds


# ------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    "text",
    [
        "Stop!", "stop", "Wait.", "hold on", "Hold on, hold on.", "No, no.", "Okay, stop.",
        "Yeah, wait", "Warte mal", "Halt!", "Arrêtez", "espera", "basta", "待って", "стоп",
    ],
)  # fmt: skip
def test_stop_words_interrupt_at_once(text):
    assert weigh(0.05, text) == Interrupts("stop_word")
    assert weigh(0.05, text, rules=WORDS) == Interrupts("stop_word")


@pytest.mark.parametrize(
    "text",
    [
        "Mhm.", "Uh-huh", "uh huh", "yeah", "Okay.", "Right, right.", "Ja, ja.", "Genau",
        "I see.", "Oh, okay.",
        "mm-hmm", "Yeah, yeah, okay.", "d’accord", "Sí, claro.", "はい", "Да.", "all right",
    ],
)  # fmt: skip
def test_backchannels_never_interrupt_until_they_last_too_long(text):
    assert lacking(weigh(0.6, text)) == pytest.approx(1.4)
    assert weigh(0.6, text, stopped=True) == IsNothing("backchannel")
    assert weigh(1.99, text, stopped=True) == IsNothing("backchannel")
    assert weigh(2.0, text) == Interrupts("duration")


@pytest.mark.parametrize("rules", [RULES, WORDS])
def test_other_words_interrupt_when_there_are_two_or_they_last(rules):
    assert weigh(0.2, "but what", rules=rules) == Interrupts("words")
    assert lacking(weigh(0.1, "but what", rules=rules)) == pytest.approx(0.2)
    assert weigh(0.3, "Tuesday", rules=rules) == Interrupts("words")
    assert lacking(weigh(0.1, "Tuesday", rules=rules)) == pytest.approx(0.2)
    assert weigh(0.1, "hello", rules=rules, stopped=True) == IsNothing("false_alarm")


@pytest.mark.parametrize("text", ["Thank you.", "you", "Thanks."])
def test_what_recognisers_make_of_noise_does_not_interrupt(text):
    assert weigh(0.5, text, stopped=True) == IsNothing("backchannel")


def test_a_backchannel_that_goes_on_is_no_backchannel():
    assert weigh(0.6, "Yeah, but I", stopped=True) == Interrupts("words")
    assert words_of("Yeah, but I see the thing").backchannels == 2


def test_text_without_words_is_no_words():
    said = words_of(" ... - !?")
    assert (said.stops, said.backchannels, said.others) == (False, 0, 0)


# --------------------------------------------------------------------------- without words


def test_length_alone_decides_only_where_no_words_are_expected():
    assert lacking(weigh(0.4, due=None)) == pytest.approx(0.35)
    assert weigh(0.75, due=None) == Interrupts("duration")
    assert lacking(weigh(0.75)) == pytest.approx(1.25)


def test_a_noise_without_words_does_not_hold_the_reply_up_for_ever():
    assert lacking(weigh(1.5)) == pytest.approx(0.5)
    assert weigh(2.0) == IsNothing("false_alarm")


def test_length_alone_never_decides_where_words_must():
    assert weigh(5.0, due=None, rules=WORDS) == IsNothing("false_alarm")


def test_what_is_too_short_for_a_word_is_not_waited_for():
    assert weigh(0.19, stopped=True) == IsNothing("false_alarm")


def test_the_words_of_short_speech_are_waited_for_after_its_end():
    assert lacking(weigh(0.4, stopped=True)) == pytest.approx(0.8 + 0.25 - 0.6)
    assert weigh(0.4, stopped=True, age=1.05) == IsNothing("false_alarm")
    assert weigh(0.4, "Stop.", stopped=True, age=0.9) == Interrupts("stop_word")


def test_what_ends_without_words_that_were_not_expected_is_unclear():
    assert lacking(weigh(0.4, stopped=True, due=None)) == pytest.approx(0.4)
    assert weigh(0.4, stopped=True, due=None, age=1.0) == IsNothing("unclear")


def test_what_is_too_long_for_a_cough_is_unclear_too():
    assert weigh(0.8, stopped=True, age=1.1) == IsNothing("unclear")


# ---------------------------------------------------------------------------- other policies


def test_any_speech_interrupts_under_any():
    assert weigh(0.3, "mhm", rules=ANY) == Interrupts("duration")
    assert weigh(0.3, rules=ANY, around=QUIET) == Interrupts("duration")
    assert lacking(weigh(0.1, "stop", rules=ANY)) == pytest.approx(0.2)
    assert weigh(0.29, rules=ANY, stopped=True) == IsNothing("false_alarm")


@pytest.mark.parametrize("rules", [RULES, WORDS, ANY])
def test_our_own_echo_is_nothing_whatever_it_says(rules):
    assert weigh(3.0, "stop that now", rules=rules, around=ECHO) == IsNothing("echo")


def test_an_echo_is_one_until_it_is_clearly_less_similar():
    around = Surroundings(echo=0.65)
    assert weigh(0.1, "stop", around=around) == Interrupts("stop_word")
    assert weigh(0.1, "stop", around=around, was_echo=True) == IsNothing("echo")


@pytest.mark.parametrize("rules", [RULES, WORDS])
def test_somebody_in_the_background_does_not_interrupt(rules):
    assert weigh(3.0, "stop that now", rules=rules, around=QUIET) == IsNothing("background")


# --------------------------------------------------------------------- what is known of a call


def test_the_pace_of_words_is_the_slowest_of_the_newest():
    pace = WordPace()
    assert pace.due_seconds is None
    for seconds in (3.0, *[0.5, 0.9] * 4):
        pace.words_came(seconds)
    assert pace.due_seconds == 0.9


def test_a_long_turn_without_words_makes_the_pace_unknown():
    pace = WordPace()
    pace.words_came(0.8)
    pace.no_words(1.0)
    assert pace.due_seconds == 0.8
    pace.no_words(1.1)
    assert pace.due_seconds is None


def voice(level: float, seconds: float = 1.0):
    return noise(seconds, seed=1, rate_hz=LISTEN_RATE_HZ, level=level)


def test_levels_are_those_of_speech_not_of_the_pauses_in_it():
    level = speech_level_dbfs(voice(0.1))
    assert level == pytest.approx(-20, abs=0.5)
    paused = np.concatenate([voice(0.1, 0.5), silence(LISTEN_RATE_HZ // 2)])
    assert speech_level_dbfs(paused) == pytest.approx(level, abs=0.5)
    assert speech_level_dbfs(voice(0.1, 0.19)) is None


def test_speech_is_compared_with_what_is_usual():
    usual = UsualLevel()
    assert usual.excess_of(voice(0.001)) == 0.0
    for level in (0.1, 0.11, 0.9, 0.0001, 0.09):
        usual.add(voice(level))
    assert usual.excess_of(voice(0.01)) == pytest.approx(20, abs=0.5)
    assert usual.excess_of(voice(0.01, 0.1)) == 0.0
