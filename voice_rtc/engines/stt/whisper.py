"""Whisper through faster-whisper: one shared model, all callers take turns on its thread.

CTranslate2 releases Python's interpreter lock, so a thread is enough. Finals go before partials,
and a partial is made only while no final waits: what a caller waits for is the Final.

Answers the original plan's TranscriptionProcessor.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples
from voice_rtc.engines.base import EngineInfo, Final, Partial, SttFailed
from voice_rtc.engines.hub import (
    DownloadProgress,
    Weights,
    cache_folder,
    cached,
    fetch,
    local_folder,
)
from voice_rtc.engines.stt.results import ResultStream
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineCrashed, EngineError, EngineUnavailable, OutOfGpuMemory

_log = structlog.get_logger("voice_rtc.engines")

DEFAULT_MODEL = "base"
REQUIRED_FILES = ("config.json", "model.bin", "tokenizer.json")
_PATTERNS = (*REQUIRED_FILES, "preprocessor_config.json", "vocabulary.*")
_SHORTEST_SAMPLES = LISTEN_RATE_HZ // 10
_MOST_CPU_THREADS = 4
# A caller asks for about one Final in ten seconds; half of the worker's time may go to Finals.
_FINALS_PER_CALLER_SECOND = 0.1
_FINALS_SHARE = 0.5
_MOST_SLOTS = 32


@dataclass(frozen=True, slots=True)
class WhisperSettings:
    """What to load and how to use it."""

    model: str = DEFAULT_MODEL
    """Name known to faster-whisper, hub repository, or local directory."""
    device: str = "auto"
    compute_type: str = "default"
    language: str = "en"
    """Empty: detected for each utterance."""
    partial_seconds: float = 0.4
    download: bool = True


@dataclass(slots=True, eq=False)
class _Utterance:
    number: int
    session: WhisperSession
    runs: list[Samples] = field(default_factory=list)
    samples: int = 0
    next_partial: int = 0
    finished_at: float | None = None
    discarded: bool = False
    heard: str = ""


class WhisperModel:
    """The loaded model; blocking, on one thread."""

    def __init__(self, folder: str, settings: WhisperSettings, device: str) -> None:
        import faster_whisper

        compute_type = settings.compute_type
        if compute_type == "default":
            compute_type = "float16" if device == "cuda" else "int8"
        self.model: Any = faster_whisper.WhisperModel(
            folder,
            device=device,
            compute_type=compute_type,
            cpu_threads=min(_MOST_CPU_THREADS, os.cpu_count() or 1),
            local_files_only=True,
        )
        self.placement = f"{device} {compute_type}"
        multilingual = bool(self.model.model.is_multilingual)
        self.language = (settings.language or None) if multilingual else "en"

    def transcribe(self, runs: Sequence[Samples], *, final: bool) -> str:
        """Text of 16 kHz audio. A partial is decoded greedily only; a doubtful Final once more."""
        if sum(map(len, runs)) < _SHORTEST_SAMPLES:
            return ""
        audio = np.concatenate(runs).astype(np.float32) / 32768.0
        segments, _ = self.model.transcribe(
            audio,
            language=self.language,
            beam_size=1,
            temperature=[0.0, 0.4] if final else 0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        return " ".join(text for segment in segments if (text := segment.text.strip()))

    def warm_up(self) -> float:
        """Transcribe twice, once to warm up; seconds that the second run took."""
        # Noise, since silence may end before the decoder has run.
        noise = np.random.default_rng(0).normal(0, 1000, 2 * LISTEN_RATE_HZ).astype(np.int16)
        self.transcribe([noise], final=False)
        started = time.monotonic()
        self.transcribe([noise], final=False)
        return time.monotonic() - started

    def unload(self) -> None:
        """Free the weights now rather than when the last reference goes."""
        self.model.model.unload_model()


class WhisperStt:
    """Whisper for all callers of the server."""

    def __init__(self, settings: WhisperSettings = WhisperSettings(), *, reason: str = "") -> None:
        self._settings = settings
        self._reason = reason
        self._worker = EngineWorker("stt-whisper")
        self._model: WhisperModel | None = None
        self._slots = 1
        self._finals: deque[_Utterance] = deque()
        self._partials: dict[WhisperSession, _Utterance] = {}
        self._running: _Utterance | None = None
        self._sessions: set[WhisperSession] = set()
        self._closed = False
        self.progress = DownloadProgress()
        """Of the weights' download, for /readyz."""
        self.info = EngineInfo("stt", "faster-whisper", model=settings.model, reason=reason)

    @property
    def recommended_slots(self) -> int:
        """From the time that the warm-up took on this machine."""
        return self._slots

    def busy_seconds(self) -> float:
        """How long the transcription in progress has taken."""
        return self._worker.busy_seconds()

    async def start(self) -> None:
        """Find or fetch the weights, load and warm up. Raises EngineUnavailable."""
        folder = await self._find()
        try:
            model, seconds = await self._worker.run(load, folder, self._settings)
        except EngineError:
            raise
        except Exception as error:
            # The tokenizers library raises plain Exception for a damaged file.
            raise _load_error(self._settings.model, error) from error
        self._model = model
        self._slots = slots_for(seconds)
        self.info = EngineInfo(
            "stt",
            "faster-whisper",
            model=f"{self._settings.model} ({model.placement})",
            reason=self._reason,
            notes=(f"One short utterance takes {seconds:.2f} s on this machine.",),
        )

    async def open(self) -> WhisperSession:
        """A fresh session. Raises EngineUnavailable before `start` and after `aclose`."""
        if self._model is None or self._closed:
            raise EngineUnavailable("Whisper is not loaded")
        session = WhisperSession(self, int(self._settings.partial_seconds * LISTEN_RATE_HZ))
        self._sessions.add(session)
        return session

    async def aclose(self) -> None:
        """End all sessions and the thread, free the weights. Idempotent."""
        self._closed = True
        self.progress.cancel()
        for session in list(self._sessions):
            await session.aclose()
        model, self._model = self._model, None
        await self._worker.aclose()
        # A thread that could not be ended may still use the weights.
        if model is not None and self._worker.busy_seconds() == 0.0:
            model.unload()

    def want_final(self, utterance: _Utterance) -> None:
        """From a session: transcribe all of it, before any partial."""
        self._finals.append(utterance)
        self._next()

    def want_partial(self, utterance: _Utterance) -> None:
        """From a session: transcribe what there is when the worker is free."""
        self._partials[utterance.session] = utterance
        self._next()

    def forget(self, session: WhisperSession) -> None:
        """From a session: it is closed."""
        self._sessions.discard(session)
        self._partials.pop(session, None)

    async def _find(self) -> str:
        required = REQUIRED_FILES
        if (folder := local_folder(self._settings.model, required)) is not None:
            return str(folder)
        weights = weights_of(self._settings.model)
        if not self._settings.download:
            if (found := await self._worker.run(cached, weights)) is not None:
                return str(found)
            raise EngineUnavailable(
                f"Whisper {self._settings.model} is not in the hub cache {cache_folder()} and "
                f"stt.download is off. {_WHAT_TO_DO}"
            )
        try:
            return str(await fetch(weights, self._worker, self.progress))
        except EngineUnavailable as error:
            raise EngineUnavailable(f"Whisper: {error}. {_WHAT_TO_DO}") from error

    def _next(self) -> None:
        if self._running is not None or self._model is None or self._closed:
            return
        utterance, final = self._choose()
        if utterance is None:
            return
        self._running = utterance
        runs = list(utterance.runs)
        try:
            job = self._worker.submit(self._model.transcribe, runs, final=final)
        except EngineError as error:
            self._running = None
            utterance.session.failed(utterance, error)
            return
        job.add_done_callback(lambda done: self._done(utterance, final, done))

    def _choose(self) -> tuple[_Utterance | None, bool]:
        while self._finals:
            utterance = self._finals.popleft()
            if not utterance.discarded:
                return utterance, True
        while self._partials:
            # The caller whose partial has waited longest.
            utterance = self._partials.pop(next(iter(self._partials)))
            if not utterance.discarded and utterance.finished_at is None:
                return utterance, False
        return None, False

    def _done(self, utterance: _Utterance, final: bool, job: asyncio.Future[str]) -> None:
        self._running = None
        if job.cancelled() or self._closed:
            return
        error = job.exception()
        if error is None:
            utterance.session.transcribed(utterance, job.result(), final=final)
        elif final:
            utterance.session.failed(utterance, _transcribe_error(error))
        else:
            _log.warning("stt_partial_failed", error=str(error))
        self._next()


