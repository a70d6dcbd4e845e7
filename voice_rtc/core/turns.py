"""Who has the floor: the turn taking of one call, as a state machine without a clock.

Two parties share one channel and nobody says "over". The machine is told when the caller's speech
starts and stops, what was understood so far, and when a reply becomes audible or is done; it
answers with what to do about it. It owns two kinds of ids that only rise: *utterances* (what the
caller says, opened here) and *replies* (what the agent says, at most one active at a time).

    IDLE      nobody speaks, nothing is being prepared
    USER      the caller speaks; an utterance is open
    PAUSE     the caller stopped; the utterance is open until endpointing says that the turn is over
    THINKING  a reply is being prepared, nothing of it was heard
    AGENT     the reply is audible
    OVERLAP   the caller spoke although a reply is active; a second utterance is open

What the caller's voice, time and the reply do (``=`` stays in the state and does something, ``-``
nothing):

    state     speech starts    speech stops    deadline        reply audible  reply done
    --------  ---------------  --------------  --------------  -------------  ------------
    IDLE      USER  open       -               THINKING        -              -
                                               start
    USER      -                PAUSE           USER  commit+   -              -
                                                     open
    PAUSE     USER             -               THINKING        -              -
                                                     commit
    THINKING  USER  open       -               -               AGENT          IDLE
                    (reopening)
                    +interrupt
    AGENT     OVERLAP  duck    -               -               -              IDLE
                    +open
    OVERLAP   =  (below)       AGENT  unduck   USER interrupt  -              USER  unduck
                                      +discard      +unduck                   echo: IDLE
                               or =  (below)   or as left, or =                     discard

What the client does:

    state     wants a commit              wants a reply                wants no reply
    --------  --------------------------  ---------------------------  --------------
    IDLE      =         commit            THINKING  start              -
    USER      =         commit+open       OVERLAP   commit+open+start  -
    PAUSE     IDLE      commit            THINKING  commit+start       -
    THINKING  =         commit            -                            IDLE  interrupt
    AGENT     =         commit            -                            IDLE  interrupt
    OVERLAP   speaking:  =  commit+open   -                            USER  interrupt
              stopped:   AGENT  commit                                       +unduck
                                +unduck

Words that come in OVERLAP do what a deadline does. Where the table leaves OVERLAP for AGENT or
USER, a reply that was not heard yet is THINKING and a caller who had stopped is in PAUSE.

**Nothing said is lost.** As long as the caller speaks, an utterance is open: whatever commits it
in mid-speech opens the next one at once.

**Deadlines are data.** `TurnMachine.next_deadline` is the moment at which the caller of `handle`
must deliver DeadlineReached; it changes with every event. In USER it is the longest utterance, in
PAUSE the end of the turn (dated from the last speech sample, so that slow detection does not
lengthen the pause), in OVERLAP the next moment at which the caller's voice is weighed again.

**A voice over the reply** is weighed when it begins and ends, when its words come, and at
deadlines: `core.barge_in.judge` says what it is, this machine what follows. While that is undecided
the reply stays ducked, also for a while after the voice ended, since its words come late. An
interruption ends the reply: USER, or PAUSE when the voice had ended. A voice that is nothing (a
cough, a backchannel, somebody in the background, our own echo) lets the reply go on, unducked; as
long as it lasts it is weighed again and again, and may yet become an interruption. When it has
ended its utterance is discarded, or, where it may have been something, kept as without
interruptions (below); words that come only then are weighed all the same.

**An echo** is not the caller: it does not duck. When the caller speaks into it, what was opened for
the echo is discarded and an utterance of their own is opened. When the reply ends and the voice
does not, or an echo begins in IDLE, it is the end of the echo: IDLE, unless it lasts longer than
echoes do: at a deadline it is USER then.

**A pause** is as long as `core.endpointing` says, which is told here of every partial and of every
pause that the caller went on after.

**A turn that was ended too early is reopened**: speech that starts while the reply to it was not
heard yet takes the reply back, and when it starts at most ``rules.reopen_seconds`` after the
commit, the utterance that it opens *continues* the one before: both are one turn, transcribed as
one text, and committed once more. That commit prepares a new reply whatever came of the speech,
since the first part has none any more: a cough costs the reply some time, never the answer. Only a
commit that the machine answered by itself can be reopened, not one that the client made, and none
of a turn that is longer than an utterance may be.

**A too long utterance** is committed without an answer: the agent does not talk over somebody who
still speaks.

**Without interruptions** (`TurnRules.interruptible` false) a reply is never cut: speech over it
makes OVERLAP without ducking and without a deadline, the utterance is kept whether or not the
caller stops, and once the reply is done the floor is the caller's: USER, or PAUSE when they had
stopped.

**A reply wanted in mid-speech** is not cut by that speech either: OVERLAP as without interruptions
until the caller stops. Only speech that starts after that interrupts as usual: it takes the turn
back from a reply that was not heard yet, else it ducks and may become a barge-in, or, when it turns
out to be nothing, the reply goes on and the utterance, which holds earlier speech, is kept.

**A caller who says nothing** for `TurnRules.idle_seconds` after a reply is spoken to again: IDLE
has a deadline then. Not for ever, and not where the client ends the turns.

**A client that ends the turns itself** (``rules.manual``) gets no answer that it did not ask for:
whatever else ends a turn commits it without a reply.

Events about a reply that is no longer active are late words of a reply that was cut; they are
ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar, Literal

from voice_rtc.core.barge_in import (
    DEFAULT_RULES,
    NOTHING_KNOWN,
    BargeInRules,
    ConfirmedBy,
    IsNothing,
    Nothing,
    Overlap,
    Surroundings,
    Undecided,
    WordPace,
    judge,
    words_in,
)
from voice_rtc.core.echo import LONGEST_DELAY_SECONDS
from voice_rtc.core.endpointing import Endpointing
from voice_rtc.errors import StateError

TurnEnd = Literal["endpointing", "max_length", "manual"]
InterruptReason = Literal["barge_in", "resumed", "cancelled"]

_TIMER_SLACK_SECONDS = 0.001  # a timer may fire a rounding error before its deadline
_RECHECK_SECONDS = 0.02  # a barge-in that lacks less speech than one packet is looked at again
_LOOK_SECONDS = 0.15  # how often a voice over the reply is weighed, whatever it may be
_UNNOTICED_SECONDS = 0.1  # of speech before it was known to be the caller's


class Floor(Enum):
    """Who has the floor; the module's docstring tells each one."""

    IDLE = auto()
    USER = auto()
    PAUSE = auto()
    THINKING = auto()
    AGENT = auto()
    OVERLAP = auto()


