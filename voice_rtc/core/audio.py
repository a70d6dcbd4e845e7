"""What a piece of sound is, everywhere in this project."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]
"""Mono PCM, shape ``(n,)``, int16, full scale ±32767."""

LISTEN_RATE_HZ = 16_000
"""Rate of everything on the way in: VAD, STT and the sample clock."""

SEND_RATE_HZ = 48_000
"""Rate of everything handed to the Opus encoder (RFC 7587 section 4.1)."""

FRAME_SECONDS = 0.02
"""Packet duration (ptime) in both directions."""

SEND_FRAME_SAMPLES = 960
"""One 20 ms packet at 48 kHz."""

SILENCE_DBOV = -127
"""Level of digital silence (RFC 6464)."""


@dataclass(slots=True)  # not frozen: that doubles the time of making one. Not to be changed.
class Pcm:
    """A run of mono samples with its place on the sample clock.

    ``at`` is the index of the first sample since the start of the call (inbound) or of the reply
    (outbound), at ``rate_hz``. Inside the server this is the only time there is.
    """

    samples: Samples
    at: int
    rate_hz: int = LISTEN_RATE_HZ
    level_dbov: int | None = None
    """As the sender measured it, -127 to 0 (RFC 6464); None: not known."""

    @property
    def end(self) -> int:
        """Index of the first sample after this run."""
        return self.at + len(self.samples)

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.rate_hz


def silence(samples: int) -> Samples:
    """``samples`` zeros, int16."""
    return np.zeros(samples, dtype=np.int16)


def rms_dbfs(samples: Samples) -> float:
    """Root mean square level in dB relative to full scale; -100.0 for silence or no samples."""
    if len(samples) == 0:
        return -100.0
    mean_square = float(np.mean(np.square(samples, dtype=np.float64)))
    if mean_square < 1e-1:
        return -100.0
    return float(10.0 * np.log10(mean_square / 32767.0**2))