class WhisperSession:
    """One call's utterances."""

    def __init__(self, engine: WhisperStt, partial_samples: int) -> None:
        self._engine = engine
        self._partial_samples = partial_samples
        self._utterances: dict[int, _Utterance] = {}
        self._newest: _Utterance | None = None
        self._results = ResultStream()
        self._closed = False

    def begin(self, utterance: int) -> None:
        """Start an utterance; see `SttSession`."""
        if not self._closed:
            self._newest = _Utterance(utterance, self, next_partial=self._partial_samples)
            self._utterances[utterance] = self._newest

    def feed(self, pcm: Pcm) -> None:
        """Audio of the utterance begun last; ignored when none is open."""
        utterance = self._newest
        if utterance is None:
            return
        utterance.runs.append(pcm.samples)
        utterance.samples += len(pcm.samples)
        if utterance.samples >= utterance.next_partial:
            utterance.next_partial = utterance.samples + self._partial_samples
            self._engine.want_partial(utterance)

    def finish(self, utterance: int) -> None:
        """The Final is wanted now."""
        found = self._utterances.get(utterance)
        if found is None or found.finished_at is not None:
            return
        found.finished_at = asyncio.get_running_loop().time()
        if found is self._newest:
            self._newest = None
        self._engine.want_final(found)

    def discard(self, utterance: int) -> None:
        """Nothing more is delivered of the utterance."""
        self._results.discard(utterance)
        found = self._utterances.pop(utterance, None)
        if found is not None:
            found.discarded = True
            if found is self._newest:
                self._newest = None

    async def results(self) -> AsyncIterator[Partial | Final | SttFailed]:
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

    def transcribed(self, utterance: _Utterance, text: str, *, final: bool) -> None:
        """From the engine: text of the utterance, unless it is discarded or finished since."""
        if utterance.discarded:
            return
        if final:
            del self._utterances[utterance.number]
            seconds = utterance.samples / LISTEN_RATE_HZ
            self._results.put(Final(utterance.number, text, seconds))
        elif text and text != utterance.heard and utterance.finished_at is None:
            utterance.heard = text
            self._results.put(Partial(utterance.number, text))

    def failed(self, utterance: _Utterance, error: EngineError) -> None:
        """From the engine: the Final cannot be made."""
        if not utterance.discarded:
            del self._utterances[utterance.number]
            self._results.put(SttFailed(utterance.number, error))


