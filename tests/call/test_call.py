"""Stories of whole calls: real peers, scripted engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from signaling.main import Server
from tests.support.audio import speech_clips, tone
from tests.support.caller import Caller, calling
from tests.support.server import serving
from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, rms_dbfs, silence
from voice_rtc.engines.base import EngineSet, LlmEvent, Usage
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ScriptedTurnModel, ThresholdVad, ToneTts
from voice_rtc.errors import EngineCrashed, EngineError, LlmError

LONG_REPLY = "This is the first sentence of it. And this is the second one, which is not short."


def engines(
    finals: tuple[str | EngineError, ...] = ("Hello.",),
    replies: tuple[str | EngineError, ...] = (),
    tts: ToneTts | None = None,
    slots: int = 8,
) -> EngineSet:
    voice = tts or ToneTts(seconds_per_character=0.03)  # twice as fast: what is told is the same
    return EngineSet(ThresholdVad(), ScriptedStt(finals, slots=slots), EchoLlm(replies), voice)


@asynccontextmanager
async def call(
    chosen: EngineSet | None = None, **settings: Any
) -> AsyncIterator[tuple[Server, Caller]]:
    async with (
        asyncio.timeout(50),
        serving(chosen or engines(), **settings) as server,
        calling(server.url) as caller,
    ):
        yield server, caller


def count(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0


async def speak(caller: Caller, seconds: float = 0.8) -> int:
    before = len(caller.events)
    await caller.say(tone(seconds))
    return before


async def transcript(caller: Caller, after: int) -> str:
    done = await caller.event("conversation.item.input_audio_transcription.completed", after=after)
    text: str = done["transcript"]
    return text


async def test_the_caller_is_transcribed_and_answered() -> None:
    async with call() as (server, caller):
        before = await speak(caller)
        assert await transcript(caller, before) == "Hello."
        metrics = await caller.event("voice_rtc.turn.metrics")
        assert metrics["response_ms"] > metrics["endpoint_ms"] > 0
        await caller.event("output_audio_buffer.stopped")
        assert rms_dbfs(caller.audio()) > -40
        assert count(server, "response_seconds_count") == 1
        assert count(server, "turns_total", end="endpointing") == 1


async def test_hanging_up_frees_everything() -> None:
    async with call() as (server, caller):
        assert count(server, "leases_active") == 1 == count(server, "calls_active")
        await caller.hang_up()
        ended = await caller.event("voice_rtc.call.ended")
        assert ended["reason"] == "hangup"
        await server.registry.wait_empty()
        assert count(server, "leases_active") == 0 == count(server, "calls_active")
        assert count(server, "calls_total", outcome="hangup") == 1


async def test_a_caller_who_vanishes_frees_everything() -> None:
    async with call() as (server, caller):
        await caller.aclose()
        await server.registry.wait_empty()
        assert count(server, "calls_total", outcome="peer_gone") == 1
        assert count(server, "leases_active") == 0


async def test_an_llm_failure_is_spoken_and_the_next_turn_works() -> None:
    refused = LlmError("the key was refused", code="llm_unauthorized")
    async with call(engines(replies=(refused, "All is well."))) as (server, caller):
        await speak(caller)
        error = await caller.event("error")
        assert error["error"]["code"] == "llm_unauthorized"
        failed = await caller.event("response.done")
        assert failed["response"]["status"] == "failed"
        assert "key was refused" in failed["response"]["output"][0]["content"][0]["transcript"]
        assert "output_audio_buffer.started" in caller.types()
        before = await speak(caller)
        done = await caller.event("response.done", after=before)
        assert done["response"]["output"][0]["content"][0]["transcript"] == "All is well."
        assert count(server, "engine_failures_total", engine="llm", code="llm_unauthorized") == 1


async def test_a_tts_failure_is_shown_and_the_next_turn_works() -> None:
    text = "Something went wrong here."
    voice = ToneTts(fail_on={text: EngineCrashed("the voice died")})
    async with call(engines(replies=(text, "All is well."), tts=voice)) as (_, caller):
        await speak(caller)
        error = await caller.event("error")
        assert error["error"]["code"] == "engine_crashed"
        done = await caller.event("response.done")
        assert done["response"]["status"] == "failed"
        assert done["response"]["output"][0]["content"][0]["transcript"] == text
        before = await speak(caller)
        await caller.event("output_audio_buffer.started", after=before)


async def test_an_stt_failure_is_told_and_the_next_turn_works() -> None:
    async with call(engines(finals=(EngineCrashed("the ear died"), "Hello again."))) as (_, caller):
        await speak(caller)
        failed = await caller.event("conversation.item.input_audio_transcription.failed")
        assert failed["error"]["code"] == "engine_crashed"
        before = await speak(caller)
        assert await transcript(caller, before) == "Hello again."
        await caller.event("output_audio_buffer.started", after=before)


async def test_a_barge_in_silences_and_keeps_only_what_was_heard() -> None:
    async with call(engines(replies=(LONG_REPLY, "Yes?"))) as (server, caller):
        await speak(caller)
        await caller.event("output_audio_buffer.started")
        await caller.event("response.output_audio_transcript.delta")
        before = await speak(caller, 1.0)
        heard = await caller.event("voice_rtc.reply.heard", after=before)
        assert LONG_REPLY.startswith(heard["text"]) and not heard["complete"]
        history = next(iter(server.registry.calls())).conversation.items()
        assert history[1].text == heard["text"] and history[1].interrupted
        done = await caller.event(
            "response.done", lambda e: e["response"]["status"] == "completed", after=before
        )
        assert done["response"]["output"][0]["content"][0]["transcript"] == "Yes?"
        assert count(server, "barge_ins_total", kind="barge_in") == 1
        assert count(server, "barge_in_silence_seconds_count") == 1


async def test_a_cough_does_not_cut_the_reply() -> None:
    async with call(engines(replies=(LONG_REPLY,))) as (server, caller):
        await speak(caller)
        await caller.event("output_audio_buffer.started")
        before = await speak(caller, 0.16)
        done = await caller.event("response.done", after=before)
        assert done["response"]["status"] == "completed"
        assert "input_audio_buffer.speech_started" not in caller.types()[before:]
        assert count(server, "barge_ins_total", kind="false_alarm") == 1


async def test_a_reply_goes_on_after_a_backchannel_and_nothing_of_it_counts_twice() -> None:
    async with call(engines(finals=("Hello.", "Mhm."), replies=(LONG_REPLY,))) as (server, caller):
        await speak(caller)
        await caller.event("output_audio_buffer.started")
        before = await speak(caller, 0.8)
        done = await caller.event("response.done", after=before)
        assert done["response"]["status"] == "completed"
        assert "input_audio_buffer.speech_started" not in caller.types()[before:]
        assert count(server, "barge_ins_total", kind="backchannel") == 1
        assert count(server, "reply_rewinds_total") == 1
        reply = next(iter(server.registry.calls())).conversation.items()[1]
        assert reply.text == LONG_REPLY and not reply.interrupted
        assert reply.heard_ms == pytest.approx(len(LONG_REPLY) * 30, abs=150)


async def test_stop_is_heard_at_once_although_it_is_short() -> None:
    finals = ("Hello.", "Stop.")
    async with call(engines(finals=finals, replies=(LONG_REPLY, "Yes?"))) as (server, caller):
        await speak(caller)
        await caller.event("output_audio_buffer.started")
        before = await speak(caller, 0.26)
        await caller.event("voice_rtc.reply.heard", after=before)
        assert count(server, "barge_in_confirm_seconds_count", by="stop_word") == 1
        await caller.event("voice_rtc.transcript.partial", after=before)
        kinds = caller.types()[before:]
        started = kinds.index("input_audio_buffer.speech_started")
        assert started < kinds.index("voice_rtc.reply.heard")
        assert started < kinds.index("voice_rtc.transcript.partial")


class Reader(ToneTts):
    """Speaks in a real voice, whatever it is to say."""

    def _tone(self, seconds: float, voice: str) -> Samples:
        samples = np.concatenate([clip.samples for clip in speech_clips(self.rate_hz)])
        return samples[: int(seconds * self.rate_hz)]


def reading(*finals: str) -> EngineSet:
    """Words come as late as a real recogniser's."""
    stt = ScriptedStt(("Hello.", *finals), word_seconds=1.2)
    return EngineSet(ThresholdVad(), stt, EchoLlm((LONG_REPLY,)), Reader())


