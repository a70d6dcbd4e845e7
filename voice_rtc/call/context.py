"""What the parts of one call share: its clock, its log, its conversation, who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from voice_rtc.call.events import CallEvent, EventSink, TurnMeasured
from voice_rtc.call.state import CallSettings
from voice_rtc.config import Settings
from voice_rtc.core.endpointing import Endpointing
from voice_rtc.core.history import Conversation
from voice_rtc.core.latency import STAGES, Point, RecentTurns, TurnClock
from voice_rtc.core.turns import Event
from voice_rtc.engines.base import EngineSet
from voice_rtc.errors import StateError, UnknownItem, VoiceRtcError
from voice_rtc.metrics import Metrics
from voice_rtc.pool.pool import SttPool


@dataclass(frozen=True, slots=True)
class CallPorts:
    """What a call needs of the server around it."""

    settings: Settings
    engines: EngineSet
    pool: SttPool
    metrics: Metrics
    turns: RecentTurns
    """Of all calls."""


@dataclass(slots=True)
class CallerTurn:
    """One turn of the caller from speech to transcript. Times in seconds on the call's clock."""

    utterance: int
    item_id: str
    announced: bool = False
    """The client knows the item id."""
    partial: str = ""
    continues: CallerTurn | None = field(default=None, repr=False)
    """The part of the same turn before it; they share the item."""
    failure: VoiceRtcError | None = None
    """The STT gave up on it while the caller still spoke."""
    speech_end: float | None = None
    committed: float | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when ``text`` is final, whatever became of it."""
    text: str = ""
    """What was said, with what it continues."""
    clock: TurnClock | None = None
    """Of its latency; there once it is committed."""
    measured: bool = False
    """What became of it was told."""


class CallContext:
    """One per call. ``sink``, ``tasks`` and ``handle`` are set while the call is put together."""

    def __init__(self, call_id: str, ports: CallPorts) -> None:
        self.id = call_id
        self.ports = ports
        self.metrics = ports.metrics
        self.settings = CallSettings.from_settings(ports.settings)
        self.conversation = Conversation(ports.settings.limits.conversation_items)
        self.endpointing = Endpointing()
        self.log = structlog.get_logger("voice_rtc.call").bind(call=self.id)
        self.loop = asyncio.get_running_loop()
        self.born = self.loop.time()
        self.sink: EventSink | None = None
        self.last_turn: TurnMeasured | None = None
        self.tasks: asyncio.TaskGroup | None = None
        self.signal: Callable[[Event], object] = self._unset
        """Hands an event to the turn machine from outside the call's tasks."""
        self.end: Callable[[str], None] = self._unset
        """Asks the call to end, with a reason."""

    @property
    def language(self) -> str:
        """Code of the language that is spoken; empty: not known."""
        asked = self.settings.stt.language
        return self.ports.settings.stt.language if asked is None else asked

    def now(self) -> float:
        """Seconds since the offer."""
        return self.loop.time() - self.born

    def emit(self, event: CallEvent) -> None:
        """Tell the client."""
        if isinstance(event, TurnMeasured):
            self.last_turn = event
        if self.sink is not None:
            self.sink.emit(event)

    def passed(self, turn: CallerTurn, point: Point, at: float | None = None) -> float | None:
        """``turn`` is at ``point`` now, or was ``at`` call seconds: noted once, and the stage that
        it ends is counted.

        Returns the seconds of that stage; None when nothing was noted.
        """
        when = self.now() if at is None else at
        seconds = None if turn.clock is None else turn.clock.mark(point, when)
        if seconds is None:
            return None
        if point is Point.COMMITTED:
            self.metrics.endpoint_wait_seconds.observe(seconds)
        else:
            self.metrics.stage_seconds.labels(STAGES[point - 1]).observe(seconds)
        return seconds

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` in the call's TaskGroup."""
        if self.tasks is None:
            work.close()
            raise StateError("the call does not run")
        return self.tasks.create_task(work, name=f"{self.id}:{name}")

    def count_failure(self, engine: str, error: VoiceRtcError) -> None:
        """Count and log a failure of an engine."""
        self.metrics.engine_failures_total.labels(engine, error.code).inc()
        self.log.warning("engine_failed", engine=engine, code=error.code, error=str(error))

    def set_item(self, item_id: str, **changes: Any) -> None:
        """Change an item of the conversation, unless the client deleted it meanwhile."""
        try:
            self.conversation.update(item_id, **changes)
        except UnknownItem:
            self.log.debug("item_gone", item=item_id)

    def truncate_item(self, item_id: str, text: str, heard_ms: int) -> None:
        """Keep of a reply what was heard, unless the client deleted it meanwhile."""
        try:
            self.conversation.truncate(item_id, text, heard_ms)
        except UnknownItem:
            self.log.debug("item_gone", item=item_id)

    def _unset(self, _given: object) -> None:
        raise StateError("the call is not put together yet")
