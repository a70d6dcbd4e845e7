"""How a caller sounds at 48 kHz: words in espeak-ng's voice, coughs, clicks, babble and echo."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tools.bot_audio import HeardFrame
from tools.turn_eval.scripts import CALLER_VOICES, SOUNDS, Piece
from tools.wav import is_audible, resample
from voice_rtc.core.audio import SEND_FRAME_SAMPLES, SEND_RATE_HZ, Samples, silence
from voice_rtc.engines.base import VoiceOptions
from voice_rtc.engines.tts.espeak import EspeakTts

_BABBLE_SECONDS = 12.0
_BABBLE_TEXTS = (
    "They bought the new one last summer and nobody has seen it since then.",
    "My brother works in a large office near the station every day.",
    "We always drink our tea after dinner and talk about the old times.",
    "She said that her sister would come back before the end of the week.",
)
_MOST_BEHIND = 10
"""Frames by which an echo may lag behind its delay before it catches up."""
_SOUND_RMS = 2500.0

Floats = NDArray[np.float64]


class Voices:
    """The callers' voices; `start` before use, `aclose` at the end."""

    def __init__(self) -> None:
        self._engine = EspeakTts()
        self._babble: dict[float, Samples] = {}

    async def start(self) -> None:
        """Load espeak-ng. Raises EngineUnavailable."""
        await self._engine.start()

    async def aclose(self) -> None:
        """End its thread."""
        await self._engine.aclose()

    async def said(self, pieces: Sequence[Piece], voice: str, seed: int) -> Samples:
        """All pieces with their pauses.

        Silence around a piece is taken off, so that pauses are true. ``seed`` varies the sounds.
        """
        made: list[Samples] = []
        for number, piece in enumerate(pieces):
            made.append(silence(round(piece.pause * SEND_RATE_HZ)))
            made.append(await self._piece(piece, voice, seed + number))
        return np.concatenate(made)

    async def _piece(self, piece: Piece, voice: str, seed: int) -> Samples:
        if piece.text in SOUNDS:
            return _MAKERS[piece.text](np.random.default_rng(seed))
        if not piece.text:
            return silence(0)
        options = VoiceOptions(voice, piece.speed)
        chunks = [pcm.samples async for pcm in self._engine.synthesize(piece.text, options)]
        return trimmed(resample(np.concatenate(chunks), self._engine.rate_hz, SEND_RATE_HZ))

    async def babble(self, level_db: float) -> Samples:
        """Four people talking elsewhere, ``level_db`` against one who talks here; for a `Loop`."""
        if level_db not in self._babble:
            self._babble[level_db] = await self._made_babble(level_db)
        return self._babble[level_db]

    async def _made_babble(self, level_db: float) -> Samples:
        length = round(_BABBLE_SECONDS * SEND_RATE_HZ)
        mixed = np.zeros(length)
        near = 0.0
        for number, text in enumerate(_BABBLE_TEXTS):
            voice = CALLER_VOICES[number % len(CALLER_VOICES)]
            speech = (await self._piece(Piece(text), voice, 0)).astype(np.float64)
            near = max(near, _rms(speech))
            rolled = np.roll(np.resize(speech, length), number * SEND_RATE_HZ)
            mixed += rolled
        return _sound(mixed, near * 10 ** (level_db / 20))


def trimmed(samples: Samples) -> Samples:
    """Without the inaudible frames at both ends."""
    starts = range(0, len(samples), SEND_FRAME_SAMPLES)
    loud = [at for at in starts if is_audible(samples[at : at + SEND_FRAME_SAMPLES])]
    return samples[loud[0] : loud[-1] + SEND_FRAME_SAMPLES] if loud else silence(0)


# ------------------------------------------------------------------------- without words


def _cough(dice: np.random.Generator) -> Samples:
    """Two bursts of low noise with a sharp start, 0.35 s in all."""
    parts = []
    for seconds in (0.16, 0.19):
        length = round(seconds * SEND_RATE_HZ)
        noise = np.convolve(dice.normal(size=length), np.ones(24) / 24, mode="same")
        parts.append(noise * np.exp(-np.linspace(0.0, 5.0, length)))
    return _sound(np.concatenate(parts), _SOUND_RMS)


def _click(dice: np.random.Generator) -> Samples:
    """A key or a cup: 8 ms."""
    length = round(0.008 * SEND_RATE_HZ)
    return _sound(dice.normal(size=length) * np.exp(-np.linspace(0, 6, length)), 2 * _SOUND_RMS)


def _burst(dice: np.random.Generator) -> Samples:
    """A chair, paper, traffic: even noise, 0.2 to 0.7 s."""
    length = round(dice.uniform(0.2, 0.7) * SEND_RATE_HZ)
    noise = np.convolve(dice.normal(size=length), np.ones(8) / 8, mode="same")
    return _sound(noise * np.hanning(length) ** 0.5, _SOUND_RMS / 2)


_MAKERS: dict[str, Callable[[np.random.Generator], Samples]] = {
    "cough": _cough, "click": _click, "burst": _burst,
}  # fmt: skip


def _rms(sound: Floats) -> float:
    return float(np.sqrt(np.mean(sound**2))) if len(sound) else 0.0


def _sound(shape: Floats, rms: float) -> Samples:
    scaled = shape * (rms / max(_rms(shape), 1e-9))
    return np.clip(scaled, -32767, 32767).astype(np.int16)


# --------------------------------------------------------------------- in the background


class Loop:
    """A sound again and again, a frame at a time; for `Mouth.under`."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._at = 0

    def __call__(self, _now: float) -> Samples:
        """The next frame."""
        frame = np.take(self._samples, range(self._at, self._at + SEND_FRAME_SAMPLES), mode="wrap")
        self._at = (self._at + SEND_FRAME_SAMPLES) % len(self._samples)
        return frame


class Echo:
    """What the loudspeaker played comes back, later and quieter; for `Mouth.under`.

    The delay counts from when a frame came out of the jitter buffer.
    """

    def __init__(self, frames: Sequence[HeardFrame], level_db: float, delay_seconds: float) -> None:
        """``frames`` grows as they come; what is in it already is not echoed."""
        self._frames = frames
        self._gain = 10 ** (level_db / 20)
        self._delay = delay_seconds
        self._next = len(frames)

    def __call__(self, now: float) -> Samples:
        """The frame that is due, silence when none is."""
        due = self._next
        while due < len(self._frames) and self._frames[due].at + self._delay <= now:
            due += 1
        if due == self._next:
            return silence(SEND_FRAME_SAMPLES)
        frame = self._frames[max(self._next, due - _MOST_BEHIND)]
        self._next = max(self._next, due - _MOST_BEHIND) + 1
        quiet = (frame.samples * self._gain).astype(np.int16)[:SEND_FRAME_SAMPLES]
        return np.concatenate([quiet, silence(SEND_FRAME_SAMPLES - len(quiet))])
