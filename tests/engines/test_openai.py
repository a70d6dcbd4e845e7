"""The real openai client against a small service that fails in every way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import structlog.testing

from tests.support.openai_server import Mode, OpenAiServer, openai_server
from voice_rtc.core.history import Message
from voice_rtc.core.tools import ToolCall, ToolSpec
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
        ("small", "llm_context_exceeded", 1, False),
    ],
)
async def test_refusals_have_codes(
    server: OpenAiServer, llm: OpenAiLlm, mode: Mode, code: str, requests: int, retryable: bool
) -> None:
    server.mode = mode
    text, error = await failure(llm)
    assert (text, error.code, error.retryable) == ("", code, retryable)
    assert len(server.requests) == requests


@asynccontextmanager
async def engine(server: OpenAiServer, **settings: Any) -> AsyncIterator[OpenAiLlm]:
    """Started; counts in ``told`` what it asks the service."""
    llm = OpenAiLlm(OpenAiSettings("m", server.base_url, **settings))
    async with asyncio.timeout(20):
        await llm.start()
        try:
            yield llm
        finally:
            await llm.aclose()


def counted(llm: OpenAiLlm) -> list[str]:
    told: list[str] = []
    llm.on_request = told.append
    return told


@pytest.mark.parametrize("mode", ["500 once", "reset once", "429 once"])
async def test_a_hiccup_before_the_first_word_is_not_noticed(
    server: OpenAiServer, llm: OpenAiLlm, mode: Mode
) -> None:
    told = counted(llm)
    server.mode = mode
    assert await answer(llm) == server.reply
    assert told == ["first", "retry"] and len(server.requests) == 2


async def test_a_late_request_gets_a_twin_and_is_hung_up_on(server: OpenAiServer) -> None:
    async with engine(server, hedge_seconds=0.1) as llm:
        told = counted(llm)
        server.mode = "late once"
        assert await answer(llm) == server.reply
        assert told == ["first", "hedge", "hedge_won"]
        assert server.requests[0] == server.requests[1]
        await asyncio.wait_for(server.gone.wait(), 5.0)


async def test_a_twin_is_not_asked_for_by_default_settings_of_the_engine(
    server: OpenAiServer,
) -> None:
    async with engine(server, first_token_seconds=0.3) as llm:
        told = counted(llm)
        server.mode = "hang"
        _, error = await failure(llm)
        assert error.code == "llm_timeout" and told == ["first"]


async def test_closing_early_hangs_up_on_both(server: OpenAiServer) -> None:
    async with engine(server, hedge_seconds=0.05) as llm:
        server.mode = "hang"
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(answer(llm))
            while len(server.requests) < 2:  # noqa: ASYNC110 - the server has no event for this
                await asyncio.sleep(0.01)
            reader.cancel()
        await asyncio.wait_for(server.gone.wait(), 5.0)


@pytest.mark.parametrize("mode", ["empty", "nothing"])
async def test_an_empty_answer_ends_without_a_word(
    server: OpenAiServer, llm: OpenAiLlm, mode: Mode
) -> None:
    server.mode = mode
    assert await answer(llm) == ""  # the reply makes a failure of it: llm_empty
    server.mode = "ok"
    assert await answer(llm) == server.reply


async def test_answers_share_a_connection_also_minutes_later(server: OpenAiServer) -> None:
    async with engine(server) as llm:
        for _ in range(3):
            assert await answer(llm) == server.reply
        assert len(set(server.connections)) == 1


async def test_a_warm_up_connects_so_that_the_answer_need_not(server: OpenAiServer) -> None:
    async with engine(server, api_key="sk-1", headers={"X-A": "b"}) as llm:
        told = counted(llm)
        await llm.warm_up()
        assert server.warm_ups == 1 and told == ["warm_up"]
        assert await answer(llm) == server.reply
        assert len(set(server.connections)) == 1
    async with engine(server, warm_up=False) as llm:
        await llm.warm_up()
        assert server.warm_ups == 1


async def test_a_warm_up_raises_nothing() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    llm = OpenAiLlm(OpenAiSettings("m", url))
    await llm.warm_up()
    await llm.start()
    await llm.warm_up()
    await llm.aclose()
    await llm.warm_up()


async def test_a_service_that_does_not_accept_connections_is_unreachable() -> None:
    # Its line of connections not yet accepted is full: what comes after gets no answer.
    with socket.socket() as listener, ExitStack() as line:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = line.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        llm = OpenAiLlm(OpenAiSettings("m", url, connect_seconds=0.1))
        await llm.start()
        told = counted(llm)
        _, error = await failure(llm)
        assert error.code == "llm_unreachable" and told == ["first", "retry"]
        await llm.warm_up()
        await llm.aclose()


async def test_what_the_operator_and_the_call_add_reaches_the_service(
    server: OpenAiServer,
) -> None:
    body = {"top_p": 0.5, "reasoning_effort": "low"}
    async with engine(server, headers={"X-A": "1", "X-B": "1"}, body=body) as llm:
        options = LlmOptions(body={"top_p": 0.9, "temperature": 0.1}, headers={"X-B": "2"})
        async for _ in llm.stream(ASKED, options):
            pass
        sent = server.requests[0]
        assert (sent["top_p"], sent["reasoning_effort"], sent["temperature"]) == (0.9, "low", 0.1)
        assert (server.headers[0]["X-A"], server.headers[0]["X-B"]) == ("1", "2")
        assert await answer(llm) == server.reply
        assert server.requests[1]["top_p"] == 0.5 and server.headers[1]["X-B"] == "1"


async def test_tools_are_declared_called_and_answered(server: OpenAiServer, llm: OpenAiLlm) -> None:
    server.mode, server.reply = "tools", "Let me see."
    server.tool_calls = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather"}},
        {"index": 0, "function": {"arguments": '{"city": '}},
        {"index": 0, "function": {"arguments": '"Rome"}'}},
    ]
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    options = LlmOptions(tools=(ToolSpec("weather", "Tells it.", schema),), tool_choice="weather")
    events = [event async for event in llm.stream(ASKED, options)]
    call = ToolCall("c1", "weather", '{"city": "Rome"}')
    assert events[-2:] == [call, Usage(5, 7)]
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "Let me see."
    function = {"name": "weather", "description": "Tells it.", "parameters": schema}
    assert server.requests[0]["tools"] == [{"type": "function", "function": function}]
    assert server.requests[0]["tool_choice"]["function"] == {"name": "weather"}

    server.mode = "ok"
    more = [
        *ASKED,
        Message("assistant", "Let me see.", tool_calls=(call,)),
        Message("tool", "sunny", tool_call_id="c1"),
    ]
    _ = [event async for event in llm.stream(more)]
    asked, told = server.requests[1]["messages"][2:]
    assert asked["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
    assert told == {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
    assert "tools" not in server.requests[1]


@pytest.mark.parametrize(
    "raw",
    [
        '{"choices": [], "usage": {}}',
        '{"choices": [], "usage": 5}',
        '{"choices": [], "usage": {"prompt_tokens": "x", "completion_tokens": -1}}',
        '{"choices": [], "usage": {"prompt_tokens": null, "completion_tokens": null}}',
        '{"choices": 5, "usage": null}',
        '{"choices": "ab", "usage": null}',
        '{"choices": {"a": 1}, "usage": null}',
        '{"choices": [5, null, "x", []], "usage": null}',
        '{"choices": [{"delta": 5}], "usage": null}',
        '{"choices": [{"delta": {"content": {"a": 1}}}], "usage": null}',
        '{"choices": [{"delta": {"content": ["a"]}}], "usage": null}',
        '{"choices": [{"delta": {"tool_calls": 5}}], "usage": null}',
        '{"choices": [{"delta": {"tool_calls": [5, null]}}], "usage": null}',
        '{"choices": [{"delta": {"tool_calls": [{"index": "x", "function": 5}]}}], "usage": null}',
        "5",
        "null",
        '"x"',
        "{}",
    ],
)
async def test_whatever_json_comes_is_passed_over_or_an_error_with_a_code(
    server: OpenAiServer, llm: OpenAiLlm, raw: str
) -> None:
    server.mode, server.raw = "raw", raw
    try:
        events = [event async for event in llm.stream(ASKED)]
    except LlmError as error:
        assert error.code in ("llm_stream_cut", "llm_bad_tool_call")
    else:
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert (text, events[-1]) == (server.reply, Usage(5, 7))


async def test_a_tool_call_that_breaks_off_is_an_error(
    server: OpenAiServer, llm: OpenAiLlm
) -> None:
    server.mode = "tools"
    function = {"name": "weather", "arguments": '{"ci'}
    server.tool_calls = [{"index": 0, "id": "c1", "function": function}]
    text, error = await failure(llm)
    assert (text, error.code) == (server.reply, "llm_bad_tool_call")


async def test_a_request_that_is_wrong_does_not_end_the_counting(
    server: OpenAiServer, llm: OpenAiLlm
) -> None:
    server.mode = "400"
    _, error = await failure(llm)
    assert error.code == "llm_bad_request"
    server.mode = "ok"
    events = [event async for event in llm.stream(ASKED)]
    assert events[-1] == Usage(5, 7)


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
