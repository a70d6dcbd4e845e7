"""What the server's events say about turns and responses."""

from __future__ import annotations

import pytest

from tests.tools.bot_stories import ANSWERED, committed, created, done, event, playing, understood
from tools.bot_events import response_is_over, settled, text_of


def test_a_turn_is_settled_when_its_reply_has_been_played():
    assert settled(ANSWERED)


@pytest.mark.parametrize("length", range(len(ANSWERED)))
def test_it_is_not_settled_before(length):
    assert not settled(ANSWERED[:length])


@pytest.mark.parametrize(
    "more",
    [
        [event("input_audio_buffer.speech_started", item_id="b")],
        [committed("b")],
        [committed("b"), understood("b", "And more.")],
        [created("s"), playing("started", "s")],
    ],
)
def test_speech_behind_the_reply_unsettles_it(more):
    assert not settled([*ANSWERED, *more])


def test_speech_without_words_needs_no_reply():
    assert settled([committed("a"), understood("a", "")])
    assert settled([*ANSWERED, committed("b"), understood("b", "")])


def test_a_cancelled_reply_is_over_when_it_is_done():
    begun = [*ANSWERED[:3], playing("started", "r")]
    assert not settled(begun)
    assert settled([*begun, done("r", "cancelled")])


def test_a_turn_behind_a_cancelled_reply_wants_its_own():
    cut = [*ANSWERED[:4], event("input_audio_buffer.speech_started"), done("r", "cancelled")]
    assert not settled(cut)
    said = [*cut, event("input_audio_buffer.speech_stopped"), committed("b")]
    assert not settled(said)
    assert not settled([*said, understood("b", "Wait.")])
    assert settled([*said, understood("b", "")])


def test_a_reply_that_is_played_after_it_was_made_is_not_over_before():
    made = [created("r"), playing("started", "r"), done("r")]
    assert not response_is_over(made, "r")
    assert response_is_over([*made, playing("stopped", "r")], "r")
    assert not response_is_over(made, "s")


def test_the_text_of_a_cut_reply_is_what_came_of_it():
    kind = "response.output_audio_transcript"
    pieces = [event(f"{kind}.delta", response_id="r", delta=piece) for piece in ("You ", "said")]
    assert text_of(pieces, "r") == "You said"
    whole = event(f"{kind}.done", response_id="r", transcript="You said so.")
    assert text_of([*pieces, whole], "r") == "You said so."
    assert text_of(pieces, "s") == ""
