"""The real openai client against a small service that fails in every way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import structlog.testing

from tests.support.openai_server import Mode, OpenAiServer, openai_server
from voice_rtc.core.history import Message
from voice_rtc.engines.base import LlmOptions, TextDelta, Usage
from voice_rtc.engines.llm.openai import OpenAiLlm, OpenAiSettings
from voice_rtc.errors import EngineUnavailable, LlmError

ASKED = [Message("system", "Be brief."), Message("user", "Hello?")]


@pytest.fixture
async def server() -> AsyncIterator[OpenAiServer]:
    async with openai_server() as server:
        yield server


@pytest.fixture
async def llm(server: OpenAiServer) -> AsyncIterator[OpenAiLlm]:
    engine = OpenAiLlm(OpenAiSettings("test-model", server.base_url))
    await engine.start()
    yield engine
    await engine.aclose()


async def answer(llm: OpenAiLlm) -> str:
    events = [event async for event in llm.stream(ASKED)]
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def failure(llm: OpenAiLlm) -> tuple[str, LlmError]:
    """What came before the error, and the error."""
    text = ""
    with pytest.raises(LlmError) as caught:
        async for event in llm.stream(ASKED):
            text += event.text if isinstance(event, TextDelta) else ""
    return text, caught.value


async def test_an_answer_streams_word_by_word(server: OpenAiServer, llm: OpenAiLlm) -> None:
    events = [event async for event in llm.stream(ASKED)]
    assert events == [
        *(TextDelta("Hello"), TextDelta(" there,"), TextDelta(" caller.")),
        Usage(5, 7),
    ]
    assert server.requests[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
    ]
    assert server.requests[0]["model"] == "test-model"
    assert server.requests[0]["max_tokens"] == 300
    assert "temperature" not in server.requests[0]
    assert server.authorizations == ["Bearer none"]


async def test_options_of_the_call_win(server: OpenAiServer, llm: OpenAiLlm) -> None:
    async for _ in llm.stream(ASKED, LlmOptions(temperature=0.0, max_tokens=7)):
        pass
    assert (server.requests[0]["temperature"], server.requests[0]["max_tokens"]) == (0.0, 7)


@pytest.mark.parametrize(
    ("mode", "code", "requests", "retryable"),
    [
        ("401", "llm_unauthorized", 1, False),
        ("429", "llm_rate_limited", 1, True),
        ("500", "llm_server_error", 2, True),
    ],
)
async def test_refusals_have_codes(
    server: OpenAiServer, llm: OpenAiLlm, mode: Mode, code: str, requests: int, retryable: bool
) -> None:
    server.mode = mode
    text, error = await failure(llm)
    assert (text, error.code, error.retryable) == ("", code, retryable)
    assert len(server.requests) == requests


async def test_one_retry_is_enough_for_a_hiccup(server: OpenAiServer, llm: OpenAiLlm) -> None:
    server.mode = "500 once"
    assert await answer(llm) == server.reply


async def test_a_service_that_knows_no_usage(server: OpenAiServer, llm: OpenAiLlm) -> None:
    server.mode = "no usage"
    assert await answer(llm) == server.reply
    assert await answer(llm) == server.reply
    assert ["stream_options" in body for body in server.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("cut", "llm_stream_cut"),
        ("garbled", "llm_stream_cut"),
        ("error event", "llm_server_error"),
    ],
)
async def test_an_answer_that_breaks_off(
    server: OpenAiServer, llm: OpenAiLlm, mode: Mode, code: str
) -> None:
    server.mode = mode
    text, error = await failure(llm)
    assert (text, error.code) == ("Hello", code)
    assert len(server.requests) == 1, "what was begun is not asked again"


@pytest.mark.parametrize(("mode", "text"), [("hang", ""), ("stall", "Hello")])
async def test_deadlines(server: OpenAiServer, mode: Mode, text: str) -> None:
    first = 0.2 if mode == "hang" else 30.0
    llm = OpenAiLlm(
        OpenAiSettings("m", server.base_url, first_token_seconds=first, gap_seconds=0.05)
    )
    await llm.start()
    server.mode = mode
    before, error = await failure(llm)
    assert (before, error.code) == (text, "llm_timeout")
    await asyncio.wait_for(server.gone.wait(), 5.0)
    await llm.aclose()


async def test_closing_the_generator_closes_the_connection(
    server: OpenAiServer, llm: OpenAiLlm
) -> None:
    server.mode = "slow"
    stream = llm.stream(ASKED)
    server.go_on.release()
    await anext(stream)
    assert not server.gone.is_set()
    await stream.aclose()
    await asyncio.wait_for(server.gone.wait(), 5.0)


async def test_cancelling_the_reader_closes_the_connection(
    server: OpenAiServer, llm: OpenAiLlm
) -> None:
    server.mode = "hang"
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(answer(llm))
        while not server.requests:  # noqa: ASYNC110 - the server has no event for this
            await asyncio.sleep(0)
        reader.cancel()
    await asyncio.wait_for(server.gone.wait(), 5.0)


async def test_an_unreachable_service_starts_and_fails_each_turn() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    llm = OpenAiLlm(OpenAiSettings("m", url))
    with structlog.testing.capture_logs() as logs:
        await llm.start()
    assert [log["event"] for log in logs] == ["llm_probe_failed"]
    _, error = await failure(llm)
    assert error.code == "llm_unreachable"
    await llm.aclose()


async def test_the_key_is_sent_and_never_shown(server: OpenAiServer) -> None:
    settings = OpenAiSettings("m", server.base_url, api_key="sk-secret-123")
    llm = OpenAiLlm(settings)
    await llm.start()
    assert await answer(llm) == server.reply
    assert server.authorizations == ["Bearer sk-secret-123"]
    server.mode = "401"
    _, error = await failure(llm)
    for text in (str(error), repr(settings), repr(llm.info)):
        assert "secret" not in text
    await llm.aclose()


async def test_a_closed_engine_is_unavailable(llm: OpenAiLlm) -> None:
    await llm.aclose()
    with pytest.raises(EngineUnavailable):
        await answer(llm)
