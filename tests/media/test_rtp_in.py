"""RTP in: the whole timeline comes out, whatever the network did to it."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from tests.support.audio import speech_clips
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Pcm, Samples, rms_dbfs, silence
from voice_rtc.core.buffers import Policy
from voice_rtc.core.rtp import build, extensions
from voice_rtc.inbox import Inbox
from voice_rtc.media.opus import Encoder
from voice_rtc.media.rtp_in import InboundRtp
from voice_rtc.metrics import Metrics

OPUS = 111
FRAME = LISTEN_RATE_HZ // 50


class Rig:
    def __init__(self, **options: float) -> None:
        self.metrics = Metrics()
        self.inbox: Inbox[Pcm] = Inbox(10_000_000, Policy.DROP_OLDEST)
        self.stream = InboundRtp(
            self.inbox, self.metrics, payload_types=frozenset({OPUS}), level_id=1, **options
        )
        self.now = 0.0

    def send(
        self,
        place: int,
        payload: bytes,
        *,
        ssrc: int = 5,
        kind: int = OPUS,
        first: int = 65_500,
        pause: int = 0,
        level: int = 32,
    ) -> None:
        """The packet of a place in the stream, behind frames that were not sent; numbers wrap."""
        timestamp = (2**32 - 5000 + (place + pause) * 960) % 2**32
        data = build(kind, (first + place) % 65536, timestamp, ssrc, payload,
                     extension=extensions({1: bytes([level])}))  # fmt: skip
        self.stream.receive(data, self.now)

    def run_to(self, now: float) -> None:
        """Let time pass, with the ticks that are due."""
        while (due := self.stream.next_deadline) is not None and due <= now:
            self.now = due
            self.stream.tick(due)
        self.now = now

    def levels(self) -> list[int | None]:
        """What is said of each piece that came."""
        found = []
        while (pcm := self._next()) is not None:
            found.append(pcm.level_dbov)
        return found

    def heard(self) -> Samples:
        """All that came, in one piece and without a gap on the sample clock."""
        found, at = [], 0
        while (pcm := self._next()) is not None:
            assert pcm.at == at
            at = pcm.end
            found.append(pcm.samples)
        return np.concatenate(found) if found else silence(0)

    def _next(self) -> Pcm | None:
        return self.inbox._buffer.get() if len(self.inbox._buffer) else None

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0


def speech(seconds: float = 4.0) -> list[bytes]:
    longest = max((clip.samples for clip in speech_clips(SEND_RATE_HZ)), key=len)
    samples = longest[: round(seconds * SEND_RATE_HZ)]
    whole = samples[: len(samples) // 960 * 960].reshape(-1, 960)
    encoder = Encoder(SEND_RATE_HZ, application="voip", fec=True, expected_loss_percent=20)
    return [encoder.encode(frame) for frame in whole]


def play(rig: Rig, packets: list[bytes], lost: Callable[[int], bool]) -> None:
    for place, packet in enumerate(packets):
        rig.run_to(place * 0.02)
        if not lost(place):
            rig.send(place, packet)
    rig.run_to(rig.now + 0.1)  # what waits behind a hole at the end


def test_what_comes_is_played_at_once() -> None:
    rig, packets = Rig(), speech(1.0)
    for place, packet in enumerate(packets):
        rig.run_to(place * 0.02)
        rig.send(place, packet)
        assert rig.stream.frames == place + 1, "no packet waits for another"
    heard = rig.heard()
    assert len(heard) == len(packets) * FRAME
    assert rms_dbfs(heard) > -40
    assert rig.count("rtp_packets_lost_total") == 0


def test_the_level_goes_with_the_sound() -> None:
    rig, packets = Rig(), speech(0.2)
    for place, level in ((0, 32), (1, 40), (4, 50), (3, 60), (2, 70), (5, 80)):
        rig.run_to(place * 0.02)
        rig.send(place, packets[place], level=level)
    # What came out of order has no level; what the sender calls silent is, unless it was caught.
    assert rig.levels() == [-32, -40, None, None, None, None]


def test_silence_is_believed_until_there_is_a_sound_in_it() -> None:
    quiet = Encoder(SEND_RATE_HZ).encode(silence(960))
    rig, packets = Rig(), speech(1.0)
    for place in range(5):
        rig.send(place, quiet, level=127)
    assert rig.levels() == [-127] * 5
    for place in range(5, 40):
        rig.send(place, packets[place], level=127)
    said = rig.levels()
    first = said.index(None)
    assert first <= 10 and said == [-127] * first + [None] * (35 - first)


def test_made_up_silence_is_known_to_be_silent() -> None:
    rig = Rig()
    rig.send(0, speech(0.1)[0])
    rig.run_to(1.0)
    assert rig.levels()[1:] and set(rig.levels()[1:]) <= {-127}


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2])
def test_the_whole_timeline_is_there_under_loss(share: float) -> None:
    dice = random.Random(3)
    rig, packets = Rig(), speech()
    lost = {place for place in range(1, len(packets) - 1) if dice.random() < share}
    play(rig, packets, lambda place: place in lost)
    assert len(rig.heard()) == len(packets) * FRAME
    assert rig.count("rtp_packets_lost_total") == len(lost)
    assert rig.count("frames_concealed_total", method="fec") > 0


def test_bursts_are_filled_too() -> None:
    rig, packets = Rig(), speech()
    play(rig, packets, lambda place: place % 40 in (10, 11, 12))
    assert len(rig.heard()) == len(packets) * FRAME
    assert rig.count("frames_concealed_total", method="plc") > 0
    assert rig.count("frames_concealed_total", method="silence") == 0


def test_fec_brings_back_what_was_said() -> None:
    """Single losses: nearer to what was sent than by concealment alone, and than by silence."""
    packets = speech()
    whole = Rig()
    play(whole, packets, lambda place: False)
    truth = whole.heard().astype(np.float64)
    rig = Rig()
    play(rig, packets, lambda place: place % 10 == 5)
    heard = rig.heard().astype(np.float64)
    places = [place for place in range(len(packets) - 1) if place % 10 == 5]
    at = np.concatenate([np.arange(place * FRAME, (place + 1) * FRAME) for place in places])
    error = np.square(heard[at] - truth[at]).sum()
    assert error < 0.5 * np.square(truth[at]).sum()


def test_a_pause_of_the_sender_is_silence_of_its_length() -> None:
    rig, packets = Rig(), speech(2.0)
    for place in range(10):
        rig.run_to(place * 0.02)
        rig.send(place, packets[place])
    rig.run_to(10 * 0.02)
    rig.send(10, packets[10], pause=25)
    heard = rig.heard()
    assert len(heard) == 36 * FRAME
    assert rms_dbfs(heard[10 * FRAME : 35 * FRAME]) == -100.0


def test_silence_is_made_up_when_nothing_comes_and_not_counted_twice() -> None:
    rig, packets = Rig(), speech(2.0)
    for place in range(10):
        rig.run_to(place * 0.02)
        rig.send(place, packets[place])
    rig.run_to(1.0)
    made_up = rig.count("frames_concealed_total", method="clock")
    assert 30 <= made_up <= 41
    rig.send(10, packets[10], pause=40)
    assert len(rig.heard()) == 51 * FRAME


def test_after_a_frame_that_announces_a_pause_silence_comes_soon() -> None:
    rig, packets = Rig(), speech(1.0)
    rig.send(0, packets[0])
    rig.send(1, packets[1][:1])  # one byte: nothing to hear
    rig.run_to(0.15)
    assert rig.count("frames_concealed_total", method="clock") >= 2


def test_the_last_packets_of_a_sentence_come_out_behind_a_hole() -> None:
    rig, packets = Rig(), speech(1.0)
    rig.send(0, packets[0])
    rig.now = 0.04
    rig.send(2, packets[2])
    assert rig.stream.frames == 1
    rig.run_to(0.11)
    assert rig.stream.frames == 2
    assert len(rig.heard()) >= 3 * FRAME


def test_only_one_source_is_heard_until_it_is_silent() -> None:
    rig, packets = Rig(), speech(1.0)
    rig.send(0, packets[0])
    rig.send(0, packets[0], ssrc=9)
    assert (rig.stream.frames, rig.count("rtp_packets_rejected_total", reason="ssrc")) == (1, 1)
    rig.run_to(1.0)
    rig.send(7, packets[1], ssrc=9, first=100)
    assert rig.stream.frames == 2


def test_what_is_not_wanted_is_counted() -> None:
    rig, packets = Rig(packets_per_second=10.0), speech(1.0)
    rig.stream.receive(b"\x80", 0.0)
    rig.send(0, packets[0], kind=8)
    rig.send(1, b"\xff\xff\xff")
    for place in range(2, 32):
        rig.send(place, packets[place])
    reasons = ("not_rtp", "payload_type", "not_opus", "rate")
    counts = [rig.count("rtp_packets_rejected_total", reason=each) for each in reasons]
    assert counts == [1, 1, 1, 21]


def test_a_new_timeline_is_not_a_hole() -> None:
    rig, packets = Rig(), speech(1.0)
    rig.send(0, packets[0])
    rig.stream.receive(build(OPUS, 65_501, 123_456_789, 5, packets[1]), 0.02)
    assert len(rig.heard()) == 2 * FRAME


def test_a_word_that_is_cut_off_ends() -> None:
    rig, packets = Rig(), speech(1.0)
    rig.send(0, packets[0])
    rig.stream.end(1.0)
    assert len(rig.heard()) == FRAME + LISTEN_RATE_HZ


def test_random_packets_never_raise() -> None:
    dice, rig = random.Random(2), Rig(packets_per_second=1e9)
    for _ in range(5000):
        data = build(OPUS, dice.randint(0, 65535), dice.randint(0, 2**32 - 1),
                     dice.randint(1, 3), dice.randbytes(dice.randint(0, 50)))  # fmt: skip
        rig.run_to(rig.now + dice.expovariate(20.0))
        rig.stream.receive(data, rig.now)
    rig.heard()
