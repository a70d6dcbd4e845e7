"""Around every test: nothing may be left behind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from signaling.event_loop import loop_factory
from tests.support.leaks import no_process_leaks, no_task_leaks, no_thread_leaks

_REAL_TIME = [Path(__file__).parent / folder for folder in ("browser", "loopback", "tools")]
"""Folders whose tests hold real calls."""

# The same examples each time, however slow the machine is.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No thread and no child process outlives a test. Checked after its event loop is closed."""
    with no_thread_leaks(), no_process_leaks():
        yield


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    """No task outlives an async test and its fixtures."""
    async with no_task_leaks():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--event-loop uvloop`` runs the async tests on the loop that a server has by default."""
    parser.addoption("--event-loop", choices=("asyncio", "uvloop"), default="asyncio")


def pytest_asyncio_loop_factories(
    config: pytest.Config,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of async tests."""
    chosen = config.getoption("--event-loop")
    return {chosen: loop_factory(chosen)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Async tests get `no_tasks_left`, before their own fixtures so that it is checked after them.

    Not autouse: sync tests would get an event loop for nothing, in which Playwright refuses to run.
    Tests in real time are one group: with several workers they still run one after the other.
    """
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in _REAL_TIME):
            item.add_marker(pytest.mark.xdist_group("real time"))
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(item.fixturenames.index("no_leaks") + 1, "no_tasks_left")
