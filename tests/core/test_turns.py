"""The turn machine: stories, the whole table, and invariants under random events."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from voice_rtc.core.barge_in import BargeInRules, Surroundings
from voice_rtc.core.turns import (
    Action,
    CancelRequested,
    CommitTurn,
    DeadlineReached,
    DiscardUtterance,
    Duck,
    Event,
    Floor,
    Interrupt,
    KeepUtterance,
    ManualCommit,
    OpenUtterance,
    PartialHeard,
    ReplyAudible,
    ReplyDone,
    ReplyRequested,
    SpeechStarted,
    SpeechStopped,
    StartReply,
    TurnJudged,
    TurnMachine,
    TurnRules,
)
from voice_rtc.errors import StateError

RULES = TurnRules(
    min_pause_seconds=1.0,
    max_pause_seconds=1.0,
    barge_in=BargeInRules(policy="any", seconds=0.3),
    max_utterance_seconds=30.0,
)
BY_WORDS = replace(RULES, min_pause_seconds=0.5, max_pause_seconds=2.0)
WORDY = replace(RULES, barge_in=BargeInRules())
"""Words decide what interrupts, as by default."""
POLITE = replace(RULES, interrupts=False)

CUT = Interrupt(1, "barge_in", "duration", 0.3)

Timed = tuple[float, Action]


def play(machine: TurnMachine, *script: tuple[float, Event], until: float = 0.0) -> list[Timed]:
    """Deliver the script and, in between, every deadline at its time, as a call does."""
    done: list[Timed] = []
    clock = 0.0

    def let_deadlines_pass(now: float) -> None:
        while machine.next_deadline is not None and machine.next_deadline <= now:
            due = max(machine.next_deadline, clock)
            done.extend((round(due, 3), a) for a in machine.handle(DeadlineReached(), due))

    for at, event in script:
        let_deadlines_pass(at)
        clock = at
        done.extend((at, action) for action in machine.handle(event, at))
    let_deadlines_pass(until)
    return done


def started(at: float) -> tuple[float, Event]:
    return at, SpeechStarted(at)


def stopped(at: float) -> tuple[float, Event]:
    return at, SpeechStopped(at)


def thinking(rules: TurnRules = RULES) -> TurnMachine:
    """Utterance 1 is committed at 2.0, reply 1 is being prepared."""
    machine = TurnMachine(rules)
    play(machine, started(0.0), stopped(1.0), until=2.0)
    assert (machine.floor, machine.reply) == (Floor.THINKING, 1)
    return machine


def speaking_agent(rules: TurnRules = RULES) -> TurnMachine:
    """Reply 1 is audible since 3.0."""
    machine = thinking(rules)
    play(machine, (3.0, ReplyAudible(1)))
    assert machine.floor is Floor.AGENT
    return machine


def overlapping(rules: TurnRules = RULES) -> TurnMachine:
    """The caller speaks over reply 1 since 4.0."""
    machine = speaking_agent(rules)
    play(machine, started(4.0))
    assert machine.floor is Floor.OVERLAP
    return machine


# ------------------------------------------------------------------------------- turn ends


def test_a_complete_sentence_is_committed_early():
    machine = TurnMachine(BY_WORDS)
    done = play(machine, started(0.0), (0.9, PartialHeard("Hello.")), stopped(1.0), until=9)
    assert done == [(0.0, OpenUtterance(1)), (1.5, CommitTurn(1, 1, "endpointing"))]


def test_an_unfinished_sentence_is_waited_for():
    machine = TurnMachine(BY_WORDS)
    done = play(machine, started(0.0), stopped(1.0), (1.1, PartialHeard("and")), until=9)
    assert done[-1] == (3.0, CommitTurn(1, 1, "endpointing"))


def test_the_pace_holds_for_both_pauses():
    machine = TurnMachine(replace(BY_WORDS, pace=2.0))
    play(machine, started(0.0), stopped(1.0), (1.1, PartialHeard("and")))
    assert machine.next_deadline == pytest.approx(5.0)
    play(machine, (1.2, PartialHeard("and so on.")))
    assert machine.next_deadline == pytest.approx(2.0)


def test_a_voice_that_sounds_unfinished_is_waited_for():
    machine = TurnMachine(BY_WORDS)
    play(machine, started(0.0), (0.9, PartialHeard("Hello.")), stopped(1.0))
    play(machine, (1.3, TurnJudged(1.0, 0.0)))
    assert machine.next_deadline == pytest.approx(1.5 + 0.35 * 1.5)
    play(machine, (1.35, TurnJudged(1.0, 1.0)))
    assert machine.next_deadline == pytest.approx(1.5)


def test_what_was_heard_in_an_earlier_pause_says_nothing_about_this_one():
    machine = TurnMachine(BY_WORDS)
    play(machine, started(0.0), (0.9, PartialHeard("Hello.")), stopped(1.0))
    play(machine, (1.3, TurnJudged(1.0, 0.0)), started(1.4), stopped(3.0))
    play(machine, (3.2, TurnJudged(1.0, 0.0)))
    assert machine.next_deadline == pytest.approx(3.5)


def test_a_caller_who_pauses_long_and_goes_on_is_given_more_time():
    machine = TurnMachine(BY_WORDS)
    play(machine, started(0.0), (0.9, PartialHeard("I want")), stopped(1.0))
    before = machine.next_deadline
    for turn in range(8):
        at = 10.0 * turn + 2.0
        play(machine, started(at), (at + 0.5, PartialHeard(f"I want {turn}")))
        play(machine, (at + 1.0, SpeechStopped(at + 1.0)))
        play(machine, started(at + 2.4), (at + 2.5, PartialHeard(f"I want {turn} more")))
        play(machine, (at + 3.0, SpeechStopped(at + 3.0)))
    assert before == pytest.approx(1.0 + 0.6875)
    assert machine.next_deadline is not None
    assert 1.0 < machine.next_deadline - 75.0 <= 2.0


def test_a_partial_in_the_pause_may_end_it_at_once():
    machine = TurnMachine(BY_WORDS)
    done = play(
        machine,
        started(0.0),
        (0.9, PartialHeard("Hel,")),
        stopped(1.0),
        (1.7, PartialHeard("Hello.")),
    )
    assert machine.next_deadline == pytest.approx(1.5)
    assert machine.handle(DeadlineReached(), 1.7) == [CommitTurn(1, 1, "endpointing")]
    assert done == [(0.0, OpenUtterance(1))]


def test_the_pause_is_dated_from_the_last_speech_not_from_its_detection():
    machine = TurnMachine(RULES)
    play(machine, started(0.0), (1.4, SpeechStopped(1.0)))
    assert machine.next_deadline == pytest.approx(2.0)


def test_a_caller_who_goes_on_after_a_pause_is_in_the_same_utterance():
    machine = TurnMachine(RULES)
    done = play(machine, started(0.0), stopped(1.0), started(1.5), stopped(3.0), until=9)
    assert done == [(0.0, OpenUtterance(1)), (4.0, CommitTurn(1, 1, "endpointing"))]


def test_a_new_utterance_does_not_inherit_the_last_ones_words():
    machine = TurnMachine(replace(BY_WORDS, creates_reply=False))
    play(machine, started(0.0), (0.5, PartialHeard("Hello.")), stopped(1.0), until=2)
    play(machine, started(5.0), stopped(6.0))
    assert machine.next_deadline == pytest.approx(6.6875)


def test_a_turn_without_an_answer_leaves_the_floor_free():
    machine = TurnMachine(replace(RULES, creates_reply=False))
    done = play(machine, started(0.0), stopped(1.0), until=9)
    assert done[-1] == (2.0, CommitTurn(1, None, "endpointing"))
    assert machine.floor is Floor.IDLE and not machine.reply_active


@pytest.mark.parametrize("creates_reply", [False, True])
def test_a_client_that_ends_the_turns_itself_gets_no_answer_to_what_was_being_said(creates_reply):
    machine = TurnMachine(RULES)
    play(machine, started(0.0))
    machine.rules = replace(RULES, manual=True, creates_reply=creates_reply)
    done = play(machine, stopped(1.0), until=9)
    assert done == [(2.0, CommitTurn(1, None, "endpointing"))]
    assert machine.floor is Floor.IDLE


def test_a_client_that_ends_the_turns_itself_gets_no_answer_after_the_reply_either():
    machine = speaking_agent(POLITE)
    play(machine, started(4.0))
    machine.rules = replace(POLITE, manual=True)
    done = play(machine, stopped(5.0), (8.0, ReplyDone(1)), until=9)
    assert done == [(8.0, CommitTurn(2, None, "endpointing"))]


def test_a_long_utterance_without_answers_is_committed_all_the_same():
    machine = TurnMachine(replace(RULES, manual=True))
    done = play(machine, started(0.0), until=30.0)
    assert done[1:] == [(30.0, CommitTurn(1, None, "max_length")), (30.0, OpenUtterance(2))]


def test_a_long_utterance_is_committed_and_the_next_one_opens_at_once():
    machine = TurnMachine(RULES)
    done = play(machine, started(1.0), stopped(45.0), until=60)
    assert done == [
        (1.0, OpenUtterance(1)),
        (31.0, CommitTurn(1, None, "max_length")),
        (31.0, OpenUtterance(2)),
        (46.0, CommitTurn(2, 1, "endpointing")),
    ]


def test_a_deadline_at_time_zero_is_a_deadline():
    machine = TurnMachine(replace(RULES, max_utterance_seconds=1.0))
    machine.handle(SpeechStarted(-1.0), 0.0)
    assert machine.next_deadline == 0.0
    assert machine.handle(DeadlineReached(), 0.0)[0] == CommitTurn(1, None, "max_length")


def test_a_deadline_that_was_moved_does_not_fire_early():
    machine = TurnMachine(BY_WORDS)
    play(
        machine, started(0.0), (0.5, PartialHeard("Hi.")), stopped(1.0), (1.4, PartialHeard("and"))
    )
    assert machine.handle(DeadlineReached(), 1.5) == []
    assert machine.floor is Floor.PAUSE


def test_rules_hold_from_the_next_event_on():
    machine = TurnMachine(RULES)
    play(machine, started(0.0))
    machine.rules = replace(RULES, max_pause_seconds=4.0, min_pause_seconds=4.0)
    play(machine, stopped(1.0))
    assert machine.next_deadline == pytest.approx(5.0)


# ------------------------------------------------------------------------- over the reply


def test_a_caller_who_goes_on_before_the_reply_was_heard_takes_the_turn_back():
    machine = thinking()
    assert play(machine, started(2.5)) == [
        (2.5, OpenUtterance(2, continues=1)), (2.5, Interrupt(1, "resumed")),
    ]  # fmt: skip
    assert machine.floor is Floor.USER and not machine.reply_active


def test_a_reopened_turn_is_committed_again_and_answered_once():
    machine = thinking()
    done = play(machine, started(2.5), stopped(3.0), (4.5, ReplyAudible(1)), until=9)
    assert done[2:] == [(4.0, CommitTurn(2, 2, "endpointing"))]
    assert (machine.floor, machine.reply) == (Floor.THINKING, 2)


def test_a_turn_can_be_reopened_again_and_again():
    machine = thinking()
    done = play(machine, started(2.5), stopped(3.0), started(4.5), stopped(5.0), until=9)
    opened = [action for _, action in done if isinstance(action, OpenUtterance)]
    assert opened == [OpenUtterance(2, continues=1), OpenUtterance(3, continues=2)]
    assert done[-1] == (6.0, CommitTurn(3, 3, "endpointing"))


def test_speech_that_began_before_the_commit_reopens_the_turn_too():
    machine = thinking(replace(RULES, reopen_seconds=0.0))
    assert machine.handle(SpeechStarted(1.95), 2.05)[0] == OpenUtterance(2, continues=1)


def test_what_is_said_later_is_a_turn_of_its_own():
    machine = thinking(replace(RULES, reopen_seconds=1.0))
    assert machine.handle(SpeechStarted(3.1), 3.2) == [OpenUtterance(2), Interrupt(1, "resumed")]


def test_a_turn_that_is_long_already_is_not_reopened():
    machine = thinking(replace(RULES, max_utterance_seconds=2.4))
    assert machine.handle(SpeechStarted(2.5), 2.6)[0] == OpenUtterance(2)


def test_what_the_client_committed_is_not_reopened():
    machine = thinking()
    done = play(machine, (2.1, ManualCommit()), started(2.5))
    assert done == [
        (2.1, CommitTurn(2, None, "manual")), (2.5, OpenUtterance(3)),
        (2.5, Interrupt(1, "resumed")),
    ]  # fmt: skip
    asked = TurnMachine(RULES)
    play(asked, started(0.0), stopped(1.0), (1.1, ReplyRequested()))
    assert play(asked, started(1.5))[0] == (1.5, OpenUtterance(2))


def test_speech_over_a_polite_reply_ends_the_time_to_reopen_the_turn_before():
    machine = thinking(POLITE)
    play(machine, started(2.2), stopped(2.4), (2.5, ManualCommit()))
    assert (machine.floor, machine.utterance) == (Floor.THINKING, 2)
    machine.rules = RULES
    assert play(machine, started(2.8))[0] == (2.8, OpenUtterance(3))


def test_a_cough_that_reopened_the_turn_is_judged_by_the_words_before_it():
    machine = TurnMachine(BY_WORDS)
    done = play(
        machine, started(0.0), (0.9, PartialHeard("Hello.")), stopped(1.0), started(2.0),
        stopped(2.2), until=9,
    )  # fmt: skip
    assert done[1:] == [
        (1.5, CommitTurn(1, 1, "endpointing")),
        (2.0, OpenUtterance(2, continues=1)),
        (2.0, Interrupt(1, "resumed")),
        (2.7, CommitTurn(2, 2, "endpointing")),
    ]


def test_a_pause_that_ended_a_turn_too_early_makes_the_next_ones_longer():
    machine = TurnMachine(BY_WORDS)
    play(machine, started(0.0), (0.9, PartialHeard("I want")), stopped(1.0), started(2.9))
    play(machine, (3.4, PartialHeard("I want to")), (3.5, PartialHeard("I want that")))
    play(machine, stopped(4.0), (4.1, PartialHeard("I want that one")))
    assert machine.next_deadline is not None
    assert 4.0 + 0.6875 < machine.next_deadline < 6.0


def test_a_cough_ducks_and_nothing_more():
    machine = speaking_agent()
    done = play(machine, started(4.0), stopped(4.2), until=9)
    assert done == [
        (4.0, Duck(True)), (4.0, OpenUtterance(2)), (4.2, Duck(False)), (4.2, DiscardUtterance(2)),
    ]  # fmt: skip
    assert machine.floor is Floor.AGENT


def test_speech_that_lasts_is_a_barge_in():
    machine = speaking_agent()
    done = play(machine, started(4.0), stopped(5.0), until=9)
    assert done == [
        (4.0, Duck(True)),
        (4.0, OpenUtterance(2)),
        (4.3, CUT),
        (4.3, Duck(False)),
        (6.0, CommitTurn(2, 2, "endpointing")),
    ]


def test_speech_noticed_late_is_a_barge_in_at_once():
    machine = speaking_agent()
    machine.handle(SpeechStarted(4.0), 4.5)
    assert machine.next_deadline == pytest.approx(4.52)
    cut = Interrupt(1, "barge_in", "duration", 0.52)
    assert machine.handle(DeadlineReached(), 4.52)[0] == cut


def test_a_cough_whose_end_the_gate_still_bridges_is_no_barge_in():
    machine = overlapping()
    assert machine.handle(DeadlineReached(voiced_until_seconds=4.13), 4.3) == []
    assert machine.next_deadline == pytest.approx(4.45)
    done = machine.handle(SpeechStopped(4.13), 4.35)
    assert done == [Duck(False), DiscardUtterance(2)]


def test_speech_that_is_known_to_last_is_a_barge_in():
    machine = overlapping()
    assert machine.handle(DeadlineReached(voiced_until_seconds=4.29), 4.3) == []
    assert machine.next_deadline == pytest.approx(4.32)
    confirmed = machine.handle(DeadlineReached(voiced_until_seconds=4.31), 4.32)
    assert confirmed == [Interrupt(1, "barge_in", "duration", 0.32), Duck(False)]


def test_a_reply_that_ends_under_the_caller_leaves_them_the_floor():
    machine = overlapping()
    assert play(machine, (4.1, ReplyDone(1))) == [(4.1, Duck(False))]
    assert (machine.floor, machine.utterance) == (Floor.USER, 2)
    assert machine.next_deadline == pytest.approx(34.0)


def test_late_words_of_a_cut_reply_are_ignored():
    machine = overlapping()
    play(machine, until=4.3)
    play(machine, stopped(5.0), until=6.0)
    assert (machine.floor, machine.reply) == (Floor.THINKING, 2)
    assert play(machine, (6.1, ReplyAudible(1)), (6.2, ReplyDone(1))) == []
    assert machine.floor is Floor.THINKING


def test_a_reply_that_was_played_leaves_the_floor_free():
    machine = speaking_agent()
    assert play(machine, (5.0, ReplyDone(1))) == []
    assert machine.floor is Floor.IDLE and machine.next_deadline is None


def test_a_reply_that_failed_unheard_leaves_the_floor_free():
    machine = thinking()
    assert play(machine, (5.0, ReplyDone(1))) == []
    assert machine.floor is Floor.IDLE


# ------------------------------------------------------------------- what a voice may be

ECHO = Surroundings(echo=0.9)
NO_ECHO = Surroundings(echo=0.3)
FAR = Surroundings(below_usual_db=20)


def over_a_reply(*, pace: float | None = 0.6, rules: TurnRules = WORDY) -> TurnMachine:
    """Reply 1 is audible since 3.0; words come ``pace`` after speech begins, or never did."""
    machine = TurnMachine(rules)
    words = [] if pace is None else [(pace, PartialHeard("Hello you"))]
    play(machine, started(0.0), *words, stopped(1.0), until=2.0)
    play(machine, (3.0, ReplyAudible(1)))
    assert machine.floor is Floor.AGENT
    return machine


def heard(at: float, text: str) -> tuple[float, Event]:
    return at, PartialHeard(text)


def test_words_interrupt_as_soon_as_they_are_known():
    done = play(over_a_reply(), started(4.0), heard(4.6, "but what about"), stopped(5.0), until=9)
    assert done == [
        (4.0, Duck(True)),
        (4.0, OpenUtterance(2)),
        (4.6, Interrupt(1, "barge_in", "words", 0.6)),
        (4.6, Duck(False)),
        (6.0, CommitTurn(2, 2, "endpointing")),
    ]


def test_a_word_of_a_cough_whose_end_is_still_bridged_does_not_interrupt():
    machine = over_a_reply()
    play(machine, started(4.0))
    assert machine.handle(PartialHeard("Hello", voiced_until_seconds=4.15), 4.35) == []
    assert machine.handle(PartialHeard("Hello", voiced_until_seconds=4.3), 4.45) == [
        Interrupt(1, "barge_in", "words", 0.45), Duck(False),
    ]  # fmt: skip


def test_a_backchannel_lets_the_reply_go_on_when_it_ends():
    machine = over_a_reply()
    done = play(machine, started(4.0), heard(4.6, "Mhm."), stopped(4.7), until=9)
    assert done[2:] == [(4.7, Duck(False)), (4.7, DiscardUtterance(2, "backchannel"))]
    assert machine.floor is Floor.AGENT and machine.next_deadline is None


def test_the_words_of_a_short_stop_come_after_its_end():
    machine = over_a_reply()
    done = play(machine, started(4.0), (4.6, SpeechStopped(4.4)), heard(4.7, "Stop."), until=9)
    assert done[2:] == [
        (4.7, Interrupt(1, "barge_in", "stop_word", 0.7)),
        (4.7, Duck(False)),
        (5.4, CommitTurn(2, 2, "endpointing")),
    ]


def test_a_noise_whose_words_do_not_come_is_forgotten():
    machine = over_a_reply()
    done = play(machine, started(4.0), (4.6, SpeechStopped(4.4)), until=9)
    assert done[2:] == [(4.85, Duck(False)), (4.85, DiscardUtterance(2, "false_alarm"))]


def test_where_words_never_came_the_length_decides():
    machine = over_a_reply(pace=None)
    done = play(machine, started(4.0), until=6)
    assert done[2:] == [(4.75, Interrupt(1, "barge_in", "duration", 0.75)), (4.75, Duck(False))]


def test_where_words_never_came_short_speech_is_answered_after_the_reply():
    machine = over_a_reply(pace=None)
    done = play(
        machine, started(4.0), (4.6, SpeechStopped(4.4)), (8.0, ReplyDone(1)), until=9
    )  # fmt: skip
    assert done[2:] == [
        (5.0, Duck(False)),
        (5.0, KeepUtterance(2)),
        (8.0, CommitTurn(2, 2, "endpointing")),
    ]


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("Stop.", [Interrupt(1, "barge_in", "stop_word", 2.0)]),
        ("Mhm.", [DiscardUtterance(2, "backchannel")]),
    ],
)
def test_words_that_come_very_late_count_all_the_same(text, then):
    machine = over_a_reply(pace=None)
    done = play(machine, started(4.0), (4.6, SpeechStopped(4.4)), heard(6.0, text))
    assert [action for at, action in done if at == 6.0] == then


def test_speech_after_something_unclear_does_not_lose_it():
    machine = over_a_reply(pace=None)
    done = play(machine, started(4.0), (4.6, SpeechStopped(4.4)), started(6.0), stopped(6.1))
    assert done[4:] == [(6.0, Duck(True)), (6.1, Duck(False)), (6.1, KeepUtterance(2))]
    assert machine.floor is Floor.OVERLAP and machine.next_deadline is None


def test_a_call_whose_words_stop_coming_goes_by_length_again():
    machine = over_a_reply()
    play(machine, (4.0, ReplyDone(1)), started(5.0), stopped(7.0), until=8.0)
    done = play(machine, (9.0, ReplyAudible(2)), started(10.0), until=12)
    assert done[2] == (10.75, Interrupt(2, "barge_in", "duration", 0.75))


def test_humming_holds_the_reply_up_for_a_while_only_and_may_still_become_words():
    machine = over_a_reply()
    done = play(machine, started(4.0), heard(8.0, "Anyway, listen"), until=8)
    assert done[2:] == [
        (6.0, Duck(False)),
        (8.0, Interrupt(1, "barge_in", "words", 4.0)),
    ]
    assert machine.floor is Floor.USER


def test_humming_that_ends_is_kept_since_it_was_too_long_for_a_cough():
    machine = over_a_reply()
    done = play(machine, started(4.0), stopped(7.0), until=8)
    assert done[2:] == [(6.0, Duck(False)), (7.0, KeepUtterance(2))]
    assert machine.floor is Floor.OVERLAP and machine.next_deadline is None


def test_who_pauses_before_their_words_are_known_goes_on_in_the_same_overlap():
    machine = over_a_reply()
    done = play(
        machine, started(4.0), (4.5, SpeechStopped(4.3)), started(4.6), heard(4.9, "so then"),
    )  # fmt: skip
    assert done[2] == (4.9, Interrupt(1, "barge_in", "words", 0.9))
    assert machine.floor is Floor.USER


def test_a_reply_that_ends_while_words_are_waited_for_leaves_the_turn_to_endpointing():
    machine = over_a_reply()
    done = play(machine, started(4.0), (4.6, SpeechStopped(4.4)), (4.7, ReplyDone(1)), until=9)
    assert done[2:] == [(4.7, Duck(False)), (5.4, CommitTurn(2, 2, "endpointing"))]


def test_an_answer_to_a_question_is_no_backchannel():
    machine = over_a_reply()
    asking = Surroundings(reply_asks=True)
    play(machine, (4.0, SpeechStarted(4.0, asking)), heard(4.6, "Yes."))
    done = play(machine, stopped(4.7), (5.2, ReplyDone(1)), until=9)
    assert done == [
        (4.7, Duck(False)),
        (4.7, KeepUtterance(2)),
        (5.7, CommitTurn(2, 2, "endpointing")),
    ]


def test_somebody_in_the_background_does_not_hold_the_reply_up():
    machine = over_a_reply()
    play(machine, started(4.0))
    far = DeadlineReached(voiced_until_seconds=4.1, surroundings=FAR)
    assert machine.handle(far, 4.15) == [Duck(False)]
    assert machine.handle(PartialHeard("and now the weather"), 4.6) == []
    near = DeadlineReached(voiced_until_seconds=4.6, surroundings=Surroundings())
    assert machine.handle(near, 4.8)[0] == Interrupt(1, "barge_in", "words", 0.8)


def test_what_somebody_in_the_background_said_is_forgotten():
    machine = over_a_reply()
    play(machine, (4.0, SpeechStarted(4.0, FAR)), heard(4.6, "and now the weather"))
    assert play(machine, stopped(7.0)) == [(7.0, DiscardUtterance(2, "background"))]
    assert machine.floor is Floor.AGENT


def test_words_before_the_overlap_do_not_count():
    machine = over_a_reply(rules=replace(WORDY, interrupts=False))
    play(machine, started(4.0), heard(4.6, "I was going to say"), stopped(5.0))
    machine.rules = WORDY
    done = play(machine, started(6.0), heard(6.4, "I was going to say mhm"), stopped(6.5))
    assert done == [(6.0, Duck(True)), (6.5, Duck(False)), (6.5, KeepUtterance(2))]
    play(machine, started(7.0))
    done = play(machine, heard(7.5, "I was going to say mhm that it is"))
    assert done[0] == (7.5, Interrupt(1, "barge_in", "words", 0.5))


def echoing() -> TurnMachine:
    """Our own voice comes back since 4.0."""
    machine = over_a_reply()
    assert play(machine, (4.0, SpeechStarted(4.0, ECHO))) == [(4.0, OpenUtterance(2))]
    assert machine.floor is Floor.OVERLAP and machine.hears_echo
    return machine


def test_an_echo_neither_ducks_nor_interrupts():
    machine = echoing()
    done = play(machine, heard(4.6, "stop as I was saying"), stopped(7.0), until=9)
    assert done == [(7.0, DiscardUtterance(2, "echo"))]
    assert machine.floor is Floor.AGENT and not machine.hears_echo


def test_the_caller_who_speaks_into_an_echo_has_an_utterance_of_their_own():
    machine = echoing()
    play(machine, heard(4.6, "as I was saying"))
    look = DeadlineReached(voiced_until_seconds=5.0, surroundings=NO_ECHO)
    assert machine.handle(look, 5.0) == [
        Duck(True), DiscardUtterance(2, "echo"), OpenUtterance(3),
    ]  # fmt: skip
    assert not machine.hears_echo
    cut = machine.handle(PartialHeard("wait"), 5.5)
    assert cut[0] == Interrupt(1, "barge_in", "stop_word", 0.6)


def test_an_echo_that_is_noticed_late_lets_the_reply_go_on():
    machine = over_a_reply()
    play(machine, started(4.0))
    look = DeadlineReached(voiced_until_seconds=4.1, surroundings=ECHO)
    assert machine.handle(look, 4.15) == [Duck(False)]
    assert machine.hears_echo


def test_the_end_of_an_echo_is_no_turn():
    machine = echoing()
    done = play(machine, (5.0, ReplyDone(1)), stopped(5.3), until=9)
    assert done == [(5.0, DiscardUtterance(2, "echo"))]
    assert machine.floor is Floor.IDLE and not machine.hears_echo


def test_an_echo_that_begins_when_the_reply_has_ended_is_no_turn_either():
    machine = over_a_reply()
    play(machine, (4.0, ReplyDone(1)))
    done = play(machine, (4.3, SpeechStarted(4.2, ECHO)), stopped(4.6), until=9)
    assert done == [] and machine.floor is Floor.IDLE and not machine.hears_echo
    done = play(machine, (9.3, SpeechStarted(9.2, ECHO)), until=10)
    assert done == [(9.9, OpenUtterance(2))] and machine.floor is Floor.USER


def test_a_voice_that_outlasts_the_echo_is_the_callers():
    machine = echoing()
    done = play(machine, (5.0, ReplyDone(1)), stopped(7.0), until=9)
    assert done == [
        (5.0, DiscardUtterance(2, "echo")),
        (5.6, OpenUtterance(3)),
        (8.0, CommitTurn(3, 2, "endpointing")),
    ]


def test_an_echo_that_ends_with_a_pause_of_ours_is_still_an_echo():
    machine = echoing()
    look = DeadlineReached(voiced_until_seconds=4.4, surroundings=ECHO)
    machine.handle(look, 4.5)
    assert machine.handle(SpeechStopped(4.5), 4.7) == [DiscardUtterance(2, "echo")]


def test_a_policy_of_never_is_one_without_interruptions():
    never = replace(WORDY, barge_in=BargeInRules(policy="never"))
    machine = over_a_reply(rules=never)
    done = play(
        machine, started(4.0), heard(4.6, "stop"), stopped(5.0), (8.0, ReplyDone(1)), until=9
    )
    assert done == [(4.0, OpenUtterance(2)), (8.0, CommitTurn(2, 2, "endpointing"))]


# ------------------------------------------------------------------- who says nothing

PATIENT = replace(WORDY, idle_seconds=5.0, idle_prompts=2)


def test_a_caller_who_says_nothing_is_spoken_to_again_but_not_for_ever():
    machine = over_a_reply(rules=PATIENT)
    done = play(
        machine,
        (4.0, ReplyDone(1)), (9.5, ReplyAudible(2)), (10.0, ReplyDone(2)), (16.0, ReplyDone(3)),
        until=60,
    )  # fmt: skip
    assert done == [
        (9.0, StartReply(2, because_idle=True)), (15.0, StartReply(3, because_idle=True)),
    ]  # fmt: skip
    assert machine.floor is Floor.IDLE and machine.next_deadline is None


def test_a_turn_of_the_caller_starts_the_count_anew():
    machine = over_a_reply(rules=PATIENT)
    play(machine, (4.0, ReplyDone(1)), (10.0, ReplyDone(2)), (16.0, ReplyDone(3)))
    done = play(machine, started(17.0), stopped(18.0), (20.0, ReplyDone(4)), until=26)
    assert done[-1] == (25.0, StartReply(5, because_idle=True))


def test_a_caller_who_speaks_is_not_spoken_to():
    machine = over_a_reply(rules=PATIENT)
    done = play(machine, (4.0, ReplyDone(1)), started(8.9), until=20)
    assert done == [(8.9, OpenUtterance(2))]


@pytest.mark.parametrize("changes", [{"manual": True}, {"idle_seconds": 0.0}])
def test_rules_that_change_meanwhile_hold(changes):
    machine = over_a_reply(rules=PATIENT)
    play(machine, (4.0, ReplyDone(1)))
    machine.rules = replace(PATIENT, **changes)
    assert machine.handle(DeadlineReached(), 9.0) == [] and machine.next_deadline is None


def test_the_end_of_an_echo_begins_the_silence():
    machine = over_a_reply(rules=PATIENT)
    play(machine, (4.0, SpeechStarted(4.0, ECHO)))
    done = play(machine, (5.0, ReplyDone(1)), stopped(5.3), until=11)
    assert done[1:] == [(10.3, StartReply(2, because_idle=True))]


# ------------------------------------------------------------------- without interruptions


def test_speech_over_a_polite_reply_is_kept_and_answered_after_it():
    machine = speaking_agent(POLITE)
    done = play(machine, started(4.0), stopped(5.0), (8.0, ReplyDone(1)), until=9)
    assert done == [(4.0, OpenUtterance(2)), (8.0, CommitTurn(2, 2, "endpointing"))]
    assert machine.floor is Floor.THINKING


def test_a_caller_still_speaking_when_a_polite_reply_ends_has_the_floor():
    machine = speaking_agent(POLITE)
    play(machine, started(4.0), stopped(5.0), started(6.0), (8.0, ReplyDone(1)))
    assert (machine.floor, machine.utterance) == (Floor.USER, 2)


def test_a_polite_reply_is_not_cut_before_it_was_heard_either():
    machine = thinking(POLITE)
    assert play(machine, started(2.5), (3.0, ReplyAudible(1))) == [(2.5, OpenUtterance(2))]
    assert machine.floor is Floor.OVERLAP and machine.next_deadline is None


def test_forbidding_interruptions_during_an_overlap_saves_the_reply():
    machine = overlapping()
    machine.rules = POLITE
    assert machine.handle(DeadlineReached(), 4.3) == [Duck(False)]
    assert machine.floor is Floor.OVERLAP and machine.next_deadline is None
    assert machine.handle(SpeechStopped(5.0), 5.2) == []


# ------------------------------------------------------------------------ the client's wishes


def test_a_manual_commit_ends_the_open_utterance():
    machine = TurnMachine(RULES)
    play(machine, started(0.0), stopped(1.0))
    assert machine.handle(ManualCommit(), 1.1) == [CommitTurn(1, None, "manual")]
    assert machine.floor is Floor.IDLE and machine.next_deadline is None


def test_what_is_said_after_a_manual_commit_is_the_next_utterance():
    machine = TurnMachine(RULES)
    done = play(machine, started(0.0), (1.1, ManualCommit()), stopped(2.0), until=9)
    assert done == [
        (0.0, OpenUtterance(1)),
        (1.1, CommitTurn(1, None, "manual")),
        (1.1, OpenUtterance(2)),
        (3.0, CommitTurn(2, 1, "endpointing")),
    ]


def test_speech_that_goes_on_after_a_manual_commit_over_the_reply_is_still_a_barge_in():
    machine = overlapping()
    done = play(machine, (4.1, ManualCommit()), until=4.5)
    assert done == [
        (4.1, CommitTurn(2, None, "manual")),
        (4.1, OpenUtterance(3)),
        (4.3, CUT),
        (4.3, Duck(False)),
    ]
    assert (machine.floor, machine.utterance) == (Floor.USER, 3)


def test_a_barge_in_counts_the_speech_from_before_a_manual_commit():
    machine = overlapping()
    play(machine, (4.1, ManualCommit()))
    confirmed = machine.handle(DeadlineReached(voiced_until_seconds=4.3), 4.3)
    assert confirmed == [CUT, Duck(False)]


def test_a_cough_that_was_committed_lets_the_reply_go_on():
    machine = overlapping()
    done = play(machine, (4.1, ManualCommit()), stopped(4.2), until=9)
    assert done[2:] == [(4.2, Duck(False)), (4.2, DiscardUtterance(3))]
    assert machine.floor is Floor.AGENT


@pytest.mark.parametrize("heard", [False, True])
def test_a_manual_commit_of_speech_that_ended_over_a_polite_reply_lets_it_go_on(heard):
    machine = speaking_agent(POLITE) if heard else thinking(POLITE)
    play(machine, started(4.0), stopped(5.0))
    assert machine.handle(ManualCommit(), 5.1) == [CommitTurn(2, None, "manual")]
    assert machine.floor is (Floor.AGENT if heard else Floor.THINKING)


@pytest.mark.parametrize("make", [TurnMachine, thinking, speaking_agent])
def test_a_manual_commit_without_speech_is_a_turn_of_its_own(make):
    machine = make()
    floor, newest = machine.floor, machine.utterance
    assert machine.handle(ManualCommit(), 5.0) == [CommitTurn(newest + 1, None, "manual")]
    assert machine.floor is floor


def test_a_requested_reply_starts():
    machine = TurnMachine(RULES)
    assert machine.handle(ReplyRequested(), 0.0) == [StartReply(1)]
    assert machine.floor is Floor.THINKING and machine.reply_active


def test_a_requested_reply_commits_what_was_said():
    machine = TurnMachine(RULES)
    play(machine, started(0.0), stopped(1.0))
    actions = machine.handle(ReplyRequested(), 1.1)
    assert actions == [CommitTurn(1, None, "manual"), StartReply(1)]
    assert machine.floor is Floor.THINKING


def requested_in_speech() -> TurnMachine:
    """The caller speaks since 0.0 and typed at 1.0: utterance 2 is open, reply 1 is prepared."""
    machine = TurnMachine(RULES)
    done = play(machine, started(0.0), (1.0, ReplyRequested()))
    assert done[1:] == [
        (1.0, CommitTurn(1, None, "manual")), (1.0, OpenUtterance(2)), (1.0, StartReply(1)),
    ]  # fmt: skip
    assert machine.floor is Floor.OVERLAP and machine.next_deadline is None
    return machine


def test_speech_does_not_interrupt_the_reply_that_was_requested_during_it():
    machine = requested_in_speech()
    done = play(machine, (2.0, ReplyAudible(1)), stopped(5.0), (8.0, ReplyDone(1)), until=9)
    assert done == [(8.0, CommitTurn(2, 2, "endpointing"))]


def test_a_caller_still_speaking_when_the_requested_reply_ends_has_the_floor():
    machine = requested_in_speech()
    done = play(machine, (2.0, ReplyAudible(1)), (8.0, ReplyDone(1)), stopped(9.0), until=11)
    assert done == [(10.0, CommitTurn(2, 2, "endpointing"))]


def test_new_speech_over_the_requested_reply_is_a_barge_in_with_all_that_was_said():
    machine = requested_in_speech()
    done = play(machine, (2.0, ReplyAudible(1)), stopped(3.0), started(5.0), stopped(6.0), until=9)
    assert done == [
        (5.0, Duck(True)),
        (5.3, CUT),
        (5.3, Duck(False)),
        (7.0, CommitTurn(2, 2, "endpointing")),
    ]


def test_a_barge_in_over_the_requested_reply_does_not_count_the_speech_before():
    machine = requested_in_speech()
    play(machine, (2.0, ReplyAudible(1)), stopped(3.0), started(5.0))
    assert machine.handle(DeadlineReached(voiced_until_seconds=5.1), 5.3) == []
    assert machine.next_deadline == pytest.approx(5.45)


def test_a_cough_over_the_requested_reply_does_not_discard_what_was_said_before():
    machine = requested_in_speech()
    done = play(
        machine, (2.0, ReplyAudible(1)), stopped(3.0), started(5.0), stopped(5.2),
        (8.0, ReplyDone(1)), until=9,
    )  # fmt: skip
    assert done == [
        (5.0, Duck(True)), (5.2, Duck(False)), (5.2, KeepUtterance(2)),
        (8.0, CommitTurn(2, 2, "endpointing")),
    ]  # fmt: skip


def test_a_cough_over_the_next_reply_is_discarded_again():
    machine = requested_in_speech()
    play(machine, (2.0, ReplyAudible(1)), stopped(3.0), (5.0, ReplyDone(1)), (6.0, ReplyAudible(2)))
    assert (machine.floor, machine.reply) == (Floor.AGENT, 2)
    done = play(machine, started(7.0), stopped(7.2), until=9)
    assert done[2:] == [(7.2, Duck(False)), (7.2, DiscardUtterance(3))]


def test_new_speech_before_the_requested_reply_was_heard_takes_the_turn_back():
    machine = requested_in_speech()
    done = play(machine, stopped(1.2), started(1.8), stopped(3.0), until=9)
    assert done == [(1.8, Interrupt(1, "resumed")), (4.0, CommitTurn(2, 2, "endpointing"))]


def test_a_requested_reply_that_is_cancelled_under_the_caller_leaves_them_the_floor():
    machine = requested_in_speech()
    assert machine.handle(CancelRequested(), 1.5) == [Interrupt(1, "cancelled")]
    assert (machine.floor, machine.utterance) == (Floor.USER, 2)


@pytest.mark.parametrize("make", [thinking, speaking_agent, overlapping])
def test_there_is_only_one_reply_at_a_time(make):
    machine = make()
    assert machine.handle(ReplyRequested(), 4.1) == []
    assert machine.reply == 1


@pytest.mark.parametrize("make", [thinking, speaking_agent])
def test_a_cancelled_reply_leaves_the_floor_free(make):
    machine = make()
    assert machine.handle(CancelRequested(), 4.0) == [Interrupt(1, "cancelled")]
    assert machine.floor is Floor.IDLE
    assert machine.handle(CancelRequested(), 4.1) == []


def test_cancelling_in_an_overlap_gives_the_caller_the_floor():
    machine = overlapping()
    actions = machine.handle(CancelRequested(), 4.1)
    assert actions == [Interrupt(1, "cancelled"), Duck(False)]
    assert machine.floor is Floor.USER


# --------------------------------------------------------------------------------- the table

EVENTS: list[Event] = [
    SpeechStarted(9.0), SpeechStopped(9.0), PartialHeard("x"), TurnJudged(9.0, 0.5),
    ReplyAudible(1), ReplyDone(1), DeadlineReached(), ManualCommit(), ReplyRequested(),
    CancelRequested(),
]  # fmt: skip


def in_state(floor: Floor) -> TurnMachine:
    makers = {
        Floor.IDLE: TurnMachine, Floor.THINKING: thinking, Floor.AGENT: speaking_agent,
        Floor.OVERLAP: overlapping,
    }  # fmt: skip
    if floor in makers:
        return makers[floor]()
    machine = TurnMachine(RULES)
    play(machine, started(0.0), *([stopped(1.0)] if floor is Floor.PAUSE else []))
    return machine


def test_every_kind_of_event_is_listed_here():
    assert {type(event) for event in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize(
    ("floor", "event"),
    list(itertools.product(Floor, EVENTS)),
    ids=lambda v: getattr(v, "name", None),
)
def test_every_event_may_come_in_every_state(floor, event):
    machine = in_state(floor)
    assert machine.floor is floor
    assert isinstance(machine.handle(event, 9.0), list)


@pytest.mark.parametrize("floor", list(Floor))
def test_something_that_is_no_event_changes_nothing(floor):
    machine = in_state(floor)
    before = repr(machine)
    with pytest.raises(StateError):
        machine.handle(Duck(True), 9.0)
    assert repr(machine) == before


# ------------------------------------------------------------------------------ random events


def random_event(
    random: np.random.Generator, machine: TurnMachine, now: float, stopped_at: float
) -> Event:
    reply = int(random.integers(0, machine.reply + 2))
    voiced = None if random.random() < 0.5 else now - random.random() * 0.5
    around = [Surroundings(), NO_ECHO, ECHO, FAR, Surroundings(reply_asks=True)]
    sound = around[int(random.integers(len(around)))]
    text = ["", "Well, yes.", "mhm", "stop", "mhm what", "yeah okay right"][random.integers(6)]
    speech = [SpeechStarted(now - 0.1, sound), SpeechStopped(now - 0.2), PartialHeard(text)]
    judged = TurnJudged(stopped_at, float(random.random()))
    replies = [ReplyAudible(reply), ReplyAudible(machine.reply), ReplyDone(reply)]
    look = DeadlineReached(voiced, None if random.random() < 0.3 else sound)
    wishes = [ManualCommit(), ReplyRequested(), CancelRequested(), look]
    weights = np.array([5, 5, 2, 1, 3, 1, 0.3, 1, 0.3, 4, 1])
    events = [*speech, *replies, *wishes, judged]
    return events[int(random.choice(len(events), p=weights / weights.sum()))]


class Watch:
    """Checks, after every event, what must always hold."""

    def __init__(self, machine: TurnMachine) -> None:
        self.machine = machine
        self.active: int | None = None
        self.newest_reply = 0
        self.newest_utterance = 0
        self.open: int | None = None
        self.ducked = False
        self.speaks = False
        self.spared: int | None = None
        self.committed: tuple[int, int | None] = (0, None)
        """The newest commit: utterance, reply."""
        self.owed = False
        """A reply was taken back, and no other was begun."""
        self.took_over = False
        """The client, or the rules, decide whether there is one."""
        self.echoed = False
        """The speech that goes on was taken for an echo."""

    def after(self, event: Event, actions: list[Action]) -> None:
        spoke = self.speaks
        if isinstance(event, SpeechStarted | SpeechStopped):
            self.speaks = isinstance(event, SpeechStarted)
            self.echoed = False
        self.echoed = self.echoed or self.machine.hears_echo
        if isinstance(event, ReplyDone) and event.reply == self.active:
            self.active = None
        self.took_over |= isinstance(event, ManualCommit)
        self.took_over |= self.machine.rules.manual or not self.machine.rules.creates_reply
        for action in actions:
            self.take(action)
        self.took_over &= self.owed
        if isinstance(event, SpeechStopped) and spoke and not self.ducked and not actions:
            self.spared = self.open
        self.check(self.machine)

    def check(self, machine: TurnMachine) -> None:
        assert (self.active is not None) == machine.reply_active
        assert self.active in (None, machine.reply)
        assert not self.ducked or machine.floor is Floor.OVERLAP
        if not self.echoed:
            assert not self.speaks or machine.floor in (Floor.USER, Floor.OVERLAP)
        assert self.speaks or machine.floor is not Floor.USER
        if machine.floor in (Floor.IDLE, Floor.THINKING):  # never a silent turn
            assert not self.owed or self.took_over
        has_open = machine.floor in (Floor.USER, Floor.PAUSE, Floor.OVERLAP)
        assert (self.open is not None) == has_open
        if machine.floor in (Floor.USER, Floor.PAUSE) or self.ducked:
            assert machine.next_deadline is not None
        elif machine.floor in (Floor.THINKING, Floor.AGENT):
            assert machine.next_deadline is None
        elif machine.next_deadline is not None and machine.floor is Floor.OVERLAP:
            assert self.speaks  # a voice that is nothing so far is weighed

    def take(self, action: Action) -> None:
        match action:
            case OpenUtterance(utterance, continues):
                assert self.open is None and utterance == self.newest_utterance + 1
                # Only what is about to lose the reply that it was committed for.
                assert continues is None or (continues, self.active) == self.committed
                self.open = self.newest_utterance = utterance
            case CommitTurn(utterance, reply, _):
                if self.open is None:
                    assert utterance == self.newest_utterance + 1
                    self.newest_utterance = utterance
                else:
                    assert utterance == self.open
                self.open = None
                self.committed = utterance, reply
                if reply is not None:
                    assert not self.machine.rules.manual
                    self.start(reply)
            case DiscardUtterance(utterance):
                assert utterance == self.open and utterance != self.spared
                self.open = None
            case KeepUtterance(utterance):
                assert utterance == self.open and self.active is not None
            case StartReply(reply, because_idle):
                self.start(reply)
                assert not because_idle or not self.speaks or self.echoed
            case Interrupt(reply, reason):
                assert reply == self.active
                self.active = None
                self.owed |= reason == "resumed"
            case Duck(on):
                assert on is not self.ducked
                self.ducked = on

    def start(self, reply: int) -> None:
        assert self.active is None and reply == self.newest_reply + 1
        self.active = self.newest_reply = reply
        self.owed = False


@pytest.mark.parametrize("seed", range(60))
def test_what_must_always_hold(seed):
    random = np.random.default_rng(seed)
    by_words = replace(WORDY, min_pause_seconds=0.5, max_pause_seconds=2.0)
    machine, twin = TurnMachine(by_words), TurnMachine(by_words)
    watch, now, stopped_at, floors = Watch(machine), 0.0, 0.0, set()
    for _ in range(1000):
        now += float(random.random() * random.choice([0.05, 1.0, 20.0], p=[0.6, 0.35, 0.05]))
        if random.random() < 0.02:
            rules = replace(
                BY_WORDS,
                interrupts=bool(random.random() < 0.7),
                creates_reply=bool(random.random() < 0.8),
                manual=bool(random.random() < 0.1),
                idle_seconds=float(random.choice([0.0, 3.0])),
                barge_in=replace(
                    RULES.barge_in,
                    policy=["default", "words", "any", "never"][
                        random.choice(4, p=[0.6, 0.1, 0.2, 0.1])
                    ],
                ),
            )
            machine.rules = twin.rules = rules
        event = random_event(random, machine, now, stopped_at)
        if isinstance(event, SpeechStopped):
            stopped_at = event.at_seconds
        actions = machine.handle(event, now)
        assert twin.handle(event, now) == actions and repr(twin) == repr(machine)
        watch.after(event, actions)
        floors.add(machine.floor)
    assert floors == set(Floor)