# ------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The caller began to speak."""

    at_seconds: float
    """When the speech really began, seconds since call start; earlier than it was noticed."""
    surroundings: Surroundings = NOTHING_KNOWN
    """What it sounds like, when a reply is audible or was a moment ago."""


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The caller stopped speaking."""

    at_seconds: float
    """When the speech really ended, seconds since call start."""


@dataclass(frozen=True, slots=True)
class PartialHeard:
    """A partial transcript of the open utterance; replaces the one before.

    Of one that continues another: the text of both.
    """

    text: str
    voiced_until_seconds: float | None = None
    """As in DeadlineReached."""


@dataclass(frozen=True, slots=True)
class TurnJudged:
    """A model heard whether the caller is finished, in the pause that began then."""

    stopped_at_seconds: float
    """`SpeechStopped.at_seconds` of the pause."""
    completeness: float
    """Probability, 0 to 1."""


@dataclass(frozen=True, slots=True)
class ReplyAudible:
    """The first audible sample of the reply was handed to the sender."""

    reply: int


@dataclass(frozen=True, slots=True)
class ReplyDone:
    """The reply is over: played to its end, failed, or empty."""

    reply: int


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """`TurnMachine.next_deadline` has come."""

    voiced_until_seconds: float | None = None
    """End of the newest speech heard, seconds since call start (`VadGate.voiced_until`).

    With it, a barge-in is confirmed only by as much speech as the rules ask for; a cough whose
    end the VAD gate still bridges then does not count. None trusts the deadline alone.
    """
    surroundings: Surroundings | None = None
    """What the voice over the reply sounds like now; None: as before."""


@dataclass(frozen=True, slots=True)
class ManualCommit:
    """The client says that the caller's turn is over; wants a transcript and no answer."""


