"""When a request is late: later than is usual for this service, and than is worth bearing."""

from __future__ import annotations

from collections import deque
from statistics import median

_NEWEST = 32
_TIMES_USUAL = 2.0


class UsualTime:
    """How long the newest answers took to begin.

    A service that always takes its time (a model on a CPU) is not asked twice for that: the second
    request would only slow down the first.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_NEWEST)

    def note(self, seconds: float) -> None:
        """One more answer began after ``seconds``."""
        self._seconds.append(seconds)

    def late_after(self, least_seconds: float) -> float:
        """Seconds after which a request is late: twice the median, ``least_seconds`` at least."""
        usual = median(self._seconds) if self._seconds else 0.0
        return max(least_seconds, _TIMES_USUAL * usual)
