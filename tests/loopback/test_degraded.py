"""A server under pressure tells its callers, its page and its metrics, and turns no call off."""

from __future__ import annotations

import asyncio

import aiohttp

from signaling.main import running_server
from tests.support.caller import calling
from tests.support.governed import Machine
from tests.support.server import ready
from voice_rtc.config import Settings
from voice_rtc.core.ladder import STEPS
from voice_rtc.engines.catalog import load_engines


async def test_a_caller_hears_of_each_step_while_memory_is_critical() -> None:
    machine = Machine()
    settings = Settings(
        engines="fake", server={"host": "127.0.0.1", "port": 0, "drain_seconds": 0.0}
    )
    async with (
        asyncio.timeout(40),
        running_server(settings, load_engines, machine.read_gpus, machine.read_memory) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        await ready(server)
        async with calling(server.url) as caller:
            machine.fill(0.95)
            await caller.event("voice_rtc.degraded", lambda event: event["step"] == 5)
            told = [e for _, e in caller.events if e["type"] == "voice_rtc.degraded"]
            assert [(e["step"], e["name"], e["message"]) for e in told] == [
                (step.step, step.name, step.sentence) for step in STEPS[1:]
            ]
            async with http.get("/pool") as answer:
                body = await answer.json()
            assert body["ladder"]["name"] == body["admission"]["state"] == "refuse"
            assert body["ladder"]["reason"] == "95% of the memory is in use"
            async with http.get("/metrics") as answer:
                assert "voice_rtc_degradation_step 5.0" in await answer.text()
            async with http.post("/v1/realtime/calls", json={"sdp": "v=0"}) as refused:
                assert refused.status == 503 and refused.headers["Retry-After"]
            assert body["calls_active"] == 1 and not caller.channel_closed.is_set()
