"""A small OpenAI-compatible service for tests, with the ways in which real ones fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

from aiohttp import web

Mode = Literal[
    "ok",  # streams the reply word by word
    "slow",  # acquires `go_on` before each word
    "400",
    "401",
    "429",
    "500",
    "500 once",
    "429 once",  # and says when to come back
    "reset once",  # closes the connection without an answer
    "late once",  # never answers the first request
    "tools",  # sends `tool_calls` too
    "small",  # a model with room for `room` characters
    "raw",  # sends `raw`, then the answer
    "empty",  # ends without a word
    "nothing",  # ends without a word, a reason or a count
    "no usage",  # 400 when stream_options are sent
    "cut",  # closes the connection in the middle of the answer
    "garbled",  # sends something that is not JSON
    "hang",  # accepts the request and never answers
    "stall",  # sends the first word and nothing more
    "error event",  # an error object inside the stream
    "odd first",  # begins with choices that have no delta, as some gateways do
    "list",  # sends JSON that is no chunk
    "bytes",  # sends what is not UTF-8
]


class OpenAiServer:
    """One service; ``mode`` may be changed between requests."""

    def __init__(self, reply: str) -> None:
        self.mode: Mode = "ok"
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        """Bodies of the chat completion requests."""
        self.authorizations: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.connections: list[str] = []
        """Client address of each request, warm-ups too; equal ones came on one connection."""
        self.warm_ups = 0
        self.raw = ""
        self.room = 0
        self.tool_calls: list[dict[str, Any]] = []
        """Pieces of ``delta.tool_calls``, sent before the text in mode ``tools``."""
        self.go_on = asyncio.Semaphore(0)
        self.gone = asyncio.Event()
        """Set when a client closed its connection before its answer was complete."""
        self.base_url = ""

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        body = await request.json()
        self.requests.append(body)
        self.authorizations.append(request.headers.get("Authorization", ""))
        self.headers.append(request.headers)
        self.connections.append(_client(request))
        if self.mode == "reset once" and request.transport is not None:
            self.mode = "ok"
            request.transport.abort()
            return web.Response()
        if (refusal := self._refusal(body)) is not None:
            return refusal
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.gone.set()
            raise

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models, and HEAD."""
        if request.method == "HEAD":
            self.warm_ups += 1
            self.connections.append(_client(request))
        return web.json_response({"object": "list", "data": []})

    def _refusal(self, body: dict[str, Any]) -> web.Response | None:
        if self.mode == "500 once":
            self.mode = "ok"
            return _error(500, "try again")
        if self.mode == "429 once":
            self.mode = "ok"
            return _error(429, "not so fast", {"Retry-After": "0.05"})
        if self.mode == "small" and _length(body) > self.room:
            message = "This model's maximum context length is 9 tokens."
            return _error(400, message, code="context_length_exceeded")
        if self.mode == "no usage" and "stream_options" in body:
            return _error(400, "unknown parameter stream_options")
        if self.mode in ("400", "401", "429", "500"):
            return _error(int(self.mode), f"status {self.mode}")
        return None

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.mode in ("hang", "late once"):
            self.mode = "hang" if self.mode == "hang" else "ok"
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await _send(response, _chunk({"role": "assistant", "content": ""}))
        if self.mode == "raw":
            await response.write(f"data: {self.raw}\n\n".encode())
        if self.mode == "tools":
            for piece in self.tool_calls:
                await _send(response, _chunk({"tool_calls": [piece]}))
        words = [] if self.mode in ("empty", "nothing") else self.reply.split(" ")
        for number, word in enumerate(words):
            await self._before_word(request, response, number)
            await _send(response, _chunk({"content": word if number == 0 else f" {word}"}))
        if self.mode != "nothing":
            await _send(response, _chunk({}, finish_reason="stop"))
        if "stream_options" in body and self.mode != "nothing":
            usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
            await _send(response, {**_chunk({}), "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _before_word(
        self, request: web.Request, response: web.StreamResponse, number: int
    ) -> None:
        if self.mode == "slow":
            await self.go_on.acquire()
        if number == 0:
            if self.mode == "odd first":
                await _send(response, {**_chunk({}), "choices": [{"index": 0, "delta": None}]})
                await _send(response, {**_chunk({}), "choices": [{"index": 0}]})
            return
        if self.mode == "list":
            await response.write(b"data: []\n\n")
        if self.mode == "bytes":
            await response.write(b"data: \xff\xfe\n\n")
        if self.mode == "stall":
            await asyncio.Event().wait()
        if self.mode == "cut" and request.transport is not None:
            request.transport.close()
            raise ConnectionResetError
        if self.mode == "garbled":
            await response.write(b"data: {not json\n\n")
        if self.mode == "error event":
            await _send(response, {"error": {"message": "the model fell over"}})


@asynccontextmanager
async def openai_server(reply: str = "Hello there, caller.") -> AsyncIterator[OpenAiServer]:
    """Run the service on a free port of localhost."""
    server = OpenAiServer(reply)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get("/v1/models", server.models)
    # handler_cancellation: the handler learns at once that its client has gone
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.base_url = f"http://{host}:{port}/v1"
        yield server
    finally:
        await runner.cleanup()


async def _send(response: web.StreamResponse, data: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(data)}\n\n".encode())


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "test",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def _error(
    status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None
) -> web.Response:
    error = {"message": message, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


def _length(body: dict[str, Any]) -> int:
    return sum(len(each["content"]) for each in body["messages"])


def _client(request: web.Request) -> str:
    host, port = request.transport.get_extra_info("peername")[:2] if request.transport else ("", 0)
    return f"{host}:{port}"
