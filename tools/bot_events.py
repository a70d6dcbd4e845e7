"""What the server's events say about turns, responses and the waiting line.

Pure functions over the events received.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TRANSCRIPTION = "conversation.item.input_audio_transcription"
_TRANSCRIPTS = (f"{_TRANSCRIPTION}.completed", f"{_TRANSCRIPTION}.failed")
_WAITS, _GRANTED = "voice_rtc.queue.updated", "voice_rtc.queue.granted"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Received:
    """One server event and the loop time of its arrival."""

    at: float
    body: Json

    @property
    def type(self) -> str:
        """The event's type."""
        return str(self.body.get("type", ""))


def in_line(events: Sequence[Received]) -> bool:
    """Does the caller wait for its turn? Until it is granted nobody listens to it."""
    about = [event.type for event in events if event.type in (_WAITS, _GRANTED)]
    return bool(about) and about[-1] == _WAITS


def positions(events: Sequence[Received]) -> list[int]:
    """The places in the line that the caller was told, each as long as it had it once."""
    told = [int(event.body["position"]) for event in events if event.type == _WAITS]
    return [place for place, _ in itertools.groupby(told)]


def seconds_in_line(events: Sequence[Received]) -> float | None:
    """From the first word of waiting to the grant or, without one, to the newest event; or None."""
    since = next((event.at for event in events if event.type == _WAITS), None)
    if since is None:
        return None
    until = next((event.at for event in events if event.type == _GRANTED), events[-1].at)
    return until - since


def response_id(event: Received) -> str:
    """The id of the response that the event is about, empty when it is about none."""
    return str(event.body.get("response_id") or event.body.get("response", {}).get("id", ""))


def response_is_over(events: Sequence[Received], response: str) -> bool:
    """Is it done, and has all that was made of it been played or thrown away?

    A cancelled one is thrown away, whether or not the server says so.
    """
    if status_of(events, response) == "cancelled":
        return True
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
    # A turn that was reopened is committed again, and has another transcript.
    return types["input_audio_buffer.committed"] > sum(types[kind] for kind in _TRANSCRIPTS)


def committed_items(events: Sequence[Received]) -> set[str]:
    """Ids of the caller's turns."""
    wanted = "input_audio_buffer.committed"
    return {event.body["item_id"] for event in events if event.type == wanted}


def transcripts(events: Sequence[Received]) -> dict[str, str]:
    """Id of a caller's turn -> what was understood; empty when nothing was."""
    return {
        event.body["item_id"]: event.body.get("transcript", "")
        for event in events
        if event.type in _TRANSCRIPTS
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

    Speech with a pause in it may be several turns for the server; the last one's reply counts. It
    may have been cancelled: then nothing is owed for it any more.
    """
    if pending_speech(events):
        return False
    created = last_response(events)
    if created is None:
        said = transcripts(events)
        return bool(said) and not any(said.values())
    return response_is_over(events, response_id(created))


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
