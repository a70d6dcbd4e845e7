"""A headless caller: stock aiortc, a WAV file as its voice, a report of what it got.

``python -m tools.bot WAV`` calls a running server by its OpenAI Realtime endpoint, speaks, listens
to the reply, may interrupt it, hangs up and says whether all that was asked for came true. `call`
is the same for programs. Times are the bot's own: what it hears passed aiortc's jitter buffer,
which holds audio for about 80 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

import aiohttp
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidStateError
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.recognise import Recognition, recognise, word_error_rate
from tools.wav import UnusableWav, is_audible, read_wav, resample, write_wav
from voice_rtc.core.audio import (
    FRAME_SECONDS,
    LISTEN_RATE_HZ,
    SEND_FRAME_SAMPLES,
    SEND_RATE_HZ,
    Samples,
    rms_dbfs,
    silence,
)

_HTTP_SECONDS = 10.0
_TAIL_SECONDS = 0.2
"""Listened on after a reply: its end is still in the jitter buffer and is not the next one's."""
_LONGEST_HOLE_SECONDS = 60.0
"""A longer hole between two frames is not kept in a recording as silence."""
_SILENT_WITHIN_SECONDS = 0.5
"""A reply that goes on for longer after a confirmed barge-in was not interrupted."""
_TRANSCRIPTION = "conversation.item.input_audio_transcription"

Json = dict[str, Any]
T = TypeVar("T")


class CallFailed(Exception):
    """No call came about, or it cannot go on; ``str(error)`` says why."""


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
    """The call is given up after this."""
    check_text: str | None = None
    """What the server must have understood, each time."""
    most_word_errors: float = 0.0
    """Word error rate against ``check_text`` that still passes."""
    check_reply: bool = False
    """Must a second recogniser understand each reply as its text?"""


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


@dataclass(slots=True)
class BotReport:
    """Everything about one call."""

    url: str
    call_id: str = ""
    setup_seconds: float | None = None
    """From sending the offer to media connected and ``session.created``."""
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
        body["turns"] = [asdict(turn) for turn in self.turns]
        body["barge_in"] = asdict(self.barge_in) if self.barge_in else None
        body["errors"] = self.errors
        body["checks"] = [asdict(check) for check in self.checks]
        return json.dumps({"passed": self.passed, **body}, indent=2)


# ----------------------------------------------------------------------------- mouth and ear


class News:
    """Wakes whoever waits for something to have happened."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Something happened."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next `tell`."""
        await self._event.wait()


@dataclass(slots=True)
class Speaking:
    """One saying of the bot's speech, as it went out. Times are loop times."""

    first_audible_at: float | None = None
    last_audible_at: float | None = None
    sent: bool = False


class Mouth(MediaStreamTrack):
    """Sends what `say` was given, else silence, 20 ms at a time, paced on absolute time."""

    kind = "audio"

    def __init__(self, news: News) -> None:
        super().__init__()
        self._news = news
        self._unsent = silence(0)
        self._speaking: Speaking | None = None
        self._started_at: float | None = None
        self._pts = 0

    def say(self, samples: Samples) -> Speaking:
        """Begin to speak; 48 kHz mono. Only one at a time."""
        self._unsent = samples
        self._speaking = Speaking()
        return self._speaking

    async def recv(self) -> AudioFrame:
        """The next frame, not before it is due."""
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        if self._started_at is None:
            self._started_at = loop.time()
        await asyncio.sleep(self._started_at + self._pts / SEND_RATE_HZ - loop.time())
        # Interleaved stereo: aiortc's encoder takes 3 dB off mono frames.
        plane = np.repeat(self._next(loop.time()), 2).reshape(1, -1)
        frame = AudioFrame.from_ndarray(plane, format="s16", layout="stereo")
        frame.sample_rate = SEND_RATE_HZ
        frame.pts = self._pts
        frame.time_base = Fraction(1, SEND_RATE_HZ)
        self._pts += SEND_FRAME_SAMPLES
        return frame

    def _next(self, now: float) -> Samples:
        head = self._unsent[:SEND_FRAME_SAMPLES]
        self._unsent = self._unsent[SEND_FRAME_SAMPLES:]
        speaking = self._speaking
        if speaking is not None:
            if is_audible(head):
                speaking.last_audible_at = now
                speaking.first_audible_at = speaking.first_audible_at or now
            if not len(self._unsent):
                speaking.sent = True
                self._speaking = None
                self._news.tell()
        return np.concatenate([head, silence(SEND_FRAME_SAMPLES - len(head))])


