"""Tallies look to Prometheus as its own counters and histograms do."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from voice_rtc.tallies import Tally, TallyHistogram

BOUNDS = (0.005, 0.01, 1.0)
VALUES = (0.0, 0.005, 0.0051, 0.5, 3.0, 7.0)


def rendered(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)


def test_a_tally_is_rendered_as_a_counter() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("frames", "Frames.")
    ours.register(tally)
    counter = Counter("frames", "Frames.", registry=theirs)
    for _ in range(3):
        tally.inc()
        counter.inc()
    assert rendered(ours) == rendered(theirs)
    assert ours.get_sample_value("frames_total") == 3


def test_its_histogram_is_rendered_as_a_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = TallyHistogram("late_seconds", "Late.", BOUNDS)
    ours.register(tally)
    histogram = Histogram("late_seconds", "Late.", buckets=BOUNDS, registry=theirs)
    for value in VALUES:
        tally.observe(value)
        histogram.observe(value)
    assert rendered(ours) == rendered(theirs)
