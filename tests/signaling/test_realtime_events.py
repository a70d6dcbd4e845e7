"""Every event we send is one of the published schema; every message is served or refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from signaling.main import Server
from tests.support.audio import tone
from tests.support.caller import Caller, calling
from tests.support.server import serving

SCHEMA: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


def validate(event: dict[str, Any]) -> None:
    """Check a standard event against its class of the published schema, strictly by type."""
    if event["type"].startswith("voice_rtc."):
        return
    model = SCHEMA.validate_json(json.dumps(event))
    assert model.type == event["type"], f"no class of the schema takes {event}"
    assert not (set(event) - set(type(model).model_fields)), f"fields beyond the schema: {event}"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@pytest.fixture
async def caller(server: Server) -> AsyncIterator[Caller]:
    async with asyncio.timeout(50), calling(server.url) as connected:
        yield connected
        for _, event in connected.events:
            validate(event)


async def turn(caller: Caller, seconds: float = 0.8) -> int:
    """Speak once; returns the index behind the events before it."""
    before = len(caller.events)
    await caller.say(tone(seconds))
    return before


def kinds(caller: Caller, start: int = 0) -> list[str]:
    return caller.types()[start:]


async def test_a_turn_and_its_reply_in_order(caller: Caller) -> None:
    await turn(caller)
    await caller.event("output_audio_buffer.stopped")
    wanted = [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
        "output_audio_buffer.started",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
        "output_audio_buffer.stopped",
    ]
    seen = [
        kind
        for number, kind in enumerate(kinds(caller))
        if not kind.startswith("voice_rtc.")
        and not (kind.endswith("transcript.delta") and kind in kinds(caller)[:number])
    ]
    assert seen == wanted


async def test_user_audio_carries_the_transcript_key_before_and_after(caller: Caller) -> None:
    await turn(caller)
    added = await caller.event("conversation.item.added")
    assert added["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    done = await caller.event("conversation.item.input_audio_transcription.completed")
    caller.send(type="conversation.item.retrieve", item_id=added["item"]["id"])
    retrieved = await caller.event("conversation.item.retrieved")
    assert retrieved["item"]["content"][0]["transcript"] == done["transcript"] != ""
    # The fake's words end here: what the caller hears of it is tested in tests/call.
    await caller.event("response.done")


async def test_barge_in_order(caller: Caller) -> None:
    await turn(caller)
    await caller.event("output_audio_buffer.started")
    before = await turn(caller, 1.0)
    done = await caller.event("response.done", after=before)
    assert done["response"]["status"] == "cancelled"
    assert done["response"]["status_details"]["reason"] == "turn_detected"
    order = [
        kind
        for kind in kinds(caller, before)
        if kind
        in (
            "input_audio_buffer.speech_started",
            "output_audio_buffer.cleared",
            "conversation.item.truncated",
            "voice_rtc.reply.heard",
            "response.done",
        )
    ]
    assert order[:5] == [
        "input_audio_buffer.speech_started",
        "output_audio_buffer.cleared",
        "conversation.item.truncated",
        "voice_rtc.reply.heard",
        "response.done",
    ]
    truncated = await caller.event("conversation.item.truncated", after=before)
    caller.send(type="conversation.item.retrieve", item_id=truncated["item_id"])
    retrieved = await caller.event("conversation.item.retrieved")
    heard = await caller.event("voice_rtc.reply.heard")
    assert retrieved["item"]["status"] == "incomplete"
    assert retrieved["item"]["content"][0]["transcript"] == heard["text"]
    full = "".join(
        event["delta"]
        for _, event in caller.events[:before]
        if event["type"] == "response.output_audio_transcript.delta"
    )
    assert full.startswith(heard["text"]) and len(heard["text"]) < len(full)
    following = caller.types().index("response.done") + 1
    await caller.event("output_audio_buffer.started", after=following)  # the next turn works


async def test_typed_text_is_answered(caller: Caller) -> None:
    caller.send(
        type="conversation.item.create",
        item={
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "typed words"}],
        },
    )
    caller.send(type="response.create")
    done = await caller.event("response.done")
    assert done["response"]["status"] == "completed"
    assert "typed words" in done["response"]["output"][0]["content"][0]["transcript"]


async def test_text_only_replies(caller: Caller) -> None:
    caller.send(type="session.update", session={"type": "realtime", "output_modalities": ["text"]})
    await caller.event("session.updated")
    caller.send(
        type="conversation.item.create",
        item={"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    )
    caller.send(type="response.create")
    done = await caller.event("response.done")
    assert done["response"]["output"][0]["content"][0]["type"] == "output_text"
    assert "response.output_text.done" in caller.types()
    assert "output_audio_buffer.started" not in caller.types()


async def test_session_update_twice_as_the_sdk_does(caller: Caller) -> None:
    caller.send(
        type="session.update",
        session={
            "type": "realtime",
            "instructions": "Be brief.",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                    "turn_detection": {"type": "semantic_vad"},
                },
                "output": {"voice": "ash", "speed": 1},
            },
            "tools": [],
        },
    )
    first = await caller.event("session.updated")
    assert first["session"]["instructions"] == "Be brief."
    before = len(caller.events)
    caller.send(type="session.update", session={"type": "realtime", "tracing": "auto"})
    second = await caller.event("session.updated", after=before)
    assert second["session"]["instructions"] == "Be brief."
    assert second["session"]["audio"]["output"]["voice"] == "ash"


async def test_push_to_talk(caller: Caller) -> None:
    caller.send(
        type="session.update",
        session={"type": "realtime", "audio": {"input": {"turn_detection": None}}},
    )
    await caller.event("session.updated")
    caller.send(type="input_audio_buffer.clear")
    await caller.event("input_audio_buffer.cleared")
    before = await turn(caller)
    assert "input_audio_buffer.speech_started" not in caller.types()
    caller.send(type="input_audio_buffer.commit")
    caller.send(type="response.create")
    heard = await caller.event("conversation.item.input_audio_transcription.completed")
    assert heard["transcript"] and heard["usage"]["seconds"] > 0.5
    metrics = await caller.event("voice_rtc.turn.metrics", after=before)
    assert metrics["item_id"] == heard["item_id"] and metrics["response_ms"] > 0
    done = await caller.event("response.done", after=before)
    assert done["response"]["status"] == "completed"


async def test_a_commit_of_nothing_is_refused(caller: Caller) -> None:
    caller.send(type="input_audio_buffer.commit", event_id="mine")
    error = await caller.event("error")
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"
    assert error["error"]["event_id"] == "mine"


async def test_response_create_during_a_reply_is_refused_and_cancel_works(caller: Caller) -> None:
    await turn(caller)
    await caller.event("output_audio_buffer.started")
    caller.send(type="response.create", event_id="second")
    error = await caller.event("error")
    assert error["error"]["code"] == "conversation_already_has_active_response"
    assert error["error"]["event_id"] == "second"
    caller.send(type="response.cancel")
    caller.send(type="output_audio_buffer.clear")
    done = await caller.event("response.done")
    assert done["response"]["status_details"] == {
        "type": "cancelled",
        "reason": "client_cancelled",
    }
    caller.send(type="response.cancel", event_id="third")
    await caller.event("error", lambda e: e["error"]["code"] == "response_cancel_not_active")


async def test_items_can_be_truncated_and_deleted(caller: Caller) -> None:
    await turn(caller)
    done = await caller.event("response.done")
    item_id = done["response"]["output"][0]["id"]
    caller.send(type="conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=0)
    truncated = await caller.event("conversation.item.truncated")
    assert truncated["audio_end_ms"] == 0
    caller.send(type="conversation.item.retrieve", item_id=item_id)
    assert (await caller.event("conversation.item.retrieved"))["item"]["content"][0][
        "transcript"
    ] == ""
    caller.send(type="conversation.item.delete", item_id=item_id)
    await caller.event("conversation.item.deleted")
    caller.send(type="conversation.item.retrieve", item_id=item_id)
    await caller.event("error", lambda e: e["error"]["code"] == "item_not_found")


GARBAGE: list[tuple[str, str]] = [
    ("{", "invalid_json"),
    ("null", "invalid_event"),
    ('"hello"', "invalid_event"),
    ("{}", "unknown_event"),
    ('{"type": 7}', "unknown_event"),
    ('{"type": ["session.update"]}', "unknown_event"),
    ('{"type": "no.such.event"}', "unknown_event"),
    ('{"type": "session.update", "session": 7}', "invalid_type"),
    ('{"type": "session.update", "session": {"audio": []}}', "invalid_type"),
    ('{"type": "session.update", "session": {"type": "nonsense"}}', "invalid_value"),
    ('{"type": "response.create", "response": 7}', "invalid_type"),
    ('{"type": "response.create", "response": {"instructions": 7}}', "invalid_type"),
    ('{"type": "response.create", "response": {"metadata": 7}}', "invalid_type"),
    ('{"type": "session.update", "session": {"max_output_tokens": -1}}', "invalid_value"),
    (
        '{"type": "session.update", "session": {"x": ' + "[" * 900 + "]" * 900 + "}}",
        "invalid_value",
    ),
    ('{"type": "conversation.item.create"}', "invalid_type"),
    ('{"type": "conversation.item.create", "item": {"role": "robot"}}', "unsupported_item"),
    ('{"type": "conversation.item.create", "item": {"role": "user"}}', "invalid_value"),
    (
        '{"type": "conversation.item.create", "item": {"role": "user", "content": [7]}}',
        "unsupported_content",
    ),
    (
        '{"type": "conversation.item.create", "item": {"role": "user", "id": 5,'
        ' "content": [{"type": "input_text", "text": "x"}]}}',
        "invalid_id",
    ),
    (
        '{"type": "conversation.item.create", "previous_item_id": "none", "item":'
        ' {"role": "user", "content": [{"type": "input_text", "text": "x"}]}}',
        "item_not_found",
    ),
    ('{"type": "conversation.item.retrieve"}', "item_not_found"),
    ('{"type": "conversation.item.retrieve", "item_id": "x"}', "item_not_found"),
    ('{"type": "conversation.item.delete", "item_id": {}}', "item_not_found"),
    ('{"type": "conversation.item.truncate", "item_id": "x"}', "invalid_value"),
    ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "unsupported_event"),
    ("x" * 20_000, "message_too_large"),
]


async def test_garbage_gets_an_error_with_a_code_and_the_call_goes_on(caller: Caller) -> None:
    assert caller.connection.sctp is not None
    caller.connection.sctp._remote_max_message_size = 0  # a client that reads no limits
    for text, code in GARBAGE:
        before = len(caller.events)
        caller.channel.send(text)
        error = await caller.event("error", after=before)
        assert error["error"]["code"] == code, text
    caller.channel.send(b"\xff\x00\xfe")
    await turn(caller)
    await caller.event("response.done")


async def test_a_flood_of_messages_slows_the_flooder_only(server: Server, caller: Caller) -> None:
    for _ in range(60):
        caller.send(type="conversation.item.retrieve", item_id="x")
    async with calling(server.url) as other:
        await turn(other)
        await other.event("response.done")
        await other.hang_up()
    await turn(caller)
    await caller.event("output_audio_buffer.started")
