"""What the machine under the pool is like: its GPUs, its memory, its processors.

Answers the original plan's MemoryMonitor together with `pool.memory`, which judges the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psutil

from voice_rtc.config import PoolSettings
from voice_rtc.core.admission import UNKNOWN_LOAD, ServerLoad
from voice_rtc.pool.gpu import GpuReadings, GpuSource
from voice_rtc.pool.memory import MemoryMonitor, MemorySource, Pressure
from voice_rtc.pool.status import memory_mb, own_memory_mb


class MachineWatch:
    """Reads when asked. ``on_pressure`` is called when the memory's level changes."""

    def __init__(
        self,
        settings: PoolSettings,
        gpus: GpuSource,
        memory: MemorySource,
        on_pressure: Callable[[Pressure], None],
    ) -> None:
        self._gpu_source = gpus
        self._memory = MemoryMonitor(
            high=settings.memory_high, critical=settings.memory_critical, source=memory
        )
        self._memory.on_pressure(on_pressure)
        self._process = psutil.Process()
        self.gpus: GpuReadings = gpus()
        """The newest reading."""
        self.load = UNKNOWN_LOAD
        """Of the server's own process, newest."""
        self.figures: dict[str, Any] = {}
        """For GET /pool."""

    @property
    def pressure(self) -> Pressure:
        """How short memory is."""
        return self._memory.level

    @property
    def fraction(self) -> float:
        """In use, 0.0 to 1.0, of whichever memory is fullest."""
        return self._memory.newest.fraction if self._memory.newest is not None else 0.0

    @property
    def fullest(self) -> str:
        """Which memory that is, with figures."""
        return self._memory.newest.fullest if self._memory.newest is not None else ""

    @property
    def trouble(self) -> str:
        """How full it is, in words."""
        return f"{self.fraction:.0%} of the memory is in use ({self.fullest})"

    @property
    def gpu_used_mb(self) -> float | None:
        """Of all GPUs; None without one."""
        return sum(gpu.used_mb for gpu in self.gpus.gpus) if self.gpus.gpus else None

    def read_gpus(self) -> GpuReadings:
        """Ask the driver now."""
        self.gpus = self._gpu_source()
        return self.gpus

    def look(self, workers: tuple[int, ...], load: ServerLoad) -> None:
        """Read everything; ``workers`` are the process ids of the engines."""
        self.load = load
        reading = self._memory.read(workers, self.read_gpus())
        self.figures = {
            "cpu_percent": psutil.cpu_percent(None),
            "cores": psutil.cpu_count() or 1,
            "rss_mb": own_memory_mb(),
            "workers_rss_mb": memory_mb(workers),
            "memory_total_mb": round(reading.limit_mb, 1),
            "memory_available_mb": round(reading.available_mb, 1),
            "memory_pressure": self.pressure,
            "threads": self._process.num_threads(),
            "tasks": len(asyncio.all_tasks()),
            "loop_lag_ms": round(1000 * (load.loop_lag_seconds or 0.0), 2),
            "server_cores": round(load.cores or 0.0, 3),
        }
