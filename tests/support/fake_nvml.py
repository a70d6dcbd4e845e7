"""A driver without GPUs to drive: the used part of pynvml, with the real exceptions.

`FakeNvml` keeps NVML's rules: nothing may be asked before ``nvmlInit`` or after the last
``nvmlShutdown``, handles are opaque, sizes are bytes, and a call can be made to fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

MB = 2**20
_MOST_INSTANCES = 7


@dataclass(slots=True, eq=False)
class FakeGpu:
    """One GPU. Sizes in MB of 2**20 bytes."""

    total_mb: int
    used_mb: int = 0
    name: str = "NVIDIA Fake"
    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    mig: bool | None = None
    """Is it divided? None: it cannot be."""
    instances: dict[int, FakeGpu] = field(default_factory=dict)
    """MIG instances by number; there may be holes."""
    shares_memory: bool = False
    """Its memory is the machine's: NVML tells no size."""


class FakeNvml:
    """Stands in for the module pynvml. ``failing`` maps a function's name to what it raises."""

    def __init__(
        self,
        gpus: Sequence[FakeGpu] = (),
        *,
        failing: dict[str, type[pynvml.NVMLError]] | None = None,
        lost: Sequence[int] = (),
    ) -> None:
        self.gpus = list(gpus)
        self.failing = dict(failing or {})
        self.lost = set(lost)
        """Numbers of GPUs that have fallen off the bus."""
        self.open = 0
        """How often it was opened and not closed again."""

    def nvmlInit(self) -> None:
        self._check("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self._ready("nvmlShutdown")
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._ready("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        self._ready("nvmlDeviceGetHandleByIndex")
        if index in self.lost:
            raise pynvml.NVMLError_GpuIsLost
        if not 0 <= index < len(self.gpus):
            raise pynvml.NVMLError_InvalidArgument
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        self._ready("nvmlDeviceGetName")
        return handle.name

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        self._ready("nvmlDeviceGetUUID")
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> Any:
        self._ready("nvmlDeviceGetMemoryInfo")
        if handle.shares_memory:
            raise pynvml.NVMLError_NotSupported
        if handle.mig:
            raise pynvml.NVMLError_NoPermission  # what a container sees of a divided GPU
        total, used = handle.total_mb * MB, handle.used_mb * MB
        return SimpleNamespace(total=total, used=used, free=total - used)

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:
        self._ready("nvmlDeviceGetMigMode")
        if handle.mig is None:
            raise pynvml.NVMLError_NotSupported
        return [int(handle.mig), int(handle.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeGpu) -> int:
        self._ready("nvmlDeviceGetMaxMigDeviceCount")
        return 0 if handle.mig is None else _MOST_INSTANCES

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: FakeGpu, index: int) -> FakeGpu:
        self._ready("nvmlDeviceGetMigDeviceHandleByIndex")
        if index not in device.instances:
            raise pynvml.NVMLError_NotFound
        return device.instances[index]

    def _ready(self, function: str) -> None:
        if not self.open:
            raise pynvml.NVMLError_Uninitialized
        self._check(function)

    def _check(self, function: str) -> None:
        if function in self.failing:
            raise self.failing[function]


def no_driver() -> FakeNvml:
    """A machine without NVIDIA's software."""
    return FakeNvml(failing={"nvmlInit": pynvml.NVMLError_LibraryNotFound})


def gpu_of(gigabytes: int, used_mb: int = 0) -> FakeGpu:
    """A GPU by what is printed on its box, with what the driver then tells."""
    total_mb, name = {
        8: (8192, "NVIDIA GeForce RTX 4060"),
        24: (24564, "NVIDIA GeForce RTX 4090"),
        80: (81559, "NVIDIA H100 80GB HBM3"),
        141: (143771, "NVIDIA H200"),
    }[gigabytes]
    return FakeGpu(total_mb, used_mb, name, f"GPU-{gigabytes:08d}")
