"""GPUs as the driver tells of them: all kinds of machines, and all ways to fail."""

from __future__ import annotations

import pynvml
import pytest

from tests.support.fake_nvml import FakeGpu, FakeNvml, gpu_of, no_driver
from voice_rtc.pool.gpu import Gpu, GpuReadings, read_gpus

QUERIES = (
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMigMode",
)


@pytest.mark.parametrize(
    ("gigabytes", "total_mb"), [(8, 8192), (24, 24564), (80, 81559), (141, 143771)]
)
def test_one_gpu_in_mb_of_two_to_the_twentieth(gigabytes: int, total_mb: int) -> None:
    gpu = gpu_of(gigabytes, used_mb=900)
    nvml = FakeNvml([gpu])
    assert read_gpus(nvml) == GpuReadings(
        (Gpu(0, gpu.name, total_mb, 900, total_mb - 900, mig=False),), ""
    )
    gpu.used_mb = 2000
    assert read_gpus(nvml).gpus[0].used_mb == 2000
    assert nvml.open == 1, "opening takes long: once is enough"


def test_two_gpus() -> None:
    found = read_gpus(FakeNvml([gpu_of(24), gpu_of(80, used_mb=100)]))
    assert [(gpu.index, gpu.free_mb) for gpu in found.gpus] == [(0, 24564), (1, 81459)]
    assert found.usable == found.gpus and not found.problem


def test_no_driver_is_an_ordinary_machine() -> None:
    found = read_gpus(no_driver())
    assert found.gpus == () and "no NVIDIA driver" in found.problem


def test_a_driver_without_gpus_says_so() -> None:
    assert read_gpus(FakeNvml()) == GpuReadings((), "The NVIDIA driver is there, but no GPU.")


def test_a_driver_that_does_not_answer_is_not_taken_for_none() -> None:
    nvml = FakeNvml([gpu_of(8)], failing={"nvmlInit": pynvml.NVMLError_LibRmVersionMismatch})
    found = read_gpus(nvml)
    assert found.gpus == () and "does not answer" in found.problem
    assert nvml.open == 0


@pytest.mark.parametrize("function", QUERIES)
@pytest.mark.parametrize(
    "error", [pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_NoPermission, pynvml.NVMLError_Unknown]
)
def test_no_failure_raises_and_what_is_known_is_told(
    function: str, error: type[pynvml.NVMLError]
) -> None:
    nvml = FakeNvml([gpu_of(24)], failing={function: error})
    found = read_gpus(nvml)
    if function in ("nvmlDeviceGetUUID", "nvmlDeviceGetMigMode"):
        assert found == read_gpus(FakeNvml([gpu_of(24)])), "these are not needed"
    else:
        assert str(error()) in found.problem
        assert bool(found.gpus) == (function in ("nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo"))


def test_a_gpu_that_fell_off_the_bus_does_not_hide_the_other() -> None:
    found = read_gpus(FakeNvml([gpu_of(8), gpu_of(24)], lost=[0]))
    assert [gpu.total_mb for gpu in found.gpus] == [24564]
    assert found.problem.startswith("GPU 0 cannot be used")


def test_a_driver_that_is_loaded_later_is_found_then() -> None:
    nvml = FakeNvml([gpu_of(8)], failing={"nvmlInit": pynvml.NVMLError_DriverNotLoaded})
    assert "no NVIDIA driver" in read_gpus(nvml).problem
    nvml.failing.clear()
    assert len(read_gpus(nvml).gpus) == 1


def test_memory_shared_with_the_cpu_has_no_size() -> None:
    found = read_gpus(FakeNvml([FakeGpu(0, name="NVIDIA GB10", shares_memory=True)]))
    assert found.gpus == (Gpu(0, "NVIDIA GB10", 0, 0, 0),)
    assert "NVIDIA GB10" in found.problem and "Not Supported" in found.problem


# ----------------------------------------------------------------------------------------- MIG


