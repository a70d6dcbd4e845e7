"""The figures of the audio path, and how they are written into docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np

from tools.media_bench.capacity import Capacity, Step
from tools.media_bench.measure import Cycles, Delay, Delivered
from tools.media_bench.process import Candidate, processor
from tools.media_bench.words import Words


@dataclass(slots=True)
class Noise:
    """How quiet the machine was."""

    work_before: float = 0.0
    """Seconds for a fixed piece of work on the server's core."""
    work_after: float = 0.0
    stolen: float = 0.0
    """Share of CPU time that the host gave to others meanwhile."""


@dataclass(slots=True)
class Figures:
    """All that was measured. Keys begin with the server's name."""

    seconds: float
    repeats: int
    capacity: dict[str, list[Capacity]] = field(default_factory=dict)
    """Server, or ``server+vad``, ``server+pauses`` -> climbs."""
    delay: dict[tuple[str, float], list[Delay]] = field(default_factory=dict)
    """Server and loss."""
    delivered: dict[tuple[str, str], list[Delivered]] = field(default_factory=dict)
    """Server and network."""
    words: dict[tuple[str, float], list[Words]] = field(default_factory=dict)
    """Server and loss."""
    cycles: Cycles | None = None
    noise: Noise = field(default_factory=Noise)
    skipped: list[str] = field(default_factory=list)
    """Servers that were not measured, with the reason."""

    def saved(self) -> str:
        """All of it as JSON."""
        whole = asdict(self)
        for name in ("delay", "delivered", "words"):
            whole[name] = {"/".join(map(str, key)): each for key, each in whole[name].items()}
        return json.dumps(whole, indent=1, default=_plain)


def _build() -> str:
    if sys.base_prefix == "/usr":
        return "the distribution's"
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return f"{'' if '--enable-optimizations' in options else 'not '}optimised by profile"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no figure")


def render(figures: Figures, servers: Sequence[Candidate]) -> dict[str, str]:
    """Sections of the page by name, those of which something was measured."""
    noise = figures.noise
    packages = {each.package: each.version for each in servers}
    versions = ", ".join(f"{package} {version}" for package, version in packages.items())
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs ({processor()}), Python "
        f"{platform.python_version()} ({_build()}), aiortc {metadata.version('aiortc')}, "
        f"{versions}. "
        f"Runs of each: {figures.repeats}; medians, with the least and the most in brackets; "
        f"{figures.seconds:.0f} s for each number of callers. A fixed piece of work on the "
        f"server's core took {1000 * noise.work_before:.0f} ms before and "
        f"{1000 * noise.work_after:.0f} ms after; {noise.stolen:.1%} of the CPU time was stolen."
    )
    skipped = [f"Not measured: {reason}." for reason in figures.skipped]
    found = {
        "bench_media_capacity": [_capacity(figures, servers)],
        "bench_media_network": [
            _delay(figures, servers),
            _delivered(figures, servers),
            _words(figures, servers),
        ],
        "bench_media_cycles": [_cycles(figures)],
    }
    return {
        name: "\n\n".join("\n".join(part) for part in ([head], skipped, *parts) if part)
        for name, parts in found.items()
        if any(parts)
    }


# ------------------------------------------------------------------------------------- tables


def _capacity(figures: Figures, servers: Sequence[Candidate]) -> list[str]:
    titles = {each.name: each.title for each in servers}
    lines = [
        "| server | calls on one core | CPU a call | late p50 | late p99 | asked late p99 "
        "| memory a call | went no further |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = {
        "": "", "vad": ", with voice activity detection",
        "pauses": ", both sides talk 40 %, client with DTX",
    }  # fmt: skip
    for key, climbs in figures.capacity.items():
        name, _, kind = key.partition("+")
        held = [climb.held for climb in climbs]
        best = [step for step in held if step is not None]
        ended = next((climb.ended for climb in climbs if climb.ended), "all steps held")
        cells = [
            titles[name] + notes[kind],
            _spread([step.calls if step else 0 for step in held], "{:.0f}"),
            _of(best, lambda step: 100 * step.cpu_share / step.calls, "{:.2f} %"),
            _of(best, lambda step: 1000 * step.late_p50, "{:.1f} ms"),
            _of(best, lambda step: 1000 * step.late_p99, "{:.1f} ms"),
            _of([step for step in best if step.asked_late_p99 is not None],
                lambda step: 1000 * (step.asked_late_p99 or 0.0), "{:.1f} ms"),
            _spread([climb.mb_per_call for climb in climbs], "{:.2f} MB"),
            ended,
        ]  # fmt: skip  # one line for each cell
        lines.append(f"| {' | '.join(cells)} |")
    steps = [s for climbs in figures.capacity.values() for c in climbs for s in c.steps]
    if not steps:
        return []
    disturbed = [step.disturbed for step in steps if step.disturbed]
    lines += [
        "",
        f"The bots used {max(step.bots_cpu_share for step in steps):.0%} of their core at most. "
        f"{len(disturbed)} of {len(steps)} steps were disturbed"
        + (f", such as: {disturbed[0]}." if disturbed else "."),
    ]
    return lines


