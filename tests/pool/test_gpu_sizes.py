"""A pool on every kind of GPU: how many slots, as GET /pool shows them, and real growth to them.

The driver is `FakeNvml`, read by the server's own `read_gpus`; engines take memory of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pynvml
import pytest

from signaling.main import running_server
from tests.support.fake_nvml import FakeGpu, FakeNvml, gpu_of, no_driver
from tests.support.governed import Governed, GpuEcho, Machine, governed, story, until
from tests.support.server import ready
from voice_rtc.config import Settings
from voice_rtc.core.capacity import (
    Batching,
    LatencyCurve,
    LatencyPoint,
    Traffic,
    sustainable_callers,
)
from voice_rtc.engines.base import EngineSet, ReplicaSpec
from voice_rtc.engines.fakes import EchoLlm, ThresholdVad, ToneTts
from voice_rtc.errors import OutOfGpuMemory
from voice_rtc.pool.lease import Lease


def divided() -> FakeGpu:
    """An H100 in two MIG instances."""
    small = FakeGpu(9856, 0, "NVIDIA H100 MIG 1g.10gb", "MIG-1111")
    large = FakeGpu(40320, 0, "NVIDIA H100 MIG 3g.40gb", "MIG-2222")
    return FakeGpu(81559, name="NVIDIA H100", mig=True, instances={1: large, 5: small})


def failing(function: str) -> FakeNvml:
    return FakeNvml([gpu_of(24)], failing={function: pynvml.NVMLError_GpuIsLost})


@dataclass(frozen=True)
class Case:
    """A machine, and what a pool on it should be."""

    driver: Callable[[], FakeNvml]
    dedicated: dict[int, int]
    """GPU -> engines."""
    sizes: tuple[int, ...] = ()
    """MB of each GPU that is shown."""
    problem: str = ""
    """Part of what is shown as the GPUs' problem."""
    shared_gpus: int = 1
    """GPUs that ``shared`` runs on."""


CASES = {
    "8 GB": Case(lambda: FakeNvml([gpu_of(8)]), {0: 1}, (8192,)),
    "24 GB": Case(lambda: FakeNvml([gpu_of(24)]), {0: 6}, (24564,)),
    "80 GB": Case(lambda: FakeNvml([gpu_of(80)]), {0: 25}, (81559,)),
    "141 GB": Case(lambda: FakeNvml([gpu_of(141)]), {0: 45}, (143771,)),
    "two alike": Case(
        lambda: FakeNvml([gpu_of(24), gpu_of(24)]), {0: 6, 1: 6}, (24564, 24564), shared_gpus=2
    ),
    "two unlike": Case(
        lambda: FakeNvml([gpu_of(24), gpu_of(80)]), {0: 6, 1: 25}, (24564, 81559), shared_gpus=2
    ),
    "half taken": Case(lambda: FakeNvml([gpu_of(24, used_mb=12_000)]), {0: 2}, (24564,)),
    "too small": Case(lambda: FakeNvml([gpu_of(8, used_mb=2000)]), {0: 1}, (8192,)),
    "MIG": Case(lambda: FakeNvml([divided()]), {0: 11}, (40320, 9856)),
    "no driver": Case(no_driver, {0: 1}, (), "There is no NVIDIA driver"),
    "no GPU": Case(FakeNvml, {0: 1}, (), "The NVIDIA driver is there, but no GPU."),
    "one lost": Case(
        lambda: FakeNvml([gpu_of(8), gpu_of(24)], lost=[0]),
        {0: 6},
        (24564,),
        "GPU 0 cannot be used",
    ),
    "lost": Case(lambda: failing("nvmlDeviceGetHandleByIndex"), {0: 1}, (), "GPU 0 cannot be used"),
    "no count": Case(lambda: failing("nvmlDeviceGetCount"), {0: 1}, (), "does not tell its GPUs"),
    "no memory": Case(
        lambda: failing("nvmlDeviceGetMemoryInfo"), {0: 1}, (0,), "memory of GPU 0 (NVIDIA GeForce"
    ),
}
"""All that CUDA may be found on. ``too small`` and what cannot be read carry the one engine that
is loaded already."""

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def on(case: Case) -> tuple[Machine, Callable[[ReplicaSpec], GpuEcho]]:
    machine = Machine(case.driver())
    return machine, lambda spec: GpuEcho(spec, machine)


