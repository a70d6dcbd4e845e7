"""Where our guard meets aiortc's SCTP: what one data channel may make the server keep and do.

aiortc puts messages together from fragments without any bound of size (max-message-size is only
announced), in time that grows with the square of it, and fails on malformed ones in the middle of
its receive loop. Here one association is measured after each chunk; past a bound nothing more of it
is read and its owner is told. As in `joint`, only the methods of this one object are replaced.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from voice_rtc.config import LimitSettings
from voice_rtc.media.misfit import Misfit, replace_method

_MOST_STREAMS = 64
"""Used by one client. Channels take the lowest free number."""
_MOST_FRAGMENTS = 1024
"""That wait for others, and gaps in their numbering."""
_NAMES = ("_advertised_rwnd", "_inbound_streams", "_sack_misordered")


class AssociationGuard:
    """`attach` when the offer is set. ``on_abuse`` is called once, with the reason."""

    def __init__(self, sctp: Any, limits: LimitSettings, on_abuse: Callable[[str], None]) -> None:
        self._sctp = sctp
        self._most_bytes = limits.channel_reassembly_bytes
        self._on_abuse = on_abuse
        self._window = 0
        self._closed = False

    def attach(self) -> None:
        """Raises Misfit."""
        for name in _NAMES:
            if not hasattr(self._sctp, name):
                raise Misfit(f"RTCSctpTransport has no {name}")
        self._window = self._sctp._advertised_rwnd
        for name in ("_receive_data_chunk", "_receive_forward_tsn_chunk"):
            replace_method(self._sctp, name, self._guarded(getattr(self._sctp, name)))

    def close(self) -> None:
        """Read nothing more."""
        self._closed = True

    def _guarded(self, stock: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        async def receive(chunk: Any) -> None:
            if self._closed:
                return
            try:
                await stock(chunk)
            except (AssertionError, UnicodeDecodeError):  # as aiortc checks what it receives
                self._give_up("channel_malformed")
                return
            if reason := self._excess():
                self._give_up(reason)

        return receive

    def _excess(self) -> str:
        sctp = self._sctp
        # The window that it offers the sender is what it began with, less what it holds.
        if self._window - sctp._advertised_rwnd > self._most_bytes:
            return "channel_bytes"
        streams = sctp._inbound_streams
        if len(streams) > _MOST_STREAMS:
            return "channel_streams"
        fragments = sum(len(stream.reassembly) for stream in streams.values())
        if max(fragments, len(sctp._sack_misordered)) > _MOST_FRAGMENTS:
            return "channel_fragments"
        return ""

    def _give_up(self, reason: str) -> None:
        self._closed = True
        self._sctp._inbound_streams.clear()
        self._on_abuse(reason)
