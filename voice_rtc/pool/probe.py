"""How many slots: what an engine was measured to carry, the settings and the memory, put together.

    pool.slots set           that many                                              settings
    shared, single           a latency curve, measured once and kept on disk,       probe
                             and traffic played against it (`core.capacity`)
    dedicated                floor((free - 4 GB) / 3 GB) of each GPU                formula
    an engine without curve  what it says itself                                    engine

Never more than pool.max_slots, nor more calls than the machine's own memory holds, nor than one
server process carries the media of. A measurement takes some ten seconds, so its result is kept
under all that it depends on: another model, GPU or version is measured again. Answers the original
plan's automatic pool sizing.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, ParamSpec, TypeVar

import psutil
import structlog

from voice_rtc import __version__
from voice_rtc.config import Settings, cache_folder
from voice_rtc.core.capacity import (
    Batching,
    LatencyCurve,
    Sizing,
    Traffic,
    calls_of_one_process,
    engines_that_fit,
    sustainable_callers,
)
from voice_rtc.engines.base import EngineInfo, SttEngine, SttMode, SupportsProbe
from voice_rtc.errors import EngineError, EngineTimeout
from voice_rtc.pool.gpu import NO_GPUS, GpuReadings
from voice_rtc.pool.memory import MachineMemory, MemorySource, read_machine

_log = structlog.get_logger("voice_rtc.pool")

P = ParamSpec("P")
T = TypeVar("T")

_FILE = "probe.json"
_FORMAT = 1
_MOST_ENTRIES = 32
_DEADLINE_SECONDS = 60.0
_CALL_MB = 16.0
"""Of the server's memory for one call beside the audio it keeps: connection, codecs, buffers."""
_KEPT_FREE_MB = 512.0
"""Of the machine's memory, when calls are counted that fit into it."""


# --------------------------------------------------------------------------------------- cache


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """All that a measurement depends on. Two that are equal give the same curve."""

    engine: str
    model: str
    """Name and placement, e.g. ``base (cpu int8, 2 workers)``."""
    weights: str
    """Path, size and time of change of a local model; empty for one of the hub."""
    device: str
    """GPU or processor."""
    cpus: int
    mode: str
    options: str
    """Settings that change what a batch costs."""
    versions: str

    def text(self) -> str:
        """One line, the same for equal keys."""
        return "; ".join(str(getattr(self, name)) for name in self.__slots__)


def probe_key(
    info: EngineInfo, mode: SttMode, settings: Settings, gpus: GpuReadings = NO_GPUS
) -> ProbeKey:
    """The key of an engine that is started."""
    stt = settings.stt
    options = (
        f"compute={stt.compute_type} workers={stt.workers} batch={stt.batch} beam={stt.beam_size} "
        f"window={stt.window} final={stt.final_window_seconds:g} encoder={stt.encoder} "
        f"processor={stt.processor}"
    )
    names = ", ".join(sorted({gpu.name for gpu in gpus.usable}))
    return ProbeKey(
        engine=info.name,
        model=info.model,
        weights=_weights(stt.model),
        device=(names or "unknown GPU") if on_gpu(info) else _processor(),
        cpus=psutil.cpu_count() or 1,
        mode=mode,
        options=options,
        versions=f"voice-rtc {__version__}, {_version('ctranslate2')}, {_version('torch')}",
    )


def on_gpu(info: EngineInfo) -> bool:
    """Does the started engine run on a GPU? Its model's placement says so."""
    return "cuda" in info.model


def _weights(model: str) -> str:
    file = Path(model).expanduser() / "model.bin"
    try:
        found = file.stat()
    except OSError:
        return ""
    return f"{file.resolve()} {found.st_size} {found.st_mtime_ns}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


