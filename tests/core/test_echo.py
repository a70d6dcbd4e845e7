"""Our own voice is told from the caller's, on real speech."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.audio import noise, resample, speech_clips
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_FRAME_SAMPLES, SEND_RATE_HZ, Samples, silence
from voice_rtc.core.barge_in import BargeInRules
from voice_rtc.core.echo import HEARD_SAMPLES, EchoMonitor

THRESHOLD = BargeInRules().echo_similarity
FRAME_SECONDS = SEND_FRAME_SAMPLES / SEND_RATE_HZ
Sound = NDArray[np.float64]
ALL = HEARD_SAMPLES
"""All that is looked at is of one voice."""


def at_level(samples: Samples, level: float = 0.1) -> Sound:
    sound = samples / 32768
    return sound / np.sqrt(np.mean(sound**2)) * level


def pcm(sound: Sound) -> Samples:
    return np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)


CLIPS = [at_level(clip.samples) for clip in speech_clips()]
LONG = [1, 2]
"""Clips that the agent speaks; any other one is the caller's."""


def room(random: np.random.Generator, sound: Sound, decibels: float) -> Sound:
    """An echo of ``sound``: through a room, up to 0.4 s late, softer by ``decibels``."""
    answer = random.normal(size=800) * np.exp(-np.arange(800) / 160)
    answer[0] = 3
    late = np.zeros(int(random.uniform(0.05, 0.4) * LISTEN_RATE_HZ))
    echo = np.convolve(sound, answer / np.sqrt((answer**2).sum()))
    return np.concatenate([late, echo])[: len(sound)] * 10 ** (-decibels / 20)


def spoken(agent: Samples, from_seconds: float = 0.0) -> EchoMonitor:
    """What plays ``agent`` (48 kHz), in frames."""
    monitor = EchoMonitor()
    for number, start in enumerate(range(0, len(agent) - SEND_FRAME_SAMPLES, SEND_FRAME_SAMPLES)):
        frame = agent[start : start + SEND_FRAME_SAMPLES]
        monitor.played(frame, from_seconds + number * FRAME_SECONDS)
    return monitor


def scenes(
    count: int, decibels: float, with_caller: bool, with_echo: bool, voiced: int = HEARD_SAMPLES
) -> Iterator[float]:
    """Similarities in so many random scenes, ``voiced`` samples after the voice began."""
    random = np.random.default_rng(7)
    for _ in range(count):
        who = int(random.choice(LONG))
        agent = CLIPS[who]
        end = int(random.uniform(1.3, 3.4) * LISTEN_RATE_HZ)
        monitor = spoken(resample(pcm(agent[:end]), LISTEN_RATE_HZ, SEND_RATE_HZ))
        heard = random.normal(size=end) * 1e-3
        if with_echo:
            heard += room(random, agent[:end], decibels)
        if with_caller:
            other = CLIPS[(who + int(random.integers(1, 5))) % len(CLIPS)]
            start = int(random.integers(0, len(other) - voiced))
            heard[-voiced:] += other[start : start + voiced]
        yield monitor.similarity(pcm(heard), voiced, end / LISTEN_RATE_HZ)


@pytest.mark.parametrize("decibels", [10, 20, 30])
def test_an_echo_is_recognised(decibels):
    similar = list(scenes(25, decibels, with_caller=False, with_echo=True))
    assert np.mean(np.array(similar) >= THRESHOLD) >= 0.95
    assert np.median(similar) > 0.85


def test_the_caller_is_no_echo():
    assert max(scenes(25, 0, with_caller=True, with_echo=False)) < THRESHOLD


@pytest.mark.parametrize("seconds", [0.32, 0.4, 0.5, 0.6])
def test_the_caller_who_began_a_moment_ago_is_no_echo(seconds):
    voiced = int(seconds * LISTEN_RATE_HZ)
    similar = list(scenes(25, 0, with_caller=True, with_echo=False, voiced=voiced))
    assert np.mean(np.array(similar) < THRESHOLD) >= 0.95


def test_the_first_words_of_an_echo_are_soon_recognised():
    voiced = int(0.5 * LISTEN_RATE_HZ)
    similar = list(scenes(25, 20, with_caller=False, with_echo=True, voiced=voiced))
    assert np.mean(np.array(similar) >= THRESHOLD) >= 0.9


