"""Kokoro with random weights: everything but the sound of the voice is real."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voice_rtc.engines.base import VoiceOptions
from voice_rtc.engines.tts.kokoro import KokoroTts, weights_of, why_not_installed
from voice_rtc.errors import EngineUnavailable

_missing = [name for name in ("torch", "kokoro", "misaki") if find_spec(name) is None]
installed = pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")
quiet = pytest.mark.filterwarnings("ignore")  # torch and its friends deprecate much of their own

_SYMBOLS = (
    ';:,.!?—…"()“” \u0303ʣʥʦʨᵝ\uab67AIOQSTWYᵊabcdefhijklmnopqrstuvwxyz'
    "ɑɐɒæβɔɕçɖðʤəɚɛɜɟɡɥɨɪʝɯɰŋɳɲɴøɸθœɹɾɻʁɽʂʃʈʧʊʋʌɣɤχʎʒʔˈˌːʰʲ↓→↗↘ᵻ"
)
_CONFIG: dict[str, Any] = {
    "istftnet": {
        "upsample_kernel_sizes": [20, 12],
        "upsample_rates": [10, 6],
        "gen_istft_hop_size": 5,
        "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "resblock_kernel_sizes": [3, 7, 11],
        "upsample_initial_channel": 512,
    },
    "dim_in": 64,
    "dropout": 0.2,
    "hidden_dim": 512,
    "max_conv_dim": 512,
    "max_dur": 50,
    "multispeaker": True,
    "n_layer": 1,
    "n_mels": 80,
    "n_token": 178,
    "style_dim": 128,
    "text_encoder_kernel_size": 5,
    "plbert": {
        "hidden_size": 48,
        "num_attention_heads": 12,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "num_hidden_layers": 1,
        "dropout": 0.1,
    },
    "vocab": {symbol: index for index, symbol in enumerate(_SYMBOLS, start=1)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, random weights that speak three frames a phoneme, and one random voice."""
    import torch
    from kokoro import KModel

    folder = tmp_path_factory.mktemp("kokoro")
    (folder / "voices").mkdir()
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    torch.manual_seed(0)
    torch.save({}, folder / "empty.pth")
    model = KModel("hexgrad/Kokoro-82M", str(folder / "config.json"), str(folder / "empty.pth"))
    duration = model.predictor.duration_proj.linear_layer
    with torch.no_grad():
        duration.weight.mul_(0.01)
        duration.bias.fill_(math.log(3 / 50 / (1 - 3 / 50)))
    parts = ("bert", "bert_encoder", "predictor", "decoder", "text_encoder")
    weights = {name: getattr(model, name).state_dict() for name in parts}
    torch.save(weights, folder / "kokoro-v1_0.pth")
    torch.save(torch.randn(510, 1, 256), folder / "voices" / "af_heart.pt")
    return folder


@pytest.fixture
async def kokoro(folder: Path) -> AsyncIterator[KokoroTts]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = KokoroTts(str(folder))
        await engine.start()
    yield engine
    await engine.aclose()


@installed
@quiet
async def test_it_speaks_in_chunks(kokoro: KokoroTts) -> None:
    stream = kokoro.synthesize("Hello, how are you today?")
    chunks = [chunk async for chunk in stream]
    assert kokoro.rate_hz == 24_000
    assert [chunk.at for chunk in chunks] == list(range(0, 2400 * len(chunks), 2400))
    assert sum(chunk.seconds for chunk in chunks) > 0.5
    assert all(chunk.samples.dtype == np.int16 for chunk in chunks)


@installed
@quiet
@pytest.mark.parametrize("text", ["", "...", "\x00"])
async def test_nothing_to_speak_yields_nothing(kokoro: KokoroTts, text: str) -> None:
    assert [chunk async for chunk in kokoro.synthesize(text)] == []


@installed
@quiet
async def test_odd_text_and_unknown_voices_are_spoken(kokoro: KokoroTts) -> None:
    voice = VoiceOptions(voice="../../etc/passwd", speed=2.0)
    assert [chunk async for chunk in kokoro.synthesize("<b>1 & 2</b> 漢字", voice)]


@installed
@quiet
async def test_a_missing_voice_is_named(folder: Path) -> None:
    engine = KokoroTts(str(folder), voice="am_adam")
    with pytest.raises(EngineUnavailable, match=r"voices/am_adam\.pt"):
        await engine.start()
    await engine.aclose()


@pytest.mark.skipif(not _missing, reason="Kokoro is installed here")
async def test_without_the_extra_it_says_how_to_install() -> None:
    engine = KokoroTts()
    with pytest.raises(EngineUnavailable, match=r"voice-rtc\[kokoro\]"):
        await engine.start()
    assert why_not_installed()
    await engine.aclose()


async def test_before_start_it_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable):
        await anext(KokoroTts().synthesize("hello"))


def test_the_voice_belongs_to_the_weights() -> None:
    assert "voices/bf_emma.pt" in weights_of("bf_emma").required
    assert "voices/af_heart.pt" in weights_of("").required