def weights_of(model: str) -> Weights:
    """The hub repository behind a model name. Raises EngineUnavailable for an unknown name."""
    if "/" in model:
        return Weights(model, _PATTERNS, REQUIRED_FILES)
    from faster_whisper.utils import _MODELS  # the table has no public accessor with repositories

    repository = _MODELS.get(model)
    if repository is None:
        raise EngineUnavailable(
            f"there is no Whisper model {model!r}; known are {', '.join(sorted(_MODELS))}, a "
            "hub repository owner/name, or a local directory"
        )
    return Weights(repository, _PATTERNS, REQUIRED_FILES)


def slots_for(utterance_seconds: float) -> int:
    """Callers that one worker carries when an utterance takes so long to transcribe."""
    fit = int(_FINALS_SHARE / (_FINALS_PER_CALLER_SECOND * max(utterance_seconds, 1e-3)))
    return max(1, min(_MOST_SLOTS, fit))


_WHAT_TO_DO = (
    "Let the server reach the Hugging Face hub once, or set stt.model (VOICE_RTC_STT__MODEL) to a "
    "directory with a faster-whisper model (model.bin, config.json, tokenizer.json)"
)


def load(folder: str, settings: WhisperSettings) -> tuple[WhisperModel, float]:
    """The model, warmed up, and the seconds that a short utterance takes; blocking.

    With ``device`` auto a GPU that cannot be used (old driver, missing libraries) means the CPU.
    """
    device = settings.device
    if device == "auto":
        device = _best_device()
    try:
        return _load_on(device, folder, settings)
    except (RuntimeError, ValueError) as error:
        if settings.device != "auto" or device == "cpu":
            raise
        _log.warning("stt_gpu_unusable", error=str(error))
        return _load_on("cpu", folder, settings)


def _load_on(device: str, folder: str, settings: WhisperSettings) -> tuple[WhisperModel, float]:
    model = WhisperModel(folder, settings, device)
    return model, model.warm_up()


def _best_device() -> str:
    import ctranslate2

    return "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"


def _load_error(model: str, error: Exception) -> EngineError:
    if "out of memory" in str(error).lower():
        return OutOfGpuMemory(f"Whisper {model} does not fit into GPU memory: {error}")
    return EngineUnavailable(f"Whisper {model} cannot be loaded: {error}")


def _transcribe_error(error: BaseException) -> EngineError:
    if isinstance(error, EngineError):
        return error
    if "out of memory" in str(error).lower():
        return OutOfGpuMemory(f"Whisper ran out of GPU memory: {error}")
    return EngineCrashed(f"Whisper failed: {error}")
