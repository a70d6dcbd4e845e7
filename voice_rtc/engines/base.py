"""The Protocols that every engine keeps. A call knows only these.

Four kinds of engine: VAD (does someone speak in this window), STT (speech to text), LLM (what to
answer) and TTS (text to speech); and, where one is configured, a turn model (does the caller sound
finished). An *engine* is shared by all calls and lives as long as the
server; a *session* belongs to one call and is closed with it. Engines run their models in worker
threads or processes of their own: no method here may block the event loop, and sessions and
streams are used from one event loop only.

Cancelling or closing is a fence: afterwards nothing of that session or stream is delivered.
Errors are `voice_rtc.errors.EngineError` and its subclasses.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from voice_rtc.core.audio import Pcm, Samples
from voice_rtc.core.history import Message
from voice_rtc.core.tools import ToolCall, ToolSpec
from voice_rtc.errors import EngineError

if TYPE_CHECKING:
    from voice_rtc.core.capacity import LatencyCurve

EngineKind = Literal["vad", "stt", "llm", "tts", "turn"]


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
    languages: tuple[str, ...] = ()
    """STT: codes that a call may ask for (`SttOptions.language`); empty: any."""
    takes_prompt: bool = False
    """STT: `SttOptions.prompt` makes a difference."""


class Engine(Protocol):
    """What all kinds have in common."""

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


class TurnModel(Engine, Protocol):
    """Does the caller sound finished? What the words alone do not tell."""

    @property
    def heard_seconds(self) -> float:
        """How much audio it can make use of."""
        ...

    async def completeness(self, samples: Samples, text: str) -> float:
        """Probability, 0 to 1, that the turn is over.

        ``samples`` (16 kHz) are the newest of the turn and end now, a moment into a pause;
        ``text`` is what was understood of it. Raises EngineError.
        """
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
    blameless: bool = False
    """The engine was lost while it worked on others: sent to another one, it will do no harm."""


SttResult = Partial | Final | SttFailed


@dataclass(frozen=True, slots=True)
class SttOptions:
    """Per-call settings of speech recognition."""

    language: str | None = None
    """Language code; None means the engine's configured one, empty lets the engine detect it."""
    prompt: str = ""
    """Words that the caller is likely to say; engines that cannot use it ignore it."""
    alone: bool = False
    """Engines have died of this caller's audio, as it seems: nothing else is to be in work with it,
    so that only it can be to blame. Engines that cannot ignore it."""


STT_AS_CONFIGURED = SttOptions()


@dataclass(frozen=True, slots=True)
class SttQuality:
    """What the degradation ladder asks of an engine, for all its sessions."""

    partial_factor: float | None = 1.0
    """Partials come so many times more rarely; None: none at all."""
    economy: bool = False
    """Smallest beam, short windows, no second try."""


@dataclass(frozen=True, slots=True)
class SttTiming:
    """Where the time of one transcription went."""

    final: bool
    queue_seconds: float
    """From the request to the start of its batch."""
    run_seconds: float
    """Of its batch in the model."""
    total_seconds: float
    """From the request to the result in the server's process."""
    batch: int = 1
    """Requests in the batch."""
    window_seconds: float = 30.0
    retried: bool = False
    """The first result was doubtful; a 30 s window was tried."""


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

    def configure(self, options: SttOptions) -> None:
        """Use other options from the next utterance on."""
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

    async def open(self, options: SttOptions = STT_AS_CONFIGURED) -> SttSession:
        """A fresh session for one call. Raises EngineError."""
        ...


SttMode = Literal["shared", "dedicated", "single"]
"""``shared``: one batching engine carries many callers. ``dedicated``: one engine per caller.
``single``: one engine, callers take turns, nothing is batched."""


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """Which engine a pool wants one more of."""

    mode: SttMode = "shared"
    device: int = 0
    """Index of the GPU; meaningless on a CPU."""


SttFactory = Callable[[ReplicaSpec], SttEngine]
"""Makes one more engine of the chosen kind, not started."""


# --------------------------------------------------------------------------------------- LLM


@dataclass(frozen=True, slots=True)
class LlmOptions:
    """Per-call settings; None means the engine's configured value."""

    temperature: float | None = None
    max_tokens: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the request, for engines that are a service."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """More HTTP headers of the request."""
    tools: tuple[ToolSpec, ...] = ()
    """What the model may call; engines that cannot ignore it."""
    tool_choice: str = "auto"
    """``auto``, ``none``, ``required`` or the name of a tool."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer, as it came."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, when the service reports them; comes last."""

    input_tokens: int
    output_tokens: int


LlmEvent = TextDelta | ToolCall | Usage
"""Tool calls come whole, behind the text."""


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
    reply: str = ""
    """Whose words these are: at a shared engine replies take turns. Empty: nobody's else."""
    first: bool = True
    """The reply has not been heard yet: the caller waits in silence."""


