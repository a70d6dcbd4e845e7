"""Scripted engines for ``--fake``, demos and tests: deterministic, without threads or models.

They keep the same contracts as the real ones, so that whoever develops a page or tests a call
needs no model.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

import numpy as np

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples, rms_dbfs, silence
from voice_rtc.core.history import Message
from voice_rtc.engines.base import (
    STT_AS_CONFIGURED,
    EngineInfo,
    Final,
    LlmEvent,
    LlmOptions,
    Partial,
    SttFailed,
    SttOptions,
    SttResult,
    TextDelta,
    Usage,
    VadWindow,
    VoiceOptions,
)
from voice_rtc.engines.llm.openai import AS_CONFIGURED as LLM_AS_CONFIGURED
from voice_rtc.engines.stt.results import ResultStream
from voice_rtc.engines.tts.speakable import AS_CONFIGURED as TTS_AS_CONFIGURED
from voice_rtc.engines.tts.speakable import chunks, clean
from voice_rtc.errors import EngineError

_NOTE = ("A scripted engine for development; nothing is recognised or understood.",)
_VAD_WINDOW = 512
_DB_PER_DOUBLING = 6.0


class ThresholdVad:
    """Speech is what is louder than ``threshold_dbfs``; 6 dB over it is certain."""

    def __init__(self, threshold_dbfs: float = -45.0, *, reason: str = "") -> None:
        self._threshold_dbfs = threshold_dbfs
        self.info = EngineInfo("vad", "threshold", reason=reason, notes=_NOTE)

    async def start(self) -> None:
        """Nothing to load."""

    async def aclose(self) -> None:
        """Nothing to free."""

    def open(self) -> ThresholdVadSession:
        """A fresh session."""
        return ThresholdVadSession(self._threshold_dbfs)


class ThresholdVadSession:
    """Windows of 512 samples."""

    def __init__(self, threshold_dbfs: float) -> None:
        self._threshold_dbfs = threshold_dbfs
        self._rest = silence(0)
        self._at = 0

    async def feed(self, pcm: Pcm) -> list[VadWindow]:
        """Windows completed by ``pcm``."""
        if pcm.at != self._at + len(self._rest):
            self._rest, self._at = silence(0), pcm.at
        data = np.concatenate([self._rest, pcm.samples])
        whole = len(data) // _VAD_WINDOW * _VAD_WINDOW
        windows = [
            VadWindow(
                self._at + start, _VAD_WINDOW, self._probability(data[start : start + _VAD_WINDOW])
            )
            for start in range(0, whole, _VAD_WINDOW)
        ]
        self._rest, self._at = data[whole:], self._at + whole
        return windows

    def close(self) -> None:
        """Forget the state."""
        self._rest, self._at = silence(0), 0

    def _probability(self, window: Samples) -> float:
        over = rms_dbfs(window) - self._threshold_dbfs
        return min(1.0, max(0.0, 0.5 + over / (2 * _DB_PER_DOUBLING)))


class ScriptedTurnModel:
    """Says that turns are complete by ``answers``, one for each pause, cycling through them."""

    heard_seconds = 8.0

    def __init__(self, answers: Sequence[float | EngineError] = (1.0,)) -> None:
        self._answers = itertools.cycle(answers)
        self.asked: list[tuple[int, str]] = []
        """Of the newest pauses: samples heard, text understood."""
        self.info = EngineInfo("turn", "scripted", notes=_NOTE)

    async def start(self) -> None:
        """Nothing to load."""

    async def aclose(self) -> None:
        """Nothing to free."""

    async def completeness(self, samples: Samples, text: str) -> float:
        """The next answer; an EngineError among them is raised."""
        self.asked = [*self.asked[-49:], (len(samples), text)]
        answer = next(self._answers)
        if isinstance(answer, EngineError):
            raise answer
        return answer


class ScriptedStt:
    """Says that callers said ``finals``, one per utterance, cycling through them per session.

    Partials grow word by word, one word per ``word_seconds`` of audio. An EngineError among the
    finals is delivered as the failure of its utterance.
    """

    def __init__(
        self,
        finals: Sequence[str | EngineError] = ("Hello.", "How are you?", "Tell me a story."),
        *,
        word_seconds: float = 0.3,
        slots: int = 8,
        reason: str = "",
    ) -> None:
        self.finals = tuple(finals)
        self._word_seconds = word_seconds
        self._slots = slots
        self._sessions: set[ScriptedSttSession] = set()
        self.info = EngineInfo("stt", "scripted", reason=reason, notes=_NOTE)

    @property
    def recommended_slots(self) -> int:
        """As given."""
        return self._slots

    async def start(self) -> None:
        """Nothing to load."""

    async def open(self, options: SttOptions = STT_AS_CONFIGURED) -> ScriptedSttSession:
        """A fresh session, at the beginning of the script."""
        session = ScriptedSttSession(
            self.finals, int(self._word_seconds * LISTEN_RATE_HZ), self._sessions.discard
        )
        self._sessions.add(session)
        return session

    async def aclose(self) -> None:
        """End all sessions."""
        for session in list(self._sessions):
            await session.aclose()


class ScriptedSttSession:
    """One call's way through the script."""

    def __init__(
        self,
        finals: Sequence[str | EngineError],
        word_samples: int,
        on_close: Callable[[ScriptedSttSession], None],
    ) -> None:
        self._finals = finals
        self._word_samples = word_samples
        self._on_close = on_close
        self._begun = 0
        self._open: dict[int, str | EngineError] = {}
        self._newest: int | None = None
        self._samples: dict[int, int] = {}
        self._results = ResultStream()
        self.fed: list[Pcm] = []
        """The last second or so of what was fed, for tests."""

    def begin(self, utterance: int) -> None:
        """The next line of the script is about to be said."""
        self._open[utterance] = self._finals[self._begun % len(self._finals)]
        self._begun += 1
        self._samples[utterance] = 0
        self._newest = utterance

    def feed(self, pcm: Pcm) -> None:
        """One more word for each ``word_seconds`` of audio."""
        if self._newest is None:
            return
        self.fed = [*self.fed[-49:], pcm]
        before = self._samples[self._newest] // self._word_samples
        self._samples[self._newest] += len(pcm.samples)
        heard = self._samples[self._newest] // self._word_samples
        line = self._open[self._newest]
        if isinstance(line, EngineError):
            return
        words = line.split()
        if heard > before and before < len(words):
            self._results.put(Partial(self._newest, " ".join(words[:heard])))

    def finish(self, utterance: int) -> None:
        """Deliver the line."""
        line = self._forget(utterance)
        if line is None:
            return
        samples = self._samples.pop(utterance)
        if isinstance(line, EngineError):
            self._results.put(SttFailed(utterance, line))
        else:
            self._results.put(Final(utterance, line, samples / LISTEN_RATE_HZ))

    def discard(self, utterance: int) -> None:
        """Nothing more of this utterance; its line counts as said."""
        self._results.discard(utterance)
        if self._forget(utterance) is not None:
            del self._samples[utterance]

    def configure(self, options: SttOptions) -> None:
        """The script stays what it is."""

    async def results(self) -> AsyncIterator[SttResult]:
        """Results in order of utterances."""
        async for result in self._results:
            yield result

    async def aclose(self) -> None:
        """End the session."""
        self._open.clear()
        self._newest = None
        self._results.close()
        self._on_close(self)

    def _forget(self, utterance: int) -> str | EngineError | None:
        if utterance == self._newest:
            self._newest = None
        return self._open.pop(utterance, None)


