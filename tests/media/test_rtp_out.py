"""RTP out: when packets go, and what stands in them, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from tests.support.virtual_time import run_virtual
from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, rms_dbfs
from voice_rtc.core.rtp import RtpPacket, parse
from voice_rtc.media.opus import Decoder
from voice_rtc.media.rtp_out import OutboundRtp
from voice_rtc.metrics import Metrics

TAIL = 6


class Script:
    """Plays so many frames of a tone each time it is told to."""

    def __init__(self) -> None:
        self.left = 0
        self.wake: Callable[[], None] = lambda: None
        self.asked = 0
        self.sent = 0
        """Frames told to be sent."""
        self.on_sent: Callable[[], None] = lambda: None

    def play(self, frames: int) -> None:
        self.left += frames
        self.wake()

    def frame_sent(self) -> None:
        self.sent += 1
        self.on_sent()

    def on_sound(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def next_frame(self) -> Samples | None:
        self.asked += 1
        if not self.left:
            return None
        self.left -= 1
        return (9000 * np.sin(np.arange(960) * 0.06)).astype(np.int16)


class Rig:
    def __init__(self) -> None:
        self.source = Script()
        self.metrics = Metrics()
        self.out = OutboundRtp(self.source, self.metrics, bitrate=56_000, complexity=0)
        self.sent: list[tuple[float, RtpPacket]] = []

    def start(self) -> None:
        self.out.start(self._note, 111, 77)

    def _note(self, data: bytes) -> None:
        packet = parse(data)
        assert packet is not None
        self.sent.append((round(asyncio.get_running_loop().time(), 6), packet))


def story(work: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        rig = Rig()
        try:
            await work(rig)
        finally:
            rig.out.stop()

    run_virtual(run())


def test_a_packet_every_20_ms_and_the_first_at_once() -> None:
    async def run(rig: Rig) -> None:
        rig.start()
        await asyncio.sleep(1.0037)
        began = asyncio.get_running_loop().time()
        rig.source.play(5)
        await asyncio.sleep(1.0)
        times = [at - began for at, _ in rig.sent]
        expected = [place * 0.02 for place in range(5 + TAIL)]
        assert np.allclose(times, expected, atol=1e-6)
        packets = [packet for _, packet in rig.sent]
        assert {(packet.payload_type, packet.ssrc) for packet in packets} == {(111, 77)}
        numbers = [packet.sequence - packets[0].sequence for packet in packets]
        stamps = [packet.timestamp - packets[0].timestamp for packet in packets]
        assert numbers == list(range(5 + TAIL))
        assert stamps == [960 * place for place in range(5 + TAIL)]
        assert [packet.marker for packet in packets] == [True, *[False] * (4 + TAIL)]

    story(run)


def test_the_source_is_told_of_each_frame_that_was_handed_over() -> None:
    async def run(rig: Rig) -> None:
        before: list[int] = []
        rig.source.on_sent = lambda: before.append(len(rig.sent))
        rig.start()
        rig.source.play(3)
        await asyncio.sleep(1.0)
        assert before == [1, 2, 3], "behind its packet, and not for the silence that follows"

    story(run)


def test_silence_costs_nothing() -> None:
    async def run(rig: Rig) -> None:
        rig.start()
        rig.source.play(2)
        await asyncio.sleep(1.0)
        asked, sent = rig.source.asked, len(rig.sent)
        await asyncio.sleep(3600.0)
        assert (rig.source.asked, len(rig.sent)) == (asked, sent)

    story(run)


def test_pauses_have_their_length_in_timestamps() -> None:
    async def run(rig: Rig) -> None:
        rig.start()
        rig.source.play(1)
        await asyncio.sleep(10.0)
        rig.source.play(1)
        await asyncio.sleep(1.0)
        marked = [(at, packet) for at, packet in rig.sent if packet.marker]
        (first, one), (second, two) = marked
        seconds = (two.timestamp - one.timestamp) % 2**32 / 48_000
        assert abs(seconds - (second - first)) <= 0.02
        assert two.sequence - one.sequence == 1 + TAIL

    story(run)


def test_a_short_gap_does_not_make_packets_come_sooner() -> None:
    async def run(rig: Rig) -> None:
        rig.start()
        for _ in range(20):
            rig.source.play(1)
            await asyncio.sleep(0.007)
        await asyncio.sleep(1.0)
        times = [at for at, _ in rig.sent]
        assert min(np.diff(times)) > 0.0199
        assert len(times) == 20 + TAIL

    story(run)


def test_the_end_of_a_spurt_is_silence() -> None:
    async def run(rig: Rig) -> None:
        rig.start()
        rig.source.play(10)
        await asyncio.sleep(1.0)
        decoder = Decoder(LISTEN_RATE_HZ)
        levels = [rms_dbfs(decoder.decode(packet.payload)) for _, packet in rig.sent]
        assert min(levels[1:10]) > -20 and max(levels[-3:]) < -60

    story(run)


def test_what_is_there_before_the_start_goes_at_the_start() -> None:
    async def run(rig: Rig) -> None:
        rig.source.play(1)
        await asyncio.sleep(1.0)
        assert not rig.sent
        rig.start()
        await asyncio.sleep(0.001)
        assert len(rig.sent) == 1

    story(run)


def test_nothing_is_sent_after_the_end() -> None:
    async def run(rig: Rig) -> None:
        rig.start()
        rig.source.play(100)
        await asyncio.sleep(0.1)
        rig.out.stop()
        sent = len(rig.sent)
        rig.source.play(100)
        await asyncio.sleep(1.0)
        assert len(rig.sent) == sent

    story(run)
