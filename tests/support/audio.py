"""Sound for tests: WAV files, tones, noise, real speech. Everything is mono int16."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples

DATA = Path(__file__).resolve().parent.parent / "data"
SPEECH = DATA / "speech"
"""Five clips of LJ Speech, each with its transcript; see the README there."""
WHISPER_SYNTHETIC = DATA / "whisper-synthetic-en"
"""A tiny Whisper model; see the README there."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One recorded sentence."""

    name: str
    samples: Samples
    text: str


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """``samples`` at another rate, in one go."""
    if from_hz == to_hz:
        return samples
    resampled: Samples = soxr.resample(samples, from_hz, to_hz)
    return resampled


def read_wav(path: Path, rate_hz: int = LISTEN_RATE_HZ) -> Samples:
    """A 16 bit WAV file as mono at ``rate_hz``; several channels are averaged."""
    with wave.open(str(path), "rb") as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{path} is not 16 bit")
        interleaved = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        channels, from_hz = file.getnchannels(), file.getframerate()
    mono = interleaved.reshape(-1, channels).mean(axis=1).round().astype(np.int16)
    return resample(mono, from_hz, rate_hz)


def write_wav(path: Path, samples: Samples, rate_hz: int = LISTEN_RATE_HZ) -> None:
    """Write mono 16 bit."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())


def speech_clips(rate_hz: int = LISTEN_RATE_HZ) -> list[Clip]:
    """All clips of real speech, in the order of their names."""
    return [
        Clip(path.stem, read_wav(path, rate_hz), path.with_suffix(".txt").read_text().strip())
        for path in sorted(SPEECH.glob("*.wav"))
    ]


def tone(
    seconds: float, hz: float = 440.0, rate_hz: int = SEND_RATE_HZ, level: float = 0.3
) -> Samples:
    """A sine; ``level`` is its peak, 1.0 full scale."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.rint(level * 32767 * np.sin(2 * np.pi * hz * times)).astype(np.int16)


def noise(seconds: float, seed: int, rate_hz: int = SEND_RATE_HZ, level: float = 0.1) -> Samples:
    """White noise, the same for the same seed; ``level`` is its RMS, 1.0 full scale."""
    random = np.random.default_rng(seed)
    values = random.normal(0.0, level * 32767, round(seconds * rate_hz))
    return np.clip(np.rint(values), -32768, 32767).astype(np.int16)


def constant(value: int, samples: int) -> Samples:
    """``samples`` times the same value: what goes in can be found again."""
    return np.full(samples, value, dtype=np.int16)
