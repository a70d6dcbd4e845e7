"""Alerts are told: in the log, as a metric, among the events, and to whom it may concern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from voice_rtc.core.alerts import AlertBook, AlertEvent, AlertReadings, Raised
from voice_rtc.metrics import Metrics

_log = structlog.get_logger("voice_rtc.pool")


class Alerting:
    """What is wrong is `core.alerts`' decision; ``note`` takes a line for the page's events."""

    def __init__(self, metrics: Metrics, note: Callable[[str], None]) -> None:
        self._book = AlertBook()
        self._metrics = metrics
        self._note = note
        self.on_alert: Callable[[AlertEvent], None] = lambda _event: None
        """Told of each alert that is raised or cleared."""

    def step(self, now: float, readings: AlertReadings) -> None:
        """Look at the readings and tell what is new."""
        for event in self._book.step(now, readings):
            alert = event.alert
            raised = isinstance(event, Raised)
            log = _log.warning if raised else _log.info
            log("alert_raised" if raised else "alert_cleared", alert=alert.name, text=alert.text)
            self._metrics.alerts_active.labels(alert.name).set(1 if raised else 0)
            self._note(f"alert {alert.name} {'raised' if raised else 'cleared'}")
            self.on_alert(event)

    def status(self, now: float) -> list[dict[str, Any]]:
        """For GET /pool."""
        return [
            {
                "name": alert.name,
                "severity": alert.severity,
                "text": alert.text,
                "since_seconds": round(now - alert.since, 1),
            }
            for alert in self._book.active
        ]
