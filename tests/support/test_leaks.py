"""The leak checks find leaks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from tests.support.leaks import Leaked, no_process_leaks, no_task_leaks, no_thread_leaks

pytest_plugins = ["pytester"]


async def test_a_task_left_is_found():
    loop = asyncio.get_running_loop()
    with pytest.raises(Leaked, match="forgotten"):
        async with no_task_leaks(patience_seconds=0.01):
            task = loop.create_task(asyncio.Event().wait(), name="forgotten")
    task.cancel()


async def test_a_task_that_is_just_finishing_is_none():
    async with no_task_leaks():
        asyncio.get_running_loop().create_task(asyncio.sleep(0), name="finishing")


def test_a_thread_left_is_found():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten")
    with pytest.raises(Leaked, match="forgotten"), no_thread_leaks(patience_seconds=0.01):
        thread.start()
    release.set()
    thread.join()


def test_a_child_process_left_is_found():
    command = [sys.executable, "-c", "input()"]
    with pytest.raises(Leaked, match="child"), no_process_leaks(patience_seconds=0.01):
        child = subprocess.Popen(command, stdin=subprocess.PIPE)
    child.communicate(b"\n")
    assert child.returncode == 0


def test_the_fixtures_are_wired(pytester):
    """A suite with this project's conftest fails the test that leaks, and only that."""
    pytester.makeconftest("from tests.conftest import *  # noqa: F403\n")
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    pytester.makepyfile(
        """
        import asyncio, pytest

        KEPT = []

        @pytest.fixture
        async def server():
            task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
            yield
            task.cancel()

        async def test_clean(server): pass

        async def test_leaky():
            KEPT.append(asyncio.get_running_loop().create_task(asyncio.sleep(60)))

        def test_sync(): pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaky*"])
