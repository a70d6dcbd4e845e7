"""Which GPUs there are and how full they are, read from the driver (NVML); nothing is loaded.

    no driver or no GPU      no GPUs, and ``problem`` says which of the two
    one GPU cannot be asked  the others, and ``problem`` names it
    MIG                      the instances with their own memory; the GPU itself cannot be used

A reading never raises: a server without a GPU is an ordinary one. Memory is in MB of 2**20 bytes,
as ``nvidia-smi`` shows it; NVML counts bytes. Answers the original plan's detection of GPU memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pynvml

_MB = 2**20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance, that CUDA can open."""

    index: int
    """As CUDA counts those that are visible, when CUDA_DEVICE_ORDER is PCI_BUS_ID or all are of
    one kind: what an engine is told as its device."""
    name: str
    total_mb: int
    """0 when the driver does not tell, as where CPU and GPU share their memory."""
    used_mb: int
    """By everybody, not by this server alone."""
    free_mb: int
    mig: bool = False
    """Is it a MIG instance?"""


@dataclass(frozen=True, slots=True)
class GpuReadings:
    """All that is known at one moment."""

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    """What could not be read, in sentences; empty when all could."""

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """Those that one process can use side by side: CUDA gives it one MIG instance at most."""
        whole = tuple(gpu for gpu in self.gpus if not gpu.mig)
        return whole or self.gpus[:1]


NO_GPUS = GpuReadings()
"""Nothing was read."""


class GpuSource(Protocol):
    """Reads the GPUs; `read_gpus`, or a stand-in of a test."""

    def __call__(self) -> GpuReadings:
        """Must not raise, and must be quick: it is called each second on the event loop."""
        ...


class Nvml(Protocol):
    """What is used of pynvml, by NVML's own names. Each may raise a ``pynvml.NVMLError``."""

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any) -> str: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any: ...


def read_gpus(nvml: Nvml = pynvml, visible: str | None = None) -> GpuReadings:
    """Ask the driver. ``visible`` is the value of CUDA_VISIBLE_DEVICES; None when it is not set.

    NVML is left open for the next reading: half a millisecond in place of eleven (one H200).
    """
    try:
        _open(nvml)
    except pynvml.NVMLError as error:
        return GpuReadings((), _why_no_driver(error))
    return _Reader(nvml).read(visible)


def _open(nvml: Nvml) -> None:
    try:
        nvml.nvmlDeviceGetCount()
    except pynvml.NVMLError_Uninitialized:
        nvml.nvmlInit()
    except pynvml.NVMLError:
        return  # it is open, and the reading will say what is wrong


def _why_no_driver(error: pynvml.NVMLError) -> str:
    if isinstance(error, pynvml.NVMLError_LibraryNotFound | pynvml.NVMLError_DriverNotLoaded):
        return f"There is no NVIDIA driver ({error})."
    return f"The NVIDIA driver does not answer: {error}."


@dataclass(frozen=True, slots=True)
class _Found:
    """A device before it has its number."""

    at: int
    """Of its GPU, as NVML counts."""
    handle: Any
    uuid: str
    mig: bool


class _Reader:
    """One reading, with NVML open."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._problems: list[str] = []

    def read(self, visible: str | None) -> GpuReadings:
        found = self._chosen(list(self._devices()), visible)
        gpus = tuple(self._gpu(index, each) for index, each in enumerate(found))
        if not gpus and not self._problems:
            self._problems.append("The NVIDIA driver is there, but no GPU.")
        return GpuReadings(gpus, " ".join(self._problems))

    def _devices(self) -> Iterator[_Found]:
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._problems.append(f"The NVIDIA driver does not tell its GPUs: {error}.")
            return
        for at in range(count):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(at)
            except pynvml.NVMLError as error:
                self._problems.append(f"GPU {at} cannot be used: {error}.")
                continue
            if self._is_divided(handle):
                yield from self._instances(at, handle)
            else:
                yield _Found(at, handle, self._uuid(handle), mig=False)

    def _is_divided(self, handle: Any) -> bool:
        try:
            present, _after_reset = self._nvml.nvmlDeviceGetMigMode(handle)
        except pynvml.NVMLError:  # most GPUs and older drivers know no MIG
            return False
        return bool(present == pynvml.NVML_DEVICE_MIG_ENABLE)

    def _instances(self, at: int, parent: Any) -> Iterator[_Found]:
        """The MIG instances of a GPU; their numbers may have holes."""
        seen = 0
        try:
            for number in range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
                try:
                    handle = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, number)
                except pynvml.NVMLError_NotFound:
                    continue
                seen += 1
                yield _Found(at, handle, self._uuid(handle), mig=True)
        except pynvml.NVMLError as error:
            self._problems.append(f"The MIG instances of GPU {at} cannot be read: {error}.")
            return
        if not seen:
            self._problems.append(f"GPU {at} is in MIG mode, but has no instance.")

    def _uuid(self, handle: Any) -> str:
        try:
            return str(self._nvml.nvmlDeviceGetUUID(handle))
        except pynvml.NVMLError:  # then it can be chosen by its number only
            return ""

    def _chosen(self, found: list[_Found], visible: str | None) -> list[_Found]:
        """As CUDA reads its variable: in that order, up to the first name that fits nothing."""
        if visible is None:
            return found
        chosen: list[_Found] = []
        for name in (part.strip() for part in visible.split(",")):
            match = next((each for each in found if _is_called(each, name)), None)
            if match is None or match in chosen:
                break
            chosen.append(match)
        if found and not chosen:
            self._problems.append(f"CUDA_VISIBLE_DEVICES={visible} hides every GPU.")
        return chosen

    def _gpu(self, index: int, found: _Found) -> Gpu:
        name = "NVIDIA GPU"
        try:
            name = str(self._nvml.nvmlDeviceGetName(found.handle))
            memory = self._nvml.nvmlDeviceGetMemoryInfo(found.handle)
        except pynvml.NVMLError as error:
            self._problems.append(f"The memory of GPU {found.at} ({name}) cannot be read: {error}.")
            return Gpu(index, name, 0, 0, 0, found.mig)
        total, used, free = (int(size) // _MB for size in (memory.total, memory.used, memory.free))
        return Gpu(index, name, total, used, free, found.mig)


def _is_called(found: _Found, name: str) -> bool:
    """By number, or by the beginning of its UUID."""
    if name.isdecimal():
        return not found.mig and found.at == int(name)
    return name.startswith(("GPU-", "MIG-")) and found.uuid.startswith(name)
