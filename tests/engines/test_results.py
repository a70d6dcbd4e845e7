"""The way of results from an engine to one call."""

from __future__ import annotations

import asyncio

from voice_rtc.engines.base import Final, Partial, SttResult
from voice_rtc.engines.stt.results import ResultStream


async def read(stream: ResultStream) -> list[SttResult]:
    return [result async for result in stream]


async def test_what_is_discarded_is_not_delivered_before_or_after() -> None:
    stream = ResultStream()
    stream.put(Partial(1, "a"))
    stream.discard(1)
    stream.put(Final(1, "a", 1.0))
    stream.put(Final(2, "b", 1.0))
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5.0):
        reading = tasks.create_task(read(stream))
        await asyncio.sleep(0)
        stream.close()
    assert reading.result() == [Final(2, "b", 1.0)]


async def test_a_call_of_nothing_but_noises_takes_no_more_and_more_memory() -> None:
    stream = ResultStream()
    for utterance in range(100_000):
        stream.discard(utterance)
    assert len(stream._discarded) <= 1000
    stream.put(Final(99_999, "discarded", 1.0))
    stream.put(Final(100_000, "heard", 1.0))
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5.0):
        reading = tasks.create_task(read(stream))
        await asyncio.sleep(0)
        stream.close()
    assert reading.result() == [Final(100_000, "heard", 1.0)]