class ProbeCache:
    """Latency curves in one JSON file, newest last; the oldest go when there are too many.

    A file that cannot be read or written costs a measurement, never a start. Blocks for the time
    of a small file.
    """

    def __init__(self, directory: Path, most: int = _MOST_ENTRIES) -> None:
        self.path = directory / _FILE
        self._most = most

    def get(self, key: ProbeKey) -> LatencyCurve | None:
        """The curve that was put under an equal key; None when there is none that can be used."""
        data = self._read().get(key.text())
        if data is None:
            return None
        try:
            return LatencyCurve.from_dict(data)
        except ValueError as error:
            _log.warning("probe_cache_damaged", path=str(self.path), error=str(error))
            return None

    def put(self, key: ProbeKey, curve: LatencyCurve) -> None:
        """Keep it. What another process wrote since the last look is kept too."""
        entries = self._read()
        entries.pop(key.text(), None)
        entries[key.text()] = curve.to_dict()
        newest = dict(list(entries.items())[-self._most :])
        try:
            self._write(json.dumps({"format": _FORMAT, "curves": newest}, indent=1))
        except OSError as error:
            _log.warning("probe_cache_not_written", path=str(self.path), error=str(error))

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("probe_cache_damaged", path=str(self.path), error=str(error))
            return {}
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            return {}  # of another version: it is simply written anew
        curves = content.get("curves")
        return curves if isinstance(curves, dict) else {}

    def _write(self, text: str) -> None:
        """In one step: who reads at the same time sees the old file or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            "w", encoding="utf-8", dir=self.path.parent, prefix=".probe-", delete=False
        ) as file:
            try:
                file.write(text)
                file.flush()
                os.replace(file.name, self.path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise


async def measured(
    engine: SupportsProbe,
    key: ProbeKey,
    cache: ProbeCache,
    *,
    fresh: bool = False,
    deadline_seconds: float = _DEADLINE_SECONDS,
) -> LatencyCurve:
    """The engine's curve: from the cache, else measured now and kept. ``fresh`` measures anyway.

    Raises EngineError; EngineTimeout after ``deadline_seconds``.
    """
    curve = None if fresh else cache.get(key)
    if curve is not None:
        return curve
    try:
        async with asyncio.timeout(deadline_seconds):
            curve = await engine.measure()
    except TimeoutError:
        raise EngineTimeout(f"no measurement within {deadline_seconds:g} s") from None
    cache.put(key, curve)
    return curve


# -------------------------------------------------------------------------------------- sizing


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What `sizing` goes by, beside the settings."""

    mode: SttMode
    info: EngineInfo
    """Of the engine, started."""
    recommended: int
    """What the engine itself expects to carry."""
    gpus: GpuReadings
    machine: MachineMemory
    curve: LatencyCurve | None = None
    fixed: int = 0
    """Slots that somebody asked for; 0: as many as can be carried."""
    devices: int = 1
    """Devices that a ``shared`` engine runs on."""
    cores: int = 1
    loaded: tuple[int, ...] = (0,)
    """Device of each engine that is loaded already: the memory it uses counts as its own."""

    @property
    def on_gpu(self) -> bool:
        """Do the engines run on GPUs?"""
        return on_gpu(self.info)


def sizing(settings: Settings, given: Circumstances) -> Sizing:
    """How many slots, from where the number comes, and why. Takes up to half a second."""
    pool = settings.pool
    if given.fixed:
        slots = min(given.fixed, pool.max_slots)
        text = f"pool.slots is {given.fixed}."
        if slots < given.fixed:
            text = f"{given.fixed} slots were asked for; pool.max_slots allows {slots}."
        if slots > _media_calls(settings):
            text = f"{text} {_media_sentence(settings)} Beyond that audio suffers."
        return Sizing(slots, "settings", text, "settings")
    if given.mode == "dedicated":
        wanted = _dedicated(settings, given)
    else:
        wanted = _by_time(settings, given)
    wanted = _that_is_carried(settings, _that_fits(settings, given, wanted))
    if wanted.slots > pool.max_slots:
        text = f"{wanted.explanation} pool.max_slots allows {pool.max_slots}."
        return replace(wanted, slots=pool.max_slots, explanation=text, limited_by="settings")
    return wanted