class Loudspeaker:
    """A caller without echo cancellation: what they hear goes into their microphone."""

    def __init__(self, caller: Caller, gain: float) -> None:
        self.caller = caller
        self.gain = gain
        self.voice = silence(0)
        """What the caller says into it."""

    async def run(self) -> None:
        played = len(self.caller.frames)
        while True:
            await self.caller.frame()
            for _, heard in self.caller.frames[played:]:
                said, self.voice = self.voice[: len(heard)], self.voice[len(heard) :]
                mixed = heard * self.gain
                mixed[: len(said)] += said
                self.caller.microphone.say(np.clip(mixed, -32768, 32767).astype(np.int16))
            played = len(self.caller.frames)


@asynccontextmanager
async def loudspeaker(caller: Caller, gain: float = 0.2) -> AsyncIterator[Loudspeaker]:
    speaker = Loudspeaker(caller, gain)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(speaker.run())
        yield speaker
        running.cancel()


async def test_our_own_echo_neither_interrupts_nor_becomes_a_turn() -> None:
    async with call(reading("stop the echo now")) as (server, caller):
        await speak(caller)
        async with loudspeaker(caller):
            done = await caller.event("response.done")
            assert done["response"]["status"] == "completed"
            for _ in range(50):
                await caller.microphone.frame()
        assert count(server, "barge_ins_total", kind="echo") >= 1
        assert count(server, "barge_ins_total", kind="barge_in") == 0
        assert caller.types().count("input_audio_buffer.speech_started") == 1


