"""How many slots, at which quality: what was measured goes in, sizes and steps come out.

The decisions are pure and live in core: `capacity` (sizes), `admission` (slots at this moment),
`ladder` (quality), and in `fallback` (modes). Here they are asked each second, and what was decided
is carried out. The readings come from `machine`; `alerting` tells what is wrong.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from voice_rtc.core.admission import (
    UNKNOWN_LOAD,
    AdmissionGate,
    GateDecision,
    GateRules,
    ServerLoad,
)
from voice_rtc.core.alerts import AlertReadings
from voice_rtc.core.capacity import LatencyCurve, Sizing
from voice_rtc.core.health import HealthRules, Restarts
from voice_rtc.core.ladder import STEPS, Admission, Ladder, LadderRules, LadderStep, Readings
from voice_rtc.engines.base import SttMode, SttQuality
from voice_rtc.pool.alerting import Alerting
from voice_rtc.pool.fallback import Change, Fallback
from voice_rtc.pool.gpu import GpuSource
from voice_rtc.pool.group import Group
from voice_rtc.pool.machine import MachineWatch
from voice_rtc.pool.memory import MemorySource, Pressure
from voice_rtc.pool.placement import Needs, OnGpus, emptiest, rooms
from voice_rtc.pool.probe import on_gpu, size_pool
from voice_rtc.pool.replica import Replica, State
from voice_rtc.pool.status import STEP_SECONDS
from voice_rtc.pool.times import RollingTimes

if TYPE_CHECKING:
    from voice_rtc.pool.pool import SttPool
    from voice_rtc.pool.supervisor import Supervisor

_log = structlog.get_logger("voice_rtc.pool")

_PLACES_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_FLAPPING_SECONDS = 600.0
_LADDER_SECONDS = 30.0
"""How far back finals count for the ladder, and never past its last step: what was before that was
of another quality."""
_LEAST_FINALS = 3
"""Fewer say nothing about the load."""
_OPEN = GateDecision(0, "open", "")


class Governor:
    """One per pool; its `tick` is called by the supervisor's loop."""

    def __init__(
        self, pool: SttPool, supervisor: Supervisor, gpus: GpuSource, memory: MemorySource
    ) -> None:
        self._pool = pool
        self._settings = pool.settings.pool
        self._supervisor = supervisor
        self._metrics = pool.metrics
        self._read_memory = memory
        self.finals = RollingTimes()
        self.partials = RollingTimes()
        settings = self._settings
        self._ladder = Ladder(LadderRules(memory_critical=settings.memory_critical))
        self._gates: dict[SttMode, AdmissionGate] = {}
        self._decisions: dict[SttMode, GateDecision] = {}
        """Of the gates, newest."""
        self._gate_rules = GateRules(
            goal_seconds=settings.final_goal_seconds,
            most=settings.max_slots,
            loop_lag_seconds=settings.loop_lag_seconds,
            cores=pool.settings.media.core_share,
        )
        self._sizings: dict[SttMode, Sizing] = {}
        self._fixed = settings.slots
        self._references: dict[str, str] = {}
        """Engine and model -> what it makes of the known sentence."""
        self._fallback = Fallback()
        self._lost: deque[float] = deque(maxlen=32)
        self._curve: LatencyCurve | None = None
        self._looked = float("-inf")
        self._told = float("-inf")
        self._pointed = float("-inf")
        self.restarts = Restarts()
        self.media_path_stock = ""
        """Why audio takes the stock tracks though the fast path was wanted; empty: it does not."""
        self.alerts = Alerting(pool.metrics, supervisor.note)
        self.machine = MachineWatch(settings, gpus, memory, self._pressure_changed)
        self._look_at_machine(UNKNOWN_LOAD)

    # ------------------------------------------------------------------- sizing

    async def size_group(self, group: Group, replica: Replica, *, fresh: bool = False) -> Sizing:
        """Find out how many slots the group should have, and give it those that exist now."""
        gpus = self.machine.read_gpus()
        engines = self._supervisor.engines(group.mode)
        sizing, self._curve = await size_pool(
            replica.engine,
            group.mode,
            self._pool.settings,
            gpus,
            fixed=self._fixed,
            devices=max(len(self._loaded(group.mode)), 1),
            loaded=[each.device for each in engines if each.state is not State.STARTING],
            memory=self._read_memory,
            fresh=fresh,
            previous=self._curve,
        )
        self._sizings[group.mode] = sizing
        self._gates[group.mode] = AdmissionGate(self._gate_rules, sizing.slots)
        self._decisions.pop(group.mode, None)
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
        adapts = not self._fixed and group.mode == "shared"
        wanted = gate.slots if adapts else (self._fixed or sizing.slots)
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
        if first.mode != "shared" or not on_gpu(first.engine.info):
            return []
        return [gpu.index for gpu in self.machine.gpus.usable if gpu.index != first.device]

    def first_device(self, mode: SttMode) -> int:
        """The GPU for the first engine of a mode; one alone goes where most is free."""
        if mode == "shared" and self.may_load:
            return 0
        gpus = sorted(self.machine.gpus.usable, key=lambda gpu: (-gpu.free_mb, gpu.index))
        return gpus[0].index if gpus else 0

    def room(self, group: Group) -> int:
        """Engines that could still be loaded for the group, by its target and by memory."""
        wanted = self.target(group) - len(self._supervisor.engines(group.mode))
        rooms = self._rooms(group.mode)
        return max(0, wanted if rooms is None else min(wanted, sum(rooms.values())))

    def next_device(self, group: Group) -> int | None:
        """The GPU for one more engine of the group; None when no GPU has room."""
        gpus = self.machine.read_gpus()  # the newest engine may have come after the last reading
        rooms = self._rooms(group.mode)
        if rooms is None:
            devices = [gpu.index for gpu in gpus.usable] or [0]
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
        return rooms(dict(sizing.by_device), self.machine.gpus.usable, engines, needs)

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
        self._look_at_machine(self._supervisor.loop_watch.load(now))
        self._climb(now)
        self._adapt(now)
        self._change_mode(now)
        for group in self._pool.groups.values():
            if group.book.waiting:
                self._supervisor.wanted(group)  # there may be memory now that there was not
        self._unload_idle(now)
        self._look_for_alerts(now)
        self._supervisor.publish()

    def _look_at_machine(self, load: ServerLoad) -> None:
        pids = (pid for r in self._supervisor.replicas() for pid in r.engine_health().pids)
        self.machine.look(tuple(pids), load)

    def final_took(self, now: float, seconds: float, mode: SttMode) -> None:
        """A call's Final came so long after its utterance ended."""
        self.finals.add(now, seconds)
        if (gate := self._gates.get(mode)) is not None:
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
        since = max(self.step.since, now - _LADDER_SECONDS)
        p95 = self.finals.percentile(now, 0.95, since=since, least=_LEAST_FINALS)
        leases = sum(group.lent for group in self._pool.groups.values())
        readings = Readings(
            final_p95_seconds=p95 if leases else None,
            goal_seconds=self._settings.final_goal_seconds,
            memory_fraction=self.machine.fraction,
            queue_age_seconds=self._oldest_wait(now),
            healthy_replicas=self._supervisor.healthy(),
            leases=leases,
            gated=self.gate(self._pool.mode).state != "open"
            or (p95 is not None and not self._fixed),
        )
        step = self._ladder.step(now, readings)
        if step is None:
            return
        self._supervisor.set_quality(SttQuality(step.partial_factor, step.economy))
        self._supervisor.note(f"ladder: {step.name} ({step.reason or 'the load has gone down'})")
        _log.warning("pool_degraded", step=step.step, name=step.name, reason=step.reason)
        self._supervisor.on_step(step.step, step.name, step.sentence)

    def _oldest_wait(self, now: float) -> float:
        leases = (lease for group in self._pool.groups.values() for lease in group.leases.values())
        return max((lease.session.waited_seconds(now) for lease in leases), default=0.0)

    def _adapt(self, now: float) -> None:
        """Slots by measured times, where nobody fixed them; and who waits, waits or not."""
        for group in self._pool.groups.values():
            gate = self._gates.get(group.mode)
            if gate is not None and not self._fixed:
                self._ask(gate, group, now)
            held = self.step.admission != "open" or self.gate(group.mode).state != "open"
            if gate is not None and group.mode == "shared":
                self._resize(group)  # also while it is held: afterwards so many are granted
            group.hold(held, now)

    def _ask(self, gate: AdmissionGate, group: Group, now: float) -> None:
        before = self._decisions.get(group.mode, _OPEN)
        decision = gate.decide(now, group.lent, group.book.waiting, self.machine.load)
        self._decisions[group.mode] = decision
        if decision.state != before.state:
            why = decision.reason or "there is time for more callers"
            self._supervisor.note(f"admission {decision.state}: {why}")
            _log.warning("admission", state=decision.state, mode=group.mode, reason=why)

    def gate(self, mode: SttMode) -> GateDecision:
        """What was measured lately allows for callers of that mode; all, with fixed slots."""
        return _OPEN if self._fixed else self._decisions.get(mode, _OPEN)

    @property
    def admission(self) -> tuple[Admission, str]:
        """Whether new callers are let in, by ladder and gate, and why not."""
        if self.step.admission != "open":
            return self.step.admission, self.step.reason
        gate = self.gate(self._pool.mode)
        return gate.state, gate.reason

    @property
    def refusal(self) -> str:
        """Why no call is taken at all; empty: they are."""
        state, reason = self.admission
        return f"{STEPS[-1].sentence} ({reason})" if state == "refuse" else ""

    # -------------------------------------------------------------------- memory

    @property
    def may_load(self) -> bool:
        """Is there memory for one more engine?"""
        return self.machine.pressure == "normal"

    def _pressure_changed(self, level: Pressure) -> None:
        machine = self.machine
        self._supervisor.note(f"memory pressure is {level}: {machine.fullest}")
        _log.warning("memory_pressure", level=level, fraction=round(machine.fraction, 3))
        if level == "normal":
            self._supervisor.refill_spares()
        else:
            self._supervisor.drop_spares(f"memory pressure is {level}")

    def _change_mode(self, now: float) -> None:
        machine = self.machine
        change = self._fallback.step(now, machine.pressure, self._pool.mode, machine.trouble)
        if change is not None:
            self._supervisor.fall_back(change.mode, change.reason, self._fallback.done)

    def mode_chosen(self) -> None:
        """An operator wants the present mode."""
        self._fallback.chosen()

    @property
    def fallback(self) -> Change | None:
        """How the pool left the mode that it should be in; None: it did not."""
        return self._fallback.away

    def _unload_idle(self, now: float) -> None:
        """Engines that nobody needs: of ``dedicated`` all but one, of a mode gone by all."""
        if not self._supervisor.can_replace:
            return
        patience = self._settings.idle_unload_seconds if self.may_load else 0.0
        kept = {self._pool.mode, *((self._settings.rollout_mode,) if self.rolls_out else ())}
        for mode, group in self._pool.groups.items():
            if mode in kept and mode != "dedicated":
                continue
            if group.book.waiting and (self.may_load or mode != "dedicated"):
                continue
            for replica in self.idle(group, now, least=int(mode in kept), patience=patience):
                if mode not in kept or not self._supervisor.keep_as_spare(replica):
                    self._supervisor.retire(replica, "nobody needs it")

    def idle(self, group: Group, now: float, *, least: int, patience: float) -> list[Replica]:
        """Engines that are to go now, newest first: their slots are gone already."""
        loaded = self._loaded(group.mode)
        alone = group.mode == "dedicated"
        spare = len(loaded) - max(least, group.lent if alone else 0)
        idle = [r for r in reversed(loaded) if not r.leases and now - r.idle_since >= patience]
        idle = idle[: max(spare, 0)]
        if alone:
            for _ in idle:
                group.remove_slot(now)
        elif idle and not group.lent:
            group.resize(0, now)
        return idle

    @property
    def rolls_out(self) -> bool:
        """Does a share of the calls get another mode?"""
        settings = self._settings
        if not settings.rollout_mode or not settings.rollout_share or self.fallback is not None:
            return False
        return self.may_load or settings.rollout_mode != "dedicated"

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
            memory_pressure=self.machine.pressure,
            memory_fraction=self.machine.fraction,
            recent_replacements=sum(at > now - _FLAPPING_SECONDS for at in self._lost),
            fallback=self._fallback.sentence,
            server_busy=self._gate_rules.overload(self.machine.load),
            media_path_stock=self.media_path_stock,
        )
        self.alerts.step(now, readings)

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

    @property
    def fixed(self) -> int:
        """Slots that somebody asked for; 0: automatic."""
        return self._fixed

    def sizing(self, mode: SttMode) -> Sizing | None:
        """How the mode was sized; None: not yet."""
        return self._sizings.get(mode)
