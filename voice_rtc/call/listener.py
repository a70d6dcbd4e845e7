"""The call's ear: inbound PCM to speech edges, and the open utterance's audio to the STT."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples, silence
from voice_rtc.core.vad import GateSettings, SpeechEdge, VadGate
from voice_rtc.engines.base import SttSession, VadSession
from voice_rtc.inbox import Inbox

_RECENT_SECONDS = 3.0


class Listener:
    """One reader of a call's inbound audio.

    Keeps the newest seconds, so that an utterance can begin before the moment at which the gate
    was sure of it, and, in manual turns, so that a whole turn can be committed afterwards.
    """

    def __init__(
        self, vad: VadSession, stt: SttSession, gate: GateSettings, recent_seconds: float = 0.0
    ) -> None:
        """At least ``recent_seconds`` are kept for `since`."""
        self._vad = vad
        self._stt = stt
        self._gate = VadGate(gate)
        self._recent: deque[Pcm] = deque()
        self._least_seconds = self._keep_seconds = max(_RECENT_SECONDS, recent_seconds)
        self._open: int | None = None
        self._holds = False
        self._hold_from = 0
        self.at = 0
        """Sample clock: index after the newest sample received."""

    def set_gate(self, gate: GateSettings) -> None:
        """Use other thresholds from the next window on."""
        self._gate.settings = gate

    @property
    def speaking(self) -> bool:
        """Does the gate hear speech?"""
        return self._gate.speaking

    @property
    def voiced_until(self) -> int:
        """Sample clock: the end of the newest window that was speech."""
        return self._gate.voiced_until

    def keep(self, seconds: float | None) -> None:
        """Hold a turn of up to ``seconds`` for a manual commit, the oldest goes first; None: no."""
        self._keep_seconds = max(self._least_seconds, seconds or 0.0)
        if (seconds is not None) != self._holds:
            self._holds = seconds is not None
            self._hold_from = self.at

    async def run(self, inbound: Inbox[Pcm], on_edge: Callable[[SpeechEdge], None]) -> None:
        """Listen until the inbox is closed."""
        async for pcm in inbound:
            self._remember(pcm)
            if self._open is not None:
                self._stt.feed(pcm)
            for window in await self._vad.feed(pcm):
                edge = self._gate.feed(window.at, window.samples, window.probability)
                if edge is not None:
                    on_edge(edge)

    def newest(self, samples: int, from_at: int = 0) -> Samples:
        """The last ``samples`` received, none from before ``from_at``; fewer if not kept."""
        wanted = min(samples, self.at - from_at)
        parts: list[Samples] = []
        for pcm in reversed(self._recent):
            if wanted <= 0:
                break
            parts.append(pcm.samples[-wanted:])
            wanted -= len(pcm.samples)
        return np.concatenate(parts[::-1]) if parts else silence(0)

    def begin(self, utterance: int, from_at: int) -> None:
        """Open an utterance that starts at sample ``from_at``, as far as that is still kept."""
        self._open = utterance
        self._stt.begin(utterance)
        for pcm in self._kept(from_at):
            self._stt.feed(pcm)

    def since(self, from_at: int) -> Samples:
        """What was heard from sample ``from_at`` until now, as far as that is still kept."""
        return np.concatenate([silence(0), *(pcm.samples for pcm in self._kept(from_at))])

    def finish(self, utterance: int) -> None:
        """The utterance is complete: its Final is wanted."""
        if self._open == utterance:
            self._open = None
        self._stt.finish(utterance)

    def discard(self, utterance: int) -> None:
        """Forget the utterance."""
        if self._open == utterance:
            self._open = None
        self._stt.discard(utterance)

    def hold(self) -> None:
        """Manual turns: the turn to be committed begins now."""
        self._hold_from = self.at

    @property
    def held_seconds(self) -> float:
        """Manual turns: how much audio a commit would take."""
        start = max(self._hold_from, self._recent[0].at if self._recent else self.at)
        return (self.at - start) / LISTEN_RATE_HZ

    def commit_held(self, utterance: int, from_at: int) -> None:
        """Manual turns: send what was held since ``from_at`` and ask for its Final."""
        self.begin(utterance, max(self._hold_from, from_at))
        self.finish(utterance)
        self._hold_from = self.at

    def _kept(self, from_at: int) -> Iterator[Pcm]:
        for pcm in self._recent:
            if pcm.end > from_at:
                offset = max(0, from_at - pcm.at)
                yield Pcm(pcm.samples[offset:], pcm.at + offset)

    def _remember(self, pcm: Pcm) -> None:
        self._recent.append(pcm)
        self.at = pcm.end
        limit = round(self._keep_seconds * LISTEN_RATE_HZ)
        while self._recent and self.at - self._recent[0].end >= limit:
            self._recent.popleft()
