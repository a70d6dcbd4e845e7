"""Who talks when in a recorded call: stretches of sound, gaps and overlaps. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tools.wav import AUDIBLE_DBFS
from voice_rtc.core.audio import FRAME_SECONDS, Samples, rms_dbfs

_PAUSE_SECONDS = 0.35
"""A longer silence ends a stretch."""
_SHORTEST_SECONDS = 0.06
_EDGE_SECONDS = 0.8
"""A stretch is not cut nearer to its ends than this."""
_CUT_WINDOW = 5
"""Frames over which a place to cut is looked for."""


@dataclass(frozen=True, slots=True)
class Talk:
    """One stretch of sound of one side. Seconds since the recording began."""

    who: str
    start: float
    end: float
    dbfs: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Moment:
    """A stretch and how it came after what was before."""

    talk: Talk
    gap: float | None
    """Silence of both since the last sound of the other side; None when there was none, or the
    same side spoke last."""
    overlap: float
    """How long the other side goes on under it; 0.0 where it begins in silence."""


def talks(
    samples: Samples, rate_hz: int, who: str, audible_dbfs: float = AUDIBLE_DBFS
) -> list[Talk]:
    """The stretches of one channel."""
    size = round(FRAME_SECONDS * rate_hz)
    loud = [number for number, level in enumerate(_levels(samples, size)) if level > audible_dbfs]
    found = []
    for first, last in _runs(loud, round(_PAUSE_SECONDS / FRAME_SECONDS)):
        start, end = first * FRAME_SECONDS, (last + 1) * FRAME_SECONDS
        if end - start >= _SHORTEST_SECONDS:
            level = rms_dbfs(samples[first * size : (last + 1) * size])
            found.append(Talk(who, start, end, level))
    return found


def _levels(samples: Samples, size: int) -> list[float]:
    return [rms_dbfs(samples[at : at + size]) for at in range(0, len(samples), size)]


def _runs(numbers: Sequence[int], most_apart: int) -> Iterator[tuple[int, int]]:
    first = before = None
    for number in numbers:
        if first is None or before is None:
            first = number
        elif number - before > most_apart:
            yield first, before
            first = number
        before = number
    if first is not None and before is not None:
        yield first, before


def exchange(caller: Sequence[Talk], agent: Sequence[Talk]) -> list[Moment]:
    """Both sides' stretches in order of time."""
    moments = []
    for talk in sorted([*caller, *agent], key=lambda each: each.start):
        other = agent if talk in caller else caller
        earlier = [each for each in [*caller, *agent] if each.start < talk.start]
        under = [each.end for each in other if each.start < talk.start < each.end]
        last = max(earlier, key=lambda each: each.end, default=None)
        takes_turn = last is not None and last.who != talk.who and not under
        gap = talk.start - last.end if last is not None and takes_turn else None
        overlap = min(max(under), talk.end) - talk.start if under else 0.0
        moments.append(Moment(talk, gap, overlap))
    return moments


def cut_up(samples: Samples, rate_hz: int, longest_seconds: float) -> list[Samples]:
    """Pieces of at most ``longest_seconds``, cut where it is quietest."""
    if len(samples) <= longest_seconds * rate_hz:
        return [samples]
    size = round(FRAME_SECONDS * rate_hz)
    energies = np.array([10 ** (level / 10) for level in _levels(samples, size)])
    smooth = np.convolve(energies, np.ones(_CUT_WINDOW), mode="same")
    edge = round(_EDGE_SECONDS / FRAME_SECONDS)
    cut = (edge + int(np.argmin(smooth[edge : len(smooth) - edge]))) * size
    pieces = cut_up(samples[:cut], rate_hz, longest_seconds)
    return pieces + cut_up(samples[cut:], rate_hz, longest_seconds)
