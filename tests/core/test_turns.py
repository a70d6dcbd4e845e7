"""The turn machine: stories, the whole table, and invariants under random events."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

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
    min_pause_seconds=1.0, max_pause_seconds=1.0, barge_in_seconds=0.3, max_utterance_seconds=30.0
)
BY_WORDS = replace(RULES, min_pause_seconds=0.5, max_pause_seconds=2.0)
POLITE = replace(RULES, interrupts=False)

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
        (4.3, Interrupt(1, "barge_in")),
        (4.3, Duck(False)),
        (6.0, CommitTurn(2, 2, "endpointing")),
    ]


def test_speech_noticed_late_is_a_barge_in_at_once():
    machine = speaking_agent()
    machine.handle(SpeechStarted(4.0), 4.5)
    assert machine.next_deadline == pytest.approx(4.3)
    assert machine.handle(DeadlineReached(), 4.5)[0] == Interrupt(1, "barge_in")


def test_a_cough_whose_end_the_gate_still_bridges_is_no_barge_in():
    machine = overlapping()
    assert machine.handle(DeadlineReached(voiced_until_seconds=4.13), 4.3) == []
    assert machine.next_deadline == pytest.approx(4.47)
    done = machine.handle(SpeechStopped(4.13), 4.35)
    assert done == [Duck(False), DiscardUtterance(2)]


def test_speech_that_is_known_to_last_is_a_barge_in():
    machine = overlapping()
    assert machine.handle(DeadlineReached(voiced_until_seconds=4.29), 4.3) == []
    assert machine.next_deadline == pytest.approx(4.32)
    confirmed = machine.handle(DeadlineReached(voiced_until_seconds=4.31), 4.32)
    assert confirmed == [Interrupt(1, "barge_in"), Duck(False)]


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
        (4.3, Interrupt(1, "barge_in")),
        (4.3, Duck(False)),
    ]
    assert (machine.floor, machine.utterance) == (Floor.USER, 3)


def test_a_barge_in_counts_the_speech_from_before_a_manual_commit():
    machine = overlapping()
    play(machine, (4.1, ManualCommit()))
    confirmed = machine.handle(DeadlineReached(voiced_until_seconds=4.3), 4.3)
    assert confirmed == [Interrupt(1, "barge_in"), Duck(False)]


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
        (5.3, Interrupt(1, "barge_in")),
        (5.3, Duck(False)),
        (7.0, CommitTurn(2, 2, "endpointing")),
    ]


def test_a_barge_in_over_the_requested_reply_does_not_count_the_speech_before():
    machine = requested_in_speech()
    play(machine, (2.0, ReplyAudible(1)), stopped(3.0), started(5.0))
    assert machine.handle(DeadlineReached(voiced_until_seconds=5.1), 5.3) == []
    assert machine.next_deadline == pytest.approx(5.5)


def test_a_cough_over_the_requested_reply_does_not_discard_what_was_said_before():
    machine = requested_in_speech()
    done = play(
        machine, (2.0, ReplyAudible(1)), stopped(3.0), started(5.0), stopped(5.2),
        (8.0, ReplyDone(1)), until=9,
    )  # fmt: skip
    assert done == [
        (5.0, Duck(True)), (5.2, Duck(False)), (8.0, CommitTurn(2, 2, "endpointing")),
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
    speech = [SpeechStarted(now - 0.1), SpeechStopped(now - 0.2), PartialHeard("Well, yes.")]
    judged = TurnJudged(stopped_at, float(random.random()))
    replies = [ReplyAudible(reply), ReplyAudible(machine.reply), ReplyDone(reply)]
    wishes = [ManualCommit(), ReplyRequested(), CancelRequested(), DeadlineReached(voiced)]
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

    def after(self, event: Event, actions: list[Action]) -> None:
        if isinstance(event, SpeechStarted | SpeechStopped):
            self.speaks = isinstance(event, SpeechStarted)
        if isinstance(event, ReplyDone) and event.reply == self.active:
            self.active = None
        self.took_over |= isinstance(event, ManualCommit)
        self.took_over |= self.machine.rules.manual or not self.machine.rules.creates_reply
        for action in actions:
            self.take(action)
        self.took_over &= self.owed
        if isinstance(event, SpeechStopped):
            self.spared = self.open
        self.check(self.machine)

    def check(self, machine: TurnMachine) -> None:
        assert (self.active is not None) == machine.reply_active
        assert self.active in (None, machine.reply)
        assert not self.ducked or (machine.floor is Floor.OVERLAP and self.speaks)
        assert not self.speaks or machine.floor in (Floor.USER, Floor.OVERLAP)
        assert self.speaks or machine.floor is not Floor.USER
        if machine.floor in (Floor.IDLE, Floor.THINKING):  # never a silent turn
            assert not self.owed or self.took_over
        has_open = machine.floor in (Floor.USER, Floor.PAUSE, Floor.OVERLAP)
        assert (self.open is not None) == has_open
        if machine.floor in (Floor.USER, Floor.PAUSE) or self.ducked:
            assert machine.next_deadline is not None
        else:
            assert machine.next_deadline is None

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
            case StartReply(reply):
                self.start(reply)
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
    machine, twin = TurnMachine(BY_WORDS), TurnMachine(BY_WORDS)
    watch, now, stopped_at, floors = Watch(machine), 0.0, 0.0, set()
    for _ in range(1000):
        now += float(random.random() * random.choice([0.05, 1.0, 20.0], p=[0.6, 0.35, 0.05]))
        if random.random() < 0.02:
            rules = replace(
                BY_WORDS,
                interrupts=bool(random.random() < 0.7),
                creates_reply=bool(random.random() < 0.8),
                manual=bool(random.random() < 0.1),
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
