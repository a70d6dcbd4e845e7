"""RealtimeSTT as the processor of each caller's audio, over a shared speech recognition engine.

Every session owns one real ``RealtimeSTT.AudioToTextRecorder``, which records an utterance and asks
for its partial and final transcripts. It loads no model: what it calls to have audio transcribed
is injected, and hands the audio to a session of the shared engine. Turn detection stays ours: an
utterance starts and stops when the call says so, and the recorder's own voice activity detection,
which measures silence by the wall clock, is never armed.

Threads of a session: the recorder's two (they poll all the time: 1 to 2 % of a core), a driver that
feeds it, one that waits for final transcripts, and a short-lived one for each of those. So about
forty recorders are what one process carries, whatever the shared engine could do.

What a recorder gives back is compared with what the call has fed, sample by sample: text is made
and delivered only for the caller's own audio of that very utterance.

Answers the original plan's AudioInputProcessor. Written against realtimestt 1.1.2.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, wait
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import structlog
from numpy.typing import NDArray

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm
from voice_rtc.engines.base import (
    EngineInfo,
    Final,
    Partial,
    SttEngine,
    SttFailed,
    SttOptions,
    SttResult,
    SttSession,
    SttTiming,
    SupportsBusy,
    SupportsHealth,
    SupportsProbe,
    SupportsQuality,
    SupportsTiming,
)
from voice_rtc.engines.stt.results import ResultStream
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineCrashed, EngineError, EngineTimeout, EngineUnavailable

_log = structlog.get_logger("voice_rtc.engines")

Float32 = NDArray[np.float32]

MOST_RECORDERS = 40
"""In one process; see the module."""
_SPARE_RECORDERS = 2
"""Of them, for what opens a session beside the callers: the pool's probes and replays."""
_IMPORT_SECONDS = 120.0
_MAKE_SECONDS = 15.0
_DRAIN_SECONDS = 5.0
_SHUTDOWN_SECONDS = 5.0
_FINAL_SECONDS = 30.0
_PIECE_BYTES = 2 * LISTEN_RATE_HZ // 10
"""The driver is woken for so much new audio, not for every packet."""
_BYTES_PER_SECOND = 2 * LISTEN_RATE_HZ
_FULL_SCALE = 32768.0
_AS_CONFIGURED = SttOptions()
_NEVER_TOO_SOON = float("-inf")
"""For durations that the recorder measures by the wall clock, which may jump back."""


# ------------------------------------------------------------------ the recorder; blocking


