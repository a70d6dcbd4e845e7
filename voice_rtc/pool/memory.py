"""How full the memory is, of the machine and of its GPUs, and who is to be told.

Two parts: `pressure_of` decides from figures alone, `MemoryMonitor` reads the figures and tells of
changes. Answers the original plan's MemoryMonitor.

    normal     all is well
    high       nothing more should be loaded, and what is idle should go
    critical   quality must be given up before the kernel or the driver ends something

The machine's memory is what this process may have: where a cgroup (a container, a service) allows
less than there is, its limit counts, and so does what all its processes use. Memory in MB of 2**20
bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import psutil
import structlog

from voice_rtc.pool.gpu import NO_GPUS, Gpu, GpuReadings

_log = structlog.get_logger("voice_rtc.pool")

Pressure = Literal["normal", "high", "critical"]

HIGH = 0.85
CRITICAL = 0.93
RELIEF = 0.03
"""A level is left only when the share has fallen by so much below where it begins."""
GPU_SPARE_MB = 4096.0
"""A GPU with so much free is not under pressure, however large it is: the same that the formula of
the ``dedicated`` mode leaves free."""

_MB = 2**20
_NO_LIMIT_MB = 2**40
"""cgroup v1 writes a number about as large as an address for «no limit»."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The memory that this process and its workers live in."""

    limit_mb: float
    """What may be used: the machine's, or less where a cgroup says so."""
    used_mb: float
    """By everybody who shares the limit; caches that can be dropped do not count."""
    own_mb: float = 0.0
    """Resident in this process and the workers that were asked for; shared pages count twice."""

    @property
    def available_mb(self) -> float:
        """What is left."""
        return max(self.limit_mb - self.used_mb, 0.0)

    @property
    def fraction(self) -> float:
        """Share in use, 0.0 to 1.0."""
        return min(self.used_mb / self.limit_mb, 1.0) if self.limit_mb > 0 else 0.0


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """How full everything is at one moment."""

    machine: MachineMemory
    gpus: tuple[Gpu, ...]
    fraction: float
    """Of whatever is fullest, 0.0 to 1.0; see `gpu_fraction` for how a large GPU counts."""
    fullest: str
    """What that is, with figures, e.g. ``GPU 0: 2.1 of 24.0 GB free``."""
    level: Pressure

    @property
    def limit_mb(self) -> float:
        """`MachineMemory.limit_mb`."""
        return self.machine.limit_mb

    @property
    def available_mb(self) -> float:
        """`MachineMemory.available_mb`."""
        return self.machine.available_mb


class MemorySource(Protocol):
    """Reads the machine's memory; `read_machine`, or a stand-in of a test."""

    def __call__(self, workers: Iterable[int], /) -> MachineMemory:
        """``workers`` are process ids. Must not raise."""
        ...


# ------------------------------------------------------------------------------------ decision


def pressure_of(
    fraction: float,
    before: Pressure = "normal",
    *,
    high: float = HIGH,
    critical: float = CRITICAL,
    relief: float = RELIEF,
) -> Pressure:
    """The level at ``fraction``, when it was ``before``: it rises at once and falls with delay."""
    if fraction >= critical or (before == "critical" and fraction >= critical - relief):
        return "critical"
    if fraction >= high or (before != "normal" and fraction >= high - relief):
        return "high"
    return "normal"


def gpu_fraction(gpu: Gpu, high: float = HIGH, spare_mb: float = GPU_SPARE_MB) -> float:
    """How full a GPU counts, 0.0 to 1.0.

    Its share in use; but of a large one only so much of the end is looked at that ``high`` is
    reached with ``spare_mb`` left. 4 GB free are as good on 80 GB as on 24 GB.
    """
    if gpu.total_mb <= 0:
        return 0.0
    looked_at = min(float(gpu.total_mb), spare_mb / (1.0 - high))
    return min(max(1.0 - gpu.free_mb / looked_at, 0.0), 1.0)


# ------------------------------------------------------------------------------------- reading


def read_machine(workers: Iterable[int] = (), root: Path = Path("/")) -> MachineMemory:
    """Ask the system. ``root`` is where /proc and /sys are looked for."""
    memory = psutil.virtual_memory()
    limit, used = memory.total / _MB, (memory.total - memory.available) / _MB
    own = sum(map(_resident_mb, {os.getpid(), *workers}))
    group = _cgroup(root)
    if group is not None and group[0] < limit:
        limit, used = group
    return MachineMemory(limit, used, own)


