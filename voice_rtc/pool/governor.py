"""How many slots, at which quality: what was measured goes in, sizes and steps come out.

The decisions are pure and live in core: `capacity` (sizes, admission), `ladder` (quality),
`alerts`. Here the readings are taken, each second, and what was decided is carried out. Answers
the original plan's MemoryMonitor together with `pool.memory`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from voice_rtc.core.alerts import AlertBook, AlertEvent, AlertReadings, Raised
from voice_rtc.core.capacity import (
    AdmissionGate,
    GateDecision,
    GateRules,
    LatencyCurve,
    Sizing,
    percentile,
)
from voice_rtc.core.health import HealthRules, Restarts
from voice_rtc.core.ladder import NAMES, Ladder, LadderRules, LadderStep, Readings
from voice_rtc.engines.base import SttMode, SttQuality
from voice_rtc.pool.gpu import GpuReadings, GpuSource
from voice_rtc.pool.group import Group
from voice_rtc.pool.memory import MemoryMonitor, MemorySource, Pressure
from voice_rtc.pool.placement import Needs, OnGpus, emptiest, rooms
from voice_rtc.pool.probe import size_pool
from voice_rtc.pool.replica import Replica, State
from voice_rtc.pool.status import STEP_SECONDS, memory_mb, own_memory_mb

if TYPE_CHECKING:
    from voice_rtc.pool.pool import SttPool
    from voice_rtc.pool.supervisor import Supervisor

_log = structlog.get_logger("voice_rtc.pool")

_WINDOW_SECONDS = 60.0
_MOST_TIMES = 512
_PLACES_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_FLAPPING_SECONDS = 600.0
_CALM_SECONDS = 60.0
_PRESSURE_NUMBER: dict[Pressure, int] = {"normal": 0, "high": 1, "critical": 2}
_STATES = ("starting", "ready", "suspect", "quarantined", "retired")


class RollingTimes:
    """The newest durations, and percentiles of the last minute."""

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque(maxlen=_MOST_TIMES)

    def add(self, now: float, seconds: float) -> None:
        """One more."""
        self._times.append((now, seconds))

    def percentile(self, now: float, share: float) -> float | None:
        """None when there was none in the last minute."""
        self._forget(now)
        return percentile((seconds for _, seconds in self._times), share)

    def per_minute(self, now: float) -> float:
        """How many there were in the last minute."""
        self._forget(now)
        return float(len(self._times))

    def _forget(self, now: float) -> None:
        while self._times and self._times[0][0] < now - _WINDOW_SECONDS:
            self._times.popleft()


class Governor:
    """One per pool; its `tick` is called by the supervisor's loop."""

    def __init__(
        self, pool: SttPool, supervisor: Supervisor, gpus: GpuSource, memory: MemorySource
    ) -> None:
        self._pool = pool
        self._settings = pool.settings.pool
        self._supervisor = supervisor
        self._metrics = pool.metrics
        self._read_gpus = gpus
        self._read_memory = memory
        self._gpus = gpus()
        self.finals = RollingTimes()
        self.partials = RollingTimes()
        settings = self._settings
        self._ladder = Ladder(LadderRules(memory_critical=settings.memory_critical))
        self._gates: dict[SttMode, AdmissionGate] = {}
        self._gate = GateDecision(0, "open", "")
        self._alerts = AlertBook()
        self._memory = MemoryMonitor(
            high=settings.memory_high, critical=settings.memory_critical, source=memory
        )
        self._memory.on_pressure(self._pressure_changed)
        self.memory_fraction = 0.0
        """In use, of whichever memory is fullest."""
        self._calm_since: float | None = None
        self._sizings: dict[SttMode, Sizing] = {}
        self._fixed = settings.slots
        self._references: dict[str, str] = {}
        """Engine and model -> what it makes of the known sentence."""
        self._fallback: tuple[SttMode, SttMode, str] | None = None
        self._lost: deque[float] = deque(maxlen=32)
        self._curve: LatencyCurve | None = None
        self._process = psutil.Process()
        self._looked = float("-inf")
        self._told = float("-inf")
        self._pointed = float("-inf")
        self.restarts = Restarts()
        self.machine: dict[str, Any] = {}
        self.on_alert: Callable[[AlertEvent], None] = lambda _event: None
        """Told of each alert that is raised or cleared."""
        self._look_at_machine()

    # ------------------------------------------------------------------- sizing

    async def size_group(self, group: Group, replica: Replica, *, fresh: bool = False) -> Sizing:
        """Find out how many slots the group should have, and give it those that exist now."""
        settings = self._settings
        self._gpus = self._read_gpus()
        engines = self._supervisor.engines(group.mode)
        sizing, self._curve = await size_pool(
            replica.engine,
            group.mode,
            self._pool.settings,
            self._gpus,
            fixed=self._fixed,
            devices=max(len(self._loaded(group.mode)), 1),
            loaded=[each.device for each in engines if each.state is not State.STARTING],
            memory=self._read_memory,
            fresh=fresh,
            previous=self._curve,
        )
        self._sizings[group.mode] = sizing
        goal = settings.final_goal_seconds
        rules = GateRules(goal_seconds=goal, most=settings.max_slots)
        self._gates[group.mode] = AdmissionGate(rules, sizing.slots)
        self._resize(group)
        _log.info("pool_sized", mode=group.mode, slots=sizing.slots, why=sizing.explanation)
        return sizing

    def _resize(self, group: Group) -> None:
        """As many slots as wanted; where each needs an engine, as many as are loaded."""
        now = asyncio.get_running_loop().time()
        wanted = self.target(group)
        if group.mode == "dedicated":
            wanted = min(wanted, len(self._loaded(group.mode)))
        group.resize(wanted, now)

    def target(self, group: Group) -> int:
        """Slots that the group is meant to have."""
        sizing = self._sizings.get(group.mode)
        if sizing is None:
            return 0
        gate = self._gates[group.mode]
        automatic = not self._fixed and group.mode == "shared"
        wanted = gate.slots if automatic else (self._fixed or sizing.slots)
        return min(wanted, self._settings.max_slots)

    def most_slots(self, group: Group) -> int:
        """The bound on its slots."""
        if self._fixed or group.mode != "shared":
            return self.target(group)
        return self._settings.max_slots

    def fix_slots(self, slots: int) -> int:
        """A fixed number from now on; 0: automatic. Returns the target."""
        self._fixed = slots
        group = self._pool.group
        sizing = self._sizings.get(group.mode)
        if sizing is not None and not slots:
            self._gates[group.mode].slots = sizing.slots
        self._resize(group)
        self._supervisor.wanted(group)
        return self.target(group)

    def slots_of(self, replica: Replica) -> int:
        """Its share of the group's slots."""
        if replica.role != "serving" or replica.state not in (State.READY, State.SUSPECT):
            return 0
        if replica.mode == "dedicated":
            return 1
        serving = self._loaded(replica.mode)
        group = self._pool.groups.get(replica.mode)
        if group is None or replica not in serving:
            return 0
        share, rest = divmod(group.slots, len(serving))
        return share + (serving.index(replica) < rest)

    def further_devices(self, first: Replica) -> list[int]:
        """GPUs beside the first that a shared engine should run on too."""
        if first.mode != "shared" or "cuda" not in first.engine.info.model:
            return []
        return [gpu.index for gpu in self._gpus.usable[1:]]

    def first_device(self, mode: SttMode) -> int:
        """The GPU for the first engine of a mode: one that works alone goes where most is free."""
        if mode == "shared":
            return 0
        gpus = sorted(self._gpus.usable, key=lambda gpu: (-gpu.free_mb, gpu.index))
        return gpus[0].index if gpus else 0

    def room(self, group: Group) -> int:
        """Engines that could still be loaded for the group, by its target and by memory."""
        wanted = self.target(group) - len(self._supervisor.engines(group.mode))
        rooms = self._rooms(group.mode)
        return max(0, wanted if rooms is None else min(wanted, sum(rooms.values())))

    def next_device(self, group: Group) -> int | None:
        """The GPU for one more engine of the group; None when no GPU has room."""
        self._gpus = self._read_gpus()  # the newest engine may have come after the last reading
        rooms = self._rooms(group.mode)
        if rooms is None:
            devices = [gpu.index for gpu in self._gpus.usable] or [0]
        else:
            devices = [device for device, room in rooms.items() if room > 0]
        return emptiest(devices, Counter(r.device for r in self._supervisor.engines(group.mode)))

    def _rooms(self, mode: SttMode) -> dict[int, int] | None:
        """By GPU; None where none bounds the number: on a CPU, and when somebody fixed it."""
        sizing = self._sizings.get(mode)
        if sizing is None or not sizing.by_device:
            return None
        loading = [r for r in self._supervisor.replicas() if r.state is State.STARTING]
        engines = OnGpus(
            Counter(r.device for r in self._supervisor.engines(mode)),
            Counter(r.device for r in loading),
        )
        pool = self._settings
        needs = Needs(pool.reserved_memory_mb, pool.instance_memory_mb)
        return rooms(dict(sizing.by_device), self._gpus.usable, engines, needs)

    def _loaded(self, mode: SttMode) -> list[Replica]:
        return [r for r in self._supervisor.serving(mode) if r.state is not State.STARTING]

    # ------------------------------------------------------------------ readings

    def tick(self, now: float) -> None:
        """What is due now."""
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._look(now)
        if now - self._told >= _PLACES_SECONDS:
            self._told = now
            for group in self._pool.groups.values():
                group.tell_places(now)
        if now - self._pointed >= STEP_SECONDS:
            self._pointed = now
            self._pool.view.add_point(datetime.now(tz=UTC).timestamp())

    def _look(self, now: float) -> None:
        self._look_at_machine()
        self._climb(now)
        self._adapt_slots(now)
        for group in self._pool.groups.values():
            if group.book.waiting:
                self._supervisor.wanted(group)  # there may be memory now that there was not
        self._unload_idle(now)
        self._look_for_alerts(now)
        self._return_from_fallback(now)
        self.publish()

    def _look_at_machine(self) -> None:
        self._gpus = self._read_gpus()
        workers = tuple(pid for r in self._supervisor.replicas() for pid in r.engine_health().pids)
        workers_mb = memory_mb(workers)
        reading = self._memory.read(workers, self._gpus)
        self.memory_fraction = reading.fraction
        self.machine = {
            "cpu_percent": psutil.cpu_percent(None),
            "cores": psutil.cpu_count() or 1,
            "rss_mb": own_memory_mb(),
            "workers_rss_mb": workers_mb,
            "memory_total_mb": round(reading.limit_mb, 1),
            "memory_available_mb": round(reading.available_mb, 1),
            "memory_pressure": self._memory.level,
            "threads": self._process.num_threads(),
            "tasks": len(asyncio.all_tasks()),
            "loop_lag_ms": round(self._supervisor.loop_lag_seconds * 1000, 2),
        }

    def final_took(self, now: float, seconds: float) -> None:
        """A call's Final came so long after its utterance ended."""
        self.finals.add(now, seconds)
        if (gate := self._gates.get(self._pool.mode)) is not None:
            gate.observe(now, seconds)

    def partial_took(self, now: float, seconds: float) -> None:
        """A partial came so long after it was wanted."""
        self.partials.add(now, seconds)

    # ------------------------------------------------------------------- quality

    @property
    def step(self) -> LadderStep:
        """Where the pool stands on the ladder."""
        return self._ladder.current

    def _climb(self, now: float) -> None:
        readings = Readings(
            final_p95_seconds=self.finals.percentile(now, 0.95),
            goal_seconds=self._settings.final_goal_seconds,
            memory_fraction=self.memory_fraction,
            queue_age_seconds=self._oldest_wait(now),
            healthy_replicas=self._supervisor.healthy(),
        )
        step = self._ladder.step(now, readings)
        if step is None:
            return
        self._supervisor.set_quality(SttQuality(step.partial_factor, step.economy))
        self._supervisor.note(f"ladder: {step.name} ({step.reason or 'the load has gone down'})")
        _log.warning("pool_degraded", step=step.step, name=step.name, reason=step.reason)
        self._supervisor.on_step(step.step, step.name, step.sentence)
        for group in self._pool.groups.values():
            self._open_or_close(group, now)

    def _oldest_wait(self, now: float) -> float:
        leases = (lease for group in self._pool.groups.values() for lease in group.leases.values())
        return max((lease.session.waited_seconds(now) for lease in leases), default=0.0)

    def _open_or_close(self, group: Group, now: float) -> None:
        """Free slots are not granted while the ladder or the gate says that callers wait."""
        held = self.step.admission != "open" or (
            self._gate.state == "closed" and group.mode == self._pool.mode and not self._fixed
        )
        group.hold(held, now)

    @property
    def refuses(self) -> bool:
        """Is no call taken at all?"""
        return self.step.admission == "refuse"

    @property
    def refusal(self) -> str:
        """Why."""
        return f"{self.step.sentence} ({self.step.reason})" if self.step.reason else ""

    def _adapt_slots(self, now: float) -> None:
        group = self._pool.group
        gate = self._gates.get(group.mode)
        if gate is None or self._fixed or group.mode != "shared":
            return
        before = self._gate.state
        self._gate = gate.decide(now, len(group.leases), group.book.waiting)
        if self._gate.state != before:
            self._supervisor.note(f"admission {self._gate.state}: {self._gate.reason or 'quick'}")
            if self._gate.state == "open":
                gate.slots = max(gate.slots, self._sizings[group.mode].slots)
        if group.slots != self.target(group):
            self._resize(group)
        self._open_or_close(group, now)

    # -------------------------------------------------------------------- memory

    @property
    def may_load(self) -> bool:
        """Is there memory for one more engine?"""
        return self._memory.level == "normal"

    def _pressure_changed(self, level: Pressure) -> None:
        newest = self._memory.newest
        if newest is not None:
            self.memory_fraction = newest.fraction
        fullest = newest.fullest if newest is not None else ""
        self._supervisor.note(f"memory pressure is {level}: {fullest}")
        _log.warning("memory_pressure", level=level, fraction=round(self.memory_fraction, 3))
        self._metrics.memory_pressure.set(_PRESSURE_NUMBER[level])
        if level == "normal":
            self._supervisor.refill_spares()
            return
        self._supervisor.drop_spares(f"memory pressure is {level}")
        self._calm_since = None
        if level == "critical" and self._pool.mode == "dedicated" and self._fallback is None:
            reason = f"{self.memory_fraction:.0%} of the memory is in use"
            self._fallback = ("dedicated", "shared", reason)
            self._supervisor.fall_back("shared", reason)

    def _return_from_fallback(self, now: float) -> None:
        if self._fallback is None or self._memory.level != "normal":
            self._calm_since = None
            return
        self._calm_since = self._calm_since if self._calm_since is not None else now
        if now - self._calm_since >= _CALM_SECONDS:
            mode = self._fallback[0]
            self._fallback = None
            self._supervisor.fall_back(mode, "memory is there again")

    @property
    def fallback(self) -> str | None:
        """Why the pool is not in the configured mode."""
        return self._fallback[2] if self._fallback is not None else None

    def _unload_idle(self, now: float) -> None:
        """Engines that nobody needs: of ``dedicated`` all but one, of a mode gone by all."""
        patience = self._settings.idle_unload_seconds if self.may_load else 0.0
        kept = {self._pool.mode, *((self._settings.rollout_mode,) if self._rolls_out else ())}
        for mode, group in self._pool.groups.items():
            loaded = self._loaded(mode)
            least = 1 if mode in kept else 0
            if mode != "dedicated" and least:
                continue
            if group.book.waiting or not self._supervisor.can_replace:
                continue
            spare = len(loaded) - max(least, group.lent if mode == "dedicated" else 0)
            for replica in reversed(loaded):
                if spare <= 0:
                    break
                if replica.leases or now - replica.idle_since < patience:
                    continue
                spare -= 1
                if mode == "dedicated":
                    group.remove_slot(now)
                elif not group.leases:
                    group.resize(0, now)
                if mode not in kept or not self._supervisor.keep_as_spare(replica):
                    self._supervisor.retire(replica, "nobody needs it")

    @property
    def _rolls_out(self) -> bool:
        return bool(self._settings.rollout_mode) and self._settings.rollout_share > 0

    # -------------------------------------------------------------------- alerts

    def _look_for_alerts(self, now: float) -> None:
        statistics = self._pool.statistics()
        group = self._pool.group
        waiting = group.book.waiting
        readings = AlertReadings(
            slots=max(statistics.slots, self.target(group)),
            leased=statistics.leased,
            waiting=statistics.waiting,
            max_waiting=self._settings.max_waiting,
            eta_seconds=group.book.eta_seconds(waiting, now) if waiting else None,
            ready_replicas=self._supervisor.healthy(),
            ladder_step=self.step.step,
            ladder_name=self.step.name,
            ladder_reason=self.step.reason,
            memory_pressure=self._memory.level,
            memory_fraction=self.memory_fraction,
            recent_replacements=sum(at > now - _FLAPPING_SECONDS for at in self._lost),
            fallback=self.fallback or "",
        )
        for event in self._alerts.step(now, readings):
            alert = event.alert
            raised = isinstance(event, Raised)
            log = _log.warning if raised else _log.info
            log("alert_raised" if raised else "alert_cleared", alert=alert.name, text=alert.text)
            self._metrics.alerts_active.labels(alert.name).set(1 if raised else 0)
            self._supervisor.note(f"alert {alert.name} {'raised' if raised else 'cleared'}")
            self.on_alert(event)

    def replica_lost(self, now: float) -> None:
        """One had to be replaced."""
        self._lost.append(now)

    # -------------------------------------------------------------------- health

    def health_rules(self) -> HealthRules:
        """For a new replica."""
        return HealthRules(
            hang_seconds=self._settings.hang_seconds,
            goal_seconds=self._settings.final_goal_seconds,
        )

    @property
    def worst_batch_seconds(self) -> float:
        """The longest batch that was measured; 0.0 when nothing was."""
        if self._curve is None:
            return 0.0
        return max(point.seconds for point in self._curve.points)

    @property
    def probe_deadline_seconds(self) -> float:
        """A probe that takes longer has failed."""
        return max(10.0, 10 * self._settings.final_goal_seconds)

    def reference(self, replica: Replica, text: str) -> str | None:
        """What such an engine made of the known sentence the first time; None: that was now."""
        key = f"{replica.engine.info.name} {replica.engine.info.model}"
        if replica.heals_itself:
            return None
        if key not in self._references:
            if text:
                self._references[key] = text
            return None
        return self._references[key]

    # ------------------------------------------------------------------- figures

    def publish(self) -> None:
        """Set the gauges."""
        metrics, statistics = self._metrics, self._pool.statistics()
        metrics.leases_active.set(statistics.leased)
        metrics.pool_slots.labels("leased").set(statistics.leased)
        metrics.pool_slots.labels("free").set(statistics.available)
        metrics.pool_waiting.set(statistics.waiting)
        ratio = statistics.leased / statistics.slots if statistics.slots else 0.0
        metrics.pool_utilisation_ratio.set(ratio)
        metrics.degradation_step.set(self.step.step)
        states = [replica.state.value for replica in self._supervisor.replicas()]
        for state in _STATES:
            metrics.replicas.labels(state).set(states.count(state))
        used = sum(gpu.used_mb for gpu in self._gpus.gpus) * 2**20
        free = sum(gpu.free_mb for gpu in self._gpus.gpus) * 2**20
        metrics.gpu_memory_bytes.labels("used").set(used)
        metrics.gpu_memory_bytes.labels("free").set(free)

    @property
    def gpu_used_mb(self) -> float | None:
        """Of all GPUs; None without one."""
        return sum(gpu.used_mb for gpu in self._gpus.gpus) if self._gpus.gpus else None

    @property
    def gpus(self) -> GpuReadings:
        """The newest reading."""
        return self._gpus

    def sizing_status(self) -> dict[str, Any]:
        """For GET /pool."""
        sizing = self._sizings.get(self._pool.mode)
        return {
            "source": "settings" if self._fixed else (sizing.source if sizing else "engine"),
            "explanation": sizing.explanation if sizing else "",
            "goal_seconds": self._settings.final_goal_seconds,
            "gpus": [asdict(gpu) for gpu in self._gpus.gpus],
            "gpu_problem": self._gpus.problem,
        }

    def ladder_status(self, now: float) -> dict[str, Any]:
        """For GET /pool."""
        step = self.step
        return {
            "step": step.step,
            "name": step.name,
            "reason": step.reason,
            "since_seconds": round(now - step.since, 1) if step.since else None,
            "names": list(NAMES),
        }

    def admission_status(self) -> dict[str, str]:
        """For GET /pool."""
        if self.step.admission != "open":
            return {"state": self.step.admission, "reason": self.step.reason}
        if self._gate.state == "closed" and not self._fixed:
            return {"state": "queue_only", "reason": self._gate.reason}
        return {"state": "open", "reason": ""}

    @property
    def fallback_status(self) -> dict[str, str] | None:
        """For GET /pool."""
        if self._fallback is None:
            return None
        before, now, reason = self._fallback
        return {"from": before, "to": now, "reason": reason}

    def latency_status(self, now: float) -> dict[str, float | None]:
        """For GET /pool."""

        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 4)

        return {
            "final_p50_seconds": rounded(self.finals.percentile(now, 0.5)),
            "final_p95_seconds": rounded(self.finals.percentile(now, 0.95)),
            "partial_p95_seconds": rounded(self.partials.percentile(now, 0.95)),
            "finals_per_minute": self.finals.per_minute(now),
        }

    def alerts_status(self, now: float) -> list[dict[str, Any]]:
        """For GET /pool."""
        return [
            {
                "name": alert.name,
                "severity": alert.severity,
                "text": alert.text,
                "since_seconds": round(now - alert.since, 1),
            }
            for alert in self._alerts.active
        ]
