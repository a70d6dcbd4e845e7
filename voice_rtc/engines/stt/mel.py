"""Whisper's log-mel spectrogram in numpy, of the audio alone rather than of the padded window.

Source of the numbers: openai/whisper ``audio.py`` and librosa's Slaney mel scale, as in
faster-whisper's ``feature_extractor.py``, whose result this equals. Silence behind the audio
has one constant value, so only frames that touch audio are transformed.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples

Features = NDArray[np.float32]
"""Log-mel spectrogram, shape ``[mels, frames]``, or ``[batch, mels, frames]``."""

HOP = 160
"""Samples from one frame to the next: 10 ms."""
FRAMES_PER_SECOND = LISTEN_RATE_HZ // HOP
WINDOW = 400
"""Samples under the Hann window: 25 ms, centred on the frame."""
FLOOR = -10.0
"""log10 of the smallest power told apart, also that of silence."""
RANGE = 8.0
"""Powers more than so many decades below the loudest are raised to there."""
FULL_SCALE = 32768.0
_EDGE = WINDOW // 2
# Frames transformed at a time: buffers this small stay in the cache and are not mapped anew.
_BLOCK = 64
# Rows of one matrix product: OpenBLAS starts no threads for it. They wait by spinning, which on a
# busy machine took forty times as long as the product.
_ROWS = 8
_HIGHEST_MEL = 45.245640471924965
_BREAK_HZ = 1000.0
_HZ_PER_MEL = 200.0 / 3


def log_mel(audio: Samples | NDArray[np.float32], mels: int, frames: int) -> Features:
    """Features of 16 kHz mono audio followed by silence up to ``frames``, normalised by itself.

    ``audio`` is int16, or float32 with full scale 1.0, and fits into the frames.
    Returns float32 ``[mels, frames]``. Raises ValueError when the audio is longer.
    """
    touched = frames_touched(len(audio), frames)
    if not touched:
        return np.full((mels, frames), normal(FLOOR), dtype=np.float32)
    logs = _log_powers(_padded(audio, touched), touched, mel_filters(mels).T)
    lowest = float(logs.max()) - RANGE
    features = np.full((mels, frames), normal(max(FLOOR, lowest)), dtype=np.float32)
    kept = min(touched, frames)
    features[:, :kept] = normal(np.maximum(logs[:kept], np.float32(lowest))).T
    return features


def frames_touched(samples: int, frames: int) -> int:
    """How many frames see any of ``samples``; one more than ``frames`` when they are full.

    That one is no feature, but upstream counts it when it looks for the loudest.
    """
    if samples > frames * HOP:
        raise ValueError(f"{samples} samples do not fit into {frames} frames of {HOP}")
    return min(-(-(samples + _EDGE) // HOP), frames + 1) if samples else 0


def normal(logs: NDArray[np.float32] | float) -> NDArray[np.float32]:
    """Upstream's scaling of log10 powers, about -1 to 1 for speech."""
    return np.asarray((logs + 4.0) / 4.0, dtype=np.float32)


@cache
def hann() -> NDArray[np.float32]:
    """The periodic Hann window, ``[400]``."""
    window: NDArray[np.float32] = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    return window


@cache
def mel_filters(mels: int) -> NDArray[np.float32]:
    """Triangular filters of equal area on the Slaney mel scale, 0 to 8000 Hz, ``[mels, 201]``."""
    bins_hz = np.fft.rfftfreq(WINDOW, 1.0 / LISTEN_RATE_HZ)
    points = np.linspace(0.0, _HIGHEST_MEL, mels + 2)
    edges_hz = points * _HZ_PER_MEL
    # Linear below 1 kHz, above it 27 steps to a factor of 6.4.
    break_mel = _BREAK_HZ / _HZ_PER_MEL
    above = points >= break_mel
    edges_hz[above] = _BREAK_HZ * np.exp(np.log(6.4) / 27.0 * (points[above] - break_mel))
    widths = np.diff(edges_hz)[:, None]
    distances = edges_hz[:, None] - bins_hz[None, :]
    rising, falling = -distances[:-2] / widths[:-1], distances[2:] / widths[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return filters.astype(np.float32)


def _log_powers(
    padded: NDArray[np.float32], touched: int, filters: NDArray[np.float32]
) -> NDArray[np.float32]:
    """log10 of the mel powers, ``[touched, mels]``."""
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    bins, mels = filters.shape
    logs = np.empty((len(windows), mels), dtype=np.float32)
    for start in range(0, len(windows), _BLOCK):
        block = slice(start, start + _BLOCK)
        spectrum = np.fft.rfft(windows[block] * hann(), axis=1)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        logs[block] = (power.reshape(-1, _ROWS, bins) @ filters).reshape(-1, mels)
    np.maximum(logs, 10.0**FLOOR, out=logs)
    np.log10(logs, out=logs)
    return logs[:touched]


def _padded(audio: Samples | NDArray[np.float32], touched: int) -> NDArray[np.float32]:
    """The audio with its start mirrored before it and silence behind.

    Long enough for ``touched`` frames and as many more as make whole products.
    """
    whole = -(-touched // _ROWS) * _ROWS
    padded = np.zeros(whole * HOP + 2 * WINDOW, dtype=np.float32)
    body = padded[_EDGE:]
    body[: len(audio)] = audio
    if audio.dtype == np.int16:
        body /= FULL_SCALE
    padded[:_EDGE] = body[_EDGE:0:-1]
    return padded[: (whole - 1) * HOP + WINDOW]
