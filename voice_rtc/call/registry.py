"""All calls of this server (the original plan's SessionManager)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import structlog

from voice_rtc.call.call import Call
from voice_rtc.call.context import CallPorts
from voice_rtc.call.events import Degraded, GoingAway
from voice_rtc.call.state import AS_IT_COMES, CallState, LineWish
from voice_rtc.config import Settings
from voice_rtc.core.connecting import ConnectingRules, room_for
from voice_rtc.core.latency import RecentTurns
from voice_rtc.engines.base import EngineSet, SupportsRequests
from voice_rtc.errors import (
    Draining,
    EnginesLoading,
    Overloaded,
    RateLimited,
    UnknownCall,
    VoiceRtcError,
)
from voice_rtc.media.joint_ports import PortRange
from voice_rtc.media.peer import PeerSettings
from voice_rtc.media.selftest import MediaPath
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import GpuSource, read_gpus
from voice_rtc.pool.memory import MemorySource, read_machine
from voice_rtc.pool.pool import SttPool

log = structlog.get_logger("voice_rtc.calls")

_CLOSING_SECONDS = 5.0


class CallRegistry:
    """Admits calls, owns their tasks, ends them. Use within `running`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        udp_ports = settings.media.udp_port_range
        self._udp_ports = None if udp_ports is None else PortRange(udp_ports)
        self._media_path = MediaPath("fast")
        self._ports: CallPorts | None = None
        self._calls: dict[str, Call] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self.recent_turns = RecentTurns(settings.admin.recent_turns)
        """Of all calls, those that ended too."""
        self._refusal: VoiceRtcError | None = None
        self.on_call_ended: Callable[[], None] = lambda: None
        """Told of each call that is over and let go of."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CallRegistry]:
        """Calls live inside this block; leaving it ends those that are left."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                yield self
            finally:
                self._draining = True
                for call in self._calls.values():
                    call.end("server_shutdown")

    @asynccontextmanager
    async def open(
        self,
        engines: EngineSet,
        gpus: GpuSource = read_gpus,
        memory: MemorySource = read_machine,
    ) -> AsyncIterator[SttPool]:
        """The engines are ready: calls can be admitted inside this block."""
        if isinstance(engines.llm, SupportsRequests):
            engines.llm.on_request = self._metrics.count_llm_request
        async with SttPool(self._settings, engines, self._metrics, gpus, memory).running() as pool:
            pool.supervisor.on_step = self._announce_step
            pool.supervisor.governor.media_path_stock = self._media_path.reason
            self._ports = CallPorts(self._settings, engines, pool, self._metrics, self.recent_turns)
            try:
                yield pool
            finally:
                self._ports = None

    def _announce_step(self, step: int, name: str, message: str) -> None:
        for call in self._calls.values():
            call.announce(Degraded(step, name, message))

    @property
    def media_path(self) -> MediaPath:
        """Which way the audio of calls takes. To be set before `open`: slots go by it."""
        return self._media_path

    @media_path.setter
    def media_path(self, chosen: MediaPath) -> None:
        self._media_path = chosen
        if chosen.path == "stock":
            media = self._settings.media.model_copy(update={"path": "stock"})
            self._settings = self._settings.model_copy(update={"media": media})

    @property
    def pool(self) -> SttPool | None:
        """The pool, once the engines are there."""
        return self._ports.pool if self._ports is not None else None

    def refuse(self, error: VoiceRtcError) -> None:
        """The engines will not be there: calls are refused with ``error``."""
        self._refusal = error

    @property
    def slots(self) -> int:
        """How many calls may run at the same time."""
        if self._ports is None:
            return 0
        pool = self._ports.pool
        slots = pool.statistics().slots + pool.supervisor.growth(pool.group)
        return min(self._settings.limits.max_calls, slots)

    @property
    def active(self) -> int:
        """Calls from offer to end."""
        return len(self._calls)

    @property
    def anybody_hears(self) -> bool:
        """Is a call being sent sound?"""
        return any(call.peer.is_sending for call in self._calls.values())

    @property
    def draining(self) -> bool:
        """The server is shutting down."""
        return self._draining

    def set_draining(self, draining: bool) -> None:
        """Refuse new calls, or take them again; running calls go on."""
        self._draining = draining
        log.info("draining" if draining else "admitting", calls=len(self._calls))

    def create(
        self,
        channel_label: str,
        spare_events: frozenset[str],
        line: LineWish = AS_IT_COMES,
        *,
        heartbeat: str = "",
    ) -> Call:
        """Admit a call. Raises AdmissionError. `start` or `abandon` must follow.

        The rest is as in `PeerSettings`.
        """
        call_id = f"rtc_{token_hex(10)}"
        ports = self._admit(call_id, line)
        peer = PeerSettings(
            self._settings.media,
            self._settings.limits,
            channel_label,
            spare_events,
            self._udp_ports,
            heartbeat,
        )
        call = Call(call_id, ports, peer, line)
        self._calls[call.id] = call
        self._empty.clear()
        self._metrics.calls_active.set(len(self._calls))
        return call

    def start(self, call: Call, client: Coroutine[Any, Any, None]) -> None:
        """Let the call live; ``client`` is its adapter's loop."""
        assert self._tasks is not None
        self._tasks.create_task(self._live(call, client), name=call.id)

    async def abandon(self, call: Call) -> None:
        """A created call that cannot start."""
        try:
            await call.peer.aclose()
        finally:
            self._forget(call)

    def get(self, call_id: str) -> Call:
        """Raises UnknownCall."""
        try:
            return self._calls[call_id]
        except KeyError:
            raise UnknownCall(f"no call has the id {call_id[:64]}") from None

    def hang_up(self, call_id: str) -> None:
        """The caller wants no more, not even the place that is kept for it. Raises UnknownCall."""
        had_place = self.pool is not None and self.pool.give_up_place(call_id)
        if call_id in self._calls or not had_place:
            self.get(call_id).end("hangup")

    def calls(self) -> tuple[Call, ...]:
        """All calls, oldest first."""
        return tuple(self._calls.values())

    def snapshot(self) -> list[CallState]:
        """All calls, oldest first."""
        return [call.state() for call in self._calls.values()]

    async def drain(self, seconds: float) -> None:
        """Admit no more, tell running calls, wait for them, then end what is left."""
        self._draining = True
        for call in self._calls.values():
            call.announce(GoingAway("server_shutdown", seconds))
        log.info("draining", calls=len(self._calls), seconds=seconds)
        if await self._wait_empty(seconds):
            return
        for call in self._calls.values():
            call.end("server_shutdown")
        if not await self._wait_empty(_CLOSING_SECONDS):
            log.warning("calls_left", calls=len(self._calls))

    async def wait_empty(self) -> None:
        """Wait until no call is left."""
        await self._empty.wait()

    async def _wait_empty(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.wait_empty()
        except TimeoutError:
            return False
        return True

    def _admit(self, call_id: str, line: LineWish) -> CallPorts:
        if self._draining:
            raise Draining
        if self._refusal is not None:
            raise self._refusal
        if self._ports is None:
            raise EnginesLoading
        if len(self._calls) >= self._settings.limits.max_calls:
            raise Overloaded
        self._make_room(line.origin)
        coming = [call.id for call in self._calls.values() if call.needs_place]
        self._ports.pool.check_admission(call_id, line.resume, coming)
        return self._ports

    def _make_room(self, origin: str) -> None:
        """Raises RateLimited or Overloaded when too many are connecting."""
        limits = self._settings.limits
        rules = ConnectingRules(limits.connecting_calls, limits.connecting_calls_per_address)
        connecting = [call.connecting for call in self._calls.values()]
        room = room_for(origin, [each for each in connecting if each is not None], rules)
        if room.refusal == "origin":
            raise RateLimited("too many calls from this address are connecting")
        if room.refusal:
            raise Overloaded("too many calls are connecting")
        if room.displaced:
            self.get(room.displaced).end("connect_timeout")

    async def _live(self, call: Call, client: Coroutine[Any, Any, None]) -> None:
        reason = "internal_error"
        try:
            reason = await call.run(client)
        except Exception as error:
            call.log.error("call_crashed", exc_info=error)
        finally:
            self._forget(call)
            state = call.state()
            self._metrics.calls_total.labels(reason).inc()
            self._metrics.call_duration_seconds.observe(state.age_seconds)
            call.log.info(
                "call",
                reason=reason,
                seconds=state.age_seconds,
                turns=state.turns,
                replies=state.replies,
                frames_received=state.frames_received,
                inbound_dropped=state.inbound_dropped,
                underruns=state.underruns,
            )

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.id, None)
        self._metrics.calls_active.set(len(self._calls))
        if not self._calls:
            self._empty.set()
        self.on_call_ended()
