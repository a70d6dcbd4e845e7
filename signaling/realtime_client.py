"""The adapter between one call and one OpenAI Realtime client on its data channel."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from aiolimiter import AsyncLimiter

from signaling.realtime_events import Json, RealtimeEvents, render_error, render_item
from signaling.realtime_session import (
    Session,
    Terms,
    call_settings,
    merged,
    reply_wishes,
    text_of,
)
from voice_rtc.call import events
from voice_rtc.call.call import Call
from voice_rtc.core.history import Item
from voice_rtc.errors import BadRequest, RateLimited, UnknownItem, VoiceRtcError
from voice_rtc.media.channel import Rejected

_ROLES = ("user", "system", "assistant")
_TEXT_KINDS = ("input_text", "output_text", "text")
_WITH_METADATA = ("response.created", "response.done")


class RealtimeClient:
    """Implements ``call.events.EventSink``; `run` reads the client's messages."""

    def __init__(self, call: Call, terms: Terms) -> None:
        """``call`` is set as the server has it."""
        self._call = call
        self._terms = terms
        self._session = self._defaults = terms.defaults
        self._default_settings = call.settings
        self._limits = limits = terms.limits
        self._metadata: dict[str, str] = {}
        self._metadata_of: str | None = None
        """Id of the response that the client asked for last."""
        self._events = RealtimeEvents(call.conversation)
        self._early: deque[Json] | None = deque(maxlen=limits.channel_events)
        """What happened before the client was greeted; None afterwards."""
        self._handlers: dict[str, Callable[[Json], None]] = {
            "session.update": self._update_session,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
            "output_audio_buffer.clear": self._clear_output,
            "input_audio_buffer.append": self._append_audio,
            "input_audio_buffer.clear": self._clear_input,
            "input_audio_buffer.commit": self._commit_input,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.truncate": self._truncate_item,
            "conversation.item.delete": self._delete_item,
        }

    def emit(self, event: events.CallEvent) -> None:
        """Tell the client of ``event``."""
        for rendered in self._events.render(event):
            if rendered["type"] in _WITH_METADATA:
                self._add_metadata(rendered["response"])
            self._send(rendered)

    def configure(self, update: Session) -> None:
        """Lay ``update`` over the session. Raises BadRequest; then nothing has changed."""
        session = merged(self._session, update, self._terms)
        settings = call_settings(session, self._defaults, self._default_settings)
        self._session = session
        self._call.configure(settings)

    async def run(self) -> None:
        """Greet the client when it opens the channel, then serve its messages."""
        channel = self._call.peer.channel
        await channel.opened()
        early, self._early = self._early, None
        self._send({"type": "session.created", "session": self._session})
        for event in early or ():
            self._send(event)
        channel.on_limit = lambda message: self._refuse(RateLimited(message), None)
        burst = max(1.0, 2 * self._limits.channel_messages_per_second)
        limiter = AsyncLimiter(burst, burst / self._limits.channel_messages_per_second)
        async for message in channel.messages():
            async with limiter:
                self._serve(message)

    def _serve(self, message: Json | Rejected) -> None:
        if isinstance(message, Rejected):
            self._refuse(BadRequest(str(message), code=message.code), None)
            return
        event_id = message.get("event_id")
        event_id = event_id if isinstance(event_id, str) else None
        handler = self._handlers.get(str(message.get("type")))
        if handler is None:
            kind = str(message.get("type"))[:64]
            self._refuse(BadRequest(f"unknown event type {kind}", code="unknown_event"), event_id)
            return
        try:
            handler(message)
        except VoiceRtcError as error:
            self._refuse(error, event_id)

    def _refuse(self, error: VoiceRtcError, event_id: str | None) -> None:
        rendered = render_error(error, event_id)
        # Whatever a message is refused for is the client's to mend.
        rendered["error"]["type"] = "invalid_request_error"
        self._send(rendered)

    def _send(self, event: Json) -> None:
        if self._early is not None:
            self._early.append(event)  # clients expect session.created to be the first
            return
        self._call.peer.channel.send({"event_id": f"event_{token_hex(10)}", **event})

    # ------------------------------------------------------------- messages

    def _update_session(self, message: Json) -> None:
        self.configure(message.get("session", {}))
        self._send({"type": "session.updated", "session": self._session})

    def _create_response(self, message: Json) -> None:
        wanted = message.get("response") or {}
        if not isinstance(wanted, dict):
            raise BadRequest("response must be an object", code="invalid_type")
        limit = self._limits.text_characters
        wishes, metadata = reply_wishes(wanted, self._defaults, limit)
        self._metadata_of = self._call.request_reply(wishes)
        self._metadata = metadata

    def _add_metadata(self, response: Json) -> None:
        if self._metadata and response["id"] == self._metadata_of:
            response["metadata"] = self._metadata

    def _cancel_response(self, _message: Json) -> None:
        if not self._call.cancel_reply():
            raise BadRequest("no response is in progress", code="response_cancel_not_active")

    def _clear_output(self, _message: Json) -> None:
        self._call.cancel_reply()

    def _append_audio(self, _message: Json) -> None:
        raise BadRequest(
            "audio comes over the media track of this connection", code="unsupported_event"
        )

    def _clear_input(self, _message: Json) -> None:
        self._call.clear_audio()
        self._send({"type": "input_audio_buffer.cleared"})

    def _commit_input(self, _message: Json) -> None:
        self._call.commit_audio()

    def _create_item(self, message: Json) -> None:
        item = self._parse_item(message.get("item"))
        previous = message.get("previous_item_id")
        if previous is not None and not isinstance(previous, str):
            raise BadRequest("previous_item_id must be a string", code="invalid_type")
        after = self._call.add_item(item, previous)
        place = {"item": render_item(item), "previous_item_id": after}
        self._send({"type": "conversation.item.added", **place})
        self._send({"type": "conversation.item.done", **place})

    def _retrieve_item(self, message: Json) -> None:
        item = self._call.conversation.get(self._item_id(message))
        self._send({"type": "conversation.item.retrieved", "item": render_item(item)})

    def _truncate_item(self, message: Json) -> None:
        item_id = self._item_id(message)
        end_ms = message.get("audio_end_ms")
        if not isinstance(end_ms, int) or isinstance(end_ms, bool) or end_ms < 0:
            raise BadRequest("audio_end_ms must be a whole number from 0", code="invalid_value")
        heard_ms = self._call.truncate_item(item_id, end_ms)
        self._send(
            {
                "type": "conversation.item.truncated",
                "item_id": item_id,
                "content_index": 0,
                "audio_end_ms": heard_ms,
            }
        )

    def _delete_item(self, message: Json) -> None:
        item_id = self._item_id(message)
        self._call.conversation.delete(item_id)
        self._send({"type": "conversation.item.deleted", "item_id": item_id})

    # -------------------------------------------------------------- parsing

    def _item_id(self, message: Json) -> str:
        item_id = message.get("item_id")
        if not isinstance(item_id, str):
            raise UnknownItem("item_id must be a string")
        return item_id

    def _parse_item(self, given: Any) -> Item:
        if not isinstance(given, dict):
            raise BadRequest("item must be an object", code="invalid_type")
        if given.get("type", "message") != "message" or given.get("role") not in _ROLES:
            raise BadRequest(
                "only messages of the roles user, system and assistant can be added",
                code="unsupported_item",
            )
        item_id = given.get("id") or f"item_{token_hex(10)}"
        if not isinstance(item_id, str) or len(item_id) > 64:
            raise BadRequest("item.id must be a string of at most 64 characters", code="invalid_id")
        parts = given.get("content")
        if not isinstance(parts, list) or not parts:
            raise BadRequest("item.content must be a list with text", code="invalid_value")
        text = " ".join(self._part_text(part) for part in parts)
        return Item(item_id, given["role"], False, self._text_of(text, "item"), "completed")

    def _part_text(self, part: Any) -> str:
        if not isinstance(part, dict) or part.get("type") not in _TEXT_KINDS:
            raise BadRequest("only text content can be added", code="unsupported_content")
        return self._text_of(part.get("text"), "content.text")

    def _text_of(self, value: Any, name: str) -> str:
        return text_of(value, name, self._limits.text_characters)
