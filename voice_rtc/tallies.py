"""Metrics of what happens thousands of times a second, on the event loop alone.

prometheus_client's own take a lock and look for labels and exemplars each time, a microsecond or
two; at a hundred packets a second and call that is 4 % of what a call costs. These count in plain
attributes and are made into prometheus_client's families when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally(Collector):
    """A counter without labels. Not for several threads."""

    __slots__ = ("_name", "_text", "value")

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self.value = 0
        """Since the start."""

    def inc(self) -> None:
        """One more."""
        self.value += 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For the registry."""
        yield CounterMetricFamily(self._name, self._text, value=self.value)


class TallyHistogram(Collector):
    """A histogram without labels. Not for several threads."""

    __slots__ = ("_bounds", "_counts", "_name", "_sum", "_text")

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        """``bounds`` are the upper ends of the buckets, rising; one without an end follows."""
        self._name = name
        self._text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self._sum += value
        self._counts[bisect_left(self._bounds, value)] += 1

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry; buckets count what is in those below too."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets, total = [], 0
        for name, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((name, float(total)))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)
