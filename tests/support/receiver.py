"""A real HTTP server on loopback that webhooks are sent to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOLERANCE_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request."""

    headers: dict[str, str]
    """Names in small letters."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def is_signed_with(self, secret: str) -> bool:
        """As docs/operations.md tells receivers to verify."""
        timestamp = self.headers["webhook-timestamp"]
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.id}.{timestamp}.".encode() + self.body
        digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        fresh = abs(time.time() - int(timestamp)) < TOLERANCE_SECONDS  # noqa: TID251 - a receiver's clock
        return fresh and hmac.compare_digest(f"v1,{digest}", self.headers["webhook-signature"])


@dataclass
class Receiver:
    """Answers with ``answers`` in turn, then with 204. A None among them is no answer at all."""

    answers: list[web.Response | None] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._news = asyncio.Event()
        self._never = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def delivered(self, count: int) -> list[Delivery]:
        """The first ``count`` requests, waited for."""
        while len(self.deliveries) < count:
            self._news.clear()
            await self._news.wait()
        return self.deliveries[:count]

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.deliveries.append(Delivery(headers, await request.read()))
        self._news.set()
        answer = self.answers.pop(0) if self.answers else web.Response(status=204)
        if answer is None:
            await self._never.wait()
        assert answer is not None
        return answer


@asynccontextmanager
async def receiving(*answers: web.Response | int | None, port: int = 0) -> AsyncIterator[Receiver]:
    """Listens within the block; a number is a status."""
    given = [web.Response(status=a) if isinstance(a, int) else a for a in answers]
    receiver = Receiver(given)
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        receiver.port = runner.addresses[0][1]
        yield receiver
    finally:
        await runner.cleanup()
