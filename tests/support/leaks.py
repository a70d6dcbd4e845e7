"""What a test must not leave behind: tasks, threads, child processes.

tests/conftest.py puts these around every test. What fixtures of a wider scope own is there before
and after, and so does not count.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psutil

_PATIENCE_SECONDS = 2.0

ALLOWED_THREADS = {
    "asyncio_": "default executor of a loop with a wider scope; aiortc encodes Opus in it",
    "tqdm_monitor": "tqdm, used by model downloads, keeps one daemon thread for ever",
}
"""Prefix of the thread's name -> why it may stay."""

ALLOWED_PROCESSES = {
    "multiprocessing.resource_tracker": "multiprocessing keeps one until the program ends",
    "multiprocessing.forkserver": "multiprocessing keeps one until the program ends",
}
"""Part of the command line -> why it may stay."""


class Leaked(AssertionError):
    """The test left something behind."""


@asynccontextmanager
async def no_task_leaks(patience_seconds: float = _PATIENCE_SECONDS) -> AsyncIterator[None]:
    """Fails when the running loop has tasks afterwards that it had not before.

    Tasks that are just finishing get ``patience_seconds`` for it.
    """
    before = asyncio.all_tasks()
    yield
    current = asyncio.current_task()
    left = {task for task in asyncio.all_tasks() - before if task is not current}
    if left:
        _, left = await asyncio.wait(left, timeout=patience_seconds)
    if left:
        raise Leaked(f"tasks left: {sorted(repr(task) for task in left)}")


@contextmanager
def no_thread_leaks(patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Fails when threads are alive afterwards that were not there before."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and not _may_stay(t)]
    for thread in left:
        thread.join(patience_seconds)
    alive = sorted(thread.name for thread in left if thread.is_alive())
    if alive:
        raise Leaked(f"threads left: {alive}")


@contextmanager
def no_process_leaks(patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Fails when child processes run afterwards that did not before."""
    before = set(psutil.Process().children())
    yield
    left = [child for child in psutil.Process().children() if child not in before]
    left = [child for child in left if not _is_allowed_process(child)]
    _, alive = psutil.wait_procs(left, timeout=patience_seconds) if left else ([], [])
    if alive:
        raise Leaked(f"child processes left: {[str(child) for child in alive]}")


def _may_stay(thread: threading.Thread) -> bool:
    return thread.name.startswith(tuple(ALLOWED_THREADS)) or type(thread).__name__ == "TMonitor"


def _is_allowed_process(child: psutil.Process) -> bool:
    try:
        command = " ".join(child.cmdline())
    except psutil.NoSuchProcess:
        return True
    return any(part in command for part in ALLOWED_PROCESSES)