@dataclass(frozen=True, slots=True, eq=False)
class HeardFrame:
    """One frame as it came out of aiortc."""

    at: float
    """Loop time of its arrival."""
    pts: int
    """RTP time in samples at 48 kHz, unwrapped."""
    samples: Samples
    """48 kHz mono."""
    audible: bool


class Ear:
    """Keeps everything that was received."""

    def __init__(self, news: News) -> None:
        self._news = news
        self.frames: list[HeardFrame] = []

    async def listen(self, track: MediaStreamTrack) -> None:
        """Read ``track`` to its end."""
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, AudioFrame)  # the transceiver is an audio one
            # aiortc decodes Opus to interleaved stereo, the same on both sides for mono.
            plane = frame.to_ndarray().astype(np.int16, copy=False)
            samples = plane.reshape(-1)[:: len(frame.layout.channels)]
            now = asyncio.get_running_loop().time()
            pts = self._unwrapped(frame.pts or 0)
            self.frames.append(HeardFrame(now, pts, samples, is_audible(samples)))
            self._news.tell()

    def _unwrapped(self, pts: int) -> int:
        if not self.frames:
            return pts
        last = self.frames[-1].pts
        return last + (pts - last + 2**31) % 2**32 - 2**31


def recorded(frames: Sequence[HeardFrame]) -> Samples:
    """The frames put together by their RTP time, 48 kHz mono, holes as silence."""
    pieces: list[Samples] = []
    for before, frame in zip([None, *frames], frames, strict=False):
        hole = frame.pts - before.pts - len(before.samples) if before is not None else 0
        if 0 < hole <= _LONGEST_HOLE_SECONDS * SEND_RATE_HZ:
            pieces.append(silence(hole))
        pieces.append(frame.samples)
    return np.concatenate(pieces) if pieces else silence(0)


# ---------------------------------------------------------------------------- server's events


@dataclass(frozen=True, slots=True)
class Received:
    """One server event and the loop time of its arrival."""

    at: float
    body: Json

    @property
    def type(self) -> str:
        """The event's type."""
        return str(self.body.get("type", ""))


def response_id(event: Received) -> str:
    """The id of the response that the event is about, empty when it is about none."""
    return str(event.body.get("response_id") or event.body.get("response", {}).get("id", ""))


def response_is_over(events: Sequence[Received], response: str) -> bool:
    """Is it done, and has all that was made of it been played or thrown away?"""
    about = [event for event in events if response_id(event) == response]
    types = {event.type for event in about}
    ended = {"output_audio_buffer.stopped", "output_audio_buffer.cleared"}
    return "response.done" in types and (
        "output_audio_buffer.started" not in types or bool(types & ended)
    )


def pending_speech(events: Sequence[Received]) -> bool:
    """Is there speech, or a turn without a transcript, that the server has yet to deal with?"""
    types = Counter(event.type for event in events)
    if types["input_audio_buffer.speech_started"] > types["input_audio_buffer.speech_stopped"]:
        return True
    return not committed_items(events) <= set(transcripts(events))


def committed_items(events: Sequence[Received]) -> set[str]:
    """Ids of the caller's turns."""
    wanted = "input_audio_buffer.committed"
    return {event.body["item_id"] for event in events if event.type == wanted}


def transcripts(events: Sequence[Received]) -> dict[str, str]:
    """Id of a caller's turn -> what was understood; empty when nothing was."""
    ended = (f"{_TRANSCRIPTION}.completed", f"{_TRANSCRIPTION}.failed")
    return {
        event.body["item_id"]: event.body.get("transcript", "")
        for event in events
        if event.type in ended
    }


def last_response(events: Sequence[Received]) -> Received | None:
    """The newest ``response.created`` behind the newest turn that says something."""
    said = transcripts(events)
    for event in reversed(events):
        if event.type == "response.created":
            return event
        if event.type == "input_audio_buffer.committed" and said.get(event.body["item_id"]):
            return None
    return None


def settled(events: Sequence[Received]) -> bool:
    """Has everything said been understood, answered, and the answer been played?

    Speech with a pause in it may be several turns for the server; the last one's reply counts.
    """
    if pending_speech(events):
        return False
    created = last_response(events)
    if created is None:
        said = transcripts(events)
        return bool(said) and not any(said.values())
    response = response_id(created)
    return response_is_over(events, response) and status_of(events, response) != "cancelled"


