"""What the server and a pocketsphinx worker process tell each other, as MessagePack.

``key`` names one utterance and is unique within the server; ``session`` names one call's session.
"""

from __future__ import annotations

import msgspec


class Setup(msgspec.Struct, tag=True, frozen=True):
    """First message: what to load."""

    grammar: str
    """JSGF text; empty loads the full English language model."""
    ready_decoders: int
    """Decoders to hold ready for use."""
    most_decoders: int
    """Utterances decoded at the same time; further ones wait."""
    partial_samples: int
    """New audio (16 kHz samples) between two partials of an utterance."""


class Begin(msgspec.Struct, tag=True, frozen=True):
    """An utterance begins."""

    session: int
    key: int


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


class CloseSession(msgspec.Struct, tag=True, frozen=True):
    """Forget the session with all its utterances."""

    session: int


Request = Setup | Begin | Audio | Finish | Discard | CloseSession


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Loaded; audio may come."""


class Unavailable(msgspec.Struct, tag=True, frozen=True):
    """The model or the grammar cannot be loaded; the process ends."""

    message: str


class PartialText(msgspec.Struct, tag=True, frozen=True):
    """The utterance so far, when it changed."""

    key: int
    text: str


class FinalText(msgspec.Struct, tag=True, frozen=True):
    """The utterance's transcript."""

    key: int
    text: str
    samples: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The utterance could not be decoded."""

    key: int
    message: str


Response = Ready | Unavailable | PartialText | FinalText | Failed
