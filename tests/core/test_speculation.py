"""Answering before the turn is over: when to begin, and whether the answer still fits."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_rtc.core.similarity import Strategy, TextSimilarity, words_of
from voice_rtc.core.speculation import (
    Speculation,
    SpeculationRules,
    Start,
    Trigger,
    Verdict,
    judge,
    start_after,
)

STRATEGIES: tuple[Strategy, ...] = ("overall", "end", "weighted")
KEEP, MEANING, WORDING = Verdict.KEEP, Verdict.MEANING, Verdict.WORDING


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("started_on", "final", "verdict"),
    [
        ("What time is it", "What time is it?", KEEP),
        ("i don't know what to do", "I do not know what to do.", KEEP),
        ("Could you tell me the wether tomorrow", "Could you tell me the weather tomorrow?", KEEP),
        ("Yes.", "Yes", KEEP),
        # More was said, or something else.
        ("Tell me a story", "Tell me a story about whales", WORDING),
        ("Yes", "Yes please", WORDING),
        ("", "Hello", WORDING),
        ("Hello", "", WORDING),
        ("...", "...", WORDING),
        # Hardly a letter differs, and all of the meaning.
        ("I do want", "I do not want", MEANING),
        ("I do want that", "I don't want that", MEANING),
        ("You can tell her about it tomorrow", "You can't tell her about it tomorrow", MEANING),
        ("I have never been to that town before", "I have ever been to that town before", MEANING),
        ("Ich will das jetzt nicht haben", "Ich will das jetzt haben", MEANING),
        ("C'est possible", "Ce n'est pas possible", MEANING),
        ("No quiero verlo mañana", "Quiero verlo mañana", MEANING),
        ("A table for two people at seven", "A table for ten people at seven", MEANING),
        ("Put 150 euros into my account", "Put 1500 euros into my account", MEANING),
        ("Set it to 3.5 degrees now please", "Set it to 35 degrees now please", MEANING),
        ("It was -5 degrees here this morning", "It was 5 degrees here this morning", MEANING),
        ("He paid 20 $ for the whole ticket", "He paid 20 € for the whole ticket", MEANING),
        ("From 5 to 9 on every working day", "From 9 to 5 on every working day", MEANING),
        ("Wake me at ten past six", "Wake me at six past ten", MEANING),
        ("请给我三张票", "请给我五张票", MEANING),
        # The same thing written in another way is told apart: a wasted start, no wrong answer.
        ("Call me in 2 hours", "Call me in two hours", MEANING),
    ],
)  # fmt: skip
def test_does_the_answer_still_fit(
    strategy: Strategy, started_on: str, final: str, verdict: Verdict
) -> None:
    rules = SpeculationRules(TextSimilarity(strategy))
    assert judge(started_on, final, rules) is verdict


def test_a_negation_far_from_the_end_counts_too() -> None:
    said = "I would {}like to hear about the weather in the north of the country"
    assert judge(said.format(""), said.format("not ")) is MEANING


def test_the_strategies_differ_about_the_beginning() -> None:
    texts = ("Hm so tell me the way to the station", "Tell me the way to the station")
    assert judge(*texts, SpeculationRules(TextSimilarity("end"))) is KEEP
    assert judge(*texts, SpeculationRules(TextSimilarity("overall"))) is WORDING


WORDS = st.lists(st.sampled_from("I want do the ticket please for house red".split()), min_size=1)
DECISIVE = st.sampled_from("not never no nothing kein jamais 7 7.5 seven zwölf 50% -3".split())


@given(WORDS, DECISIVE, st.data(), st.sampled_from(STRATEGIES))
def test_a_negation_or_number_more_is_never_the_same(
    words: list[str], decisive: str, data: st.DataObject, strategy: Strategy
) -> None:
    place = data.draw(st.integers(0, len(words)))
    changed = " ".join([*words[:place], decisive, *words[place:]])
    rules = SpeculationRules(TextSimilarity(strategy), threshold=0.0)
    assert judge(" ".join(words), changed, rules) is MEANING
    assert judge(changed, " ".join(words), rules) is MEANING


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_another_number_is_never_the_same(first: int, second: int) -> None:
    verdict = judge(f"so give me {first} of them", f"So, give me {second} of them!")
    assert verdict is (KEEP if first == second else MEANING)


@given(st.text(max_size=40))
def test_a_text_fits_itself_and_nothing_fits_an_empty_one(text: str) -> None:
    assert judge(text, text) is (KEEP if words_of(text) else WORDING)
    assert judge(text, "") is judge("", text) is WORDING


# ------------------------------------------------------------------ when to begin


@pytest.mark.parametrize(
    ("pause", "latency", "seconds"),
    [(0.7, 0.4, 0.28), (0.7, 0.0, 0.68), (0.3, 0.4, 0.02), (0.42, 0.4, 0.02), (2.0, 0.5, 1.48)],
)
def test_silence_that_starts_a_generation(pause: float, latency: float, seconds: float) -> None:
    assert start_after(pause, latency) == pytest.approx(seconds)


def test_silence_starts_a_generation_just_in_time() -> None:
    turn = Speculation()
    turn.hear("so tell me", 1.0, 0.5)
    assert turn.next_start(1.0, None, 0.7, 0.4) is None, "the caller speaks"
    assert turn.next_deadline(None, 0.7, 0.4) is None
    due = turn.next_deadline(1.0, 0.7, 0.4)
    assert due == pytest.approx(1.28)
    assert turn.next_start(1.27, 1.0, 0.7, 0.4) is None
    assert turn.next_start(due, 1.0, 0.7, 0.4) == Start("so tell me", Trigger.SILENCE)
    assert turn.next_start(due, 1.0, 0.7, 0.4) is None, "it runs already"
    assert turn.next_deadline(1.0, 0.7, 0.4) is None
    assert turn.settle("So, tell me.") is KEEP


def test_nothing_heard_is_not_answered() -> None:
    turn = Speculation()
    assert turn.next_start(9.0, 1.0, 0.7, 0.4) is None
    turn.hear("...", 1.0, 1.0)
    assert turn.next_start(9.0, 1.0, 0.7, 0.4) is None and turn.next_deadline(1.0, 0.7, 0.4) is None


@pytest.mark.parametrize(
    ("partials", "starts"),
    [
        ([("What time is it?", 1.0, 1.0), ("What time is it?", 1.4, 1.0)], True),
        ([("what time is it", 1.0, 0.5), ("What time is it?", 1.4, 1.0)], True),
        ([("It is? What time is it?", 1.0, 1.0), ("But what time is it?", 1.4, 1.0)], False),
        ([("What time is it?", 1.0, 1.0)], False),
        ([("What time is it?", 1.0, 1.0), ("What time is it?", 1.2, 1.0)], False),
        ([("What time is it?", 1.0, 1.0)] * 4, False),
        ([("What time is it", 1.0, 0.5), ("What time is it", 1.4, 0.5)], False),
        ([("What time is it...", 1.0, 0.1), ("What time is it...", 1.4, 0.1)], False),
        ([("Why?", 1.0, 1.0), ("Who?", 1.2, 1.0), ("Who?", 1.4, 1.0), ("Why?", 1.6, 1.0)], False),
    ],
)  # fmt: skip
def test_a_stable_ending_starts_a_generation_while_the_caller_speaks(
    partials: list[tuple[str, float, float]], starts: bool
) -> None:
    turn = Speculation()
    for partial in partials:
        turn.hear(*partial)
    start = turn.next_start(partials[-1][1], None, 0.7, 0.4)
    assert (start == Start(partials[-1][0], Trigger.STABLE)) if starts else start is None


def test_more_partials_may_be_asked_for() -> None:
    turn = Speculation(SpeculationRules(stable_partials=3, stable_seconds=0.2))
    for at in (1.0, 1.3):
        turn.hear("Stop it.", at, 1.0)
    assert turn.next_start(1.3, None, 0.7, 0.4) is None
    turn.hear("Stop it.", 1.6, 1.0)
    assert turn.next_start(1.6, None, 0.7, 0.4) == Start("Stop it.", Trigger.STABLE)


def test_a_generation_that_fits_no_more_is_replaced_but_not_for_ever() -> None:
    turn = Speculation(SpeculationRules(most_starts=2))
    turn.hear("Tell me a story", 1.0, 0.5)
    assert turn.next_start(1.5, 1.0, 0.7, 0.4) is not None
    turn.hear("Tell me a story!", 1.6, 0.5)
    assert turn.next_start(2.5, 1.6, 0.7, 0.4) is None, "the same words"
    turn.hear("Tell me a story about whales", 2.0, 0.5)
    assert turn.next_start(2.5, 2.0, 0.7, 0.4) == Start(
        "Tell me a story about whales", Trigger.SILENCE
    )
    turn.hear("Tell me a story about whales and the sea", 3.0, 0.5)
    assert turn.next_start(3.5, 3.0, 0.7, 0.4) is None and turn.starts == 2
    assert turn.settle("Tell me a story about whales and the sea.") is WORDING


def test_no_turn_is_left_without_an_answer() -> None:
    turn = Speculation()
    assert turn.settle("Hello?") is not KEEP, "nothing runs"
    turn.hear("Hello?", 1.0, 1.0)
    assert turn.next_start(2.0, 1.0, 0.7, 0.4) is not None
    turn.failed()
    assert turn.settle("Hello?") is not KEEP, "what ran is gone"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("", "Yes.", "Yes. I do", "Yes. I do not", "Yes, I do.", "At 7.")),
            st.floats(0.01, 2.0),
            st.sampled_from((0.1, 0.5, 1.0)),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_however_the_partials_change(story: list[tuple[str, float, float, bool]]) -> None:
    turn, at, texts = Speculation(), 0.0, []
    for text, seconds, completeness, silent in story:
        at += seconds
        turn.hear(text, at, completeness)
        start = turn.next_start(at + 0.5, at if silent else None, 0.7, 0.4)
        if start is not None:
            texts.append(start.text)
            assert start.text == text == turn.started_on
    assert turn.starts == len(texts) <= 3
    assert all(judge(before, after) is not KEEP for before, after in pairwise(texts))
