"""What the voice engine tells, as metrics."""

from __future__ import annotations

from voice_rtc.engines.base import SupportsTtsWatcher, TtsEngine, TtsTiming
from voice_rtc.errors import EngineError
from voice_rtc.metrics import Metrics


class VoiceMetrics:
    """Implements `TtsWatcher`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def tts_spoke(self, timing: TtsTiming) -> None:
        """A piece was spoken."""
        place = "first" if timing.first else "later"
        self._metrics.tts_piece_seconds.labels(place).observe(timing.total_seconds)
        self._metrics.engine_queue_seconds.labels("tts").observe(timing.queue_seconds)

    def tts_cancelled(self) -> None:
        """A piece was taken back."""
        self._metrics.tts_cancelled_total.inc()

    def tts_fell_back(self, error: EngineError) -> None:
        """Another voice goes on."""
        self._metrics.tts_fallbacks_total.labels(error.code).inc()

    def tts_worker_died(self, error: EngineError) -> None:
        """It is started again."""
        self._metrics.engine_failures_total.labels("tts", error.code).inc()
        self._metrics.tts_worker_restarts_total.inc()


def watch(tts: TtsEngine, metrics: Metrics) -> None:
    """Have ``tts`` counted, where it has something to tell."""
    if isinstance(tts, SupportsTtsWatcher):
        tts.watcher = VoiceMetrics(metrics)
