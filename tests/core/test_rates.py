"""What a bucket lets through."""

from voice_rtc.core.rates import Bucket


def test_a_burst_passes_and_then_the_rate() -> None:
    bucket = Bucket(rate=10.0, burst=20.0)
    assert [bucket.take(100.0) for _ in range(25)] == [True] * 20 + [False] * 5
    assert [bucket.take(100.05), bucket.take(100.11), bucket.take(100.12)] == [False, True, False]


def test_a_pause_fills_it_no_further_than_the_burst() -> None:
    bucket = Bucket(rate=10.0, burst=3.0)
    assert all(bucket.take(0.0) for _ in range(3))
    assert sum(bucket.take(1000.0) for _ in range(10)) == 3
