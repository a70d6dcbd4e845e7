"""Listening to a recorded call: stretches, gaps, overlaps, words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.audio import tone
from tools import listen
from tools.turn_eval.scripts import Piece
from tools.turn_eval.sounds import Voices
from tools.turn_eval.talks import Talk, cut_up, exchange, talks
from tools.wav import resample, write_stereo, write_wav
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples, silence


def channel(*stretches: tuple[float, float], seconds: float = 10.0) -> Samples:
    """A tone from each start to each end, 16 kHz."""
    whole = silence(round(seconds * LISTEN_RATE_HZ))
    for start, end in stretches:
        sound = tone(end - start, rate_hz=LISTEN_RATE_HZ)
        at = round(start * LISTEN_RATE_HZ)
        whole[at : at + len(sound)] = sound
    return whole


def found(*stretches: tuple[float, float]) -> list[tuple[float, float]]:
    heard = talks(channel(*stretches), LISTEN_RATE_HZ, "caller")
    return [(round(each.start, 2), round(each.end, 2)) for each in heard]


def test_a_pause_ends_a_stretch_and_a_breath_does_not():
    assert found((1.0, 2.0), (2.2, 3.0), (3.6, 4.0)) == [(1.0, 3.0), (3.6, 4.0)]


def test_a_single_frame_is_no_stretch():
    assert found((1.0, 1.02)) == []


def test_silence_has_no_stretches():
    assert found() == []


def test_levels_are_told():
    (heard,) = talks(channel((1.0, 2.0)), LISTEN_RATE_HZ, "caller")
    assert heard.dbfs == pytest.approx(-13.5, abs=0.5)  # a sine with a peak of 0.3


def test_gaps_are_between_the_sides_and_overlaps_where_one_begins_over_the_other():
    caller = [Talk("caller", 1.0, 2.0, -20.0), Talk("caller", 4.0, 4.4, -20.0)]
    agent = [Talk("agent", 2.8, 5.0, -20.0), Talk("agent", 5.5, 6.0, -20.0)]
    moments = exchange(caller, agent)
    assert [moment.talk.who for moment in moments] == ["caller", "agent", "caller", "agent"]
    assert [moment.gap for moment in moments] == [None, pytest.approx(0.8), None, None]
    assert [round(moment.overlap, 2) for moment in moments] == [0.0, 0.0, 0.4, 0.0]


def test_long_sound_is_cut_where_it_is_quiet():
    sound = channel((0.0, 3.0), (3.4, 6.0), seconds=6.0)
    pieces = cut_up(sound, LISTEN_RATE_HZ, 4.0)
    assert np.array_equal(np.concatenate(pieces), sound)
    assert [round(len(piece) / LISTEN_RATE_HZ, 1) for piece in pieces] == [
        pytest.approx(3.2, abs=0.25),
        pytest.approx(2.8, abs=0.25),
    ]


async def test_the_words_of_both_sides_are_told(tmp_path, capsys):
    voices = Voices()
    await voices.start()
    asks = await voices.said([Piece("What is the weather in Paris today?")], "en-us", 0)
    says = await voices.said([Piece("The green tiger is in the kitchen.")], "en-us", 0)
    await voices.aclose()
    gap = silence(len(asks) + SEND_RATE_HZ // 2)
    write_stereo(tmp_path / "call.wav", asks, np.concatenate([gap, says]))
    left, right = (resample(each, SEND_RATE_HZ, LISTEN_RATE_HZ) for each in (asks, says))
    moments = exchange(talks(left, LISTEN_RATE_HZ, "caller"), talks(right, LISTEN_RATE_HZ, "agent"))
    said = await listen.words_of(moments, {"caller": left, "agent": right}, str(listen.MODEL))
    assert sorted(said) == [
        "The green tiger is in the kitchen.",
        "What is the weather in Paris today?",
    ]
    assert listen.main([str(tmp_path / "call.wav"), "--no-words"]) == 0
    printed = capsys.readouterr().out
    assert "caller: 1 stretches" in printed
    assert "caller to agent: 1 times, p50 0.50 s" in printed


def test_a_mono_file_is_refused(tmp_path, capsys):
    write_wav(tmp_path / "a.wav", tone(0.1))
    assert listen.main([str(tmp_path / "a.wav")]) == 2
    assert "1 channels" in capsys.readouterr().err
