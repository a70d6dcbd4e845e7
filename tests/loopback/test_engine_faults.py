"""The engine's process is killed or stopped while people speak: real peers, the real engine."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from signaling.main import Server
from tests.loopback.voices import heard_as, spoken
from tests.support.audio import WHISPER_SYNTHETIC
from tests.support.caller import calling
from tests.support.server import serving
from voice_rtc.pool.replica import Replica

WORDS = ("My code word is falcon river.", "My code word is golden tower.")


@asynccontextmanager
async def whisper(spares: int) -> AsyncIterator[Server]:
    stt = {"engine": "faster-whisper", "model": str(WHISPER_SYNTHETIC)}
    pool = {"slots": 2, "spares": spares, "probe": False}
    async with asyncio.timeout(55):
        async with serving(engines="embedded", stt=stt, pool=pool) as server:
            yield server


def serving_replica(server: Server) -> Replica:
    assert server.registry.pool is not None
    (found,) = [r for r in server.registry.pool.supervisor.replicas() if r.role == "serving"]
    return found


async def spare_is_loaded(server: Server) -> None:
    assert server.registry.pool is not None
    supervisor = server.registry.pool.supervisor
    while not any(r.role == "spare" and r.usable for r in supervisor.replicas()):  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # it is loaded in another process: there is no event


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_no_word_is_lost_when_the_engine_goes_in_mid_speech(fault: signal.Signals) -> None:
    voices = [await spoken(text) for text in WORDS]
    async with whisper(spares=1) as server, calling(server.url) as one, calling(server.url) as two:
        await spare_is_loaded(server)

        async def strike() -> str:
            """In the middle of what both are saying."""
            victim = serving_replica(server)
            await one.event("input_audio_buffer.speech_started")
            (pid,) = victim.engine_health().pids
            os.kill(pid, fault)
            return victim.name

        async with asyncio.TaskGroup() as tasks:
            struck = tasks.create_task(strike())
            first = tasks.create_task(heard_as(one, voices[0]))
            second = tasks.create_task(heard_as(two, voices[1]))
        assert (first.result(), second.result()) == WORDS
        assert serving_replica(server).name != struck.result()
        # And the next turns are served by the successor, whoever has the slot.
        await one.hang_up()
        async with calling(server.url) as three:
            assert await heard_as(three, voices[0]) == WORDS[0]
            assert await heard_as(two, voices[1]) == WORDS[1]


async def test_without_a_spare_the_turn_waits_for_the_successor() -> None:
    voice = await spoken(WORDS[0])
    async with whisper(spares=0) as server, calling(server.url) as caller:
        before = len(caller.events)
        await caller.say(voice)
        (pid,) = serving_replica(server).engine_health().pids
        os.kill(pid, signal.SIGKILL)
        done = await caller.event(
            "conversation.item.input_audio_transcription.completed", after=before
        )
        assert done["transcript"] == WORDS[0]