@dataclass(frozen=True, slots=True)
class ReplyRequested:
    """Something other than speech asks for a reply: typed text, a client, a greeting."""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The client wants the active reply to end."""


Event = (
    SpeechStarted
    | SpeechStopped
    | PartialHeard
    | TurnJudged
    | ReplyAudible
    | ReplyDone
    | DeadlineReached
    | ManualCommit
    | ReplyRequested
    | CancelRequested
)

# ----------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class OpenUtterance:
    """Begin to transcribe a new utterance."""

    utterance: int
    continues: int | None = None
    """The utterance that it makes one turn with, committed a moment ago; None: its own turn."""


@dataclass(frozen=True, slots=True)
class CommitTurn:
    """The utterance, with what it continues, is the caller's turn: take its final transcript."""

    utterance: int
    reply: int | None
    """Id of the reply that must answer it, or None: transcribe only."""
    end: TurnEnd


@dataclass(frozen=True, slots=True)
class DiscardUtterance:
    """Forget the utterance: a cough or a backchannel."""

    utterance: int
    what: Nothing = "false_alarm"


@dataclass(frozen=True, slots=True)
class KeepUtterance:
    """A voice over the reply has ended and was no interruption; it is answered afterwards."""

    utterance: int


@dataclass(frozen=True, slots=True)
class StartReply:
    """Prepare a reply that answers no utterance."""

    reply: int
    because_idle: bool = False
    """The caller has said nothing for too long."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """End the reply now; silence first."""

    reply: int
    reason: InterruptReason
    by: ConfirmedBy | None = None
    """What confirmed a barge-in."""
    after_seconds: float = 0.0
    """A barge-in: since the caller's voice began."""


@dataclass(frozen=True, slots=True)
class Duck:
    """Lower the reply while the caller speaks over it, or raise it again."""

    on: bool


Action = (
    OpenUtterance | CommitTurn | DiscardUtterance | KeepUtterance | StartReply | Interrupt | Duck
)


# ------------------------------------------------------------------------------------ machine


@dataclass(frozen=True, slots=True)
class TurnRules:
    """When a turn is over and what counts as an interruption."""

    min_pause_seconds: float = 0.5
    """Pause that ends a turn whose partial transcript reads complete."""
    max_pause_seconds: float = 2.0
    """Pause that ends a turn whatever the transcript says."""
    pace: float = 1.0
    """Factor on both."""
    reopen_seconds: float = 2.0
    """Speech that starts so soon after the commit, before the reply was heard, reopens the turn.

    HF speech-to-speech keeps an incomplete sentence open for as long."""
    barge_in: BargeInRules = DEFAULT_RULES
    """What takes the floor from an audible reply."""
    max_utterance_seconds: float = 30.0
    """A longer utterance is committed as it stands."""
    creates_reply: bool = True
    """Does a turn that is over get an answer by itself?"""
    manual: bool = False
    """Does the client end the turns? Then none gets an answer by itself."""
    interrupts: bool = True
    """May the caller cut a reply by speaking?"""
    idle_seconds: float = 0.0
    """Silence after a reply until the agent speaks up by itself; 0: it does not."""
    idle_prompts: int = 2
    """So often one after the other."""

    @property
    def interruptible(self) -> bool:
        """May they, as all rules have it?"""
        return self.interrupts and self.barge_in.policy != "never"


