"""What the server's events say about turns and responses."""

from __future__ import annotations

import pytest

from tests.tools.bot_stories import (
    ANSWERED,
    committed,
    created,
    done,
    event,
    granted,
    playing,
    understood,
    waiting,
)
from tools.bot_events import (
    in_line,
    positions,
    response_is_over,
    seconds_in_line,
    settled,
    text_of,
)


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


def test_a_turn_that_was_reopened_is_waited_for():
    taken_back = [committed("a"), understood("a", "I would"), created("r"), done("r", "cancelled")]
    again = [*taken_back, committed("a")]
    assert not settled(again)
    assert not settled([*again, understood("a", "I would like")])
    assert settled([*again, understood("a", "I would like"), created("s"), done("s")])


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


GREETED = event("session.created", 1.0)


def test_who_was_never_told_to_wait_does_not():
    for events in ([], [GREETED], [GREETED, granted(2.0)], [GREETED, *ANSWERED]):
        assert not in_line(events)
        assert positions(events) == []
        assert seconds_in_line(events) is None


def test_a_caller_waits_until_it_is_granted():
    told = [GREETED, waiting(2, 1.5), waiting(2, 6.5), waiting(1, 8.0)]
    assert in_line(told)
    assert not in_line([*told, granted(9.0)])
    assert not in_line([*told, granted(9.0), *ANSWERED])


def test_a_place_that_is_told_again_is_one_place():
    assert positions([waiting(3), waiting(3), waiting(2), waiting(1), waiting(1)]) == [3, 2, 1]


def test_somebody_with_a_head_start_may_push_a_caller_back():
    assert positions([waiting(1), waiting(2), waiting(1)]) == [1, 2, 1]


def test_the_wait_lasts_to_the_grant_or_as_far_as_is_known():
    told = [GREETED, waiting(2, 1.5), waiting(1, 8.0)]
    assert seconds_in_line([*told, granted(9.0), *ANSWERED]) == 7.5
    assert seconds_in_line([*told, event("voice_rtc.call.ended", 11.5)]) == 10.0
