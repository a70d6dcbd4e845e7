"""libopus by ctypes: what goes in comes out, holes are filled, rubbish is refused."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tests.support.audio import speech_clips
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples, rms_dbfs
from voice_rtc.media import opus
from voice_rtc.media.opus import Decoder, Encoder, OpusError

FRAME = LISTEN_RATE_HZ // 50


def speech(rate_hz: int) -> Samples:
    clip = next(iter(speech_clips(rate_hz))).samples
    frame = rate_hz // 50
    return clip[: len(clip) // frame * frame]


def packets(samples: Samples, encoder: Encoder) -> list[bytes]:
    frames = samples.reshape(-1, encoder.frame_samples)
    return [encoder.encode(frame) for frame in frames]


def likeness(first: Samples, second: Samples) -> float:
    """Correlation at the best of small shifts: codecs delay by a few ms."""
    size = min(len(first), len(second)) - 400
    one = first[:size].astype(np.float64)
    return max(
        float(np.corrcoef(one, second[shift : shift + size].astype(np.float64))[0, 1])
        for shift in range(0, 400, 4)
    )


@pytest.mark.parametrize("application", ["lowdelay", "voip", "audio"])
def test_speech_goes_through(application: opus.Application) -> None:
    encoder = Encoder(SEND_RATE_HZ, application=application)
    decoder = Decoder(LISTEN_RATE_HZ)
    heard = np.concatenate([decoder.decode(each) for each in packets(speech(48_000), encoder)])
    said = speech(LISTEN_RATE_HZ)
    assert abs(len(heard) - len(said)) <= FRAME
    assert likeness(said, heard) > 0.9


def test_a_hole_is_filled_with_something_like_it_was() -> None:
    encoder, decoder = Encoder(SEND_RATE_HZ), Decoder(LISTEN_RATE_HZ)
    tone = (8000 * np.sin(np.arange(48_000) * 2 * np.pi * 300 / 48_000)).astype(np.int16)
    sent = packets(tone, encoder)
    for packet in sent[:20]:
        decoder.decode(packet)
    concealed = decoder.conceal(FRAME)
    assert len(concealed) == FRAME
    assert rms_dbfs(concealed) > rms_dbfs(tone) - 6
    for _ in range(50):
        faded = decoder.conceal(FRAME)
    # It fades to what it takes for background noise: who conceals for long makes silence instead.
    assert rms_dbfs(faded) < rms_dbfs(tone) - 12


def test_in_band_fec_brings_a_lost_packet_back() -> None:
    encoder = Encoder(SEND_RATE_HZ, application="voip", fec=True, expected_loss_percent=20)
    sent = packets(speech(SEND_RATE_HZ), encoder)
    whole, recovered, concealed = (Decoder(LISTEN_RATE_HZ) for _ in range(3))
    better = worse = 0.0
    for place in range(1, len(sent) - 1):
        truth = whole.decode(sent[place]).astype(np.float64)
        if place % 10 == 5:
            by_fec = recovered.recover(sent[place + 1], FRAME).astype(np.float64)
            by_plc = concealed.conceal(FRAME).astype(np.float64)
            better += float(np.square(by_fec - truth).sum())
            worse += float(np.square(by_plc - truth).sum())
        else:
            recovered.decode(sent[place])
            concealed.decode(sent[place])
    assert better < 0.5 * worse


def test_the_length_of_a_packet_is_known_before_it_is_decoded() -> None:
    (packet,) = packets(np.zeros(960, np.int16), Encoder(SEND_RATE_HZ))
    assert Decoder(LISTEN_RATE_HZ).duration(packet) == FRAME


@pytest.mark.parametrize("packet", [b"", b"\xff", b"\xff" * 1500, bytes(range(200))])
def test_rubbish_is_refused_or_short_and_does_no_harm(packet: bytes) -> None:
    decoder = Decoder(LISTEN_RATE_HZ)
    for work in (decoder.decode, decoder.duration):
        try:
            work(packet)
        except OpusError as error:
            assert error.code == "opus_error"
    (good,) = packets(np.zeros(960, np.int16), Encoder(SEND_RATE_HZ))
    assert len(decoder.decode(good)) == FRAME


def test_random_rubbish_never_gives_more_than_a_packet_may_hold() -> None:
    dice = np.random.default_rng(0)
    decoder = Decoder(LISTEN_RATE_HZ)
    for _ in range(2000):
        packet = dice.integers(0, 256, int(dice.integers(1, 400)), dtype=np.uint8).tobytes()
        try:
            samples = decoder.decode(packet)
        except OpusError:
            continue
        assert len(samples) <= opus.LONGEST_PACKET_SECONDS * LISTEN_RATE_HZ


def test_wrong_settings_are_told() -> None:
    with pytest.raises(OpusError, match="12345"):
        Decoder(12_345)
    with pytest.raises(OpusError):
        Encoder(12_345)
    with pytest.raises(OpusError, match="-7"):
        Encoder(SEND_RATE_HZ, bitrate=-7)
    with pytest.raises(OpusError, match="960"):
        Encoder(SEND_RATE_HZ).encode(np.zeros(100, np.int16))


def test_a_sound_begins_anew_after_a_reset() -> None:
    encoder = Encoder(SEND_RATE_HZ)
    loud = np.full(960, 9000, np.int16)
    first = encoder.encode(loud)
    encoder.encode(loud)
    encoder.reset()
    assert encoder.encode(loud) == first


def test_states_are_freed() -> None:
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(3000):
        Decoder(LISTEN_RATE_HZ)
        Encoder(SEND_RATE_HZ)
    gc.collect()
    assert process.memory_info().rss - before < 40_000_000  # 3000 pairs hold about 150 MB


def test_it_says_which_one_it_is() -> None:
    assert "opus" in opus.version()


@pytest.mark.parametrize("configuration", range(32))
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_the_duration_of_one_frame_is_read_as_libopus_reads_it(
    configuration: int, rate_hz: int
) -> None:
    packet = bytes([configuration << 3]) + bytes(20)
    found = opus.library().opus_packet_get_nb_samples(packet, len(packet), rate_hz)
    assert Decoder(rate_hz).duration(packet) == found > 0
