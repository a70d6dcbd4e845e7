"""The second recogniser: right text scores clearly better than wrong text."""

from __future__ import annotations

import sys

import pytest

from tests.loopback.voices import spoken
from tests.support.audio import noise
from tools import recognise as module
from tools.recognise import PASSING_ERROR_RATE, recognise, word_error_rate
from tools.wav import resample, write_wav
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples, silence

TEXTS = (
    "Please tell me more about your falcon.",
    "How do you do. What would you like to talk about today?",
    "The weather in Paris is mild with a little rain in the afternoon.",
)


async def voice(text: str) -> Samples:
    return resample(await spoken(text), SEND_RATE_HZ, LISTEN_RATE_HZ)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"),
    [
        ("Hello, world!", "hello world", 0.0),
        ("one two three four", "one two four", 0.25),
        ("one two", "one and two", 0.5),
        ("one two", "three four", 1.0),
        ("one", "two three", 2.0),
        ("Don't stop", "don't stop", 0.0),
        ("it\N{RIGHT SINGLE QUOTATION MARK}s me", "it's me", 0.0),
        ("anything", "", 1.0),
        ("", "", 0.0),
        ("", "something", 1.0),
    ],
)
def test_word_error_rate(reference, hypothesis, rate):
    assert word_error_rate(reference, hypothesis) == rate


@pytest.mark.parametrize("text", TEXTS)
async def test_right_text_passes(text):
    assert recognise(await voice(text), text).passed


@pytest.mark.parametrize("place", range(len(TEXTS)))
async def test_wrong_text_fails_by_far(place):
    found = recognise(await voice(TEXTS[place]), TEXTS[place - 1])
    assert found.word_error_rate > 2 * PASSING_ERROR_RATE


@pytest.mark.parametrize("text", TEXTS)
async def test_half_a_reply_fails(text):
    whole = await voice(text)
    assert not recognise(whole[: len(whole) // 2], text).passed


@pytest.mark.parametrize("samples", [silence(16_000), noise(1.0, 1, 16_000), silence(0)])
def test_no_speech_fails(samples):
    assert not recognise(samples, TEXTS[0]).passed


async def test_words_that_the_dictionary_lacks_do_not_count():
    found = recognise(await voice(TEXTS[0]), "Please tell me more about your xqzzt falcon.")
    assert found.unknown_words == ("xqzzt",)
    assert found.scored_words == 7
    assert found.passed


def test_without_any_known_word_nothing_passes():
    found = recognise(silence(16_000), "xqzzt")
    assert found.scored_words == 0
    assert not found.passed


@pytest.mark.parametrize(("expected", "status"), [(TEXTS[0], 0), (TEXTS[1], 1)])
async def test_the_command_line_tells_by_its_exit_status(
    tmp_path, monkeypatch, capsys, expected, status
):
    write_wav(tmp_path / "a.wav", await voice(TEXTS[0]), LISTEN_RATE_HZ)
    monkeypatch.setattr(sys, "argv", ["recognise", str(tmp_path / "a.wav"), expected])
    assert module.main() == status
    assert "word error rate" in capsys.readouterr().out


def test_a_file_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recognise", str(tmp_path / "a.wav"), "hello"])
    assert module.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
