"""The inbox: a bounded buffer that a task waits on."""

from __future__ import annotations

import asyncio

import pytest

from voice_rtc.core.buffers import Policy
from voice_rtc.inbox import Inbox, InboxClosed


def inbox(limit: float = 3, policy: Policy = Policy.DROP_OLDEST, **more: object) -> Inbox[str]:
    return Inbox(limit, policy, **more)  # type: ignore[arg-type]  # a test's shorthand


async def test_what_is_there_is_got_at_once():
    box = inbox()
    assert box.put("a") and box.put("b")
    assert len(box) == 2
    assert [await box.get(), await box.get()] == ["a", "b"]


async def test_the_reader_waits_for_the_writer():
    box = inbox()
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(box.get())
        await asyncio.sleep(0)
        assert not reader.done()
        box.put("a")
    assert reader.result() == "a"


async def test_two_items_put_in_one_go_are_both_read():
    box = inbox()
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(box.get())
        await asyncio.sleep(0)
        box.put("a")
        box.put("b")
    assert reader.result() == "a" and await box.get() == "b"


async def test_drops_are_reported_and_the_put_tells():
    lost: list[int] = []
    box = inbox(2, Policy.REJECT_NEWEST, on_drop=lost.append)
    assert [box.put(item) for item in "abc"] == [True, True, False]
    assert lost == [1] and box.statistics().dropped == 1


async def test_the_oldest_makes_room():
    lost: list[int] = []
    box = inbox(2, on_drop=lost.append)
    assert [box.put(item) for item in "abcd"] == [True] * 4
    assert lost == [1, 1]
    assert [box.get_nowait(), box.get_nowait(), box.get_nowait()] == ["c", "d", None]


async def test_weights_and_kept_items_reach_the_buffer():
    box = inbox(4, weigh=len, keep=str.isupper)
    assert box.put("AA") and box.put("bb") and box.put("cc")
    assert [box.get_nowait(), box.get_nowait()] == ["AA", "cc"]


async def test_a_closed_inbox_gives_what_is_left_and_takes_nothing():
    box = inbox()
    box.put("a")
    box.close()
    assert not box.put("b")
    assert await box.get() == "a"
    with pytest.raises(InboxClosed):
        await box.get()


async def test_closing_wakes_the_reader():
    box = inbox()

    async def read() -> str:
        try:
            return await box.get()
        except InboxClosed:
            return "closed"

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read())
        await asyncio.sleep(0)
        box.close()
    assert reader.result() == "closed"


async def test_iterating_ends_when_the_inbox_is_closed():
    box = inbox()

    async def collect() -> list[str]:
        return [item async for item in box]

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(collect())
        for item in "abc":
            box.put(item)
            await asyncio.sleep(0)
        box.close()
    assert reader.result() == ["a", "b", "c"]


async def test_a_reader_that_is_cancelled_loses_nothing():
    box = inbox()
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(box.get())
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.sleep(0)
        assert reader.cancelled()
        box.put("a")
    assert await box.get() == "a"


async def test_a_reader_cancelled_in_the_same_turn_as_a_put_loses_nothing():
    box = inbox()
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(box.get())
        await asyncio.sleep(0)
        box.put("a")
        reader.cancel()
    assert box.get_nowait() == "a" or reader.result() == "a"


async def test_clear_forgets_uncounted():
    box = inbox()
    box.put("a")
    assert box.clear() == 1
    assert box.get_nowait() is None and box.statistics().dropped == 0