async def test_a_caller_who_speaks_into_the_echo_interrupts() -> None:
    async with call(reading("our own words", "But I want")) as (server, caller):
        await speak(caller)
        await caller.event("output_audio_buffer.started")
        async with loudspeaker(caller) as speaker:
            for _ in range(75):
                await caller.frame()
            assert count(server, "barge_ins_total", kind="barge_in") == 0
            speaker.voice = tone(3.0, level=0.5)
            heard = await caller.event("voice_rtc.reply.heard")
        assert not heard["complete"]
        assert count(server, "barge_ins_total", kind="barge_in") == 1


async def test_a_caller_who_says_nothing_is_spoken_to_again() -> None:
    idle = {"audio": {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 1000}}}}
    async with call(turns={"idle_prompts": 1}) as (server, caller):
        caller.send(type="session.update", session=idle)
        await caller.event("session.updated")
        before = await speak(caller)
        first = await caller.event("response.done", after=before)
        silent = await caller.event("input_audio_buffer.timeout_triggered")
        assert 900 <= silent["audio_end_ms"] - silent["audio_start_ms"] <= 1100
        committed = await caller.event(
            "input_audio_buffer.committed", lambda e: e["item_id"] == silent["item_id"]
        )
        assert committed["previous_item_id"] == first["response"]["output"][0]["id"]
        again = caller.events.index(
            next(each for each in caller.events if each[1]["type"] == silent["type"])
        )
        await caller.event("response.done", after=again)
        assert count(server, "turns_total", end="idle") == 1


async def test_a_noise_without_words_is_not_answered() -> None:
    async with call(engines(finals=("", "Hello."))) as (_, caller):
        before = await speak(caller)
        assert await transcript(caller, before) == ""
        before = await speak(caller)
        assert await transcript(caller, before) == "Hello."
        await caller.event("response.done", after=before)
        assert caller.types().count("response.created") == 1


