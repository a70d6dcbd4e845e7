"""What the supervisor does when several things happen at once, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from tests.pool.test_pool import rig, story, transcribe, until
from tests.support.echo_stt import EchoSession, EchoStt, said
from voice_rtc.engines.base import STT_AS_CONFIGURED, SttOptions


def test_a_final_that_comes_while_its_engine_is_replaced_stops_nothing() -> None:
    """It cleared the call's retry time, and every later look at any replica failed on that."""

    async def run() -> None:
        async with rig(seconds=0.2) as it, it.pool.lease("a") as lease, it.pool.lease("b") as other:
            name = it.pool.supervisor.replicas()[0].name
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(transcribe(lease, 1, 5))
                await asyncio.sleep(0)
                # The same moment as the Final's, which is on its way to the reader then.
                asyncio.get_running_loop().call_later(
                    0.2,
                    lambda: it.pool.supervisor.order_replacement(
                        it.pool.replica(name), "dead", quarantine=False
                    ),
                )
            assert first.result() == said(5, 960)
            async with asyncio.timeout(5.0):
                assert await transcribe(lease, 2, 5) == said(5, 960)
                assert await transcribe(other, 1, 6) == said(6, 960)
            await until(lambda: not it.pool.supervisor._unbound)

    story(run)


def opens_in(engine: EchoStt, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of the engine take so long to make, as those with a recorder do."""
    at_once = engine.open

    async def slowly(options: SttOptions = STT_AS_CONFIGURED) -> EchoSession:
        session = await at_once(options)
        await asyncio.sleep(seconds)
        return session

    monkeypatch.setattr(engine, "open", slowly)


def test_a_session_that_a_dead_engine_opens_late_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call has another by then, and would have been mute for ever."""

    async def run() -> None:
        async with rig(seconds=0.2, spares=1) as it, asyncio.TaskGroup() as tasks:
            await until(lambda: len(it.loaded) == 2)
            opens_in(it.engines[0], 1.0, monkeypatch)
            opening = tasks.create_task(it.pool.allocate_instance("a"))
            await asyncio.sleep(0.1)
            it.engines[0].kill()
            lease = await opening
            async with asyncio.timeout(5.0):
                assert await transcribe(lease, 1, 5) == said(5, 960)
            assert it.engine_of(lease) is it.engines[1]
            assert not it.engines[0].sessions
            await it.pool.return_instance(lease)

    story(run)
