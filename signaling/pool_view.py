"""What GET /pool shows: the pool's own figures, the calls, and how far the server is.

The pool gives most of it (`PoolControl.status`); this module adds what only the server knows, makes
one snapshot a second for everybody who follows the pool live, and hides call ids from strangers. An
id is the key to its call's hang-up endpoint, so it is hidden in the encoded text: wherever an id
may turn up, in an event or a reason too, it is found. docs/pool.md explains every field.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from voice_rtc import __version__
from voice_rtc.call.state import CallState
from voice_rtc.core.latency import RecentTurns
from voice_rtc.errors import AdmissionError

Json = dict[str, Any]

MOST_CALLS = 1000
"""Calls listed; ``calls_active`` tells how many there are."""
FEED_SECONDS = 1.0
"""How often listeners hear of the pool."""

_CALL_ID = re.compile(rb"\b(rtc_[0-9A-Za-z]{4})[0-9A-Za-z]+")

NOTHING_YET: Json = {
    "mode": None,
    "rollout": None,
    "fallback": None,
    "admission": {"state": "refuse", "reason": "the speech engines are not loaded"},
    "ladder": None,
    "slots": {"total": 0, "leased": 0, "free": 0, "target": 0, "max": 0},
    "sizing": None,
    "line": {"waiting": 0, "max_waiting": 0, "longest_wait_seconds": 0.0, "entries": []},
    "leases": [],
    "replicas": [],
    "latency": None,
    "machine": None,
    "alerts": [],
    "events": [],
}
"""The pool's part while there is no pool: engines are loading, or could not be loaded."""

NO_HISTORY: Json = {"step_seconds": 5.0, "series": {}}


class PoolControl(Protocol):
    """The pool as an operator sees it. Actions return a sentence; they raise VoiceRtcError."""

    def status(self) -> Json:
        """The pool's part of GET /pool."""
        ...

    def history(self) -> Json:
        """The last hour."""
        ...

    def newest_point(self) -> Json | None:
        """The newest point of the history."""
        ...

    async def quarantine(self, replica: str) -> str:
        """Take a replica out of service for good."""
        ...

    async def restart(self, replica: str) -> str:
        """Load a replica anew."""
        ...

    async def resize(self, slots: int) -> str:
        """Have so many slots; 0 goes back to the automatic figure."""
        ...

    async def switch_mode(self, mode: str) -> str:
        """Give new calls another mode."""
        ...

    async def isolate(self, call_id: str) -> str:
        """Give one call a replica of its own."""
        ...

    async def probe(self) -> str:
        """Measure anew what the engine carries."""
        ...


class CallsAndPool(Protocol):
    """What is shown and acted on; `voice_rtc.call.registry.CallRegistry` is one."""

    @property
    def pool(self) -> PoolControl | None:
        """None until the engines are loaded."""
        ...

    @property
    def draining(self) -> bool:
        """Are new calls refused?"""
        ...

    @property
    def active(self) -> int:
        """Calls from offer to end."""
        ...

    @property
    def recent_turns(self) -> RecentTurns:
        """The newest turns of all calls."""
        ...

    def set_draining(self, draining: bool) -> None:
        """Refuse new calls, or take them again."""
        ...

    def snapshot(self) -> list[CallState]:
        """All calls, oldest first."""
        ...

    def hang_up(self, call_id: str) -> None:
        """End a call, and the place in the line that is kept for it. Raises UnknownCall."""
        ...


@dataclass(frozen=True, slots=True)
class Readiness:
    """How far the server is."""

    status: str
    """loading | ready | failed | draining"""
    detail: str
    """For people; with ``failed`` what to do."""
    media: Json | None = None
    """Which way audio takes (``path``), and why it is the stock one (``reason``)."""