class Recorder:
    """An AudioToTextRecorder without its pitfalls. Blocking: see each method for its thread."""

    def __init__(
        self,
        *,
        language: str,
        pause_seconds: float,
        partial: Callable[[bytes], str],
        final: Callable[[bytes], str],
        on_partial: Callable[[str], None],
    ) -> None:
        """``partial`` and ``final`` transcribe s16 PCM at 16 kHz, on threads of the recorder's."""
        self._recorder: Any = load()(
            language=language,
            device="cpu",  # else it looks for a GPU, for models that it does not load
            transcription_executor=Executor(final),
            realtime_transcription_executor=Executor(partial),
            enable_realtime_transcription=True,
            realtime_processing_pause=pause_seconds,
            init_realtime_after_seconds=_NEVER_TOO_SOON,
            on_realtime_transcription_update=on_partial,
            ensure_sentence_starting_uppercase=False,
            ensure_sentence_ends_with_period=False,
            min_length_of_recording=_NEVER_TOO_SOON,
            min_gap_between_recordings=_NEVER_TOO_SOON,
            handle_buffer_overflow=False,  # audio that is sent again comes all at once
            use_microphone=False,
            # The detector is loaded in any case; by its path nothing is searched or downloaded.
            silero_backend="raw_onnx",
            silero_onnx_model_path=str(silero_path()),
            silero_onnx_threads=1,
            warmup_vad=False,
            spinner=False,
            no_log_file=True,
            level=logging.CRITICAL,
        )
        quiet_logger()

    def start(self) -> None:
        """Begin an utterance. On the driver."""
        self._recorder.start()

    def feed(self, pcm: bytes) -> None:
        """Audio of the utterance, s16 at 16 kHz: it does not resample. On the driver."""
        # In pieces: it moves all that is left for every chunk that it takes.
        for start in range(0, len(pcm), _PIECE_BYTES):
            self._recorder.feed_audio(pcm[start : start + _PIECE_BYTES], LISTEN_RATE_HZ)

    def stop(self) -> Float32:
        """End the utterance and return its audio, full scale ±1. On the driver.

        Raises EngineTimeout when the recorder does not take what it was fed.
        """
        self._recorder.flush_audio_input()
        if not self._recorder.drain_audio_input(timeout=_DRAIN_SECONDS):
            raise EngineTimeout("the RealtimeSTT recorder does not take its audio")
        self._recorder.stop()
        # Only then: with nothing recorded, waiting would arm its own voice activity detection.
        if not self._recorder.has_pending_recordings():
            return np.zeros(0, np.float32)
        self._recorder.wait_audio()
        audio: Float32 = self._recorder.audio
        return audio

    def transcribe(self, audio: Float32) -> str:
        """The final transcript, by way of the injected executor. On any other thread."""
        if not len(audio):
            return ""
        text = str(self._recorder.perform_final_transcription(audio))
        # It would keep the caller's words until the next ones, and every thread it ever started.
        self._recorder.last_transcription_bytes = None
        self._recorder.last_transcription_bytes_b64 = None
        self._recorder._external_transcription_threads.clear()  # noqa: SLF001 - nothing public does
        return text

    def shutdown(self) -> None:
        """End its threads; waits for them. On the driver."""
        self._recorder.shutdown()


class Executor:
    """What a recorder calls to have audio transcribed. Never raises."""

    def __init__(self, transcribe: Callable[[bytes], str]) -> None:
        self._transcribe = transcribe
        base = import_module("RealtimeSTT.transcription_engines.base")
        self._result, self._info = base.TranscriptionResult, base.TranscriptionInfo

    def transcribe(
        self, audio: Float32, language: str | None = None, use_prompt: bool = True
    ) -> Any:
        """A ``TranscriptionResult``; language and prompt are what the session was opened with."""
        text = self._transcribe(pcm_of(audio))
        probability = 1.0 if language else 0.0
        info = self._info(language=language, language_probability=probability)
        return self._result(text=text, info=info)


def pcm_of(audio: Float32) -> bytes:
    """The s16 PCM that ``audio`` (full scale ±1) was made from; exact."""
    samples: NDArray[np.int16] = np.rint(audio * _FULL_SCALE).astype("<i2")
    return samples.tobytes()


def why_not_installed() -> str:
    """What keeps RealtimeSTT from being imported; "" when nothing does. Does not import."""
    missing = [name for name in ("torch", "RealtimeSTT") if find_spec(name) is None]
    if not missing:
        return ""
    return f"{', '.join(missing)} not installed: pip install 'voice-rtc[realtimestt]'"


def silero_path() -> Path:
    """Silero VAD's network inside the faster-whisper package. Raises EngineUnavailable."""
    spec = find_spec("faster_whisper")
    if spec is None or spec.origin is None:
        raise EngineUnavailable("faster-whisper, whose VAD the recorder takes, is not installed")
    return Path(spec.origin).parent / "assets" / "silero_vad_v6.onnx"


def load() -> Any:
    """AudioToTextRecorder, imported (seconds, the first time: it imports torch) and kept quiet."""
    # Else it chooses "spawn" for the whole process, which starts a child to track semaphores.
    multiprocessing.get_start_method()
    recorder = import_module("RealtimeSTT").AudioToTextRecorder
    for name in ("shutdown", "transcription_api"):
        vars(import_module(f"RealtimeSTT.core.{name}"))["print"] = _say_nothing
    # A recorder's shutdown collects the garbage of the whole process: 0.1 s in which all calls
    # stand still. The server does that itself, where it does not hurt.
    vars(import_module("RealtimeSTT.core.shutdown"))["gc"] = SimpleNamespace(collect=int)
    quiet_logger()
    return recorder