def _resident_mb(pid: int) -> float:
    try:
        return float(psutil.Process(pid).memory_info().rss) / _MB
    except psutil.Error:  # it has ended meanwhile
        return 0.0


def _cgroup(root: Path) -> tuple[float, float] | None:
    """Limit and use of the tightest cgroup that this process is in; None without a limit."""
    groups = [_usage(folder, *names) for folder, names in _cgroup_folders(root)]
    limited = [group for group in groups if group is not None and group[0] < _NO_LIMIT_MB]
    return min(limited, key=lambda group: group[0] - group[1], default=None)


_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _cgroup_folders(root: Path) -> Iterable[tuple[Path, tuple[str, str, str]]]:
    """Folders of our cgroup and of those around it, with the names of their files.

    Inside a container the path is often the outer one, which does not exist there; its own limit
    is then at the top of the tree, which is looked at in any case.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            top, names = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for depth in range(len(parts) + 1):
            yield top.joinpath(*parts[:depth]), names


def _usage(folder: Path, limit: str, current: str, cache: str) -> tuple[float, float] | None:
    """Limit and use in MB; files that the kernel would drop do not count as used."""
    try:
        most = (folder / limit).read_text(encoding="utf-8").strip()
        if most == "max":
            return None
        used = int((folder / current).read_text(encoding="utf-8"))
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        droppable = next(
            (int(each.split()[1]) for each in lines if each.startswith(f"{cache} ")), 0
        )
        return int(most) / _MB, max(used - droppable, 0) / _MB
    except (OSError, ValueError, IndexError):  # no such folder, or no memory controller in it
        return None


# ------------------------------------------------------------------------------------- monitor


class MemoryMonitor:
    """Reads when asked and calls back when the level changes. Not for several threads.

    ``high`` and ``critical`` are shares of the limit and may be replaced at any time.
    """

    def __init__(
        self,
        *,
        high: float = HIGH,
        critical: float = CRITICAL,
        source: MemorySource = read_machine,
    ) -> None:
        if not 0.0 < high < critical <= 1.0:
            raise ValueError(f"high ({high}) must be below critical ({critical}), both in 0 to 1")
        self.high = high
        self.critical = critical
        self._source = source
        self._callbacks: list[Callable[[Pressure], None]] = []
        self.level: Pressure = "normal"
        """As of the newest reading."""
        self.newest: MemoryReading | None = None
        """Set before the callbacks are called."""

    def on_pressure(self, callback: Callable[[Pressure], None]) -> None:
        """Call it with the new level, once for each change, from within `read`."""
        self._callbacks.append(callback)

    def read(self, workers: Iterable[int] = (), gpus: GpuReadings = NO_GPUS) -> MemoryReading:
        """Read now; ``workers`` are the process ids of engines, ``gpus`` those that engines use."""
        machine = self._source(workers)
        fraction, fullest = self._fullest(machine, gpus.gpus)
        before = self.level
        self.level = pressure_of(fraction, before, high=self.high, critical=self.critical)
        reading = MemoryReading(machine, gpus.gpus, fraction, fullest, self.level)
        self.newest = reading
        if self.level != before:
            _log.debug("memory_pressure_changed", level=self.level, fullest=fullest)
            for callback in tuple(self._callbacks):
                callback(self.level)
        return reading

    def _fullest(self, machine: MachineMemory, gpus: tuple[Gpu, ...]) -> tuple[float, str]:
        found = [(machine.fraction, _free("memory", machine.available_mb, machine.limit_mb))]
        for gpu in gpus:
            text = _free(f"GPU {gpu.index}", gpu.free_mb, gpu.total_mb)
            found.append((gpu_fraction(gpu, self.high), text))
        return max(found, key=lambda each: each[0])

    def __repr__(self) -> str:
        reading = self.newest
        return f"<MemoryMonitor {self.level}, {reading.fullest if reading else 'not read yet'}>"


def _free(what: str, free_mb: float, total_mb: float) -> str:
    return f"{what}: {free_mb / 1024:.1f} of {total_mb / 1024:.1f} GB free"