def _delay(figures: Figures, servers: Sequence[Candidate]) -> list[str]:
    if not figures.delay:
        return []
    lines = [
        "| server | loss | inbound p50 | p99 | echo p50 | p99 | tones heard |",
        "|---|---|---|---|---|---|---|",
    ]
    for server in servers:
        for (name, loss), runs in figures.delay.items():
            if name != server.name:
                continue
            tones = sum(run.tones for run in runs)
            heard = sum(len(run.inbound) for run in runs)
            cells = [
                server.title, f"{100 * loss:.0f} %",
                *(_percentile([getattr(run, way) for run in runs], share)
                  for way in ("inbound", "echo") for share in (50, 99)),
                f"{heard} of {tones}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _delivered(figures: Figures, servers: Sequence[Candidate]) -> list[str]:
    if not figures.delivered:
        return []
    lines = [
        "| server | network | sound delivered | as sent | by FEC | concealed | silence instead |",
        "|---|---|---|---|---|---|---|",
    ]
    for server in servers:
        for (name, network), runs in figures.delivered.items():
            if name == server.name:
                ways: list[Callable[[Delivered], float]] = [
                    lambda run: run.sound, lambda run: run.decoded, lambda run: run.fec,
                    lambda run: run.concealed, lambda run: run.silent,
                ]  # fmt: skip
                cells = [_spread([100 * way(run) for run in runs], "{:.1f} %") for way in ways]
                lines.append(f"| {server.title} | {network} | {' | '.join(cells)} |")
    return lines


def _words(figures: Figures, servers: Sequence[Candidate]) -> list[str]:
    if not figures.words:
        return []
    lines = ["| server | loss | word error rate | sentences right |", "|---|---|---|---|"]
    for server in servers:
        for (name, loss), runs in figures.words.items():
            if name == server.name:
                rates = _spread([100 * run.error_rate for run in runs], "{:.1f} %")
                right = sum(run.right for run in runs), sum(run.sentences for run in runs)
                lines.append(
                    f"| {server.title} | {100 * loss:.0f} % | {rates} | {right[0]} of {right[1]} |"
                )
    return lines


def _cycles(figures: Figures) -> list[str]:
    if figures.cycles is None:
        return []
    before, after = figures.cycles.before, figures.cycles.after
    return [
        f"{figures.cycles.count} calls that came, talked and went, in {figures.cycles.seconds:.0f} "
        f"s: threads {before.threads} before and {after.threads} after, tasks "
        f"{before.state['tasks']} and {after.state['tasks']}, open files {before.files} and "
        f"{after.files}, memory {before.memory_mb:.1f} and {after.memory_mb:.1f} MB."
    ]


def _of(steps: Sequence[Step], value: Callable[[Step], float], form: str) -> str:
    return _spread([value(step) for step in steps], form)


def _spread(values: Iterable[float], form: str) -> str:
    known = sorted(values)
    if not known:
        return "–"
    middle, least, most = (form.format(v) for v in (statistics.median(known), known[0], known[-1]))
    return middle if least == most else f"{middle} ({least} to {most})"


def _percentile(runs: Sequence[Sequence[float]], share: float) -> str:
    found = [1000 * float(np.percentile(run, share)) for run in runs if run]
    return _spread(found, "{:.0f} ms" if found and min(found) >= 10 else "{:.1f} ms")
