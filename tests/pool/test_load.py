"""How late an event loop is and how much the process computes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.virtual_time import VirtualTimeLoop, run_virtual
from voice_rtc.core.admission import ServerLoad
from voice_rtc.pool.load import LoopWatch


class Rig:
    """A watch, all lags that it told, and the processor time that it is told."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.cpu = 0.0
        self.watch = LoopWatch(self.lags.append, lambda: self.cpu)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.loop = loop

    def load(self) -> ServerLoad:
        return self.watch.load(self.loop.time())

    async def live(self, seconds: float, *, busy: float = 0.0, cores: float = 0.0) -> ServerLoad:
        """Each half second the loop is kept busy for a while, and asked afterwards."""
        load = self.load()
        for _ in range(round(seconds * 2)):
            await asyncio.sleep(0.5)
            self.loop.pass_time(busy)
            self.cpu += cores * (0.5 + busy)
            load = self.load()
        return load


@asynccontextmanager
async def watching() -> AsyncIterator[Rig]:
    rig = Rig()
    rig.watch.start()
    try:
        yield rig
    finally:
        rig.watch.stop()
        rig.watch.stop()


def test_an_idle_loop_is_not_late() -> None:
    async def run() -> None:
        async with watching() as rig:
            assert await rig.live(1.5) == ServerLoad(None, None), "too little to tell"
            assert await rig.live(30.0) == ServerLoad(0.0, 0.0)
            assert len(rig.lags) == pytest.approx(315, abs=1)

    run_virtual(run())


def test_waking_other_tasks_hides_nothing() -> None:
    async def run() -> None:
        async with watching() as rig, asyncio.TaskGroup() as tasks:

            async def restless() -> None:
                while True:
                    await asyncio.sleep(0.01)
                    rig.loop.pass_time(0.06)

            task = tasks.create_task(restless())
            load = await rig.live(20.0)
            assert load.loop_lag_seconds == pytest.approx(0.06, abs=0.011)
            task.cancel()

    run_virtual(run())


def test_a_standstill_counts_by_its_length() -> None:
    """One second in ten is a tenth of the time, though it is one late beat."""

    async def run() -> None:
        async with watching() as rig:
            await rig.live(20.0)
            rig.loop.pass_time(1.0)
            load = await rig.live(1.0)
            assert load.loop_lag_seconds == pytest.approx(0.5, abs=0.11)
            assert sum(lag > 0.05 for lag in rig.lags) in (9, 10)
            assert (await rig.live(9.0)).loop_lag_seconds == 0.0, "it is forgotten"

    run_virtual(run())


def test_a_long_standstill_ends_in_a_bounded_piece_of_work() -> None:
    async def run() -> None:
        async with watching() as rig:
            await rig.live(5.0)
            rig.lags.clear()
            rig.loop.pass_time(86_400.0)
            await asyncio.sleep(0.05)
            assert len(rig.lags) <= 101 and max(rig.lags) <= 10.0

    run_virtual(run())


def test_processor_time_is_of_the_last_seconds() -> None:
    async def run() -> None:
        async with watching() as rig:
            assert (await rig.live(20.0, cores=1.5)).cores == pytest.approx(1.5)
            assert (await rig.live(5.0, cores=0.5)).cores == pytest.approx(1.0, abs=0.06)
            assert (await rig.live(10.0, cores=0.5)).cores == pytest.approx(0.5)

    run_virtual(run())


def test_nothing_is_measured_after_the_end() -> None:
    async def run() -> None:
        async with watching() as rig:
            await rig.live(2.0)
        count = len(rig.lags)
        await asyncio.sleep(5.0)
        assert len(rig.lags) == count

    run_virtual(run())
