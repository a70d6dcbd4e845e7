"""Batches through the tiny Whisper: words, isolation, windows, long and short audio, damage."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest

from tests.engines.speech import plain
from tests.engines.spoken import SENTENCES, speak_all, word_errors
from tests.engines.whisper_files import tiny_multilingual
from tests.support.audio import WHISPER_SYNTHETIC, noise
from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, silence
from voice_rtc.engines.stt import whisper_model
from voice_rtc.engines.stt.ct2_weights import Ct2Weights
from voice_rtc.engines.stt.mel import log_mel
from voice_rtc.engines.stt.whisper_model import (
    BatchWhisper,
    Transcript,
    WhisperRequest,
    cut_at_quiet,
)
from voice_rtc.engines.stt.whisper_tokens import WhisperTokens
from voice_rtc.errors import EngineCrashed, EngineUnavailable

BATCH = 8


@pytest.fixture(scope="module")
def spoken() -> dict[str, Samples]:
    return speak_all()


@pytest.fixture(scope="module")
def whisper() -> Iterator[BatchWhisper]:
    model = BatchWhisper(str(WHISPER_SYNTHETIC), workers=2)
    yield model
    model.unload()


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchWhisper]:
    """It knows no words: its weights are random."""
    folder = tiny_multilingual(tmp_path_factory.mktemp("multilingual"))
    model = BatchWhisper(str(folder), compute_type="float32", workers=1)
    yield model
    model.unload()


def in_batches(
    whisper: BatchWhisper, audios: list[Samples], seconds: float, size: int = BATCH
) -> list[Transcript]:
    return [
        transcript
        for start in range(0, len(audios), size)
        for transcript in whisper.transcribe(
            [WhisperRequest(audio) for audio in audios[start : start + size]], seconds
        )
    ]


# ------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("seconds", "sentences"),
    [(3, 30), (5, 30), (10, 30), (15, 16), (30, 8)],  # long windows take long
)
def test_every_window_understands_the_sentences(
    whisper: BatchWhisper, spoken: dict[str, Samples], seconds: float, sentences: int
) -> None:
    heard = in_batches(whisper, list(spoken.values())[:sentences], seconds)
    wrong = {
        text: transcript.text
        for text, transcript in zip(spoken, heard, strict=False)
        if word_errors(text, transcript.text)
    }
    assert wrong == {}
    assert not any(transcript.doubtful for transcript in heard)
    assert {transcript.language for transcript in heard} == {"en"}


@pytest.mark.parametrize("seconds", [3, 10])
def test_a_batch_is_what_each_is_alone(
    whisper: BatchWhisper, spoken: dict[str, Samples], seconds: float
) -> None:
    audios = list(spoken.values())[:16]
    together = in_batches(whisper, audios, seconds, 8)
    alone = in_batches(whisper, audios, seconds, 1)
    # Sums are rounded otherwise in another shape: a full stop at the end may come or not.
    assert [plain(t.text) for t in together] == [plain(t.text) for t in alone]
    same = [(a, b) for a, b in zip(together, alone, strict=True) if a.tokens == b.tokens]
    assert len(same) >= len(audios) - 2
    np.testing.assert_allclose(
        [a.mean_logprob for a, _ in same], [b.mean_logprob for _, b in same], atol=0.02
    )


def test_several_threads_at_once(whisper: BatchWhisper, spoken: dict[str, Samples]) -> None:
    audios = list(spoken.values())[:12]
    wanted = [t.tokens for t in in_batches(whisper, audios, 5)]
    with ThreadPoolExecutor(3) as threads:
        runs = list(threads.map(lambda _: in_batches(whisper, audios, 5, 3), range(3)))
    assert [[t.tokens for t in run] for run in runs] == [wanted] * 3


def test_a_beam_per_call(whisper: BatchWhisper, spoken: dict[str, Samples]) -> None:
    request = WhisperRequest(spoken[SENTENCES[0]])
    (greedy,) = whisper.transcribe([request], 10)
    (searched,) = whisper.transcribe([request], 10, beam_size=3)
    assert plain(searched.text) == plain(greedy.text) == plain(SENTENCES[0])


def test_the_figures_are_those_of_faster_whisper(
    whisper: BatchWhisper, spoken: dict[str, Samples]
) -> None:
    """Within what its other padding (zeros behind the features, not behind the audio) changes."""
    import faster_whisper

    upstream = faster_whisper.WhisperModel(
        str(WHISPER_SYNTHETIC), device="cpu", compute_type="int8", cpu_threads=2
    )
    for text in SENTENCES[3:6]:
        segments, _ = upstream.transcribe(
            spoken[text].astype(np.float32) / 32768,
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
        )
        (segment,) = segments
        (ours,) = whisper.transcribe([WhisperRequest(spoken[text])], 30)
        assert ours.text == segment.text.strip()
        assert ours.mean_logprob == pytest.approx(segment.avg_logprob, abs=0.02)
        assert ours.no_speech_probability == pytest.approx(segment.no_speech_prob, abs=0.02)
        assert ours.compression_ratio == segment.compression_ratio


# ------------------------------------------------------------------- silence, short and long


@pytest.mark.parametrize("seconds", [3, 10])
def test_silence_and_noise_are_no_text(whisper: BatchWhisper, seconds: float) -> None:
    sounds = [silence(LISTEN_RATE_HZ), *(noise(1.0, 5, LISTEN_RATE_HZ, x) for x in (0.003, 0.03))]
    heard = in_batches(whisper, sounds, seconds)
    assert [transcript.text for transcript in heard] == ["", "", ""]
    assert not any(transcript.doubtful for transcript in heard)


def test_too_short_is_no_text(whisper: BatchWhisper, spoken: dict[str, Samples]) -> None:
    """And costs the others nothing: they come back in their order."""
    sentence = spoken[SENTENCES[0]]
    audios = [silence(0), sentence, sentence[:1599]]
    heard = whisper.transcribe([WhisperRequest(audio) for audio in audios], 5)
    assert [plain(transcript.text) for transcript in heard] == ["", plain(SENTENCES[0]), ""]
    assert whisper.transcribe([], 5) == []


def test_a_window_grows_for_longer_audio(whisper: BatchWhisper, spoken: dict[str, Samples]) -> None:
    late = np.concatenate([silence(LISTEN_RATE_HZ), spoken[SENTENCES[0]]])
    (heard,) = whisper.transcribe([WhisperRequest(late)], 1.0)
    assert plain(heard.text) == plain(SENTENCES[0])


def test_long_audio_is_joined(whisper: BatchWhisper, spoken: dict[str, Samples]) -> None:
    first, second, other = SENTENCES[0], SENTENCES[1], SENTENCES[4]
    hum = noise(26.0, 3, LISTEN_RATE_HZ, 0.001)
    long = np.concatenate([spoken[first], hum, silence(LISTEN_RATE_HZ // 2), spoken[second]])
    assert len(long) > 30 * LISTEN_RATE_HZ
    requests = [WhisperRequest(long), WhisperRequest(spoken[other])]
    heard = whisper.transcribe(requests, 5)
    assert [plain(t.text) for t in heard] == [plain(f"{first} {second}"), plain(other)]
    assert len(heard[0].tokens) > len(heard[1].tokens)


def test_long_audio_takes_no_more_memory_than_a_batch(
    whisper: BatchWhisper, spoken: dict[str, Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = next(iter(spoken.values()))
    pause = np.zeros(27 * LISTEN_RATE_HZ - len(sentence), np.int16)
    long = np.concatenate([sentence, pause] * 10)
    rows: list[int] = []
    hear = whisper._hear

    def counting(audios: Sequence[Samples], frames: int) -> Any:
        rows.append(len(audios))
        return hear(audios, frames)

    monkeypatch.setattr(whisper, "_hear", counting)
    requests = [WhisperRequest(sentence), WhisperRequest(long)]
    in_parts = whisper.transcribe(requests, 30.0)
    assert rows == [8, 4]
    monkeypatch.setattr(whisper_model, "_FEW_ROWS", 100)
    at_once = whisper.transcribe(requests, 30.0)
    assert rows == [8, 4, 12]
    assert [each.text for each in in_parts] == [each.text for each in at_once]


@pytest.mark.parametrize("seconds", [0.0, 29.0, 30.0, 30.001, 47.0, 91.3])
def test_pieces_are_the_audio(seconds: float) -> None:
    audio = noise(seconds, 7, LISTEN_RATE_HZ)
    pieces = cut_at_quiet(audio)
    assert len(pieces) == 1 if seconds <= 30 else len(pieces) > 1
    np.testing.assert_array_equal(np.concatenate(pieces), audio)
    assert all(25 * LISTEN_RATE_HZ <= len(piece) <= 30 * LISTEN_RATE_HZ for piece in pieces[:-1])
    assert len(pieces[-1]) <= 30 * LISTEN_RATE_HZ


def test_the_cut_is_where_it_is_quiet() -> None:
    audio = noise(40.0, 7, LISTEN_RATE_HZ)
    quiet = slice(int(27.0 * LISTEN_RATE_HZ), int(27.3 * LISTEN_RATE_HZ))
    audio[quiet] //= 100
    first, _ = cut_at_quiet(audio)
    assert quiet.start < len(first) < quiet.stop


# -------------------------------------------------------------------- prompts and languages


def test_each_request_has_its_own_prompt(whisper: BatchWhisper, spoken: dict[str, Samples]) -> None:
    """Prompts of different lengths in one batch give what each gives alone."""
    prompts = ["falcon river", "", "silver dolphin, purple umbrella and green tiger", "", "Anna"]
    requests = [
        WhisperRequest(spoken[text], prompt=prompt)
        for text, prompt in zip(SENTENCES, prompts, strict=False)
    ]
    together = whisper.transcribe(requests, 5)
    alone = [whisper.transcribe([request], 5)[0] for request in requests]
    assert [t.tokens for t in together] == [t.tokens for t in alone]
    (bare,) = whisper.transcribe([WhisperRequest(spoken[SENTENCES[0]])], 5)
    assert together[0].mean_logprob != pytest.approx(bare.mean_logprob, abs=1e-4)


def test_a_long_prompt_keeps_its_end() -> None:
    tokens = WhisperTokens(str(WHISPER_SYNTHETIC), multilingual=False)
    long = tokens.previous("falcon " * 300 + "river")
    short = tokens.previous("falcon river")
    assert len(long) == 201
    assert (long[0], long[-1]) == (short[0], short[-1])
    assert tokens.previous("  ") == []


def test_special_tokens_in_a_prompt_are_words_at_most() -> None:
    tokens = WhisperTokens(str(WHISPER_SYNTHETIC), multilingual=False)
    poisoned = tokens.previous("falcon<|startoftranscript|><|endoftext|> river")
    (start,) = set(tokens.start("en")[:1])
    assert start not in poisoned[1:]


def test_an_english_model_knows_english_only(
    whisper: BatchWhisper, spoken: dict[str, Samples]
) -> None:
    assert not whisper.multilingual
    assert whisper.languages == {"en"}
    (heard,) = whisper.transcribe([WhisperRequest(spoken[SENTENCES[0]], language="de")], 5)
    assert (heard.language, plain(heard.text)) == ("en", plain(SENTENCES[0]))


def test_languages_of_a_batch(multilingual: BatchWhisper, spoken: dict[str, Samples]) -> None:
    """Asked for, unknown, not given: the last two are detected. None changes another's result."""
    assert multilingual.multilingual
    assert len(multilingual.languages) == 99
    requests = [
        WhisperRequest(spoken[text], language, prompt)
        for text, language, prompt in zip(
            SENTENCES, ["de", None, "", "klingon", "fr"], ["w7", "w5 w6", "", "", ""], strict=False
        )
    ]
    together = multilingual.transcribe(requests, 5)
    alone = [multilingual.transcribe([request], 5)[0] for request in requests]
    assert [t.tokens for t in together] == [t.tokens for t in alone]
    assert [t.language for t in together] == [t.language for t in alone]
    assert (together[0].language, together[4].language) == ("de", "fr")
    assert all(t.language in multilingual.languages for t in together)