def _by_time(settings: Settings, given: Circumstances) -> Sizing:
    """``shared`` and ``single``: by the curve, else what the engine says."""
    where = _where(given)
    if given.curve is None:
        slots = max(given.recommended, 1) * given.devices
        text = f"{given.info.name} was not measured; it expects to carry {slots} on {where}."
        return Sizing(slots, "engine", text, "time")
    each = _carried(settings, given, given.curve)
    if each == 0:
        text = f"Measured: not even one caller gets {_goal(settings)} on {where}; one is let in."
        return Sizing(1, "probe", text, "time")
    slots = each * given.devices
    text = f"Measured: {_callers(slots)} {_goal(settings)} on {where}."
    return Sizing(slots, "probe", text, "time")


def _where(given: Circumstances) -> str:
    if not given.on_gpu:
        return "the CPU"
    return f"{given.devices} GPUs" if given.devices > 1 else "the GPU"


def _goal(settings: Settings) -> str:
    return f"final transcripts within {settings.pool.final_goal_seconds:g} s"


def _callers(number: int) -> str:
    return "1 caller gets" if number == 1 else f"{number} callers get"


def _carried(settings: Settings, given: Circumstances, curve: LatencyCurve) -> int:
    """By one engine."""
    stt = settings.stt
    alone = given.mode != "shared"
    batching = Batching(
        most_batch=1 if alone else None,
        final_window_seconds=stt.final_window_seconds,
        reserved_for_finals=int(given.on_gpu and curve.workers > 1),
    )
    if stt.window == "full":
        batching = replace(batching, windows=(30.0,))
    traffic = Traffic(partial_seconds=stt.partial_seconds)
    goal = settings.pool.final_goal_seconds
    most = settings.pool.max_slots + 1  # one more tells whether the setting is what limits
    return sustainable_callers(curve, goal, traffic, batching, most=most)


def _dedicated(settings: Settings, given: Circumstances) -> Sizing:
    """One engine per slot: by memory; on a CPU, which all engines share, by time too."""
    pool = settings.pool
    if given.on_gpu and not any(gpu.total_mb for gpu in given.gpus.usable):
        why = given.gpus.problem or "No GPU was found."
        text = f"The memory of the GPU is not known, so no more engines are loaded. {why}"
        return Sizing(max(len(given.loaded), 1), "engine", text, "memory")
    free, figures = _free_for_engines(settings, given)
    each = [
        engines_that_fit(size, pool.reserved_memory_mb, pool.instance_memory_mb) for size in free
    ]
    fit = sum(each)
    slots = max(fit, 1)
    rule = f"{pool.instance_memory_mb} MB each with {pool.reserved_memory_mb} MB kept free"
    text = f"{slots} dedicated {'engine fits' if slots == 1 else 'engines fit'}, {rule}: {figures}."
    if fit == 0:
        text = f"No dedicated engine fits, {rule}, but one is loaded: {figures}."
    by_memory = Sizing(slots, "formula", text, "memory")
    if given.on_gpu:
        devices = (gpu.index for gpu in given.gpus.usable)
        return replace(by_memory, by_device=tuple(zip(devices, each, strict=True)))
    if given.curve is None:
        in_time = max(given.recommended, given.cores)
        why = f"Not measured, and the engines share {given.cores} CPU cores: {in_time} are loaded."
        return by_memory if in_time >= slots else Sizing(in_time, "engine", why, "time")
    # Each has a thread of its own, so all cores work, however many threads one engine has.
    all_cores = replace(given.curve, workers=max(given.curve.workers, given.cores))
    in_time = max(_carried(settings, given, all_cores), 1)
    if in_time >= slots:
        return by_memory
    text = f"Measured: {_callers(in_time)} {_goal(settings)}; the engines share the CPU. {text}"
    return Sizing(in_time, "probe", text, "time")


def _free_for_engines(settings: Settings, given: Circumstances) -> tuple[list[float], str]:
    """Memory of each place that engines could have, those that are loaded included."""
    each = settings.pool.instance_memory_mb
    if given.on_gpu:
        free = [
            min(gpu.free_mb + each * given.loaded.count(gpu.index), gpu.total_mb)
            for gpu in given.gpus.usable
        ]
        figures = (
            f"GPU {gpu.index}, {gpu.name}, has {gpu.free_mb} of {gpu.total_mb} MB free"
            for gpu in given.gpus.usable
        )
        return [float(size) for size in free], "; ".join(figures)
    machine = given.machine
    room = min(machine.available_mb + each * len(given.loaded), machine.limit_mb)
    return [room], f"the machine has {machine.available_mb:.0f} of {machine.limit_mb:.0f} MB free"


