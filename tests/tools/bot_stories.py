"""What a bot may have received, for tests that read it."""

from __future__ import annotations

from tests.support.audio import constant
from tools.bot_audio import HeardFrame
from tools.bot_events import Received
from voice_rtc.core.audio import Samples

LOUD = constant(5000, 960)


def event(kind: str, at: float = 0.0, **fields: object) -> Received:
    return Received(at, {"type": kind, **fields})


def committed(item: str) -> Received:
    return event("input_audio_buffer.committed", item_id=item)


def understood(item: str, text: str) -> Received:
    kind = "conversation.item.input_audio_transcription.completed"
    return event(kind, item_id=item, transcript=text)


def created(response: str, at: float = 0.0) -> Received:
    return event("response.created", at, response={"id": response})


def done(response: str, status: str = "completed") -> Received:
    return event("response.done", response={"id": response, "status": status})


def playing(change: str, response: str) -> Received:
    return event(f"output_audio_buffer.{change}", response_id=response)


def waiting(position: int, at: float = 0.0) -> Received:
    return event("voice_rtc.queue.updated", at, position=position, waiting=position)


def granted(at: float = 0.0) -> Received:
    return event("voice_rtc.queue.granted", at, waited_seconds=1.0)


ANSWERED = [
    committed("a"),
    understood("a", "Hello."),
    created("r"),
    playing("started", "r"),
    done("r"),
    playing("stopped", "r"),
]


def frame(at: float, number: int, samples: Samples) -> HeardFrame:
    return HeardFrame(at, number * 960, samples, bool(samples.any()))
