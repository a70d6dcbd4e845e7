"""What the bot was asked to do, what it did, and the report of what came of it.

`report_turns` and `report_barge_in` read the figures from what was received; times are the bot's
own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tools.bot_audio import HeardFrame, Speaking, recorded
from tools.bot_events import (
    Received,
    in_line,
    last_response,
    positions,
    response_id,
    seconds_in_line,
    settled,
    status_of,
    text_of,
    transcripts,
)
from tools.recognise import Recognition
from voice_rtc.core.audio import FRAME_SECONDS, SEND_RATE_HZ, Samples, rms_dbfs, silence


@dataclass(frozen=True, slots=True, eq=False)
class BotOptions:
    """What the bot does."""

    speech: Samples | None = None
    """What it says, 48 kHz mono; None says nothing."""
    url: str = "http://localhost:8080"
    turns: int = 1
    """How often it says ``speech``, each time after the reply; a barge-in makes it two at least."""
    barge_in_seconds: float | None = None
    """Say ``speech`` again so long after the first reply became audible."""
    text: str | None = None
    """A typed message, sent after everything spoken."""
    max_seconds: float = 60.0
    """The call is given up after this; waiting in the line does not count."""
    wait_seconds: float = 300.0
    """Longest wait in the line; 0.0 does not wait at all."""
    check_text: str | None = None
    """What the server must have understood, each time."""
    most_word_errors: float = 0.0
    """Word error rate against ``check_text`` that still passes."""
    check_reply: bool = False
    """Must a second recogniser understand each reply as its text?"""
    session: dict[str, Any] = field(default_factory=dict)
    """Fields of the ``session.update`` that the call begins with."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of every HTTP request, e.g. ``Authorization``."""
    query: str = ""
    """Of the offer's URL, e.g. ``model=gpt-realtime``."""


@dataclass(slots=True)
class Turn:
    """What the bot did, and where in the list of events it began."""

    first_event: int
    began_at: float
    speaking: Speaking | None
    """None when typed."""
    typed: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that had to come true."""

    name: str
    passed: bool
    detail: str


@dataclass(slots=True)
class TurnReport:
    """One turn of the bot and the reply to it."""

    typed: bool
    transcript: str
    """What the server understood, or the typed text."""
    reply_text: str
    reply_status: str
    """``completed``, ``cancelled``, ``failed``, or empty without a reply."""
    response_seconds: float | None
    """From the bot's last audible frame (typed: from sending) to the reply's first one."""
    reply_seconds: float
    """From the reply's first audible frame to its last."""
    reply_dbfs: float
    """Level over that time, -100.0 for silence."""
    frames_received: int
    frames_expected: int
    """20 ms frames that there were in that time by the RTP clock."""
    reply_recognised: Recognition | None = None
    """With ``check_reply``: what the second recogniser understood."""


@dataclass(frozen=True, slots=True)
class BargeInReport:
    """How the reply ended that the bot spoke over."""

    silence_seconds: float | None
    """From the bot's first audible frame to the last audible frame of the reply."""
    silence_after_confirmed_seconds: float | None
    """The same from the event that confirmed the barge-in; negative when silence came first."""
    heard_text: str | None
    """What the server says was heard of the reply."""
    heard_complete: bool | None
    audio_end_ms: int | None
    next_turn_works: bool
    """Was the barge-in itself answered?"""
    ended_before: bool
    """Was the reply over, or its sound, before the barge-in was confirmed?"""


@dataclass(frozen=True, slots=True)
class LineReport:
    """How the bot waited for its turn."""

    positions: list[int]
    """Every place in the line that it was told, in order; 1 is next."""
    waited_seconds: float
    """Until it was granted or gave up."""
    granted: bool


@dataclass(slots=True)
class BotReport:
    """Everything about one call."""

    url: str
    call_id: str = ""
    setup_seconds: float | None = None
    """From sending the offer to media connected and ``session.created``."""
    line: LineReport | None = None
    """None when it was served at once."""
    events: dict[str, int] = field(default_factory=dict)
    """Type of server event -> how many came."""
    turns: list[TurnReport] = field(default_factory=list)
    barge_in: BargeInReport | None = None
    errors: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    recording: Samples = field(default_factory=lambda: silence(0), repr=False)
    """Everything received, 48 kHz mono, holes as silence."""

    @property
    def passed(self) -> bool:
        """Did everything come true?"""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> str:
        """All but the recording."""
        body = {name: getattr(self, name) for name in ("url", "call_id", "setup_seconds", "events")}
        body["line"] = asdict(self.line) if self.line else None
        body["turns"] = [asdict(turn) for turn in self.turns]
        body["barge_in"] = asdict(self.barge_in) if self.barge_in else None
        body["errors"] = self.errors
        body["checks"] = [asdict(check) for check in self.checks]
        return json.dumps({"passed": self.passed, **body}, indent=2)


