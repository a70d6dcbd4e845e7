"""How busy the server's own process is: how late its event loop runs, and how much it computes.

A timer beats ten times a second. How much later than due it is called is how long everything else
on the loop waits too; nothing that wakes other tasks hides it. Beats that fell into a standstill
count each, so that figures are shares of time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from voice_rtc.core.admission import ServerLoad
from voice_rtc.core.capacity import percentile

CpuSource = Callable[[], float]
"""Processor time used so far, in seconds: `time.process_time`, or a stand-in of a test."""

_BEAT_SECONDS = 0.1
_WINDOW_SECONDS = 10.0
_MOST_BEATS = round(_WINDOW_SECONDS / _BEAT_SECONDS)
_LEAST_BEATS = 20
"""Fewer say nothing yet."""
_LEAST_SPAN_SECONDS = 3.0
"""Processor time of less says nothing yet."""


class LoopWatch:
    """Use `start` and `stop` on the event loop; ``on_lag`` is told of each beat's lateness."""

    def __init__(
        self, on_lag: Callable[[float], None], cpu_seconds: CpuSource = time.process_time
    ) -> None:
        self._on_lag = on_lag
        self._cpu_seconds = cpu_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        """Loop time of the next beat."""
        self._lags: deque[float] = deque(maxlen=_MOST_BEATS)
        self._used: deque[tuple[float, float]] = deque(maxlen=_MOST_BEATS)
        """Loop time, and processor time used by then."""

    def start(self) -> None:
        """Begin to measure."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + _BEAT_SECONDS
        self._timer = loop.call_at(self._due, self._beat, loop)

    def stop(self) -> None:
        """Measure no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._due = max(self._due, now - _WINDOW_SECONDS)
        self._note(now)  # at least this one: a timer may come a clock's tick too early
        while self._due <= now:
            self._note(now)
        self._timer = loop.call_at(self._due, self._beat, loop)

    def _note(self, now: float) -> None:
        lag = max(0.0, now - self._due)
        self._lags.append(lag)
        self._on_lag(lag)
        self._due += _BEAT_SECONDS

    def load(self, now: float) -> ServerLoad:
        """Of the last ten seconds; to be asked about every second."""
        lag = percentile(self._lags, 0.95) if len(self._lags) >= _LEAST_BEATS else None
        return ServerLoad(lag, self._cores(now))

    def _cores(self, now: float) -> float | None:
        self._used.append((now, self._cpu_seconds()))
        while self._used[0][0] < now - _WINDOW_SECONDS:
            self._used.popleft()
        (since, before), (_, used) = self._used[0], self._used[-1]
        span = now - since
        return (used - before) / span if span >= _LEAST_SPAN_SECONDS else None
