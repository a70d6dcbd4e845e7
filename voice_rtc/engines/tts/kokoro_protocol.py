"""What the server and a Kokoro worker process tell each other, as MessagePack.

``key`` names one piece of text and is unique within the engine. The frames are those of
`voice_rtc.engines.process`.
"""

from __future__ import annotations

import msgspec


class Setup(msgspec.Struct, tag=True, frozen=True):
    """First message: what to load and how to use it."""

    folder: str
    device: str
    """``cpu``, ``cuda``, or ``auto``: a GPU when there is one."""
    device_index: int
    precision: str
    """Of the decoder: ``float32``, ``bfloat16``, or ``auto``."""
    batch: int
    """Pieces in one batch; 0: as many as suit the device."""
    graphs: bool
    """CUDA graphs, on a GPU."""
    threads: int
    """PyTorch's, on a CPU."""
    most_waiting: int
    patience_seconds: float
    voice: tuple[tuple[str, float], ...]
    """To warm up with."""


class Speak(msgspec.Struct, tag=True, frozen=True):
    """A piece of text is to be spoken."""

    key: int
    caller: str
    first: bool
    """It begins a reply."""
    text: str
    voice: tuple[tuple[str, float], ...]
    """Voices and their shares."""
    speed: float


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Nobody wants the piece any more."""

    key: int


class Ping(msgspec.Struct, tag=True, frozen=True):
    """Pong is wanted at once."""

    number: int


Request = Setup | Speak | Cancel | Ping


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Loaded and warm."""

    placement: str
    """Such as ``cpu, bfloat16`` or ``NVIDIA H100, float32, 61 graphs``."""
    clause_seconds: float
    """What a clause of four words takes."""
    gpu_problem: str = ""
    """Why a GPU that is there is not used."""


class Unavailable(msgspec.Struct, tag=True, frozen=True):
    """It cannot be loaded; the process ends."""

    code: str
    message: str


class Spoken(msgspec.Struct, tag=True, frozen=True):
    """The sound of a piece: int16 little-endian, 24 kHz; empty when it has no phonemes."""

    key: int
    pcm: bytes
    queue_seconds: float
    run_seconds: float
    """Of its batch."""
    batch: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The piece could not be spoken."""

    key: int
    code: str
    message: str


class Pong(msgspec.Struct, tag=True, frozen=True):
    """Answer to Ping."""

    number: int
    busy_seconds: float
    """How long the batch in work has taken; 0.0 when idle."""
    waiting: int


Response = Ready | Unavailable | Spoken | Failed | Pong
