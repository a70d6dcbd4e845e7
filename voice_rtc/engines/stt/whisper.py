"""Whisper for many callers at once, in a worker process that batches their requests.

Here are the sessions and what a pool wants to know and do: heartbeats, an end by force, lower
quality, a measurement. The model and its queue are in `whisper_worker`. A worker that died is not
started again: every unfinished utterance fails and the engine is to be replaced.

Answers the original plan's TranscriptionProcessor.
"""

from __future__ import annotations

import asyncio
import itertools
import wave
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib import resources

import msgspec
import structlog

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm
from voice_rtc.core.capacity import LatencyCurve, LatencyPoint
from voice_rtc.core.scheduling import FULL_WINDOW_SECONDS
from voice_rtc.engines.base import (
    EngineHealth,
    EngineInfo,
    Final,
    Partial,
    SttFailed,
    SttMode,
    SttOptions,
    SttQuality,
    SttResult,
    SttTiming,
)
from voice_rtc.engines.hub import DownloadProgress
from voice_rtc.engines.process import EngineProcess
from voice_rtc.engines.stt import whisper_protocol as protocol
from voice_rtc.engines.stt.results import ResultStream
from voice_rtc.engines.stt.whisper_weights import (
    DEFAULT_MODEL,
    REQUIRED_FILES,
    find,
    weights_of,
)
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import (
    EngineCrashed,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    OutOfGpuMemory,
)

__all__ = [
    "DEFAULT_MODEL",
    "REQUIRED_FILES",
    "WhisperSession",
    "WhisperSettings",
    "WhisperStt",
    "slots_for",
    "weights_of",
]

_log = structlog.get_logger("voice_rtc.engines")

_WORKER_MODULE = "voice_rtc.engines.stt.whisper_worker"
# The spectrograms are made on the model threads; threads of numpy's own would stand in their way
# (five times the CPU time).
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
_FRAME_SAMPLES = 60 * LISTEN_RATE_HZ // 1000
# More than one utterance of the longest; a worker that does not read is noticed by its heartbeat.
_BACKLOG_BYTES = 64 << 20
# A caller asks for about one Final in ten seconds; half of the worker's time may go to Finals.
_FINALS_PER_CALLER_SECOND = 0.1
_FINALS_SHARE = 0.5
_MOST_SLOTS = 32
_MEASURED_WINDOWS = (5.0, 10.0, 30.0)
_SLOW_SECONDS = 2.0
_LAST_WORDS_SECONDS = 0.2
_MEASURE_SECONDS = 10.0
# Callers go first, and the last batch may take longer than was expected.
_MEASURE_GRACE_SECONDS = 20.0
_AS_CONFIGURED = SttOptions()
_WHISPERS_CODES = {"jv": "jw"}
"""ISO 639-1 -> Whisper, where they differ: Javanese."""
_ISO_CODES = {whispers: iso for iso, whispers in _WHISPERS_CODES.items()}
_ERRORS = {error.code: error for error in (EngineUnavailable, OutOfGpuMemory, EngineCrashed)}


@dataclass(frozen=True, slots=True)
class WhisperSettings:
    """What to load and how to use it."""

    model: str = DEFAULT_MODEL
    """Name known to faster-whisper, hub repository, or local directory."""
    device: str = "auto"
    device_index: int = 0
    """Which GPU."""
    compute_type: str = "default"
    language: str = "en"
    """Empty: detected for each utterance."""
    partial_seconds: float = 0.4
    download: bool = True
    workers: int = 0
    """Batches at the same time; 0: as many as suit the device."""
    beam_size: int = 1
    """Of finals; partials are decoded greedily."""
    encoder: str = "auto"
    """``ct2``, ``sdpa`` (PyTorch), or ``auto``: PyTorch's on a GPU if it can be used."""
    final_window_seconds: float = 10.0
    """Finals are padded to at least so much."""
    full_windows: bool = False
    """Pad everything to 30 s, as Whisper was trained: safest and slowest."""
    most_batch: int = 0
    """Requests in one batch; 0: as many as suit the device."""
    mode: SttMode = "shared"
    """``single`` and ``dedicated``: one request at a time."""

    def setup(self, folder: str) -> protocol.Setup:
        """For the worker."""
        alone = self.mode != "shared"
        return protocol.Setup(
            folder=folder,
            device=self.device,
            device_index=self.device_index,
            compute_type=self.compute_type,
            workers=1 if alone else self.workers,
            beam_size=self.beam_size,
            encoder=self.encoder,
            partial_samples=int(self.partial_seconds * LISTEN_RATE_HZ),
            final_window_seconds=self.final_window_seconds,
            full_windows=self.full_windows,
            most_batch=1 if alone else self.most_batch,
        )


