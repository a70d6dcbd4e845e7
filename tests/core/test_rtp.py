"""RTP packets there and back, and what is none."""

from __future__ import annotations

import random

import pytest
from aiortc.rtp import HeaderExtensionsMap
from aiortc.rtp import RtpPacket as StockPacket

from voice_rtc.core.rtp import RtpPacket, build, extensions, parse


def test_there_and_back() -> None:
    data = build(111, 65535, 2**32 - 1, 0xDEADBEEF, b"sound", marker=True)
    assert parse(data) == RtpPacket(111, True, 65535, 2**32 - 1, 0xDEADBEEF, b"sound")


def test_aiortc_reads_what_we_build() -> None:
    data = build(96, 7, 960, 5, b"sound", extension=extensions({3: b"audio", 1: b"\x80"}))
    read = StockPacket.parse(data, HeaderExtensionsMap())
    assert (read.payload_type, read.sequence_number, read.timestamp, read.ssrc) == (96, 7, 960, 5)
    assert (read.payload, read.marker) == (b"sound", 0)


@pytest.mark.parametrize("level", [0, 30, 127])
def test_the_level_is_read_wherever_it_stands(level: int) -> None:
    for values in ({1: bytes([level])}, {3: b"mid", 1: bytes([0x80 | level]), 5: b"x"}):
        packet = parse(build(96, 1, 1, 1, b"sound", extension=extensions(values)), level_id=1)
        assert packet is not None
        assert (packet.level_dbov, packet.payload) == (-level, b"sound")


def test_extensions_with_two_bytes() -> None:
    block = b"\x10\x00\x00\x03" + b"\x02\x03mid" + b"\x01\x01\x2a" + b"\x00" * 4
    data = bytearray(build(96, 1, 1, 1, b""))
    data[0] |= 0x10
    packet = parse(bytes(data) + block + b"sound", level_id=1)
    assert packet is not None and (packet.level_dbov, packet.payload) == (-42, b"sound")


@pytest.mark.parametrize("level_id", [0, 2])
def test_a_level_that_is_not_there(level_id: int) -> None:
    data = build(96, 1, 1, 1, b"", extension=extensions({1: b"\x10"}))
    packet = parse(data, level_id)
    assert packet is not None and packet.level_dbov is None


def test_sources_and_padding_are_no_payload() -> None:
    data = bytearray(build(96, 1, 1, 1, b"\0" * 8 + b"sound" + b"\0\0\x03"))
    data[0] |= 0x20 | 2
    packet = parse(bytes(data))
    assert packet is not None and packet.payload == b"sound"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80" * 11,
        b"\x00" * 20,  # another version
        b"\x8f" + b"\x00" * 11,  # fifteen sources that are not there
        b"\x90" + b"\x00" * 11,  # an extension that is not there
        b"\x90" + b"\x00" * 11 + b"\xbe\xde\xff\xff",
        b"\xa0" + b"\x00" * 11,  # padding of nothing
        b"\xa0" + b"\x00" * 11 + b"\x05",
    ],
)
def test_what_is_no_packet(data: bytes) -> None:
    assert parse(data, 1) is None


def test_random_bytes_never_raise() -> None:
    dice = random.Random(1)
    for _ in range(20_000):
        data = bytearray(dice.randbytes(dice.randint(0, 60)))
        if data and dice.random() < 0.9:
            data[0] = 0x80 | data[0] & 0x3F
        packet = parse(bytes(data), dice.randint(0, 14))
        assert packet is None or len(packet.payload) <= len(data) - 12
