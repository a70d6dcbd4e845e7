"""Around every test: nothing may be left behind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from signaling.event_loop import loop_factory
from tests.support.leaks import no_process_leaks, no_task_leaks, no_thread_leaks


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
    """
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(item.fixturenames.index("no_leaks") + 1, "no_tasks_left")
