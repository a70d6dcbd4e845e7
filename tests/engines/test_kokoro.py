"""Kokoro with random weights in its worker process: all but the sound of the voice is real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from tests.engines.kokoro_weights import installed, missing, quiet, random_weights
from voice_rtc.core.audio import Samples
from voice_rtc.engines.base import VoiceOptions
from voice_rtc.engines.tts.kokoro import KokoroSettings, KokoroTts, weights_of, why_not_installed
from voice_rtc.errors import EngineUnavailable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("kokoro"))


@pytest.fixture
async def kokoro(folder: Path) -> AsyncIterator[KokoroTts]:
    engine = KokoroTts(KokoroSettings(model=str(folder), precision="float32", graphs=False))
    await engine.start()
    yield engine
    await engine.aclose()


async def say(engine: KokoroTts, text: str, voice: str = "") -> Samples:
    options = VoiceOptions(voice or None)
    chunks = [chunk.samples async for chunk in engine.synthesize(text, options)]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int16)


@installed
@quiet
@pytest.mark.timeout(180)
async def test_it_speaks_in_the_voices_that_are_asked_for(kokoro: KokoroTts) -> None:
    assert kokoro.rate_hz == 24_000
    stream = kokoro.synthesize("Hello, how are you today?")
    chunks = [chunk async for chunk in stream]
    assert [chunk.at for chunk in chunks] == list(range(0, 2400 * len(chunks), 2400))
    assert sum(chunk.seconds for chunk in chunks) > 0.5
    assert all(chunk.samples.dtype == np.int16 for chunk in chunks)
    assert any(chunk.samples.any() for chunk in chunks)
    for nothing in ("", "...", "\x00"):
        assert len(await say(kokoro, nothing)) == 0
    assert len(await say(kokoro, "<b>1 & 2</b> 漢字", "../../etc/passwd"))
    blended = await say(kokoro, "Hello there.", "af_heart*0.6+am_adam*0.4")
    assert len(blended) % 600 == 0 and len(blended) > 0
    british = await say(kokoro, "Hello there.", "bf_emma")
    assert len(british) > 0


@installed
@quiet
@pytest.mark.timeout(180)
def test_styles_are_weighted_means_and_kept(folder: Path) -> None:
    import torch

    from voice_rtc.engines.tts.kokoro_model import Styles
    from voice_rtc.engines.tts.kokoro_voices import VoiceBlend

    styles = Styles(folder / "voices")
    heart, adam = (
        torch.load(folder / "voices" / f"{name}.pt", weights_only=True)[4].flatten()
        for name in ("af_heart", "am_adam")
    )
    blend = VoiceBlend((("af_heart", 0.25), ("am_adam", 0.75)))
    assert torch.allclose(styles.of(blend, 7), 0.25 * heart + 0.75 * adam)
    assert torch.equal(styles.of(VoiceBlend((("af_heart", 1.0),)), 7), heart)
    (folder / "voices" / "am_adam.pt").rename(folder / "voices" / "away.pt")
    try:
        assert torch.allclose(styles.of(blend, 7), 0.25 * heart + 0.75 * adam)
    finally:
        (folder / "voices" / "away.pt").rename(folder / "voices" / "am_adam.pt")


@installed
@quiet
async def test_a_missing_voice_is_named(folder: Path) -> None:
    engine = KokoroTts(KokoroSettings(model=str(folder), voice="am_nobody"))
    with pytest.raises(EngineUnavailable, match=r"voices/am_nobody\.pt"):
        await engine.start()
    await engine.aclose()


@installed
@quiet
@pytest.mark.timeout(180)
async def test_damaged_weights_are_unavailable(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "voices").mkdir()
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "kokoro-v1_0.pth").write_bytes(b"no weights")
    (tmp_path / "voices" / "af_heart.pt").touch()
    engine = KokoroTts(KokoroSettings(model=str(tmp_path), device="cpu"))
    with pytest.raises(EngineUnavailable, match="cannot be loaded"):
        await engine.start()
    await engine.aclose()


@pytest.mark.skipif(not missing, reason="Kokoro is installed here")
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
    blend = weights_of("af_sky*0.5 + bm_lewis").required
    assert {"voices/af_sky.pt", "voices/bm_lewis.pt"} <= set(blend)
