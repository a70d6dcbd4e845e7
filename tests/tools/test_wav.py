"""Reading and writing sound files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from tests.support.audio import tone
from tools.wav import (
    UnusableWav,
    is_audible,
    read_stereo,
    read_wav,
    resample,
    write_stereo,
    write_wav,
)
from voice_rtc.core.audio import silence


def write(path: Path, channels: int, width: int, frames: bytes, rate_hz: int = 48_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(frames)
    return path


def test_what_is_written_is_read_back(tmp_path):
    samples = tone(0.1)
    write_wav(tmp_path / "a.wav", samples)
    assert np.array_equal(read_wav(tmp_path / "a.wav"), samples)


def test_channels_are_averaged(tmp_path):
    stereo = np.array([[100, 300], [-100, 100]], dtype="<i2")
    path = write(tmp_path / "a.wav", 2, 2, stereo.tobytes())
    assert read_wav(path).tolist() == [200, 0]


def test_two_channels_of_different_length_are_read_back(tmp_path):
    left, right = tone(0.2), tone(0.1, 880.0)
    write_stereo(tmp_path / "a.wav", left, right)
    first, second = read_stereo(tmp_path / "a.wav")
    assert np.array_equal(first, left)
    assert np.array_equal(second, np.concatenate([right, silence(len(left) - len(right))]))


def test_one_channel_is_not_stereo(tmp_path):
    write_wav(tmp_path / "a.wav", tone(0.1))
    with pytest.raises(UnusableWav, match="1 channels"):
        read_stereo(tmp_path / "a.wav")


def test_other_rates_are_converted(tmp_path):
    path = write(tmp_path / "a.wav", 1, 2, tone(0.5, rate_hz=22_050).tobytes(), 22_050)
    assert len(read_wav(path, 16_000)) == 8000


def test_resampling_keeps_the_level():
    assert np.abs(resample(tone(0.5), 48_000, 16_000)).max() == pytest.approx(9830, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b"not a sound"), "not a PCM WAV file"),
        (lambda path: path.write_bytes(b""), "not a PCM WAV file"),
        (lambda path: write(path, 1, 1, b"\x80" * 100), "8 bit"),
    ],
)
def test_an_unusable_file_says_why(tmp_path, make, message):
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(UnusableWav, match=message):
        read_wav(path)


def test_a_file_that_cannot_be_written_says_why(tmp_path):
    with pytest.raises(UnusableWav, match="cannot write"):
        write_wav(tmp_path / "nowhere" / "a.wav", silence(10))


def test_speech_level_is_audible_and_hiss_is_not():
    assert is_audible(tone(0.02, level=0.01))
    assert not is_audible(tone(0.02, level=0.001))
    assert not is_audible(silence(0))
