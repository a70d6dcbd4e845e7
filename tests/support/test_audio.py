"""The test sounds are what they say."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.audio import noise, read_wav, speech_clips, tone, write_wav
from voice_rtc.core.audio import rms_dbfs


def test_a_wav_comes_back_as_it_was_written(tmp_path):
    samples = noise(0.1, seed=1, rate_hz=16_000)
    write_wav(tmp_path / "a.wav", samples)
    assert np.array_equal(read_wav(tmp_path / "a.wav"), samples)


def test_a_wav_is_read_at_another_rate(tmp_path):
    write_wav(tmp_path / "a.wav", tone(0.5, rate_hz=16_000), 16_000)
    samples = read_wav(tmp_path / "a.wav", 48_000)
    assert samples.dtype == np.int16 and len(samples) == 24_000
    assert rms_dbfs(samples) == pytest.approx(rms_dbfs(tone(0.5)), abs=0.1)


def test_real_speech_is_there_with_its_words():
    clips = speech_clips()
    assert len(clips) == 5
    assert all(1.0 < len(clip.samples) / 16_000 < 10.0 and clip.text for clip in clips)