def test_a_caller_who_begins_just_after_the_agent_is_no_echo():
    agent = np.concatenate([np.zeros(LISTEN_RATE_HZ), CLIPS[1]])
    caller = np.concatenate([np.zeros(int(1.3 * LISTEN_RATE_HZ)), CLIPS[0]])
    monitor = spoken(resample(pcm(agent[: 2 * LISTEN_RATE_HZ]), LISTEN_RATE_HZ, SEND_RATE_HZ))
    for end in np.arange(1.4, 2.0, 0.1):
        heard = pcm(caller[: int(end * LISTEN_RATE_HZ)])
        voiced = int((end - 1.3) * LISTEN_RATE_HZ)
        assert monitor.similarity(heard, voiced, float(end)) < THRESHOLD


def test_where_an_echo_is_known_its_next_beginning_is_recognised_at_once():
    monitor = spoken(AGENT)
    heard = returned(0.2)
    assert monitor.similarity(heard, 1000, 2.0) == 0.0
    assert monitor.similarity(heard, len(heard), 2.0) > 0.9
    assert monitor.similarity(heard, 1000, 2.0) > 0.9


def test_what_was_heard_a_moment_ago_is_compared_with_what_was_played_then():
    heard = returned(0.2)[: int(1.5 * LISTEN_RATE_HZ)]
    assert spoken(AGENT).similarity(heard, len(heard), 1.5) > 0.9


@pytest.mark.parametrize("decibels", [10, 20, 30])
def test_the_caller_who_speaks_into_an_echo_is_no_echo(decibels):
    assert max(scenes(25, decibels, with_caller=True, with_echo=True)) < THRESHOLD + 0.05


AGENT = resample(pcm(CLIPS[1][: 2 * LISTEN_RATE_HZ]), LISTEN_RATE_HZ, SEND_RATE_HZ)


def returned(delay: float, seconds: float = 2.0) -> Samples:
    """The agent's first ``seconds``, come back after ``delay``."""
    sound = np.concatenate([np.zeros(int(delay * LISTEN_RATE_HZ)), CLIPS[1]])
    return pcm(sound[: int(seconds * LISTEN_RATE_HZ)] * 0.1)


def test_the_longest_delay_is_the_longest():
    assert spoken(AGENT).similarity(returned(0.55), ALL, 2.0) > 0.9
    assert spoken(AGENT).similarity(returned(0.75), ALL, 2.0) < THRESHOLD


def test_times_are_those_of_the_call():
    assert spoken(AGENT, from_seconds=100.0).similarity(returned(0.2), ALL, 102.0) > 0.9
    assert spoken(AGENT, from_seconds=100.0).similarity(returned(0.2), ALL, 105.0) == 0.0


def test_looking_often_or_seldom_makes_no_difference():
    often, seldom = EchoMonitor(), EchoMonitor()
    for number, start in enumerate(range(0, len(AGENT) - 959, 960)):
        frame, at = AGENT[start : start + 960], number * FRAME_SECONDS
        often.played(frame, at)
        seldom.played(frame, at)
        often.similarity(returned(0.2), ALL, at)
    last = (number + 1) * FRAME_SECONDS
    assert often.similarity(returned(0.2, last), ALL, last) == pytest.approx(
        seldom.similarity(returned(0.2, last), ALL, last), abs=0.02
    )


def test_a_pause_in_what_is_played_is_silence():
    monitor = EchoMonitor()
    half = len(AGENT) // 2 // 960
    for number in range(half):
        monitor.played(AGENT[number * 960 : (number + 1) * 960], number * FRAME_SECONDS)
    for number in range(half, 2 * half):
        at = number * FRAME_SECONDS + 0.3
        monitor.played(AGENT[number * 960 : (number + 1) * 960], at)
    halves = np.split(returned(0.0), 2)
    heard = np.concatenate([halves[0], silence(int(0.3 * LISTEN_RATE_HZ)), halves[1]])
    late = np.concatenate([silence(int(0.1 * LISTEN_RATE_HZ)), heard])
    assert monitor.similarity(late[: len(heard)], ALL, len(heard) / LISTEN_RATE_HZ) > 0.9


def test_without_sound_nothing_comes_back():
    loud = noise(1.0, seed=1, rate_hz=LISTEN_RATE_HZ)
    assert EchoMonitor().similarity(loud, ALL, 1.0) == 0.0
    assert spoken(silence(SEND_RATE_HZ)).similarity(loud, ALL, 1.0) == 0.0
    assert spoken(AGENT).similarity(loud, 3000, 1.0) == 0.0


def test_what_is_kept_is_bounded():
    monitor = EchoMonitor()
    for number in range(50 * 60):
        monitor.played(AGENT[:960], number * FRAME_SECONDS)
    assert monitor.kept_seconds < 3.0
