"""Kokoro: the natural voice, 82 million parameters on a thread of its own.

Phonemes come from misaki's espeak fallback rather than from `kokoro.KPipeline`, which downloads a
spaCy model when it is made. A clause is synthesised in one go: there is no streaming inside it.

Importing kokoro replaces the handlers of loguru; this project logs through structlog and is not
concerned, a program that embeds it and uses loguru is.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import structlog

from voice_rtc.core.audio import Pcm, Samples
from voice_rtc.engines.base import EngineInfo, VoiceOptions
from voice_rtc.engines.hub import (
    DownloadProgress,
    Weights,
    cache_folder,
    cached,
    fetch,
    local_folder,
)
from voice_rtc.engines.tts.speakable import AS_CONFIGURED, chunks, clean, pieces
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineCrashed, EngineError, EngineUnavailable, OutOfGpuMemory

_log = structlog.get_logger("voice_rtc.engines")

DEFAULT_VOICE = "af_heart"
REPOSITORY = "hexgrad/Kokoro-82M"
_RATE_HZ = 24_000
_CONFIG, _MODEL = "config.json", "kokoro-v1_0.pth"
_VOICE_NAME = re.compile(r"[a-z]{2}_[a-z0-9]{1,32}")
_ENGLISH = "ab"  # a voice's first letter is its language: a American, b British
_PIECE_CHARACTERS = 200
_MOST_PHONEMES = 510
_VOICES_REMEMBERED = 1000
_TORCH_THREADS = 2
_WHAT_TO_DO = (
    "Let the server reach the Hugging Face hub once, or set tts.model (VOICE_RTC_TTS__MODEL) to a "
    f"directory with {_CONFIG}, {_MODEL} and voices/{DEFAULT_VOICE}.pt"
)


class KokoroModel:
    """Model, phonemes and voices; blocking, on one thread."""

    def __init__(self, folder: Path) -> None:
        import torch
        from kokoro import KModel
        from misaki.espeak import EspeakFallback

        self._torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(_TORCH_THREADS)
        model = KModel(REPOSITORY, config=str(folder / _CONFIG), model=str(folder / _MODEL))
        self._model: Any = model.to(self.device).eval()
        self._folder = folder / "voices"
        self._voices: dict[str, Any] = {}
        self._phonemes = {"a": EspeakFallback(british=False), "b": EspeakFallback(british=True)}

    def has_voice(self, voice: str) -> bool:
        """Is this an English voice whose file is there?"""
        return (
            _VOICE_NAME.fullmatch(voice) is not None
            and voice[0] in _ENGLISH
            and (self._folder / f"{voice}.pt").is_file()
        )

    def speak(self, text: str, voice: str, speed: float) -> Samples:
        """``text`` as 24 kHz samples; empty when it has no phonemes."""
        phonemes, _ = self._phonemes[voice[0]](SimpleNamespace(text=text))
        known = [each for each in phonemes or "" if each in self._model.vocab][:_MOST_PHONEMES]
        if not known:
            return np.zeros(0, np.int16)
        styles = self._style(voice)
        style = styles[min(len(known), len(styles)) - 1]
        with self._torch.inference_mode():
            audio = self._model("".join(known), style, speed)
        data = np.nan_to_num(np.atleast_1d(audio.float().cpu().numpy()))
        samples: Samples = (np.clip(data, -1.0, 1.0) * 32767).astype(np.int16)
        return samples

    def _style(self, voice: str) -> Any:
        if voice not in self._voices:
            path = str(self._folder / f"{voice}.pt")
            self._voices[voice] = self._torch.load(path, map_location="cpu", weights_only=True)
        return self._voices[voice]


class KokoroTts:
    """The best voice that this server has. Needs the extra ``voice-rtc[kokoro]``."""

    def __init__(
        self,
        model: str = "",
        voice: str = "",
        speed: float = 1.0,
        *,
        download: bool = True,
        reason: str = "",
    ) -> None:
        """``model``: local directory; empty takes the hub's Kokoro-82M, cached or downloaded."""
        self._folder_setting = model
        self._voice = voice or DEFAULT_VOICE
        self._speed = speed
        self._download = download
        self._reason = reason
        self._worker = EngineWorker("tts-kokoro")
        self._model: KokoroModel | None = None
        self._voices: dict[str, bool] = {}
        self.progress = DownloadProgress()
        """Of the weights' download, for /readyz."""
        self.info = EngineInfo("tts", "kokoro", model=model or REPOSITORY, reason=reason)

    @property
    def rate_hz(self) -> int:
        """24000."""
        return _RATE_HZ

    def busy_seconds(self) -> float:
        """How long the synthesis in progress has taken."""
        return self._worker.busy_seconds()

    async def start(self) -> None:
        """Find or fetch the weights, load and warm up. Raises EngineUnavailable."""
        if why := await self._worker.run(why_not_installed):
            raise EngineUnavailable(why)
        folder = await self._find()
        try:
            model = await self._worker.run(KokoroModel, folder)
            if not model.has_voice(self._voice):
                raise EngineUnavailable(f"{folder}/voices has no English voice {self._voice}")
            await self._worker.run(model.speak, "Hello there.", self._voice, self._speed)
        except EngineError:
            raise
        except Exception as error:
            # A damaged file fails in torch.load in any way: UnpicklingError, EOFError, ...
            raise EngineUnavailable(f"Kokoro cannot be loaded: {error}") from error
        self._model = model
        self.info = EngineInfo(
            "tts",
            "kokoro",
            model=f"{self._folder_setting or REPOSITORY} ({model.device})",
            reason=self._reason,
        )

    async def aclose(self) -> None:
        """End the thread and free the weights. Idempotent."""
        self.progress.cancel()
        await self._worker.aclose()
        self._model = None

    async def synthesize(
        self, text: str, options: VoiceOptions = AS_CONFIGURED
    ) -> AsyncGenerator[Pcm, None]:
        """Speak ``text`` in chunks of 100 ms; long text in pieces, each made when it is needed."""
        model = self._model
        if model is None:
            raise EngineUnavailable("Kokoro is not loaded")
        voice, speed = await self._voice_for(model, options), options.speed or self._speed
        at = 0
        for piece in pieces(clean(text), _PIECE_CHARACTERS):
            try:
                samples = await self._worker.run(model.speak, piece, voice, speed)
            except (RuntimeError, ValueError) as error:
                raise _speak_error(error) from error
            for chunk in chunks(samples, at, _RATE_HZ):
                yield chunk
            at += len(samples)

    async def _voice_for(self, model: KokoroModel, options: VoiceOptions) -> str:
        wanted = options.voice or self._voice
        if wanted not in self._voices:
            known = await self._worker.run(model.has_voice, wanted)
            if not known:
                _log.warning("tts_voice_unknown", voice=wanted[:64], instead=self._voice)
            if len(self._voices) >= _VOICES_REMEMBERED:
                return wanted if known else self._voice
            self._voices[wanted] = known
        return wanted if self._voices[wanted] else self._voice

    async def _find(self) -> Path:
        if self._folder_setting:
            required = (_CONFIG, _MODEL, f"voices/{self._voice}.pt")
            folder = local_folder(self._folder_setting, required)
            if folder is None:
                raise EngineUnavailable(f"there is no directory {self._folder_setting}")
            return folder
        return await self._from_hub(weights_of(self._voice))

    async def _from_hub(self, weights: Weights) -> Path:
        if not self._download:
            if (found := await self._worker.run(cached, weights)) is not None:
                return found
            raise EngineUnavailable(
                f"Kokoro is not in the hub cache {cache_folder()} and tts.download is off. "
                f"{_WHAT_TO_DO}"
            )
        try:
            return await fetch(weights, self._worker, self.progress)
        except EngineUnavailable as error:
            raise EngineUnavailable(f"Kokoro: {error}. {_WHAT_TO_DO}") from error


def weights_of(voice: str) -> Weights:
    """What Kokoro needs from the hub to speak with ``voice``; all English voices come along."""
    required = (_CONFIG, _MODEL, f"voices/{voice or DEFAULT_VOICE}.pt")
    return Weights(REPOSITORY, (_CONFIG, _MODEL, "voices/[ab]*.pt"), required)


def why_not_installed() -> str:
    """What keeps Kokoro's packages from being imported; "" when nothing does. Does not import."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "kokoro", "misaki") if find_spec(name) is None]
    if not missing:
        return ""
    return f"{', '.join(missing)} not installed: pip install 'voice-rtc[kokoro]'"


def _speak_error(error: Exception) -> EngineError:
    if "out of memory" in str(error).lower():
        return OutOfGpuMemory(f"Kokoro ran out of GPU memory: {error}")
    return EngineCrashed(f"Kokoro failed: {error}")
