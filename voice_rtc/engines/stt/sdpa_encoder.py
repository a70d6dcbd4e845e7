"""Whisper's encoder in PyTorch with fused attention, from the weights of a CTranslate2 model.

On a GPU it encodes about five times as many windows as CTranslate2's own, which gains nothing from
batches; CTranslate2 decodes what comes out. Architecture: openai/whisper ``model.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voice_rtc.core.audio import Samples
from voice_rtc.engines.stt.ct2_weights import Ct2Weights
from voice_rtc.engines.stt.mel import log_mel
from voice_rtc.errors import EngineUnavailable

Tensor = Any
"""A ``torch.Tensor``: most installations have no torch, nor its types."""

_SPEC = "WhisperSpec"


@dataclass(frozen=True, slots=True)
class _Affine:
    """A weight with its bias: of a linear layer, a convolution or a normalisation."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Block:
    attention_norm: _Affine
    queries_keys_values: _Affine
    attention_out: _Affine
    ffn_norm: _Affine
    ffn_in: _Affine
    ffn_out: _Affine


class SdpaEncoder:
    """The encoder on one device; `hear` may be called from several threads at once.

    Each thread has a CUDA stream of its own. What `hear` returns is complete: any other stream
    may read it.
    """

    def __init__(
        self, model: Path, *, device: str = "cpu", device_index: int = 0, half: bool = False
    ) -> None:
        """Load the weights of ``model`` (a ``model.bin``); ``half``: compute in float16.

        Raises:
            EngineUnavailable: torch cannot be used or the weights are not as expected.
        """
        self._torch = torch = _usable_torch(device)
        self.device = f"cuda:{device_index}" if device == "cuda" else "cpu"
        self._index = device_index
        self._dtype = torch.float16 if half else torch.float32
        self._streams = threading.local()
        with Ct2Weights(model) as weights:
            if weights.spec != _SPEC:
                raise EngineUnavailable(f"{model} holds a {weights.spec}, not a {_SPEC}")
            self._load(weights)

    @property
    def most_frames(self) -> int:
        """Longest input: two mel frames per position."""
        return 2 * len(self._positions)

    def hear(self, audios: Sequence[Samples], frames: int) -> Any:
        """Encode 16 kHz int16 audio, each followed by silence up to ``frames`` mel frames.

        Returns ``[batch, frames / 2, width]``, contiguous: a numpy array of a CPU, a tensor of a
        GPU. Both can be given to ``ctranslate2.StorageView.from_array``.
        """
        with self._own_stream():
            return self._plain(self.encode(self._features(audios, frames)))

    def encode(self, features: Tensor) -> Tensor:
        """Hidden states ``[batch, frames / 2, width]`` of features ``[batch, mels, frames]``."""
        functional = self._torch.nn.functional
        with self._torch.inference_mode():
            sound = features.to(self._dtype)
            conv1, conv2 = self._convolutions
            sound = functional.conv1d(sound, conv1.weight, conv1.bias, padding=1)
            sound = functional.gelu(sound)
            sound = functional.conv1d(sound, conv2.weight, conv2.bias, stride=2, padding=1)
            sound = functional.gelu(sound).transpose(1, 2)
            sound = sound + self._positions[: sound.shape[1]]
            for block in self._blocks:
                sound = self._through(block, sound)
            return self._normed(self._last_norm, sound).contiguous()

    def unload(self) -> None:
        """Free the weights."""
        del self._convolutions, self._positions, self._blocks, self._last_norm
        if self.device != "cpu":
            with self._torch.cuda.device(self._index):
                self._torch.cuda.empty_cache()

    def _through(self, block: _Block, sound: Tensor) -> Tensor:
        functional = self._torch.nn.functional
        batch, positions, width = sound.shape
        normed = self._normed(block.attention_norm, sound)
        fused = _linear(functional, block.queries_keys_values, normed)
        shape = (batch, positions, 3, self._heads, width // self._heads)
        queries, keys, values = fused.view(shape).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        attended = attended.transpose(1, 2).reshape(batch, positions, width)
        sound = sound + _linear(functional, block.attention_out, attended)
        inner = _linear(functional, block.ffn_in, self._normed(block.ffn_norm, sound))
        return sound + _linear(functional, block.ffn_out, functional.gelu(inner))

    def _normed(self, norm: _Affine, sound: Tensor) -> Tensor:
        return self._torch.nn.functional.layer_norm(
            sound, norm.weight.shape, norm.weight, norm.bias
        )

    def _features(self, audios: Sequence[Samples], frames: int) -> Tensor:
        if self.device == "cpu":
            features = np.stack([log_mel(audio, self._mels, frames) for audio in audios])
            return self._torch.from_numpy(features)
        from voice_rtc.engines.stt.mel_torch import log_mel_torch

        return log_mel_torch(audios, self._mels, frames, self.device)

    def _plain(self, encoded: Tensor) -> Any:
        return encoded.numpy() if self.device == "cpu" else encoded

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        if self.device == "cpu":
            yield
            return
        cuda = self._torch.cuda
        with cuda.device(self._index):
            stream = getattr(self._streams, "stream", None)
            if stream is None:
                stream = self._streams.stream = cuda.Stream()
            with cuda.stream(stream):
                yield
            # CTranslate2 reads the result on a stream of its own.
            stream.synchronize()

    def _load(self, weights: Ct2Weights) -> None:
        def tensor(name: str) -> Tensor:
            array = self._torch.from_numpy(weights.array(f"encoder/{name}"))
            return array.to(device=self.device, dtype=self._dtype)

        def layer(name: str) -> _Affine:
            return _Affine(tensor(f"{name}/weight"), tensor(f"{name}/bias"))

        def norm(name: str) -> _Affine:
            return _Affine(tensor(f"{name}/gamma"), tensor(f"{name}/beta"))

        def block(name: str) -> _Block:
            attention, ffn = f"{name}/self_attention", f"{name}/ffn"
            return _Block(
                norm(f"{attention}/layer_norm"),
                layer(f"{attention}/linear_0"),
                layer(f"{attention}/linear_1"),
                norm(f"{ffn}/layer_norm"),
                layer(f"{ffn}/linear_0"),
                layer(f"{ffn}/linear_1"),
            )

        self._heads = weights.number("encoder/num_heads")
        self._convolutions = (layer("conv1"), layer("conv2"))
        self._positions = tensor("position_encodings/encodings")
        self._last_norm = norm("layer_norm")
        depth = 0
        while f"encoder/layer_{depth}/ffn/linear_0/weight" in weights:
            depth += 1
        self._blocks = [block(f"layer_{number}") for number in range(depth)]
        self._mels = int(self._convolutions[0].weight.shape[1])


def _linear(functional: Any, layer: _Affine, sound: Tensor) -> Tensor:
    result: Tensor = functional.linear(sound, layer.weight, layer.bias)
    return result


def _usable_torch(device: str) -> Any:
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        # OSError and RuntimeError: a library of it is missing or of another version.
        raise EngineUnavailable(f"PyTorch cannot be used: {error}") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable("PyTorch cannot be used: it finds no GPU")
    return torch
