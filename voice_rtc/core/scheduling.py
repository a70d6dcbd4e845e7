"""Who is transcribed next, and with whom: batches of one speech recogniser.

Pure: no threads, no clock. A worker that has nothing to do asks `BatchScheduler.next_batch`; with
several threads there is a lock around the object.

    Finals before partials         a caller waits for the Final; a partial is a courtesy
    Finals: oldest deadline first
    Partials: the caller served longest ago first; a newer one takes an older one's place
    A final that is to be alone: nothing runs beside it, nothing begins before it is done
    A batch is of one kind and one window, given by the request that is due first

The audio of a batch is padded to one length, its *window*: a short window costs less, a longer one
is what the model was trained with. `WindowPolicy` decides which.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil
from operator import attrgetter

WINDOWS_SECONDS = (3.0, 5.0, 10.0, 15.0, 30.0)
"""Lengths that audio is padded to; few, so that requests find company."""
FULL_WINDOW_SECONDS = 30.0
"""What Whisper was trained with, and the most it takes."""
_PIECE_SECONDS = 25.0
"""Longer audio is transcribed in pieces of so much at least, up to a full window."""
_BATCHES_KEPT = 32


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """How long the window of a request is."""

    tail_pad_seconds: float = 0.7
    """Silence that is wanted behind the last word: without it words are lost or repeated."""
    final_window_seconds: float = 10.0
    """Finals get at least this window: repetitions and losses become more frequent below it."""
    full: bool = False
    """Every window is the full one."""

    def for_partial(self, audio_seconds: float) -> float:
        """The shortest window that the audio fits into."""
        return FULL_WINDOW_SECONDS if self.full else self._shortest(audio_seconds)

    def for_final(self, audio_seconds: float, *, economy: bool = False) -> float:
        """The shortest window that is long enough to be trusted; in economy as for a partial."""
        if self.full:
            return FULL_WINDOW_SECONDS
        least = 0.0 if economy else self.final_window_seconds - self.tail_pad_seconds
        return self._shortest(max(audio_seconds, least))

    def second_try(self, window_seconds: float, *, doubtful: bool, economy: bool) -> float | None:
        """The window for a final whose first result is doubtful; None: let it stand."""
        if doubtful and not economy and window_seconds < FULL_WINDOW_SECONDS:
            return FULL_WINDOW_SECONDS
        return None

    def _shortest(self, audio_seconds: float) -> float:
        wanted = audio_seconds + self.tail_pad_seconds
        return next((window for window in WINDOWS_SECONDS if window >= wanted), FULL_WINDOW_SECONDS)


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """One piece of audio to be transcribed."""

    key: int
    """Names the utterance. One final and one partial of it may wait at the same time."""
    caller: int
    final: bool
    audio_seconds: float
    window_seconds: float
    """One of `WINDOWS_SECONDS`."""
    deadline: float
    """Finals: which goes first. Partials: when it is of no use any more."""
    arrival: float
    alone: bool = False
    """Finals: nothing else may run at the same time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that run together."""

    number: int
    """Rises for ever."""
    final: bool
    window_seconds: float
    requests: tuple[TranscriptionRequest, ...]
    started_at: float

    @property
    def windows_each(self) -> float:
        """Full windows that a request of it takes on average: more than 1 of long audio."""
        windows = (max(1, ceil(each.audio_seconds / _PIECE_SECONDS)) for each in self.requests)
        return sum(windows) / len(self.requests)

    @property
    def alone(self) -> bool:
        """May nothing run beside it?"""
        return any(request.alone for request in self.requests)


@dataclass(frozen=True, slots=True)
class BatchRules:
    """Bounds of the batches."""

    most_finals: int = 8
    most_partials: int = 8
    partial_seconds: float = float("inf")
    """Windows of one batch of partials, summed; a single one may be longer. A final that comes
    meanwhile waits for the end of that batch, or shares the device with it."""
    workers: int = 1
    """Batches that may run at the same time."""
    reserved_for_finals: int = 0
    """Workers that partials leave free; less than ``workers``."""
    gather_seconds: float = 0.0
    """How long a batch that is not full waits for company, from its first request on."""
    ride_along_share: float = 0.0
    """Share of a batch that may be filled up with requests of shorter windows. They cost as much
    as the long ones, so only where a batch's time hardly depends on its size."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """What waits now and what has been done since the start."""

    waiting_finals: int
    waiting_partials: int
    running: int
    finals: int
    """Finals that were put into a batch."""
    partials: int
    batches: int
    rode_along: int
    """Requests that ran in a longer window than their own."""
    replaced: int
    """Partials that a newer one or the final made needless."""
    late: int
    """Partials dropped because their deadline passed."""
    withdrawn: int
    """Requests that their caller did not want any more."""
    batch_mean: float
    """Mean size of the newest batches; 0.0 before the first."""