# --------------------------------------------------------------------- from what was received


def report_line(events: Sequence[Received]) -> LineReport | None:
    """How it waited, from the events; None when it never had to."""
    waited = seconds_in_line(events)
    if waited is None:
        return None
    return LineReport(positions(events), waited, not in_line(events))


def report_turns(
    turns: Sequence[Turn], events: Sequence[Received], frames: Sequence[HeardFrame]
) -> list[tuple[TurnReport, Samples]]:
    """What came of each turn, and the sound of its reply, 48 kHz mono."""
    return [_report_turn(turns, number, events, frames) for number in range(len(turns))]


def _report_turn(
    turns: Sequence[Turn],
    number: int,
    events: Sequence[Received],
    frames: Sequence[HeardFrame],
) -> tuple[TurnReport, Samples]:
    turn = turns[number]
    own = _events_of(turns, number, events)
    created = last_response(own)
    response = response_id(created) if created is not None else ""
    heard = _reply_frames(created, events, frames)
    samples = recorded(heard)
    span = len(samples) / SEND_RATE_HZ
    asked_at = turn.speaking.last_audible_at if turn.speaking else turn.began_at
    report = TurnReport(
        typed=turn.speaking is None,
        transcript=turn.typed or " ".join(filter(None, transcripts(own).values())),
        reply_text=text_of(events, response) if response else "",
        reply_status=status_of(events, response) if response else "",
        response_seconds=heard[0].at - asked_at if heard and asked_at is not None else None,
        reply_seconds=span,
        reply_dbfs=rms_dbfs(samples),
        frames_received=len(heard),
        frames_expected=round(span / FRAME_SECONDS),
    )
    return report, samples


def _events_of(turns: Sequence[Turn], number: int, events: Sequence[Received]) -> list[Received]:
    end = turns[number + 1].first_event if number + 1 < len(turns) else len(events)
    return list(events[turns[number].first_event : end])


def _reply_frames(
    created: Received | None, events: Sequence[Received], frames: Sequence[HeardFrame]
) -> list[HeardFrame]:
    """From the reply's first audible frame to its last, before another reply was made."""
    if created is None:
        return []
    later = (event.at for event in events if event.type == "response.created")
    end = min((at for at in later if at > created.at), default=float("inf"))
    window = [frame for frame in frames if created.at <= frame.at < end]
    audible = [place for place, frame in enumerate(window) if frame.audible]
    return window[audible[0] : audible[-1] + 1] if audible else []


def report_barge_in(
    turns: Sequence[Turn], events: Sequence[Received], frames: Sequence[HeardFrame]
) -> BargeInReport:
    """What came of the second turn, which was spoken over the reply to the first."""
    created = last_response(_events_of(turns, 0, events))
    response = response_id(created) if created is not None else ""
    status = status_of(events, response)
    during = _events_of(turns, 1, events)
    about = [event for event in during if response_id(event) == response]
    confirmed = next((event.at for event in about if _confirms(event)), None)
    heard = next((event.body for event in about if event.type == "voice_rtc.reply.heard"), {})
    audible = _reply_frames(created, events, frames)
    last = audible[-1].at if audible else None
    spoken = turns[1].speaking.first_audible_at if turns[1].speaking else None
    late = _difference(last, confirmed)
    return BargeInReport(
        silence_seconds=_difference(last, spoken),
        silence_after_confirmed_seconds=late,
        heard_text=heard.get("text"),
        heard_complete=heard.get("complete"),
        audio_end_ms=heard.get("audio_end_ms"),
        next_turn_works=_is_answered(during),
        ended_before=late < 0 if late is not None else status in ("completed", "failed"),
    )


def _confirms(event: Received) -> bool:
    """Does the event, one about the reply, say that it was interrupted?"""
    if event.type == "response.done":
        return bool(event.body["response"].get("status") == "cancelled")
    return event.type in ("output_audio_buffer.cleared", "voice_rtc.reply.heard")


def _is_answered(events: Sequence[Received]) -> bool:
    created = last_response(events)
    if created is None or not settled(events):
        return False
    return status_of(events, response_id(created)) != "cancelled"


def _difference(later: float | None, earlier: float | None) -> float | None:
    return later - earlier if later is not None and earlier is not None else None
