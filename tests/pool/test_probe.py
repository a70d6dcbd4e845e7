"""How many slots a machine gets: measurements kept on disk, memory, settings."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.fake_nvml import FakeNvml, gpu_of, no_driver
from voice_rtc.config import MediaSettings, PoolSettings, Settings, SttSettings
from voice_rtc.core.capacity import LatencyCurve, LatencyPoint, Sizing
from voice_rtc.engines.base import EngineInfo, SttMode
from voice_rtc.engines.fakes import ScriptedStt
from voice_rtc.errors import EngineCrashed, EngineError, EngineTimeout
from voice_rtc.pool.gpu import NO_GPUS, GpuReadings, read_gpus
from voice_rtc.pool.memory import MachineMemory
from voice_rtc.pool.probe import (
    Circumstances,
    ProbeCache,
    measured,
    probe_key,
    size_pool,
    sizing,
)

ON_GPU = EngineInfo("stt", "faster-whisper", "turbo (cuda:0 float16)")
ON_CPU = EngineInfo("stt", "faster-whisper", "base (cpu int8, 2 workers)")
PLENTY = MachineMemory(limit_mb=200_000.0, used_mb=8_000.0)


def curve(seconds: float, workers: int = 1) -> LatencyCurve:
    """An engine that gains half by batching."""
    points = tuple(
        LatencyPoint(window, batch, seconds * window / 10 * (0.5 + 0.5 * batch))
        for window in (5.0, 10.0, 30.0)
        for batch in (1, 2, 4, 8)
    )
    return LatencyCurve(points, workers)


class Measurable(ScriptedStt):
    """Can be measured, as Whisper can."""

    def __init__(self, outcome: LatencyCurve | EngineError | None = None) -> None:
        super().__init__()
        self.outcome = outcome or curve(0.25)
        self.times = 0

    async def measure(self) -> LatencyCurve:
        self.times += 1
        await asyncio.sleep(0)
        if isinstance(self.outcome, EngineError):
            raise self.outcome
        return self.outcome


class Endless(Measurable):
    async def measure(self) -> LatencyCurve:
        await asyncio.get_running_loop().create_future()
        raise AssertionError


CHEAP_MEDIA = MediaSettings(call_core_share=1e-4)
FREE = Settings(media=CHEAP_MEDIA)
"""The server's own process is no limit."""


def settings(directory: Path | None = None, **pool: Any) -> Settings:
    return Settings(pool=PoolSettings(cache_directory=directory, **pool), media=CHEAP_MEDIA)


def given(mode: SttMode, info: EngineInfo = ON_GPU, **others: Any) -> Circumstances:
    base = Circumstances(mode, info, recommended=4, gpus=NO_GPUS, machine=PLENTY)
    return replace(base, **others)


KEY = probe_key(ON_CPU, "shared", Settings())

# --------------------------------------------------------------------------------------- cache


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path / "deep" / "below")
    assert cache.get(KEY) is None
    cache.put(KEY, curve(0.1, workers=3))
    assert ProbeCache(tmp_path / "deep" / "below").get(KEY) == curve(0.1, workers=3)
    assert [file.name for file in cache.path.parent.iterdir()] == ["probe.json"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe\x00",
        b'{"format": 1}',
        b'{"format": 99, "curves": {}}',
        b'{"format": 1, "curves": 7}',
    ],
)
def test_a_damaged_file_is_as_good_as_none_and_is_mended(tmp_path: Path, damage: bytes) -> None:
    cache = ProbeCache(tmp_path)
    cache.path.write_bytes(damage)
    assert cache.get(KEY) is None
    cache.put(KEY, curve(0.1))
    assert cache.get(KEY) == curve(0.1)


@pytest.mark.parametrize("entry", [7, {}, {"points": [[1, 2]], "workers": 1}, {"points": []}])
def test_a_damaged_entry_is_told_and_ignored(tmp_path: Path, entry: object) -> None:
    cache = ProbeCache(tmp_path)
    cache.path.write_text(json.dumps({"format": 1, "curves": {KEY.text(): entry}}))
    with structlog.testing.capture_logs() as logged:
        assert cache.get(KEY) is None
    assert [line["event"] for line in logged] == ["probe_cache_damaged"]


def test_the_oldest_entries_go(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path, most=3)
    keys = [replace(KEY, model=f"model {n}") for n in range(5)]
    for key in keys[:3]:
        cache.put(key, curve(0.1))
    cache.put(keys[0], curve(0.2))  # now the newest
    for key in keys[3:]:
        cache.put(key, curve(0.1))
    assert [cache.get(key) is not None for key in keys] == [True, False, False, True, True]
    assert cache.get(keys[0]) == curve(0.2)