class BatchScheduler:
    """Requests in, batches out. ``now`` is any monotonic clock in seconds."""

    def __init__(self, rules: BatchRules) -> None:
        if not 0 <= rules.reserved_for_finals < rules.workers:
            raise ValueError("a worker must be left for partials")
        self.rules = rules
        self._finals: dict[int, TranscriptionRequest] = {}
        self._partials: dict[int, TranscriptionRequest] = {}
        """Caller -> its one waiting partial."""
        self._turns: dict[int, int] = {}
        """Caller -> turn at which it was last served, or at which it first asked."""
        self._next_turn = count()
        self._numbers = count(1)
        self._running: dict[int, Batch] = {}
        self._counts: Counter[str] = Counter()
        self._sizes: deque[int] = deque(maxlen=_BATCHES_KEPT)

    def add(self, request: TranscriptionRequest) -> None:
        """Line ``request`` up. Raises ValueError for an utterance whose final waits already."""
        if request.key in self._finals:
            raise ValueError(f"the final of utterance {request.key} is waiting already")
        if request.final:
            self._finals[request.key] = request
            waiting = self._partials.get(request.caller)
            if waiting is not None and waiting.key <= request.key:
                del self._partials[request.caller]
                self._counts["replaced"] += 1
            return
        if request.caller in self._partials:
            self._counts["replaced"] += 1
        # As if served now: a stranger waits behind all who wait, and nobody starves.
        self._turns.setdefault(request.caller, next(self._next_turn))
        self._partials[request.caller] = request

    def withdraw(self, key: int) -> None:
        """Forget what waits of an utterance; a batch that runs is not changed."""
        if self._finals.pop(key, None) is not None:
            self._counts["withdrawn"] += 1
        self._drop_partials(lambda partial: partial.key == key, "withdrawn")

    def withdraw_partials(self) -> None:
        """Forget all partials that wait."""
        self._drop_partials(lambda _: True, "withdrawn")

    def forget(self, caller: int) -> None:
        """The caller has nothing open any more; its turn is not remembered."""
        if caller not in self._partials:
            self._turns.pop(caller, None)

    def next_batch(self, now: float) -> Batch | None:
        """The batch that is to run now on a worker that is free, None when there is none.

        Follow it up with `finished`. After None ask again at `next_wakeup` or after the next `add`.
        """
        self._drop_partials(lambda partial: partial.deadline < now, "late")
        if len(self._running) >= self.rules.workers:
            return None
        chosen = self._choice()
        if not chosen or now < self._due(chosen):
            return None
        batch = Batch(
            number=next(self._numbers),
            final=chosen[0].final,
            window_seconds=chosen[0].window_seconds,
            requests=tuple(chosen),
            started_at=now,
        )
        self._start(batch)
        return batch

    def finished(self, batch: Batch) -> None:
        """The batch ran, well or not: its worker is free."""
        self._running.pop(batch.number, None)

    def next_wakeup(self) -> float | None:
        """When `next_batch` is to be asked again though nothing was added; None: not needed."""
        if len(self._running) >= self.rules.workers:
            return None
        chosen = self._choice()
        return self._due(chosen) if chosen else None

    def busy_seconds(self, now: float) -> float:
        """How long the oldest batch has been running, for each window; 0.0 when none is."""
        running = self._running.values()
        return max(((now - each.started_at) / each.windows_each for each in running), default=0.0)

    def statistics(self) -> SchedulerStatistics:
        """For metrics and status pages."""
        counts = self._counts
        return SchedulerStatistics(
            waiting_finals=len(self._finals),
            waiting_partials=len(self._partials),
            running=len(self._running),
            finals=counts["finals"],
            partials=counts["partials"],
            batches=counts["batches"],
            rode_along=counts["rode_along"],
            replaced=counts["replaced"],
            late=counts["late"],
            withdrawn=counts["withdrawn"],
            batch_mean=sum(self._sizes) / len(self._sizes) if self._sizes else 0.0,
        )

    def __repr__(self) -> str:
        waiting = f"{len(self._finals)} finals and {len(self._partials)} partials waiting"
        return f"<BatchScheduler: {waiting}, {len(self._running)} batches running>"

    # ----------------------------------------------------------------------- who is next

    def _choice(self) -> list[TranscriptionRequest]:
        """The requests of the next batch, the one that gives the window first; may be empty."""
        rules = self.rules
        if any(batch.alone for batch in self._running.values()):
            return []
        if self._finals:
            by_deadline = attrgetter("deadline", "arrival", "key")
            finals = sorted(self._finals.values(), key=by_deadline)
            if finals[0].alone:
                return [] if self._running else finals[:1]
            return self._fill([each for each in finals if not each.alone], rules.most_finals)
        partial_batches = sum(not batch.final for batch in self._running.values())
        if partial_batches >= rules.workers - rules.reserved_for_finals:
            return []
        # One at a time of each caller: two workers would tell the newer one first.
        in_progress = {r.caller for b in self._running.values() if not b.final for r in b.requests}
        waiting = [p for p in self._partials.values() if p.caller not in in_progress]
        waiting.sort(key=lambda partial: self._turns[partial.caller])
        return self._fill(waiting, self._most_partials(waiting))

    def _most_partials(self, waiting: Sequence[TranscriptionRequest]) -> int:
        if not waiting:
            return 0
        fit = self.rules.partial_seconds / waiting[0].window_seconds
        return max(1, int(min(self.rules.most_partials, fit)))

    def _fill(
        self, waiting: Sequence[TranscriptionRequest], most: int
    ) -> list[TranscriptionRequest]:
        if not waiting:
            return []
        window = waiting[0].window_seconds
        chosen = [each for each in waiting if each.window_seconds == window][:most]
        riders = min(most - len(chosen), int(most * self.rules.ride_along_share))
        shorter = [each for each in waiting if each.window_seconds < window]
        return chosen + shorter[:riders]

    def _due(self, chosen: Sequence[TranscriptionRequest]) -> float:
        """When a batch of these may start: at once when it is full."""
        earliest = min(request.arrival for request in chosen)
        most = self.rules.most_finals if chosen[0].final else self._most_partials(chosen)
        return earliest if len(chosen) >= most else earliest + self.rules.gather_seconds

    # ------------------------------------------------------------------------- bookkeeping

    def _start(self, batch: Batch) -> None:
        for request in batch.requests:
            if request.final:
                del self._finals[request.key]
            else:
                del self._partials[request.caller]
                self._turns[request.caller] = next(self._next_turn)
        self._running[batch.number] = batch
        self._sizes.append(len(batch.requests))
        self._counts["batches"] += 1
        self._counts["finals" if batch.final else "partials"] += len(batch.requests)
        self._counts["rode_along"] += _shorter(batch.requests, batch.window_seconds)

    def _drop_partials(self, unwanted: Callable[[TranscriptionRequest], bool], why: str) -> None:
        for caller in [c for c, partial in self._partials.items() if unwanted(partial)]:
            del self._partials[caller]
            self._counts[why] += 1


def _shorter(requests: Iterable[TranscriptionRequest], window_seconds: float) -> int:
    return sum(request.window_seconds < window_seconds for request in requests)
