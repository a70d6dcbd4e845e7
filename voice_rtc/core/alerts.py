"""What an operator should be told without looking.

Each rule says in one sentence what is wrong, with figures, or says nothing. An alert is raised when
its rule has spoken for ``for_seconds`` without a break and cleared when it has been silent for
``clear_seconds``; its text goes on to be the newest one meanwhile.

    name               raised when                                              severity
    -----------------  -------------------------------------------------------  --------
    pool_utilisation   90 % of the slots are leased                             warning
    line_long          many wait, or the last one will wait long                warning
    no_replica         no replica can transcribe                                critical
    ladder_up          quality is reduced; from queue_only on critical          either
    memory_pressure    memory is high, or critical                              either
    replica_flapping   replicas are replaced again and again                    warning
    engine_fallback    another engine or mode runs than the one configured      warning
    server_busy        the server's own process has no time for more calls      warning
    media_path_stock   audio takes the stock tracks, as the fast path failed    warning

An alert whose severity rises is told again. Pure: ``now`` is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["warning", "critical"]
Pressure = Literal["normal", "high", "critical"]


@dataclass(frozen=True, slots=True)
class AlertReadings:
    """How things stand."""

    slots: int = 0
    leased: int = 0
    waiting: int = 0
    max_waiting: int = 0
    eta_seconds: float | None = None
    """How long the last in the line is expected to wait."""
    ready_replicas: int = 1
    ladder_step: int = 0
    ladder_name: str = "normal"
    ladder_reason: str = ""
    queue_only_step: int = 4
    """From this step of the ladder on new callers are not served."""
    memory_pressure: Pressure = "normal"
    memory_fraction: float = 0.0
    recent_replacements: int = 0
    """Replicas replaced within the last ten minutes, because they failed."""
    fallback: str = ""
    """Why another engine or mode runs than was configured, in a sentence; empty: it does not."""
    server_busy: str = ""
    """Why the server's own process has no time for more calls, in a sentence; empty: it has."""
    media_path_stock: str = ""
    """Why audio takes the stock tracks although the fast path was wanted; empty: it does not."""


@dataclass(frozen=True, slots=True)
class Alert:
    """Something is wrong."""

    name: str
    severity: Severity
    text: str
    since: float
    """``now`` when it began, which is ``for_seconds`` before it was raised."""


@dataclass(frozen=True, slots=True)
class Raised:
    """Tell the operator: it is new, or worse than it was."""

    alert: Alert


@dataclass(frozen=True, slots=True)
class Cleared:
    """It is over."""

    alert: Alert
    """As it was last."""


AlertEvent = Raised | Cleared

Finding = tuple[Severity, str]
"""What a rule says."""


@dataclass(frozen=True, slots=True)
class AlertRules:
    """Bounds. Seconds are how long something must last."""

    utilisation: float = 0.9
    utilisation_seconds: float = 60.0
    line_share: float = 0.5
    """Of the places in the line."""
    line_eta_seconds: float = 120.0
    line_seconds: float = 30.0
    no_replica_seconds: float = 5.0
    ladder_seconds: float = 10.0
    memory_seconds: float = 10.0
    busy_seconds: float = 10.0
    flapping_replacements: int = 3
    clear_seconds: float = 30.0


@dataclass(slots=True)
class _Watch:
    """One rule and how it stands."""

    name: str
    for_seconds: Callable[[AlertRules], float]
    find: Callable[[AlertRules, AlertReadings], Finding | None]
    since: float | None = None
    """Since when it has spoken."""
    silent_since: float | None = None
    alert: Alert | None = None
    """Raised."""