def test_a_directory_that_cannot_be_made_costs_only_a_log_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ProbeCache(tmp_path / "file")
    with structlog.testing.capture_logs() as logged:
        cache.put(KEY, curve(0.1))
        assert cache.get(KEY) is None
    assert "probe_cache_not_written" in {line["event"] for line in logged}


def test_a_write_that_fails_halfway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ProbeCache(tmp_path)
    cache.put(KEY, curve(0.1))

    def full(_source: str, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache.put(KEY, curve(0.2))
    assert cache.get(KEY) == curve(0.1)
    assert [file.name for file in tmp_path.iterdir()] == ["probe.json"]


def test_the_key_knows_what_a_measurement_depends_on(tmp_path: Path) -> None:
    weights = tmp_path / "model.bin"
    weights.write_bytes(b"one")
    local = Settings(stt=SttSettings(model=str(tmp_path)))
    h200 = read_gpus(FakeNvml([gpu_of(141)]))
    keys = [
        probe_key(ON_CPU, "shared", Settings()),
        probe_key(ON_CPU, "single", Settings()),
        probe_key(ON_CPU, "shared", local),
        probe_key(ON_CPU, "shared", Settings(stt=SttSettings(batch=4))),
        probe_key(ON_CPU, "shared", Settings(stt=SttSettings(window="full"))),
        probe_key(ON_CPU, "shared", Settings(stt=SttSettings(beam_size=5))),
        probe_key(replace(ON_CPU, model="small (cpu int8)"), "shared", Settings()),
        probe_key(ON_GPU, "shared", Settings(), h200),
        probe_key(ON_GPU, "shared", Settings(), read_gpus(FakeNvml([gpu_of(80)]))),
        probe_key(ON_GPU, "shared", Settings()),
    ]
    weights.write_bytes(b"other")
    keys.append(probe_key(ON_CPU, "shared", local))
    assert len({key.text() for key in keys}) == len(set(keys)) == len(keys)
    assert probe_key(ON_CPU, "shared", Settings(), h200) == keys[0], "a CPU has no GPU"
    assert "voice-rtc" in keys[0].versions and "ctranslate2" in keys[0].versions


async def test_an_engine_is_measured_once(tmp_path: Path) -> None:
    cache, engine = ProbeCache(tmp_path), Measurable()
    for _ in range(3):
        assert await measured(engine, KEY, cache) == engine.outcome
    assert engine.times == 1
    engine.outcome = curve(0.2)
    assert await measured(engine, KEY, cache) == curve(0.25)
    assert await measured(engine, KEY, cache, fresh=True) == curve(0.2)
    assert await measured(engine, KEY, cache) == curve(0.2)
    assert engine.times == 2


async def test_a_measurement_without_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(EngineTimeout):
        await measured(Endless(), KEY, ProbeCache(tmp_path), deadline_seconds=0.01)
    assert not os.listdir(tmp_path)


# -------------------------------------------------------------------------------------- sizing

DRIVERS: dict[str, Callable[[], FakeNvml]] = {
    "8 GB": lambda: FakeNvml([gpu_of(8)]),
    "24 GB": lambda: FakeNvml([gpu_of(24)]),
    "80 GB": lambda: FakeNvml([gpu_of(80)]),
    "141 GB": lambda: FakeNvml([gpu_of(141)]),
    "two": lambda: FakeNvml([gpu_of(24), gpu_of(80)]),
}


@pytest.mark.parametrize(
    ("driver", "slots"), [("8 GB", 1), ("24 GB", 6), ("80 GB", 25), ("141 GB", 45), ("two", 31)]
)
@pytest.mark.parametrize("engine_mb", [500, 3000])
def test_dedicated_goes_by_the_formula_whatever_the_first_engine_took(
    driver: str, slots: int, engine_mb: int
) -> None:
    nvml = DRIVERS[driver]()
    nvml.gpus[0].used_mb = engine_mb
    found = sizing(FREE, given("dedicated", gpus=read_gpus(nvml), curve=curve(0.01)))
    assert (found.slots, found.source, found.limited_by) == (slots, "formula", "memory")
    assert "3072 MB each with 4096 MB kept free" in found.explanation
    assert f"of {nvml.gpus[0].total_mb} MB free" in found.explanation


def test_all_engines_that_are_loaded_count_as_ours() -> None:
    """When it is sized anew later, the number does not shrink because of its own engines."""
    nvml = FakeNvml([gpu_of(24, used_mb=6 * 2800)])
    loaded = (0,) * 6
    found = sizing(FREE, given("dedicated", gpus=read_gpus(nvml), loaded=loaded))
    assert found.slots == 6


def test_memory_that_others_use_is_not_ours() -> None:
    nvml = FakeNvml([gpu_of(24, used_mb=12_000 + 2_000)])
    found = sizing(FREE, given("dedicated", gpus=read_gpus(nvml)))
    assert found.slots == 3


def test_a_gpu_too_small_for_the_formula_carries_the_one_that_is_loaded() -> None:
    nvml = FakeNvml([gpu_of(8, used_mb=7000)])
    found = sizing(FREE, given("dedicated", gpus=read_gpus(nvml)))
    assert found.slots == 1 and found.explanation.startswith("No dedicated engine fits")


@pytest.mark.parametrize(
    "gpus",
    [
        read_gpus(no_driver()),
        GpuReadings((), "GPU 0 cannot be used: GPU is lost."),
        read_gpus(FakeNvml()),
    ],
)
def test_dedicated_on_a_gpu_that_cannot_be_read_does_not_guess(gpus: GpuReadings) -> None:
    found = sizing(FREE, given("dedicated", gpus=gpus, recommended=1))
    assert (found.slots, found.source) == (1, "engine")
    assert gpus.problem in found.explanation


def test_dedicated_on_a_cpu_goes_by_the_machines_memory_and_by_time() -> None:
    machine = MachineMemory(limit_mb=24_000.0, used_mb=8_000.0)
    by_memory = given("dedicated", ON_CPU, machine=machine)
    assert sizing(FREE, by_memory).slots == 4  # (16000 + 3072 - 4096) / 3072
    gpus = read_gpus(FakeNvml([gpu_of(141)]))
    assert sizing(FREE, replace(by_memory, gpus=gpus)).slots == 4, "they do not use the GPU"
    slow = sizing(FREE, replace(by_memory, curve=curve(0.25)))
    assert 1 <= slow.slots < 4 and (slow.source, slow.limited_by) == ("probe", "time")
    cores = sizing(FREE, replace(by_memory, curve=curve(0.25), cores=8))
    assert cores.slots == 4, "every engine has a core of its own"
    unknown = sizing(FREE, replace(by_memory, recommended=1, cores=2))
    assert (unknown.slots, unknown.source, unknown.limited_by) == (2, "engine", "time")


@pytest.mark.parametrize("driver", ["8 GB", "two", "none"])
def test_shared_goes_by_time_whatever_the_gpu_holds(driver: str) -> None:
    nvml = DRIVERS[driver]() if driver in DRIVERS else no_driver()
    gpus = read_gpus(nvml)
    found = [
        sizing(FREE, given("shared", gpus=gpus, curve=curve(seconds, workers=2)))
        for seconds in (0.2, 0.04)
    ]
    assert {(each.source, each.limited_by) for each in found} == {("probe", "time")}
    slots = [each.slots for each in found]
    assert slots == sorted(set(slots)) and slots[0] >= 1 and slots[1] > 10
    assert "final transcripts within 0.6 s on the GPU" in found[1].explanation


def test_two_gpus_carry_twice_as_many() -> None:
    one = sizing(FREE, given("shared", curve=curve(0.1)))
    two = sizing(FREE, given("shared", curve=curve(0.1), devices=2))
    assert two.slots == 2 * one.slots and "2 GPUs" in two.explanation


def test_taking_turns_carries_fewer() -> None:
    batched = sizing(FREE, given("shared", curve=curve(0.1)))
    turns = sizing(FREE, given("single", curve=curve(0.1)))
    assert 1 <= turns.slots < batched.slots and turns.source == "probe"


def test_longer_windows_carry_fewer() -> None:
    full = Settings(stt=SttSettings(window="full"), media=CHEAP_MEDIA)
    state = given("shared", curve=curve(0.1))
    assert sizing(full, state).slots < sizing(FREE, state).slots


def test_an_engine_too_slow_for_anybody_lets_one_in_and_says_so() -> None:
    found = sizing(FREE, given("shared", ON_CPU, curve=curve(5.0)))
    assert found.slots == 1 and "not even one caller" in found.explanation


def test_an_engine_that_was_not_measured_is_believed() -> None:
    found = sizing(FREE, given("shared", ON_CPU))
    assert (found.slots, found.source) == (4, "engine")
    assert found.explanation == "faster-whisper was not measured; it expects to carry 4 on the CPU."


def test_little_memory_of_the_machine_limits_every_mode() -> None:
    tight = MachineMemory(limit_mb=2_000.0, used_mb=1_200.0)
    found = sizing(FREE, given("shared", curve=curve(0.03), machine=tight))
    assert (found.slots, found.limited_by) == (12, "memory")  # (800 - 512) / (8 + 16)
    assert "800 MB of free memory hold 12 calls" in found.explanation


def with_media(each: float, all_calls: float = 0.9) -> Settings:
    return Settings(media=MediaSettings(call_core_share=each, core_share=all_calls))


@pytest.mark.parametrize("mode", ["shared", "dedicated", "single"])
@pytest.mark.parametrize("cores", [1, 2, 64])
def test_one_process_carries_the_media_of_so_many_calls_whatever_recognises_them(
    mode: SttMode, cores: int
) -> None:
    gpus = read_gpus(FakeNvml([gpu_of(141), gpu_of(141)]))
    state = given(mode, gpus=gpus, curve=curve(0.02), cores=cores, devices=2)
    free = sizing(FREE, state)
    assert free.slots > 50 and free.limited_by != "media"
    found = sizing(with_media(0.06), state)
    assert (found.slots, found.source, found.limited_by) == (15, free.source, "media")
    assert found.explanation == (
        f"{free.explanation} The server's own process carries about 15 calls: each takes 0.06 of a "
        "core, and its one event loop has 0.9."
    ), "what recognition alone would carry is told too"
    assert sizing(with_media(0.018), state).slots == 50
    assert sizing(with_media(0.06, all_calls=0.5), state).slots == 8
    assert sizing(with_media(1.0), state).slots == 1


def test_media_that_carry_enough_are_not_spoken_of() -> None:
    state = given("shared", ON_CPU)
    assert sizing(with_media(0.06), state) == sizing(FREE, state)
    assert sizing(with_media(0.9 / 4), state) == sizing(FREE, state)


def test_the_default_is_what_was_measured_for_the_fast_path() -> None:
    assert sizing(Settings(), given("shared", curve=curve(0.001))).slots == 30


def test_an_operator_who_wants_more_than_the_process_carries_gets_it_and_is_told() -> None:
    found = sizing(with_media(0.06), given("shared", fixed=50))
    assert (found.slots, found.limited_by) == (50, "settings")
    assert found.explanation == (
        "pool.slots is 50. The server's own process carries about 15 calls: each takes 0.06 of a "
        "core, and its one event loop has 0.9. Beyond that audio suffers."
    )
    assert sizing(with_media(0.06), given("shared", fixed=15)).explanation == "pool.slots is 15."


@pytest.mark.parametrize("mode", ["shared", "dedicated", "single"])
def test_settings_have_the_last_word(mode: SttMode) -> None:
    gpus = read_gpus(FakeNvml([gpu_of(141)]))
    state = given(mode, gpus=gpus, curve=curve(0.005), fixed=7)
    assert sizing(FREE, state) == Sizing(7, "settings", "pool.slots is 7.", "settings")
    few = settings(max_slots=3)
    assert sizing(few, state).slots == 3
    assert "pool.max_slots allows 3" in sizing(few, state).explanation
    automatic = sizing(few, replace(state, fixed=0))
    assert (automatic.slots, automatic.limited_by) == (3, "settings") or mode == "single"


# ----------------------------------------------------------------------------------- size_pool


async def test_a_pool_is_measured_at_its_first_start_and_never_again(tmp_path: Path) -> None:
    engine = Measurable()
    ours = settings(tmp_path)
    first, found = await size_pool(engine, "shared", ours, NO_GPUS)
    again, _ = await size_pool(engine, "shared", ours, NO_GPUS)
    assert first == again and first.source == "probe" and found == engine.outcome
    assert engine.times == 1
    await size_pool(engine, "shared", ours, NO_GPUS, fresh=True)
    assert engine.times == 2


@pytest.mark.parametrize(
    ("pool", "arguments"),
    [({"probe": False}, {}), ({}, {"fixed": 5}), ({}, {"measure": False})],
)
async def test_nothing_is_measured_that_nobody_needs(
    tmp_path: Path, pool: dict[str, Any], arguments: dict[str, Any]
) -> None:
    engine = Measurable()
    found, known = await size_pool(
        engine, "shared", settings(tmp_path, **pool), NO_GPUS, previous=curve(0.3), **arguments
    )
    assert engine.times == 0 and known == curve(0.3)
    assert found.source == ("settings" if "fixed" in arguments else "engine")


async def test_a_measurement_that_fails_is_done_without(tmp_path: Path) -> None:
    engine = Measurable(EngineCrashed("the worker died"))
    with structlog.testing.capture_logs() as logged:
        found, known = await size_pool(engine, "shared", settings(tmp_path), NO_GPUS)
    assert (found.source, found.slots, known) == ("engine", engine.recommended_slots, None)
    assert [line["event"] for line in logged] == ["probe_failed"]


async def test_an_engine_that_cannot_be_measured_says_what_it_carries(tmp_path: Path) -> None:
    engine = ScriptedStt()
    found, known = await size_pool(engine, "shared", settings(tmp_path), NO_GPUS)
    assert (found.slots, found.source, known) == (engine.recommended_slots, "engine", None)
    assert not os.listdir(tmp_path)
