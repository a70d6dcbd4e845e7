"""Whisper model files made for a test, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ctranslate2.specs import common_spec, whisper_spec
from tokenizers import Tokenizer, models, pre_tokenizers

_TEXT_TOKENS = 50257
_TIMESTAMPS = 1501
_LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su"
).split()
_TASKS = "translate transcribe startoflm startofprev nospeech notimestamps".split()


def random_spec(vocabulary: int, *, width: int = 16, heads: int = 2) -> whisper_spec.WhisperSpec:
    """One layer each, 80 mels, 1500 positions, all weights drawn from a normal distribution."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype(np.float32)

    def linear(spec: common_spec.LinearSpec, rows: int, columns: int) -> None:
        spec.weight, spec.bias = weights(rows, columns), weights(rows)

    def norm(spec: common_spec.LayerNormSpec) -> None:
        spec.gamma, spec.beta = 1 + weights(width), weights(width)

    spec = whisper_spec.WhisperSpec(1, heads, 1, heads)
    encoder, decoder = spec.encoder, spec.decoder
    for convolution, mels in ((encoder.conv1, 80), (encoder.conv2, width)):
        convolution.weight, convolution.bias = weights(width, mels, 3), weights(width)
    encoder.position_encodings.encodings = weights(1500, width)
    decoder.position_encodings.encodings = weights(448, width)
    decoder.embeddings.weight = weights(vocabulary, width)
    decoder.projection.weight = decoder.embeddings.weight
    for stack in (encoder, decoder):
        norm(stack.layer_norm)
        (layer,) = stack.layer
        norm(layer.self_attention.layer_norm)
        linear(layer.self_attention.linear[0], 3 * width, width)
        linear(layer.self_attention.linear[1], width, width)
        norm(layer.ffn.layer_norm)
        linear(layer.ffn.linear_0, 4 * width, width)
        linear(layer.ffn.linear_1, width, 4 * width)
    across = decoder.layer[0].attention
    norm(across.layer_norm)
    for number, rows in enumerate((width, 2 * width, width)):
        linear(across.linear[number], rows, width)
    return spec


def tiny_multilingual(folder: Path) -> Path:
    """A model with the vocabulary of the first multilingual Whispers: words w0, w1, ..."""
    # CTranslate2 takes a model for multilingual when an empty token is in its vocabulary.
    text = [*(f"w{number}" for number in range(_TEXT_TOKENS - 1)), ""]
    special = [f"<|{name}|>" for name in ("endoftext", "startoftranscript", *_LANGUAGES, *_TASKS)]
    vocabulary = [*text, *special, *(f"<|{n * 0.02:.2f}|>" for n in range(_TIMESTAMPS))]
    words = models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="w0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    first = vocabulary.index("<|en|>")
    spec = random_spec(len(vocabulary))
    spec.config.lang_ids = list(range(first, first + len(_LANGUAGES)))
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], [_TEXT_TOKENS]
    spec.config.alignment_heads = [[0, 0]]
    spec.register_vocabulary(vocabulary)
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    return folder
