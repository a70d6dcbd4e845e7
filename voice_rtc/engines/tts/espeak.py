"""espeak-ng: the embedded voice, through ctypes from the library in espeakng-loader.

Calls, constants and their meaning: speak_lib.h of espeak-ng 1.52. The library has one global state
and no locks, so one lock serves the whole process and synthesis runs on a thread of our own. It
makes a second of speech in about a millisecond, so a piece of text is spoken in one go.

The library is GPL-3 and is loaded at run time; nothing of it is part of this package.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import numpy as np
import structlog

from voice_rtc.core.audio import Pcm, Samples, silence
from voice_rtc.engines.base import EngineInfo, VoiceOptions
from voice_rtc.engines.tts.speakable import AS_CONFIGURED, chunks, clean, pieces
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineCrashed, EngineUnavailable

_log = structlog.get_logger("voice_rtc.engines")

DEFAULT_VOICE = "en-us"
_NORMAL_WORDS_PER_MINUTE = 175
_PIECE_CHARACTERS = 240
_VOICES_REMEMBERED = 1000
_VOICE_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}(\+[A-Za-z0-9_-]{1,32})?")

# speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_PARAMETER_RATE = 1
_EE_OK = 0
_CALLBACK_MS = 60
_CONTINUE, _ABORT = 0, 1

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class _Library:
    """The one espeak-ng of this process; blocking."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._library: Any = None
        self._voice = ""
        self._made: list[Samples] = []
        self._abort = threading.Event()
        self._callback = _Callback(self._on_samples)
        self.rate_hz = 0

    def load(self) -> int:
        """Load the library once per process; its sample rate. Raises EngineUnavailable."""
        with self._lock:
            if self._library is None:
                self._load()
            return self.rate_hz

    def has_voice(self, voice: str) -> bool:
        """Does espeak-ng know this voice?"""
        with self._lock:
            return self._select(voice)

    def speak(
        self, text: str, voice: str, words_per_minute: int, abort: threading.Event
    ) -> Samples:
        """All samples of ``text``, or those made before ``abort`` was set. Raises EngineCrashed."""
        with self._lock:
            self._select(voice)
            self._library.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
            self._made, self._abort = [], abort
            data = text.encode() + b"\0"
            status = self._library.espeak_Synth(
                *(data, len(data), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
            )
            made, self._made = self._made, []
        if status != _EE_OK:
            raise EngineCrashed(f"espeak-ng failed with status {status}")
        return np.concatenate(made) if made else silence(0)

    def _load(self) -> None:
        try:
            import espeakng_loader

            library = ctypes.CDLL(espeakng_loader.get_library_path())
            data = espeakng_loader.get_data_path()
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineUnavailable(f"espeak-ng cannot be loaded: {error}") from error
        library.espeak_Initialize.argtypes = [
            *(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
        ]
        library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
        library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        ]
        rate = library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, _CALLBACK_MS, data.encode(), _INITIALIZE_DONT_EXIT
        )
        if rate <= 0:
            raise EngineUnavailable(f"espeak-ng cannot use its data in {data}")
        library.espeak_SetSynthCallback(self._callback)
        self._library, self.rate_hz = library, rate

    def _select(self, voice: str) -> bool:
        if voice == self._voice:
            return True
        known: bool = self._library.espeak_SetVoiceByName(voice.encode()) == _EE_OK
        if known:
            self._voice = voice
        return known

    def _on_samples(self, wave: Any, count: int, _events: Any) -> int:
        if self._abort.is_set():
            return _ABORT
        if wave and count > 0:
            # Not np.ctypeslib.as_array: ctypes keeps two new types for each count for ever.
            data = ctypes.string_at(wave, count * ctypes.sizeof(ctypes.c_short))
            self._made.append(np.frombuffer(data, np.int16))
        return _CONTINUE


_library = _Library()


class EspeakTts:
    """The voice that is always there: clear, quick and robotic; a hundred languages."""

    def __init__(self, voice: str = "", speed: float = 1.0, *, reason: str = "") -> None:
        self._voice = voice or DEFAULT_VOICE
        self._speed = speed
        self._worker = EngineWorker("tts-espeak")
        self._rate_hz = 0
        self._voices: dict[str, bool] = {}
        self.info = EngineInfo(
            "tts",
            "espeak-ng",
            model=self._voice,
            reason=reason,
            notes=(
                "Clear but robotic. For a natural voice: pip install 'voice-rtc[kokoro]'.",
                "espeak-ng is GPL-3 software, loaded at run time from the package "
                "espeakng-loader; mind that when you redistribute it.",
            ),
        )

    @property
    def rate_hz(self) -> int:
        """22050."""
        return self._rate_hz

    async def start(self) -> None:
        """Load the library and speak a word. Raises EngineUnavailable."""
        self._rate_hz = await self._worker.run(_library.load)
        if not await self._knows(self._voice):
            self._voice = DEFAULT_VOICE
            self.info = replace(self.info, model=DEFAULT_VOICE)
        await self._speak("ready", self._voice, self._speed)

    async def aclose(self) -> None:
        """End the thread. The library stays loaded: it cannot be loaded twice."""
        await self._worker.aclose()

    def busy_seconds(self) -> float:
        """How long the synthesis in progress has taken."""
        return self._worker.busy_seconds()

    async def synthesize(
        self, text: str, options: VoiceOptions = AS_CONFIGURED
    ) -> AsyncGenerator[Pcm, None]:
        """Speak ``text`` in chunks of 100 ms; long text in pieces, each made when it is needed."""
        if not self._rate_hz:
            raise EngineUnavailable("espeak-ng is not loaded")
        voice, speed = await self._voice_for(options), options.speed or self._speed
        at = 0
        for piece in pieces(clean(text), _PIECE_CHARACTERS):
            samples = await self._speak(piece, voice, speed)
            for chunk in chunks(samples, at, self._rate_hz):
                yield chunk
            at += len(samples)

    async def _speak(self, text: str, voice: str, speed: float) -> Samples:
        abort = threading.Event()
        words_per_minute = round(_NORMAL_WORDS_PER_MINUTE * speed)
        try:
            return await self._worker.run(_library.speak, text, voice, words_per_minute, abort)
        finally:
            abort.set()

    async def _voice_for(self, options: VoiceOptions) -> str:
        wanted = options.voice or self._voice
        return wanted if await self._knows(wanted) else self._voice

    async def _knows(self, voice: str) -> bool:
        if voice not in self._voices:
            known = _VOICE_NAME.fullmatch(voice) is not None
            known = known and await self._worker.run(_library.has_voice, voice)
            if not known:
                _log.warning("tts_voice_unknown", voice=voice[:64], instead=DEFAULT_VOICE)
            if len(self._voices) < _VOICES_REMEMBERED:
                self._voices[voice] = known
            return known
        return self._voices[voice]
