"""The turn model: what it is fed, what it answers, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor

from tests.support.audio import speech_clips
from voice_rtc.config import Settings
from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, silence
from voice_rtc.engines.catalog import close_engines, load_engines
from voice_rtc.engines.turn.smart_turn import SmartTurn, features
from voice_rtc.errors import EngineCrashed, EngineUnavailable

MODEL = Path(__file__).parents[1] / "data" / "turn_model" / "mean.onnx"
CLIP = speech_clips(LISTEN_RATE_HZ)[0].samples
SECONDS = 8 * LISTEN_RATE_HZ


def upstream(samples: Samples) -> np.ndarray:
    """As Pipecat makes them, with faster-whisper's spectrogram."""
    audio = samples[-SECONDS:].astype(np.float32) / 32768
    audio = np.pad(audio, (SECONDS - len(audio), 0))
    audio = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    return FeatureExtractor(feature_size=80)(audio, padding=0)[:, :800]


@pytest.mark.parametrize("times", [1, 6])
def test_the_features_are_those_that_the_model_was_made_for(times):
    # It is asked in a pause: only in the very last frame do the two spectrograms differ.
    samples = np.concatenate([np.tile(CLIP, times), silence(LISTEN_RATE_HZ // 5)])
    found = features(samples)
    assert found.shape == (80, 800) and found.dtype == np.float32
    wanted = upstream(samples)
    np.testing.assert_allclose(found[:, :-1], wanted[:, :-1], atol=1e-4)
    np.testing.assert_allclose(found[:, -1], wanted[:, -1], atol=0.01)


def test_only_the_newest_eight_seconds_count():
    long = np.tile(CLIP, 6)
    np.testing.assert_array_equal(features(long), features(long[-SECONDS:]))


async def test_it_answers_what_the_model_says():
    model = SmartTurn(MODEL)
    await model.start()
    try:
        for samples in (CLIP, CLIP[:5000], silence(0)):
            wanted = 1 / (1 + np.exp(-features(samples).mean(dtype=np.float64)))
            assert await model.completeness(samples, "") == pytest.approx(wanted, abs=1e-4)
    finally:
        await model.aclose()


@pytest.mark.parametrize("content", [None, b"", b"no model at all"])
async def test_a_file_that_is_no_model_is_told_at_the_start(tmp_path, content):
    path = tmp_path / "turn.onnx"
    if content is not None:
        path.write_bytes(content)
    model = SmartTurn(path)
    with pytest.raises(EngineUnavailable, match=r"turn\.onnx is no Smart-Turn model"):
        await model.start()
    await model.aclose()


async def test_a_model_with_another_input_is_told_at_the_start(tmp_path):
    path = tmp_path / "turn.onnx"
    path.write_bytes(MODEL.read_bytes().replace(b"input_features", b"other_features"))
    model = SmartTurn(path)
    with pytest.raises(EngineUnavailable, match="input_features"):
        await model.start()
    await model.aclose()


async def test_a_model_that_gives_no_probability_is_told_at_the_start():
    model = SmartTurn(MODEL.with_name("no_probability.onnx"))
    with pytest.raises(EngineUnavailable, match=r"-1\.5 is no probability"):
        await model.start()
    await model.aclose()


async def test_what_fails_later_is_an_error_of_the_engine():
    model = SmartTurn(MODEL)
    await model.start()
    try:
        with pytest.raises(EngineCrashed):
            await model.completeness(np.zeros((5, 5), np.int16), "")
        assert 0.0 <= await model.completeness(CLIP, "") <= 1.0
    finally:
        await model.aclose()


async def test_a_server_has_one_only_where_its_settings_name_it():
    for turns, kinds in (({}, 4), ({"model": MODEL}, 5)):
        engines = await load_engines(Settings(engines="fake", turns=turns), lambda _line: None)
        try:
            assert len(engines.infos()) == kinds
            assert (engines.turn is not None) == (kinds == 5)
            assert engines.turn is None or engines.turn.info.model == "mean.onnx"
        finally:
            await close_engines(engines)
