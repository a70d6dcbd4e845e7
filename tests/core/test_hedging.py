"""When a request is late."""

from __future__ import annotations

from voice_rtc.core.hedging import UsualTime


def test_without_experience_the_least_time_counts():
    assert UsualTime().late_after(2.0) == 2.0


def test_a_quick_service_is_late_after_the_least_time():
    usual = UsualTime()
    for _ in range(5):
        usual.note(0.3)
    assert usual.late_after(2.0) == 2.0


def test_a_slow_service_is_late_after_twice_its_usual_time():
    usual = UsualTime()
    for seconds in (5.0, 6.0, 90.0):
        usual.note(seconds)
    assert usual.late_after(2.0) == 12.0


def test_only_the_newest_times_count():
    usual = UsualTime()
    usual.note(60.0)
    for _ in range(64):
        usual.note(0.1)
    assert usual.late_after(0.01) == 0.2