@dataclass(slots=True, eq=False)
class _Utterance:
    """One utterance as the server sees it, from begin to its last result."""

    key: int
    number: int
    session: WhisperSession
    unsent: list[bytes] = field(default_factory=list)
    unsent_samples: int = 0
    heard: str = ""
    finished_at: float | None = None
    """Event loop time of `finish`."""
    partial: Partial | None = None
    """Kept back until the results of earlier utterances are out."""
    outcome: Final | SttFailed | None = None
    """The same."""


class WhisperStt:
    """One worker process with Whisper, shared by all sessions that are opened here."""

    def __init__(self, settings: WhisperSettings = WhisperSettings(), *, reason: str = "") -> None:
        self._settings = settings
        self._reason = reason
        self._finder = EngineWorker("stt-whisper")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(protocol.Response)
        self._process: EngineProcess | None = None
        self._loading: asyncio.Future[protocol.Ready] | None = None
        self._ready: protocol.Ready | None = None
        self._measuring: asyncio.Future[LatencyCurve] | None = None
        self._failure: EngineError | None = None
        self._slots = 1
        self._keys = itertools.count(1)
        self._open: dict[int, _Utterance] = {}
        self._at_work: dict[int, tuple[int, ...]] = {}
        """Batch -> utterances: what the worker has in work."""
        self._sessions: set[WhisperSession] = set()
        self._closed = False
        self._pings = itertools.count(1)
        self._ping_sent_at: float | None = None
        self._pong = protocol.Pong(0, 0.0, None)
        self.on_timing: Callable[[SttTiming], None] | None = None
        """Told where the time of each transcription went."""
        self.progress = DownloadProgress()
        """Of the weights' download, for /readyz."""
        self.info = EngineInfo("stt", "faster-whisper", model=settings.model, reason=reason)

    @property
    def recommended_slots(self) -> int:
        """A careful figure from the time that the warm-up took; `measure` knows better."""
        return self._slots

    # ------------------------------------------------------------------------ start and end

    async def start(self) -> None:
        """Find or fetch the weights, load and warm up. Raises EngineError."""
        settings = self._settings
        folder = await find(settings.model, self._finder, self.progress, download=settings.download)
        self._process = EngineProcess(
            _WORKER_MODULE,
            on_frame=self._frame,
            on_death=self._fail,
            backlog_bytes=_BACKLOG_BYTES,
            environment=_ENVIRONMENT,
        )
        self._loading = asyncio.get_running_loop().create_future()
        try:
            await self._process.start()
            self._send(settings.setup(folder))
            ready = await self._loading
        except EngineCrashed as error:
            message = f"Whisper {settings.model} cannot be loaded: {error}"
            raise EngineUnavailable(message) from error
        self._ready = ready
        if ready.gpu_problem:
            _log.warning("stt_gpu_unusable", error=ready.gpu_problem)
        self._slots = 1 if settings.mode == "dedicated" else slots_for(ready.utterance_seconds)
        self.info = EngineInfo(
            "stt",
            "faster-whisper",
            model=f"{settings.model} ({ready.placement})",
            reason=self._reason,
            notes=(f"One short utterance takes {ready.utterance_seconds:.2f} s on this machine.",),
            languages=tuple(sorted(_ISO_CODES.get(code, code) for code in ready.languages)),
            takes_prompt=True,
        )

    async def open(self, options: SttOptions = _AS_CONFIGURED) -> WhisperSession:
        """A fresh session. Raises EngineError before `start`, after `aclose` and after a death.

        Waits while much is on its way to the worker: when many calls are sent again to one that
        took over, they come one after the other.
        """
        if self._process is not None:
            await self._process.keeps_up()
        if self._failure is not None:
            raise self._failure
        if self._ready is None or self._closed:
            raise EngineUnavailable("Whisper is not loaded")
        session = WhisperSession(self, next(self._keys), options)
        self._sessions.add(session)
        return session

    async def aclose(self) -> None:
        """End all sessions and the process. Idempotent."""
        self._closed = True
        self.progress.cancel()
        for session in list(self._sessions):
            await session.aclose()
        if self._process is not None:
            await self._process.aclose()
        self._settle(EngineUnavailable("Whisper was closed"))
        await self._finder.aclose()

    # -------------------------------------------------------------------- for those who watch

    def busy_seconds(self) -> float:
        """How long the oldest batch had been running at the last heartbeat."""
        return self._pong.busy_seconds

    def health(self) -> EngineHealth:
        """How it is; sends the next heartbeat when none is under way."""
        now = asyncio.get_running_loop().time()
        process = self._process
        alive = process is not None and process.alive and self._failure is None
        if alive and self._ping_sent_at is None:
            self._ping(now)
        statistics = self._pong.statistics
        return EngineHealth(
            pids=(process.pid,) if alive and process is not None and process.pid else (),
            silent_seconds=0.0 if self._ping_sent_at is None else now - self._ping_sent_at,
            busy_seconds=self.busy_seconds(),
            failure=self._failure,
            batch_mean=0.0 if statistics is None else statistics.batch_mean,
        )

    def abort(self, error: EngineError) -> None:
        """Kill the process; unfinished utterances fail with ``error``, and it is the failure.

        They do when it has ended and all that it said was read, or soon in any case.
        """
        self._failed(error)
        if self._process is None or not self._process.alive:
            self._fail_all()
            return
        self._process.kill()
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self._fail_all)

    def set_quality(self, quality: SttQuality) -> None:
        """From now on, for all sessions."""
        self._tell(protocol.Quality(quality.partial_factor, quality.economy))

    async def measure(self) -> LatencyCurve:
        """Time batches of speech, in some ten seconds at most, while no caller waits.

        Raises EngineError. Asked for twice at once it is done once.
        """
        if self._ready is None or self._closed or self._failure is not None:
            raise self._failure or EngineUnavailable("Whisper is not loaded")
        if self._measuring is None:
            self._measuring = asyncio.get_running_loop().create_future()
            full = self._settings.full_windows
            windows = (FULL_WINDOW_SECONDS,) if full else _MEASURED_WINDOWS
            self._tell(protocol.Measure(_speech(), windows, _SLOW_SECONDS, _MEASURE_SECONDS))
        try:
            async with asyncio.timeout(_MEASURE_SECONDS + _MEASURE_GRACE_SECONDS):
                return await asyncio.shield(self._measuring)
        except TimeoutError:
            raise EngineTimeout("Whisper could not be measured in time") from None

    # ------------------------------------------------------------------------ for the sessions

    def begin(
        self, session: WhisperSession, caller: int, number: int, options: SttOptions
    ) -> _Utterance:
        """From a session: an utterance that the worker knows, or that has failed already."""
        utterance = _Utterance(next(self._keys), number, session)
        asked = options.language
        language = self._settings.language if asked is None else asked
        language = _WHISPERS_CODES.get(language, language)
        self._open[utterance.key] = utterance
        if self._failure is None:
            begin = protocol.Begin(
                utterance.key, caller, language, options.prompt, alone=options.alone
            )
            self._tell(begin)
        else:
            self._fail_utterance(utterance, self._failure, blameless=True)
        return utterance

    def feed(self, utterance: _Utterance, pcm: Pcm) -> None:
        """From a session: audio, which is sent on 60 ms at a time."""
        utterance.unsent.append(pcm.samples.astype("<i2", copy=False).tobytes())
        utterance.unsent_samples += len(pcm.samples)
        if utterance.unsent_samples >= _FRAME_SAMPLES:
            self._flush(utterance)

    def finish(self, utterance: _Utterance) -> None:
        """From a session: the Final is wanted."""
        utterance.finished_at = asyncio.get_running_loop().time()
        self._flush(utterance)
        self._tell(protocol.Finish(utterance.key))

    def discard(self, utterance: _Utterance) -> None:
        """From a session: nothing more is wanted of the utterance."""
        if self._open.pop(utterance.key, None) is not None:
            self._tell(protocol.Discard(utterance.key))

    def forget(self, session: WhisperSession) -> None:
        """From a session: it is closed."""
        self._sessions.discard(session)

    def _flush(self, utterance: _Utterance) -> None:
        if utterance.unsent:
            self._tell(protocol.Audio(utterance.key, b"".join(utterance.unsent)))
            utterance.unsent.clear()
            utterance.unsent_samples = 0

    # ------------------------------------------------------------------------------ the worker

    def _tell(self, request: protocol.Request) -> None:
        """Send what the worker must get; one that does not take it is ended."""
        if self._failure is not None or self._closed:
            return
        try:
            self._send(request)
        except EngineTimeout as error:
            _log.warning("stt_worker_stuck", error=str(error))
            self.abort(error)
        except EngineError as error:
            # It is gone, and what it said last, such as who was in work, is still to be read.
            _log.debug("stt_worker_gone", error=str(error))
            if self._process is not None:
                self._process.kill()

    def _send(self, request: protocol.Request) -> None:
        if self._process is None:
            raise EngineUnavailable("Whisper is not loaded")
        self._process.send(self._encoder.encode(request))

    def _ping(self, now: float) -> None:
        self._ping_sent_at = now
        try:
            self._send(protocol.Ping(next(self._pings)))
        except EngineError as error:
            # It does not read, or cannot: the silence grows from here, and who watches will act.
            _log.debug("stt_worker_stuck", error=str(error))

    def _frame(self, payload: bytes) -> None:
        try:
            self._take(self._decoder.decode(payload))
        except msgspec.MsgspecError as error:
            self.abort(EngineCrashed(f"the Whisper worker sent rubbish: {error}"))

    def _take(self, response: protocol.Response) -> None:
        match response:
            case protocol.Pong() as pong:
                self._pong, self._ping_sent_at = pong, None
            case protocol.PartialText() as partial:
                self._partial(partial)
            case protocol.FinalText() as final:
                self._final(final)
            case protocol.AtWork() as work:
                self._note_work(work)
            case protocol.Failed() as failed:
                self._failed_there(failed)
            case protocol.Measured() as measured:
                self._measured(measured)
            case protocol.Ready() as ready:
                if self._loading is not None and not self._loading.done():
                    self._loading.set_result(ready)
            case protocol.Unavailable(code=code, message=message):
                self._settle(self._load_error(code, message))

    def _note_work(self, work: protocol.AtWork) -> None:
        self._at_work.pop(work.batch, None)
        if work.keys:
            self._at_work[work.batch] = work.keys

    def _failed_there(self, failed: protocol.Failed) -> None:
        utterance = self._open.get(failed.key)
        if utterance is not None:
            error = _error(failed.code, failed.message)
            self._fail_utterance(utterance, error, blameless=False)

    def _partial(self, found: protocol.PartialText) -> None:
        self._timed(found.spent, found.spent.queue_seconds + found.spent.run_seconds, final=False)
        utterance = self._open.get(found.key)
        if utterance is None or utterance.finished_at is not None:
            return
        if found.text and found.text != utterance.heard:
            utterance.heard = found.text
            utterance.partial = Partial(utterance.number, found.text)
            utterance.session.deliver()

    def _final(self, found: protocol.FinalText) -> None:
        utterance = self._open.pop(found.key, None)
        if utterance is None:
            return
        if utterance.finished_at is not None:
            now = asyncio.get_running_loop().time()
            self._timed(found.spent, now - utterance.finished_at, final=True)
        utterance.outcome = Final(utterance.number, found.text, found.samples / LISTEN_RATE_HZ)
        utterance.session.deliver()

    def _timed(self, spent: protocol.Spent, total_seconds: float, *, final: bool) -> None:
        if self.on_timing is not None:
            self.on_timing(
                SttTiming(
                    final=final,
                    queue_seconds=spent.queue_seconds,
                    run_seconds=spent.run_seconds,
                    total_seconds=total_seconds,
                    batch=spent.batch,
                    window_seconds=spent.window_seconds,
                    retried=spent.retried,
                )
            )

    def _measured(self, measured: protocol.Measured) -> None:
        future, self._measuring = self._measuring, None
        if future is None or future.done():
            return
        if measured.failure or not measured.points or self._ready is None:
            failure = measured.failure or "no batch could be run"
            future.set_exception(EngineCrashed(f"Whisper could not be measured: {failure}"))
            return
        points = tuple(LatencyPoint(*point) for point in measured.points)
        future.set_result(LatencyCurve(points, self._ready.workers))

    def _load_error(self, code: str, message: str) -> EngineError:
        model = self._settings.model
        if code == OutOfGpuMemory.code:
            return OutOfGpuMemory(f"Whisper {model} does not fit into GPU memory: {message}")
        if "cannot be loaded" not in message:
            message = f"Whisper {model} cannot be loaded: {message}"
        return EngineUnavailable(message)

    def _fail(self, error: EngineError) -> None:
        """The worker is gone."""
        self._failed(error)
        self._fail_all()

    def _failed(self, error: EngineError) -> None:
        if self._failure is None:
            self._failure = error
            self._settle(error)

    def _fail_all(self) -> None:
        error = self._failure
        if error is None:
            return
        at_work = {key for keys in self._at_work.values() for key in keys}
        for utterance in list(self._open.values()):
            self._fail_utterance(utterance, error, blameless=utterance.key not in at_work)

    def _settle(self, error: EngineError) -> None:
        """Who waits for the worker gets ``error``."""
        measuring, self._measuring = self._measuring, None
        for future in (self._loading, measuring):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # maybe nobody waits any more

    def _fail_utterance(
        self, utterance: _Utterance, error: EngineError, *, blameless: bool
    ) -> None:
        self._open.pop(utterance.key, None)
        utterance.outcome = SttFailed(utterance.number, error, blameless)
        utterance.session.deliver()


