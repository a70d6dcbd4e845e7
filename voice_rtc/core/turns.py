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
    IDLE      USER  open       -               -               -              -
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
                                      +discard      +unduck

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

Where the table leaves OVERLAP for AGENT or USER, a reply that was not heard yet is THINKING and a
caller who had stopped is in PAUSE.

**Nothing said is lost.** As long as the caller speaks, an utterance is open: whatever commits it
in mid-speech opens the next one at once.

**Deadlines are data.** `TurnMachine.next_deadline` is the moment at which the caller of `handle`
must deliver DeadlineReached; it changes with every event. In USER it is the longest utterance, in
PAUSE the end of the turn (dated from the last speech sample, so that slow detection does not
lengthen the pause), in OVERLAP the moment at which talking over the reply is a barge-in.

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

**Without interruptions** (``rules.interrupts`` false) a reply is never cut: speech over it makes
OVERLAP without ducking and without a deadline, the utterance is kept whether or not the caller
stops, and once the reply is done the floor is the caller's: USER, or PAUSE when they had stopped.

**A reply wanted in mid-speech** is not cut by that speech either: OVERLAP as without interruptions
until the caller stops. Only speech that starts after that interrupts as usual: it takes the turn
back from a reply that was not heard yet, else it ducks and may become a barge-in, or, when it ends
too early for that, the reply goes on and the utterance, which holds earlier speech, is kept.

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

from voice_rtc.core.endpointing import Endpointing
from voice_rtc.errors import StateError

TurnEnd = Literal["endpointing", "max_length", "manual"]
InterruptReason = Literal["barge_in", "resumed", "cancelled"]

_TIMER_SLACK_SECONDS = 0.001  # a timer may fire a rounding error before its deadline
_RECHECK_SECONDS = 0.02  # a barge-in that lacks less speech than one packet is looked at again


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


@dataclass(frozen=True, slots=True)
class StartReply:
    """Prepare a reply that answers no utterance."""

    reply: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """End the reply now; silence first."""

    reply: int
    reason: InterruptReason


@dataclass(frozen=True, slots=True)
class Duck:
    """Lower the reply while the caller speaks over it, or raise it again."""

    on: bool


