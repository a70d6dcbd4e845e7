"""48 kHz to 16 kHz, as audio arrives: one output sample for every three, without buffering.

General resamplers work in blocks and hold some tens of milliseconds back, or start a thread of
their own for every stream; for a whole-number ratio a plain FIR filter does neither. Design:
windowed sinc (Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5).
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples

FACTOR = SEND_RATE_HZ // LISTEN_RATE_HZ
_TAPS = 96
_CUTOFF = 7_000 / (SEND_RATE_HZ / 2)
_KAISER_BETA = 7.0


def _filter() -> NDArray[np.float32]:
    places = np.arange(_TAPS) - (_TAPS - 1) / 2
    taps = np.sinc(_CUTOFF * places) * np.kaiser(_TAPS, _KAISER_BETA)
    normalized: NDArray[np.float32] = (taps / taps.sum()).astype(np.float32)
    return normalized


_FILTER = _filter()


class Decimator:
    """One stream. Delays by 1 ms (half the filter); state is the last 96 input samples."""

    def __init__(self) -> None:
        self._history = np.zeros(_TAPS - 1, dtype=np.float32)
        self._skip = 0

    def feed(self, samples: Samples) -> Samples:
        """48 kHz int16 mono in; 16 kHz int16 mono out, a third as many, whatever the cuts."""
        signal = np.concatenate([self._history, samples.astype(np.float32)])
        self._history = signal[-(_TAPS - 1) :]
        windows = sliding_window_view(signal, _TAPS)[self._skip :: FACTOR]
        self._skip = (self._skip - len(samples)) % FACTOR
        filtered = windows @ _FILTER
        return np.clip(np.rint(filtered), -32768, 32767).astype(np.int16)