@pytest.mark.parametrize(
    ("second", "whole"), [("Two.", "One. Two."), ("", "One.")], ids=["words", "noise"]
)
async def test_a_caller_who_goes_on_before_the_reply_is_heard_is_answered_once(
    second: str, whole: str
) -> None:
    slow = EchoLlm((), first_seconds=0.8, delay=asyncio.sleep)
    chosen = EngineSet(ThresholdVad(), ScriptedStt(("One.", second)), slow, ToneTts())
    async with call(chosen, turns={"min_pause_seconds": 0.3, "max_pause_seconds": 0.3}) as (
        server,
        caller,
    ):
        await speak(caller)
        await caller.event("response.created")
        before = await speak(caller)
        done = await caller.event("response.done", lambda e: e["response"]["status"] == "completed")
        spoken = done["response"]["output"][0]["content"][0]["transcript"]
        assert spoken.count(whole) == 1 and "None" not in spoken  # the model got one message
        assert await transcript(caller, before) == whole
        assert count(server, "barge_ins_total", kind="resumed") == 1
        assert count(server, "turns_reopened_total") == 1 == count(server, "response_seconds_count")
        items = next(iter(server.registry.calls())).conversation.items()
        assert [(item.text, item.heard_ms) for item in items[:2]] == [(whole, None), ("", 0)]
        assert [item.role for item in items] == ["user", "assistant", "assistant"]
        told = [e for _, e in caller.events if e["type"] == "input_audio_buffer.committed"]
        assert [event["item_id"] for event in told] == [items[0].id] * 2
        added = [
            e["item"]["id"] for _, e in caller.events if e["type"] == "conversation.item.added"
        ]
        assert added == [item.id for item in items]
        deltas = [
            e["delta"]
            for _, e in caller.events
            if e["type"] == "conversation.item.input_audio_transcription.delta"
        ]
        assert "".join(deltas) == whole


async def test_a_turn_model_hears_every_pause_and_may_fail() -> None:
    model = ScriptedTurnModel((0.0, EngineCrashed("the model died")))
    chosen = replace(engines(), turn=model)
    async with call(chosen) as (server, caller):
        for number in (1, 2):
            before = await speak(caller)
            await caller.event("output_audio_buffer.stopped", after=before)
            assert len(model.asked) == number
        heard = [samples / LISTEN_RATE_HZ for samples, _ in model.asked]
        assert all(0.8 < seconds < 2.0 for seconds in heard)  # of this turn, and no more
        assert [text for _, text in model.asked] == ["Hello."] * 2
        waits = [
            event["endpoint_ms"]
            for _, event in caller.events
            if event["type"] == "voice_rtc.turn.metrics"
        ]
        assert waits[0] > waits[1] >= 500  # a voice that goes on is waited for
        assert count(server, "engine_failures_total", engine="turn", code="engine_crashed") == 1


async def test_the_greeting_is_spoken_first() -> None:
    async with call(session={"greeting": "Welcome to the line."}) as (_, caller):
        done = await caller.event("response.done")
        text = done["response"]["output"][0]["content"][0]["transcript"]
        assert text == "Welcome to the line."
        assert rms_dbfs(caller.audio()) > -40


async def test_limits_end_a_call_with_a_reason() -> None:
    async with call(session={"max_call_seconds": 0.7}) as (_, caller):
        assert (await caller.event("voice_rtc.call.ended"))["reason"] == "max_duration"
    async with call(session={"idle_seconds": 0.5}) as (_, caller):
        assert (await caller.event("voice_rtc.call.ended"))["reason"] == "idle"


async def test_a_long_monologue_is_cut_into_turns_without_a_gap() -> None:
    chosen = engines(finals=("Part one.", "Part two.", "Part three."))
    async with call(chosen, turns={"max_utterance_seconds": 1.0}) as (server, caller):
        before = await speak(caller, 2.5)
        await caller.event("response.done", after=before)
        texts = [
            event["transcript"]
            for _, event in caller.events
            if event["type"] == "conversation.item.input_audio_transcription.completed"
        ]
        assert texts == ["Part one.", "Part two.", "Part three."]
        assert caller.types().count("response.created") == 1
        assert count(server, "turns_total", end="max_length") == 2
        seconds = count(server, "stt_audio_seconds_total")
        assert 2.5 <= seconds <= 2.5 + 0.5 + 1.2  # speech, prefix and pause, nothing twice


