"""Which engines a server runs: chosen by settings, or the best that is really there.

An engine that was asked for by name must start, or the server does not. ``auto`` falls back and
says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from voice_rtc.config import LlmSettings, Settings, SttSettings, TtsSettings
from voice_rtc.engines.base import (
    Engine,
    EngineKind,
    EngineSet,
    LlmEngine,
    ReplicaSpec,
    SttEngine,
    TtsEngine,
    VadEngine,
)
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.hub import DownloadProgress
from voice_rtc.engines.llm.eliza import ElizaLlm
from voice_rtc.engines.llm.openai import OpenAiLlm, OpenAiSettings
from voice_rtc.engines.stt.pocketsphinx import PocketsphinxStt
from voice_rtc.engines.stt.realtimestt import RealtimeSttEngine
from voice_rtc.engines.stt.whisper import DEFAULT_MODEL, WhisperSettings, WhisperStt
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.engines.tts.kokoro import KokoroSettings, KokoroTts
from voice_rtc.engines.turn.smart_turn import SmartTurn
from voice_rtc.engines.vad.silero import SileroVad
from voice_rtc.engines.vad.webrtc import WebRtcVad
from voice_rtc.errors import EngineError, EngineTimeout

_log = structlog.get_logger("voice_rtc.engines")

_QUICK_SECONDS = 60.0
"""Deadline for engines that neither download nor load much."""

E = TypeVar("E", bound=Engine)
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Candidate(Generic[E]):
    """An engine that could be started, and why one would."""

    make: Callable[[str], E]
    """Gets the reason that `EngineInfo` will show."""
    reason: str
    deadline_seconds: float = _QUICK_SECONDS
    again: Callable[[ReplicaSpec], E] | None = None
    """Makes one more of it, for a pool of several; None: there is only the one."""


async def load_engines(settings: Settings, report: Report) -> EngineSet:
    """Start the engines that ``settings`` ask for; ``report`` gets a line for each step.

    Raises:
        EngineError: an engine asked for by name, or the last resort of ``auto``, did not start.
            Everything started before is closed again.
    """
    notes: list[str] = []
    async with AsyncExitStack() as started:
        loader = _Loader(started, report, notes)
        vad, _ = await loader.first("vad", vad_candidates(settings))
        stt, chosen = await loader.first("stt", stt_candidates(settings))
        llm, _ = await loader.first("llm", llm_candidates(settings))
        tts, _ = await loader.first("tts", tts_candidates(settings))
        turn = None
        if settings.turns.model is not None:
            path = settings.turns.model
            named = Candidate(lambda reason: SmartTurn(path, reason=reason), _BY_NAME)
            turn, _ = await loader.first("turn", [named])
        started.pop_all()
    return EngineSet(vad, stt, llm, tts, tuple(notes), chosen.again, turn)


async def load_stt(settings: Settings, report: Report) -> SttEngine:
    """Only the speech recognition, for whoever wants to measure it. Raises EngineError."""
    async with AsyncExitStack() as started:
        engine, _ = await _Loader(started, report, []).first("stt", stt_candidates(settings))
        started.pop_all()
    return engine


async def close_engines(engines: EngineSet) -> None:
    """Close all; one that fails does not keep the others open."""
    async with AsyncExitStack() as stack:
        for engine in engines.all():
            stack.push_async_callback(engine.aclose)


class _Loader:
    """Starts candidates and remembers what to close."""

    def __init__(self, started: AsyncExitStack, report: Report, notes: list[str]) -> None:
        self._started = started
        self._report = report
        self._notes = notes

    async def first(
        self, kind: EngineKind, candidates: Sequence[Candidate[E]]
    ) -> tuple[E, Candidate[E]]:
        """The first candidate that starts, with its engine; the last must. Raises EngineError."""
        *better, last = candidates
        for candidate in better:
            try:
                return await self._start(kind, candidate), candidate
            except EngineError as error:
                self._fell_back(kind, error)
        return await self._start(kind, last), last

    async def _start(self, kind: EngineKind, candidate: Candidate[E]) -> E:
        engine = candidate.make(candidate.reason)
        name = engine.info.name
        self._report(f"{kind}: loading {name}")
        if isinstance(engine, WhisperStt | KokoroTts):
            self._follow(kind, engine.progress)
        try:
            async with _closed_on_failure(engine):
                await _start_in_time(engine, candidate.deadline_seconds)
        except EngineError as error:
            _log.warning("engine_start_failed", kind=kind, engine=name, error=str(error))
            raise
        self._started.push_async_callback(engine.aclose)
        info = engine.info
        _log.info("engine_started", kind=kind, engine=name, model=info.model, reason=info.reason)
        self._report(f"{kind}: {name} is ready")
        return engine

    def _follow(self, kind: EngineKind, progress: DownloadProgress) -> None:
        loop = asyncio.get_running_loop()

        def tell(percent: int) -> None:
            line = f"{kind}: downloading {progress.name}, {percent} %"
            loop.call_soon_threadsafe(self._report, line)

        progress.tell = tell

    def _fell_back(self, kind: EngineKind, error: EngineError) -> None:
        self._notes.append(str(error))
        self._report(f"{kind}: {error}")


async def _start_in_time(engine: Engine, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await engine.start()
    except TimeoutError as error:
        raise EngineTimeout(f"{engine.info.name} did not load within {seconds:g} s") from error


@asynccontextmanager
async def _closed_on_failure(engine: Engine) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.aclose)
        yield
        stack.pop_all()


# ------------------------------------------------------------------------------- who is eligible


def vad_candidates(settings: Settings) -> list[Candidate[VadEngine]]:
    """VAD engines in order of preference."""
    gate = settings.vad.gate_aggressiveness
    match _wanted(settings, settings.vad.engine):
        case "silero":
            return [Candidate(lambda reason: SileroVad(gate, reason=reason), _BY_NAME)]
        case "webrtc":
            return [Candidate(lambda reason: WebRtcVad(reason=reason), _BY_NAME)]
        case "threshold" | "fake":
            return [Candidate(lambda reason: ThresholdVad(reason=reason), _FAKE)]
        case _:
            return [
                Candidate(
                    lambda reason: SileroVad(gate, reason=reason),
                    "Silero is the best voice detection that needs no download.",
                ),
                Candidate(
                    lambda reason: WebRtcVad(reason=reason), "Silero VAD could not be loaded."
                ),
            ]


def stt_candidates(settings: Settings) -> list[Candidate[SttEngine]]:
    """STT engines in order of preference."""
    stt = settings.stt

    first = ReplicaSpec(settings.pool.mode)

    def whisper(why: str) -> Candidate[SttEngine]:
        return Candidate(
            lambda reason: _whisper(stt, first, reason),
            why,
            stt.load_deadline_seconds,
            lambda spec: _whisper(stt, spec, why),
        )

    def pocketsphinx(why: str) -> Candidate[SttEngine]:
        return Candidate(
            lambda reason: _pocketsphinx(stt, first, reason),
            why,
            again=lambda spec: _pocketsphinx(stt, spec, why),
        )

    match _wanted(settings, stt.engine):
        case "faster-whisper":
            return [whisper(_BY_NAME)]
        case "pocketsphinx":
            return [pocketsphinx(_BY_NAME)]
        case "scripted" | "fake":
            return [Candidate(lambda reason: ScriptedStt(reason=reason), _FAKE)]
        case "embedded":
            return [pocketsphinx(_EMBEDDED)]
        case _ if stt.grammar:
            return [pocketsphinx("A grammar is set, which only pocketsphinx can follow.")]
        case _:
            return [
                whisper("Whisper is the best speech recognition here: its weights are available."),
                pocketsphinx("Whisper is not available; pocketsphinx needs no download."),
            ]


def llm_candidates(settings: Settings) -> list[Candidate[LlmEngine]]:
    """LLM engines in order of preference."""
    llm = settings.llm

    def openai(why: str) -> Candidate[LlmEngine]:
        return Candidate(lambda reason: OpenAiLlm(_openai_settings(llm), reason=reason), why)

    def eliza(why: str) -> Candidate[LlmEngine]:
        return Candidate(lambda reason: ElizaLlm(reason=reason), why)

    match _wanted(settings, llm.engine):
        case "openai":
            return [openai(_BY_NAME)]
        case "eliza":
            return [eliza(_BY_NAME)]
        case "echo" | "fake":
            return [Candidate(lambda reason: EchoLlm(reason=reason), _FAKE)]
        case "embedded":
            return [eliza(_EMBEDDED)]
        case _ if llm.base_url or llm.api_key.get_secret_value():
            return [openai("A base URL or an API key is set.")]
        case _:
            return [eliza("Neither llm.base_url nor an API key is set.")]


def tts_candidates(settings: Settings) -> list[Candidate[TtsEngine]]:
    """TTS engines in order of preference."""
    tts = settings.tts

    def kokoro(why: str) -> Candidate[TtsEngine]:
        return Candidate(lambda reason: _kokoro(tts, reason), why, tts.load_deadline_seconds)

    def espeak(why: str) -> Candidate[TtsEngine]:
        return Candidate(lambda reason: EspeakTts(tts.voice, tts.speed, reason=reason), why)

    match _wanted(settings, tts.engine):
        case "kokoro":
            return [kokoro(_BY_NAME)]
        case "espeak-ng":
            return [espeak(_BY_NAME)]
        case "tone" | "fake":
            return [Candidate(lambda reason: ToneTts(reason=reason), _FAKE)]
        case "embedded":
            return [espeak(_EMBEDDED)]
        case _:
            return [
                kokoro("Kokoro is the best voice here: it is installed and its weights are there."),
                espeak("Kokoro is not available; espeak-ng needs no download."),
            ]


_BY_NAME = "The settings name it."
_FAKE = "Scripted engines were asked for."
_EMBEDDED = "Only engines without download and network were asked for."


def _wanted(settings: Settings, own: str) -> str:
    """The engine's own setting; where that is ``auto``, the setting for all engines."""
    return settings.engines if own == "auto" else own


