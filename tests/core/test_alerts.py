"""Alerts: what raises them, how long it must last, and that they end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from voice_rtc.core.alerts import AlertBook, AlertEvent, AlertReadings, AlertRules, Cleared, Raised
from voice_rtc.core.ladder import QUEUE_ONLY

RULES = AlertRules()
QUIET = AlertReadings(slots=20, leased=5, max_waiting=100, ready_replicas=2)


class Story:
    """A book looked at once a second."""

    def __init__(self) -> None:
        self.book = AlertBook(RULES)
        self.now = 0.0
        self.told: list[tuple[float, AlertEvent]] = []

    def live(self, seconds: int, readings: AlertReadings) -> list[str]:
        """Names of the alerts that are raised afterwards."""
        for _ in range(seconds):
            self.now += 1.0
            self.told += [(self.now, event) for event in self.book.step(self.now, readings)]
        return [alert.name for alert in self.book.active]


TROUBLES = [
    (
        "pool_utilisation", 60, "warning", "18 of 20 slots are leased (90%)",
        replace(QUIET, leased=18),
    ),
    ("line_long", 30, "warning", "50 of at most 100 callers wait", replace(QUIET, waiting=50)),
    (
        "line_long", 30, "warning", "3 of at most 100 callers wait, the last for about 300 s",
        replace(QUIET, waiting=3, eta_seconds=300.0),
    ),
    (
        "no_replica", 5, "critical", "no speech recognition: no replica is ready, 0 callers wait",
        replace(QUIET, ready_replicas=0),
    ),
    (
        "ladder_up", 10, "warning", "degraded to step 2, no_partials: too slow",
        replace(QUIET, ladder_step=2, ladder_name="no_partials", ladder_reason="too slow"),
    ),
    (
        "ladder_up", 10, "critical", "degraded to step 4, queue_only",
        replace(QUIET, ladder_step=4, ladder_name="queue_only"),
    ),
    (
        "memory_pressure", 10, "warning", "88% of the memory is in use",
        replace(QUIET, memory_pressure="high", memory_fraction=0.88),
    ),
    (
        "memory_pressure", 10, "critical", "95% of the memory is in use",
        replace(QUIET, memory_pressure="critical", memory_fraction=0.95),
    ),
    (
        "replica_flapping", 0, "warning", "3 replicas had to be replaced in ten minutes",
        replace(QUIET, recent_replacements=3),
    ),
    ("engine_fallback", 0, "warning", "no GPU: whisper on the CPU",
     replace(QUIET, fallback="no GPU: whisper on the CPU")),
    ("server_busy", 10, "warning", "80 ms late", replace(QUIET, server_busy="80 ms late")),
    ("media_path_stock", 0, "warning", "audio takes the slow stock path: no such name",
     replace(QUIET, media_path_stock="no such name")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seconds", "severity", "text", "readings"), TROUBLES)
def test_trouble_that_lasts_is_told_once(name, seconds, severity, text, readings):
    story = Story()
    assert story.live(seconds, readings) == []
    assert story.live(1, readings) == [name]
    story.live(100, readings)
    [(_, event)] = story.told
    assert isinstance(event, Raised)
    alert = event.alert
    assert (alert.name, alert.severity, alert.text, alert.since) == (name, severity, text, 1.0)


@pytest.mark.parametrize(("name", "seconds", "severity", "text", "readings"), TROUBLES)
def test_trouble_that_is_over_is_cleared_after_a_while(name, seconds, severity, text, readings):
    story = Story()
    story.live(seconds + 1, readings)
    story.told.clear()
    assert story.live(30, QUIET) == [name]
    assert story.live(1, QUIET) == []
    [(_, event)] = story.told
    assert isinstance(event, Cleared) and event.alert.name == name


def test_quiet_is_quiet():
    story = Story()
    assert story.live(1000, QUIET) == [] and story.told == []
    assert story.live(100, AlertReadings(slots=0, leased=0)) == []
    assert repr(story.book) == "<AlertBook all quiet>"


@pytest.mark.parametrize(
    "almost",
    [
        replace(QUIET, leased=17),
        replace(QUIET, waiting=49, eta_seconds=120.0),
        replace(QUIET, waiting=0, max_waiting=0, eta_seconds=999.0),
        replace(QUIET, recent_replacements=2),
        replace(QUIET, memory_fraction=0.99),
    ],
)
def test_almost_is_not_enough(almost):
    assert Story().live(500, almost) == []


def test_interrupted_trouble_starts_over():
    story = Story()
    for _ in range(20):
        story.live(59, replace(QUIET, leased=20))
        story.live(1, QUIET)
    assert story.told == []


def test_trouble_that_comes_back_soon_was_never_away():
    story = Story()
    full = replace(QUIET, leased=20)
    story.live(61, full)
    for _ in range(10):
        story.live(20, QUIET)
        story.live(5, full)
    assert len(story.told) == 1
    assert story.book.active[0].since == 1.0


def test_the_text_follows_the_figures_without_a_new_alert():
    story = Story()
    story.live(61, replace(QUIET, leased=18))
    story.live(1, replace(QUIET, leased=20))
    assert story.book.active[0].text == "20 of 20 slots are leased (100%)"
    assert len(story.told) == 1


def test_what_gets_worse_is_told_again_and_what_gets_better_is_not():
    story = Story()
    high = replace(QUIET, memory_pressure="high", memory_fraction=0.9)
    story.live(20, high)
    story.live(20, replace(high, memory_pressure="critical"))
    story.live(20, high)
    severities = [event.alert.severity for _, event in story.told]
    assert severities == ["warning", "critical"]
    assert story.book.active[0].severity == "warning"


def test_critical_alerts_come_first():
    story = Story()
    story.live(70, replace(QUIET, leased=20, fallback="no GPU"))
    both = replace(QUIET, leased=20, fallback="no GPU", ready_replicas=0)
    assert story.live(7, both) == ["no_replica", "pool_utilisation", "engine_fallback"]
    assert "no_replica" in repr(story.book)


def test_the_names_are_known_beforehand():
    assert set(AlertBook().names) == {name for name, *_ in TROUBLES}


def test_the_ladder_and_the_alerts_agree_on_the_step_that_turns_callers_away():
    assert AlertReadings().queue_only_step == QUEUE_ONLY


def test_rules_may_change_at_run_time():
    story = Story()
    story.book.rules = replace(RULES, utilisation_seconds=5.0)
    assert story.live(6, replace(QUIET, leased=20)) == ["pool_utilisation"]