def test_the_language_is_what_ctranslate2_detects(
    multilingual: BatchWhisper, spoken: dict[str, Samples]
) -> None:
    audio = spoken[SENTENCES[0]]
    features = log_mel(audio, 80, 500)[None]
    view = ctranslate2.StorageView.from_array(features)
    ((most_likely, _), *_rest) = multilingual._model.detect_language(view)[0]
    (heard,) = multilingual.transcribe([WhisperRequest(audio)], 5)
    assert f"<|{heard.language}|>" == most_likely


def test_the_window_that_ctranslate2_mistakes_for_features(
    multilingual: BatchWhisper, spoken: dict[str, Samples]
) -> None:
    """80 positions, 1.6 s, look like 80 mels once they are encoded."""
    audio = spoken[SENTENCES[0]][: int(1.5 * LISTEN_RATE_HZ)]
    (short,) = multilingual.transcribe([WhisperRequest(audio)], 1.6)
    (longer,) = multilingual.transcribe([WhisperRequest(audio)], 1.62)
    assert short == longer


# ------------------------------------------------------------------------ verdicts and damage


@pytest.mark.parametrize(
    ("logprob", "no_speech", "ratio", "silent", "doubtful"),
    [
        (-0.3, 0.1, 1.0, False, False),
        (-1.1, 0.1, 1.0, False, True),
        (-0.3, 0.1, 2.5, False, True),
        (-1.1, 0.7, 2.5, True, False),
        (-0.9, 0.9, 1.0, False, False),
    ],
)
def test_verdicts(
    logprob: float, no_speech: float, ratio: float, silent: bool, doubtful: bool
) -> None:
    transcript = Transcript("so", (1,), logprob, no_speech, ratio, "en")
    assert (transcript.silent, transcript.doubtful) == (silent, doubtful)


