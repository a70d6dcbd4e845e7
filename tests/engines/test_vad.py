"""Silero behind its gate, and webrtcvad alone, on real speech and on what is not speech."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from tests.engines.speech import frames
from tests.support.audio import noise, speech_clips
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples, silence
from voice_rtc.engines.base import VadEngine, VadSession, VadWindow
from voice_rtc.engines.fakes import ThresholdVad
from voice_rtc.engines.vad.silero import SileroVad, SileroVadSession
from voice_rtc.engines.vad.webrtc import WebRtcVad
from voice_rtc.errors import EngineUnavailable

CLIPS = speech_clips(LISTEN_RATE_HZ)
SECOND = LISTEN_RATE_HZ


@pytest.fixture
async def silero() -> AsyncIterator[SileroVad]:
    engine = SileroVad()
    await engine.start()
    yield engine
    await engine.aclose()


async def listen(session: VadSession, samples: Samples, at: int = 0) -> list[VadWindow]:
    windows = []
    for pcm in frames(samples, at):
        windows += await session.feed(pcm)
    return windows


def speech_share(windows: list[VadWindow]) -> float:
    return sum(window.probability > 0.5 for window in windows) / len(windows)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
async def test_silero_finds_speech_in_speech(silero: SileroVad, clip) -> None:
    assert speech_share(await listen(silero.open(), clip.samples)) > 0.6


@pytest.mark.parametrize(
    "sound",
    [
        silence(2 * SECOND),
        noise(2.0, 1, SECOND, 0.002),
        noise(2.0, 2, SECOND, 0.05),
        (np.sin(np.arange(2 * SECOND) * 2 * np.pi * 440 / SECOND) * 8000).astype(np.int16),
    ],
    ids=["silence", "quiet noise", "loud noise", "tone"],
)
async def test_silero_finds_none_in_noise(silero: SileroVad, sound: Samples) -> None:
    assert speech_share(await listen(silero.open(), sound)) == 0.0


async def test_windows_are_contiguous_and_of_one_size(silero: SileroVad) -> None:
    samples = CLIPS[0].samples
    windows = await listen(silero.open(), samples)
    assert [window.at for window in windows] == list(range(0, len(samples) - 511, 512))
    assert {window.samples for window in windows} == {512}


async def test_silence_costs_no_inference(silero: SileroVad) -> None:
    session = silero.open()
    assert isinstance(session, SileroVadSession)
    await listen(session, silence(5 * SECOND))
    assert session.inferences == 0


async def test_the_onset_after_silence_is_not_lost(silero: SileroVad) -> None:
    speech = CLIPS[0].samples
    always = await listen(silero.open(), speech)
    gated = await listen(silero.open(), np.concatenate([silence(512 * 100), speech]))
    after = gated[100:]
    first = next(i for i, window in enumerate(always) if window.probability > 0.5)
    assert any(window.probability > 0.5 for window in after[: first + 2])


async def test_the_gate_changes_little_about_speech(silero: SileroVad) -> None:
    clip = CLIPS[1].samples
    aside = await listen(silero.open(), np.concatenate([silence(512 * 64), clip]))
    straight = await listen(silero.open(), clip)
    agreed = [
        (a.probability > 0.5) == (b.probability > 0.5)
        for a, b in zip(aside[64:], straight, strict=False)
    ]
    assert sum(agreed) / len(agreed) > 0.95


async def test_a_jump_starts_afresh(silero: SileroVad) -> None:
    session = silero.open()
    await listen(session, CLIPS[0].samples[:700])
    windows = await session.feed(Pcm(silence(512), 100_000))
    assert [window.at for window in windows] == [100_000]


async def test_sessions_do_not_disturb_each_other(silero: SileroVad) -> None:
    speech = CLIPS[0].samples
    alone = await listen(silero.open(), speech)
    mine, other = silero.open(), silero.open()
    together = []
    for pcm, loud in zip(frames(speech), frames(noise(10.0, 3, SECOND, 0.2)), strict=False):
        together += await mine.feed(pcm)
        await other.feed(loud)
    assert together == alone


async def test_silero_that_is_not_started_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable):
        SileroVad().open()


async def test_webrtc_tells_speech_from_silence() -> None:
    engine: VadEngine = WebRtcVad()
    await engine.start()
    assert speech_share(await listen(engine.open(), CLIPS[0].samples)) > 0.5
    assert speech_share(await listen(engine.open(), silence(SECOND))) == 0.0
    session = engine.open()
    windows = await listen(session, silence(SECOND), at=5)
    assert [window.at for window in windows][:2] == [5, 325]
    session.close()
    await engine.aclose()


async def test_threshold_is_about_loudness() -> None:
    engine: VadEngine = ThresholdVad()
    await engine.start()
    assert speech_share(await listen(engine.open(), noise(1.0, 1, SECOND, 0.1))) == 1.0
    assert speech_share(await listen(engine.open(), noise(1.0, 1, SECOND, 0.0005))) == 0.0
    windows = await listen(engine.open(), silence(1000), at=77)
    assert [(window.at, window.probability) for window in windows] == [(77, 0.0)]
    await engine.aclose()
