"""Silero behind its gate, and webrtcvad alone, on real speech and on what is not speech."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from tests.engines.speech import frames
from tests.support.audio import noise, speech_clips
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples, silence
from voice_rtc.engines.base import VadEngine, VadSession, VadWindow
from voice_rtc.engines.fakes import ThresholdVad
from voice_rtc.engines.vad.silero import (
    Batcher,
    Heard,
    SileroVad,
    SileroVadSession,
    Stretch,
    fresh_state,
)
from voice_rtc.engines.vad.webrtc import WebRtcVad
from voice_rtc.engines.worker import EngineWorker
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


async def test_what_the_client_calls_silent_costs_no_inference(silero: SileroVad) -> None:
    session = silero.open()
    assert isinstance(session, SileroVadSession)
    clip = CLIPS[0].samples
    for pcm in frames(clip):
        for window in await session.feed(replace(pcm, level_dbov=-127)):
            assert window.probability == 0.0
    assert session.inferences == 0
    spoken = [replace(pcm, level_dbov=-30) for pcm in frames(clip, len(clip) // 320 * 320)]
    assert speech_share([w for pcm in spoken for w in await session.feed(pcm)]) > 0.6


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


async def test_batches_give_the_numbers_of_one_call_alone(silero: SileroVad) -> None:
    """Many calls at once, each at another place of another sound."""
    clips = [np.roll(CLIPS[i % len(CLIPS)].samples, 3000 * i)[: 3 * SECOND] for i in range(12)]
    alone = [await listen(silero.open(), clip) for clip in clips]
    batcher = silero._batcher
    assert batcher is not None
    before = batcher.batches
    together = await asyncio.gather(*(listen(silero.open(), clip) for clip in clips))
    for one, other in zip(alone, together, strict=True):
        assert [w.at for w in one] == [w.at for w in other]
        difference = [a.probability - b.probability for a, b in zip(one, other, strict=True)]
        assert max(map(abs, difference)) < 1e-4
    assert batcher.batches - before < sum(len(windows) for windows in alone) / 3


class Wedged:
    """A network that runs when it is allowed to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.began = asyncio.Event()
        self.go = threading.Event()
        self.sizes: list[int] = []

    def run(self, stretches: list[Stretch]) -> list[Heard]:
        self.loop.call_soon_threadsafe(self.began.set)
        self.go.wait(10.0)
        self.sizes.append(len(stretches))
        if len(stretches) == 3:
            raise RuntimeError("no three")
        return [([0.7], fresh_state()) for _ in stretches]


async def test_a_batch_is_who_waited_meanwhile_and_its_failure_is_theirs_alone() -> None:
    worker, network = EngineWorker("vad-test"), Wedged(asyncio.get_running_loop())
    batcher = Batcher(network, worker)
    one = Stretch([silence(512)], fresh_state())
    first = batcher.submit(one)
    second = [batcher.submit(one) for _ in range(4)]
    second[0].cancel()  # a call that ended
    network.go.set()
    async with asyncio.timeout(10):
        assert (await first)[0] == [0.7]
        for failed in second[1:]:
            with pytest.raises(RuntimeError, match="no three"):
                await failed
        assert (await batcher.submit(one))[0] == [0.7]
    assert network.sizes == [1, 3, 1]
    await worker.aclose()


async def test_whoever_waits_when_it_closes_is_told() -> None:
    worker, network = EngineWorker("vad-test"), Wedged(asyncio.get_running_loop())
    batcher = Batcher(network, worker)
    one = Stretch([silence(512)], fresh_state())
    running, waiting = batcher.submit(one), batcher.submit(one)
    batcher.close()
    with pytest.raises(EngineUnavailable):
        await waiting
    async with asyncio.timeout(10):
        await network.began.wait()
        network.go.set()
        await worker.aclose()
        assert (await running)[0] == [0.7]
        with pytest.raises(EngineUnavailable):
            await batcher.submit(one)


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
