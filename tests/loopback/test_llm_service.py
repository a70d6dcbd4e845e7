"""A call whose language model is a service: whatever the service does, the call goes on."""

from __future__ import annotations

import asyncio

import pytest

from signaling.main import running_server
from tests.support.audio import tone
from tests.support.caller import Caller, calling
from tests.support.openai_server import Mode, OpenAiServer, openai_server
from tests.support.server import ready, serving
from voice_rtc.config import load
from voice_rtc.engines.base import EngineSet
from voice_rtc.engines.fakes import ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.llm.openai import OpenAiLlm, OpenAiSettings

REPLY = "The service answers in two sentences. This is the second one."
FAILURES: dict[Mode, str] = {
    "401": "llm_unauthorized",
    "429": "llm_rate_limited",
    "500": "llm_server_error",
    "cut": "llm_stream_cut",
    "garbled": "llm_stream_cut",
    "hang": "llm_timeout",
    "stall": "llm_timeout",
    "error event": "llm_server_error",
    "list": "llm_stream_cut",
    "bytes": "llm_stream_cut",
}


def engines(service: OpenAiServer) -> EngineSet:
    """Scripted but for the language model; a voice that is soon done."""
    settings = OpenAiSettings("test", service.base_url, first_token_seconds=0.5, gap_seconds=0.5)
    voice = ToneTts(seconds_per_character=0.01)
    return EngineSet(ThresholdVad(), ScriptedStt(), OpenAiLlm(settings), voice)


async def turn(caller: Caller) -> tuple[str, str]:
    """Speak once; status and text of the response."""
    before = len(caller.events)
    await caller.say(tone(0.6))
    done = await caller.event("response.done", after=before)
    text = done["response"]["output"][0]["content"][0]["transcript"]
    await caller.event("output_audio_buffer.stopped", after=before)
    return done["response"]["status"], text


@pytest.mark.parametrize("mode", FAILURES)
async def test_a_failing_service_is_told_and_spoken_and_the_call_goes_on(mode: Mode) -> None:
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with serving(engines(service)) as server, calling(server.url) as caller:
            service.mode = mode
            status, text = await turn(caller)
            assert status == "failed"
            error = await caller.event("error")
            assert error["error"]["code"] == FAILURES[mode]
            assert error["error"]["type"] == "server_error"
            assert text  # the apology is spoken, so the transcript has it
            service.mode = "ok"
            before = len(caller.events)
            assert await turn(caller) == ("completed", REPLY)
            assert "error" not in caller.types()[before:]


async def test_choices_without_a_delta_are_passed_over() -> None:
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with serving(engines(service)) as server, calling(server.url) as caller:
            service.mode = "odd first"
            assert await turn(caller) == ("completed", REPLY)


async def test_openai_base_url_alone_is_enough_and_the_answer_streams() -> None:
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        environment = {
            "OPENAI_BASE_URL": service.base_url,
            "VOICE_RTC_ENGINES": "auto",
            "VOICE_RTC_STT__ENGINE": "scripted",
            "VOICE_RTC_TTS__ENGINE": "tone",
            "VOICE_RTC_VAD__ENGINE": "threshold",
            "VOICE_RTC_SERVER__HOST": "127.0.0.1",
            "VOICE_RTC_SERVER__PORT": "0",
        }
        settings = load(environment=environment).settings
        async with running_server(settings) as server:
            await ready(server)
            assert server.state.engines is not None
            assert server.state.engines.llm.info.name == "openai"
            async with calling(server.url) as caller:
                service.mode = "slow"
                before = len(caller.events)
                await caller.say(tone(0.6))
                for _ in range(8):  # the first sentence and the word that shows its end
                    service.go_on.release()
                # Spoken while the second sentence is still being written.
                await caller.event("output_audio_buffer.started", after=before)
                service.mode = "ok"
                service.go_on.release()
                done = await caller.event("response.done", after=before)
                assert done["response"]["output"][0]["content"][0]["transcript"] == REPLY
        system, user = service.requests[0]["messages"]
        assert system["role"] == "system" and user == {"role": "user", "content": "Hello."}
        assert service.requests[0]["stream"] is True


async def test_a_barge_in_hangs_up_on_the_service() -> None:
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with serving(engines(service)) as server, calling(server.url) as caller:
            service.mode = "stall"
            await caller.say(tone(0.6))
            await caller.event("response.created")
            caller.send(type="response.cancel")
            await service.gone.wait()
            service.mode = "ok"
            assert await turn(caller) == ("completed", REPLY)
