"""What a turn cost in time: whatever became of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from structlog.testing import capture_logs

from signaling.main import Server
from tests.call.test_call import LONG_REPLY, call, count, engines, speak
from tests.support.caller import Caller
from voice_rtc.core.audio import Pcm
from voice_rtc.engines.base import EngineSet, VoiceOptions
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.errors import EngineCrashed, LlmError

STAGES = ("endpoint_ms", "stt_ms", "llm_first_token_ms", "tts_first_audio_ms", "first_packet_ms")


async def measured(caller: Caller, after: int = 0) -> dict[str, Any]:
    event = await caller.event("voice_rtc.turn.metrics", after=after)
    known = [event[stage] for stage in STAGES if event[stage] is not None]
    assert all(value >= 0 for value in known) and event["saved_ms"] == 0
    if event["response_ms"] is not None:
        assert sum(known) == pytest.approx(event["response_ms"], abs=0.5)
    return event


def outcomes(server: Server) -> dict[str, int]:
    kept = server.registry.recent_turns.outcomes()
    for outcome, turns in kept.items():
        assert count(server, "turn_outcomes_total", outcome=outcome) == turns
    return kept


async def test_the_stages_of_a_turn_that_was_answered() -> None:
    slow = EchoLlm((), first_seconds=0.2, delay=asyncio.sleep)
    chosen = EngineSet(ThresholdVad(), ScriptedStt(("Hello.",)), slow, ToneTts())
    with capture_logs() as logs:
        async with call(chosen) as (server, caller):
            before = await speak(caller)
            event = await measured(caller, before)
            committed = await caller.event("input_audio_buffer.committed")
            created = await caller.event("response.created")
            assert event["item_id"] == committed["item_id"]
            assert event["response_id"] == created["response"]["id"]
            assert event["outcome"] == "heard" and None not in event.values()
            assert event["llm_first_token_ms"] >= 190
            await caller.event("output_audio_buffer.stopped")
            assert outcomes(server) == {"heard": 1}
            for stage in ("stt", "llm_first_token", "tts_first_audio", "first_packet"):
                assert count(server, "stage_seconds_count", stage=stage) == 1
            assert count(server, "endpoint_wait_seconds_count") == 1
            found = server.registry.recent_turns.quantiles()
            assert found["response"].p95 * 1000 == pytest.approx(event["response_ms"], abs=0.1)
    (line,) = (entry for entry in logs if entry["event"] == "turn")
    assert line["outcome"] == "heard" and line["cut"] is None and line["error"] is None
    assert line["item"] == event["item_id"] and line["call"].startswith("rtc_")
    assert line["response_seconds"] * 1000 == pytest.approx(event["response_ms"], abs=1)


async def test_a_reply_cut_while_it_is_heard_is_measured_once_and_logged_with_its_times() -> None:
    with capture_logs() as logs:
        async with call(engines(replies=(LONG_REPLY, "Yes?"))) as (server, caller):
            await speak(caller)
            first = await measured(caller)
            await caller.event("response.output_audio_transcript.delta")
            before = await speak(caller, 1.0)
            await caller.event("voice_rtc.reply.heard", after=before)
            second = await measured(caller, before)
            assert first["outcome"] == second["outcome"] == "heard"
            assert first["item_id"] != second["item_id"]
            assert outcomes(server) == {"heard": 2}
    cut, _ = (entry for entry in logs if entry["event"] == "turn")
    assert cut["cut"] == "barge_in" and cut["outcome"] == "heard"
    assert cut["response_seconds"] * 1000 == pytest.approx(first["response_ms"], abs=1)


async def test_a_reply_cut_before_it_is_heard_tells_how_far_it_came() -> None:
    slow = EchoLlm((), first_seconds=0.8, delay=asyncio.sleep)
    chosen = EngineSet(ThresholdVad(), ScriptedStt(("One.", "Two.")), slow, ToneTts())
    async with call(chosen, turns={"min_pause_seconds": 0.3, "max_pause_seconds": 0.3}) as (
        server,
        caller,
    ):
        await speak(caller)
        await caller.event("response.created")
        before = await speak(caller)
        event = await measured(caller)
        assert event["outcome"] == "cut" and event["response_id"]
        assert event["endpoint_ms"] > 0 and event["stt_ms"] is not None
        assert event["llm_first_token_ms"] is None is event["response_ms"]
        later = await caller.event(
            "voice_rtc.turn.metrics", lambda e: e["outcome"] == "heard", after=before
        )
        assert later["item_id"] == event["item_id"]  # one turn, reopened
        assert later["response_id"] != event["response_id"]
        assert outcomes(server) == {"cut": 1, "heard": 1}


async def test_the_wait_for_a_model_that_fails_is_measured_too() -> None:
    class Fails(EchoLlm):
        async def stream(self, *_args: Any) -> AsyncGenerator[Any, None]:
            await asyncio.sleep(0.3)
            raise LlmError("gone", code="llm_timeout")
            yield

    chosen = EngineSet(ThresholdVad(), ScriptedStt(("Hello.",)), Fails(), ToneTts())
    async with call(chosen) as (server, caller):
        await speak(caller)
        event = await measured(caller)
        assert event["outcome"] == "heard", "the apology"
        assert event["llm_first_token_ms"] >= 290
        assert outcomes(server) == {"heard": 1}


async def test_a_voice_that_fails_leaves_a_turn_without_a_sound() -> None:
    class Mute(ToneTts):
        async def synthesize(
            self, text: str, options: VoiceOptions | None = None
        ) -> AsyncGenerator[Pcm, None]:
            raise EngineCrashed("the voice died")
            yield

    with capture_logs() as logs:
        async with call(engines(tts=Mute())) as (server, caller):
            await speak(caller)
            event = await measured(caller)
            assert event["outcome"] == "failed" and event["tts_first_audio_ms"] is not None
            assert event["first_packet_ms"] is None is event["response_ms"]
            assert outcomes(server) == {"failed": 1}
            assert count(server, "response_seconds_count") == 0
    (line,) = (entry for entry in logs if entry["event"] == "turn")
    assert line["error"] == "engine_crashed" and line["response_seconds"] is None


async def test_a_reply_in_text_is_shown() -> None:
    async with call() as (server, caller):
        caller.send(type="session.update", session={"output_modalities": ["text"]})
        await caller.event("session.updated")
        await speak(caller)
        event = await measured(caller)
        assert event["outcome"] == "shown" and event["llm_first_token_ms"] is not None
        assert event["tts_first_audio_ms"] is None is event["response_ms"]
        assert outcomes(server) == {"shown": 1}


async def test_a_noise_is_measured_as_far_as_it_came() -> None:
    with capture_logs() as logs:
        async with call(engines(finals=("",))) as (server, caller):
            await speak(caller)
            event = await measured(caller)
            assert event["outcome"] == "nothing" and event["response_id"] is None
            assert event["stt_ms"] is not None and event["llm_first_token_ms"] is None
            assert outcomes(server) == {"nothing": 1}
    assert [entry["outcome"] for entry in logs if entry["event"] == "turn"] == ["nothing"]


async def test_who_hangs_up_in_dead_air_leaves_its_figures() -> None:
    slow = EchoLlm((), first_seconds=30.0, delay=asyncio.sleep)
    chosen = EngineSet(ThresholdVad(), ScriptedStt(("Hello.",)), slow, ToneTts())
    with capture_logs() as logs:
        async with call(chosen) as (server, caller):
            await speak(caller)
            await caller.event("response.created")
            await caller.hang_up()
            await caller.event("voice_rtc.call.ended")
            await server.registry.wait_empty()
            assert outcomes(server) == {"cut": 1}
    (line,) = (entry for entry in logs if entry["event"] == "turn")
    assert line["cut"] == "call_ended" and line["stt_seconds"] is not None
