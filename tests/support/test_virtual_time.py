"""Virtual time costs nothing and keeps its order."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.leaks import Leaked
from tests.support.virtual_time import run_virtual


def test_an_hour_of_sleep_takes_no_time():
    async def hour() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run_virtual(hour()) == pytest.approx(3600)
    assert time.monotonic() - began < 5


def test_sleepers_wake_in_the_order_of_their_times():
    async def story() -> list[tuple[str, float]]:
        log: list[tuple[str, float]] = []
        loop = asyncio.get_running_loop()

        async def wake(name: str, after: float) -> None:
            await asyncio.sleep(after)
            log.append((name, round(loop.time(), 6)))

        async with asyncio.TaskGroup() as group:
            group.create_task(wake("late", 2.0))
            group.create_task(wake("early", 0.5))
            group.create_task(wake("middle", 1.0))
        return log

    assert run_virtual(story()) == [("early", 0.5), ("middle", 1.0), ("late", 2.0)]


def test_a_timeout_fires_at_its_virtual_time():
    async def story() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(99)
        return asyncio.get_running_loop().time()

    assert run_virtual(story()) == pytest.approx(5)


def test_a_task_left_behind_is_a_failure():
    kept = []

    async def story() -> None:
        loop = asyncio.get_running_loop()
        kept.append(loop.create_task(asyncio.Event().wait(), name="forgotten"))

    with pytest.raises(Leaked, match="forgotten"):
        run_virtual(story())