class PoolView:
    """Makes the JSON. ``born`` and ``loop_now`` are loop times in seconds."""

    def __init__(
        self, server: CallsAndPool, readiness: Callable[[], Readiness], born: float
    ) -> None:
        self._server = server
        self._readiness = readiness
        self._born = born
        self._told = b""
        self._told_until = float("-inf")

    def whole(self, loop_now: float, *, full_ids: bool) -> bytes:
        """GET /pool: everything, with the history of the last hour.

        Anybody may ask as often as he likes, and with a thousand calls it takes tens of
        milliseconds of the loop that carries their audio: without the token it is made anew at most
        each `FEED_SECONDS`.
        """
        if full_ids:
            return self._made(loop_now, full_ids=True)
        if loop_now >= self._told_until:
            self._told = self._made(loop_now, full_ids=False)
            self._told_until = loop_now + FEED_SECONDS
        return self._told

    def _made(self, loop_now: float, *, full_ids: bool) -> bytes:
        pool = self._server.pool
        history = pool.history() if pool is not None else NO_HISTORY
        return _encoded({**self._status(loop_now), "history": history}, full_ids)

    def event(self, loop_now: float) -> Json:
        """One event of the feed: everything but the history, and its newest point."""
        pool = self._server.pool
        point = pool.newest_point() if pool is not None else None
        return {**self._status(loop_now), "point": point}

    def _status(self, loop_now: float) -> Json:
        readiness = self._readiness()
        pool = self._server.pool
        calls = self._server.snapshot()
        return {
            "version": __version__,
            "now": round(datetime.now(UTC).timestamp(), 3),
            "uptime_seconds": round(loop_now - self._born, 1),
            "status": readiness.status,
            "detail": readiness.detail,
            "media": readiness.media,
            **(pool.status() if pool is not None else NOTHING_YET),
            "calls_active": self._server.active,
            "calls": [_call(state) for state in calls[:MOST_CALLS]],
            "turns": _turns(self._server.recent_turns),
        }


class TooManyListeners(AdmissionError):
    """Too many pages follow the pool live (admin.listeners). Try again in a moment."""

    code = "too_many_listeners"


class PoolFeed:
    """One snapshot each `FEED_SECONDS` for all who follow; none is made while nobody does.

    A listener takes the newest and then waits for the next: a slow one misses some, and no queue
    grows for it.
    """

    def __init__(self, view: PoolView, most: int) -> None:
        self._view = view
        self._most = most
        self._closing = asyncio.Event()
        self._tick = -1
        self._status: Json = {}
        self._encoded: dict[bool, bytes] = {}
        self._seats = {True: 0, False: 0}
        """Taken: by operators, who have as many of their own, and by anybody else."""
        self.made = 0
        """Snapshots so far."""

    @property
    def listeners(self) -> int:
        """All who follow now."""
        return sum(self._seats.values())

    @contextmanager
    def seat(self, *, operator: bool = False) -> Iterator[None]:
        """A listener's place. Raises TooManyListeners.

        Strangers take none of an operator's, who must see what goes on.
        """
        if self._seats[operator] >= self._most:
            raise TooManyListeners
        self._seats[operator] += 1
        try:
            yield
        finally:
            self._seats[operator] -= 1

    def newest(self, *, full_ids: bool) -> bytes:
        """The present state; made when this second's is first asked for."""
        tick = _tick()
        if tick != self._tick:
            self._status = self._view.event(asyncio.get_running_loop().time())
            self._encoded.clear()
            self._tick = tick
            self.made += 1
        if full_ids not in self._encoded:
            self._encoded[full_ids] = _encoded(self._status, full_ids)
        return self._encoded[full_ids]

    async def next_is_due(self) -> bool:
        """Wait until there is something new; False when the feed was closed.

        All listeners wake at the same moments, and so share what the first of them makes.
        """
        try:
            async with asyncio.timeout_at((_tick() + 1) * FEED_SECONDS):
                await self._closing.wait()
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        """The server ends: so do all listeners."""
        self._closing.set()


def _tick() -> int:
    """The number of the present second; a timer may fire a little before its time."""
    return int(asyncio.get_running_loop().time() / FEED_SECONDS + 0.01)


def _encoded(status: Json, full_ids: bool) -> bytes:
    body = msgspec.json.encode({**status, "redacted": not full_ids})
    return body if full_ids else _CALL_ID.sub(rb"\1...", body)


def _call(state: CallState) -> Json:
    last = state.last_turn
    return {
        "id": state.id,
        "state": state.phase,
        "suspended": state.suspended,
        "age_seconds": round(state.age_seconds, 1),
        "floor": state.floor,
        "turns": state.turns,
        "replies": state.replies,
        "lease": state.lease_id,
        "last_turn": None
        if last is None
        else {
            "outcome": last.outcome,
            "endpoint_ms": last.endpoint_ms,
            "stt_ms": last.stt_ms,
            "llm_first_token_ms": last.llm_first_token_ms,
            "tts_first_audio_ms": last.tts_first_audio_ms,
            "first_packet_ms": last.first_packet_ms,
            "response_ms": last.response_ms,
            "saved_ms": last.saved_ms,
        },
    }


def _turns(recent: RecentTurns) -> Json:
    return {
        "count": len(recent),
        "most": recent.most,
        "outcomes": recent.outcomes(),
        "stages": {
            f"{name}_ms": {
                "turns": found.turns,
                "p50": round(found.p50 * 1000, 1),
                "p95": round(found.p95 * 1000, 1),
            }
            for name, found in recent.quantiles().items()
        },
    }