class WhisperSession:
    """One call's utterances."""

    def __init__(self, engine: WhisperStt, caller: int, options: SttOptions) -> None:
        self._engine = engine
        self._caller = caller
        self._options = options
        self._utterances: dict[int, _Utterance] = {}
        """By number, oldest first: those whose outcome is not delivered yet."""
        self._newest: _Utterance | None = None
        self._results = ResultStream()
        self._closed = False

    def begin(self, utterance: int) -> None:
        """Start an utterance; see `SttSession`."""
        if self._closed:
            return
        self._newest = self._engine.begin(self, self._caller, utterance, self._options)
        self._utterances[utterance] = self._newest
        self.deliver()

    def feed(self, pcm: Pcm) -> None:
        """Audio of the utterance begun last; ignored when none is open."""
        if self._newest is not None and self._newest.outcome is None:
            self._engine.feed(self._newest, pcm)

    def finish(self, utterance: int) -> None:
        """The Final is wanted now."""
        found = self._utterances.get(utterance)
        if found is None or found.finished_at is not None:
            return
        if found is self._newest:
            self._newest = None
        self._engine.finish(found)

    def discard(self, utterance: int) -> None:
        """Nothing more is delivered of the utterance."""
        self._results.discard(utterance)
        found = self._utterances.pop(utterance, None)
        if found is None:
            return
        if found is self._newest:
            self._newest = None
        self._engine.discard(found)
        self.deliver()

    def configure(self, options: SttOptions) -> None:
        """Use other options from the next utterance on."""
        self._options = options

    async def results(self) -> AsyncIterator[SttResult]:
        """Results in order of utterances, until the session is closed."""
        async for result in self._results:
            yield result

    async def aclose(self) -> None:
        """End the session. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for number in list(self._utterances):
            self.discard(number)
        self._results.close()
        self._engine.forget(self)

    def deliver(self) -> None:
        """From the engine: an utterance has something new. Hand out what is in its turn.

        A later utterance may be done first, since the finals of one caller run side by side.
        """
        for utterance in list(self._utterances.values()):
            if utterance.outcome is not None:
                del self._utterances[utterance.number]
                self._results.put(utterance.outcome)
            elif utterance.finished_at is not None:
                return
            elif utterance.partial is not None:
                self._results.put(utterance.partial)
                utterance.partial = None


def slots_for(utterance_seconds: float) -> int:
    """Callers that one worker carries when an utterance takes so long to transcribe."""
    fit = int(_FINALS_SHARE / (_FINALS_PER_CALLER_SECOND * max(utterance_seconds, 1e-3)))
    return max(1, min(_MOST_SLOTS, fit))


def _error(code: str, message: str) -> EngineError:
    return _ERRORS.get(code, EngineError)(message)


def _speech() -> bytes:
    """A sentence that ships with the server; of noise the decoder would make nothing."""
    with resources.files("voice_rtc").joinpath("assets/probe.wav").open("rb") as file:
        with wave.open(file) as clip:
            frames: bytes = clip.readframes(clip.getnframes())
    return frames