Action = OpenUtterance | CommitTurn | DiscardUtterance | StartReply | Interrupt | Duck


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
    barge_in_seconds: float = 0.3
    """Speech over an audible reply that takes the floor."""
    max_utterance_seconds: float = 30.0
    """A longer utterance is committed as it stands."""
    creates_reply: bool = True
    """Does a turn that is over get an answer by itself?"""
    manual: bool = False
    """Does the client end the turns? Then none gets an answer by itself."""
    interrupts: bool = True
    """May the caller cut a reply by speaking?"""


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
        self._overlaps_since = 0.0
        self._kept = False  # speech that was spared over a reply is in the open utterance
        self._audible = False
        self._ducked = False

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
        return [*self._obey_rules(), *step(self, event, now)]

    def __repr__(self) -> str:
        return (
            f"<TurnMachine {self._floor.name} utterance={self._utterance} reply={self._reply} "
            f"deadline={self._deadline}>"
        )

    # -- speech ---------------------------------------------------------------------------

    def _ignore(self, event: Event, now: float) -> list[Action]:
        return []

    def _take_floor(self, event: SpeechStarted, now: float) -> list[Action]:
        opened = self._open(event.at_seconds)
        self._to_user()
        return [opened]

    def _pause(self, event: SpeechStopped, now: float) -> list[Action]:
        self._to_pause(event.at_seconds)
        return []

    def _go_on(self, event: SpeechStarted, now: float) -> list[Action]:
        self._note_pause(event.at_seconds)
        self._to_user()
        return []

    def _note(self, event: PartialHeard, now: float) -> list[Action]:
        self._endpointing.partial(event.text)
        return []

    def _weigh_again(self, event: PartialHeard, now: float) -> list[Action]:
        self._endpointing.partial(event.text)
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
        if not self.rules.interrupts:
            return self._overlap(event, now)
        opened = self._reopen(event.at_seconds) or self._open(event.at_seconds)
        self._to_user()
        return [opened, Interrupt(self._reply, "resumed")]

    def _overlap(self, event: SpeechStarted, now: float) -> list[Action]:
        opened = self._open(event.at_seconds)
        if not self.rules.interrupts:
            self._go(Floor.OVERLAP)
            return [opened]
        return [self._duck(event.at_seconds), opened]

    def _speak_on(self, event: SpeechStarted, now: float) -> list[Action]:
        if self._stopped_at is None:
            return []
        self._stopped_at = None
        if not self.rules.interrupts:
            return []
        if self._audible:
            return [self._duck(event.at_seconds)]
        self._to_user()
        return [Interrupt(self._reply, "resumed")]

    def _stop_over_reply(self, event: SpeechStopped, now: float) -> list[Action]:
        if self._ducked and not self._kept:
            unduck = self._unduck()
            self._go(Floor.AGENT)
            return [*unduck, DiscardUtterance(self._utterance)]
        self._stopped_at, self._kept = event.at_seconds, True
        self._go(Floor.OVERLAP)
        return self._unduck()

    def _barge_in(self, event: DeadlineReached, now: float) -> list[Action]:
        if not self._ducked:  # the rules changed with this event: no interruptions any more
            return []
        if event.voiced_until_seconds is not None:
            spoken = event.voiced_until_seconds - self._overlaps_since
            lacking = self.rules.barge_in_seconds - spoken
            if lacking > _TIMER_SLACK_SECONDS:
                self._deadline = now + max(lacking, _RECHECK_SECONDS)
                return []
        cut = Interrupt(self._reply, "barge_in")
        return [cut, *self._leave_overlap()]

    # -- replies ----------------------------------------------------------------------------

    def _become_audible(self, event: ReplyAudible, now: float) -> list[Action]:
        self._audible = True
        if self._floor is Floor.THINKING:
            self._go(Floor.AGENT)
        return []

    def _finish_reply(self, event: ReplyDone, now: float) -> list[Action]:
        self._go(Floor.IDLE)
        return []

    def _finish_in_overlap(self, event: ReplyDone, now: float) -> list[Action]:
        return self._leave_overlap()

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
        self._go(Floor.AGENT if self._audible else Floor.THINKING)
        return [commit]

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
        return [Interrupt(self._reply, "cancelled"), *self._leave_overlap()]

    # -- changes of state -----------------------------------------------------------------------

    def _go(self, floor: Floor, deadline: float | None = None) -> None:
        self._floor, self._deadline = floor, deadline

    def _open(self, at_seconds: float) -> OpenUtterance:
        self._utterance += 1
        self._endpointing.begin()
        self._began_at, self._answered_at = at_seconds, None
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

    def _leave_overlap(self) -> list[Action]:
        """The reply is over: the floor is the caller's."""
        if self._stopped_at is None:
            self._to_user()
        else:
            self._to_pause(self._stopped_at)
        return self._unduck()

    def _duck(self, since_seconds: float) -> Duck:
        """Speech that began at ``since_seconds`` call seconds may become a barge-in."""
        self._overlaps_since = since_seconds
        self._go(Floor.OVERLAP, since_seconds + self.rules.barge_in_seconds)
        self._ducked = True
        return Duck(True)

    def _unduck(self) -> list[Action]:
        if not self._ducked:
            return []
        self._ducked = False
        return [Duck(False)]

    def _obey_rules(self) -> list[Action]:
        """Interruptions were forbidden during an overlap: it goes on without ducking."""
        if self.rules.interrupts or not self._ducked:
            return []
        self._deadline = None
        return self._unduck()

    def _is_due(self, now: float) -> bool:
        return self._deadline is not None and now >= self._deadline - _TIMER_SLACK_SECONDS

    # Any: each step names the one event that its row of the table gives it
    _TABLE: ClassVar[
        dict[tuple[Floor, type[Event]], Callable[[TurnMachine, Any, float], list[Action]]]
    ] = {
        (Floor.IDLE, SpeechStarted): _take_floor,
        (Floor.IDLE, SpeechStopped): _ignore,
        (Floor.IDLE, PartialHeard): _ignore,
        (Floor.IDLE, TurnJudged): _ignore,
        (Floor.IDLE, ReplyAudible): _ignore,
        (Floor.IDLE, ReplyDone): _ignore,
        (Floor.IDLE, DeadlineReached): _ignore,
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
        (Floor.OVERLAP, PartialHeard): _note,
        (Floor.OVERLAP, TurnJudged): _ignore,
        (Floor.OVERLAP, ReplyAudible): _become_audible,
        (Floor.OVERLAP, ReplyDone): _finish_in_overlap,
        (Floor.OVERLAP, DeadlineReached): _barge_in,
        (Floor.OVERLAP, ManualCommit): _commit_in_overlap,
        (Floor.OVERLAP, ReplyRequested): _ignore,
        (Floor.OVERLAP, CancelRequested): _cancel_in_overlap,
    }
