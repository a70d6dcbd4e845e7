"""When the pool leaves ``dedicated`` by itself, and when it comes back.

    memory is critical            new calls get ``shared``: one engine for all needs least
    it was calm for a minute      ``dedicated`` again
    the change did not work       tried again after a while, as long as there is reason for it
    an operator chose a mode      that is the mode, and nothing is left to come back from

Decides only; `Governor` has it carried out and tells what came of it. ``now`` is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from voice_rtc.engines.base import SttMode
from voice_rtc.pool.memory import Pressure

_CALM_SECONDS = 60.0
_RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Change:
    """A mode to take without being asked."""

    before: SttMode
    mode: SttMode
    reason: str
    """A sentence's worth of why, with figures."""


class Fallback:
    """One per pool."""

    def __init__(self) -> None:
        self.away: Change | None = None
        """What was changed and is to be changed back."""
        self._going: Change | None = None
        self._calm_since: float | None = None
        self._not_before = float("-inf")

    def step(self, now: float, level: Pressure, mode: SttMode, reason: str) -> Change | None:
        """The mode to take now, if any; `done` must follow. ``reason`` is that of the pressure."""
        if self._going is not None:
            return None
        if self.away is not None and mode != self.away.mode:
            self.away = None
        wish = self._back(now, level) if self.away else self._out(level, mode, reason)
        if wish is None or now < self._not_before:
            return None
        self._going = wish
        return wish

    def _out(self, level: Pressure, mode: SttMode, reason: str) -> Change | None:
        if level != "critical" or mode != "dedicated":
            return None
        return Change(mode, "shared", reason)

    def _back(self, now: float, level: Pressure) -> Change | None:
        if self.away is None or level != "normal":
            self._calm_since = None
            return None
        self._calm_since = now if self._calm_since is None else self._calm_since
        if now - self._calm_since < _CALM_SECONDS:
            return None
        return Change(self.away.mode, self.away.before, "memory is there again")

    def chosen(self) -> None:
        """An operator chose the present mode: there is nothing to come back from."""
        self.away = None

    @property
    def sentence(self) -> str:
        """For operators; empty while the pool is in the mode that it should be in."""
        away = self.away
        return f"{away.mode} in place of {away.before}: {away.reason}" if away else ""

    def done(self, now: float, taken: bool) -> None:
        """The change was made, or could not be."""
        change, self._going, self._calm_since = self._going, None, None
        if not taken:
            self._not_before = now + _RETRY_SECONDS
        elif change is not None:
            self.away = None if self.away is not None else change