def _say_nothing(*_words: object, **_options: object) -> None:
    """In the place of the `print` of modules that write to the server's standard output."""


class _ErrorsOnly(logging.Handler):
    """Its errors go to our log, without the tracebacks of what is told elsewhere."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.warning("realtimestt_error", message=record.getMessage())


_errors_only = _ErrorsOnly(logging.ERROR)


def quiet_logger() -> None:
    """Each recorder adds a handler to the package's logger and opens it for words spoken."""
    logger = logging.getLogger("realtimestt")
    for handler in list(logger.handlers):
        if handler is not _errors_only:
            logger.removeHandler(handler)
    logger.addHandler(_errors_only)
    logger.setLevel(logging.ERROR)


# ---------------------------------------------------------------------------- a session


@dataclass(slots=True, eq=False)
class _Utterance:
    """One utterance, from begin to its last result. Changed on the event loop only, but `sent`."""

    number: int
    options: SttOptions
    """Of the moment it was begun."""
    pcm: bytearray = field(default_factory=bytearray)
    """All that the call has fed, s16."""
    driven: int = 0
    """Bytes of it that the driver has been woken for."""
    sent: int = 0
    """Bytes of it that the driver has fed to the recorder."""
    stopped: bool = False
    """Finished or discarded: no more audio comes."""
    discarded: bool = False
    passed: int | None = None
    """Bytes passed on to the shared session; None before its begin."""
    heard: str = ""
    """The shared engine's newest partial."""
    told: str = ""
    """The newest partial that was delivered."""
    partial: Future[None] | None = None
    """The recorder's realtime thread waits for the next partial."""
    final: Future[str] | None = None
    """A thread of the recorder's waits for the final transcript."""
    timer: asyncio.TimerHandle | None = None

    def release(self) -> None:
        """Let threads that wait go on without a result."""
        if self.partial is not None and not self.partial.done():
            self.partial.set_result(None)
        if self.final is not None and not self.final.done():
            self.final.set_result("")


