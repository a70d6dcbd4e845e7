"""How long things took lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from voice_rtc.core.capacity import percentile

_WINDOW_SECONDS = 60.0
_MOST_TIMES = 512


class RollingTimes:
    """The newest durations of the last minute, at most 512, and their percentiles."""

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque(maxlen=_MOST_TIMES)

    def add(self, now: float, seconds: float) -> None:
        """One more."""
        self._times.append((now, seconds))

    def percentile(
        self, now: float, share: float, *, since: float = float("-inf"), least: int = 1
    ) -> float | None:
        """Of those that came after ``since``; None when they are fewer than ``least``."""
        found = [seconds for at, seconds in self._newest(now) if at > since]
        return percentile(found, share) if len(found) >= least else None

    def per_minute(self, now: float) -> float:
        """How many there were in the last minute."""
        return float(sum(1 for _ in self._newest(now)))

    def _newest(self, now: float) -> Iterator[tuple[float, float]]:
        while self._times and self._times[0][0] < now - _WINDOW_SECONDS:
            self._times.popleft()
        return iter(self._times)