class TurnMachine:
    """The floor of one call. ``now`` is seconds since call start and must not run backwards.

    Every event may come in every state; what each means there is `_TABLE`. An object that is no
    event raises StateError and changes nothing.
    """

    def __init__(
        self, rules: TurnRules = TurnRules(), endpointing: Endpointing | None = None
    ) -> None:
        """``endpointing`` may be told of replies and latencies by others meanwhile."""
        self.rules = rules
        """May be replaced at any time; holds from the next event on."""
        self._endpointing = endpointing or Endpointing()
        self._floor = Floor.IDLE
        self._utterance = 0
        self._reply = 0
        self._deadline: float | None = None
        self._began_at = 0.0  # when the turn began, of which the newest utterance is the last part
        self._answered_at: float | None = None  # commit of what the reply in preparation answers
        self._opened_at = 0.0
        self._stopped_at: float | None = None
        self._text = ""  # of the open utterance, as far as understood
        self._kept = False  # speech that was spared over a reply is in the open utterance
        self._audible = False
        self._ducked = False
        self._pace = WordPace()
        self._worded = False  # words of the open utterance have come
        self._weighs = False  # the voice over the reply is one that may interrupt
        self._overlaps_since = 0.0  # of the voice, without pauses in it
        self._overlap_began = 0.0
        self._words_before = 0  # in the open utterance, of earlier speech
        self._surroundings = NOTHING_KNOWN
        self._echoes = False  # the voice that is heard is our own
        self._prompts = 0  # replies to the caller's silence, one after the other

    @property
    def floor(self) -> Floor:
        """The state."""
        return self._floor

    @property
    def utterance(self) -> int:
        """Id of the newest utterance, open or not; 0 before the first."""
        return self._utterance

    @property
    def reply(self) -> int:
        """Id of the active or the last reply; 0 before the first."""
        return self._reply

    @property
    def reply_active(self) -> bool:
        """Is a reply being prepared or played?"""
        return self._floor in (Floor.THINKING, Floor.AGENT, Floor.OVERLAP)

    @property
    def hears_echo(self) -> bool:
        """Is the speech that goes on now taken for an echo?"""
        return self._echoes

    @property
    def next_deadline(self) -> float | None:
        """When to deliver DeadlineReached, seconds since call start (maybe past), or None."""
        return self._deadline

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; return what to do, in this order. Raises StateError for a non-event."""
        step = self._TABLE.get((self._floor, type(event)))
        if step is None:
            raise StateError(f"{type(event).__name__} is no event of turn taking")
        if isinstance(event, ReplyAudible | ReplyDone) and event.reply != self._reply:
            return []
        if isinstance(event, DeadlineReached) and not self._is_due(now):
            return []
        if isinstance(event, PartialHeard):
            self._watch_pace(event.text, now)
        actions = [*self._obey_rules(), *step(self, event, now)]
        if any(isinstance(action, CommitTurn) for action in actions):
            self._prompts = 0
        return actions

    def __repr__(self) -> str:
        return (
            f"<TurnMachine {self._floor.name} utterance={self._utterance} reply={self._reply} "
            f"deadline={self._deadline}>"
        )

    # -- speech ---------------------------------------------------------------------------

    def _ignore(self, event: Event, now: float) -> list[Action]:
        return []

    def _take_floor(self, event: SpeechStarted, now: float) -> list[Action]:
        if event.surroundings.echo >= self.rules.barge_in.echo_similarity:
            self._echoes = True  # of the reply that has just ended
            self._go(Floor.IDLE, now + LONGEST_DELAY_SECONDS)
            return []
        opened = self._open(event.at_seconds)
        self._to_user()
        return [opened]

    def _pause(self, event: SpeechStopped, now: float) -> list[Action]:
        if not self._worded:
            self._pace.no_words(event.at_seconds - self._opened_at)
        self._to_pause(event.at_seconds)
        return []

    def _go_on(self, event: SpeechStarted, now: float) -> list[Action]:
        self._note_pause(event.at_seconds)
        self._to_user()
        return []

    def _note(self, event: PartialHeard, now: float) -> list[Action]:
        self._understand(event.text)
        return []

    def _weigh_again(self, event: PartialHeard, now: float) -> list[Action]:
        self._understand(event.text)
        if self._stopped_at is not None:
            self._to_pause(self._stopped_at)
        return []

    def _weigh_voice(self, event: TurnJudged, now: float) -> list[Action]:
        if event.stopped_at_seconds == self._stopped_at:  # else it is about a pause that is over
            self._endpointing.judged(event.completeness)
            self._to_pause(self._stopped_at)
        return []

    def _end_turn(self, event: DeadlineReached, now: float) -> list[Action]:
        if self.rules.manual or not self.rules.creates_reply:
            self._go(Floor.IDLE)
            return [CommitTurn(self._utterance, None, "endpointing")]
        reply = self._prepare_reply()
        self._answered_at = now
        return [CommitTurn(self._utterance, reply, "endpointing")]

    def _cut_long(self, event: DeadlineReached, now: float) -> list[Action]:
        return self._commit_in_speech("max_length", now)

    # -- speech while a reply is active -----------------------------------------------------

    def _resume_turn(self, event: SpeechStarted, now: float) -> list[Action]:
        if not self.rules.interruptible:
            return self._overlap(event, now)
        opened = self._reopen(event.at_seconds) or self._open(event.at_seconds)
        self._to_user()
        return [opened, Interrupt(self._reply, "resumed")]

    def _overlap(self, event: SpeechStarted, now: float) -> list[Action]:
        opened = self._open(event.at_seconds)
        self._go(Floor.OVERLAP)
        if not self.rules.interruptible:
            return [opened]
        return [*self._begin_overlap(event, now), opened]

    def _speak_on(self, event: SpeechStarted, now: float) -> list[Action]:
        if self._stopped_at is None:
            return []
        paused, self._stopped_at = event.at_seconds - self._stopped_at, None
        if not self.rules.interruptible:
            return []
        if not self._audible:
            self._to_user()
            return [Interrupt(self._reply, "resumed")]
        if self._ducked:  # its words are still waited for
            self._overlaps_since += max(paused, 0.0)
            return []
        self._kept = True
        return self._begin_overlap(event, now)

    def _stop_over_reply(self, event: SpeechStopped, now: float) -> list[Action]:
        if self._stopped_at is not None:
            return []
        self._stopped_at = event.at_seconds
        if self._weighs:
            return self._weigh(now)
        self._kept = True
        return []

    def _hear_words(self, event: PartialHeard, now: float) -> list[Action]:
        self._understand(event.text)
        if not self._weighs or not words_in(event.text):
            return []
        return self._weigh(now, event.voiced_until_seconds)

    def _look(self, event: DeadlineReached, now: float) -> list[Action]:
        if not self._weighs:  # the rules changed with this event: no interruptions any more
            return []
        self._surroundings = event.surroundings or self._surroundings
        return self._weigh(now, event.voiced_until_seconds)

    # -- a voice over the reply ---------------------------------------------------------------

    def _begin_overlap(self, event: SpeechStarted, now: float) -> list[Action]:
        self._weigh_from(event.at_seconds)
        self._surroundings = event.surroundings
        verdict = judge(self._evidence(now, None), self.rules.barge_in)
        if isinstance(verdict, IsNothing):
            return self._let_go_on(verdict.what, now)
        return self._doubt(now, event.at_seconds + self.rules.barge_in.seconds - now)

    def _weigh_from(self, since_seconds: float) -> None:
        self._weighs = True
        self._overlaps_since = self._overlap_began = since_seconds
        self._words_before = len(words_in(self._text))

    def _weigh(self, now: float, voiced_until: float | None = None) -> list[Action]:
        """What follows from what is known now of the voice over the reply."""
        verdict = judge(self._evidence(now, voiced_until), self.rules.barge_in)
        if self._echoes and self._stopped_at is not None:
            return self._let_go_on("echo", now)  # its end looks like nothing that was played
        if isinstance(verdict, IsNothing):
            return self._let_go_on(verdict.what, now)
        if self._echoes:
            return self._hear_caller_in_echo(now)
        if isinstance(verdict, Undecided):
            return self._doubt(now, verdict.again_seconds)
        after = round(now - self._overlap_began, 3)
        cut = Interrupt(self._reply, "barge_in", verdict.by, after)
        return [cut, *self._leave_overlap(now)]

    def _evidence(self, now: float, voiced_until: float | None) -> Overlap:
        until = self._stopped_at if self._stopped_at is not None else voiced_until
        spoken = (now if until is None else until) - self._overlaps_since
        words = words_in(self._text)[self._words_before :]
        return Overlap(
            spoken,
            now - self._overlap_began,
            " ".join(words),
            self._pace.due_seconds,
            self._stopped_at is not None,
            self._surroundings,
            self._echoes,
        )

    def _doubt(self, now: float, again_seconds: float) -> list[Action]:
        """It may be an interruption: duck until that is known."""
        self._deadline = now + min(max(again_seconds, _RECHECK_SECONDS), _LOOK_SECONDS)
        if self._ducked:
            return []
        self._ducked = True
        return [Duck(True)]

    def _hear_caller_in_echo(self, now: float) -> list[Action]:
        """What was understood so far were our own words: the caller's begin now."""
        began = now - _UNNOTICED_SECONDS
        self._echoes = False
        replaced: list[Action] = []
        if not self._kept:
            replaced = [DiscardUtterance(self._utterance, "echo"), self._open(began)]
        self._weigh_from(began)
        return [*self._doubt(now, self.rules.barge_in.seconds), *replaced]

    def _let_go_on(self, what: Nothing, now: float) -> list[Action]:
        """It is no interruption: the reply goes on, whether or not the voice does."""
        unduck = self._unduck()
        if self._stopped_at is None:
            self._echoes = self._echoes or what == "echo"
            self._deadline = now + _LOOK_SECONDS
            return unduck
        self._echoes = False
        # Words that come late may yet tell what was unclear.
        self._weighs = what == "unclear" and not self._kept
        is_answer = what == "backchannel" and self._surroundings.reply_asks
        if self._kept or is_answer or what == "unclear":
            self._kept = not self._weighs
            self._go(Floor.OVERLAP)
            return [*unduck, KeepUtterance(self._utterance)]
        self._go(Floor.AGENT)
        return [*unduck, DiscardUtterance(self._utterance, what)]

    def _understand(self, text: str) -> None:
        self._text = text
        self._endpointing.partial(text)

    def _watch_pace(self, text: str, now: float) -> None:
        if not self._worded and words_in(text):
            self._worded = True
            self._pace.words_came(now - self._opened_at)

    # -- replies ----------------------------------------------------------------------------

    def _become_audible(self, event: ReplyAudible, now: float) -> list[Action]:
        self._audible = True
        if self._floor is Floor.THINKING:
            self._go(Floor.AGENT)
        return []

    def _finish_reply(self, event: ReplyDone, now: float) -> list[Action]:
        self._echoes = False  # of the reply before, whose end went unnoticed
        self._await_caller(now)
        return []

    def _finish_in_overlap(self, event: ReplyDone, now: float) -> list[Action]:
        return self._leave_overlap(now)

    def _end_echo(self, event: SpeechStopped, now: float) -> list[Action]:
        if self._echoes:
            self._echoes = False
            self._await_caller(now)
        return []

    def _await_caller(self, now: float) -> None:
        rules = self.rules
        speaks_up = rules.idle_seconds and not rules.manual and self._prompts < rules.idle_prompts
        self._go(Floor.IDLE, now + rules.idle_seconds if speaks_up else None)

    def _end_silence(self, event: DeadlineReached, now: float) -> list[Action]:
        if self._echoes:  # too long for one
            opened = self._open(now)
            self._to_user()
            return [opened]
        if not self.rules.idle_seconds or self.rules.manual:
            self._go(Floor.IDLE)
            return []
        self._prompts += 1
        return [StartReply(self._prepare_reply(), because_idle=True)]

    # -- the client's wishes ------------------------------------------------------------------

    def _commit(self, event: ManualCommit, now: float) -> list[Action]:
        self._go(Floor.IDLE)
        return [CommitTurn(self._utterance, None, "manual")]

    def _commit_and_go_on(self, event: ManualCommit, now: float) -> list[Action]:
        return self._commit_in_speech("manual", now)

    def _commit_in_overlap(self, event: ManualCommit, now: float) -> list[Action]:
        commit = CommitTurn(self._utterance, None, "manual")
        if self._stopped_at is None:  # what is still being said interrupts, or not, as before
            return [commit, self._open(now)]
        self._weighs = self._echoes = False
        self._go(Floor.AGENT if self._audible else Floor.THINKING)
        return [commit, *self._unduck()]

    def _commit_unheard(self, event: ManualCommit, now: float) -> list[Action]:
        self._utterance += 1
        self._answered_at = None
        return [CommitTurn(self._utterance, None, "manual")]

    def _start_reply(self, event: ReplyRequested, now: float) -> list[Action]:
        return [StartReply(self._prepare_reply())]

    def _commit_and_reply(self, event: ReplyRequested, now: float) -> list[Action]:
        commit = CommitTurn(self._utterance, None, "manual")
        return [commit, StartReply(self._prepare_reply())]

    def _reply_in_speech(self, event: ReplyRequested, now: float) -> list[Action]:
        committed = self._commit_in_speech("manual", now)
        start = StartReply(self._prepare_reply())
        self._go(Floor.OVERLAP)
        return [*committed, start]

    def _cancel(self, event: CancelRequested, now: float) -> list[Action]:
        self._go(Floor.IDLE)
        return [Interrupt(self._reply, "cancelled")]

    def _cancel_in_overlap(self, event: CancelRequested, now: float) -> list[Action]:
        return [Interrupt(self._reply, "cancelled"), *self._leave_overlap(now)]

    # -- changes of state -----------------------------------------------------------------------

    def _go(self, floor: Floor, deadline: float | None = None) -> None:
        self._floor, self._deadline = floor, deadline

    def _open(self, at_seconds: float) -> OpenUtterance:
        self._utterance += 1
        self._endpointing.begin()
        self._began_at, self._answered_at = at_seconds, None
        self._echoes = False
        self._text, self._worded, self._words_before = "", False, 0
        self._opened_at, self._stopped_at, self._kept = at_seconds, None, False
        return OpenUtterance(self._utterance)

    def _reopen(self, at_seconds: float) -> OpenUtterance | None:
        """Open an utterance that continues the one before; None when that one stands."""
        if self._answered_at is None:
            return None
        if at_seconds - self._answered_at > self.rules.reopen_seconds:
            return None
        if at_seconds - self._began_at > self.rules.max_utterance_seconds:
            return None
        self._note_pause(at_seconds)
        self._utterance += 1
        self._opened_at, self._answered_at = at_seconds, None
        self._worded = True  # its partials hold earlier words, and say nothing of its own pace
        return OpenUtterance(self._utterance, continues=self._utterance - 1)

    def _note_pause(self, ended_at: float) -> None:
        if self._stopped_at is not None:
            self._endpointing.went_on(ended_at - self._stopped_at)

    def _commit_in_speech(self, end: TurnEnd, now: float) -> list[Action]:
        """The caller still speaks: what follows is the next utterance."""
        commit = CommitTurn(self._utterance, None, end)
        opened = self._open(now)
        self._to_user()
        return [commit, opened]

    def _to_user(self) -> None:
        self._stopped_at = None
        self._go(Floor.USER, self._opened_at + self.rules.max_utterance_seconds)

    def _to_pause(self, stopped_at: float) -> None:
        self._stopped_at = stopped_at
        pace = self.rules.pace
        pause = self._endpointing.pause(
            self.rules.min_pause_seconds * pace, self.rules.max_pause_seconds * pace
        )
        self._go(Floor.PAUSE, stopped_at + pause)

    def _prepare_reply(self) -> int:
        self._reply += 1
        self._audible, self._answered_at = False, None
        self._go(Floor.THINKING)
        return self._reply

    def _leave_overlap(self, now: float) -> list[Action]:
        """The reply is over: the floor is the caller's, unless only an echo is heard."""
        self._weighs = False
        if self._echoes and not self._kept:
            self._go(Floor.IDLE, now + LONGEST_DELAY_SECONDS)
            return [DiscardUtterance(self._utterance, "echo")]
        self._echoes = False
        if self._stopped_at is None:
            self._to_user()
        else:
            self._to_pause(self._stopped_at)
        return self._unduck()

    def _unduck(self) -> list[Action]:
        if not self._ducked:
            return []
        self._ducked = False
        return [Duck(False)]

    def _obey_rules(self) -> list[Action]:
        """Interruptions were forbidden during an overlap: it goes on without ducking."""
        if self.rules.interruptible or not self._weighs:
            return []
        self._weighs = self._echoes = False
        self._kept = self._kept or self._stopped_at is not None
        self._deadline = None
        return self._unduck()

    def _is_due(self, now: float) -> bool:
        return self._deadline is not None and now >= self._deadline - _TIMER_SLACK_SECONDS

    # Any: each step names the one event that its row of the table gives it
    _TABLE: ClassVar[
        dict[tuple[Floor, type[Event]], Callable[[TurnMachine, Any, float], list[Action]]]
    ] = {
        (Floor.IDLE, SpeechStarted): _take_floor,
        (Floor.IDLE, SpeechStopped): _end_echo,
        (Floor.IDLE, PartialHeard): _ignore,
        (Floor.IDLE, TurnJudged): _ignore,
        (Floor.IDLE, ReplyAudible): _ignore,
        (Floor.IDLE, ReplyDone): _ignore,
        (Floor.IDLE, DeadlineReached): _end_silence,
        (Floor.IDLE, ManualCommit): _commit_unheard,
        (Floor.IDLE, ReplyRequested): _start_reply,
        (Floor.IDLE, CancelRequested): _ignore,
        (Floor.USER, SpeechStarted): _ignore,
        (Floor.USER, SpeechStopped): _pause,
        (Floor.USER, PartialHeard): _note,
        (Floor.USER, TurnJudged): _ignore,
        (Floor.USER, ReplyAudible): _ignore,
        (Floor.USER, ReplyDone): _ignore,
        (Floor.USER, DeadlineReached): _cut_long,
        (Floor.USER, ManualCommit): _commit_and_go_on,
        (Floor.USER, ReplyRequested): _reply_in_speech,
        (Floor.USER, CancelRequested): _ignore,
        (Floor.PAUSE, SpeechStarted): _go_on,
        (Floor.PAUSE, SpeechStopped): _ignore,
        (Floor.PAUSE, PartialHeard): _weigh_again,
        (Floor.PAUSE, TurnJudged): _weigh_voice,
        (Floor.PAUSE, ReplyAudible): _ignore,
        (Floor.PAUSE, ReplyDone): _ignore,
        (Floor.PAUSE, DeadlineReached): _end_turn,
        (Floor.PAUSE, ManualCommit): _commit,
        (Floor.PAUSE, ReplyRequested): _commit_and_reply,
        (Floor.PAUSE, CancelRequested): _ignore,
        (Floor.THINKING, SpeechStarted): _resume_turn,
        (Floor.THINKING, SpeechStopped): _ignore,
        (Floor.THINKING, PartialHeard): _ignore,
        (Floor.THINKING, TurnJudged): _ignore,
        (Floor.THINKING, ReplyAudible): _become_audible,
        (Floor.THINKING, ReplyDone): _finish_reply,
        (Floor.THINKING, DeadlineReached): _ignore,
        (Floor.THINKING, ManualCommit): _commit_unheard,
        (Floor.THINKING, ReplyRequested): _ignore,
        (Floor.THINKING, CancelRequested): _cancel,
        (Floor.AGENT, SpeechStarted): _overlap,
        (Floor.AGENT, SpeechStopped): _ignore,
        (Floor.AGENT, PartialHeard): _ignore,
        (Floor.AGENT, TurnJudged): _ignore,
        (Floor.AGENT, ReplyAudible): _ignore,
        (Floor.AGENT, ReplyDone): _finish_reply,
        (Floor.AGENT, DeadlineReached): _ignore,
        (Floor.AGENT, ManualCommit): _commit_unheard,
        (Floor.AGENT, ReplyRequested): _ignore,
        (Floor.AGENT, CancelRequested): _cancel,
        (Floor.OVERLAP, SpeechStarted): _speak_on,
        (Floor.OVERLAP, SpeechStopped): _stop_over_reply,
        (Floor.OVERLAP, PartialHeard): _hear_words,
        (Floor.OVERLAP, TurnJudged): _ignore,
        (Floor.OVERLAP, ReplyAudible): _become_audible,
        (Floor.OVERLAP, ReplyDone): _finish_in_overlap,
        (Floor.OVERLAP, DeadlineReached): _look,
        (Floor.OVERLAP, ManualCommit): _commit_in_overlap,
        (Floor.OVERLAP, ReplyRequested): _ignore,
        (Floor.OVERLAP, CancelRequested): _cancel_in_overlap,
    }