class AudioInputProcessor:
    """One caller's recorder and its session of the shared engine; see `SttSession`.

    `start` before use, `aclose` in any case.
    """

    alive: ClassVar[set[AudioInputProcessor]] = set()
    """All of this process whose threads have not ended."""

    def __init__(
        self,
        shared: SttSession,
        number: int,
        *,
        language: str,
        partial_seconds: float,
        options: SttOptions = _AS_CONFIGURED,
        final_seconds: float = _FINAL_SECONDS,
        on_close: Callable[[AudioInputProcessor], None] = lambda processor: None,
    ) -> None:
        self._shared = shared
        self._language = language
        self._options = options
        # Twice as often as partials are wanted: the shared engine, which is fed at this pace, has
        # the same rhythm, and the one would just miss the other.
        self._pause_seconds = partial_seconds / 2
        self._final_seconds = final_seconds
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._driver = EngineWorker(f"stt-recorder-{number}")
        self._finals = EngineWorker(f"stt-recorder-{number}-finals")
        self._recorder: Recorder | None = None
        self._reader: asyncio.Task[None] | None = None
        self._utterances: dict[int, _Utterance] = {}
        """Whose result has not come, oldest first."""
        self._newest: _Utterance | None = None
        self._work: deque[_Utterance] = deque()
        """For the driver, oldest first: each until it is stopped."""
        self._driving = False
        self._drive_again = False
        self._recording: _Utterance | None = None
        """What the recorder records. Written by the driver."""
        self._finishing: _Utterance | None = None
        """Whose final transcript the recorder makes. Written by the thread for finals."""
        self._published: _Utterance | None = None
        """Of which the recorder's realtime thread asked last; that thread's."""
        self._results = ResultStream()
        self._broken: EngineError | None = None
        self._closed = False
        self.alive.add(self)

    # ------------------------------------------------------------- the caller's side

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Make the recorder; ``group`` gets the task that reads the shared session.

        Raises:
            EngineTimeout: the recorder does not get ready.
            EngineUnavailable: it cannot be made.
        """
        making = self._driver.submit(self._make)
        await asyncio.wait([making], timeout=_MAKE_SECONDS)
        if not making.done():
            raise EngineTimeout(f"no RealtimeSTT recorder within {_MAKE_SECONDS:g} s")
        if (error := making.exception()) is not None:
            raise EngineUnavailable(f"no RealtimeSTT recorder can be made: {error}") from error
        if self._closed:
            raise EngineUnavailable("the session was closed before it was ready")
        self._reader = group.create_task(self._read(), name="stt-realtimestt:reader")

    def begin(self, utterance: int) -> None:
        """Start an utterance; see `SttSession`."""
        if self._closed:
            return
        begun = _Utterance(utterance, self._options)
        self._utterances[utterance] = self._newest = begun
        if self._broken is not None:
            self._fail(begun, self._broken)
            return
        self._work.append(begun)
        self._drive()

    def feed(self, pcm: Pcm) -> None:
        """Audio of the utterance begun last; ignored when none is open."""
        utterance = self._newest
        if utterance is None:
            return
        utterance.pcm += pcm.samples.tobytes()
        if len(utterance.pcm) - utterance.driven >= _PIECE_BYTES:
            utterance.driven = len(utterance.pcm)
            self._drive()

    def finish(self, utterance: int) -> None:
        """The Final is wanted now."""
        found = self._utterances.get(utterance)
        if found is None or found.stopped:
            return
        late = EngineTimeout(f"no final transcript within {self._final_seconds:g} s")
        found.timer = self._loop.call_later(self._final_seconds, self._fail, found, late)
        self._stop(found)

    def discard(self, utterance: int) -> None:
        """Nothing more is delivered of the utterance."""
        self._results.discard(utterance)
        found = self._utterances.get(utterance)
        if found is not None:
            self._forget(found)

    def configure(self, options: SttOptions) -> None:
        """Use other options from the next utterance on."""
        self._options = options

    async def results(self) -> AsyncIterator[SttResult]:
        """Results in order of utterances, until the session is closed."""
        async for result in self._results:
            yield result

    async def aclose(self) -> None:
        """End the recorder and the shared session. Idempotent; takes some 20 ms."""
        if self._closed:
            return
        self._closed = True
        self._results.close()
        for utterance in list(self._utterances.values()):
            self._forget(utterance)
        shutdown = self._driver.submit(self._shut_down)
        shutdown.add_done_callback(lambda _: self.alive.discard(self))
        try:
            await self._shared.aclose()
            if self._reader is not None:
                self._reader.cancel()
            await asyncio.wait([shutdown], timeout=_SHUTDOWN_SECONDS)
        finally:
            if not shutdown.done():
                _log.warning("stt_recorder_abandoned", worker=self._driver.name)
            await self._finals.aclose(grace_seconds=1.0)
            await self._driver.aclose(grace_seconds=1.0)
            self._on_close(self)

    def _stop(self, utterance: _Utterance) -> None:
        utterance.stopped = True
        if utterance is self._newest:
            self._newest = None
        utterance.release()
        self._drive()

    def _forget(self, utterance: _Utterance) -> None:
        """It has its result, or shall have none."""
        if self._utterances.pop(utterance.number, None) is None:
            return
        utterance.discarded = True
        if utterance.timer is not None:
            utterance.timer.cancel()
        if utterance.passed is not None:
            self._shared.discard(utterance.number)
        self._stop(utterance)

    def _fail(self, utterance: _Utterance, error: EngineError, *, blameless: bool = False) -> None:
        if utterance.number in self._utterances:
            self._forget(utterance)
            self._results.put(SttFailed(utterance.number, error, blameless))

    def _break(self, error: EngineError) -> None:
        """Nothing works any more: what is open and what may come fails."""
        self._broken = error
        for utterance in list(self._utterances.values()):
            self._fail(utterance, error)

    def _is_next(self, utterance: _Utterance) -> bool:
        """Is it the oldest one without a result? Results come in order."""
        return next(iter(self._utterances.values()), None) is utterance

    # -------------------------------------------------------------- the recorder's driver

    def _make(self) -> None:
        recorder = Recorder(
            language=self._language,
            pause_seconds=self._pause_seconds,
            partial=self._transcribe_partial,
            final=self._transcribe_final,
            on_partial=self._update,
        )
        if self._closed:  # nobody waited for it any more
            recorder.shutdown()
        else:
            self._recorder = recorder

    def _shut_down(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.shutdown()

    def _drive(self) -> None:
        if self._closed or self._broken is not None or self._recorder is None:
            return
        self._drive_again = self._driving
        if not self._driving:
            self._driving = True
            self._driver.submit(self._advance, self._recorder).add_done_callback(self._advanced)

    def _advance(self, recorder: Recorder) -> list[tuple[_Utterance, Float32]]:
        """Feed what has come to the recorder; utterances that have ended, with their audio."""
        ended = []
        while self._work:
            utterance = self._work[0]
            # Read before the audio: what is set here has all its audio.
            stopped = utterance.stopped
            if self._recording is not utterance:
                if utterance.discarded:
                    self._work.popleft()
                    continue
                recorder.start()
                self._recording = utterance
            new = bytes(utterance.pcm[utterance.sent :])
            utterance.sent += len(new)
            recorder.feed(new)
            if not stopped:
                break
            self._recording = None
            ended.append((utterance, recorder.stop()))
            self._work.popleft()
        return ended

    def _advanced(self, job: asyncio.Future[list[tuple[_Utterance, Float32]]]) -> None:
        self._driving = False
        if job.cancelled() or self._closed:
            return
        if (error := job.exception()) is not None:
            self._break(_engine_error(error))
            return
        for utterance, audio in job.result():
            if utterance.discarded:
                continue
            try:
                self._want_final(utterance, audio)
            except EngineError as refused:
                self._fail(utterance, refused)
        if self._drive_again:
            self._drive()

    def _want_final(self, utterance: _Utterance, audio: Float32) -> None:
        if pcm_of(audio) != utterance.pcm:
            raise EngineCrashed("the RealtimeSTT recorder gave back other audio than it was fed")
        if self._recorder is not None:
            job = self._finals.submit(self._finalise, self._recorder, utterance, audio)
            job.add_done_callback(lambda done: self._finalised(utterance, done))

    def _finalise(self, recorder: Recorder, utterance: _Utterance, audio: Float32) -> str:
        self._finishing = utterance
        return "" if utterance.discarded else recorder.transcribe(audio)

    def _finalised(self, utterance: _Utterance, job: asyncio.Future[str]) -> None:
        if job.cancelled() or utterance.discarded:
            return
        if (error := job.exception()) is not None:
            self._fail(utterance, _engine_error(error))
            return
        self._forget(utterance)
        seconds = len(utterance.pcm) / _BYTES_PER_SECOND
        self._results.put(Final(utterance.number, job.result(), seconds))

    # ------------------------------------------------------- what the recorder's threads call

    def _transcribe_partial(self, pcm: bytes) -> str:
        """On its realtime thread, again and again: the newest text of what is recorded."""
        utterance = self._published = self._recording
        # What it kept for later may belong to the utterance before.
        if utterance is None or utterance.stopped or not utterance.pcm.startswith(pcm):
            self._published = None
            return ""
        asked: Future[None] = Future()
        if self._tell_loop(self._ask_partial, utterance, pcm, asked):
            wait([asked], self._pause_seconds)  # it may say nothing new
        return utterance.heard

    def _update(self, text: str) -> None:
        """On its realtime thread: it publishes what it was just told."""
        if self._published is not None and text:
            self._tell_loop(self._tell_partial, self._published, text)

    def _transcribe_final(self, pcm: bytes) -> str:
        """On a thread of its own: the text of an utterance that has ended."""
        utterance = self._finishing
        asked: Future[str] = Future()
        if utterance is None or not self._tell_loop(self._ask_final, utterance, pcm, asked):
            return ""
        wait([asked], self._final_seconds)
        # Without one by then, the utterance's timer has told the call.
        return asked.result() if asked.done() else ""

    def _tell_loop(self, tell: Callable[..., None], *args: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(tell, *args)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            return False
        return True

    # ------------------------------------------------------------ the shared session's side

    def _ask_partial(self, utterance: _Utterance, pcm: bytes, asked: Future[None]) -> None:
        utterance.partial = asked
        if utterance.stopped or not self._is_next(utterance):
            asked.set_result(None)
        else:
            self._pass_on(utterance, pcm)

    def _tell_partial(self, utterance: _Utterance, text: str) -> None:
        if not utterance.stopped and text != utterance.told and self._is_next(utterance):
            utterance.told = text
            self._results.put(Partial(utterance.number, text))

    def _ask_final(self, utterance: _Utterance, pcm: bytes, asked: Future[str]) -> None:
        utterance.final = asked
        if utterance.discarded:
            asked.set_result("")
            return
        self._pass_on(utterance, pcm)
        self._shared.finish(utterance.number)

    def _pass_on(self, utterance: _Utterance, pcm: bytes) -> None:
        if utterance.passed is None:
            utterance.passed = 0
            # Not in `configure`: the shared session begins an utterance later than the call does.
            self._shared.configure(utterance.options)
            self._shared.begin(utterance.number)
        new = np.frombuffer(pcm[utterance.passed :], "<i2").astype(np.int16)
        if len(new):
            self._shared.feed(Pcm(new, utterance.passed // 2))
        utterance.passed = max(utterance.passed, len(pcm))

    async def _read(self) -> None:
        async for result in self._shared.results():
            utterance = self._utterances.get(result.utterance)
            if utterance is not None:
                self._take(utterance, result)
        if not self._closed:
            self._break(EngineUnavailable("the shared speech recognition closed the session"))

    def _take(self, utterance: _Utterance, result: SttResult) -> None:
        match result:
            case Partial(text=text):
                utterance.heard = text
                if utterance.partial is not None and not utterance.partial.done():
                    utterance.partial.set_result(None)
            case Final(text=text):
                utterance.passed = None  # nothing to discard there any more
                if utterance.final is not None and not utterance.final.done():
                    utterance.final.set_result(text)
            case SttFailed(error=error, blameless=blameless):
                utterance.passed = None
                self._fail(utterance, _engine_error(error), blameless=blameless)


def _engine_error(error: BaseException) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineCrashed(f"RealtimeSTT failed: {error}")


# ---------------------------------------------------------------------------- the engine


class RealtimeSttEngine:
    """A RealtimeSTT recorder for each caller, all over one shared engine, which it owns.

    What the shared engine can (health, quality, probe) this one can, by passing it on.
    """

    def __init__(
        self,
        shared: SttEngine,
        *,
        language: str = "en",
        partial_seconds: float = 0.4,
        most_recorders: int = MOST_RECORDERS,
        reason: str = "",
    ) -> None:
        """``most_recorders``: of this process, all engines of this kind together."""
        self._shared = shared
        self._language = language
        self._partial_seconds = partial_seconds
        self._most_recorders = most_recorders
        self._reason = reason
        self._worker = EngineWorker("stt-realtimestt")
        # Open from `start` to `aclose`, maybe in different tasks: so the readers must not raise.
        self._tasks = AsyncExitStack()
        self._group: asyncio.TaskGroup | None = None
        self._sessions: set[AudioInputProcessor] = set()
        self._opened = 0
        self._closed = False
        self.info = EngineInfo("stt", "realtimestt", shared.info.name, reason, _NOTES)
        # As attributes of this object, so that isinstance tells the truth about each engine.
        if isinstance(shared, SupportsBusy):
            self.busy_seconds = shared.busy_seconds
        if isinstance(shared, SupportsHealth):
            self.health = shared.health
            self.abort = shared.abort
        if isinstance(shared, SupportsQuality):
            self.set_quality = shared.set_quality
        if isinstance(shared, SupportsProbe):
            self.measure = shared.measure

    @property
    def recommended_slots(self) -> int:
        """What the shared engine carries, within what the recorders allow."""
        most = max(1, self._most_recorders - _SPARE_RECORDERS)
        return min(self._shared.recommended_slots, most)

    @property
    def on_timing(self) -> Callable[[SttTiming], None] | None:
        """The shared engine's; None where it tells no times."""
        return self._shared.on_timing if isinstance(self._shared, SupportsTiming) else None

    @on_timing.setter
    def on_timing(self, tell: Callable[[SttTiming], None] | None) -> None:
        if isinstance(self._shared, SupportsTiming):
            self._shared.on_timing = tell

    async def start(self) -> None:
        """Start the shared engine, import RealtimeSTT and try one recorder.

        Raises EngineUnavailable, EngineTimeout.
        """
        if why := why_not_installed():
            raise EngineUnavailable(why)
        await self._shared.start()
        try:
            async with asyncio.timeout(_IMPORT_SECONDS):
                await self._worker.run(load)
        except TimeoutError:
            raise EngineTimeout("RealtimeSTT could not be imported in time") from None
        except (ImportError, OSError) as error:
            raise EngineUnavailable(f"RealtimeSTT cannot be imported: {error}") from error
        self._group = await self._tasks.enter_async_context(asyncio.TaskGroup())
        await (await self.open()).aclose()
        info = self._shared.info
        self.info = EngineInfo(
            "stt",
            "realtimestt",
            model=f"{metadata.version('realtimestt')} over {info.name} {info.model}".strip(),
            reason=self._reason,
            notes=(*_NOTES, *info.notes),
            languages=info.languages,
            takes_prompt=info.takes_prompt,
        )

    async def open(self, options: SttOptions = _AS_CONFIGURED) -> AudioInputProcessor:
        """A fresh session with a recorder of its own; takes some 20 ms.

        Raises:
            EngineUnavailable: not started, closed, or ``most_recorders`` are there.
            EngineError: what the shared engine raises.
        """
        if self._group is None or self._closed:
            raise EngineUnavailable("RealtimeSTT is not running")
        shared = await self._shared.open(options)
        if len(AudioInputProcessor.alive) >= self._most_recorders:
            await shared.aclose()
            raise EngineUnavailable(f"{self._most_recorders} RealtimeSTT recorders are in use")
        self._opened += 1
        session = AudioInputProcessor(
            shared,
            self._opened,
            language=self._language if options.language is None else options.language,
            partial_seconds=self._partial_seconds,
            options=options,
            on_close=self._sessions.discard,
        )
        self._sessions.add(session)
        started = False
        try:
            await session.start(self._group)
            started = True
        finally:
            if not started:
                await session.aclose()
        return session

    async def aclose(self) -> None:
        """End all sessions, their recorders and the shared engine. Idempotent."""
        self._closed = True
        for session in list(self._sessions):
            await session.aclose()
        await self._tasks.aclose()
        await self._worker.aclose()
        await self._shared.aclose()


_NOTES = ("Each caller has a RealtimeSTT recorder: two polling threads, 1 to 2 % of a core, 5 MB.",)
