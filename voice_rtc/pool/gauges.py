"""The pool's gauges for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voice_rtc.core.ladder import Admission
from voice_rtc.pool.memory import Pressure
from voice_rtc.pool.replica import State

if TYPE_CHECKING:
    from voice_rtc.pool.pool import SttPool

_ADMISSION: dict[Admission, int] = {"open": 0, "queue_only": 1, "refuse": 2}
_PRESSURE: dict[Pressure, int] = {"normal": 0, "high": 1, "critical": 2}


def publish(pool: SttPool) -> None:
    """Set them all; cheap enough for each change of a lease."""
    metrics, statistics, supervisor = pool.metrics, pool.statistics(), pool.supervisor
    machine = supervisor.governor.machine
    metrics.leases_active.set(statistics.leased)
    metrics.pool_slots.labels("leased").set(statistics.leased)
    metrics.pool_slots.labels("free").set(statistics.available)
    metrics.pool_waiting.set(statistics.waiting)
    ratio = statistics.leased / statistics.slots if statistics.slots else 0.0
    metrics.pool_utilisation_ratio.set(ratio)
    metrics.degradation_step.set(supervisor.governor.step.step)
    metrics.admission_state.set(_ADMISSION[supervisor.governor.admission[0]])
    states = [replica.state for replica in supervisor.replicas()]
    for state in State:
        metrics.replicas.labels(state.value).set(states.count(state))
    metrics.memory_pressure.set(_PRESSURE[machine.pressure])
    gpus = machine.gpus.gpus
    metrics.gpu_memory_bytes.labels("used").set(sum(gpu.used_mb for gpu in gpus) * 2**20)
    metrics.gpu_memory_bytes.labels("free").set(sum(gpu.free_mb for gpu in gpus) * 2**20)
