"""Decoded frames become contiguous PCM on the sample clock."""

import asyncio
import itertools
from fractions import Fraction

import numpy as np
import pytest
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from tests.support.virtual_time import run_virtual
from voice_rtc.core.audio import Pcm
from voice_rtc.core.buffers import Policy
from voice_rtc.inbox import Inbox
from voice_rtc.media.inbound import InboundAudio
from voice_rtc.metrics import Metrics

LAST = 16_000
"""What follows the end of a track: a second of silence."""


def frame(pts: int, level: int = 1000) -> AudioFrame:
    """20 ms of a constant, stereo 48 kHz, as aiortc's decoder gives it."""
    made = AudioFrame.from_ndarray(
        np.full((1, 1920), level, dtype=np.int16), format="s16", layout="stereo"
    )
    made.sample_rate = 48_000
    made.pts = pts
    made.time_base = Fraction(1, 48_000)
    return made


class Frames(MediaStreamTrack):
    """A track that yields ``frames``; a number is a pause in seconds."""

    kind = "audio"

    def __init__(self, frames: list[AudioFrame | float]) -> None:
        super().__init__()
        self._frames = frames

    async def recv(self) -> AudioFrame:
        while self._frames:
            head = self._frames[0]
            if not isinstance(head, float):
                self._frames.pop(0)
                return head
            until = asyncio.get_running_loop().time() + head
            try:
                await asyncio.sleep(head)
            finally:
                left = until - asyncio.get_running_loop().time()
                self._frames[0] = max(left, 0.0)
            self._frames.pop(0)
        raise MediaStreamError


def heard(frames: list[AudioFrame | float]) -> tuple[list[Pcm], Metrics]:
    metrics = Metrics()

    async def read() -> list[Pcm]:
        inbox: Inbox[Pcm] = Inbox(60.0, Policy.DROP_OLDEST, weigh=lambda pcm: pcm.seconds)
        await InboundAudio(inbox, metrics).run(Frames(frames))
        inbox.close()
        return [pcm async for pcm in inbox]

    return run_virtual(read()), metrics


def total(pcms: list[Pcm]) -> int:
    return sum(len(pcm.samples) for pcm in pcms)


def concealed(metrics: Metrics, method: str) -> float:
    value = metrics.registry.get_sample_value(
        "voice_rtc_frames_concealed_total", {"method": method}
    )
    return value or 0.0


def test_the_sample_clock_is_contiguous() -> None:
    pcms, _ = heard([frame(960 * i) for i in range(50)])
    assert all(b.at == a.end for a, b in itertools.pairwise(pcms))
    assert total(pcms) == 16_000 + LAST


def test_a_lost_packet_becomes_silence_of_its_length() -> None:
    whole, _ = heard([frame(960 * i) for i in range(20)])
    holed, metrics = heard([frame(960 * i) for i in range(20) if i not in (7, 8)])
    assert total(holed) == total(whole)
    assert concealed(metrics, "silence") == 2
    silent = [not pcm.samples.any() for pcm in holed]
    assert silent[:20] == [False] * 7 + [True] * 2 + [False] * 11


def test_a_new_timeline_is_not_filled() -> None:
    pcms, metrics = heard([frame(0), frame(960), frame(960 + 48_000 * 60), frame(960 * 3)])
    assert total(pcms) == 4 * 320 + LAST
    assert concealed(metrics, "silence") == 0


def test_a_caller_who_stops_sending_falls_silent_by_the_clock() -> None:
    pcms, metrics = heard([*(frame(960 * i) for i in range(5)), 2.0, frame(960 * 105)])
    assert total(pcms) == pytest.approx(6 * 320 + 2 * 16_000 + LAST, abs=700)
    assert concealed(metrics, "clock") > 0


def test_what_was_made_up_is_not_filled_again() -> None:
    _, metrics = heard([*(frame(960 * i) for i in range(5)), 1.0, frame(960 * 55)])
    made_up = concealed(metrics, "clock") + concealed(metrics, "silence")
    assert made_up == pytest.approx(50 + LAST / 320, abs=1)


def test_before_the_first_frame_nothing_is_made_up() -> None:
    pcms, _ = heard([5.0, frame(0)])
    assert total(pcms) == 320 + LAST


def test_a_track_that_ends_in_a_word_ends_the_word() -> None:
    pcms, _ = heard([frame(960 * i) for i in range(10)])
    assert not any(pcm.samples.any() for pcm in pcms[10:])
    assert total(pcms[10:]) == LAST
