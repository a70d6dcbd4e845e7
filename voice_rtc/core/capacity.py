"""How many callers a machine carries. How many it takes right now is in `core.admission`.

Four answers, each from figures that somebody else measured:

- `sustainable_callers`: a latency curve (seconds per batch, by window and batch size) and a picture
  of the traffic give the number of callers whose final transcripts still come in time. It plays
  that many callers against the curve, request by request, since no formula has batching, priority
  of finals and replaced partials in it.
- `calls_of_one_process`: what the media of the calls leaves room for.
- `dedicated_slots`: the original plan's formula, one model instance per caller by free memory.
- `plan_for` and `recommendations`: what would carry so many callers, and what to change, in
  sentences for people.

Units: seconds, MB of 2**20 bytes. Everything is deterministic: the pseudo-random traffic comes
from a counter and a mixing function (splitmix64), the same in every process.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# ------------------------------------------------------------------------------ latency curves


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """One measured batch."""

    window_seconds: float
    """Audio per request, padded."""
    batch: int
    """Requests in the batch."""
    seconds: float
    """From its start to its results."""


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """What an engine was measured to need, and how many batches it runs at the same time.

    Raises ValueError for no points, or for figures that are not positive and finite.
    """

    points: tuple[LatencyPoint, ...]
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.points or self.workers < 1:
            raise ValueError("a latency curve needs a point and a worker")
        for point in self.points:
            measured = (point.window_seconds, point.batch, point.seconds)
            if not all(0 < figure < math.inf for figure in measured):
                raise ValueError(f"no latency can be measured as {point}")

    @property
    def most_batch(self) -> int:
        """The largest batch measured."""
        return max(point.batch for point in self.points)

    def seconds_for(self, window_seconds: float, batch: int) -> float:
        """Time of such a batch: between points interpolated, past the largest in proportion.

        Noise in the measurement is evened out: more audio and more requests never take less time.
        """
        windows = sorted({point.window_seconds for point in self.points})
        times = list(accumulate((self._of_window(window, batch) for window in windows), max))
        return _interpolated(windows, times, window_seconds)

    def _of_window(self, window: float, batch: int) -> float:
        mine = sorted((p.batch, p.seconds) for p in self.points if p.window_seconds == window)
        times = list(accumulate((seconds for _, seconds in mine), max))
        return _interpolated([size for size, _ in mine], times, batch)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; `from_dict` reads it."""
        rows = [[point.window_seconds, point.batch, point.seconds] for point in self.points]
        return {"workers": self.workers, "points": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyCurve:
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        try:
            rows = [(float(window), int(n), float(s)) for window, n, s in data["points"]]
            workers = int(data["workers"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a latency curve: {error!r}") from error
        return cls(tuple(LatencyPoint(*row) for row in rows), workers)


def _interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """``ys`` over rising ``xs``: flat before the first, linear between, proportional after."""
    if x >= xs[-1]:
        return ys[-1] * x / xs[-1]
    right = bisect_left(xs, x)
    if right == 0:
        return ys[0]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


# -------------------------------------------------------------------------------- simulation


@dataclass(frozen=True, slots=True)
class Traffic:
    """How callers talk."""

    talk_share: float = 0.4
    """Share of the time that a caller speaks."""
    utterance_seconds: float = 4.0
    """Mean length of an utterance; lengths are spread as a gamma distribution of shape 2."""
    partial_seconds: float | None = 0.5
    """A partial transcript is wanted so often while somebody speaks; None: never."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How an engine fills its batches: finals first, one window length per batch, and a caller's
    newest partial in place of the older one."""

    most_batch: int | None = None
    """None: the largest measured."""
    windows: tuple[float, ...] = (3.0, 5.0, 10.0, 15.0, 30.0)
    """Audio is padded to the next of these, in seconds, rising."""
    tail_seconds: float = 0.7
    """Silence behind the audio that must fit in."""
    final_window_seconds: float = 10.0
    """Shortest window of a final."""
    reserved_for_finals: int = 0
    """Workers that never take partials."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What so many callers would get."""

    callers: int
    final_p95_seconds: float
    """95 % of the finals come within this; infinite when the queue only grew."""
    partial_share: float
    """Of the partials wanted, those that were made and not replaced; 1.0 when none was wanted."""


LEAST_PARTIAL_SHARE = 0.5
"""Callers count as carried while at least so many of their partials come: endpointing reads them,
and a server that begins without them is degraded from the start."""

_HEADROOM = 0.7
_ARRIVALS = 2500
"""Requests played per simulation: enough for a steady 95th percentile, a few ms of CPU."""
_SHORTEST_SPAN = 3.0
"""Seconds played at least: a queue that grows must have time to show it."""
_LONGEST_UTTERANCE = 15.0
_SHORTEST_UTTERANCE = 0.5


def sustainable_callers(
    curve: LatencyCurve,
    goal_seconds: float,
    traffic: Traffic = Traffic(),
    batching: Batching = Batching(),
    *,
    headroom: float = _HEADROOM,
    most: int = 1000,
) -> int:
    """The largest number of callers, up to ``most``, whose final p95 is below the goal.

    Measured against ``headroom`` times ``goal_seconds``: real traffic comes in crowds, and the
    process has other things to do. 0 when not even one caller gets there.
    """

    def carried(callers: int) -> bool:
        result = simulate(curve, callers, traffic, batching, give_up_seconds=4 * goal_seconds)
        in_time = result.final_p95_seconds <= headroom * goal_seconds
        return in_time and result.partial_share >= LEAST_PARTIAL_SHARE

    return _largest(carried, most)


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest n up to ``most`` for which it holds; 5 % too small at most past 20."""
    low, high = 0, 1
    while high < most and holds(high):
        low, high = high, 2 * high
    if high >= most:
        if holds(most):
            return most
        high = most
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def simulate(
    curve: LatencyCurve,
    callers: int,
    traffic: Traffic = Traffic(),
    batching: Batching = Batching(),
    *,
    seed: int = 1,
    give_up_seconds: float = 10.0,
) -> Simulated:
    """Play ``callers`` against the curve. Stops when a final waits ``give_up_seconds``."""
    arrivals = _arrivals(callers, traffic, batching, seed)
    return _Play(curve, batching, give_up_seconds).run(callers, arrivals)


@dataclass(frozen=True, slots=True)
class _Arrivals:
    """Requests in order of time; parallel lists."""

    times: list[float]
    callers: list[int]
    windows: list[int]
    """Index into `Batching.windows`."""
    finals: list[bool]


class _Play:
    """One engine serving a list of arrivals, batch after batch."""

    def __init__(self, curve: LatencyCurve, batching: Batching, give_up_seconds: float) -> None:
        self._most = batching.most_batch or curve.most_batch
        self._give_up = give_up_seconds
        sizes = range(self._most + 1)
        self._cost = [[curve.seconds_for(w, n) for n in sizes] for w in batching.windows]
        self._finals: list[deque[float]] = [deque() for _ in batching.windows]
        self._partials: dict[int, int] = {}
        """Caller -> window. A newer partial takes the place of the older one in the line."""
        self._latencies: list[float] = []
        self._wanted = self._made = 0
        reserved = min(batching.reserved_for_finals, curve.workers - 1)
        self._idle = [(0.0, worker, worker < reserved) for worker in range(curve.workers)]
        """Heap of (free from, number, takes finals only)."""

    def run(self, callers: int, arrivals: _Arrivals) -> Simulated:
        end, at = len(arrivals.times), 0
        while True:
            now, worker, reserved = heapq.heappop(self._idle)
            while at < end and arrivals.times[at] <= now:
                at = self._arrive(arrivals, at)
            busy = self._serve(now, reserved)
            if busy is None:
                return self._result(callers, math.inf)
            if busy == 0.0:
                if at == end:
                    break
                # Nothing to do for this worker before the next arrival.
                busy = arrivals.times[at] - now
            heapq.heappush(self._idle, (now + busy, worker, reserved))
        return self._result(callers, percentile(self._latencies, 0.95) or 0.0)

    def _result(self, callers: int, p95: float) -> Simulated:
        return Simulated(callers, p95, self._made / self._wanted if self._wanted else 1.0)

    def _arrive(self, arrivals: _Arrivals, at: int) -> int:
        caller, window = arrivals.callers[at], arrivals.windows[at]
        if arrivals.finals[at]:
            self._partials.pop(caller, None)
            self._finals[window].append(arrivals.times[at])
        else:
            self._wanted += 1
            self._partials[caller] = window
        return at + 1

    def _serve(self, now: float, reserved: bool) -> float | None:
        """Start a batch: how long it takes; 0.0 for nothing to do, None to give up."""
        heads = [(line[0], window) for window, line in enumerate(self._finals) if line]
        if heads:
            return self._serve_finals(now, *min(heads))
        if not self._partials or reserved:
            return 0.0
        window = next(iter(self._partials.values()))
        batch = [caller for caller, wanted in self._partials.items() if wanted == window]
        for caller in batch[: self._most]:
            del self._partials[caller]
        count = min(len(batch), self._most)
        self._made += count
        return self._cost[window][count]

    def _serve_finals(self, now: float, oldest: float, window: int) -> float | None:
        if now - oldest > self._give_up:
            return None
        line = self._finals[window]
        count = min(len(line), self._most)
        cost = self._cost[window][count]
        self._latencies += [now + cost - line.popleft() for _ in range(count)]
        return cost


def _arrivals(callers: int, traffic: Traffic, batching: Batching, seed: int) -> _Arrivals:
    """What ``callers`` want in a stretch of time that holds about `_ARRIVALS` requests."""
    cycle = traffic.utterance_seconds / traffic.talk_share
    every = traffic.partial_seconds
    rate = (1.0 + (traffic.utterance_seconds / every if every else 0.0)) / cycle
    span = max(_ARRIVALS / (rate * callers), _SHORTEST_SPAN)
    start, length = _utterances(callers, traffic, span, seed)
    who = np.repeat(np.arange(callers), start.shape[1])
    start, length = start.ravel(), length.ravel()
    times, audio, finals = start + length, length, np.ones(len(length), dtype=np.bool_)
    if every:
        counts = np.maximum(np.ceil(length / every - 1e-9).astype(np.int64) - 1, 0)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        spoken = (np.arange(counts.sum()) - first + 1) * every
        times = np.concatenate((times, np.repeat(start, counts) + spoken))
        audio = np.concatenate((audio, spoken))
        finals = np.concatenate((finals, np.zeros(len(spoken), dtype=np.bool_)))
        who = np.concatenate((who, np.repeat(who, counts)))
    padded = np.where(finals, np.maximum(audio, batching.final_window_seconds), audio)
    padded = np.maximum(padded, audio + batching.tail_seconds)
    windows = np.minimum(np.searchsorted(batching.windows, padded), len(batching.windows) - 1)
    order = np.argsort(times, kind="stable")
    order = order[(times[order] >= 0.0) & (times[order] < span)]
    return _Arrivals(
        times[order].tolist(), who[order].tolist(), windows[order].tolist(), finals[order].tolist()
    )


Floats = NDArray[np.float64]


def _utterances(callers: int, traffic: Traffic, span: float, seed: int) -> tuple[Floats, Floats]:
    """Start and length of each caller's utterances, shape ``(callers, n)``, from before 0.0."""
    talk = traffic.utterance_seconds
    cycle = talk / traffic.talk_share
    lead = 3.0 * cycle  # by then nothing is left of the moment at which all began
    n = math.ceil((span + lead) / cycle * 1.5) + 8
    dice = _uniforms(seed, 3 * callers * n).reshape(3, callers, n)
    length = np.clip(
        -np.log(dice[0] * dice[1]) * talk / 2.0, _SHORTEST_UTTERANCE, _LONGEST_UTTERANCE
    )
    pause = -np.log(dice[2]) * (cycle - talk)
    start = np.cumsum(pause + length, axis=1) - length - lead
    return start, length


def _uniforms(seed: int, count: int) -> Floats:
    """Pseudo-random numbers in (0, 1): splitmix64 of a counter (Steele, Lea, Flood 2014)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed * 1_000_003)) * golden
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) / float(1 << 53)


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that ``share`` of them do not exceed; None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


# ------------------------------------------------------------------------------------- sizing


@dataclass(frozen=True, slots=True)
class Sizing:
    """How many slots there are to be, and why."""

    slots: int
    source: Literal["settings", "probe", "formula", "engine"]
    explanation: str
    """A sentence for people."""
    limited_by: Literal["time", "memory", "media", "settings"]
    """What would have to change for more."""
    by_device: tuple[tuple[int, int], ...] = ()
    """``dedicated`` on GPUs: index of each GPU and the engines that fit on it."""


def calls_of_one_process(call_core_share: float, core_share: float = 0.9) -> int:
    """Calls whose media one server process carries, at least 1: ``floor(core_share / each)``.

    A process has one event loop, and one interpreter lock, however many cores there are;
    ``call_core_share`` is what one talking call takes of a core, ``core_share`` what all may take.
    """
    return max(math.floor(core_share / call_core_share + 1e-9), 1)


def engines_that_fit(
    free_mb: float, reserve_mb: float = 4096.0, per_instance_mb: float = 3072.0
) -> int:
    """On one GPU: ``floor((free - reserve) / per_instance)``, the original plan's formula.

    Raises ValueError for an engine without size.
    """
    if per_instance_mb <= 0:
        raise ValueError(f"an engine cannot need {per_instance_mb} MB")
    return max(math.floor((free_mb - reserve_mb) / per_instance_mb), 0)


def dedicated_slots(
    free_mb: float | Sequence[float],
    reserve_mb: float = 4096.0,
    per_instance_mb: float = 3072.0,
    hard_limit: int | None = None,
) -> int:
    """`engines_that_fit`, summed over GPUs: ``free_mb`` is the free memory of one or of each.

    Never more than ``hard_limit``. Raises ValueError for an engine without size.
    """
    gpus = free_mb if isinstance(free_mb, Sequence) else (free_mb,)
    fit = sum(engines_that_fit(free, reserve_mb, per_instance_mb) for free in gpus)
    return fit if hard_limit is None else min(fit, hard_limit)


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What is known about the machine and its engine, for plans and advice."""

    mode: Literal["shared", "dedicated", "single"] = "shared"
    engine: str = ""
    """Short name, e.g. ``whisper`` or ``pocketsphinx``."""
    model: str = ""
    cores: int = 1
    gpus: int = 0
    torch: bool = True
    """Is PyTorch installed? The quick encoder on a GPU needs it."""

    @property
    def unit(self) -> str:
        """What carries callers here: a GPU, or the machine."""
        return "GPU" if self.gpus else "machine"


def plan_for(callers: int, sizing: Sizing, facts: MachineFacts) -> list[str]:
    """What would carry ``callers`` at the same time: how many machines or GPUs, and what else."""
    if callers <= sizing.slots:
        used = 100 * callers / sizing.slots if sizing.slots else 0.0
        plan = [f"{callers} callers fit: this machine carries {sizing.slots} ({used:.0f} % used)."]
        if used > 90:
            plan.append("That leaves little for peaks: at more than 90 % callers begin to wait.")
        return plan
    if sizing.slots <= 0:
        return [f"This machine carries nobody in time, so no number of them carries {callers}."]
    return [_multiplied(callers, sizing, facts), *_would_carry_more(sizing, facts)]


def _multiplied(callers: int, sizing: Sizing, facts: MachineFacts) -> str:
    if sizing.limited_by == "media":
        return (
            f"{callers} callers need {math.ceil(callers / sizing.slots)} server processes: each "
            f"carries the media of {sizing.slots} calls."
        )
    each = max(sizing.slots // max(facts.gpus, 1), 1)
    return (
        f"{callers} callers need {math.ceil(callers / each)} {facts.unit}s like "
        f"{'these' if facts.gpus > 1 else 'this one'}: each carries {each}."
    )


def _would_carry_more(sizing: Sizing, facts: MachineFacts) -> list[str]:
    more = []
    if sizing.limited_by == "settings":
        more.append(
            "The settings pool.slots and pool.max_slots set the number; raise them, or set "
            "pool.slots to 0 to have it measured."
        )
    if sizing.limited_by == "media":
        more.append(
            "The server's own process is what limits, with one event loop for all calls, not "
            f"recognition: further processes carry more, here ({facts.cores} CPU cores) or on "
            "other machines; so does a cheaper media path (media.call_core_share)."
        )
    if sizing.limited_by == "memory":
        more.append("Memory is what limits: a GPU with more, or a smaller model, carries more.")
    if sizing.limited_by == "time":
        more.append("The time of recognition is what limits: a smaller model carries more.")
        if not facts.gpus:
            more.append(f"So does a GPU, or more than the {facts.cores} CPU cores there are.")
    if facts.mode != "shared":
        more.append(
            "pool.mode = shared carries more callers: one engine works for many in batches."
        )
    return [*more, *_torch_missing(facts)]


def _torch_missing(facts: MachineFacts) -> list[str]:
    if not facts.gpus or facts.torch:
        return []
    return ["PyTorch would quicken the encoder on the GPU several times: install voice-rtc[gpu]."]


@dataclass(frozen=True, slots=True)
class PoolView:
    """How the pool does at the moment. None: unknown."""

    facts: MachineFacts
    slots: int
    leased: int
    waiting: int
    max_slots: int
    goal_seconds: float
    eta_seconds: float | None = None
    """Of the last in the line."""
    final_p95_seconds: float | None = None
    ladder_step: int = 0
    gpu_busy: float | None = None
    """Share of the time, 0.0 to 1.0."""
    cpu_busy: float | None = None
    memory_fraction: float | None = None
    limited_by: str = ""
    """`Sizing.limited_by`."""


_IDLE = 0.5
_BUSY = 0.9
_LONG_ETA_SECONDS = 60.0


def recommendations(view: PoolView) -> list[str]:
    """What the operator could change now, most urgent first; empty when all is well."""
    advice = [*_about_the_line(view), *_about_speed(view)]
    if view.memory_fraction is not None and view.memory_fraction >= _BUSY:
        advice.append(
            f"{view.memory_fraction:.0%} of the memory is in use: a smaller model or fewer slots "
            f"leave room."
        )
    if view.facts.engine == "pocketsphinx":
        advice.append("pocketsphinx understands commands, not dictation: use a Whisper model.")
    return [*advice, *_torch_missing(view.facts)]


def _about_the_line(view: PoolView) -> list[str]:
    long = view.eta_seconds is not None and view.eta_seconds > _LONG_ETA_SECONDS
    if not view.waiting or not (long or view.waiting > max(view.slots // 4, 1)):
        return []
    line = f"{view.waiting} callers wait for {view.slots} slots"
    if view.limited_by == "media":
        return [f"{line}: another server process shortens the line."]
    if view.slots >= view.max_slots and _has_time_left(view):
        return [f"{line} although recognition is quick enough for more: raise pool.max_slots."]
    if _has_time_left(view) and _idle(view):
        return [f"{line} while the {view.facts.unit} is half idle: raise pool.slots."]
    return [f"{line}: another {view.facts.unit} shortens the line."]


def _has_time_left(view: PoolView) -> bool:
    return view.final_p95_seconds is not None and view.final_p95_seconds < 0.6 * view.goal_seconds


def _idle(view: PoolView) -> bool:
    busy = view.gpu_busy if view.facts.gpus else view.cpu_busy
    return busy is not None and busy < _IDLE


def _about_speed(view: PoolView) -> list[str]:
    p95 = view.final_p95_seconds
    if not view.ladder_step and (p95 is None or p95 <= view.goal_seconds):
        return []
    took = f"final transcripts take {p95:.1f} s" if p95 is not None else "quality was reduced"
    advice = [f"Under load {took} (goal {view.goal_seconds:.1f} s): use a smaller model."]
    if not view.facts.gpus:
        advice.append("There is no GPU; one carries many times the callers of a CPU.")
    elif view.cpu_busy is not None and view.cpu_busy > _BUSY:
        advice.append("The CPU is the bottleneck, not the GPU: give the server more cores.")
    return advice
