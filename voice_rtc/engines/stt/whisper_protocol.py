"""What the server and a Whisper worker process tell each other, as MessagePack.

``key`` names one utterance and is unique within the engine; ``caller`` names one call's session.
The frames are those of `voice_rtc.engines.process`, which the worker does not import: its start
counts, since a caller may be waiting for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from voice_rtc.core.scheduling import SchedulerStatistics

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


def frame(payload: bytes) -> bytes:
    """``payload`` with its length before it."""
    return _LENGTH.pack(len(payload)) + payload


class Setup(msgspec.Struct, tag=True, frozen=True):
    """First message: what to load and how to use it."""

    folder: str
    device: str
    """``cpu``, ``cuda``, or ``auto``: a GPU when there is one that can be used."""
    device_index: int
    compute_type: str
    workers: int
    """Batches at the same time; 0: as many as suit the device."""
    beam_size: int
    encoder: str
    partial_samples: int
    """New audio (16 kHz samples) between two partials of an utterance."""
    final_window_seconds: float
    full_windows: bool
    most_batch: int
    """Requests in one batch; 0: as many as suit the device."""


class Begin(msgspec.Struct, tag=True, frozen=True):
    """An utterance begins."""

    key: int
    caller: int
    language: str
    """Empty: detected."""
    prompt: str
    alone: bool = False
    """Nothing else is to be in work with it; no partials."""


class Audio(msgspec.Struct, tag=True, frozen=True):
    """More of an utterance: int16 little-endian, 16 kHz."""

    key: int
    pcm: bytes


class Finish(msgspec.Struct, tag=True, frozen=True):
    """No more audio: FinalText is wanted."""

    key: int


class Discard(msgspec.Struct, tag=True, frozen=True):
    """Forget the utterance."""

    key: int


class Quality(msgspec.Struct, tag=True, frozen=True):
    """How well to work from now on; see `voice_rtc.engines.base.SttQuality`."""

    partial_factor: float | None
    economy: bool


class Ping(msgspec.Struct, tag=True, frozen=True):
    """Pong is wanted at once."""

    number: int


class Measure(msgspec.Struct, tag=True, frozen=True):
    """Time batches of ``pcm`` while nothing else waits; Measured is wanted."""

    pcm: bytes
    windows: tuple[float, ...]
    slow_seconds: float
    """No batch that is likely to take longer."""
    most_seconds: float
    """No batch that is likely to end later, from the first on."""


Request = Setup | Begin | Audio | Finish | Discard | Quality | Ping | Measure


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Loaded and warm; audio may come."""

    placement: str
    """Where the model runs, e.g. ``cpu int8, 2 workers``."""
    languages: tuple[str, ...]
    """Codes that can be asked for."""
    workers: int
    most_batch: int
    utterance_seconds: float
    """What one short final takes."""
    gpu_problem: str = ""
    """Why a GPU that is there is not used."""


class Unavailable(msgspec.Struct, tag=True, frozen=True):
    """The model cannot be loaded; the server ends the process."""

    code: str
    """Of `voice_rtc.errors`."""
    message: str


class Spent(msgspec.Struct, frozen=True):
    """Where the time of a transcription went."""

    queue_seconds: float
    run_seconds: float
    batch: int
    window_seconds: float
    retried: bool = False


class PartialText(msgspec.Struct, tag=True, frozen=True):
    """The utterance so far; maybe the same as before."""

    key: int
    text: str
    spent: Spent


class FinalText(msgspec.Struct, tag=True, frozen=True):
    """The utterance's transcript."""

    key: int
    text: str
    samples: int
    spent: Spent


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The utterance could not be transcribed; no more is told of it."""

    key: int
    code: str
    """Of `voice_rtc.errors`."""
    message: str


class AtWork(msgspec.Struct, tag=True, frozen=True):
    """Told before a batch begins and, without keys, when it is done: who dies now dies of it."""

    batch: int
    """Rises for ever."""
    keys: tuple[int, ...]


class Pong(msgspec.Struct, tag=True, frozen=True):
    """The main thread is alive; how the others are."""

    number: int
    busy_seconds: float
    """How long the oldest batch has been running; 0.0 when none is."""
    statistics: SchedulerStatistics | None
    """None while the model loads."""


class Measured(msgspec.Struct, tag=True, frozen=True):
    """Answer to Measure."""

    points: tuple[tuple[float, int, float], ...]
    """Window in seconds, requests in the batch, seconds that it took."""
    failure: str = ""


Response = Ready | Unavailable | PartialText | FinalText | Failed | AtWork | Pong | Measured
