"""Call events as OpenAI Realtime (GA) server events.

Pure: a call event in, JSON objects out, in the order that stock clients accept. The published
schema (``openai.types.realtime``) is the contract; the tests validate every event against it.
Our own events are named ``voice_rtc.*``; stock clients hand them through or ignore them.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import singledispatchmethod
from typing import Any

from voice_rtc.call import events
from voice_rtc.core.history import Conversation, Item
from voice_rtc.engines.base import Usage
from voice_rtc.errors import UnknownItem, VoiceRtcError

Json = dict[str, Any]

SPARE_EVENTS = frozenset(
    {
        "voice_rtc.transcript.partial",
        "voice_rtc.turn.metrics",
        "voice_rtc.queue.updated",
        "response.output_audio_transcript.delta",
        "response.output_text.delta",
    }
)
"""What may be dropped when a client does not read: later events say the same or better."""

_CANCEL_REASONS = {
    "barge_in": "turn_detected",
    "resumed": "turn_detected",
    "cancelled": "client_cancelled",
}


def render_item(item: Item) -> Json:
    """A conversation item as clients know it."""
    return {
        "id": item.id,
        "object": "realtime.item",
        "type": "message",
        "role": item.role,
        "status": item.status,
        "content": [_content(item)],
    }


def _content(item: Item) -> Json:
    if item.role == "assistant":
        if item.spoken:
            return {"type": "output_audio", "transcript": item.text or ""}
        return {"type": "output_text", "text": item.text or ""}
    if item.spoken:
        # The key must be there although the text is not yet: clients read it.
        return {"type": "input_audio", "transcript": item.text}
    return {"type": "input_text", "text": item.text or ""}


def _usage(usage: Usage | None) -> Json | None:
    """Tokens of the language model; speech costs none here."""
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def render_error(error: VoiceRtcError, event_id: str | None = None) -> Json:
    """An ``error`` event."""
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    body = {
        "type": kind,
        "code": error.code,
        "message": str(error),
        "param": error.param,
        "event_id": event_id,
    }
    return {"type": "error", "error": body}


class RealtimeEvents:
    """Renders the events of one call; remembers which reply is spoken and which is text."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def _item(self, item_id: str) -> Json:
        try:
            return render_item(self._conversation.get(item_id))
        except UnknownItem:
            return {
                "id": item_id,
                "object": "realtime.item",
                "type": "message",
                "role": "assistant",
                "status": "incomplete",
                "content": [],
            }

    def _spoken(self, item_id: str) -> bool:
        try:
            return self._conversation.get(item_id).spoken
        except UnknownItem:
            return True

    @singledispatchmethod
    def render(self, event: events.CallEvent) -> list[Json]:
        """The server events that tell of ``event``; an event without a rendering is a bug."""
        raise NotImplementedError(type(event).__name__)

    @render.register
    def _(self, event: events.CallerSpeechStarted) -> list[Json]:
        return [
            {
                "type": "input_audio_buffer.speech_started",
                "item_id": event.item_id,
                "audio_start_ms": event.at_ms,
            }
        ]

    @render.register
    def _(self, event: events.CallerSpeechStopped) -> list[Json]:
        return [
            {
                "type": "input_audio_buffer.speech_stopped",
                "item_id": event.item_id,
                "audio_end_ms": event.at_ms,
            }
        ]

    @render.register
    def _(self, event: events.CallerSilent) -> list[Json]:
        return [
            {
                "type": "input_audio_buffer.timeout_triggered",
                "item_id": event.item_id,
                "audio_start_ms": event.from_ms,
                "audio_end_ms": event.until_ms,
            }
        ]

    @render.register
    def _(self, event: events.TurnCommitted) -> list[Json]:
        after = {"previous_item_id": event.after}
        added = {"type": "conversation.item.added", "item": self._item(event.item_id), **after}
        return [
            {"type": "input_audio_buffer.committed", "item_id": event.item_id, **after},
            *([] if event.reopened else [added]),
        ]

    @render.register
    def _(self, event: events.CallerPartial) -> list[Json]:
        return [
            {"type": "voice_rtc.transcript.partial", "item_id": event.item_id, "text": event.text}
        ]

    @render.register
    def _(self, event: events.CallerTranscript) -> list[Json]:
        kind = "conversation.item.input_audio_transcription"
        place = {"item_id": event.item_id, "content_index": 0}
        done = {
            "type": f"{kind}.completed",
            **place,
            "transcript": event.text,
            "usage": {"type": "duration", "seconds": round(event.audio_seconds, 3)},
        }
        news = event.text.removeprefix(event.earlier)
        delta = {"type": f"{kind}.delta", **place, "delta": news}
        item_done = {
            "type": "conversation.item.done",
            "item": self._item(event.item_id),
            "previous_item_id": None,
        }
        return [item_done, *([delta] if news else []), done]

    @render.register
    def _(self, event: events.CallerTranscriptFailed) -> list[Json]:
        return [
            {
                "type": "conversation.item.input_audio_transcription.failed",
                "item_id": event.item_id,
                "content_index": 0,
                "error": {
                    "type": "server_error",
                    "code": event.error.code,
                    "message": str(event.error),
                },
            }
        ]

    @render.register
    def _(self, event: events.ReplyCreated) -> list[Json]:
        item = self._item(event.item_id)
        empty = {**item, "content": []}
        response = {
            "object": "realtime.response",
            "id": event.reply_id,
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "output_modalities": ["audio" if self._spoken(event.item_id) else "text"],
        }
        place = {"response_id": event.reply_id, "output_index": 0}
        return [
            {"type": "response.created", "response": response},
            {"type": "response.output_item.added", **place, "item": empty},
            {"type": "conversation.item.added", "item": empty, "previous_item_id": event.after},
            {
                "type": "response.content_part.added",
                **place,
                "item_id": event.item_id,
                "content_index": 0,
                "part": self._part(event.item_id, ""),
            },
        ]

    def _part(self, item_id: str, text: str) -> Json:
        if self._spoken(item_id):
            return {"type": "audio", "transcript": text}
        return {"type": "text", "text": text}

    @render.register
    def _(self, event: events.ReplyText) -> list[Json]:
        spoken = self._spoken(event.item_id)
        kind = "response.output_audio_transcript" if spoken else "response.output_text"
        return [
            {
                "type": f"{kind}.delta",
                "response_id": event.reply_id,
                "item_id": event.item_id,
                "output_index": 0,
                "content_index": 0,
                "delta": event.delta,
            }
        ]

    @render.register
    def _(self, event: events.ReplyAudible) -> list[Json]:
        return [{"type": "output_audio_buffer.started", "response_id": event.reply_id}]

    @render.register
    def _(self, event: events.ReplyInterrupted) -> list[Json]:
        heard_ms = round(event.heard.seconds * 1000)
        cleared = {"type": "output_audio_buffer.cleared", "response_id": event.reply_id}
        status = {"type": "cancelled", "reason": _CANCEL_REASONS[event.reason]}
        return [
            *([cleared] if event.audible else []),
            {
                "type": "conversation.item.truncated",
                "item_id": event.item_id,
                "content_index": 0,
                "audio_end_ms": heard_ms,
            },
            {
                "type": "voice_rtc.reply.heard",
                "item_id": event.item_id,
                "response_id": event.reply_id,
                "text": event.heard.text,
                "complete": event.heard.complete,
                "audio_end_ms": heard_ms,
            },
            self._done(event.reply_id, event.item_id, "cancelled", status, event.usage),
        ]

    @render.register
    def _(self, event: events.ReplyFinished) -> list[Json]:
        place = {
            "response_id": event.reply_id,
            "item_id": event.item_id,
            "output_index": 0,
        }
        part = {**place, "content_index": 0}
        item = self._item(event.item_id)
        details: Json | None = None
        if event.error is not None:
            cause = {"type": "server_error", "code": event.error.code, "message": str(event.error)}
            details = {"type": "failed", "error": cause}
        status = "failed" if details else "completed"
        stopped = {"type": "output_audio_buffer.stopped", "response_id": event.reply_id}
        return [
            *self._text_done(event, part),
            {
                "type": "response.content_part.done",
                **part,
                "part": self._part(event.item_id, event.text),
            },
            {
                "type": "response.output_item.done",
                "response_id": event.reply_id,
                "output_index": 0,
                "item": item,
            },
            {"type": "conversation.item.done", "item": item, "previous_item_id": None},
            self._done(event.reply_id, event.item_id, status, details, event.usage),
            *([stopped] if event.audible else []),
        ]

    def _text_done(self, event: events.ReplyFinished, part: Json) -> list[Json]:
        if not self._spoken(event.item_id):
            return [{"type": "response.output_text.done", **part, "text": event.text}]
        return [
            {"type": "response.output_audio.done", **part},
            {
                "type": "response.output_audio_transcript.done",
                **part,
                "transcript": event.text,
            },
        ]

    def _done(
        self, reply_id: str, item_id: str, status: str, details: Json | None, usage: Usage | None
    ) -> Json:
        response = {
            "object": "realtime.response",
            "id": reply_id,
            "status": status,
            "status_details": details,
            "output": [self._item(item_id)],
            "output_modalities": ["audio" if self._spoken(item_id) else "text"],
            "usage": _usage(usage),
        }
        return {"type": "response.done", "response": response}

    @render.register
    def _(self, event: events.EngineFailed) -> list[Json]:
        return [render_error(event.error)]

    @render.register
    def _(self, event: events.TurnMeasured) -> list[Json]:
        figures = asdict(event)
        response_id = figures.pop("reply_id")
        return [{"type": "voice_rtc.turn.metrics", **figures, "response_id": response_id}]

    @render.register
    def _(self, event: events.QueueUpdated) -> list[Json]:
        eta = None if event.eta_seconds is None else round(event.eta_seconds, 1)
        return [{"type": "voice_rtc.queue.updated", **asdict(event), "eta_seconds": eta}]

    @render.register
    def _(self, event: events.QueueGranted) -> list[Json]:
        return [{"type": "voice_rtc.queue.granted", **asdict(event)}]

    @render.register
    def _(self, event: events.Degraded) -> list[Json]:
        return [{"type": "voice_rtc.degraded", **asdict(event)}]

    @render.register
    def _(self, event: events.GoingAway) -> list[Json]:
        return [{"type": "voice_rtc.going_away", **asdict(event)}]

    @render.register
    def _(self, event: events.Ended) -> list[Json]:
        return [{"type": "voice_rtc.call.ended", **asdict(event)}]