class AlertBook:
    """All alerts of a server. ``rules`` may be replaced at any time."""

    def __init__(self, rules: AlertRules = AlertRules()) -> None:
        self.rules = rules
        self._watches = [_Watch(name, seconds, find) for name, seconds, find in _RULES]

    @property
    def active(self) -> tuple[Alert, ...]:
        """Alerts that are raised, critical ones first, then by age."""
        raised = [watch.alert for watch in self._watches if watch.alert is not None]
        return tuple(sorted(raised, key=lambda each: (each.severity != "critical", each.since)))

    @property
    def names(self) -> tuple[str, ...]:
        """All that may ever be raised."""
        return tuple(watch.name for watch in self._watches)

    def step(self, now: float, readings: AlertReadings) -> list[AlertEvent]:
        """Look at the readings: what is to be told. To be called each second or so."""
        events = (self._look(watch, now, readings) for watch in self._watches)
        return [event for event in events if event is not None]

    def _look(self, watch: _Watch, now: float, readings: AlertReadings) -> AlertEvent | None:
        finding = watch.find(self.rules, readings)
        if finding is None:
            return self._silent(watch, now)
        watch.silent_since = None
        watch.since = now if watch.since is None else watch.since
        severity, text = finding
        before = watch.alert
        if before is None and now - watch.since < watch.for_seconds(self.rules):
            return None
        watch.alert = Alert(watch.name, severity, text, watch.since)
        worse = before is not None and (before.severity, severity) == ("warning", "critical")
        return Raised(watch.alert) if before is None or worse else None

    def _silent(self, watch: _Watch, now: float) -> AlertEvent | None:
        if watch.alert is None:
            watch.since = None
            return None
        watch.silent_since = now if watch.silent_since is None else watch.silent_since
        if now - watch.silent_since < self.rules.clear_seconds:
            return None
        over = watch.alert
        watch.alert = watch.since = watch.silent_since = None
        return Cleared(over)

    def __repr__(self) -> str:
        return f"<AlertBook {', '.join(alert.name for alert in self.active) or 'all quiet'}>"


# -------------------------------------------------------------------------------------- rules


def _utilisation(rules: AlertRules, seen: AlertReadings) -> Finding | None:
    if not seen.slots or seen.leased < rules.utilisation * seen.slots:
        return None
    share = seen.leased / seen.slots
    return "warning", f"{seen.leased} of {seen.slots} slots are leased ({share:.0%})"


def _line_long(rules: AlertRules, seen: AlertReadings) -> Finding | None:
    if not seen.waiting:
        return None
    crowded = seen.waiting >= rules.line_share * seen.max_waiting
    slow = seen.eta_seconds is not None and seen.eta_seconds > rules.line_eta_seconds
    if not crowded and not slow:
        return None
    text = f"{seen.waiting} of at most {seen.max_waiting} callers wait"
    if seen.eta_seconds is not None:
        text += f", the last for about {seen.eta_seconds:.0f} s"
    return "warning", text


def _no_replica(_: AlertRules, seen: AlertReadings) -> Finding | None:
    if seen.ready_replicas > 0:
        return None
    return "critical", f"no speech recognition: no replica is ready, {seen.waiting} callers wait"


def _ladder_up(_: AlertRules, seen: AlertReadings) -> Finding | None:
    if not seen.ladder_step:
        return None
    why = f": {seen.ladder_reason}" if seen.ladder_reason else ""
    severity: Severity = "critical" if seen.ladder_step >= seen.queue_only_step else "warning"
    return severity, f"degraded to step {seen.ladder_step}, {seen.ladder_name}{why}"


def _memory(_: AlertRules, seen: AlertReadings) -> Finding | None:
    if seen.memory_pressure == "normal":
        return None
    severity: Severity = "critical" if seen.memory_pressure == "critical" else "warning"
    return severity, f"{seen.memory_fraction:.0%} of the memory is in use"


def _flapping(rules: AlertRules, seen: AlertReadings) -> Finding | None:
    if seen.recent_replacements < rules.flapping_replacements:
        return None
    return "warning", f"{seen.recent_replacements} replicas had to be replaced in ten minutes"


def _fallback(_: AlertRules, seen: AlertReadings) -> Finding | None:
    return ("warning", seen.fallback) if seen.fallback else None


def _server_busy(_: AlertRules, seen: AlertReadings) -> Finding | None:
    return ("warning", seen.server_busy) if seen.server_busy else None


def _media_path(_: AlertRules, seen: AlertReadings) -> Finding | None:
    if not seen.media_path_stock:
        return None
    return "warning", f"audio takes the slow stock path: {seen.media_path_stock}"


_RULES: tuple[
    tuple[
        str,
        Callable[[AlertRules], float],
        Callable[[AlertRules, AlertReadings], Finding | None],
    ],
    ...,
] = (
    ("pool_utilisation", lambda rules: rules.utilisation_seconds, _utilisation),
    ("line_long", lambda rules: rules.line_seconds, _line_long),
    ("no_replica", lambda rules: rules.no_replica_seconds, _no_replica),
    ("ladder_up", lambda rules: rules.ladder_seconds, _ladder_up),
    ("memory_pressure", lambda rules: rules.memory_seconds, _memory),
    ("replica_flapping", lambda _: 0.0, _flapping),
    ("engine_fallback", lambda _: 0.0, _fallback),
    ("server_busy", lambda rules: rules.busy_seconds, _server_busy),
    ("media_path_stock", lambda _: 0.0, _media_path),
)
