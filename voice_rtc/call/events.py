"""What happens in a call, for whoever tells the client (the plan's TranscriptionCallbacks).

These events speak of the call, not of any wire protocol: an adapter in ``signaling`` turns them
into what its clients understand. They are emitted on the event loop, in order, and an `EventSink`
must not block. Ids are strings for the client: items of the conversation and replies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from voice_rtc.core.playout import Heard
from voice_rtc.engines.base import Usage
from voice_rtc.errors import VoiceRtcError


@dataclass(frozen=True, slots=True)
class CallerSpeechStarted:
    """The caller has the floor; what follows belongs to ``item_id``, a new one or a reopened."""

    item_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class CallerSpeechStopped:
    """The caller's turn is over."""

    item_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class TurnCommitted:
    """The caller's turn became an item of the conversation; its text follows."""

    item_id: str
    after: str | None
    reopened: bool = False
    """It was one already: the caller went on, and its whole text follows."""


@dataclass(frozen=True, slots=True)
class CallerSilent:
    """The caller said nothing for so long that the agent speaks up; an empty turn stands for it."""

    item_id: str
    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class CallerPartial:
    """What the turn in progress sounds like; replaces the one before."""

    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class CallerTranscript:
    """What the caller said. May be empty."""

    item_id: str
    text: str
    audio_seconds: float
    earlier: str = ""
    """The beginning of ``text`` that was told before the turn was reopened."""


@dataclass(frozen=True, slots=True)
class CallerTranscriptFailed:
    """The caller's turn could not be transcribed."""

    item_id: str
    error: VoiceRtcError


@dataclass(frozen=True, slots=True)
class ReplyCreated:
    """The agent begins to answer."""

    reply_id: str
    item_id: str
    after: str | None


@dataclass(frozen=True, slots=True)
class ReplyText:
    """More of what the agent is about to say."""

    reply_id: str
    item_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ReplyAudible:
    """The first sound of the reply was sent."""

    reply_id: str
    item_id: str


@dataclass(frozen=True, slots=True)
class ReplyInterrupted:
    """The reply was cut. ``heard`` is what the caller got of it."""

    reply_id: str
    item_id: str
    heard: Heard
    audible: bool
    reason: str
    """``barge_in``, ``resumed`` (the caller went on before it was heard) or ``cancelled``."""
    usage: Usage | None = None
    """What its text cost; None when that is not known."""


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """The reply was played to its end, or failed."""

    reply_id: str
    item_id: str
    text: str
    audible: bool
    error: VoiceRtcError | None = None
    usage: Usage | None = None
    """What its text cost; None when that is not known."""


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """An engine failed; the call goes on."""

    engine: str
    error: VoiceRtcError


@dataclass(frozen=True, slots=True)
class TurnMeasured:
    """Where the time of a turn went, in milliseconds; None where it did not get so far.

    Once per turn: with the first sound of its answer, or when it is clear that there will be none.
    The stages (all but the last two) add up to the response; see `core.latency`.
    """

    item_id: str
    reply_id: str | None
    """None where no reply was told of."""
    outcome: str
    """``heard``, ``shown`` (text only), ``cut`` (before any sound), ``failed``, ``silent`` (a reply
    without a sound) or ``nothing`` (no words, no reply)."""
    endpoint_ms: float | None
    stt_ms: float | None
    llm_first_token_ms: float | None
    tts_first_audio_ms: float | None
    first_packet_ms: float | None
    response_ms: float | None
    saved_ms: float
    """By beginning the answer before the turn was over; see `core.speculation`."""


@dataclass(frozen=True, slots=True)
class QueueUpdated:
    """All slots are taken: the caller waits."""

    position: int
    """1 is next."""
    waiting: int
    """Callers in the line, this one counted."""
    eta_seconds: float | None
    """Estimate; None when nothing is known."""
    resume_token: str
    """Gives the place back after a lost connection."""


@dataclass(frozen=True, slots=True)
class QueueGranted:
    """The wait is over: the caller is listened to from now on."""

    waited_seconds: float


@dataclass(frozen=True, slots=True)
class Degraded:
    """The server gives up some quality for a while, or has it back (step 0)."""

    step: int
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class GoingAway:
    """The server will end the call within ``deadline_seconds``."""

    reason: str
    deadline_seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a call that the server ends."""

    reason: str
    message: str


CallEvent = (
    CallerSpeechStarted
    | CallerSpeechStopped
    | TurnCommitted
    | CallerSilent
    | CallerPartial
    | CallerTranscript
    | CallerTranscriptFailed
    | ReplyCreated
    | ReplyText
    | ReplyAudible
    | ReplyInterrupted
    | ReplyFinished
    | EngineFailed
    | TurnMeasured
    | QueueUpdated
    | QueueGranted
    | Degraded
    | GoingAway
    | Ended
)


class EventSink(Protocol):
    """Whoever tells the client."""

    def emit(self, event: CallEvent) -> None:
        """Take one event; must not block or raise."""
        ...
