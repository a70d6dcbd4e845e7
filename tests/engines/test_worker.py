"""EngineWorker: order, bounds, fences, the end of its thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineTimeout, EngineUnavailable


class Gate:
    """Work that waits until it is let go, so that a test knows the worker is busy."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entered = asyncio.Event()
        self.release = threading.Event()

    def work(self) -> str:
        self._loop.call_soon_threadsafe(self._entered.set)
        self.release.wait()
        return "done"

    async def entered(self) -> None:
        """Wait until the worker is inside `work`."""
        await self._entered.wait()


async def test_work_runs_on_the_named_thread() -> None:
    worker = EngineWorker("model-7")
    name = await worker.run(lambda: threading.current_thread().name)
    assert name == "model-7"
    await worker.aclose()


async def test_the_waiter_gets_what_the_work_raised() -> None:
    worker = EngineWorker("w")

    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        await worker.run(fail)
    assert await worker.run(lambda: "still alive") == "still alive"
    await worker.aclose()


async def test_lower_priority_numbers_first_then_in_order() -> None:
    worker, gate, order = EngineWorker("w"), Gate(), []
    first = worker.submit(gate.work)
    await gate.entered()
    jobs = [
        worker.submit_at(priority, order.append, name)
        for priority, name in [(5, "late"), (0, "a"), (0, "b"), (-1, "urgent")]
    ]
    gate.release.set()
    await asyncio.gather(first, *jobs)
    assert order == ["urgent", "a", "b", "late"]
    await worker.aclose()


async def test_a_full_inbox_refuses() -> None:
    worker, gate = EngineWorker("w", limit=1), Gate()
    running = worker.submit(gate.work)
    await gate.entered()
    waiting = worker.submit(lambda: 1)
    with pytest.raises(EngineTimeout):
        worker.submit(lambda: 2)
    gate.release.set()
    assert (await running, await waiting) == ("done", 1)
    await worker.aclose()


async def test_cancelling_is_a_fence() -> None:
    worker, gate, ran = EngineWorker("w"), Gate(), []
    running = worker.submit(gate.work)
    await gate.entered()
    waiting = worker.submit(ran.append, "waiting")
    running.cancel()
    waiting.cancel()
    gate.release.set()
    await worker.run(lambda: None)
    assert running.cancelled()
    assert ran == []
    await worker.aclose()


async def test_busy_seconds_only_while_busy() -> None:
    worker, gate = EngineWorker("w"), Gate()
    assert worker.busy_seconds() == 0.0
    running = worker.submit(gate.work)
    await gate.entered()
    assert worker.busy_seconds() > 0.0
    gate.release.set()
    await running
    await worker.run(lambda: None)
    await worker.aclose()
    assert worker.busy_seconds() == 0.0


async def test_closing_fails_what_waits_and_ends_the_thread() -> None:
    worker, gate = EngineWorker("ends"), Gate()
    running = worker.submit(gate.work)
    await gate.entered()
    waiting = worker.submit(lambda: 1)
    async with asyncio.TaskGroup() as group:
        closing = group.create_task(worker.aclose())
        await asyncio.sleep(0)
        gate.release.set()
        with pytest.raises(EngineUnavailable):
            await waiting
    assert closing.done()
    assert await running == "done"
    assert "ends" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(EngineUnavailable):
        worker.submit(lambda: 1)
    await worker.aclose()


async def test_a_stuck_thread_is_left_behind() -> None:
    worker, gate = EngineWorker("stuck"), Gate()
    running = worker.submit(gate.work)
    await gate.entered()
    await worker.aclose(grace_seconds=0.01)
    assert not running.done()
    gate.release.set()  # so that the test leaves no thread
    assert await running == "done"


async def test_closing_an_unused_worker_is_fine() -> None:
    await EngineWorker("w").aclose()
