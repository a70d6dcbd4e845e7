"""Where the time of a turn goes, from the caller's last sound to the first sound of the answer.

A turn passes five points after its last sound; each ends a stage:

    speech ends
      endpoint          -> committed      deciding that the caller was done
      stt               -> transcript     the final transcript, or what stands in for it
      llm_first_token   -> first token    the language model's first piece of text, or its failure
      tts_first_audio   -> first audio    the voice's first samples, or its failure
      first_packet      -> first packet   the first audible packet is handed to the network
    response            the whole way

Every point is noted once, when it is passed, and all figures come from these notes: the stages add
up to the response. A point that is passed before an earlier one, as when an answer is prepared
while the caller pauses, ends a stage of no length.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import IntEnum

from voice_rtc.core.capacity import percentile


class Point(IntEnum):
    """What a turn passes, in this order."""

    SPEECH_END = 0
    COMMITTED = 1
    TRANSCRIPT = 2
    FIRST_TOKEN = 3
    FIRST_AUDIO = 4
    FIRST_PACKET = 5


@dataclass(frozen=True, slots=True)
class TurnTimes:
    """How long each stage took, in seconds; None: the turn did not get through it."""

    endpoint: float | None = None
    stt: float | None = None
    llm_first_token: float | None = None
    tts_first_audio: float | None = None
    first_packet: float | None = None
    response: float | None = None
    """From the caller's last sound to the first audible packet."""
    saved: float = 0.0
    """How much later that packet would have been, had the answer been begun with the transcript."""


STAGES = tuple(field.name for field in fields(TurnTimes))[:5]
"""Each ends at the `Point` behind its place."""


class TurnClock:
    """Notes when a turn passes its points; times in seconds on any one clock."""

    def __init__(self, speech_end: float) -> None:
        self._passed: dict[Point, float] = {Point.SPEECH_END: speech_end}
        self._asked: float | None = None

    def ask(self, at: float) -> None:
        """The language model was asked; the newest time counts: what ran before was given up."""
        self._asked = at

    def mark(self, point: Point, at: float) -> float | None:
        """``point`` is passed; returns how long its stage took, None when it was passed before."""
        if point in self._passed:
            return None
        self._passed[point] = at
        return self._stage(point)

    def times(self) -> TurnTimes:
        """What is known so far."""
        stages = {name: self._stage(Point(place)) for place, name in enumerate(STAGES, 1)}
        sent = self._passed.get(Point.FIRST_PACKET)
        response = None if sent is None else sent - self._passed[Point.SPEECH_END]
        return TurnTimes(**stages, response=response, saved=self._saved())

    def _stage(self, point: Point) -> float | None:
        if point not in self._passed:
            return None
        before = max(at for passed, at in self._passed.items() if passed < point)
        return max(0.0, self._passed[point] - before)

    def _saved(self) -> float:
        """An answer begun ahead of the transcript is ready so much earlier, but not before it."""
        ready = self._passed.get(Point.FIRST_AUDIO)
        transcript = self._passed.get(Point.TRANSCRIPT)
        if self._asked is None or ready is None or transcript is None:
            return 0.0
        return max(0.0, min(ready, transcript) - self._asked)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of one stage over several turns, in seconds."""

    turns: int
    """That got through it."""
    p50: float
    p95: float


class RecentTurns:
    """The newest turns of all calls, at most ``most``; older ones are forgotten."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._turns: deque[tuple[TurnTimes, str]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, times: TurnTimes, outcome: str) -> None:
        """One more, and what came of it."""
        self._turns.append((times, outcome))

    def outcomes(self) -> dict[str, int]:
        """How many turns came to what."""
        return dict(Counter(outcome for _, outcome in self._turns))

    def quantiles(self) -> dict[str, Quantiles]:
        """By field of `TurnTimes`; fields that no turn has are missing."""
        found = {
            field.name: _quantiles(getattr(times, field.name) for times, _ in self._turns)
            for field in fields(TurnTimes)
        }
        return {name: each for name, each in found.items() if each is not None}


def _quantiles(values: Iterable[float | None]) -> Quantiles | None:
    known = [value for value in values if value is not None]
    p50, p95 = percentile(known, 0.5), percentile(known, 0.95)
    if p50 is None or p95 is None:
        return None
    return Quantiles(len(known), p50, p95)