def _whisper(stt: SttSettings, spec: ReplicaSpec, reason: str) -> SttEngine:
    settings = WhisperSettings(
        model=stt.model or DEFAULT_MODEL,
        device=stt.device,
        device_index=spec.device,
        compute_type=stt.compute_type,
        language=stt.language,
        partial_seconds=stt.partial_seconds,
        download=stt.download,
        workers=stt.workers,
        beam_size=stt.beam_size,
        encoder=stt.encoder,
        full_windows=stt.window == "full",
        final_window_seconds=stt.final_window_seconds,
        most_batch=stt.batch,
        mode=spec.mode,
    )
    return _processed(WhisperStt(settings, reason=reason), stt, reason)


def _pocketsphinx(stt: SttSettings, spec: ReplicaSpec, reason: str) -> SttEngine:
    engine = PocketsphinxStt(
        grammar=stt.grammar,
        workers=1 if spec.mode == "dedicated" else stt.workers,
        partial_seconds=stt.partial_seconds,
        reason=reason,
    )
    return _processed(engine, stt, reason)


def _processed(engine: SttEngine, stt: SttSettings, reason: str) -> SttEngine:
    """The engine itself, or behind RealtimeSTT recorders."""
    if stt.processor == "native":
        return engine
    return RealtimeSttEngine(
        engine, language=stt.language, partial_seconds=stt.partial_seconds, reason=reason
    )


