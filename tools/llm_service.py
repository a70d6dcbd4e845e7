"""A language model service of one's own: OpenAI's chat completions, answers by a function."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from tools.bot_events import Json

Answer = Callable[[Sequence[Json]], str]
"""From the messages that the server sends to what the model says."""


@asynccontextmanager
async def llm_service(
    answer: Answer, first_seconds: float = 0.0, word_seconds: float = 0.0
) -> AsyncIterator[str]:
    """Serve on loopback inside a block, word by word; gives the base URL."""

    async def complete(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        with suppress(ConnectionResetError):  # a barge-in hangs up on it
            body = await request.json()
            await response.prepare(request)
            await asyncio.sleep(first_seconds)
            for word in answer(body["messages"]).split(" "):
                delta = {"choices": [{"index": 0, "delta": {"content": f"{word} "}}]}
                await response.write(f"data: {json.dumps(delta)}\n\n".encode())
                await asyncio.sleep(word_seconds)
            await response.write(b"data: [DONE]\n\n")
        return response

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
