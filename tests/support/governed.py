"""A pool on a machine that a test makes up: its GPUs, its memory, and engines that use them.

The GPUs are read by the real `read_gpus` from a `FakeNvml`; a `GpuEcho` takes memory of its GPU
when it loads and gives it back when it is closed, and does not load where there is none.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.echo_stt import EchoStt
from tests.support.fake_nvml import FakeGpu, FakeNvml, no_driver
from tests.support.virtual_time import run_virtual
from voice_rtc.config import Settings
from voice_rtc.engines.base import EngineInfo, EngineSet, ReplicaSpec
from voice_rtc.engines.fakes import EchoLlm, ThresholdVad, ToneTts
from voice_rtc.errors import OutOfGpuMemory
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import GpuReadings, read_gpus
from voice_rtc.pool.memory import MachineMemory
from voice_rtc.pool.pool import SttPool


@dataclass(slots=True, eq=False)
class Machine:
    """What the pool is told of the machine; a test changes it as it likes."""

    nvml: FakeNvml = field(default_factory=no_driver)
    memory: MachineMemory = field(
        default_factory=lambda: MachineMemory(limit_mb=64_000.0, used_mb=8_000.0)
    )
    cores: float = 0.1
    used_seconds: float = 0.0
    since: float = 0.0

    def read_gpus(self) -> GpuReadings:
        """As the server does, from the driver that is not there."""
        return read_gpus(self.nvml)

    def read_memory(self, _workers: object) -> MachineMemory:
        """As it was set."""
        return self.memory

    def use_cores(self, cores: float) -> None:
        """The server's process computes so much from now on."""
        self.used_seconds, self.since = self.cpu_seconds(), asyncio.get_running_loop().time()
        self.cores = cores

    def cpu_seconds(self) -> float:
        """Processor time of the server's process so far, in the loop's time."""
        return self.used_seconds + self.cores * (asyncio.get_running_loop().time() - self.since)

    def fill(self, share: float) -> None:
        """So much of the memory is in use."""
        self.memory = replace(self.memory, used_mb=share * self.memory.limit_mb)

    def gpu(self, device: int) -> FakeGpu | None:
        """What CUDA would open under that index; None when there is none."""
        parts = [
            part
            for number, gpu in enumerate(self.nvml.gpus)
            if number not in self.nvml.lost
            for part in ([gpu.instances[n] for n in sorted(gpu.instances)] if gpu.mig else [gpu])
        ]
        return parts[device] if device < len(parts) else None


class GpuEcho(EchoStt):
    """An `EchoStt` on a GPU."""

    def __init__(
        self, spec: ReplicaSpec, machine: Machine, *, mb: int = 3000, load_seconds: float = 1.0
    ) -> None:
        super().__init__(spec, seconds=0.05)
        self.info = EngineInfo("stt", "echo", f"turbo (cuda:{spec.device} float16)")
        self._gpu = machine.gpu(spec.device)
        self._mb = mb
        self._load_seconds = load_seconds
        self._took = 0

    async def start(self) -> None:
        """Takes its memory after a while, as weights that are copied to a GPU."""
        await asyncio.sleep(self._load_seconds)
        if self._gpu is not None:
            if self._gpu.used_mb + self._mb > self._gpu.total_mb:
                raise OutOfGpuMemory("CUDA out of memory")
            self._gpu.used_mb += self._mb
            self._took = self._mb
        await super().start()

    async def aclose(self) -> None:
        """Gives it back."""
        if self._gpu is not None:
            self._gpu.used_mb -= self._took
            self._took = 0
        await super().aclose()


EngineMaker = Callable[[ReplicaSpec], EchoStt]


@dataclass(slots=True, eq=False)
class Governed:
    """A running pool and all that belongs to it."""

    pool: SttPool
    machine: Machine
    metrics: Metrics
    engines: list[EchoStt]
    """All there ever were, oldest first."""

    @property
    def loaded(self) -> list[EchoStt]:
        """Those that are not closed."""
        return [engine for engine in self.engines if not engine.closed]

    @property
    def by_device(self) -> dict[int, int]:
        """GPU -> engines that are loaded on it."""
        return dict(Counter(engine.spec.device for engine in self.loaded))

    @property
    def status(self) -> dict[str, Any]:
        """As GET /pool shows it."""
        return self.pool.status()

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0


@asynccontextmanager
async def governed(
    machine: Machine | None = None,
    make: EngineMaker | None = None,
    media: dict[str, float] | None = None,
    **pool: Any,
) -> AsyncIterator[Governed]:
    """A pool of `EchoStt` without spares, with media that cost nothing, unless told otherwise."""
    machine = machine or Machine()
    engines: list[EchoStt] = []

    def factory(spec: ReplicaSpec) -> EchoStt:
        engines.append(make(spec) if make is not None else EchoStt(spec, seconds=0.05))
        return engines[-1]

    settings = Settings(pool={"spares": 0, **pool}, media=media or {"call_core_share": 1e-4})
    first = factory(ReplicaSpec(settings.pool.mode))
    await first.start()
    chosen = EngineSet(ThresholdVad(), first, EchoLlm(), ToneTts(), (), factory)
    metrics = Metrics()
    built = SttPool(
        settings, chosen, metrics, machine.read_gpus, machine.read_memory, machine.cpu_seconds
    )
    try:
        async with built.running():
            yield Governed(built, machine, metrics, engines)
    finally:
        await first.aclose()
    assert not [engine for engine in engines if not engine.closed or engine.sessions]


def story(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Play it in virtual time."""
    run_virtual(work())


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> float:
    """Wait until it holds; how long that took. Virtual time costs nothing."""
    loop = asyncio.get_running_loop()
    since = loop.time()
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.25)
    return loop.time() - since
