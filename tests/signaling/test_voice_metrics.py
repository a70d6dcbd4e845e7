"""What a voice engine tells becomes metrics."""

from __future__ import annotations

from signaling.voice_metrics import watch
from voice_rtc.engines.base import TtsTiming
from voice_rtc.engines.fakes import ToneTts
from voice_rtc.engines.tts.kokoro import KokoroTts
from voice_rtc.errors import EngineCrashed, EngineTimeout
from voice_rtc.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"voice_rtc_{name}", labels)


def test_kokoro_is_counted() -> None:
    metrics, engine = Metrics(), KokoroTts()
    watch(engine, metrics)
    assert engine.watcher is not None
    engine.watcher.tts_spoke(TtsTiming(True, 0.001, 0.01, 0.02))
    engine.watcher.tts_spoke(TtsTiming(False, 0.001, 0.01, 0.02, batch=2))
    engine.watcher.tts_cancelled()
    engine.watcher.tts_fell_back(EngineTimeout("slow"))
    engine.watcher.tts_worker_died(EngineCrashed("gone"))
    assert value(metrics, "tts_piece_seconds_count", place="first") == 1
    assert value(metrics, "tts_piece_seconds_sum", place="later") == 0.02
    assert value(metrics, "engine_queue_seconds_count", engine="tts") == 2
    assert value(metrics, "tts_cancelled_total") == 1
    assert value(metrics, "tts_fallbacks_total", code="engine_timeout") == 1
    assert value(metrics, "tts_worker_restarts_total") == 1
    assert value(metrics, "engine_failures_total", engine="tts", code="engine_crashed") == 1


def test_an_engine_that_tells_nothing_is_left_alone() -> None:
    watch(ToneTts(), Metrics())
