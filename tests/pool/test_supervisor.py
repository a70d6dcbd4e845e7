"""What the supervisor does when several things happen at once, in virtual time."""

from __future__ import annotations

import asyncio

from tests.pool.test_pool import rig, story, transcribe, until
from tests.support.echo_stt import said


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
