"""Which GPU the next engine of ``dedicated`` goes to.

Two bounds hold at the same time: what the formula gave each GPU when the pool was sized, and what
is free on it now, when somebody else may have taken memory. A GPU that cannot be read gets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from voice_rtc.core.capacity import engines_that_fit
from voice_rtc.pool.gpu import Gpu


@dataclass(frozen=True, slots=True)
class Needs:
    """Memory in MB, as the settings say."""

    reserved_mb: float
    """Left free on each GPU."""
    engine_mb: float


@dataclass(frozen=True, slots=True)
class OnGpus:
    """How many engines there are on each GPU, by its index."""

    all: Mapping[int, int]
    """Of every kind and state."""
    loading: Mapping[int, int]
    """Of these: their memory may not be taken yet."""


def rooms(
    fits: Mapping[int, int], gpus: Sequence[Gpu], engines: OnGpus, needs: Needs
) -> dict[int, int]:
    """GPU index -> engines that it has room for still; ``fits`` is the formula's share of each."""
    found = {}
    for gpu in gpus:
        to_come = engines.loading.get(gpu.index, 0) * needs.engine_mb
        now = engines_that_fit(gpu.free_mb - to_come, needs.reserved_mb, needs.engine_mb)
        by_formula = fits.get(gpu.index, 0) - engines.all.get(gpu.index, 0)
        found[gpu.index] = max(min(now, by_formula), 0)
    return found


def emptiest(devices: Sequence[int], engines: Mapping[int, int]) -> int | None:
    """The one with the fewest engines, so that GPUs fill evenly; None without any."""
    return min(devices, key=lambda device: (engines.get(device, 0), device), default=None)