@dataclass(frozen=True, slots=True)
class TtsTiming:
    """Where the time of one piece of text went."""

    first: bool
    """It began a reply."""
    queue_seconds: float
    """From its arrival at the worker to the start of its batch."""
    run_seconds: float
    """Of its batch in the model."""
    total_seconds: float
    """From the request to the sound in the server's process."""
    batch: int = 1
    """Pieces in the batch."""


class TtsWatcher(Protocol):
    """Told, on the event loop, what a TTS engine with workers wants counted; must not block."""

    def tts_spoke(self, timing: TtsTiming) -> None:
        """A piece was spoken."""
        ...

    def tts_cancelled(self) -> None:
        """A piece was taken back before it was spoken, or given up."""
        ...

    def tts_fell_back(self, error: EngineError) -> None:
        """A piece, and what follows of its reply, is spoken by the fall-back voice."""
        ...

    def tts_worker_died(self, error: EngineError) -> None:
        """A worker process ended by itself; it is started again."""
        ...


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
    """The engines of a server."""

    vad: VadEngine
    stt: SttEngine
    llm: LlmEngine
    tts: TtsEngine
    notes: tuple[str, ...] = field(default=())
    """What selection wants the user to know, e.g. which better engine was not available and why."""
    stt_factory: SttFactory | None = None
    """Makes more engines like ``stt``, to replace or to multiply it; None: it stays alone."""
    turn: TurnModel | None = None
    """Beside the words; None: the words alone decide."""

    def all(self) -> list[Engine]:
        """In the order of the audio's way."""
        turn = [] if self.turn is None else [self.turn]
        return [self.vad, *turn, self.stt, self.llm, self.tts]

    def infos(self) -> list[EngineInfo]:
        """What runs."""
        return [engine.info for engine in self.all()]


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """How an engine with workers of its own is."""

    pids: tuple[int, ...] = ()
    """Worker processes."""
    silent_seconds: float = 0.0
    """How long a heartbeat has gone unanswered; 0.0 when none is due."""
    busy_seconds: float = 0.0
    """How long the oldest piece of work in progress has taken; 0.0 when idle."""
    failure: EngineError | None = None
    """Set once the worker is gone for good: the engine must be replaced."""
    batch_mean: float = 0.0
    """Mean number of requests in the newest batches; 0.0 when unknown."""


@runtime_checkable
class SupportsBusy(Protocol):
    """An engine that can tell how long its worker has been busy."""

    def busy_seconds(self) -> float:
        """How long the oldest piece of work in progress has taken; 0.0 when idle."""
        ...


@runtime_checkable
class SupportsHealth(SupportsBusy, Protocol):
    """An engine whose worker has a heartbeat and can be ended from outside."""

    def health(self) -> EngineHealth:
        """How it is now; sends the next heartbeat when none is under way."""
        ...

    def abort(self, error: EngineError) -> None:
        """End the worker at once, without its consent; unfinished utterances fail with it."""
        ...


@runtime_checkable
class SupportsQuality(Protocol):
    """An STT engine that can work with less."""

    def set_quality(self, quality: SttQuality) -> None:
        """From now on, for all sessions."""
        ...


@runtime_checkable
class SupportsProbe(Protocol):
    """An STT engine that can measure what it carries."""

    async def measure(self) -> LatencyCurve:
        """Seconds per batch by window and batch size, on this machine. Raises EngineError."""
        ...


@runtime_checkable
class SupportsTtsWatcher(Protocol):
    """A TTS engine that tells what is to be counted."""

    watcher: TtsWatcher | None


@runtime_checkable
class SupportsTiming(Protocol):
    """An STT engine that tells where the time of each transcription went."""

    on_timing: Callable[[SttTiming], None] | None


@runtime_checkable
class SupportsWarmUp(Protocol):
    """An LLM engine whose first request in a while would have to connect first."""

    async def warm_up(self) -> None:
        """Have a connection ready: a request is likely soon. Raises nothing, waits not for long."""
        ...


@runtime_checkable
class SupportsRequests(Protocol):
    """An LLM engine that tells what it asks its service."""

    on_request: Callable[[str], None] | None
    """Told of each request: ``first``, ``retry``, ``hedge`` (a twin beside a late one) and
    ``warm_up``; and of what became of a twin: ``hedge_won``, ``hedge_lost``."""
