"""Kokoro-82M: text and a voice to sound. Blocking, on one thread of one process.

Phonemes come from misaki's espeak fallback rather than from `kokoro.KPipeline`, which downloads a
spaCy model when it is made.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from voice_rtc.core.audio import Samples, silence
from voice_rtc.engines.tts.kokoro_files import CONFIG, MODEL, REPOSITORY, VOICES
from voice_rtc.engines.tts.kokoro_halves import Graphs, Halves, Numbers, Steps
from voice_rtc.engines.tts.kokoro_padded import FRAME_SAMPLES, PaddedKokoro
from voice_rtc.engines.tts.kokoro_voices import Utterance, VoiceBlend
from voice_rtc.errors import EngineCrashed, OutOfGpuMemory

Tensor = Any
"""A ``torch.Tensor``: most installations have no torch, nor its types."""

_MOST_PHONEMES = 510
_BLENDS_KEPT = 64
_CLAUSE = "Well, let me see."
_LONGER = "There are several ways to look at that, and I would like to begin with the simplest one."
_WORTH_IT = 1.15
"""bfloat16 costs digits: it is taken where it is so many times faster."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How to run it; see `voice_rtc.config.TtsSettings`."""

    device: str = "cpu"
    """``cpu`` or ``cuda:0``."""
    precision: str = "auto"
    most_rows: int = 1
    graphs: bool = True
    threads: int = 2


class KokoroModel:
    """Model, phonemes and voices."""

    def __init__(self, folder: Path, settings: ModelSettings = ModelSettings()) -> None:
        """Load the weights; `warm_up` must follow."""
        from kokoro import KModel
        from misaki.espeak import EspeakFallback

        self._settings = settings
        self._on_gpu = settings.device != "cpu"
        if not self._on_gpu:
            torch.set_num_threads(settings.threads)
        stock = KModel(REPOSITORY, config=str(folder / CONFIG), model=str(folder / MODEL)).eval()
        self._vocabulary: dict[str, int] = stock.vocab
        self._model = PaddedKokoro(stock, torch.device(settings.device))
        self._halves: Halves = Steps(self._model)
        self._styles = Styles(folder / VOICES)
        self._phonemes = {british: EspeakFallback(british=british) for british in (False, True)}
        self._graphs = 0

    @property
    def placement(self) -> str:
        """Where and how it runs, for people."""
        name = torch.cuda.get_device_name(self._settings.device) if self._on_gpu else "cpu"
        graphs = f", {self._graphs} graphs" if self._graphs else ""
        return f"{name}, {str(self._model.dtype).removeprefix('torch.')}{graphs}"

    def warm_up(self, voice: VoiceBlend) -> float:
        """Choose the precision, capture graphs; the seconds that a clause of four words takes."""
        clause = Utterance(_CLAUSE, voice, 1.0)
        with torch.inference_mode():
            self._choose_precision(clause)
            if self._on_gpu and self._settings.graphs:
                graphs = Graphs(self._model, self._settings.most_rows)
                graphs.capture()
                self._halves, self._graphs = graphs, len(graphs)
        self.speak([Utterance(_LONGER, voice, 1.0)])
        return self._seconds(clause)

    def speak(self, utterances: Sequence[Utterance]) -> list[Samples]:
        """Each as 24 kHz samples, in one batch; empty where there are no phonemes.

        Raises:
            OutOfGpuMemory: it did not fit.
            EngineCrashed: PyTorch could not do it.
            RuntimeError: the GPU is in a state that only a new process gets out of.
        """
        try:
            with torch.inference_mode():
                return self._speak(utterances)
        except torch.OutOfMemoryError as error:
            raise OutOfGpuMemory(f"Kokoro ran out of GPU memory: {error}") from error
        except (RuntimeError, ValueError) as error:
            if "CUDA error" in str(error):
                raise
            raise EngineCrashed(f"Kokoro failed: {error}") from error

    def _speak(self, utterances: Sequence[Utterance]) -> list[Samples]:
        texts = [self._ids(utterance) for utterance in utterances]
        told = [number for number, ids in enumerate(texts) if len(ids)]
        spoken = [silence(0) for _ in utterances]
        if not told:
            return spoken
        ids = [texts[number] for number in told]
        styles = torch.stack([self._styles.of(utterances[n].voice, len(texts[n])) for n in told])
        words = self._halves.words(ids, styles, [utterances[number].speed for number in told])
        tokens = [
            np.repeat(np.arange(len(row)), words.frames[number, : len(row)])
            for number, row in enumerate(ids)
        ]
        sounds = self._halves.sounds(words, tokens, styles)
        for number, sound, frames in zip(told, sounds, tokens, strict=True):
            spoken[number] = sound[: len(frames) * FRAME_SAMPLES].copy()
        return spoken

    def _ids(self, utterance: Utterance) -> Numbers:
        phonemes, _ = self._phonemes[utterance.voice.british](SimpleNamespace(text=utterance.text))
        known = [self._vocabulary[each] for each in phonemes or "" if each in self._vocabulary]
        ids = [0, *known[:_MOST_PHONEMES], 0] if known else []
        return np.array(ids, np.int64)

    def _choose_precision(self, clause: Utterance) -> None:
        wanted = self._settings.precision
        if wanted == "auto" and not self._on_gpu:
            exact = self._seconds(clause)
            self._model.use(torch.bfloat16)
            if self._seconds(clause) * _WORTH_IT > exact:
                self._model.use(torch.float32)
        elif wanted == "bfloat16":
            self._model.use(torch.bfloat16)

    def _seconds(self, utterance: Utterance) -> float:
        """Of the second run: the first one warms up."""
        started = 0.0
        for _ in range(2):
            started = time.monotonic()
            self.speak([utterance])
        return time.monotonic() - started


class Styles:
    """The style tables of the voices and their blends; the newest are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: OrderedDict[VoiceBlend, Tensor] = OrderedDict()

    def of(self, voice: VoiceBlend, tokens: int) -> Tensor:
        """The style (256) for a text of so many tokens, its two ends among them."""
        table = self._table(voice)
        return table[min(max(tokens - 2, 1), len(table)) - 1].flatten()

    def _table(self, voice: VoiceBlend) -> Tensor:
        if voice in self._tables:
            self._tables.move_to_end(voice)
            return self._tables[voice]
        tables = [self._load(name) * share for name, share in voice.parts]
        shortest = min(map(len, tables))
        self._tables[voice] = sum(table[:shortest] for table in tables)
        if len(self._tables) > _BLENDS_KEPT:
            self._tables.popitem(last=False)
        return self._tables[voice]

    def _load(self, name: str) -> Tensor:
        path = str(self._folder / f"{name}.pt")
        return torch.load(path, map_location="cpu", weights_only=True).float()