def _that_fits(settings: Settings, given: Circumstances, wanted: Sizing) -> Sizing:
    """Every call needs memory of the server itself, whatever its engine runs on."""
    each = settings.pool.call_memory_mb + _CALL_MB
    fit = max(int((given.machine.available_mb - _KEPT_FREE_MB) / each), 1)
    if wanted.slots <= fit:
        return wanted
    text = (
        f"{wanted.explanation} The machine's {given.machine.available_mb:.0f} MB of free memory "
        f"hold {fit} calls."
    )
    return replace(wanted, slots=fit, explanation=text, limited_by="memory")


def _that_is_carried(settings: Settings, wanted: Sizing) -> Sizing:
    """Audio of all calls goes through one event loop, whatever recognises it."""
    calls = _media_calls(settings)
    if wanted.slots <= calls:
        return wanted
    text = f"{wanted.explanation} {_media_sentence(settings)}"
    return replace(wanted, slots=calls, explanation=text, limited_by="media")


def _media_calls(settings: Settings) -> int:
    return calls_of_one_process(settings.media.share_of_a_call, settings.media.core_share)


def _media_sentence(settings: Settings) -> str:
    media, number = settings.media, _media_calls(settings)
    calls = "1 call" if number == 1 else f"{number} calls"
    return (
        f"The server's own process carries about {calls}: each takes {media.share_of_a_call:g} of "
        f"a core, and its one event loop has {media.core_share:g}."
    )


async def size_pool(
    engine: SttEngine,
    mode: SttMode,
    settings: Settings,
    gpus: GpuReadings,
    *,
    fixed: int = 0,
    devices: int = 1,
    loaded: Sequence[int] = (0,),
    memory: MemorySource = read_machine,
    measure: bool = True,
    fresh: bool = False,
    previous: LatencyCurve | None = None,
) -> tuple[Sizing, LatencyCurve | None]:
    """Size a pool whose first engine is started: the slots, and the curve that is known now.

    Measures where the number depends on it and the settings allow it; ``measure`` false takes what
    is in the cache; ``fresh`` measures in any case. A measurement that fails is logged and done
    without. ``previous`` is the curve to return when there is no other. ``loaded`` and ``devices``
    as in `Circumstances`.
    """
    given = Circumstances(
        mode,
        engine.info,
        engine.recommended_slots,
        gpus,
        memory(()),
        fixed=fixed,
        devices=devices,
        cores=psutil.cpu_count() or 1,
        loaded=tuple(loaded),
    )
    by_memory = mode == "dedicated" and given.on_gpu
    wanted = measure and settings.pool.probe and not fixed and not by_memory
    curve = await curve_of(engine, mode, settings, gpus, measure=wanted, fresh=fresh)
    if curve is None:
        return sizing(settings, given), previous
    # The calls of a running server must not stand still while traffic is played.
    return await _off_the_loop(sizing, settings, replace(given, curve=curve)), curve


async def curve_of(
    engine: SttEngine,
    mode: SttMode,
    settings: Settings,
    gpus: GpuReadings,
    *,
    measure: bool,
    fresh: bool = False,
) -> LatencyCurve | None:
    """The engine's curve from the cache, or measured if it may be; None when there is none."""
    if not isinstance(engine, SupportsProbe):
        return None
    cache = ProbeCache(cache_folder(settings))
    key = probe_key(engine.info, mode, settings, gpus)
    if not measure and not fresh:
        return cache.get(key)
    try:
        return await measured(engine, key, cache, fresh=fresh)
    except EngineError as error:
        _log.warning("probe_failed", engine=engine.info.name, code=error.code, error=str(error))
        return None


async def _off_the_loop(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    executor = ThreadPoolExecutor(1, "pool-sizing")
    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, lambda: work(*args, **kwargs))
    finally:
        executor.shutdown(wait=False)
