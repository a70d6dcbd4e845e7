"""Our log-mel against faster-whisper's."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.audio import noise, speech_clips, tone
from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, silence
from voice_rtc.engines.stt.mel import HOP, log_mel

SPEECH = speech_clips()[1].samples
FIVE_SECONDS = 5 * LISTEN_RATE_HZ
SOUNDS = {
    "speech": SPEECH[: 3 * LISTEN_RATE_HZ],
    "speech up to the window's end": SPEECH[:FIVE_SECONDS],
    "speech up to 100 samples before it": SPEECH[: FIVE_SECONDS - 100],
    "loud only in the last samples": np.r_[silence(FIVE_SECONDS - 20), SPEECH[9000:9020]],
    "full noise": noise(5.0, 1, LISTEN_RATE_HZ, 0.3),
    "tone": tone(1.0, 300.0, LISTEN_RATE_HZ),
    "very quiet noise": noise(1.0, 2, LISTEN_RATE_HZ, 0.00005),
    "one sample": np.array([12345], np.int16),
    "shorter than the mirrored edge": SPEECH[8000:8150],
    "as long as the mirrored edge": SPEECH[8000:8200],
    "no multiple of a frame": SPEECH[: 160 * 77 + 41],
    "silence": silence(8000),
    "nothing": silence(0),
}  # fmt: skip


def upstream(audio: Samples, mels: int, frames: int) -> np.ndarray:
    """faster-whisper's features of the audio padded with zeros."""
    from faster_whisper.feature_extractor import FeatureExtractor

    padded = np.zeros(frames * HOP, dtype=np.float32)
    padded[: len(audio)] = audio / np.float32(32768)
    return FeatureExtractor(feature_size=mels)(padded)[:, :frames]


@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize("mels", [80, 128])
def test_it_is_what_faster_whisper_computes(sound: str, mels: int) -> None:
    features = log_mel(SOUNDS[sound], mels, 500)
    assert features.dtype == np.float32
    assert features.flags.c_contiguous
    np.testing.assert_allclose(features, upstream(SOUNDS[sound], mels, 500), atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [300, 1000, 3000])
def test_other_windows(frames: int) -> None:
    audio = SPEECH[: 3 * LISTEN_RATE_HZ]
    np.testing.assert_allclose(
        log_mel(audio, 80, frames), upstream(audio, 80, frames), atol=1e-4, rtol=0
    )


def test_floats_are_what_int16_is() -> None:
    audio = SPEECH[:20000]
    floats = audio.astype(np.float32) / 32768
    np.testing.assert_array_equal(log_mel(floats, 80, 200), log_mel(audio, 80, 200))


def test_audio_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 100 frames"):
        log_mel(silence(16001), 80, 100)
