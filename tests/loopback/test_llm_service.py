"""A call whose language model is a service: whatever the service does, the call goes on."""

from __future__ import annotations

import asyncio

import pytest

from signaling.main import Server, running_server
from tests.support.audio import tone
from tests.support.caller import Caller, Json, calling
from tests.support.openai_server import Mode, OpenAiServer, openai_server
from tests.support.server import ready, serving
from voice_rtc.config import load
from voice_rtc.engines.base import EngineSet
from voice_rtc.engines.fakes import ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.llm.openai import OpenAiLlm, OpenAiSettings

REPLY = "The service answers in two sentences. This is the second one."
FAILURES: dict[Mode, str] = {
    "400": "llm_bad_request",
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
    "empty": "llm_empty",
    "nothing": "llm_empty",
}
FILLER = "One moment, please."


def engines(service: OpenAiServer, seconds: float = 20.0) -> EngineSet:
    """Scripted but for the language model, which has ``seconds``; a voice that is soon done."""
    settings = OpenAiSettings(
        "test", service.base_url, first_token_seconds=seconds, gap_seconds=seconds
    )
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
        # Only who is to run into a deadline has a short one: the machine may be busy.
        seconds = 0.5 if mode in ("hang", "stall") else 20.0
        async with serving(engines(service, seconds)) as server, calling(server.url) as caller:
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


def count(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0


def contents(service: OpenAiServer) -> list[tuple[str, str]]:
    """Roles and texts of the newest request."""
    return [(each["role"], each["content"]) for each in service.requests[-1]["messages"]]


async def test_a_late_answer_is_bridged_and_the_model_is_not_told() -> None:
    quick = {"filler_seconds": 0.3}
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with (
            serving(engines(service, 20.0), llm=quick) as server,
            calling(server.url) as caller,
        ):
            service.mode = "slow"
            await caller.say(tone(0.6))
            shown = await caller.event("response.output_audio_transcript.delta")
            assert shown["delta"] == FILLER
            await caller.event("output_audio_buffer.started")
            assert len(service.requests) == 1, "the request goes on"
            service.mode = "ok"
            service.go_on.release()
            done = (await caller.event("response.done"))["response"]
            assert done["status"] == "completed"
            assert done["output"][0]["content"][0]["transcript"] == f"{FILLER} {REPLY}"
            assert await turn(caller) == ("completed", REPLY)
            assert contents(service)[1:] == [
                ("user", "Hello."), ("assistant", REPLY), ("user", "How are you?"),
            ]  # fmt: skip
            assert count(server, "fillers_total") == 1


async def test_a_failure_after_the_filler_is_told_and_the_history_is_what_was_heard() -> None:
    quick = {"filler_seconds": 0.3}
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with (
            serving(engines(service, 1.0), llm=quick) as server,
            calling(server.url) as caller,
        ):
            service.mode = "hang"
            status, text = await turn(caller)
            assert status == "failed" and text.startswith(f"{FILLER} My language model took too")
            service.mode = "ok"
            assert await turn(caller) == ("completed", REPLY)
            apology = text.removeprefix(f"{FILLER} ")
            assert contents(service)[1:] == [
                ("user", "Hello."), ("assistant", apology), ("user", "How are you?"),
            ]  # fmt: skip


async def test_what_answers_cost_is_told_and_counted() -> None:
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with serving(engines(service)) as server, calling(server.url) as caller:
            await turn(caller)
            done = (await caller.event("response.done"))["response"]
            assert done["usage"] == {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
            assert count(server, "llm_tokens_total", kind="input") == 5
            assert count(server, "llm_tokens_total", kind="output") == 7
            assert count(server, "llm_requests_total", kind="first") == 1
            # When the call began and when its caller did; the answer opened no connection.
            assert count(server, "llm_requests_total", kind="warm_up") == service.warm_ups == 2
            assert service.connections[-1] in service.connections[:-1]
            service.mode = "no usage"
            before = len(caller.events)
            await turn(caller)
            done = (await caller.event("response.done", after=before))["response"]
            assert done["usage"] is None


async def test_a_long_call_fits_the_model() -> None:
    small = {"context_characters": 2000}
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with serving(engines(service), llm=small) as server, calling(server.url) as caller:
            for number in range(4):
                await type_and_wait(caller, f"{number} " * 400)
            told = contents(service)
            assert sum(len(text) for _, text in told) <= 2000
            assert [role for role, _ in told[:2]] == ["system", "system"] and "left out" in told[1][
                1
            ]
            assert told[-1] == ("user", ("3 " * 400).strip())
            assert count(server, "llm_contexts_cut_total") >= 1


async def type_and_wait(caller: Caller, text: str) -> Json:
    """Type ``text``, have it answered in text; the response."""
    content = [{"type": "input_text", "text": text}]
    caller.send(type="conversation.item.create", item={"role": "user", "content": content})
    before = len(caller.events)
    caller.send(type="response.create", response={"output_modalities": ["text"]})
    done = await caller.event("response.done", after=before)
    response: Json = done["response"]
    return response


async def test_a_model_with_less_room_than_was_set_is_told_less() -> None:
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with serving(engines(service)) as server, calling(server.url) as caller:
            for number in range(3):
                await type_and_wait(caller, f"{number} " * 400)
            service.mode, service.room = "small", 2000
            asked = len(service.requests)
            assert (await type_and_wait(caller, "And now?"))["status"] == "completed"
            assert len(service.requests) - asked == 2, "refused once, then shorter"
            assert contents(service)[-1] == ("user", "And now?")
            asked = len(service.requests)
            assert (await type_and_wait(caller, "And then?"))["status"] == "completed"
            assert len(service.requests) - asked == 1, "what was learnt holds for the call"
            service.room = 5  # not even the instructions
            response = await type_and_wait(caller, "Hello?")
            assert response["status"] == "failed"
            assert response["status_details"]["error"]["code"] == "llm_context_exceeded"


async def test_a_client_sets_what_the_operator_lets_it() -> None:
    allowed = {"client_fields": ["temperature"], "client_headers": ["X-Tenant"]}
    async with asyncio.timeout(55), openai_server(REPLY) as service:
        async with serving(engines(service), llm=allowed) as server, calling(server.url) as caller:
            ours = {"body": {"temperature": 0.2}, "headers": {"X-Tenant": "a"}}
            caller.send(type="session.update", session={"voice_rtc": {"llm": ours}})
            await caller.event("session.updated")
            caller.send(
                type="session.update", session={"voice_rtc": {"llm": {"body": {"model": "x"}}}}
            )
            error = (await caller.event("error"))["error"]
            assert error["code"] == "llm_field_not_allowed"
            assert error["param"] == "session.voice_rtc.llm.body.model"
            await turn(caller)
            assert service.requests[-1]["temperature"] == 0.2
            assert service.requests[-1]["model"] == "test"
            assert service.headers[-1]["X-Tenant"] == "a"
