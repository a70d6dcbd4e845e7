"""The data channel: JSON events in both directions, each bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import structlog
from aiortc import RTCDataChannel
from aiortc.exceptions import InvalidStateError

from voice_rtc.config import LimitSettings
from voice_rtc.core.buffers import BoundedBuffer, Policy
from voice_rtc.core.rates import Bucket
from voice_rtc.inbox import Inbox
from voice_rtc.metrics import Metrics

_HIGH_WATER_BYTES = 262_144
_LOW_WATER_BYTES = 65_536
_MESSAGES_WAITING = 256
_MOST_FACTOR = 4
_FLOOD_FACTOR = 10
_FLOOD_BURST = 50
_NOTICE_SECONDS = 1.0

Event = dict[str, Any]

log = structlog.get_logger("voice_rtc.media")


class Rejected(Exception):
    """A message that cannot be taken; ``code`` and ``str(error)`` are for the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Channel:
    """Events to the client wait here until the channel is open and the client reads them.

    What does not fit drops the oldest event whose type is in ``spare``; other events are dropped
    only when four times as many wait. Both are counted. Messages from the client come out of
    `messages` as decoded objects or as `Rejected`; heartbeats are answered here and do not.
    """

    def __init__(
        self, limits: LimitSettings, metrics: Metrics, spare: frozenset[str], heartbeat: str = ""
    ) -> None:
        """``heartbeat`` is the type of messages that are answered by the same; empty: none is."""
        self._heartbeat = heartbeat
        rate = limits.channel_messages_per_second
        self._flood = Bucket(_FLOOD_FACTOR * rate, _FLOOD_BURST * rate)
        self._notices = Bucket(1 / _NOTICE_SECONDS, 1.0)
        self._loop = asyncio.get_running_loop()
        self.on_life: Callable[[], None] = lambda: None
        """Called for each message."""
        self.on_abuse: Callable[[str], None] = lambda _reason: None
        """Called once when the client sends so many messages that it must be an attack."""
        self.on_limit: Callable[[str], None] = lambda _message: None
        """Called, once a second at most, when messages are not read for being too many."""
        self._limits = limits
        self._metrics = metrics
        self._channel: RTCDataChannel | None = None
        self._outbox: BoundedBuffer[Event] = BoundedBuffer(
            limits.channel_events,
            Policy.DROP_OLDEST,
            # A client that never opens its channel is owed nothing but the newest.
            keep=lambda event: self._channel is not None and event.get("type") not in spare,
        )
        self._inbox: Inbox[Event | Rejected] = Inbox(_MESSAGES_WAITING, Policy.REJECT_NEWEST)
        self._opened = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._gone = False
        """Nothing can be sent any more."""
        self._deaf = False
        """Nothing is read any more."""

    def attach(self, channel: RTCDataChannel) -> None:
        """Use ``channel``, which the client opened. Only the first is used, others are closed."""
        if self._channel is not None:
            channel.close()
            return
        self._channel = channel
        channel.bufferedAmountLowThreshold = _LOW_WATER_BYTES
        channel.on("message", self._on_message)
        channel.on("bufferedamountlow", self._flush)
        channel.on("close", self._on_close)
        self._opened.set()
        self._flush()

    async def opened(self) -> None:
        """Wait until the client opened the channel."""
        await self._opened.wait()

    def send(self, event: Event) -> None:
        """Queue one event; it goes out at once when the client keeps up."""
        if self._gone:
            return
        if len(self._outbox) >= _MOST_FACTOR * self._limits.channel_events:
            dropped = 1  # not even what must not be lost is read: the client is as good as gone
        else:
            dropped = len(self._outbox.put(event))
        if dropped:
            self._metrics.channel_events_dropped_total.inc(dropped)
        self._flush()

    async def messages(self) -> AsyncIterator[Event | Rejected]:
        """Messages in order, until the channel closes; one reader."""
        async for message in self._inbox:
            yield message

    async def flushed(self, seconds: float) -> bool:
        """Wait, at most ``seconds``, until everything queued was handed to the transport."""
        try:
            async with asyncio.timeout(seconds):
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """End `messages`; events still go out until the peer connection is closed."""
        self._deaf = True
        self._inbox.close()

    def _flush(self) -> None:
        channel = self._channel
        while channel is not None and len(self._outbox):
            if channel.readyState != "open" or channel.bufferedAmount > _HIGH_WATER_BYTES:
                break
            event = self._outbox.get()
            try:
                channel.send(msgspec.json.encode(event).decode())
            except InvalidStateError:
                break
            except ValueError as error:
                # Larger than the client's a=max-message-size, or words that are not Unicode.
                self._metrics.channel_events_dropped_total.inc()
                log.warning("event_not_sendable", type=event.get("type"), error=str(error))
        if len(self._outbox) and (channel is None or channel.readyState == "open"):
            self._emptied.clear()
        else:
            self._emptied.set()

    def _on_close(self) -> None:
        self._gone = True
        self._inbox.close()
        self._outbox.clear()
        self._emptied.set()

    def _on_message(self, data: str | bytes) -> None:
        if self._deaf:
            return
        self.on_life()
        if not self._flood.take(self._loop.time()):
            self._metrics.channel_messages_rejected_total.labels("flood").inc()
            self.close()
            self.on_abuse("channel_flood")
            return
        try:
            message: Event | Rejected = self._decode(data)
        except Rejected as rejected:
            self._metrics.channel_messages_rejected_total.labels(rejected.code).inc()
            message = rejected
        if self._heartbeat and isinstance(message, dict) and message.get("type") == self._heartbeat:
            self._answer_heartbeat()
        elif not self._inbox.put(message):
            self._metrics.channel_messages_rejected_total.labels("rate_limited").inc()
            self._tell_of_limit()

    def _answer_heartbeat(self) -> None:
        """At once, past everything that waits. A client that does not read gets no more of them."""
        channel = self._channel
        if channel is None or channel.readyState != "open" or len(self._outbox):
            return
        self.send({"type": self._heartbeat})

    def _tell_of_limit(self) -> None:
        """Once a second: an answer to each would be a flood too."""
        if self._notices.take(self._loop.time()):
            rate = self._limits.channel_messages_per_second
            self.on_limit(f"more than {rate:g} messages a second; some were not read")

    def _decode(self, data: str | bytes) -> Event:
        limit = self._limits.channel_message_bytes
        if len(data) > limit:
            raise Rejected("message_too_large", f"messages may have at most {limit} bytes")
        try:
            message = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Rejected("invalid_json", "the message is not valid JSON") from None
        if not isinstance(message, dict):
            raise Rejected("invalid_event", "the message is not a JSON object")
        return message