def divided(*instances: FakeGpu, at: tuple[int, ...] = (1, 5)) -> FakeGpu:
    return FakeGpu(
        81559, uuid="GPU-aaaa", mig=True, instances=dict(zip(at, instances, strict=False))
    )


def test_mig_instances_stand_in_for_their_gpu() -> None:
    small = FakeGpu(9856, 100, "NVIDIA H100 MIG 1g.10gb", "MIG-1111")
    large = FakeGpu(40320, 0, "NVIDIA H100 MIG 3g.40gb", "MIG-2222")
    found = read_gpus(FakeNvml([divided(small, large)]))
    assert [(gpu.index, gpu.total_mb, gpu.mig) for gpu in found.gpus] == [
        (0, 9856, True),
        (1, 40320, True),
    ]
    assert not found.problem
    assert found.usable == found.gpus[:1], "CUDA gives a process one instance"


def test_a_divided_gpu_without_instances_cannot_be_used() -> None:
    found = read_gpus(FakeNvml([divided(), gpu_of(24)]))
    assert [gpu.total_mb for gpu in found.gpus] == [24564]
    assert found.problem == "GPU 0 is in MIG mode, but has no instance."


def test_instances_that_cannot_be_read_are_told() -> None:
    nvml = FakeNvml(
        [divided(FakeGpu(9856))],
        failing={"nvmlDeviceGetMaxMigDeviceCount": pynvml.NVMLError_NoPermission},
    )
    found = read_gpus(nvml)
    assert found.gpus == () and "MIG instances of GPU 0" in found.problem


def test_a_gpu_with_mig_switched_off_is_a_whole_one() -> None:
    found = read_gpus(FakeNvml([FakeGpu(81559, mig=False)]))
    assert [(gpu.total_mb, gpu.mig) for gpu in found.gpus] == [(81559, False)]


def test_whole_gpus_go_before_instances() -> None:
    found = read_gpus(FakeNvml([divided(FakeGpu(9856)), gpu_of(24)]))
    assert [gpu.total_mb for gpu in found.usable] == [24564]


# ------------------------------------------------------------------------ CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize(
    ("visible", "sizes"),
    [
        (None, [8192, 24564, 81559]),
        ("0,1,2", [8192, 24564, 81559]),
        ("2,0", [81559, 8192]),
        (" 1 , 2 ", [24564, 81559]),
        ("GPU-00000024", [24564]),
        ("GPU-00000080,0", [81559, 8192]),
        ("1,7,0", [24564]),  # CUDA stops at the first that is not there
        ("1,1", [24564]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_only_what_cuda_will_see(visible: str | None, sizes: list[int]) -> None:
    found = read_gpus(FakeNvml([gpu_of(8), gpu_of(24), gpu_of(80)]), visible)
    assert [gpu.total_mb for gpu in found.gpus] == sizes
    assert [gpu.index for gpu in found.gpus] == list(range(len(sizes))), "counted as CUDA does"
    assert ("hides every GPU" in found.problem) == (not sizes)


def test_an_instance_is_chosen_by_its_uuid() -> None:
    first = FakeGpu(9856, uuid="MIG-1111")
    second = FakeGpu(40320, uuid="MIG-2222")
    found = read_gpus(FakeNvml([divided(first, second)]), "MIG-2222")
    assert [(gpu.index, gpu.total_mb) for gpu in found.usable] == [(0, 40320)]


def test_the_fake_keeps_the_rules_of_the_driver() -> None:
    nvml = FakeNvml([gpu_of(8)])
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        nvml.nvmlDeviceGetCount()
    nvml.nvmlInit()
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(1)
    for name in (name for name in dir(nvml) if name.startswith("nvml")):
        assert hasattr(pynvml, name), f"pynvml has no {name}"


def test_this_very_machine_can_be_asked() -> None:
    found = read_gpus()
    assert found.gpus or found.problem
