"""A whole server in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from signaling.main import EngineLoader, Server, running_server
from voice_rtc.config import Settings
from voice_rtc.engines.base import EngineSet
from voice_rtc.engines.catalog import load_engines


@asynccontextmanager
async def serving(
    chosen: EngineSet | None = None, /, loader: EngineLoader = load_engines, **settings: Any
) -> AsyncIterator[Server]:
    """A ready server on a free loopback port; fakes unless ``chosen`` or settings say else.

    Its callers live in the same event loop, and other tests on the same machine: how late the loop
    is does not count, unless settings say so. Nor does it answer before a turn is over: what the
    language model was asked is what the story tells.
    """

    async def given(_settings: Settings, _report: Callable[[str], None]) -> EngineSet:
        assert chosen is not None
        for engine in (chosen.vad, chosen.stt, chosen.llm, chosen.tts):
            await engine.start()
        return chosen

    http = {"host": "127.0.0.1", "port": 0, "drain_seconds": 0.0, **settings.pop("server", {})}
    pool = {"loop_lag_seconds": 60.0, **settings.pop("pool", {})}
    turns = {"speculate": False, **settings.pop("turns", {})}
    merged = Settings(
        **{"engines": "fake", **settings, "server": http, "pool": pool, "turns": turns}
    )
    async with running_server(merged, loader if chosen is None else given) as server:
        await ready(server)
        yield server


async def ready(server: Server) -> None:
    """Wait until the engines are loaded. Raises AssertionError when they cannot be."""
    async with asyncio.timeout(50):
        await server.state.settled.wait()
    assert server.state.status == "ready", server.state.detail
