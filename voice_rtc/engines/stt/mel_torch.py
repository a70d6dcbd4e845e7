"""`mel.log_mel` for a whole batch in PyTorch, so that a GPU does it for hundreds of callers.

Import only where torch is known to be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from voice_rtc.core.audio import Samples
from voice_rtc.engines.stt.mel import (
    FLOOR,
    FULL_SCALE,
    HOP,
    RANGE,
    WINDOW,
    frames_touched,
    hann,
    mel_filters,
)

_EDGE = WINDOW // 2


def log_mel_torch(audios: Sequence[Samples], mels: int, frames: int, device: str) -> Any:
    """Features of each of ``audios`` (int16, 16 kHz) as `log_mel` makes them.

    Returns a float32 tensor ``[batch, mels, frames]`` on ``device``, of the current stream.
    Raises ValueError when an audio does not fit into the frames.
    """
    touched = max((frames_touched(len(audio), frames) for audio in audios), default=0)
    if touched == 0:
        return torch.full((len(audios), mels, frames), _scaled(FLOOR), device=device)
    padded = _padded(audios, touched, device)
    window, filters = _constants(mels, device)
    spectrum = torch.fft.rfft(padded.unfold(1, WINDOW, HOP) * window)
    power = spectrum.real.square() + spectrum.imag.square()
    # Behind a shorter audio is silence, whose logarithm is the floor: it raises no maximum.
    logs = (power @ filters).clamp_(min=10.0**FLOOR).log10_()
    lowest = logs.amax(dim=(1, 2), keepdim=True) - RANGE
    kept = min(touched, frames)
    features = torch.empty((len(audios), mels, frames), device=device)
    features[:, :, :kept] = torch.maximum(logs[:, :kept], lowest).transpose(1, 2)
    features[:, :, kept:] = lowest.clamp(min=FLOOR)
    return features.add_(4.0).div_(4.0)


def _scaled(log: float) -> float:
    return (log + 4.0) / 4.0


def _padded(audios: Sequence[Samples], touched: int, device: str) -> Any:
    """Each audio with its start mirrored before it and silence behind, float32."""
    body = np.zeros((len(audios), max(touched * HOP + _EDGE, WINDOW)), dtype=np.int16)
    for row, audio in zip(body, audios, strict=True):
        row[: len(audio)] = audio[: len(row)]
    samples = torch.from_numpy(body).to(device).to(torch.float32).div_(FULL_SCALE)
    padded = torch.cat([samples[:, 1 : _EDGE + 1].flip(1), samples], dim=1)
    return padded[:, : (touched - 1) * HOP + WINDOW]


@cache
def _constants(mels: int, device: str) -> tuple[Any, Any]:
    filters = torch.from_numpy(np.ascontiguousarray(mel_filters(mels).T)).to(device)
    return torch.from_numpy(hann()).to(device), filters
