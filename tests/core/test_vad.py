"""The gate: when speech starts and stops, on the sample clock."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from voice_rtc.core.vad import GateSettings, SpeechEdge, VadGate
from voice_rtc.errors import StateError

WINDOW = 512
SETTINGS = GateSettings(speech_threshold=0.5, start_seconds=0.096, stop_seconds=0.096)
"""Three windows to start, three to stop."""


def play(gate: VadGate, probabilities: list[float], at: int = 0) -> list[SpeechEdge]:
    edges = [gate.feed(at + i * WINDOW, WINDOW, p) for i, p in enumerate(probabilities)]
    return [edge for edge in edges if edge is not None]


def test_speech_is_dated_to_its_first_and_after_its_last_sample():
    edges = play(VadGate(SETTINGS), [0.0] * 2 + [0.9] * 5 + [0.0] * 4)
    assert edges == [SpeechEdge(True, 2 * WINDOW), SpeechEdge(False, 7 * WINDOW)]


def test_a_click_is_not_speech():
    assert play(VadGate(SETTINGS), [0.9, 0.9, 0.0, 0.9, 0.9, 0.0]) == []


def test_a_soft_window_inside_the_first_word_does_not_start_it_anew():
    edges = play(VadGate(SETTINGS), [0.9, 0.4, 0.9, 0.4, 0.9])
    assert edges == [SpeechEdge(True, 0)]


def test_soft_windows_alone_are_not_speech():
    assert play(VadGate(SETTINGS), [0.49] * 50) == []


def test_speech_goes_on_between_the_thresholds():
    gate = VadGate(SETTINGS)
    assert play(gate, [0.9] * 3 + [0.36] * 20) == [SpeechEdge(True, 0)]
    assert gate.speaking


def test_a_short_pause_inside_speech_is_bridged():
    edges = play(VadGate(SETTINGS), [0.9] * 3 + [0.0] * 2 + [0.9] + [0.0] * 3)
    assert edges == [SpeechEdge(True, 0), SpeechEdge(False, 6 * WINDOW)]


def test_voiced_until_tells_a_voice_from_the_silence_that_is_bridged():
    gate = VadGate(SETTINGS)
    play(gate, [0.9] * 4 + [0.0] * 2)
    assert gate.speaking and gate.voiced_until == 4 * WINDOW


@pytest.mark.parametrize(("threshold", "stop"), [(0.5, 0.35), (0.2, 0.05), (0.1, 0.01)])
def test_the_stop_threshold_is_below_the_start_threshold(threshold, stop):
    assert GateSettings(speech_threshold=threshold).stop_threshold == pytest.approx(stop)


def test_lost_samples_count_as_silence_only_after_speech_has_paused():
    gate = VadGate(SETTINGS)
    play(gate, [0.9] * 3)
    assert gate.feed(100 * WINDOW, WINDOW, 0.9) is None
    assert gate.feed(200 * WINDOW, WINDOW, 0.0) == SpeechEdge(False, 101 * WINDOW)


def test_a_probability_that_is_not_a_number_is_silence():
    assert play(VadGate(SETTINGS), [0.9] * 3 + [math.nan] * 3)[-1].started is False


def test_the_sample_clock_must_not_run_backwards():
    gate = VadGate(SETTINGS)
    gate.feed(1024, WINDOW, 0.0)
    with pytest.raises(StateError):
        gate.feed(1024, WINDOW, 0.0)


def test_reset_forgets_speech_and_clock():
    gate = VadGate(SETTINGS)
    play(gate, [0.9] * 4)
    gate.reset()
    assert not gate.speaking
    assert play(gate, [0.9] * 2 + [0.0] * 5) == []


def test_new_settings_do_not_lose_the_end_of_speech():
    gate = VadGate(SETTINGS)
    play(gate, [0.9] * 4 + [0.0] * 2)
    gate.settings = GateSettings(speech_threshold=0.9, start_seconds=1.0, stop_seconds=0.096)
    assert play(gate, [0.0], at=6 * WINDOW) == [SpeechEdge(False, 4 * WINDOW)]


@pytest.mark.parametrize("seed", range(20))
def test_edges_alternate_and_rise_whatever_comes(seed):
    random = np.random.default_rng(seed)
    edges = play(VadGate(SETTINGS), list(random.random(2000)))
    assert len(edges) > 2
    assert [edge.started for edge in edges] == [i % 2 == 0 for i in range(len(edges))]
    assert all(a.at < b.at for a, b in zip(edges[::2], edges[1::2], strict=False))
    assert all(a.at <= b.at for a, b in itertools.pairwise(edges))
