"""RTP packets as bytes: RFC 3550 section 5.1, header extensions of RFC 8285, levels of RFC 6464."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_FIXED = struct.Struct("!BBHII")
_EXTENSION = struct.Struct("!HH")
_VERSION = 2
_ONE_BYTE, _TWO_BYTES = 0xBEDE, 0x1000
_QUIETEST = 127


@dataclass(slots=True)  # not frozen: that doubles the time of making one, 50 times a second
class RtpPacket:
    """A packet that was parsed."""

    payload_type: int
    marker: bool
    sequence: int
    """16 bit."""
    timestamp: int
    """32 bit."""
    ssrc: int
    payload: bytes
    level_dbov: int | None = None
    """Level of the sound as its sender tells it, -127 (silence) to 0; None: it does not."""


def parse(data: bytes, level_id: int = 0) -> RtpPacket | None:
    """The packet, or None for what is none. ``level_id`` is the extension's; 0: not negotiated."""
    if len(data) < _FIXED.size:
        return None
    first, second, sequence, timestamp, ssrc = _FIXED.unpack_from(data)
    if first >> 6 != _VERSION:
        return None
    start = _FIXED.size + 4 * (first & 0x0F)
    end = len(data)
    level = None
    if first & 0x10:
        if start + _EXTENSION.size > end:
            return None
        profile, words = _EXTENSION.unpack_from(data, start)
        start += _EXTENSION.size
        if start + 4 * words > end:
            return None
        if level_id:
            level = _level(data[start : start + 4 * words], profile, level_id)
        start += 4 * words
    if first & 0x20:
        if start >= end or not 0 < data[-1] <= end - start:
            return None
        end -= data[-1]
    if start > end:
        return None
    return RtpPacket(
        second & 0x7F, bool(second & 0x80), sequence, timestamp, ssrc, data[start:end], level
    )


def build(
    payload_type: int,
    sequence: int,
    timestamp: int,
    ssrc: int,
    payload: bytes,
    *,
    marker: bool = False,
    extension: bytes = b"",
) -> bytes:
    """A packet. ``extension`` is a whole one, made by `extensions`."""
    first = _VERSION << 6 | (0x10 if extension else 0)
    second = payload_type | (0x80 if marker else 0)
    return _FIXED.pack(first, second, sequence, timestamp, ssrc) + extension + payload


def extensions(values: dict[int, bytes]) -> bytes:
    """Header extensions with one-byte headers (ids 1 to 14, 1 to 16 bytes each); may be empty."""
    if not values:
        return b""
    body = b"".join(
        bytes([number << 4 | len(value) - 1]) + value for number, value in values.items()
    )
    body += bytes(-len(body) % 4)
    return _EXTENSION.pack(_ONE_BYTE, len(body) // 4) + body


def _level(block: bytes, profile: int, wanted: int) -> int | None:
    at, end = 0, len(block)
    short = profile == _ONE_BYTE
    if not short and profile & 0xFFF0 != _TWO_BYTES:
        return None
    while at < end:
        if not block[at]:
            at += 1  # padding
            continue
        if short:
            number, size, value = block[at] >> 4, (block[at] & 0x0F) + 1, at + 1
            if number == 15:
                return None
        else:
            if at + 1 >= end:
                return None
            number, size, value = block[at], block[at + 1], at + 2
        if number == wanted:
            return -(block[value] & _QUIETEST) if size and value < end else None
        at = value + size
    return None