def _kokoro(tts: TtsSettings, reason: str) -> KokoroTts:
    settings = KokoroSettings(
        model=tts.model,
        voice=tts.voice,
        speed=tts.speed,
        download=tts.download,
        device=tts.device,
        devices=tts.device_indices,
        precision=tts.precision,
        batch=tts.batch,
        graphs=tts.graphs,
        threads=tts.threads,
        waiting=tts.waiting,
        patience_seconds=tts.patience_seconds,
        deadline_seconds=tts.deadline_seconds,
        hang_seconds=tts.hang_seconds,
        load_seconds=tts.load_deadline_seconds,
    )
    return KokoroTts(settings, fallback=EspeakTts(speed=tts.speed), reason=reason)


def _openai_settings(llm: LlmSettings) -> OpenAiSettings:
    return OpenAiSettings(
        model=llm.model,
        base_url=llm.base_url,
        api_key=llm.api_key.get_secret_value(),
        temperature=llm.temperature,
        max_tokens=llm.max_tokens,
        connect_seconds=llm.connect_seconds,
        first_token_seconds=llm.first_token_seconds,
        gap_seconds=llm.gap_seconds,
        hedge_seconds=llm.hedge_seconds,
        keep_alive_seconds=llm.keep_alive_seconds,
        warm_up=llm.warm_up,
        headers=llm.headers,
        body=llm.body,
    )
