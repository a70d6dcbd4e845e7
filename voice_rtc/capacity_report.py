"""What this machine carries: ``voice-rtc capacity``.

The media path is tried, and the configured speech recognition loaded and measured, as a server
would do it at its start, with the same cache; then the pool's own rules give the number of callers
for each mode, with the reason, and a plan for more. Nothing is served, no port is opened.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil

from voice_rtc.config import Settings
from voice_rtc.core.capacity import (
    LatencyCurve,
    MachineFacts,
    PoolView,
    Sizing,
    calls_of_one_process,
    plan_for,
    recommendations,
)
from voice_rtc.engines.base import SttEngine, SttMode, SupportsProbe
from voice_rtc.engines.catalog import load_stt
from voice_rtc.media.selftest import MediaPath, path_by_version, tested_path
from voice_rtc.pool.gpu import GpuReadings, GpuSource, read_gpus
from voice_rtc.pool.memory import MachineMemory, read_machine
from voice_rtc.pool.probe import Circumstances, curve_of, on_gpu, sizing

_MODES: tuple[SttMode, ...] = ("shared", "dedicated", "single")


@dataclass(frozen=True, slots=True)
class ModeCapacity:
    """One mode of the pool."""

    mode: SttMode
    callers: int
    """At the same time."""
    source: str
    """Where the number comes from: ``probe``, ``formula``, ``engine`` or ``settings``."""
    limited_by: str
    """``time``, ``memory``, ``media`` or ``settings``."""
    why: str
    more: list[str]
    """What would carry more."""
    plan: list[str]
    """For the callers that were asked for; empty when none were."""


@dataclass(frozen=True, slots=True)
class CapacityReport:
    """All that is printed."""

    engine: str
    model: str
    reason: str
    """Why this engine was chosen."""
    measured: bool
    """Were batches timed, now or earlier?"""
    goal_seconds: float
    cores: int
    media_path: MediaPath
    media_calls: int
    """Calls whose media one server process carries."""
    memory: MachineMemory
    gpus: GpuReadings
    mode: SttMode
    """The one that is configured."""
    slots: int
    """What a server would take with these settings."""
    modes: list[ModeCapacity]
    advice: list[str]
    callers: int | None = None
    """Asked for."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


async def examine(
    settings: Settings,
    callers: int | None = None,
    *,
    measure: bool = True,
    try_media: bool = False,
    report: Callable[[str], None] = lambda _line: None,
    gpus: GpuSource = read_gpus,
) -> CapacityReport:
    """Load, measure, compute, and close again. ``report`` gets a line for each step.

    ``measure`` false takes an earlier measurement or the engine's word; ``try_media`` has the media
    path tested as at a server's start. Raises EngineError when the speech recognition that is
    configured cannot be loaded, MediaPathUnusable when the media path is not.
    """
    choose = tested_path if try_media else path_by_version
    if try_media:
        report("media: calling myself to see whether the fast path works")
    path = await choose(settings.media, settings.limits)
    if path.path == "stock":
        media = settings.media.model_copy(update={"path": "stock"})
        settings = settings.model_copy(update={"media": media})
    # In the shared mode an engine works in batches; what it does alone is measured with it.
    batching = settings.model_copy(
        update={"pool": settings.pool.model_copy(update={"mode": "shared"})}
    )
    engine = await load_stt(batching, report)
    try:
        readings = gpus()
        if measure and isinstance(engine, SupportsProbe):
            report("stt: measuring what it carries")
        curve = await curve_of(engine, "shared", batching, readings, measure=measure)
        return _report(settings, engine, curve, readings, callers, path)
    finally:
        await engine.aclose()


def _report(
    settings: Settings,
    engine: SttEngine,
    curve: LatencyCurve | None,
    gpus: GpuReadings,
    callers: int | None,
    path: MediaPath,
) -> CapacityReport:
    info, memory = engine.info, read_machine()
    devices = len(gpus.usable) if on_gpu(info) else 0
    base = Circumstances(
        settings.pool.mode,
        info,
        engine.recommended_slots,
        gpus,
        memory,
        curve,
        devices=max(devices, 1),
        cores=psutil.cpu_count() or 1,
    )
    facts = MachineFacts(
        engine=info.name,
        model=info.model,
        cores=base.cores,
        gpus=devices,
        torch=importlib.util.find_spec("torch") is not None,
    )
    sizes = {mode: sizing(settings, _in_mode(base, mode)) for mode in _MODES}
    configured = sizing(settings, replace(_in_mode(base, base.mode), fixed=settings.pool.slots))
    return CapacityReport(
        engine=info.name,
        model=info.model,
        reason=info.reason,
        measured=curve is not None,
        goal_seconds=settings.pool.final_goal_seconds,
        cores=base.cores,
        media_path=path,
        media_calls=calls_of_one_process(settings.media.share_of_a_call, settings.media.core_share),
        memory=memory,
        gpus=gpus,
        mode=base.mode,
        slots=configured.slots,
        modes=[_mode(mode, sizes[mode], facts, callers) for mode in _MODES],
        advice=_advice(settings, facts, configured.slots, sizes[base.mode]),
        callers=callers,
    )


def _in_mode(base: Circumstances, mode: SttMode) -> Circumstances:
    """As in that mode: engines that take one request at a time run on one device each."""
    if mode == "shared":
        return replace(base, mode=mode)
    curve = base.curve
    if mode == "single" and curve is not None:
        curve = replace(curve, workers=1)
    return replace(base, mode=mode, devices=1, curve=curve)


def _mode(mode: SttMode, size: Sizing, facts: MachineFacts, callers: int | None) -> ModeCapacity:
    # Only a shared engine is put on every GPU; one that works alone uses one of them.
    gpus = facts.gpus if mode != "single" else min(facts.gpus, 1)
    facts = replace(facts, mode=mode, gpus=gpus)
    return ModeCapacity(
        mode,
        size.slots,
        size.source,
        size.limited_by,
        size.explanation,
        more=plan_for(size.slots + 1, size, facts)[1:],
        plan=[] if callers is None else plan_for(callers, size, facts),
    )


def _advice(settings: Settings, facts: MachineFacts, slots: int, found: Sizing) -> list[str]:
    advice = []
    if settings.pool.slots > found.slots:
        advice.append(
            f"pool.slots is {settings.pool.slots}, but this machine carries {found.slots}: "
            "transcripts will come late when all are talking."
        )
    elif settings.pool.slots and slots < found.slots:
        advice.append(f"pool.slots is {settings.pool.slots}; this machine carries {found.slots}.")
    pool = settings.pool
    goal = pool.final_goal_seconds
    view = PoolView(facts, slots, 0, 0, pool.max_slots, goal, limited_by=found.limited_by)
    return advice + recommendations(view)
