"""A worker process's side of `voice_rtc.engines.process`: frames in, frames out, a quiet end.

It is no part of that module, since a start counts: a caller may be waiting for it.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import msgspec

from voice_rtc.engines.parent import end_with_parent

_LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The other side sent what is no frame."""


def read_frames(stream: BinaryIO, max_frame_bytes: int) -> Iterator[bytes]:
    """Frames until the stream ends; blocks for each. Raises ProtocolError past the bound."""
    while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        if length > max_frame_bytes:
            raise ProtocolError(f"a frame of {length} bytes")
        payload = stream.read(length)
        if len(payload) < length:
            return
        yield payload


class Sender:
    """Messages to the server, from any thread."""

    def __init__(self, stdout: int) -> None:
        self._stdout = stdout
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()

    def __call__(self, response: Any) -> None:
        """Send one; blocks while the server does not read."""
        with self._lock:
            payload = self._encoder.encode(response)
            data = memoryview(_LENGTH.pack(len(payload)) + payload)
            try:
                while data:
                    data = data[os.write(self._stdout, data) :]
            except BrokenPipeError:
                return  # the server is gone; the end of stdin says so too


def run_worker(serve: Callable[[BinaryIO, Sender], None]) -> None:
    """The whole life of a worker process; does not return.

    ``serve`` handles what stdin brings until it ends, and may raise ProtocolError or
    msgspec.MsgspecError on rubbish. A thread that fails ends the process: one that is gone would
    leave a worker that answers heartbeats and nothing else.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; stdin ends us
    threading.excepthook = _end_with_thread
    # Whatever other code prints must not get between the frames.
    stdout = os.dup(1)
    os.dup2(2, 1)
    status = 0
    try:
        serve(sys.stdin.buffer, Sender(stdout))
    except (ProtocolError, msgspec.MsgspecError):
        traceback.print_exc()
        status = 1
    # Nobody wants what the model threads still do, and the weights need no farewell.
    os._exit(status)


def _end_with_thread(failed: threading.ExceptHookArgs) -> None:
    traceback.print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
    sys.stderr.flush()
    os._exit(1)
