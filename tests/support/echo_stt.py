"""An STT engine whose transcripts tell which audio it was given: ``7 x 16000``.

Callers in tests speak constant samples, each a number of its own, so that a word of another caller,
a lost piece or a doubled one shows in the text. It has a heartbeat and can be killed, stopped and
made to fail, as an engine in a process of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import numpy as np

from voice_rtc.core.audio import Pcm
from voice_rtc.engines.base import (
    STT_AS_CONFIGURED,
    EngineHealth,
    EngineInfo,
    Final,
    Partial,
    ReplicaSpec,
    SttFailed,
    SttOptions,
    SttQuality,
    SttResult,
)
from voice_rtc.engines.stt.results import ResultStream
from voice_rtc.errors import EngineCrashed, EngineError

_MOST_NUMBERS = 20
"""More different samples are real speech, such as a probe's."""


def said(number: int, samples: int) -> str:
    """The transcript of ``samples`` times ``number``."""
    return f"{number} x {samples}"


class EchoStt:
    """One replica. ``seconds`` is how long a Final takes."""

    def __init__(self, spec: ReplicaSpec | None = None, *, seconds: float = 0.0) -> None:
        self.spec = spec = spec or ReplicaSpec()
        self.seconds = seconds
        self.info = EngineInfo("stt", "echo", model=spec.mode, takes_prompt=True)
        self.sessions: set[EchoSession] = set()
        self.begun: list[SttOptions] = []
        """What each utterance was begun with, of all sessions."""
        self.failure: EngineError | None = None
        self.stopped = False
        self.quality = SttQuality()
        self.closed = False
        self.start_error: EngineError | None = None
        self.next_error: EngineError | None = None
        """The next Final fails with it."""
        self._silent_since: float | None = None

    @property
    def recommended_slots(self) -> int:
        """As good as any."""
        return 4

    async def start(self) -> None:
        """Loads at once, or fails as told."""
        await asyncio.sleep(0)
        if self.start_error is not None:
            raise self.start_error

    async def open(self, options: SttOptions = STT_AS_CONFIGURED) -> EchoSession:
        """A fresh session."""
        if self.failure is not None or self.closed:
            raise EngineCrashed("echo is gone")
        session = EchoSession(self, options)
        self.sessions.add(session)
        return session

    async def aclose(self) -> None:
        """End all sessions."""
        self.closed = True
        for session in list(self.sessions):
            await session.aclose()

    def set_quality(self, quality: SttQuality) -> None:
        """Noted, for tests."""
        self.quality = quality

    def busy_seconds(self) -> float:
        """Never busy."""
        return 0.0

    def health(self) -> EngineHealth:
        """Silent for as long as it is stopped."""
        now = asyncio.get_running_loop().time()
        if self.stopped and self._silent_since is None:
            self._silent_since = now
        silent = 0.0 if self._silent_since is None else now - self._silent_since
        return EngineHealth(silent_seconds=silent, failure=self.failure)

    def stop(self) -> None:
        """As SIGSTOP: nothing comes any more."""
        self.stopped = True

    def kill(self) -> None:
        """As SIGKILL."""
        self.abort(EngineCrashed("killed"))

    def abort(self, error: EngineError) -> None:
        """The worker is gone: what is unfinished fails."""
        if self.failure is not None:
            return
        self.failure = error
        for session in list(self.sessions):
            session.fail_all(error)


class EchoSession:
    """One caller's utterances."""

    def __init__(self, engine: EchoStt, options: SttOptions) -> None:
        self._engine = engine
        self._options = options
        self._audio: dict[int, list[Pcm]] = {}
        self._newest: int | None = None
        self._finishing: set[int] = set()
        self._results = ResultStream()

    def begin(self, utterance: int) -> None:
        self._engine.begun.append(self._options)
        self._audio[utterance] = []
        self._newest = utterance

    def feed(self, pcm: Pcm) -> None:
        if self._newest is None or self._gone:
            return
        self._audio[self._newest].append(pcm)
        self._results.put(Partial(self._newest, self._text(self._newest)))

    def finish(self, utterance: int) -> None:
        if utterance == self._newest:
            self._newest = None
        if self._gone:
            return
        self._finishing.add(utterance)
        loop = asyncio.get_running_loop()
        loop.call_later(self._engine.seconds, self._deliver, utterance)

    def discard(self, utterance: int) -> None:
        self._results.discard(utterance)
        self._audio.pop(utterance, None)

    def configure(self, options: SttOptions) -> None:
        """From the next utterance on; it understands every language."""
        self._options = options

    async def results(self) -> AsyncIterator[SttResult]:
        async for result in self._results:
            yield result

    async def aclose(self) -> None:
        self._audio.clear()
        self._results.close()
        self._engine.sessions.discard(self)

    def fail_all(self, error: EngineError) -> None:
        for utterance in list(self._audio):
            del self._audio[utterance]
            self._results.put(SttFailed(utterance, error))

    @property
    def _gone(self) -> bool:
        return self._engine.failure is not None or self._engine.stopped

    def _deliver(self, utterance: int) -> None:
        if utterance not in self._audio or self._gone:
            return
        error, self._engine.next_error = self._engine.next_error, None
        if error is not None:
            del self._audio[utterance]
            self._results.put(SttFailed(utterance, error))
            return
        text, runs = self._text(utterance), self._audio.pop(utterance)
        self._results.put(Final(utterance, text, sum(len(pcm.samples) for pcm in runs) / 16_000))

    def _text(self, utterance: int) -> str:
        runs = [pcm.samples for pcm in self._audio[utterance]]
        if not runs:
            return ""
        joined = np.concatenate(runs)
        counts = Counter(joined.tolist())
        if len(counts) > _MOST_NUMBERS:
            return f"speech of {len(joined)} samples"
        return ", ".join(said(number, counts[number]) for number in sorted(counts))
