"""From speech probabilities to the start and the end of speech: a hysteresis gate without a clock.

Time is the sample clock of the windows that are fed. Speech starts when enough windows reach the
start threshold, and goes on while they stay above a lower stop threshold; it ends once they have
stayed below that for long enough. Two thresholds keep a voice that hovers around one of them from
flickering (Silero's VADIterator uses the same 0.15 distance).
"""

from __future__ import annotations

from dataclasses import dataclass

from voice_rtc.core.audio import LISTEN_RATE_HZ
from voice_rtc.errors import StateError

_HYSTERESIS = 0.15
_LOWEST_STOP_THRESHOLD = 0.01


@dataclass(frozen=True, slots=True)
class GateSettings:
    """How sure and how long, before the gate changes its mind."""

    speech_threshold: float = 0.5
    """Probability, 0 to 1, from which a window counts as speech while nobody speaks."""
    start_seconds: float = 0.1
    """Speech needed before the started edge."""
    stop_seconds: float = 0.2
    """Silence needed before the stopped edge."""

    @property
    def stop_threshold(self) -> float:
        """Probability below which a window counts as silence while someone speaks."""
        return max(self.speech_threshold - _HYSTERESIS, _LOWEST_STOP_THRESHOLD)

    @property
    def start_samples(self) -> int:
        """``start_seconds`` on the sample clock, 16 kHz."""
        return round(self.start_seconds * LISTEN_RATE_HZ)

    @property
    def stop_samples(self) -> int:
        """``stop_seconds`` on the sample clock, 16 kHz."""
        return round(self.stop_seconds * LISTEN_RATE_HZ)


@dataclass(frozen=True, slots=True)
class SpeechEdge:
    """Speech began or ended, dated back to where it really did."""

    started: bool
    at: int
    """Started: first sample of the speech. Stopped: first sample after it. 16 kHz sample clock."""


class VadGate:
    """One caller's gate: windows in, edges out, strictly started, stopped, started, ..."""

    def __init__(self, settings: GateSettings = GateSettings()) -> None:
        self.settings = settings
        """May be replaced at any time, also during speech; holds from the next window on."""
        self.reset()

    @property
    def speaking(self) -> bool:
        """True between a started and a stopped edge."""
        return self._speaking

    @property
    def voiced_until(self) -> int:
        """First sample after the newest window of the current or last speech.

        It tells a voice that goes on from the silence that the gate still bridges.
        """
        return self._voiced_until

    def reset(self) -> None:
        """Forget everything heard: nobody speaks. No edge is given for speech that was open."""
        self._speaking = False
        self._run_at: int | None = None
        self._run_samples = 0
        self._voiced_until = 0
        self._end = 0

    def feed(self, at: int, samples: int, probability: float) -> SpeechEdge | None:
        """Take the window ``[at, at + samples)`` of the sample clock; return the edge it proves.

        Windows come in order; samples missing between two of them count neither as speech nor
        against it. Raises StateError when the sample clock runs backwards.
        """
        if at < self._end:
            raise StateError(f"VAD window at sample {at} comes after one that ended at {self._end}")
        self._end = at + samples
        if self._speaking:
            return self._while_speaking(probability)
        return self._while_silent(at, samples, probability)

    def _while_silent(self, at: int, samples: int, probability: float) -> SpeechEdge | None:
        if probability < self.settings.speech_threshold:
            # A window between the thresholds keeps a run alive without adding to it: soft
            # consonants inside a first word would otherwise start it anew.
            if probability < self.settings.stop_threshold:
                self._run_at = None
            return None
        if self._run_at is None:
            self._run_at, self._run_samples = at, 0
        self._run_samples += samples
        if self._run_samples < self.settings.start_samples:
            return None
        edge = SpeechEdge(True, self._run_at)
        self._speaking, self._run_at = True, None
        self._voiced_until = self._end
        return edge

    def _while_speaking(self, probability: float) -> SpeechEdge | None:
        if probability >= self.settings.stop_threshold:
            self._voiced_until = self._end
            return None
        if self._end - self._voiced_until < self.settings.stop_samples:
            return None
        self._speaking = False
        return SpeechEdge(False, self._voiced_until)
