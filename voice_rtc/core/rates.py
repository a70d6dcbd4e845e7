"""A bound on how often something may happen."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Bucket:
    """Lets through ``rate`` a second, and ``burst`` at once after a pause.

    ``now`` is in seconds on any clock that does not run backwards.
    """

    rate: float
    burst: float
    _left: float = field(init=False)
    _at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._left = self.burst

    def take(self, now: float) -> bool:
        """May one more pass ``now``?"""
        left = self._left + (now - self._at) * self.rate
        if left > self.burst:
            left = self.burst
        self._at = now
        passes = left >= 1.0
        self._left = left - 1.0 if passes else left
        return passes
