"""How full the memory is, and who is told."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from voice_rtc.core.capacity import dedicated_slots
from voice_rtc.pool.gpu import Gpu, GpuReadings
from voice_rtc.pool.memory import (
    MachineMemory,
    MemoryMonitor,
    Pressure,
    gpu_fraction,
    pressure_of,
    read_machine,
)

MB = 2**20


def gpu(total_mb: int, free_mb: int, index: int = 0) -> Gpu:
    return Gpu(index, "NVIDIA", total_mb, total_mb - free_mb, free_mb)


class Machine:
    """Memory whose use a test sets."""

    def __init__(self, limit_mb: float = 1000.0) -> None:
        self.limit_mb = limit_mb
        self.fraction = 0.5
        self.asked_for: list[int] = []

    def __call__(self, workers: Iterable[int]) -> MachineMemory:
        self.asked_for = list(workers)
        return MachineMemory(self.limit_mb, self.fraction * self.limit_mb, 10.0)


# ------------------------------------------------------------------------------------ decision


@pytest.mark.parametrize(
    ("fraction", "before", "level"),
    [
        (0.50, "normal", "normal"),
        (0.849, "normal", "normal"),
        (0.85, "normal", "high"),
        (0.93, "normal", "critical"),
        (0.84, "high", "high"),  # it is left later than it is entered
        (0.819, "high", "normal"),
        (0.92, "critical", "critical"),
        (0.899, "critical", "high"),
        (0.83, "critical", "high"),
        (0.80, "critical", "normal"),
        (1.0, "high", "critical"),
    ],
)
def test_the_level_rises_at_once_and_falls_with_delay(
    fraction: float, before: Pressure, level: Pressure
) -> None:
    assert pressure_of(fraction, before) == level


def test_figures_that_tremble_at_a_bound_change_the_level_once() -> None:
    rng = random.Random(5)
    for bound in (0.85, 0.93):
        level: Pressure = "normal"
        levels = []
        for _ in range(200):
            level = pressure_of(bound + rng.uniform(-0.01, 0.01), level)
            levels.append(level)
        changes = sum(a != b for a, b in pairwise(levels))
        assert changes <= 1 + (bound == 0.93)


@pytest.mark.parametrize("total_mb", [8192, 24564, 81559, 143771])
def test_a_gpu_filled_as_the_formula_says_is_not_under_pressure(total_mb: int) -> None:
    engines = dedicated_slots(total_mb)
    assert pressure_of(gpu_fraction(gpu(total_mb, total_mb - engines * 3072))) == "normal"


@pytest.mark.parametrize("total_mb", [8192, 24564, 81559, 143771])
def test_every_gpu_comes_under_pressure_when_it_fills_up(total_mb: int) -> None:
    shares = [gpu_fraction(gpu(total_mb, free)) for free in range(total_mb, -1, -64)]
    assert shares == sorted(shares) and shares[0] == 0.0
    assert pressure_of(gpu_fraction(gpu(total_mb, 400))) == "critical"


def test_a_small_gpu_counts_by_its_share() -> None:
    assert gpu_fraction(gpu(8000, 2000)) == pytest.approx(0.75)
    assert gpu_fraction(gpu(0, 0)) == 0.0, "its size is not known"


# ------------------------------------------------------------------------------------- monitor


def test_each_change_is_told_once_with_its_level() -> None:
    machine = Machine()
    monitor = MemoryMonitor(source=machine)
    told: list[Pressure] = []
    monitor.on_pressure(told.append)
    monitor.on_pressure(
        lambda level: told.append(monitor.newest.level if monitor.newest else level)
    )
    for fraction in (0.5, 0.86, 0.87, 0.84, 0.95, 0.92, 0.91, 0.88, 0.5, 0.5):
        machine.fraction = fraction
        monitor.read()
    once: list[Pressure] = ["high", "critical", "high", "normal"]
    assert told == [level for level in once for _ in range(2)]


def test_the_fullest_of_all_counts_and_is_named() -> None:
    machine = Machine()
    monitor = MemoryMonitor(source=machine)
    gpus = GpuReadings((gpu(24000, 20000), gpu(24000, 1000, index=1)))
    reading = monitor.read([7, 8], gpus)
    assert machine.asked_for == [7, 8]
    assert reading.level == monitor.level == "critical"
    assert reading.fullest == "GPU 1: 1.0 of 23.4 GB free"
    assert reading.fraction == pytest.approx(23 / 24, abs=0.01)
    assert reading.limit_mb == 1000.0 and reading.available_mb == 500.0
    assert monitor.read().fullest == "memory: 0.5 of 1.0 GB free"
    assert monitor.level == "normal"


def test_thresholds_are_the_operators() -> None:
    machine = Machine()
    machine.fraction = 0.6
    assert MemoryMonitor(high=0.5, critical=0.9, source=machine).read().level == "high"
    assert MemoryMonitor(high=0.4, critical=0.55, source=machine).read().level == "critical"
    with pytest.raises(ValueError, match="must be below critical"):
        MemoryMonitor(high=0.95)


# ------------------------------------------------------------------------------------- reading


def test_this_machine() -> None:
    memory = read_machine()
    assert 0 < memory.limit_mb <= psutil.virtual_memory().total / MB
    assert 0 < memory.fraction < 1 and memory.own_mb > 5
    assert memory.available_mb == pytest.approx(memory.limit_mb - memory.used_mb)


def test_workers_count_and_dead_ones_do_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        with_worker = read_machine([worker.pid, worker.pid, os.getpid()]).own_mb
        alone = read_machine().own_mb
        assert worker.stdin is not None
        worker.stdin.close()
    assert with_worker > alone
    assert read_machine([worker.pid]).own_mb > 0


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v2(folder: str, limit: str, used: int, cache: int) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {cache}\nactive_file 7\n",
    }


def test_a_cgroup_of_version_2_that_is_tighter_counts(tmp_path: Path) -> None:
    own = v2("sys/fs/cgroup/app/voice", str(64 * MB), 40 * MB, 8 * MB)
    root = put(tmp_path, {"proc/self/cgroup": "0::/app/voice\n", **own})
    memory = read_machine(root=root)
    assert (memory.limit_mb, memory.used_mb) == (64.0, 32.0), "caches do not count"
    assert memory.fraction == 0.5


def test_the_limit_of_a_cgroup_around_ours_counts_too(tmp_path: Path) -> None:
    outer = v2("sys/fs/cgroup/app", str(50 * MB), 49 * MB, 0)
    inner = v2("sys/fs/cgroup/app/voice", "max", 10 * MB, 0)
    root = put(tmp_path, {"proc/self/cgroup": "0::/app/voice\n", **outer, **inner})
    assert read_machine(root=root).limit_mb == 50.0


def test_inside_a_container_the_limit_is_at_the_top(tmp_path: Path) -> None:
    top = v2("sys/fs/cgroup", str(32 * MB), 8 * MB, 0)
    root = put(tmp_path, {"proc/self/cgroup": "0::/docker/0123abcd\n", **top})
    assert read_machine(root=root).limit_mb == 32.0


def v1(limit: int) -> dict[str, str]:
    folder = "sys/fs/cgroup/memory/docker/0123"
    return {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/0123\n4:memory:/docker/0123\n0::/\n",
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{30 * MB}\n",
        f"{folder}/memory.stat": f"cache 9\ninactive_file 1\ntotal_inactive_file {10 * MB}\n",
    }


def test_a_cgroup_of_version_1(tmp_path: Path) -> None:
    memory = read_machine(root=put(tmp_path, v1(40 * MB)))
    assert (memory.limit_mb, memory.used_mb) == (40.0, 20.0)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "rubbish\n\n::\n"},
        {"proc/self/cgroup": "0::/../../etc\n"},
        v1(0x7FFFFFFFFFFFF000),  # version 1's way to say «no limit»
        {"proc/self/cgroup": "0::/a\n", **v2("sys/fs/cgroup/a", "a lot", 1, 1)},
        {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1000"},
        {"proc/self/cgroup": "0::/a\n", **v2("sys/fs/cgroup/a", str(2**60), 1, 1)},
    ],
)
def test_without_a_limit_the_machine_counts(tmp_path: Path, files: dict[str, str]) -> None:
    total = psutil.virtual_memory().total / MB
    assert read_machine(root=put(tmp_path, files)).limit_mb == total