async def _no_delay(_seconds: float) -> None:
    await asyncio.sleep(0)


class EchoLlm:
    """Repeats what was said, or plays ``replies`` in turn; an EngineError among them is raised.

    ``delay`` is awaited with the seconds that a service would take before each piece: give
    ``asyncio.sleep`` or a virtual one.
    """

    def __init__(
        self,
        replies: Sequence[str | EngineError] = (),
        *,
        first_seconds: float = 0.0,
        word_seconds: float = 0.0,
        delay: Callable[[float], Awaitable[None]] = _no_delay,
        reason: str = "",
    ) -> None:
        self._replies = deque(replies)
        self._first_seconds = first_seconds
        self._word_seconds = word_seconds
        self._delay = delay
        self.asked: deque[tuple[Message, ...]] = deque(maxlen=100)
        """The conversations that were sent, newest last, for tests."""
        self.closed_early = 0
        """Streams that were closed before their end."""
        self.info = EngineInfo("llm", "echo", reason=reason, notes=_NOTE)

    async def start(self) -> None:
        """Nothing to load."""

    async def aclose(self) -> None:
        """Nothing to free."""

    async def stream(
        self, messages: Sequence[Message], options: LlmOptions = LLM_AS_CONFIGURED
    ) -> AsyncGenerator[LlmEvent, None]:
        """``You said: ...`` word by word, then Usage with the number of words."""
        self.asked.append(tuple(messages))
        reply = self._reply(messages)
        ended = False
        try:
            await self._delay(self._first_seconds)
            if isinstance(reply, EngineError):
                ended = True
                raise reply
            words = reply.split(" ")
            for number, word in enumerate(words):
                if number:
                    await self._delay(self._word_seconds)
                yield TextDelta(word if number == 0 else f" {word}")
            yield Usage(sum(len(each.content.split()) for each in messages), len(words))
            ended = True
        finally:
            self.closed_early += not ended

    def _reply(self, messages: Sequence[Message]) -> str | EngineError:
        if self._replies:
            reply = self._replies.popleft()
            self._replies.append(reply)
            return reply
        said = [message.content for message in messages if message.role == "user"]
        return f"You said: {said[-1]}" if said else "Hello."


