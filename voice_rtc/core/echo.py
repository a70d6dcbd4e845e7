"""Is that the caller, or our own voice coming back? What comes in, against what we played.

A client without echo cancellation sends the agent's voice back, a little later, softer, coloured by
a room and a codec. Its waveform is of no use then, but the rise and fall of its loudness is: both
signals become log energies of 12 bands (200 to 3800 Hz), 100 times a second, and what came in
during the last 0.8 s is correlated with what was played, at every delay from 0 to 0.6 s. Each band
is compared about its own mean, so that gain and colour of the way back do not count; the best delay
is the answer.

Measured with the five clips of tests/data/speech, each as the agent's voice and others as the
caller's, through a random room (decay 10 ms) and a delay of 50 to 400 ms, noise at -60 dBFS, the
voices at -20 dBFS; `EchoMonitor.similarity` of 100 windows each:

    what came in                              2 %    50 %   98 %   from 0.7 on
    ----------------------------------------  -----  -----  -----  -----------
    echo at -10 dB                            0.88   0.93   0.96   100 %
    echo at -20 dB                            0.87   0.93   0.96   100 %
    echo at -30 dB                            0.81   0.89   0.93   100 %
    the caller alone                          0.07   0.33   0.58   0 %
    the caller and an echo of -10 dB          0.13   0.35   0.54   0 %
    the same, the caller began 0.1 s ago      0.38   0.81   0.95   66 %
    the same, 0.2 s ago                       0.29   0.64   0.94   39 %
    the same, 0.4 s ago                       0.16   0.49   0.82   14 %

`tests/core/test_echo.py` measures smaller samples again. Less does not do: with one band over 0.5 s
the 98th percentile of a caller alone was 0.95, the 2nd of an echo of -30 dB 0.55.

**Beginnings are alike**: the agent's voice out of silence and, a moment later, the caller's. So
only what a voice said since it began is compared, 0.3 s at least. The less there is, the more alike
it is by chance, which is taken off (`_chance`); before that, 200 windows each:

    seconds of the voice             0.3   0.4   0.5   0.6   0.8
    -------------------------------  ----  ----  ----  ----  ----
    the caller, 99th percentile      0.78  0.73  0.74  0.67  0.63
    echo of -20 dB, 5th percentile   0.58  0.68  0.85  0.88  0.89
    echo of -20 dB, median           0.93  0.93  0.93  0.93  0.93

A first echo in a call is thus known 0.4 to 0.5 s after it began; until then it lowers the reply.
Once a call is known to have one, what came in before the voice counts as well, and the next echo is
recognised as it begins.

Nothing is computed until somebody speaks over a reply: `EchoMonitor.played` keeps a reference to
each frame, which takes 0.6 microseconds, 0.003 % of a core. A look takes about 0.6 ms; at one every
0.15 s that is 0.4 % of a core while there is an overlap, and 0.02 % for a call in which one
twentieth of the agent's speech is spoken over.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples, silence

_HOP = LISTEN_RATE_HZ // 100
_FRAME = 2 * _HOP
_WINDOW_HOPS = 80
_DELAY_HOPS = 60
_BANDS = 12
_LOWEST_HZ, _HIGHEST_HZ = 200.0, 3800.0
_FLOOR = 10 ** (-35 / 10)
"""Of the loudest band in the window: what is softer is noise, whose log would wander about."""
_SILENT = (10 ** (-60 / 20) * 32767) ** 2 * _FRAME**2 / 8
"""Power in all bands below which nothing was played that could come back: a sine of -60 dBFS."""
_DECIMATION = SEND_RATE_HZ // LISTEN_RATE_HZ
_CHANCE = 0.12
_KNOWN = 0.75
"""From there on a call is known to have an echo."""
_JITTER_SECONDS = 0.06
"""A frame that comes so little late was meant to follow the one before."""

HEARD_SAMPLES = (_WINDOW_HOPS - 1) * _HOP + _FRAME
"""How much 16 kHz audio `EchoMonitor.similarity` looks at."""
_LEAST_HOPS = 30
_MATURE_HOPS = 60
_SINCE_HOPS = 100
"""The newest voice may have ended so long ago."""
_PLAYED_HOPS = _WINDOW_HOPS + _DELAY_HOPS + _SINCE_HOPS
_KEEP_SAMPLES = (_PLAYED_HOPS + 10) * _HOP * _DECIMATION

LONGEST_DELAY_SECONDS = _DELAY_HOPS / 100
"""An echo that comes later is not recognised."""

Powers = NDArray[np.float32]
"""Shape ``(hops, bands)``."""


class EchoMonitor:
    """The newest sound that one call was sent. Times are seconds on the call's clock."""

    def __init__(self) -> None:
        self._frames: deque[Samples] = deque()  # not analysed yet
        self._waiting = 0
        self._end = 0.0
        self._rest = np.zeros(0, np.float32)  # 16 kHz, less than a frame
        self._powers: Powers = np.zeros((_PLAYED_HOPS, _BANDS), np.float32)
        self._known = False

    def played(self, samples: Samples, at_seconds: float) -> None:
        """``samples`` (48 kHz, not to be changed afterwards) go out at ``at_seconds``."""
        gap = at_seconds - self._end
        if gap > _JITTER_SECONDS:
            self._append(silence(min(round(gap * SEND_RATE_HZ), _KEEP_SAMPLES)))
            self._end = at_seconds
        self._append(samples)
        self._end += len(samples) / SEND_RATE_HZ

    def similarity(self, heard: Samples, voiced: int, until_seconds: float) -> float:
        """How much ``heard`` is what was played a moment ago: 0 not at all, 1 exactly.

        ``heard`` (16 kHz; the last `HEARD_SAMPLES` of it count) ends at ``until_seconds`` with
        ``voiced`` samples of a voice. 0 when that is too little to tell, or nothing was played that
        could be in it.
        """
        self._analyse()
        if not self._known:
            heard = heard[-voiced:] if voiced else heard[:0]
        heard = heard[-HEARD_SAMPLES:]
        hops = (len(heard) - _FRAME) // _HOP + 1
        played = self._played_until(until_seconds)[-hops - _DELAY_HOPS :]
        if hops < _LEAST_HOPS or played.sum(axis=1).max() < _SILENT:
            return 0.0
        similar = _best_match(_logs(_powers(heard)), _logs(played)) - _chance(hops)
        self._known = self._known or (hops >= _MATURE_HOPS and similar > _KNOWN)
        return max(0.0, similar)

    def _played_until(self, seconds: float) -> Powers:
        """The newest powers of what was played up to then."""
        later = round((self._end - seconds) * 100)
        if later >= 0:
            return self._powers[: max(0, len(self._powers) - later)]
        silent = min(-later, len(self._powers))
        return np.pad(self._powers[silent:], ((0, silent), (0, 0)))

    @property
    def kept_seconds(self) -> float:
        """How much sound waits to be looked at."""
        return self._waiting / SEND_RATE_HZ

    def _append(self, samples: Samples) -> None:
        self._frames.append(samples)
        self._waiting += len(samples)
        while self._waiting - len(self._frames[0]) >= _KEEP_SAMPLES:
            self._waiting -= len(self._frames.popleft())

    def _analyse(self) -> None:
        """Take in what was played since the last time."""
        if not self._frames:
            return
        fine = np.concatenate(self._frames).astype(np.float32)
        self._frames.clear()
        self._waiting = 0
        fine = fine[: len(fine) // _DECIMATION * _DECIMATION]
        # Averages of three are no good low-pass, but good enough for 200 to 3800 Hz.
        thirds = [fine[offset::_DECIMATION] for offset in range(_DECIMATION)]
        coarse = np.concatenate([self._rest, np.add.reduce(thirds) / _DECIMATION])
        hops = max(0, (len(coarse) - _FRAME) // _HOP + 1)
        self._rest = coarse[hops * _HOP :]
        if hops:
            self._powers = np.concatenate([self._powers, _powers(coarse)])[-_PLAYED_HOPS:]


def _powers(samples: Samples | NDArray[np.float32]) -> Powers:
    frames = np.lib.stride_tricks.sliding_window_view(samples, _FRAME)[::_HOP]
    spectrum = np.fft.rfft(frames.astype(np.float32) * _TAPER, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    powers: Powers = np.add.reduceat(power, _EDGES, axis=1)[:, :_BANDS]
    return powers


def _logs(powers: Powers) -> Powers:
    logs: Powers = np.log(powers + (powers.max() * _FLOOR + 1.0))
    return logs


def _chance(hops: int) -> float:
    """By how much more a voice resembles what was played when less of it is compared."""
    return _CHANCE * (_WINDOW_HOPS / hops - 1)


def _best_match(heard: Powers, played: Powers) -> float:
    """The highest correlation of ``heard`` with as long a part of ``played``; both are logs."""
    hops = len(heard)
    heard = heard - heard.mean(axis=0)
    flat = np.ascontiguousarray(played).ravel()
    parts = np.lib.stride_tricks.sliding_window_view(flat, heard.size)[::_BANDS]
    products = parts @ heard.ravel()  # `heard` has no mean: that of a part need not be taken off
    sums, squares = _running(played, hops), _running(played**2, hops)
    variances = (squares - sums**2 / hops).sum(axis=1)
    norms = np.sqrt(np.maximum(variances, 1e-3) * max(float((heard**2).sum()), 1e-3))
    return max(0.0, float((products / norms).max()))


def _running(values: Powers, length: int) -> NDArray[np.float64]:
    """Sums of ``length`` rows, one for each place where they may begin."""
    totals = np.cumsum(values, axis=0, dtype=np.float64)
    totals = np.concatenate([np.zeros((1, values.shape[1])), totals])
    return totals[length:] - totals[:-length]


def _edges() -> list[int]:
    """Where the bands begin among the bins of a frame, equally wide in mel; the last is the end."""
    low, high = (np.log(1 + hz / 700) for hz in (_LOWEST_HZ, _HIGHEST_HZ))
    hertz = 700 * np.expm1(np.linspace(low, high, _BANDS + 1))
    return [round(hz * _FRAME / LISTEN_RATE_HZ) for hz in hertz]


_EDGES = _edges()
_TAPER: NDArray[np.float32] = np.hanning(_FRAME).astype(np.float32)
