"""The two halves of Kokoro, run step by step or as CUDA graphs of few shapes.

Kokoro is launch-bound on a GPU: some thousand small kernels, of which a clause needs each for a few
microseconds. A graph launches them all at once, but has one shape; so texts and sounds are padded
to the next of `TOKEN_BUCKETS` and `FRAME_BUCKETS`, which `PaddedKokoro` does not hear, and rows to
the next of `BATCHES`. What is larger than all of them runs step by step.

All graphs share one pool of memory: each overwrites what the one before it left, so results are
copied before the next is replayed. One thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from voice_rtc.engines.tts.kokoro_padded import PaddedKokoro

Tensor = Any
"""A ``torch.Tensor``: most installations have no torch, nor its types."""
Numbers = NDArray[np.int64]

TOKEN_BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
FRAME_BUCKETS = (32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640)
BATCHES = (1, 2, 4, 8)
_MOST_TOKENS = 1024
_MOST_FRAMES = 1024
"""In a batch that has a graph: the GPU is full long before."""


def next_of(buckets: Sequence[int], length: int) -> int | None:
    """The smallest that holds ``length``; None past the largest."""
    return next((bucket for bucket in buckets if bucket >= length), None)


@dataclass(slots=True)
class Words:
    """What the first half knows of a batch. Valid until the next batch begins."""

    prosody: Tensor
    text: Tensor
    frames: Numbers
    """(rows, tokens): how many frames each token lasts; meaningless in padding."""


class Halves(Protocol):
    """How to run them."""

    def words(self, texts: Sequence[Numbers], styles: Tensor, speeds: Sequence[float]) -> Words:
        """Token ids to durations; ``styles`` (batch, 256) on the CPU."""
        ...

    def sounds(self, words: Words, tokens: Sequence[Numbers], styles: Tensor) -> NDArray[np.int16]:
        """int16 (batch, samples); each row of ``tokens`` says which token is heard in each frame.

        A row's samples are its first 600 for each frame; what follows is noise.
        """
        ...


class Steps:
    """Kernel by kernel: any shape; unpadded when all rows are of one length."""

    def __init__(self, model: PaddedKokoro) -> None:
        self._model = model

    def words(self, texts: Sequence[Numbers], styles: Tensor, speeds: Sequence[float]) -> Words:
        """See `Halves`."""
        device = self._model.device
        ids, lengths = _padded(texts, max(map(len, texts)))
        prosody, text, frames = self._model.of_text(
            ids.to(device),
            None if lengths is None else lengths.to(device),
            styles.to(device),
            torch.tensor(speeds, dtype=torch.float32, device=device),
        )
        return Words(prosody, text, frames.cpu().numpy())

    def sounds(self, words: Words, tokens: Sequence[Numbers], styles: Tensor) -> NDArray[np.int16]:
        """See `Halves`."""
        model, device = self._model, self._model.device
        at, lengths = _padded(tokens, max(map(len, tokens)))
        at = at.to(device)
        rows = len(tokens)
        audio = model.sound(
            model.stretched(words.prosody[:rows], at),
            model.stretched(words.text[:rows], at),
            None if lengths is None else lengths.to(device),
            styles.to(device),
        )
        samples: NDArray[np.int16] = audio.cpu().numpy()
        return samples


@dataclass(slots=True)
class _Graph:
    graph: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def replay(self) -> tuple[Tensor, ...]:
        self.graph.replay()
        return self.outputs


class Graphs:
    """CUDA graphs by rows and length; `capture` once, before the first batch."""

    def __init__(self, model: PaddedKokoro, most_rows: int) -> None:
        self._model = model
        self._steps = Steps(model)
        self._rows = tuple(rows for rows in BATCHES if rows < 2 * most_rows)
        self._pool: Any = None
        self._of_text: dict[tuple[int, int], _Graph] = {}
        self._sound: dict[tuple[int, int], _Graph] = {}

    def __len__(self) -> int:
        return len(self._of_text) + len(self._sound)

    def capture(self) -> None:
        """All graphs, the one that needs the most memory first. Takes some ten seconds."""
        self._pool = torch.cuda.graph_pool_handle()
        for rows, frames in _shapes(self._rows, FRAME_BUCKETS, _MOST_FRAMES):
            self._sound[rows, frames] = self._capture_sound(rows, frames)
        for rows, tokens in _shapes(self._rows, TOKEN_BUCKETS, _MOST_TOKENS):
            self._of_text[rows, tokens] = self._capture_of_text(rows, tokens)

    def words(self, texts: Sequence[Numbers], styles: Tensor, speeds: Sequence[float]) -> Words:
        """See `Halves`."""
        longest = max(map(len, texts))
        found = self._fitting(self._of_text, TOKEN_BUCKETS, len(texts), longest)
        if found is None:
            return self._steps.words(texts, styles, speeds)
        ids, lengths, style, speed = found.inputs
        padded, own = _padded_to(texts, *ids.shape)
        ids.copy_(padded)
        lengths.copy_(own)
        style[: len(texts)].copy_(styles)
        speed[: len(texts)].copy_(torch.tensor(speeds, dtype=torch.float32))
        prosody, text, frames = found.replay()
        return Words(prosody, text, frames.cpu().numpy())

    def sounds(self, words: Words, tokens: Sequence[Numbers], styles: Tensor) -> NDArray[np.int16]:
        """See `Halves`."""
        longest = max(map(len, tokens))
        found = self._fitting(self._sound, FRAME_BUCKETS, len(tokens), longest)
        if found is None:
            return self._steps.sounds(words, tokens, styles)
        prosody, text, lengths, style = found.inputs
        padded, own = _padded_to(tokens, *prosody.shape[:2])
        rows = len(tokens)
        at = padded[:rows].to(self._model.device)
        prosody[:rows].copy_(self._model.stretched(words.prosody[:rows], at))
        text[:rows].copy_(self._model.stretched(words.text[:rows], at))
        lengths.copy_(own)
        style[:rows].copy_(styles)
        (audio,) = found.replay()
        samples: NDArray[np.int16] = audio[:rows].cpu().numpy()
        return samples

    def _fitting(
        self,
        graphs: dict[tuple[int, int], _Graph],
        buckets: Sequence[int],
        rows: int,
        longest: int,
    ) -> _Graph | None:
        fit_rows, fit_length = next_of(self._rows, rows), next_of(buckets, longest)
        if fit_rows is None or fit_length is None:
            return None
        return graphs.get((fit_rows, fit_length))

    def _capture_of_text(self, rows: int, tokens: int) -> _Graph:
        device = self._model.device
        inputs = (
            torch.zeros(rows, tokens, dtype=torch.int64, device=device),
            torch.ones(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, 256, device=device),
            torch.ones(rows, device=device),
        )
        return self._capture(self._model.of_text, inputs)

    def _capture_sound(self, rows: int, frames: int) -> _Graph:
        device = self._model.device
        prosody, text = self._model.channels
        inputs = (
            torch.zeros(rows, frames, prosody, device=device),
            torch.zeros(rows, frames, text, device=device),
            torch.ones(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, 256, device=device),
        )
        return self._capture(lambda *given: (self._model.sound(*given),), inputs)

    def _capture(
        self, half: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]
    ) -> _Graph:
        # Once outside of the graph: libraries choose their kernels and make room at a first call.
        aside = torch.cuda.Stream(self._model.device)
        aside.wait_stream(torch.cuda.current_stream(self._model.device))
        with torch.cuda.stream(aside):
            half(*inputs)
        torch.cuda.current_stream(self._model.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = half(*inputs)
        return _Graph(graph, inputs, tuple(outputs))


def _shapes(rows: Sequence[int], buckets: Sequence[int], most: int) -> list[tuple[int, int]]:
    shapes = [(each, bucket) for each in rows for bucket in buckets]
    fitting = [shape for shape in shapes if shape[0] == 1 or shape[0] * shape[1] <= most]
    return sorted(fitting, key=lambda shape: -shape[0] * shape[1])


def _padded(rows: Sequence[Numbers], width: int) -> tuple[Tensor, Tensor | None]:
    """Zeros behind each row, and the lengths when there are some."""
    padded, lengths = _padded_to(rows, len(rows), width)
    return padded, None if all(len(row) == width for row in rows) else lengths


def _padded_to(rows: Sequence[Numbers], count: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows beyond those given are of length 1."""
    padded = np.zeros((count, width), np.int64)
    lengths = np.ones(count, np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
        lengths[number] = len(row)
    return torch.from_numpy(padded), torch.from_numpy(lengths)