class ToneTts:
    """Speaks in a tone: ``seconds_per_character`` of 440 Hz for each character, at 24 kHz.

    ``fail_on`` makes every text that contains one of its keys raise that error after the first
    100 ms. The voice is a number of hertz, if it is a number.
    """

    def __init__(
        self,
        *,
        seconds_per_character: float = 0.06,
        rate_hz: int = 24_000,
        fail_on: dict[str, EngineError] | None = None,
        reason: str = "",
    ) -> None:
        self._seconds_per_character = seconds_per_character
        self._rate_hz = rate_hz
        self._fail_on = fail_on or {}
        self.spoken: deque[str] = deque(maxlen=100)
        """Texts asked for, newest last, for tests."""
        self.chunks_made = 0
        """Chunks of 100 ms yielded in all: tells how far ahead of its reader it ran."""
        self.info = EngineInfo("tts", "tone", reason=reason, notes=_NOTE)

    @property
    def rate_hz(self) -> int:
        """As given."""
        return self._rate_hz

    async def start(self) -> None:
        """Nothing to load."""

    async def aclose(self) -> None:
        """Nothing to free."""

    async def synthesize(
        self, text: str, options: VoiceOptions = TTS_AS_CONFIGURED
    ) -> AsyncGenerator[Pcm, None]:
        """One tone as long as ``text``, made as fast as it is read."""
        spoken = clean(text)
        if not spoken:
            return
        self.spoken.append(text)
        error = next((each for key, each in self._fail_on.items() if key in text), None)
        seconds = len(spoken) * self._seconds_per_character / (options.speed or 1.0)
        for chunk in chunks(self._tone(seconds, options.voice or ""), 0, self._rate_hz):
            await asyncio.sleep(0)
            self.chunks_made += 1
            yield chunk
            if error is not None:
                raise error

    def _tone(self, seconds: float, voice: str) -> Samples:
        hz = float(voice) if voice.isdecimal() else 440.0
        times = np.arange(int(seconds * self._rate_hz)) / self._rate_hz
        tone: Samples = np.rint(8000 * np.sin(2 * np.pi * hz * times)).astype(np.int16)
        return tone
