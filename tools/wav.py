"""Sound files and levels for the command-line programs. Everything is mono int16."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import soxr

from voice_rtc.core.audio import SEND_RATE_HZ, Samples, rms_dbfs

AUDIBLE_DBFS = -50.0
"""A 20 ms frame louder than this can be heard; room noise and codec noise lie below."""


class UnusableWav(Exception):
    """The file cannot be read as 16 bit PCM WAV; ``str(error)`` says why."""


def read_wav(path: Path, rate_hz: int = SEND_RATE_HZ) -> Samples:
    """The file as mono at ``rate_hz``; several channels are averaged. Raises UnusableWav."""
    channels, from_hz = _read(path)
    mono = channels.mean(axis=1).round().astype(np.int16)
    return resample(mono, from_hz, rate_hz)


def read_stereo(path: Path, rate_hz: int = SEND_RATE_HZ) -> tuple[Samples, Samples]:
    """Left and right channel at ``rate_hz``. Raises UnusableWav, also for a mono file."""
    channels, from_hz = _read(path)
    if channels.shape[1] != 2:
        raise UnusableWav(f"{path} has {channels.shape[1]} channels; 2 wanted")
    left, right = (resample(np.ascontiguousarray(each), from_hz, rate_hz) for each in channels.T)
    return left, right


def _read(path: Path) -> tuple[Samples, int]:
    """All channels, shape ``(frames, channels)``, and the rate."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                raise UnusableWav(f"{path} has {8 * file.getsampwidth()} bit samples; 16 wanted")
            interleaved = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
            channels, from_hz = file.getnchannels(), file.getframerate()
    except OSError as error:
        raise UnusableWav(f"cannot read {path}: {error.strerror}") from None
    except (wave.Error, EOFError) as error:
        raise UnusableWav(f"{path} is not a PCM WAV file: {error or 'it ends early'}") from None
    whole = len(interleaved) // channels * channels
    return interleaved[:whole].reshape(-1, channels), from_hz


def write_wav(path: Path, samples: Samples, rate_hz: int = SEND_RATE_HZ) -> None:
    """Write mono 16 bit PCM. Raises UnusableWav."""
    _write(path, samples, 1, rate_hz)


def write_stereo(path: Path, left: Samples, right: Samples, rate_hz: int = SEND_RATE_HZ) -> None:
    """Write two channels, the shorter one followed by silence. Raises UnusableWav."""
    both = np.zeros((max(len(left), len(right)), 2), dtype=np.int16)
    both[: len(left), 0], both[: len(right), 1] = left, right
    _write(path, both.reshape(-1), 2, rate_hz)


def _write(path: Path, interleaved: Samples, channels: int, rate_hz: int) -> None:
    try:
        # Opened here: `wave` given a path it cannot open fails once more when it is collected.
        with path.open("wb") as raw, wave.open(raw, "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate_hz)
            file.writeframes(interleaved.astype("<i2").tobytes())
    except OSError as error:
        raise UnusableWav(f"cannot write {path}: {error.strerror}") from None


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """``samples`` at another rate, in one go."""
    if from_hz == to_hz:
        return samples
    converted: Samples = soxr.resample(samples, from_hz, to_hz)
    return converted


def is_audible(samples: Samples) -> bool:
    """Is this frame (about 20 ms) louder than `AUDIBLE_DBFS`?"""
    return rms_dbfs(samples) > AUDIBLE_DBFS
