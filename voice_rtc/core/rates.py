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
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
