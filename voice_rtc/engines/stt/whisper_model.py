"""Whisper on CTranslate2, blocking: a batch of different callers' audio in, transcripts out.

faster-whisper pads every utterance to 30 s and transcribes one at a time; here a batch shares a
window as short as the caller of this module dares, which is most of the speed on a CPU, and on a
GPU a PyTorch encoder fills the device. Decoding rules follow faster-whisper's ``transcribe.py``.

Only numpy, ctranslate2 and tokenizers are imported: a worker process must be up quickly.
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples
from voice_rtc.engines.stt.mel import FRAMES_PER_SECOND, HOP, log_mel
from voice_rtc.engines.stt.sdpa_encoder import SdpaEncoder
from voice_rtc.engines.stt.whisper_tokens import WhisperTokens
from voice_rtc.errors import EngineCrashed, EngineError, EngineUnavailable, OutOfGpuMemory

ENCODERS = ("auto", "ct2", "sdpa")
MOST_FRAMES = 3000
"""30 s, the window that Whisper was trained with."""
SHORTEST_SAMPLES = LISTEN_RATE_HZ // 10
"""Of less audio nothing is understood."""
REPETITION_RATIO = 2.4
LOW_LOGPROB = -1.0
NO_SPEECH = 0.6
"""Thresholds of upstream."""
_MOST_CPU_WORKERS = 4
_CUDA_WORKERS = 2
_LONGEST_SAMPLES = MOST_FRAMES * HOP
_CUT_AFTER_SAMPLES = 25 * LISTEN_RATE_HZ
_FEW_ROWS = 8
"""Any device has memory for these."""
_QUIET_FRAME = LISTEN_RATE_HZ // 50
_QUIET_FRAMES = 10
_TOKENS_PER_SECOND = 15
_FEWEST_TOKENS = 24
_POSITIONS = 448
"""Of the decoder: tokens with the prompt."""


@dataclass(frozen=True, slots=True)
class WhisperRequest:
    """One utterance, or what there is of it."""

    audio: Samples
    """16 kHz."""
    language: str | None = None
    """One of `BatchWhisper.languages`; with a multilingual model None, empty or an unknown code
    means to detect it."""
    prompt: str = ""
    """Words that are likely to be said."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a request was understood as, and how surely."""

    text: str
    tokens: tuple[int, ...] = ()
    """Without special tokens at the start and end."""
    mean_logprob: float = 0.0
    """Mean log probability of the tokens and the end; 0.0 when there are none."""
    no_speech_probability: float = 0.0
    compression_ratio: float = 0.0
    """UTF-8 bytes of the text over those of its zlib form: high when it repeats itself."""
    language: str = ""
    """Code of the language it was transcribed as; empty when none was asked for and nothing ran."""

    @property
    def silent(self) -> bool:
        """Whisper made it up: there was no speech, and it was not sure of a word."""
        return self.no_speech_probability > NO_SPEECH and self.mean_logprob < LOW_LOGPROB

    @property
    def doubtful(self) -> bool:
        """It repeats itself or is unlikely; a 30 s window may do better."""
        if self.silent:
            return False
        return self.compression_ratio > REPETITION_RATIO or self.mean_logprob < LOW_LOGPROB


@dataclass(frozen=True, slots=True)
class _Piece:
    """One row of a batch: a request, or 25 to 30 s of a longer one."""

    request: int
    audio: Samples
    previous: list[int]
    language: str
    """Empty: to be detected."""


