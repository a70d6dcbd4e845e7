"""EngineProcess with a real child process, and the two pure parts beside it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import structlog.testing

from voice_rtc.engines.process import EngineProcess, FrameReader, FrameTooLarge, Restarts, frame
from voice_rtc.errors import EngineCrashed, EngineTimeout


class Parent:
    """Holds the process under test and what came from it."""

    def __init__(self, **bounds: int) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue(maxsize=100)
        self.death: asyncio.Future[EngineCrashed] = asyncio.get_running_loop().create_future()
        self.process = EngineProcess(
            "tests.engines.echo_process",
            on_frame=self.frames.put_nowait,
            on_death=self.death.set_result,
            **bounds,
        )

    async def said(self, payload: bytes) -> bytes:
        self.process.send(payload)
        return await self.frames.get()


@pytest.fixture
async def parent() -> AsyncIterator[Parent]:
    parent = Parent()
    await parent.process.start()
    yield parent
    await parent.process.aclose()


async def test_frames_go_there_and_back(parent: Parent) -> None:
    large = bytes(range(256)) * 1000
    assert await parent.said(b"hello") == b"hello"
    assert await parent.said(b"") == b""
    assert await parent.said(large) == large
    assert parent.process.alive


async def test_it_ends_when_its_stdin_closes(parent: Parent) -> None:
    await parent.said(b"hello")
    await parent.process.aclose(grace_seconds=30.0)
    assert not parent.process.alive
    assert not parent.death.done(), "an end that was asked for is no death"
    with pytest.raises(EngineCrashed):
        parent.process.send(b"too late")


async def test_one_that_does_not_end_is_killed(parent: Parent) -> None:
    await parent.said(b"hello")
    parent.process.send(b"linger")
    await parent.process.aclose(grace_seconds=0.05)
    assert not parent.process.alive


async def test_a_death_is_noticed(parent: Parent) -> None:
    parent.process.send(b"die")
    assert "status 3" in str(await parent.death)
    assert not parent.process.alive
    with pytest.raises(EngineCrashed):
        parent.process.send(b"hello")


async def test_one_that_floods_is_killed(parent: Parent) -> None:
    parent.process.send(b"flood")
    await parent.death
    assert parent.frames.empty()


async def test_a_backlog_is_refused() -> None:
    parent = Parent(backlog_bytes=1000)
    await parent.process.start()
    await parent.said(b"hello")
    parent.process.send(b"linger")
    with pytest.raises(EngineTimeout):
        for _ in range(100):
            parent.process.send(bytes(100_000))
    await parent.process.aclose(grace_seconds=0.05)


async def test_stderr_goes_to_the_log(parent: Parent) -> None:
    with structlog.testing.capture_logs() as logs:
        parent.process.send(b"complain")
        await parent.process.aclose(grace_seconds=30.0)
    assert logs[0]["event"] == "engine_process_stderr"
    assert logs[0]["line"] == "this went wrong"


async def test_who_floods_stderr_does_not_flood_the_log(parent: Parent) -> None:
    with structlog.testing.capture_logs() as logs:
        await parent.said(b"rant")
        await parent.said(b"complain")
        async with asyncio.timeout(10.0):
            while not any(entry.get("line") == "this went wrong" for entry in logs):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    lines = [entry for entry in logs if entry["event"] == "engine_process_stderr"]
    assert len(lines) < 1000
    assert sum(entry.get("more", 0) + 1 for entry in lines) == 60_001


async def test_a_death_is_noticed_though_a_child_of_its_holds_the_pipes(parent: Parent) -> None:
    child = int(await parent.said(b"child"))
    try:
        parent.process.kill()
        async with asyncio.timeout(10.0):
            await parent.death
            await parent.process.aclose()
        assert not parent.process.alive
    finally:
        os.kill(child, signal.SIGKILL)


async def test_one_that_is_closed_ends_though_a_child_of_its_holds_the_pipes(
    parent: Parent,
) -> None:
    child = int(await parent.said(b"child"))
    try:
        async with asyncio.timeout(10.0):
            await parent.process.aclose(grace_seconds=5.0)
    finally:
        os.kill(child, signal.SIGKILL)


async def test_restarts_leave_no_files_open() -> None:
    open_files = []
    for number in range(12):
        parent = Parent()
        await parent.process.start()
        if number % 2:
            parent.process.kill()
            await parent.death
        await parent.process.aclose()
        open_files.append(len(os.listdir("/proc/self/fd")))
    assert open_files[2] == open_files[-1]


def test_frames_are_cut_wherever_the_pipe_breaks_them() -> None:
    stream = b"".join(frame(payload) for payload in (b"a", b"", b"long" * 50))
    reader, found = FrameReader(1000), []
    for index in range(len(stream)):
        found += list(reader.feed(stream[index : index + 1]))
    assert found == [b"a", b"", b"long" * 50]


def test_a_frame_beyond_the_bound_is_refused() -> None:
    with pytest.raises(FrameTooLarge):
        list(FrameReader(10).feed(frame(b"x" * 11)))


def test_restarts_wait_longer_each_time_and_forgive_after_a_minute() -> None:
    restarts = Restarts(first_seconds=1.0, longest_seconds=5.0)
    assert [restarts.died(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)] == [
        *(0.0, 1.0, 2.0, 4.0, 5.0, 5.0)
    ]
    assert restarts.died(100.0) == 0.0