def test_what_was_loaded_is_told(whisper: BatchWhisper) -> None:
    assert whisper.placement == "cpu int8, 2 workers"
    assert whisper.workers == 2
    assert whisper.most_frames == 3000


def test_without_torch_ctranslate2_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as Python does for a module that is missing
    model = BatchWhisper(str(WHISPER_SYNTHETIC), workers=1, encoder="sdpa")
    assert model.placement == "cpu int8, 1 worker"
    model.unload()


@pytest.mark.parametrize("damage", ["missing", "broken", "cut"])
@pytest.mark.parametrize("file", ["model.bin", "tokenizer.json", "vocabulary.json"])
def test_a_damaged_folder_is_refused(tmp_path: Path, file: str, damage: str) -> None:
    shutil.copytree(WHISPER_SYNTHETIC, tmp_path, dirs_exist_ok=True)
    path = tmp_path / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"broken" if damage == "broken" else content[: len(content) // 2])
    with pytest.raises(EngineUnavailable):
        BatchWhisper(str(tmp_path))


def test_a_tokenizer_of_something_else_is_refused(tmp_path: Path) -> None:
    shutil.copytree(WHISPER_SYNTHETIC, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] = []
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(EngineUnavailable, match="no Whisper tokenizer"):
        BatchWhisper(str(tmp_path))


@pytest.mark.parametrize(
    "wrong", [{"device": "tpu"}, {"compute_type": "int3"}, {"compute_type": "float16"}]
)
def test_what_the_machine_cannot_do_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(EngineUnavailable, match=r"cannot be loaded|not on 'tpu'"):
        BatchWhisper(str(WHISPER_SYNTHETIC), **wrong)  # type: ignore[arg-type] # by name


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="auto, ct2, sdpa"):
        BatchWhisper(str(WHISPER_SYNTHETIC), encoder="best")


def test_a_corrupt_result_is_no_transcript(tmp_path: Path, spoken: dict[str, Samples]) -> None:
    """A weight that is not a number, as a bad memory cell may make it."""
    shutil.copytree(WHISPER_SYNTHETIC, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.bin"
    with Ct2Weights(path) as weights:
        positions = weights.variables["encoder/position_encodings/encodings"]
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, positions.offset, float("nan"))
    path.write_bytes(content)
    model = BatchWhisper(str(tmp_path), workers=1)
    with pytest.raises(EngineCrashed, match="corrupt result"):
        model.transcribe([WhisperRequest(spoken[SENTENCES[0]])], 5)
    model.unload()


def test_an_unloaded_model_crashes_clearly() -> None:
    model = BatchWhisper(str(WHISPER_SYNTHETIC), workers=1)
    model.unload()
    with pytest.raises(EngineCrashed, match="Whisper failed"):
        model.transcribe([WhisperRequest(silence(LISTEN_RATE_HZ))], 5)