class BatchWhisper:
    """The loaded model, one copy of the weights for `workers` threads."""

    def __init__(
        self,
        folder: str,
        *,
        device: str = "cpu",
        device_index: int = 0,
        compute_type: str = "default",
        workers: int = 0,
        beam_size: int = 1,
        encoder: str = "auto",
    ) -> None:
        """Load a faster-whisper directory.

        ``device``: ``cpu`` or ``cuda``. ``compute_type`` ``default``: int8 on a CPU, float16 on a
        GPU. ``workers`` 0: on a CPU one per core, at most 4, each with one thread; on a GPU 2.
        ``encoder``: ``ct2``; ``sdpa``, PyTorch's; ``auto``: that on a GPU. PyTorch's that cannot
        be used is replaced by CTranslate2's with a warning; `placement` tells which one runs.

        Raises:
            EngineUnavailable: the files are not a Whisper model, or the device cannot be used.
            OutOfGpuMemory: it does not fit.
        """
        if device not in ("cpu", "cuda"):
            raise EngineUnavailable(f"Whisper runs on cpu or cuda, not on {device!r}")
        if encoder not in ENCODERS:
            raise EngineUnavailable(f"no encoder {encoder!r}: one of {', '.join(ENCODERS)}")
        if compute_type == "default":
            compute_type = "float16" if device == "cuda" else "int8"
        self.workers = workers or (
            _CUDA_WORKERS if device == "cuda" else min(_MOST_CPU_WORKERS, os.cpu_count() or 1)
        )
        self.beam_size = beam_size
        self._model = _load(folder, device, device_index, compute_type, self.workers)
        self.multilingual: bool = self._model.is_multilingual
        self._tokens = WhisperTokens(folder, multilingual=self.multilingual)
        self._suppressed = [-1, *self._tokens.never_said]
        self._mels: int = self._model.n_mels
        self._sdpa = self._sdpa_encoder(folder, encoder, device, device_index, compute_type)
        self.encoder = "ct2" if self._sdpa is None else "sdpa"
        """The one that is used."""
        self.placement = self._describe(device, device_index, compute_type)

    @property
    def languages(self) -> frozenset[str]:
        """Codes that a request may name."""
        return self._tokens.languages

    @property
    def most_frames(self) -> int:
        """Mel frames of the longest window, 100 to the second."""
        return MOST_FRAMES if self._sdpa is None else self._sdpa.most_frames

    def transcribe(
        self,
        requests: Sequence[WhisperRequest],
        window_seconds: float,
        *,
        beam_size: int | None = None,
    ) -> list[Transcript]:
        """Transcripts of ``requests``, in their order; blocks, and leaves the interpreter free.

        All are padded to one window: ``window_seconds``, or as much more as the longest needs.
        Audio of more than 30 s is cut at quiet places and its texts are joined.

        Raises:
            OutOfGpuMemory: the GPU had no room for the batch.
            EngineCrashed: the model failed or answered what cannot be.
        """
        pieces = sorted(self._pieces(requests), key=lambda piece: len(piece.previous))
        found: dict[int, list[Transcript]] = {}
        if pieces:
            try:
                results = self._run_all(pieces, len(requests), window_seconds, beam_size)
            except (RuntimeError, ValueError, MemoryError) as error:
                raise _failure(error) from error
            for piece, result in zip(pieces, results, strict=True):
                found.setdefault(piece.request, []).append(result)
        return [
            self._joined(found[number]) if number in found else self._nothing(request)
            for number, request in enumerate(requests)
        ]

    def unload(self) -> None:
        """Free the weights now. No `transcribe` may be under way or follow."""
        self._model.unload_model()
        if self._sdpa is not None:
            self._sdpa.unload()
            self._sdpa = None

    # ------------------------------------------------------------------------------ one batch

    def _pieces(self, requests: Sequence[WhisperRequest]) -> Iterator[_Piece]:
        for number, request in enumerate(requests):
            previous = self._tokens.previous(request.prompt)
            language = self._language(request)
            for audio in cut_at_quiet(request.audio):
                if len(audio) >= SHORTEST_SAMPLES:
                    yield _Piece(number, audio, previous, language)

    def _run_all(
        self, pieces: Sequence[_Piece], requests: int, seconds: float, beam_size: int | None
    ) -> list[Transcript]:
        """No more rows at a time than the caller chose, be an utterance as long as it may."""
        most = max(requests, _FEW_ROWS)
        results: list[Transcript] = []
        for start in range(0, len(pieces), most):
            rows = pieces[start : start + most]
            results += self._run(rows, seconds, beam_size or self.beam_size)
        return results

    def _run(self, pieces: Sequence[_Piece], seconds: float, beam_size: int) -> list[Transcript]:
        longest = max(len(piece.audio) for piece in pieces)
        sound = self._hear([piece.audio for piece in pieces], self._frames(seconds, longest))
        languages = [piece.language for piece in pieces]
        if not all(languages):
            sound, detected = self._detect(sound)
            languages = [asked or heard for asked, heard in zip(languages, detected, strict=True)]
        results: list[Transcript] = []
        # CTranslate2 wants the transcript to start at the same place in all prompts of a batch.
        for _, group in itertools.groupby(pieces, key=lambda piece: len(piece.previous)):
            rows = slice(len(results), len(results) + len(list(group)))
            results += self._decode(sound[rows], pieces[rows], languages[rows], beam_size)
        return results

    def _frames(self, seconds: float, longest_samples: int) -> int:
        frames = max(round(seconds * FRAMES_PER_SECOND), -(-longest_samples // HOP))
        frames = min(frames + frames % 2, self.most_frames)
        # CTranslate2 takes an encoded tensor with as many positions as mels for a spectrogram.
        return frames + 2 if frames == 2 * self._mels else frames

    def _hear(self, audios: Sequence[Samples], frames: int) -> Any:
        """What CTranslate2's decoder takes for the audio: encoded, or features to encode."""
        if self._sdpa is not None:
            return self._sdpa.hear(audios, frames)
        return np.stack([log_mel(audio, self._mels, frames) for audio in audios])

    def _detect(self, sound: Any) -> tuple[Any, list[str]]:
        """``sound`` encoded, and the most likely language of each row."""
        encoded = sound
        if self._sdpa is None:
            view = self._model.encode(ctranslate2.StorageView.from_array(sound), to_cpu=True)
            encoded = np.array(view)
        found = self._model.detect_language(ctranslate2.StorageView.from_array(encoded))
        return encoded, [self._likeliest(languages) for languages in found]

    def _likeliest(self, languages: Sequence[tuple[str, float]]) -> str:
        for token, _ in languages:  # the likeliest first
            if (code := token.strip("<|>")) in self.languages:
                return code
        raise EngineCrashed("corrupt result: a language that the tokenizer does not know")

    def _decode(
        self, sound: Any, pieces: Sequence[_Piece], languages: Sequence[str], beam_size: int
    ) -> list[Transcript]:
        prompts = [
            piece.previous + self._tokens.start(language)
            for piece, language in zip(pieces, languages, strict=True)
        ]
        most = [_most_tokens(len(piece.audio)) for piece in pieces]
        results = self._model.generate(
            ctranslate2.StorageView.from_array(sound),
            prompts,
            beam_size=beam_size,
            # The prompt counts, and CTranslate2 gives the transcript at most half of it.
            max_length=min(_POSITIONS, max(2 * max(most), len(prompts[0]) + max(most))),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=self._suppressed,
        )
        return [
            self._transcript(result, tokens, language)
            for result, tokens, language in zip(results, most, languages, strict=True)
        ]

    def _transcript(self, result: Any, most: int, language: str) -> Transcript:
        # Longer audio in the batch may have let a runaway repetition go on for longer.
        tokens, no_speech = tuple(result.sequences_ids[0][:most]), result.no_speech_prob
        # The mean over the tokens; of none it would be infinite.
        score = result.scores[0] if tokens else 0.0
        if not (math.isfinite(score) and math.isfinite(no_speech)):
            raise EngineCrashed("corrupt result: the score is not a number")
        if any(not 0 <= token < self._tokens.count for token in tokens):
            raise EngineCrashed("corrupt result: a token that does not exist")
        text = self._tokens.text(list(tokens))
        # Upstream counts the end too.
        mean_logprob = score * len(tokens) / (len(tokens) + 1)
        return Transcript(text, tokens, mean_logprob, no_speech, _compression_ratio(text), language)

    # ---------------------------------------------------------------------------- all the rest

    def _joined(self, parts: list[Transcript]) -> Transcript:
        """One transcript of all pieces of a request; of one piece, itself without invented text."""
        said = " ".join(part.text for part in parts if part.text and not part.silent)
        if len(parts) == 1:
            (part,) = parts
            return part if said == part.text else replace(part, text=said)
        ends = sum(len(part.tokens) + 1 for part in parts)
        return Transcript(
            said,
            tuple(itertools.chain.from_iterable(part.tokens for part in parts)),
            sum(part.mean_logprob * (len(part.tokens) + 1) for part in parts) / ends,
            min(part.no_speech_probability for part in parts),
            max(part.compression_ratio for part in parts),
            parts[0].language,
        )

    def _nothing(self, request: WhisperRequest) -> Transcript:
        return Transcript("", no_speech_probability=1.0, language=self._language(request))

    def _language(self, request: WhisperRequest) -> str:
        if not self.multilingual:
            return "en"
        language = (request.language or "").lower()
        if language in self.languages:
            return language
        if language:
            _warn("stt_language_unknown", language=language)
        return ""

    def _sdpa_encoder(
        self, folder: str, encoder: str, device: str, index: int, compute_type: str
    ) -> SdpaEncoder | None:
        if encoder == "ct2" or (encoder == "auto" and device != "cuda"):
            return None
        half = device == "cuda" and compute_type != "float32"
        path = Path(folder) / "model.bin"
        try:
            return SdpaEncoder(path, device=device, device_index=index, half=half)
        except EngineUnavailable as error:
            _warn("stt_sdpa_encoder_unusable", error=str(error))
        except RuntimeError as error:  # CUDA failed while the weights were copied
            raise _failure(error) from error
        return None

    def _describe(self, device: str, index: int, compute_type: str) -> str:
        place = f"cuda:{index}" if device == "cuda" else device
        parts = [f"{place} {compute_type}"]
        if device == "cuda" or self._sdpa is not None:
            parts.append(f"{self.encoder} encoder")
        return ", ".join([*parts, f"{self.workers} worker{'s' if self.workers > 1 else ''}"])


def cut_at_quiet(audio: Samples) -> list[Samples]:
    """``audio`` in pieces of at most 30 s, cut after 25 s or more where it is quietest.

    Together the pieces are the audio; 30 s or less are one piece.
    """
    pieces = []
    while len(audio) > _LONGEST_SAMPLES:
        where = _CUT_AFTER_SAMPLES + _quietest(audio[_CUT_AFTER_SAMPLES:_LONGEST_SAMPLES])
        pieces.append(audio[:where])
        audio = audio[where:]
    return [*pieces, audio]


def _quietest(audio: Samples) -> int:
    """The middle of the 0.2 s with the least energy."""
    frames = audio[: len(audio) // _QUIET_FRAME * _QUIET_FRAME].reshape(-1, _QUIET_FRAME)
    energy = np.square(frames, dtype=np.float32).sum(axis=1)
    around = np.convolve(energy, np.ones(_QUIET_FRAMES, dtype=np.float32), mode="valid")
    return (int(np.argmin(around)) + _QUIET_FRAMES // 2) * _QUIET_FRAME


def _most_tokens(samples: int) -> int:
    """As many as can be said in the time."""
    said = max(_FEWEST_TOKENS, math.ceil(samples * _TOKENS_PER_SECOND / LISTEN_RATE_HZ))
    return min(said, _POSITIONS // 2)


def _compression_ratio(text: str) -> float:
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def _load(folder: str, device: str, index: int, compute_type: str, workers: int) -> Any:
    try:
        return ctranslate2.models.Whisper(
            folder,
            device=device,
            device_index=index,
            compute_type=compute_type,
            inter_threads=workers,
            intra_threads=1,
        )
    except (RuntimeError, ValueError, MemoryError) as error:
        failure = _failure(error)
        if isinstance(failure, OutOfGpuMemory):
            raise failure from error
        raise EngineUnavailable(f"Whisper in {folder} cannot be loaded: {error}") from error


def _warn(event: str, **values: object) -> None:
    # With its pretty tracebacks it takes a third of the worker's start, and this is rare.
    import structlog

    structlog.get_logger("voice_rtc.engines").warning(event, **values)


def _failure(error: Exception) -> EngineError:
    """What a failure of CTranslate2 or torch means here."""
    message = str(error) or type(error).__name__
    if "out of memory" in message.lower() or "alloc_failed" in message.lower():
        return OutOfGpuMemory(f"Whisper ran out of GPU memory: {message}")
    return EngineCrashed(f"Whisper failed: {message}")
