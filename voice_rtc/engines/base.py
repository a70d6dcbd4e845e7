"""The Protocols that every engine keeps. A call knows only these.

Four kinds of engine: VAD (does someone speak in this window), STT (speech to text), LLM (what to
answer) and TTS (text to speech). An *engine* is shared by all calls and lives as long as the
server; a *session* belongs to one call and is closed with it. Engines run their models in worker
threads or processes of their own: no method here may block the event loop, and sessions and
streams are used from one event loop only.

Cancelling or closing is a fence: afterwards nothing of that session or stream is delivered.
Errors are `voice_rtc.errors.EngineError` and its subclasses.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from voice_rtc.core.audio import Pcm
from voice_rtc.core.history import Message

EngineKind = Literal["vad", "stt", "llm", "tts"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is shown on /readyz and on the page about a chosen engine."""

    kind: EngineKind
    name: str
    """Short stable name, e.g. ``pocketsphinx``, ``faster-whisper``, ``espeak-ng``."""
    model: str = ""
    """Model name or path, empty where the engine has only one."""
    reason: str = ""
    """Why this one was chosen, in a sentence."""
    notes: tuple[str, ...] = ()
    """What the user should know: licence, accuracy, what would be better and how to get it."""


class Engine(Protocol):
    """What all four kinds have in common."""

    @property
    def info(self) -> EngineInfo:
        """Name, model, notes. Constant after `start`."""
        ...

    async def start(self) -> None:
        """Load the model and warm it up. Raises EngineUnavailable or EngineTimeout.

        Called once, before any session. After a failed start `aclose` is still called.
        """
        ...

    async def aclose(self) -> None:
        """End workers and free memory. Idempotent; open sessions and streams end."""
        ...


# --------------------------------------------------------------------------------------- VAD


@dataclass(frozen=True, slots=True)
class VadWindow:
    """Speech probability of one window of the caller's audio."""

    at: int
    """Index of the window's first sample on the sample clock, 16 kHz."""
    samples: int
    """Window length in samples (512 for Silero)."""
    probability: float
    """0.0 to 1.0."""


class VadSession(Protocol):
    """VAD state of one call."""

    async def feed(self, pcm: Pcm) -> list[VadWindow]:
        """Windows completed by ``pcm`` (16 kHz), in order; may be empty.

        Audio must be contiguous; a jump of ``pcm.at`` resets the state.
        """
        ...

    def close(self) -> None:
        """Forget the state."""
        ...


class VadEngine(Engine, Protocol):
    """Does someone speak?"""

    def open(self) -> VadSession:
        """A fresh session."""
        ...


# --------------------------------------------------------------------------------------- STT


@dataclass(frozen=True, slots=True)
class Partial:
    """What the utterance sounds like so far. Replaces every earlier partial of it."""

    utterance: int
    text: str


@dataclass(frozen=True, slots=True)
class Final:
    """The utterance's transcript. Exactly one Final or SttFailed follows each ``finish``."""

    utterance: int
    text: str
    """Empty when nothing was understood."""
    audio_seconds: float
    """Duration of the audio that was transcribed."""


@dataclass(frozen=True, slots=True)
class SttFailed:
    """The utterance could not be transcribed; the session stays usable."""

    utterance: int
    error: Exception
    """An EngineError."""


SttResult = Partial | Final | SttFailed


class SttSession(Protocol):
    """Speech recognition for one call: utterances one after the other.

    ``begin(n) -> feed ... -> finish(n)`` gives Partials and one Final; ``discard(n)`` at any
    moment gives nothing more of it. A new utterance may begin before the last one's Final came.
    None of these methods blocks or waits.
    """

    def begin(self, utterance: int) -> None:
        """Start an utterance; ids rise within a session."""
        ...

    def feed(self, pcm: Pcm) -> None:
        """More audio (16 kHz) of the utterance begun last; ignored when none is open."""
        ...

    def finish(self, utterance: int) -> None:
        """No more audio: the Final is wanted now."""
        ...

    def discard(self, utterance: int) -> None:
        """Forget the utterance: nothing more is delivered for it."""
        ...

    def results(self) -> AsyncIterator[SttResult]:
        """Results in order of utterances; one reader. Ends when the session is closed."""
        ...

    async def aclose(self) -> None:
        """End the session and free what it held. Idempotent."""
        ...


class SttEngine(Engine, Protocol):
    """Speech to text."""

    @property
    def recommended_slots(self) -> int:
        """How many callers this engine is expected to carry on this machine."""
        ...

    async def open(self) -> SttSession:
        """A fresh session for one call. Raises EngineError."""
        ...


# --------------------------------------------------------------------------------------- LLM


@dataclass(frozen=True, slots=True)
class LlmOptions:
    """Per-call settings; None means the engine's configured value."""

    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer, as it came."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, when the service reports them; comes last."""

    input_tokens: int
    output_tokens: int


LlmEvent = TextDelta | Usage


class LlmEngine(Engine, Protocol):
    """What to answer."""

    def stream(
        self, messages: Sequence[Message], options: LlmOptions = LlmOptions()
    ) -> AsyncGenerator[LlmEvent, None]:
        """Stream one answer. Raises LlmError (with its code) at or after the first item.

        An async generator: ``aclose()`` or cancelling its reader ends the request at once.
        """
        ...


# --------------------------------------------------------------------------------------- TTS


@dataclass(frozen=True, slots=True)
class VoiceOptions:
    """Per-call voice settings; None means the engine's configured value."""

    voice: str | None = None
    speed: float | None = None
    """1.0 is normal, 0.5 to 2.0."""


class TtsEngine(Engine, Protocol):
    """Text to speech."""

    @property
    def rate_hz(self) -> int:
        """Sample rate of what `synthesize` yields. Constant after `start`."""
        ...

    def synthesize(
        self, text: str, options: VoiceOptions = VoiceOptions()
    ) -> AsyncGenerator[Pcm, None]:
        """Speak ``text`` (a clause or a sentence): chunks with ``at`` counted from its start.

        An async generator: ``aclose()`` or cancelling its reader aborts the synthesis at once.
        A reader that is slow slows the synthesis; at most one short piece of text (some 240
        characters) is made ahead of it.
        Text without anything to speak yields nothing. Raises EngineError.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineSet:
    """The four engines of a server."""

    vad: VadEngine
    stt: SttEngine
    llm: LlmEngine
    tts: TtsEngine
    notes: tuple[str, ...] = field(default=())
    """What selection wants the user to know, e.g. which better engine was not available and why."""

    def infos(self) -> list[EngineInfo]:
        """What runs, in the order of the audio's way."""
        return [self.vad.info, self.stt.info, self.llm.info, self.tts.info]


@runtime_checkable
class SupportsHealth(Protocol):
    """An engine that can tell whether its worker is alive and busy."""

    def busy_seconds(self) -> float:
        """How long the oldest piece of work in progress has taken; 0.0 when idle."""
        ...
