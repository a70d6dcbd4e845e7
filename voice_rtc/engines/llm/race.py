"""Two equal requests of which the first to answer wins.

Services answer most requests at once and some very late, and which is chance: asking again beside
a late one is answered sooner than the late one is (Dean and Barroso, The Tail at Scale, 2013).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from voice_rtc.engines.llm.faults import deadline, fault
from voice_rtc.errors import LlmError

T = TypeVar("T")

_log = structlog.get_logger("voice_rtc.engines")

_AT_ONCE = {"llm_server_error", "llm_unreachable", "llm_stream_cut"}
"""Nothing was said yet, and the next attempt may well meet another server."""
_FOR_BOTH = {"llm_unauthorized", "llm_bad_request", "llm_context_exceeded"}
"""What is wrong with one request is wrong with its twin."""


@dataclass(frozen=True, slots=True)
class RaceRules:
    """Times in seconds from the start of the race."""

    deadline_seconds: float
    """The winner must be there by then."""
    hedge_seconds: float | None = None
    """When a second attempt begins beside one that still waits; None: never."""


class Race(Generic[T]):
    """One answer, of at most two attempts at a time and three in all.

    ``attempt`` begins one and returns it with its first token; it raises LlmError and, cancelled,
    cleans up. ``discard`` frees what it returned. ``tell`` hears ``first``, ``retry`` and ``hedge``
    for each attempt, and what came of a hedge: ``hedge_won``, ``hedge_lost``.
    """

    def __init__(
        self,
        attempt: Callable[[], Awaitable[T]],
        discard: Callable[[T], Awaitable[None]],
        rules: RaceRules,
        tell: Callable[[str], None],
    ) -> None:
        self._attempt = attempt
        self._discard = discard
        self._rules = rules
        self._tell = tell
        self._started = 0.0
        self._running = 0
        self._resting = False
        self._has_retried = False
        self._is_hedged = False
        self._decided = asyncio.Event()
        self._won: list[T] = []
        """At most one: an answer may be anything, None too."""
        self._error: LlmError | None = None

    async def winner(self) -> T:
        """Run it, once. Raises LlmError: of the attempt that failed last, or ``llm_timeout``."""
        self._started = asyncio.get_running_loop().time()
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._discard_winner)
            async with deadline(self._rules.deadline_seconds, "no first token"):
                async with asyncio.TaskGroup() as group:
                    runs = [group.create_task(self._run("first"), name="llm-first")]
                    if self._rules.hedge_seconds is not None:
                        hedge = self._hedge(self._rules.hedge_seconds)
                        runs.append(group.create_task(hedge, name="llm-hedge"))
                    await self._decided.wait()
                    for run in runs:
                        run.cancel()
            if not self._won:
                raise self._error or fault("llm_error", "the LLM client gave no answer")
            undo.pop_all()
        return self._won[0]

    async def _hedge(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self._resting:  # a service that asked us to wait is not asked again meanwhile
            self._is_hedged = True
            await self._run("hedge")

    async def _run(self, kind: str) -> None:
        self._running += 1
        self._tell(kind)
        while True:
            try:
                answer = await self._attempt()
            except LlmError as error:
                rest = self._rest(error)
                if rest is None:
                    self._lose(error)
                    return
                _log.warning("llm_retry", code=error.code, error=str(error), after_seconds=rest)
                self._has_retried = self._resting = True
                await asyncio.sleep(rest)
                self._resting = False
                self._tell("retry")
            else:
                await self._finish(kind, answer)
                return

    def _rest(self, error: LlmError) -> float | None:
        """Seconds until the one retry; None when there is none."""
        asked = error.wait_seconds
        if self._has_retried or not (error.code in _AT_ONCE or asked is not None):
            return None
        rest = asked or 0.0
        passed = asyncio.get_running_loop().time() - self._started
        return rest if passed + rest < self._rules.deadline_seconds else None

    def _lose(self, error: LlmError) -> None:
        self._running -= 1
        if error.code in _FOR_BOTH or not self._running:
            self._error = error
            self._decided.set()

    async def _finish(self, kind: str, answer: T) -> None:
        if self._decided.is_set():  # both in the same turn of the loop
            await self._discard(answer)
            return
        self._won.append(answer)
        self._decided.set()
        if self._is_hedged:
            self._tell("hedge_won" if kind == "hedge" else "hedge_lost")

    async def _discard_winner(self) -> None:
        for answer in self._won:
            await self._discard(answer)
