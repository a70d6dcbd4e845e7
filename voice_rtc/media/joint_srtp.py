"""SRTP with pylibsrtp's library, past its Python: that wrapper checks, allocates and looks names up
for each packet, which costs as much as the cipher.

As in `joint`, private names are touched here alone: ``Session._srtp`` and the cffi binding. One
session and one buffer for each direction, on the event loop; nothing here is for several threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pylibsrtp

from voice_rtc.media.misfit import require

LONGEST_PACKET_BYTES = 1500
"""Longer ones are no RTP of a call: they did not come in one piece."""
_TRAILER_BYTES = 16 + 128
"""SRTP_MAX_TRAILER_LEN of srtp.h."""

Srtp = Callable[[bytes], bytes | None]
"""A packet made of another one; None when it is refused."""


def unprotector(session: Any) -> Srtp:
    """RTP of SRTP; None for what is not authentic, a copy, or too long. Raises Misfit."""
    return _processor(session, "srtp_unprotect", 0)


def protector(session: Any) -> Srtp:
    """SRTP of RTP; None when it cannot be. Raises Misfit."""
    return _processor(session, "srtp_protect", _TRAILER_BYTES)


def check() -> None:
    """Raises Misfit when pylibsrtp's binding is not what it was."""
    require(pylibsrtp, "", ("_binding",))
    require(pylibsrtp._binding, "", ("ffi", "lib"))
    require(pylibsrtp._binding.lib, "srtp_", ("protect", "unprotect"))


def _processor(session: Any, name: str, trailer: int) -> Srtp:
    check()
    require(session, "", ("_srtp",))
    ffi, lib = pylibsrtp._binding.ffi, pylibsrtp._binding.lib
    process = getattr(lib, name)
    context = session._srtp[0]
    room = ffi.new("char[]", LONGEST_PACKET_BYTES + trailer)
    view = ffi.buffer(room)
    length = ffi.new("int *")

    # ``session`` is an argument so that it lives as long as this does: it frees ``context``.
    def processed(packet: bytes, _session: Any = session) -> bytes | None:
        size = len(packet)
        if size > LONGEST_PACKET_BYTES:
            return None
        view[0:size] = packet
        length[0] = size
        if process(context, room, length):
            return None
        done: bytes = view[0 : length[0]]
        return done

    return processed