async def callers(it: Governed, stack: AsyncExitStack, count: int) -> list[Lease]:
    """So many come at the same moment; all of them have a slot afterwards."""
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        coming = [
            tasks.create_task(stack.enter_async_context(it.pool.lease(f"call-{n}")))
            for n in range(count)
        ]
    return [each.result() for each in coming]


class MeasuredEcho(GpuEcho):
    """Can be measured: a batch of eight takes 60 ms, whatever the window."""

    async def measure(self) -> LatencyCurve:
        await asyncio.sleep(0)
        return LatencyCurve((LatencyPoint(30.0, 1, 0.03), LatencyPoint(30.0, 8, 0.06)), workers=2)


def shown(it: Governed, case: Case) -> dict[str, Any]:
    """The sizing as GET /pool has it, after what is the same in every mode was looked at."""
    sizing: dict[str, Any] = it.status["sizing"]
    assert tuple(gpu["total_mb"] for gpu in sizing["gpus"]) == case.sizes
    assert case.problem in sizing["gpu_problem"] and bool(case.problem) == bool(
        sizing["gpu_problem"]
    )
    return sizing


# --------------------------------------------------------------------------------- dedicated


@every_case
def test_dedicated_grows_on_demand_to_the_formula_and_shrinks_to_one(case: Case) -> None:
    async def run() -> None:
        machine, make = on(case)
        slots = sum(case.dedicated.values())
        async with governed(machine, make, mode="dedicated") as it:
            assert it.status["slots"]["target"] == it.status["slots"]["max"] == slots
            assert len(it.loaded) == it.status["slots"]["total"] == 1
            async with AsyncExitStack() as calls:
                leases = await callers(it, calls, slots)
                assert it.by_device == case.dedicated
                assert (
                    it.status["slots"]["leased"] == slots == len({lease.slot for lease in leases})
                )
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(60.0), it.pool.lease("one too many"):
                        raise AssertionError("there is no engine for it")
                assert it.by_device == case.dedicated and len(it.engines) == slots
                shown(it, case)
            assert await until(lambda: len(it.loaded) == 1) <= 30.0
            assert it.status["slots"]["total"] == it.status["slots"]["free"] == 1
            async with it.pool.lease("again"):
                assert it.status["slots"]["leased"] == 1

    story(run)


