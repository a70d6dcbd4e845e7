"""Whisper models of the true architectures with random weights, to measure times without a hub.

The decoder is made to say `TOKENS` tokens and stop, whatever it hears: its position encodings are
aligned with the embeddings of a script, and what its layers add is small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 15
"""Of text in each transcript; an ordinary 4 s utterance has about as many."""

ARCHITECTURES = {
    "tiny": (384, 4, 4, 6, 80, 51865),
    "small": (768, 12, 12, 12, 80, 51865),
    "turbo": (1280, 32, 4, 20, 128, 51866),
    "large-v3": (1280, 32, 32, 20, 128, 51866),
}
"""Width, encoder layers, decoder layers, heads, mels, vocabulary; from OpenAI's model cards."""

_LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su yue"
).split()
_SCALE = 0.02


def build(name: str, folder: Path) -> str:
    """Write a float16 model in CTranslate2's format into ``folder``; returns its path."""
    from ctranslate2.specs import WhisperSpec

    width, encoder_layers, decoder_layers, heads, mels, vocabulary = ARCHITECTURES[name]
    dice = np.random.default_rng(0)
    tokens, tokenizer = _vocabulary(vocabulary)
    spec = WhisperSpec(encoder_layers, heads, decoder_layers, heads)

    def weights(*shape: int, scale: float = _SCALE) -> Any:
        return (dice.standard_normal(shape, dtype=np.float32) * scale).astype(np.float16)

    def norm(layer: Any, gamma: float = 1.0) -> None:
        layer.gamma = np.full(width, gamma, np.float16)
        layer.beta = np.zeros(width, np.float16)

    def linear(layer: Any, out: int, inner: int, scale: float = _SCALE) -> None:
        layer.weight = weights(out, inner, scale=scale)
        layer.bias = np.zeros(out, np.float16)

    def block(layer: Any, scale: float) -> None:
        norm(layer.self_attention.layer_norm)
        linear(layer.self_attention.linear[0], 3 * width, width)
        linear(layer.self_attention.linear[1], width, width, scale)
        norm(layer.ffn.layer_norm)
        linear(layer.ffn.linear_0, 4 * width, width)
        linear(layer.ffn.linear_1, width, 4 * width, scale)

    encoder, decoder = spec.encoder, spec.decoder
    encoder.conv1.weight, encoder.conv1.bias = weights(width, mels, 3), weights(width)
    encoder.conv2.weight, encoder.conv2.bias = weights(width, width, 3), weights(width)
    encoder.position_encodings.encodings = weights(1500, width)
    norm(encoder.layer_norm)
    for layer in encoder.layer:
        block(layer, _SCALE)
    embeddings = dice.standard_normal((vocabulary, width), dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    decoder.embeddings.weight = embeddings.astype(np.float16)
    decoder.projection.weight = decoder.embeddings.weight
    positions = np.repeat(embeddings[tokens.index("<|endoftext|>")][None], 448, axis=0) * 60.0
    for place in range(TOKENS):  # the prompt is four tokens long
        positions[3 + place] = embeddings[1000 + place] * 60.0
    decoder.position_encodings.encodings = positions.astype(np.float16)
    norm(decoder.layer_norm, 3.0)
    for layer in decoder.layer:
        block(layer, _SCALE / 20)
        norm(layer.attention.layer_norm)
        linear(layer.attention.linear[0], width, width)
        linear(layer.attention.linear[1], 2 * width, width)
        linear(layer.attention.linear[2], width, width, _SCALE / 20)
    spec.register_vocabulary(tokens)
    first = tokens.index("<|startoftranscript|>")
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [tokens.index("<|endoftext|>")]
    spec.config.lang_ids = list(range(first + 1, first + 100))
    spec.config.alignment_heads = [[decoder_layers - 1, 0]]
    spec.validate()
    spec.optimize(quantization="float16")
    out = folder / name
    out.mkdir(parents=True)
    spec.save(str(out))
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "preprocessor_config.json").write_text(json.dumps({"feature_size": mels}))
    return str(out)


def _vocabulary(size: int) -> tuple[list[str], Any]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    languages = _LANGUAGES[: 99 if size == 51865 else 100]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    text = letters + [f"Ġw{number}" for number in range(len(letters), 50257)]
    special = [
        "<|endoftext|>", "<|startoftranscript|>", *(f"<|{each}|>" for each in languages),
        "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
        "<|notimestamps|>",
    ]  # fmt: skip
    times = [f"<|{0.02 * at:.2f}|>" for at in range(size - len(text) - len(special))]
    vocabulary = {token: number for number, token in enumerate(text)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True, normalized=False) for token in special]
    tokenizer.add_special_tokens(added)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in times])
    # CTranslate2 takes a model for multilingual when its vocabulary has an empty token.
    return [*text[:-1], "", *special, *times], tokenizer