async def test_calls_do_not_hear_each_other() -> None:
    async with asyncio.timeout(50), serving(engines()) as server:
        async with calling(server.url) as loud, calling(server.url) as quiet:
            await loud.say(tone(0.8))
            await loud.event("output_audio_buffer.stopped")
            await quiet.say(silence(4800))
            assert quiet.types() == ["session.created"]
            assert rms_dbfs(quiet.audio()) < -80


async def test_what_the_client_deletes_during_a_reply_does_no_harm() -> None:
    async with call() as (_, caller):
        await speak(caller)
        added = await caller.event("response.output_item.added")
        await caller.event("output_audio_buffer.started")
        caller.send(type="conversation.item.delete", item_id=added["item"]["id"])
        done = await caller.event("response.done")
        assert done["response"]["status"] == "completed"
        before = await speak(caller)
        await caller.event("output_audio_buffer.started", after=before)


async def test_a_turn_that_the_client_ends_is_measured_too() -> None:
    manual = {"audio": {"input": {"turn_detection": None}}}
    async with call(engines(finals=("", "Hello."))) as (server, caller):
        caller.send(type="session.update", session=manual)
        await caller.event("session.updated")
        for number in (1, 2):  # without words too: the client asked for an answer
            before = await speak(caller, 0.4)
            caller.send(type="input_audio_buffer.commit")
            caller.send(type="response.create")
            metrics = await caller.event("voice_rtc.turn.metrics", after=before)
            committed = await caller.event("input_audio_buffer.committed", after=before)
            assert metrics["item_id"] == committed["item_id"]
            await caller.event("output_audio_buffer.stopped", after=before)
            assert count(server, "response_seconds_count") == number


async def test_an_answer_to_typed_text_does_not_count_as_one_to_the_turn_before() -> None:
    manual = {"audio": {"input": {"turn_detection": None}}}
    async with call() as (server, caller):
        caller.send(type="session.update", session=manual)
        await speak(caller, 0.4)
        caller.send(type="input_audio_buffer.commit")
        await transcript(caller, 0)
        content = [{"type": "input_text", "text": "typed"}]
        caller.send(type="conversation.item.create", item={"role": "user", "content": content})
        caller.send(type="response.create")
        await caller.event("output_audio_buffer.stopped")
        assert count(server, "response_seconds_count") == 0


async def test_a_transcript_that_fails_is_not_dead_air() -> None:
    async with call(engines(finals=(EngineCrashed("the ear died"), "Hello."))) as (_, caller):
        await speak(caller)
        done = await caller.event("response.done")
        assert "say it again" in done["response"]["output"][0]["content"][0]["transcript"]


async def test_a_noise_that_cut_a_reply_is_not_dead_air() -> None:
    chosen = engines(finals=("Hello.", ""), replies=(LONG_REPLY,))
    async with call(chosen, turns={"barge_in": "any"}) as (_, caller):
        await speak(caller)
        await caller.event("output_audio_buffer.started")
        before = await speak(caller, 0.8)
        done = await caller.event(
            "response.done", lambda e: e["response"]["status"] == "completed", after=before
        )
        assert "go on" in done["response"]["output"][0]["content"][0]["transcript"]


async def test_a_system_item_added_meanwhile_does_not_swallow_the_answer() -> None:
    async with call() as (_, caller):
        await speak(caller)
        await caller.event("input_audio_buffer.committed")
        caller.send(
            type="conversation.item.create",
            item={"role": "system", "content": [{"type": "input_text", "text": "It is noon."}]},
        )
        done = await caller.event("response.done")
        assert done["response"]["status"] == "completed"


async def test_an_empty_answer_of_the_model_is_told() -> None:
    class Speechless(EchoLlm):
        async def stream(self, *_args: Any) -> AsyncGenerator[LlmEvent, None]:
            yield Usage(1, 0)

    chosen = EngineSet(
        ThresholdVad(), ScriptedStt(("Hello.",)), Speechless(), ToneTts(seconds_per_character=0.01)
    )
    async with call(chosen) as (_, caller):
        await speak(caller)
        assert (await caller.event("error"))["error"]["code"] == "llm_empty"
        done = await caller.event("response.done")
        assert done["response"]["status"] == "failed"