def status_of(events: Sequence[Received], response: str) -> str:
    """How the response ended, empty while it has not."""
    for event in events:
        if event.type == "response.done" and response_id(event) == response:
            return str(event.body["response"].get("status", ""))
    return ""


def text_of(events: Sequence[Received], response: str) -> str:
    """What the response says: as a whole if it was made to its end, else as far as it came."""
    whole = ("response.output_audio_transcript.done", "response.output_text.done")
    piece = ("response.output_audio_transcript.delta", "response.output_text.delta")
    pieces = []
    for event in events:
        if response_id(event) == response:
            if event.type in whole:
                return str(event.body.get("transcript") or event.body.get("text") or "")
            if event.type in piece:
                pieces.append(str(event.body.get("delta", "")))
    return "".join(pieces)


# ------------------------------------------------------------------------------------- a call


@dataclass(slots=True)
class Turn:
    """What the bot did, and where in the list of events it began."""

    first_event: int
    began_at: float
    speaking: Speaking | None
    """None when typed."""
    typed: str = ""


class Bot:
    """One call. `dial`, `converse`, `hang_up`, then `reports`; `close` whatever happened."""

    def __init__(self, options: BotOptions) -> None:
        self.options = options
        self.report = BotReport(options.url)
        self.events: list[Received] = []
        self.turns: list[Turn] = []
        self.waits_for = ""
        """What the bot is waiting for, for the message when it waited too long."""
        self._news = News()
        self._mouth = Mouth(self._news)
        self.ear = Ear(self._news)
        # Explicit, because aiortc's default asks a public STUN server and waits for it.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._channel = self._connection.createDataChannel("oai-events")
        self._tracks: list[MediaStreamTrack] = []
        self._location = ""
        self._loop = asyncio.get_running_loop()
        self._channel.on("message", self._on_message)
        self._connection.on("track", self._on_track)
        self._connection.on("connectionstatechange", self._news.tell)

    async def dial(self, http: aiohttp.ClientSession, tasks: asyncio.TaskGroup) -> None:
        """Offer, answer, connect, listen. Raises CallFailed."""
        self._connection.addTrack(self._mouth)
        await self._connection.setLocalDescription(await self._connection.createOffer())
        began = self._loop.time()
        answer = await self._post(http, self._connection.localDescription.sdp)
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except ValueError as error:
            raise CallFailed(f"the server's answer cannot be used: {error}") from None
        for track in self._tracks:
            tasks.create_task(self.ear.listen(track), name="bot:listen")
        await self._until(
            "the media connection", lambda: self._connection.connectionState == "connected"
        )
        await self._event("session.created")
        self.report.setup_seconds = self._loop.time() - began

    async def _post(self, http: aiohttp.ClientSession, offer: str) -> str:
        url = f"{self.options.url.rstrip('/')}/v1/realtime/calls"
        headers = {"Content-Type": "application/sdp"}
        try:
            async with http.post(url, data=offer, headers=headers) as response:
                body = await response.text()
                if response.status != 201:
                    raise CallFailed(f"POST {url} was answered {response.status}: {body.strip()}")
                self._location = urljoin(url, response.headers.get("Location", ""))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CallFailed(f"cannot reach {url}: {error or 'no answer in time'}") from None
        self.report.call_id = self._location.rsplit("/", 1)[-1]
        return body

    async def converse(self) -> None:
        """All turns. Raises CallFailed when the call ends before they are over."""
        self._send({"type": "session.update", "session": {"type": "realtime"}})
        await self._event("session.updated")
        await self._until("the greeting to end", self._nothing_plays)
        await asyncio.sleep(_TAIL_SECONDS)
        options = self.options
        if options.speech is not None:
            spoken = 0
            if options.barge_in_seconds is not None:
                await self._interrupted_turn(options.speech, options.barge_in_seconds)
                spoken = 2
            for _ in range(spoken, options.turns):
                await self._spoken_turn(options.speech)
        if options.text is not None:
            await self._typed_turn(options.text)

    async def hang_up(self, http: aiohttp.ClientSession) -> None:
        """End the call at the server, if there is one; a refusal is reported."""
        if not self._location or self._call_ended():
            return
        try:
            async with http.delete(self._location) as response:
                if response.status != 200:
                    text = await response.text()
                    self.report.errors.append(f"hanging up was answered {response.status}: {text}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.report.errors.append(f"hanging up failed: {error or 'no answer in time'}")

    async def close(self) -> None:
        """Close the connection; listening ends with it."""
        await self._connection.close()
        for track in self._tracks:
            track.stop()

    # ------------------------------------------------------------------------ turns

    async def _spoken_turn(self, speech: Samples) -> None:
        turn = self._speak(speech)
        await self._until_settled(turn)

    async def _typed_turn(self, text: str) -> None:
        turn = Turn(len(self.events), self._loop.time(), None, text)
        self.turns.append(turn)
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        self._send({"type": "conversation.item.create", "item": item})
        self._send({"type": "response.create"})
        await self._until_settled(turn)

    async def _interrupted_turn(self, speech: Samples, seconds: float) -> None:
        first = self._speak(speech)
        created = await self._until("a reply", lambda: self._answer_to(first))
        audible = await self._until("the reply to be heard", lambda: self._sound_since(created.at))
        await asyncio.sleep(audible.at + seconds - self._loop.time())
        response = response_id(created)
        if response_is_over(self.events, response):
            raise CallFailed(f"the reply was over before the barge-in after {seconds:g} s")
        second = self._speak(speech)
        await self._until("the interrupted reply to end", lambda: status_of(self.events, response))
        await self._until_settled(second)

    def _speak(self, speech: Samples) -> Turn:
        turn = Turn(len(self.events), self._loop.time(), self._mouth.say(speech))
        self.turns.append(turn)
        return turn

    def _answer_to(self, turn: Turn) -> Received | None:
        events = self.events[turn.first_event :]
        is_sent = turn.speaking is None or turn.speaking.sent
        return last_response(events) if is_sent and not pending_speech(events) else None

    def _sound_since(self, at: float) -> HeardFrame | None:
        newest = self.ear.frames[-1] if self.ear.frames else None
        return newest if newest is not None and newest.audible and newest.at >= at else None

    async def _until_settled(self, turn: Turn) -> None:
        def is_settled() -> bool:
            is_sent = turn.speaking is None or turn.speaking.sent
            return is_sent and settled(self.events[turn.first_event :])

        await self._until(f"the reply to turn {self.turns.index(turn) + 1}", is_settled)
        await asyncio.sleep(_TAIL_SECONDS)

    # ---------------------------------------------------------------------- waiting

    async def _until(self, what: str, ready: Callable[[], T | None]) -> T:
        """Wait for a true result. Raises CallFailed when the call ended before it came."""
        self.waits_for = what
        while not (result := ready()):
            if self._call_ended():
                raise CallFailed(f"the call ended while waiting for {what}: {self._ending()}")
            await self._news.wait()
        return result

    async def _event(self, kind: str) -> None:
        await self._until(kind, lambda: any(event.type == kind for event in self.events))

    def _nothing_plays(self) -> bool:
        created = [event for event in self.events if event.type == "response.created"]
        return all(response_is_over(self.events, response_id(event)) for event in created)

    def _call_ended(self) -> bool:
        if self._connection.connectionState in ("failed", "closed"):
            return True
        return bool(self.events) and self.events[-1].type == "voice_rtc.call.ended"

    def _ending(self) -> str:
        last = self.events[-1] if self.events else None
        if last is not None and last.type == "voice_rtc.call.ended":
            return f"{last.body.get('reason')}: {last.body.get('message', '')}"
        return f"the connection is {self._connection.connectionState}"

    # --------------------------------------------------------------------- channel

    def _send(self, event: Json) -> None:
        try:
            self._channel.send(json.dumps(event))
        except InvalidStateError:
            raise CallFailed("the data channel was closed by the server") from None

    def _on_message(self, message: str | bytes) -> None:
        body = json.loads(message)
        self.events.append(Received(self._loop.time(), body))
        if body.get("type") == "error":
            error = body.get("error", {})
            self.report.errors.append(f"{error.get('code')}: {error.get('message')}")
        self._news.tell()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._tracks.append(track)


# ------------------------------------------------------------------------------------ reports


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
    during = _events_of(turns, 1, events)
    confirming = ("output_audio_buffer.cleared", "conversation.item.truncated")
    confirmed = next((event.at for event in during if event.type in confirming), None)
    heard = next((e.body for e in during if e.type == "voice_rtc.reply.heard"), {})
    audible = _reply_frames(created, events, frames)
    last = audible[-1].at if audible else None
    spoken = turns[1].speaking.first_audible_at if turns[1].speaking else None
    return BargeInReport(
        silence_seconds=_difference(last, spoken),
        silence_after_confirmed_seconds=_difference(last, confirmed),
        heard_text=heard.get("text"),
        heard_complete=heard.get("complete"),
        audio_end_ms=heard.get("audio_end_ms"),
        next_turn_works=settled(during) and last_response(during) is not None,
    )


def _difference(later: float | None, earlier: float | None) -> float | None:
    return later - earlier if later is not None and earlier is not None else None


def checks_of(options: BotOptions, report: BotReport) -> list[Check]:
    """Everything that had to come true, and whether it did."""
    checks = [Check("no errors", not report.errors, "; ".join(report.errors))]
    for number, turn in enumerate(report.turns, 1):
        checks += _turn_checks(options, turn, f"turn {number}")
    if options.barge_in_seconds is not None:
        checks += _barge_in_checks(report.barge_in)
    return checks


def _turn_checks(options: BotOptions, turn: TurnReport, name: str) -> list[Check]:
    sound = f"{turn.reply_seconds:.1f} s at {turn.reply_dbfs:.0f} dBFS"
    checks = [Check(f"{name} answered aloud", turn.frames_received > 0, sound)]
    if not turn.typed:
        checks.append(Check(f"{name} understood", bool(turn.transcript), turn.transcript))
        if options.check_text is not None:
            rate = word_error_rate(options.check_text, turn.transcript)
            detail = f"word error rate {rate:.2f} against {options.check_text!r}"
            passed = rate <= options.most_word_errors
            checks.append(Check(f"{name} understood as expected", passed, detail))
    if turn.reply_status != "cancelled":
        checks.append(
            Check(f"{name} reply completed", turn.reply_status == "completed", turn.reply_status)
        )
        if options.check_reply:
            checks.append(_reply_check(turn.reply_recognised, name))
    return checks


def _reply_check(found: Recognition | None, name: str) -> Check:
    if found is None:
        return Check(f"{name} reply says its text", False, "nothing to listen to")
    detail = f"word error rate {found.word_error_rate:.2f}: {found.text}"
    if found.unknown_words:
        detail += f" (left out: {', '.join(found.unknown_words)})"
    return Check(f"{name} reply says its text", found.passed, detail)


def _barge_in_checks(report: BargeInReport | None) -> list[Check]:
    if report is None:
        return [Check("barge-in happened", False, "")]
    late = report.silence_after_confirmed_seconds
    silent = late is not None and late <= _SILENT_WITHIN_SECONDS
    return [
        Check("barge-in silenced the reply", silent, _seconds(late, "after it was confirmed")),
        Check("heard text told", report.heard_text is not None, report.heard_text or ""),
        Check("next turn works", report.next_turn_works, ""),
    ]


def _seconds(value: float | None, what: str) -> str:
    return "never" if value is None else f"{value:.3f} s {what}"


# --------------------------------------------------------------------------------- whole call


async def call(options: BotOptions) -> BotReport:
    """Make one call and report it. Raises CallFailed when no call came about.

    What goes wrong within the call is in the report's ``errors``.
    """
    bot = Bot(options)
    refused: CallFailed | None = None
    timeout = aiohttp.ClientTimeout(total=_HTTP_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as tasks:
        try:
            async with asyncio.timeout(options.max_seconds):
                await bot.dial(http, tasks)
                await bot.converse()
        except TimeoutError:
            bot.report.errors.append(
                f"not over after {options.max_seconds:g} s, while waiting for {bot.waits_for}"
            )
        except CallFailed as error:
            # Kept for later: raised here it would leave the group as an ExceptionGroup.
            refused = error if not bot.report.call_id else None
            bot.report.errors.append(str(error))
        finally:
            await bot.hang_up(http)
            await bot.close()
    if refused is not None:
        raise refused
    return await _complete(bot)


async def _complete(bot: Bot) -> BotReport:
    report, frames = bot.report, bot.ear.frames
    report.events = dict(Counter(event.type for event in bot.events))
    reported = report_turns(bot.turns, bot.events, frames)
    report.turns = [turn for turn, _ in reported]
    if bot.options.barge_in_seconds is not None and len(bot.turns) > 1:
        report.barge_in = report_barge_in(bot.turns, bot.events, frames)
    if bot.options.check_reply:
        await _recognise_replies(reported)
    report.recording = recorded(frames)
    report.checks = checks_of(bot.options, report)
    return report


async def _recognise_replies(reported: Sequence[tuple[TurnReport, Samples]]) -> None:
    """In a process of its own: the recogniser holds the GIL, and a test's server may run here."""
    context = multiprocessing.get_context("spawn")
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for turn, samples in reported:
            if len(samples) and turn.reply_text and turn.reply_status != "cancelled":
                sound = resample(samples, SEND_RATE_HZ, LISTEN_RATE_HZ)
                turn.reply_recognised = await loop.run_in_executor(
                    pool, recognise, sound, turn.reply_text
                )


# ------------------------------------------------------------------------------- command line


def print_report(report: BotReport, console: Console) -> None:
    """The report as tables."""
    setup = "never set up" if report.setup_seconds is None else f"{report.setup_seconds:.2f} s"
    console.print(
        f"call {report.call_id} to {report.url}: setup {setup}, "
        f"{sum(report.events.values())} events",
        markup=False,
    )
    table = Table("turn", "understood", "reply", "response", "audio", "frames")
    for number, turn in enumerate(report.turns, 1):
        response = "-" if turn.response_seconds is None else f"{turn.response_seconds:.2f} s"
        table.add_row(
            f"{number}{' typed' if turn.typed else ''}",
            escape(turn.transcript),
            escape(turn.reply_text),
            response,
            f"{turn.reply_seconds:.1f} s, {turn.reply_dbfs:.0f} dBFS",
            f"{turn.frames_received}/{turn.frames_expected}",
        )
    console.print(table)
    if report.barge_in is not None:
        _print_barge_in(report.barge_in, console)
    checks = Table("check", "", "detail")
    for check in report.checks:
        mark = "[green]ok[/]" if check.passed else "[red]FAILED[/]"
        checks.add_row(check.name, mark, escape(check.detail))
    console.print(checks)


def _print_barge_in(report: BargeInReport, console: Console) -> None:
    console.print(
        f"barge-in: silent {_seconds(report.silence_seconds, 'after the first speech sent')}, "
        f"{_seconds(report.silence_after_confirmed_seconds, 'after it was confirmed')}; "
        f"heard {report.audio_end_ms} ms: {report.heard_text!r}",
        markup=False,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bot", description="Call a voice_rtc server and report what came."
    )
    add = parser.add_argument
    add("wav", nargs="?", type=Path, help="what the bot says: 16 bit PCM WAV")
    add("--url", default="http://localhost:8080", help="the server (default %(default)s)")
    add("--turns", type=int, default=1, help="how often it says it (default 1)")
    add("--barge-in", type=float, metavar="SECONDS", help="say it again so long into the reply")
    add("--text", help="a typed message, after everything spoken")
    add("--seconds", type=float, default=60.0, metavar="MAX", help="give up after (default 60)")
    add("--save", type=Path, metavar="WAV", help="write everything received")
    add("--check-reply", action="store_true", help="a second recogniser must understand replies")
    add("--check-text", metavar="TEXT", help="what the server must understand")
    add(
        "--most-word-errors",
        type=float,
        default=0.0,
        metavar="RATE",
        help="word error rate that still passes --check-text (default 0)",
    )
    add("--json", type=Path, metavar="FILE", help="write the report as JSON")
    add("--quiet", action="store_true", help="print only what went wrong")
    return parser


def _options(arguments: argparse.Namespace) -> BotOptions:
    return BotOptions(
        speech=read_wav(arguments.wav) if arguments.wav is not None else None,
        url=arguments.url,
        turns=arguments.turns,
        barge_in_seconds=arguments.barge_in,
        text=arguments.text,
        max_seconds=arguments.seconds,
        check_text=arguments.check_text,
        most_word_errors=arguments.most_word_errors,
        check_reply=arguments.check_reply,
    )


def main(given: Sequence[str] | None = None) -> int:
    """The command line. 0 when all checks passed, 1 when not, 2 when it cannot be tried."""
    parser = _parser()
    arguments = parser.parse_args(given)
    if arguments.wav is None and arguments.text is None:
        parser.error("nothing to say: give a WAV file, --text, or both")
    if arguments.wav is None and arguments.barge_in is not None:
        parser.error("--barge-in needs a WAV file")
    try:
        report = asyncio.run(call(_options(arguments)))
        _write(report, arguments)
    except CallFailed as error:
        print(f"bot: {error}", file=sys.stderr)
        return 1
    except (UnusableWav, OSError) as error:
        print(f"bot: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if not arguments.quiet:
        print_report(report, Console())
    for check in report.checks:
        if not check.passed:
            print(f"bot: FAILED {check.name}: {check.detail}", file=sys.stderr)
    return 0 if report.passed else 1


def _write(report: BotReport, arguments: argparse.Namespace) -> None:
    if arguments.save is not None:
        write_wav(arguments.save, report.recording)
    if arguments.json is not None:
        arguments.json.write_text(report.to_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
