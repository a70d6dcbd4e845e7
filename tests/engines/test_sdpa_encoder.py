"""The PyTorch encoder against CTranslate2's, with the same weights, on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import ctranslate2
import numpy as np
import pytest

from tests.engines.spoken import SENTENCES, speak_all
from tests.engines.whisper_files import random_spec, tiny_multilingual
from tests.support.audio import WHISPER_SYNTHETIC, noise
from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, silence
from voice_rtc.engines.stt.mel import log_mel
from voice_rtc.engines.stt.sdpa_encoder import SdpaEncoder
from voice_rtc.engines.stt.whisper_model import BatchWhisper, WhisperRequest
from voice_rtc.errors import EngineUnavailable

torch = pytest.importorskip("torch")

MODEL = WHISPER_SYNTHETIC / "model.bin"


@pytest.fixture(scope="module")
def spoken() -> dict[str, Samples]:
    return speak_all()


@pytest.fixture(scope="module")
def encoder() -> SdpaEncoder:
    return SdpaEncoder(MODEL)


@pytest.fixture(scope="module")
def ct2() -> Iterator[BatchWhisper]:
    model = BatchWhisper(str(WHISPER_SYNTHETIC), compute_type="float32", workers=2)
    yield model
    model.unload()


@pytest.fixture(scope="module")
def sdpa() -> Iterator[BatchWhisper]:
    model = BatchWhisper(str(WHISPER_SYNTHETIC), compute_type="float32", workers=2, encoder="sdpa")
    yield model
    model.unload()


def mixed(spoken: dict[str, Samples]) -> list[WhisperRequest]:
    """Sentences of several lengths, two of them with prompts, and what is no speech."""
    sounds = [silence(LISTEN_RATE_HZ), noise(1.0, 5, LISTEN_RATE_HZ, 0.01), silence(100)]
    prompts = ["", "falcon river", "", "", "silver dolphin and green tiger", ""]
    return [
        *(
            WhisperRequest(spoken[text], prompt=prompt)
            for text, prompt in zip(SENTENCES, prompts, strict=False)
        ),
        *(WhisperRequest(sound) for sound in sounds),
    ]


@pytest.mark.parametrize("seconds", [3, 5, 10, 30])
def test_the_tokens_are_those_of_ctranslate2(
    ct2: BatchWhisper, sdpa: BatchWhisper, spoken: dict[str, Samples], seconds: float
) -> None:
    requests = mixed(spoken)
    wanted = ct2.transcribe(requests, seconds)
    got = sdpa.transcribe(requests, seconds)
    assert [t.tokens for t in got] == [t.tokens for t in wanted]
    assert [t.text for t in got] == [t.text for t in wanted]
    np.testing.assert_allclose(
        [t.mean_logprob for t in got], [t.mean_logprob for t in wanted], atol=1e-3
    )
    assert sdpa.placement == "cpu float32, sdpa encoder, 2 workers"
    assert ct2.placement == "cpu float32, 2 workers"
    assert sdpa.most_frames == ct2.most_frames == 3000


def test_the_hidden_states_are_those_of_ctranslate2(
    ct2: BatchWhisper, encoder: SdpaEncoder, spoken: dict[str, Samples]
) -> None:
    audios = [spoken[text] for text in SENTENCES[:3]]
    features = np.stack([log_mel(audio, 80, 400) for audio in audios])
    wanted = np.array(ct2._model.encode(ctranslate2.StorageView.from_array(features)))
    got = encoder.hear(audios, 400)
    assert got.shape == wanted.shape == (3, 200, 128)
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, wanted, atol=2e-3)


def test_languages_are_detected_from_it(tmp_path: Path, spoken: dict[str, Samples]) -> None:
    folder = str(tiny_multilingual(tmp_path))
    requests = [WhisperRequest(spoken[text], language) for text, language in
                zip(SENTENCES, ["", "de", None], strict=False)]  # fmt: skip
    results = []
    for encoder in ("ct2", "sdpa"):
        model = BatchWhisper(folder, compute_type="float32", workers=1, encoder=encoder)
        results.append([(t.language, t.tokens) for t in model.transcribe(requests, 3)])
        model.unload()
    assert results[0] == results[1]
    assert results[0][1][0] == "de"


@pytest.mark.parametrize("mels", [80, 128])
def test_features_of_a_batch(spoken: dict[str, Samples], mels: int) -> None:
    from voice_rtc.engines.stt.mel_torch import log_mel_torch

    audios = [
        spoken[SENTENCES[0]],
        silence(0),
        spoken[SENTENCES[3]],
        noise(4.0, 1, LISTEN_RATE_HZ, 0.00005),
        noise(4.0, 1, LISTEN_RATE_HZ, 0.2),
        spoken[SENTENCES[1]][8000:8150],
    ]
    for some in (audios, audios[1:2], audios[3:4], audios[5:]):
        wanted = np.stack([log_mel(audio, mels, 400) for audio in some])
        got = log_mel_torch(some, mels, 400, "cpu")
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        log_mel_torch([silence(16001)], mels, 100, "cpu")


def test_auto_means_ctranslate2_on_a_cpu() -> None:
    model = BatchWhisper(str(WHISPER_SYNTHETIC), workers=1)
    assert model.placement == "cpu int8, 1 worker"
    model.unload()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_told() -> None:
    with pytest.raises(EngineUnavailable, match="finds no GPU"):
        SdpaEncoder(MODEL, device="cuda")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    content = MODEL.read_bytes().replace(b"WhisperSpec", b"MarianSpec!", 1)
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(EngineUnavailable, match="MarianSpec!"):
        SdpaEncoder(tmp_path / "model.bin")


def test_a_weight_that_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path)
    content = MODEL.read_bytes().replace(b"encoder/conv1/bias", b"encoder/conv1/bios", 1)
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(EngineUnavailable, match="has no weight encoder/conv1/bias"):
        SdpaEncoder(tmp_path / "model.bin")


def test_half_precision_agrees(tmp_path: Path) -> None:
    spec = random_spec(40)
    spec.register_vocabulary([f"w{number}" for number in range(40)])
    spec.validate()
    spec.optimize("float16")
    spec.save(str(tmp_path))
    audio = noise(1.0, 1, LISTEN_RATE_HZ, 0.1)
    full, half = (SdpaEncoder(tmp_path / "model.bin", half=half) for half in (False, True))
    exact, rough = full.hear([audio], 200), half.hear([audio], 200)
    assert (exact.dtype, rough.dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(rough.astype(np.float32), exact, atol=0.1)