@every_case
def test_dedicated_says_how_it_came_to_its_number(case: Case) -> None:
    async def run() -> None:
        machine, make = on(case)
        slots = sum(case.dedicated.values())
        async with governed(machine, make, mode="dedicated") as it:
            sizing = shown(it, case)
            if not case.sizes or not case.sizes[0]:
                assert sizing["source"] == "engine"
                assert "no more engines are loaded" in sizing["explanation"]
                assert sizing["gpu_problem"] in sizing["explanation"]
                return
            assert sizing["source"] == "formula"
            assert "3072 MB each with 4096 MB kept free" in sizing["explanation"]
            gpus = sizing["gpus"][:1] if sizing["gpus"][0]["mig"] else sizing["gpus"]
            for gpu in gpus:
                assert f"{gpu['name']}, has {gpu['free_mb']} of" in sizing["explanation"]
            # The formula by hand; the first engine is loaded, and its memory counts as ours.
            ours = [3072 * (gpu["index"] == 0) for gpu in gpus]
            free = [
                min(gpu["free_mb"] + mb, gpu["total_mb"])
                for gpu, mb in zip(gpus, ours, strict=True)
            ]
            assert slots == max(sum((mb - 4096) // 3072 for mb in free), 1)

    story(run)


@pytest.mark.parametrize("name", ["8 GB", "24 GB", "two unlike"])
def test_the_spare_of_dedicated_is_one_of_those_that_memory_allows(name: str) -> None:
    async def run() -> None:
        case = CASES[name]
        machine, make = on(case)
        slots = sum(case.dedicated.values())
        async with governed(machine, make, mode="dedicated", spares=1) as it:
            await until(lambda: len(it.loaded) == min(2, slots))
            await asyncio.sleep(5.0)
            assert len(it.loaded) == min(2, slots) and it.status["slots"]["total"] == 1
            loop = asyncio.get_running_loop()
            async with AsyncExitStack() as calls:
                await callers(it, calls, 1)
                if slots > 1:
                    since = loop.time()
                    await calls.enter_async_context(it.pool.lease("second"))
                    assert loop.time() == since, "the spare serves at once"
                    await until(lambda: len(it.loaded) == min(3, slots))
                    assert it.status["slots"]["total"] == 2
            async with AsyncExitStack() as calls:
                await callers(it, calls, slots)
                await asyncio.sleep(30.0)
                assert it.by_device == case.dedicated, "no spare beyond what fits"
                assert it.status["machine"]["memory_pressure"] == "normal"
            await until(lambda: it.status["slots"]["total"] == 1)
            assert len(it.loaded) == min(2, slots)

    story(run)


def test_what_others_take_meanwhile_is_not_given_to_engines() -> None:
    """Half of the GPU goes to somebody else after the pool was sized, and comes back later."""

    async def run() -> None:
        machine, make = on(CASES["24 GB"])
        async with governed(machine, make, mode="dedicated") as it:
            machine.nvml.gpus[0].used_mb += 12_000
            async with AsyncExitStack() as calls:
                await callers(it, calls, 2)
                with pytest.raises(TimeoutError):
                    await callers_within(it, calls, 20.0)
                assert it.status["slots"]["target"] == 6 and it.by_device == {0: 2}
                assert it.status["machine"]["memory_pressure"] == "normal", "nothing was lost"
                machine.nvml.gpus[0].used_mb -= 12_000
                async with asyncio.timeout(10.0):
                    await calls.enter_async_context(it.pool.lease("patient"))
                assert it.by_device == {0: 3}

    story(run)


async def callers_within(it: Governed, stack: AsyncExitStack, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await stack.enter_async_context(it.pool.lease("too early"))


def test_who_waits_for_memory_is_served_when_it_is_there() -> None:
    """Nobody else has to come for it."""

    async def run() -> None:
        machine, make = on(CASES["24 GB"])
        async with governed(machine, make, mode="dedicated") as it, AsyncExitStack() as calls:
            await callers(it, calls, 1)
            machine.nvml.gpus[0].used_mb += 18_000
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(calls.enter_async_context(it.pool.lease("waiting")))
                await asyncio.sleep(20.0)
                assert not waiting.done() and it.status["line"]["waiting"] == 1
                machine.nvml.gpus[0].used_mb -= 18_000
                assert await until(waiting.done) <= 5.0

    story(run)


def test_an_engine_that_does_not_load_is_tried_again_for_who_waits() -> None:
    async def run() -> None:
        machine, make = on(CASES["24 GB"])
        made: list[GpuEcho] = []

        def failing_thrice(spec: ReplicaSpec) -> GpuEcho:
            made.append(make(spec))
            if 2 <= len(made) <= 4:
                made[-1].start_error = OutOfGpuMemory("CUDA out of memory")
            return made[-1]

        async with governed(machine, failing_thrice, mode="dedicated") as it:
            async with AsyncExitStack() as calls, asyncio.timeout(60.0):
                await callers(it, calls, 2)
                assert len(made) == 5 and len(it.loaded) == 2
                happened = [each["text"] for each in it.status["events"]]
                assert sum("could not be loaded" in text for text in happened) == 3

    story(run)


# ------------------------------------------------------------------------------------ shared


@every_case
def test_shared_runs_on_every_gpu_and_goes_by_what_the_engine_says(case: Case) -> None:
    async def run() -> None:
        machine, make = on(case)
        gpus = case.shared_gpus
        async with governed(machine, make, mode="shared", spares=1) as it:
            sizing = shown(it, case)
            where = "the GPU" if gpus == 1 else f"{gpus} GPUs"
            assert sizing["source"] == "engine"
            assert sizing["explanation"] == (
                f"echo was not measured; it expects to carry {4 * gpus} on {where}."
            )
            slots = it.status["slots"]
            assert slots["total"] == slots["target"] == slots["free"] == 4 * gpus
            serving = [each for each in it.status["replicas"] if each["role"] == "serving"]
            assert [each["device"] for each in serving] == list(range(gpus))
            assert [each["slots"] for each in serving] == [4] * gpus
            async with AsyncExitStack() as calls:
                leases = await callers(it, calls, 4 * gpus)
                assert len(leases) == 4 * gpus
                assert {len(each.leases) for each in it.pool.supervisor.serving("shared")} == {4}

    story(run)


@pytest.mark.parametrize("name", ["8 GB", "141 GB", "two alike", "MIG", "no driver"])
def test_shared_is_measured_once_for_each_kind_of_gpu(name: str, tmp_path: Path) -> None:
    async def run() -> None:
        case = CASES[name]
        machine = Machine(case.driver())

        def make(spec: ReplicaSpec) -> MeasuredEcho:
            return MeasuredEcho(spec, machine)

        async with governed(machine, make, mode="shared", cache_directory=tmp_path) as it:
            sizing, slots = shown(it, case), it.status["slots"]["total"]
            curve = await MeasuredEcho(ReplicaSpec(), machine).measure()
            one = sustainable_callers(
                curve, 0.6, Traffic(partial_seconds=0.4), Batching(reserved_for_finals=1)
            )
            assert one > 4 and slots == one * case.shared_gpus
            assert sizing["source"] == "probe"
            assert f"Measured: {slots} callers get final transcripts" in sizing["explanation"]

    story(run)


def test_a_second_gpu_whose_engine_does_not_load_is_not_counted() -> None:
    async def run() -> None:
        machine, make = on(CASES["two alike"])
        machine.nvml.gpus[1].used_mb = machine.nvml.gpus[1].total_mb - 1000
        async with governed(machine, make, mode="shared") as it:
            assert it.status["slots"]["total"] == 4
            assert it.status["sizing"]["explanation"].endswith("on the GPU.")

    story(run)


# ------------------------------------------------------------------- a server with its address


@pytest.mark.parametrize("mode", ["dedicated", "shared"])
@pytest.mark.parametrize("name", ["two unlike", "MIG", "no driver"])
async def test_a_server_shows_it_at_its_address(name: str, mode: str) -> None:
    case = CASES[name]
    machine = Machine(case.driver())

    def make(spec: ReplicaSpec) -> GpuEcho:
        return GpuEcho(spec, machine, load_seconds=0.0)

    async def load(_settings: Settings, _report: Callable[[str], None]) -> EngineSet:
        engines = EngineSet(ThresholdVad(), make(ReplicaSpec()), EchoLlm(), ToneTts(), (), make)
        await engines.stt.start()
        return engines

    settings = Settings(
        server={"host": "127.0.0.1", "port": 0, "drain_seconds": 0.0},
        media={"call_core_share": 0.01},
        pool={"mode": mode, "spares": 0, "memory_high": 0.998, "memory_critical": 0.999},
    )
    async with (
        asyncio.timeout(30),
        running_server(settings, load, machine.read_gpus) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        await ready(server)
        async with http.get("/pool") as answer:
            assert answer.status == 200
            body = await answer.json()
    assert body["mode"] == mode and body["status"] == "ready"
    slots = sum(case.dedicated.values()) if mode == "dedicated" else 4 * case.shared_gpus
    assert body["slots"]["target"] == slots
    assert body["slots"]["total"] == (1 if mode == "dedicated" else slots)
    assert tuple(gpu["total_mb"] for gpu in body["sizing"]["gpus"]) == case.sizes
    assert [gpu["mig"] for gpu in body["sizing"]["gpus"]] == [name == "MIG"] * len(case.sizes)
    assert case.problem in body["sizing"]["gpu_problem"]
    words = "engine" if name == "no driver" or mode == "shared" else "formula"
    assert body["sizing"]["source"] == words
    if body["sizing"]["gpus"]:
        assert str(slots) in body["sizing"]["explanation"]
