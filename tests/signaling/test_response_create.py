"""Replies that a client asks for: what it wants of one holds for that one only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from signaling.main import Server
from tests.signaling.test_realtime_events import validate
from tests.support.audio import tone
from tests.support.caller import Caller, Json, calling
from tests.support.server import serving
from voice_rtc.core.history import Message
from voice_rtc.engines.base import EngineSet, LlmEvent, LlmOptions
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.llm.openai import AS_CONFIGURED


class NotingLlm(EchoLlm):
    """Notes with which system prompt and length each answer was asked for."""

    def __init__(self, replies: Sequence[str] = ("Yes.",), **kwargs: Any) -> None:
        super().__init__(replies, **kwargs)
        self.asked_for: list[tuple[str, int | None]] = []

    async def stream(
        self, messages: Sequence[Message], options: LlmOptions = AS_CONFIGURED
    ) -> AsyncGenerator[LlmEvent, None]:
        self.asked_for.append((messages[0].content, options.max_tokens))
        async for event in super().stream(messages, options):
            yield event


@asynccontextmanager
async def call(llm: EchoLlm, **settings: Any) -> AsyncIterator[tuple[Server, Caller]]:
    chosen = EngineSet(
        ThresholdVad(), ScriptedStt(("Hello.",)), llm, ToneTts(seconds_per_character=0.01)
    )
    async with (
        asyncio.timeout(50),
        serving(chosen, session={"instructions": "Be kind."}, **settings) as server,
        calling(server.url) as caller,
    ):
        yield server, caller
        for _, event in caller.events:
            validate(event)


async def ask(caller: Caller, **wishes: Any) -> Json:
    """Type something, ask for a reply, wait for its end."""
    before = len(caller.events)
    content = [{"type": "input_text", "text": "hello"}]
    caller.send(type="conversation.item.create", item={"role": "user", "content": content})
    caller.send(type="response.create", response=wishes)
    done = await caller.event("response.done", after=before)
    response: Json = done["response"]
    return response


async def test_wishes_hold_for_one_reply_only() -> None:
    llm = NotingLlm()
    async with call(llm) as (_, caller):
        wanted = {
            "instructions": "Be brief.",
            "max_output_tokens": 7,
            "output_modalities": ["text"],
        }
        first = await ask(caller, **wanted)
        assert first["output_modalities"] == ["text"]
        assert first["output"][0]["content"] == [{"type": "output_text", "text": "Yes."}]
        assert "output_audio_buffer.started" not in caller.types()
        second = await ask(caller)
        assert second["output_modalities"] == ["audio"]
        assert llm.asked_for == [("Be brief.", 7), ("Be kind.", None)]


async def test_one_reply_can_be_spoken_in_a_call_of_text() -> None:
    async with call(NotingLlm()) as (_, caller):
        caller.send(type="session.update", session={"output_modalities": ["text"]})
        spoken = await ask(caller, output_modalities=["audio"])
        assert spoken["output_modalities"] == ["audio"]
        assert "output_audio_buffer.started" in caller.types()
        assert (await ask(caller))["output_modalities"] == ["text"]


async def test_metadata_comes_back_with_its_reply_only() -> None:
    async with call(NotingLlm()) as (_, caller):
        done = await ask(caller, metadata={"topic": "weather"})
        created = await caller.event("response.created")
        assert done["metadata"] == created["response"]["metadata"] == {"topic": "weather"}
        before = len(caller.events)
        assert "metadata" not in await ask(caller)
        created = await caller.event("response.created", after=before)
        assert "metadata" not in created["response"]


async def test_metadata_is_not_given_to_the_reply_to_the_next_turn() -> None:
    slow = EchoLlm(("One.", "Two."), first_seconds=0.5, delay=asyncio.sleep)
    async with call(slow) as (_, caller):
        caller.send(type="response.create", response={"metadata": {"topic": "weather"}})
        caller.send(type="response.cancel")
        cancelled = await caller.event("response.done")
        assert cancelled["response"]["metadata"] == {"topic": "weather"}
        before = len(caller.events)
        await caller.say(tone(0.6))
        answered = await caller.event("response.done", after=before)
        assert "metadata" not in answered["response"]


async def test_what_is_refused_starts_no_reply() -> None:
    async with call(NotingLlm()) as (server, caller):
        for wishes in ({"conversation": "none"}, {"input": []}, {"tools": [{"type": "function"}]}):
            before = len(caller.events)
            caller.send(type="response.create", event_id="mine", response=wishes)
            error = (await caller.event("error", after=before))["error"]
            assert (error["code"], error["event_id"]) == ("unsupported_parameter", "mine")
        assert server.registry.snapshot()[0].replies == 0
        assert (await ask(caller))["status"] == "completed"


async def test_a_session_that_became_too_large_is_refused_and_stays_as_it_was() -> None:
    async with call(NotingLlm(), limits={"session_bytes": 256}) as (_, caller):
        caller.send(type="session.update", event_id="mine", session={"x": "y" * 300})
        error = (await caller.event("error"))["error"]
        assert (error["code"], error["event_id"]) == ("session_too_large", "mine")
        caller.send(type="session.update", session={"tracing": "auto"})
        updated = await caller.event("session.updated")
        assert "x" not in updated["session"] and updated["session"]["tracing"] == "auto"
