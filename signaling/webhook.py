"""What happens here, POSTed as JSON to one URL: alerts, so that an operator need not look.

Follows Standard Webhooks (github.com/standard-webhooks/standard-webhooks, its specification of
2023): headers, signature, and which answers are tried again. `Webhooks.send` puts an event into a
bounded queue and returns; `Webhooks.run`, a task of the composition root, delivers one after the
other, so that they come in order.

    what comes of an attempt                     what follows
    -------------------------------------------  ------------------------------------------
    2xx                                          delivered
    no connection, no answer in time, 429, 5xx   tried again after 1, 2, 4, 8 and 16 s, later
                                                 if Retry-After says so (at most a minute);
                                                 after that it is given up
    any other status, redirects too              refused: not tried again
    100 events wait already                      the oldest is dropped
    the server ends                              each has one more try, 2 s for all together

A receiver may get an event twice, when its answer was lost: ``webhook-id`` tells.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from secrets import token_hex
from typing import Any

import aiohttp
import msgspec
import structlog
from yarl import URL

from signaling.lookup import ThreadResolver
from voice_rtc.config import AdminSettings
from voice_rtc.core.alerts import AlertEvent, Raised
from voice_rtc.core.buffers import Policy
from voice_rtc.errors import ConfigError
from voice_rtc.inbox import Inbox
from voice_rtc.metrics import Metrics

_log = structlog.get_logger("voice_rtc.webhook")

Json = dict[str, Any]

_SECRET_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)
_TOO_MANY = 429
_SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """How much is kept, and how hard it is tried."""

    queue: int = 100
    """Events waiting, beside the one under way."""
    tries: int = 6
    attempt_seconds: float = 10.0
    """Deadline of one attempt, from the lookup of the host to the answer."""
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    flush_seconds: float = 2.0
    """At the end, for all that is left."""

    def wait_seconds(self, tried: int, asked: float | None) -> float | None:
        """How long to wait after the ``tried``-th attempt failed; None: give up.

        ``asked`` is what the receiver wants (Retry-After).
        """
        if tried >= self.tries:
            return None
        backoff = self.first_wait_seconds * 2.0 ** (tried - 1)
        return min(self.longest_wait_seconds, max(backoff, asked or 0.0))


@dataclass(frozen=True, slots=True)
class Target:
    """Where events go. Both fields may be secret: they are in no repr and no log."""

    url: URL = field(repr=False)
    key: bytes | None = field(repr=False)
    """Events are signed with it; None: they are not."""

    @property
    def origin(self) -> str:
        """The part of the URL that may be shown."""
        return str(self.url.origin())


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt."""

    status: int = 0
    """HTTP status; 0: no answer."""
    problem: str = ""
    """Why there is no answer."""
    retry_after_seconds: float | None = None

    @property
    def delivered(self) -> bool:
        """The receiver has it."""
        return 200 <= self.status < 300

    @property
    def may_pass(self) -> bool:
        """Another attempt may fare better."""
        return self.status in (0, _TOO_MANY) or self.status >= 500

    def __str__(self) -> str:
        return self.problem or f"status {self.status}"


Post = Callable[[bytes, Mapping[str, str]], Awaitable[Answer]]
"""Makes one attempt, with a body and headers. Never raises but for cancellation."""


@asynccontextmanager
async def http_post(target: Target, attempt_seconds: float) -> AsyncIterator[Post]:
    """Attempts over HTTP, one at a time, each with a connection of its own."""
    # Events are hours apart: a connection that was kept would be dead by then.
    connector = aiohttp.TCPConnector(limit=1, force_close=True, resolver=ThreadResolver())
    timeout = aiohttp.ClientTimeout(total=attempt_seconds)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:

        async def post(body: bytes, headers: Mapping[str, str]) -> Answer:
            try:
                async with http.post(
                    target.url, data=body, headers=headers, allow_redirects=False
                ) as response:
                    asked = response.headers.get("Retry-After")
                    wait = retry_after_seconds(asked, datetime.now(tz=UTC))
                    return Answer(response.status, retry_after_seconds=wait)
            except TimeoutError:
                return Answer(problem=f"no answer within {attempt_seconds:g} s")
            except (aiohttp.ClientError, OSError) as error:
                return Answer(problem=_problem(error))

        yield post


def _problem(error: Exception) -> str:
    """In words that do not repeat the URL, as those of some errors do."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the certificate cannot be trusted"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        return f"no connection: {type(cause).__name__}, {cause.strerror or 'no address'}"
    return type(error).__name__


@dataclass(frozen=True, slots=True)
class _Event:
    id: str
    name: str
    body: bytes


class Webhooks:
    """See the module. `run` is to be a task; `close` lets it end."""

    def __init__(
        self,
        target: Target,
        metrics: Metrics,
        server_url: str,
        rules: WebhookRules = WebhookRules(),
        connect: Callable[[Target, float], AbstractAsyncContextManager[Post]] = http_post,
    ) -> None:
        """``server_url`` tells receivers who speaks."""
        self._target = target
        self._rules = rules
        self._connect = connect
        self._results = metrics.webhooks_total
        self._server = {"host": socket.gethostname(), "url": server_url}
        self._events: Inbox[_Event] = Inbox(rules.queue, Policy.DROP_OLDEST, on_drop=self._dropped)
        self._under_way = 0
        """1 while an event is being delivered."""
        self._closing = asyncio.Event()
        self._flush_until: float | None = None
        self._deadline: asyncio.Timeout | None = None

    def send(self, name: str, data: Json) -> None:
        """Have an event delivered, later and if possible. ``name`` is like ``alert.raised``."""
        event_id = f"evt_{token_hex(10)}"
        body = {
            "id": event_id,
            "type": name,
            "timestamp": datetime.now(tz=UTC),
            "server": self._server,
            "data": data,
        }
        event = _Event(event_id, name, msgspec.json.encode(body))
        if self._closing.is_set():
            self._dropped(1)
        else:
            self._events.put(event)

    def send_alert(self, event: AlertEvent) -> None:
        """The same for an alert that was raised or cleared."""
        alert = event.alert
        data = {"name": alert.name, "severity": alert.severity, "text": alert.text}
        self.send("alert.raised" if isinstance(event, Raised) else "alert.cleared", {"alert": data})

    async def run(self) -> None:
        """Deliver what is sent, until `close` and its flush."""
        try:
            async with asyncio.timeout_at(self._flush_until) as self._deadline:
                await self._deliver_all()
        except TimeoutError:
            if left := len(self._events) + self._under_way:
                self._dropped(left)
        finally:
            self._deadline = None

    def close(self) -> None:
        """Take no more events, and end soon: what waits has ``flush_seconds``."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._events.close()
        self._flush_until = asyncio.get_running_loop().time() + self._rules.flush_seconds
        if self._deadline is not None:
            self._deadline.reschedule(self._flush_until)

    async def _deliver_all(self) -> None:
        async with self._connect(self._target, self._rules.attempt_seconds) as post:
            async for event in self._events:
                self._under_way = 1
                await self._deliver(event, post)
                self._under_way = 0

    async def _deliver(self, event: _Event, post: Post) -> None:
        tried = 0
        while True:
            answer = await post(event.body, self._headers(event))
            tried += 1
            if answer.delivered:
                self._results.labels("delivered").inc()
                return
            wait = self._wait_seconds(answer, tried)
            self._log_failure(event, answer, tried, wait)
            if wait is None:
                self._results.labels("given_up" if answer.may_pass else "refused").inc()
                return
            await self._pause(wait)

    def _wait_seconds(self, answer: Answer, tried: int) -> float | None:
        if not answer.may_pass or self._closing.is_set():
            return None
        return self._rules.wait_seconds(tried, answer.retry_after_seconds)

    async def _pause(self, seconds: float) -> None:
        """Until then, or until the server ends."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return

    def _headers(self, event: _Event) -> dict[str, str]:
        # Of the attempt, not of the event: receivers refuse old ones.
        timestamp = int(datetime.now(tz=UTC).timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "voice_rtc",
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp),
        }
        if self._target.key is not None:
            headers["webhook-signature"] = sign(self._target.key, event.id, timestamp, event.body)
        return headers

    def _log_failure(self, event: _Event, answer: Answer, tried: int, wait: float | None) -> None:
        _log.warning(
            "webhook_failed",
            event_id=event.id,
            event_type=event.name,
            to=self._target.origin,
            why=str(answer),
            tried=tried,
            again_in_seconds=wait,
        )

    def _dropped(self, count: int) -> None:
        self._results.labels("dropped").inc(count)
        _log.warning("webhook_dropped", count=count, to=self._target.origin)


def webhook_target(admin: AdminSettings) -> Target | None:
    """Where events go; None: nowhere. Raises ConfigError."""
    text = admin.alert_webhook.get_secret_value()
    if not text:
        return None
    try:
        url = URL(text)
    except ValueError:  # whose text may hold what is in the URL
        url = URL()
    if url.scheme not in _SCHEMES or not url.host or not url.port or any(map(str.isspace, text)):
        raise ConfigError("admin.alert_webhook must be a URL like https://host:port/path")
    return Target(url, _key_of(admin.webhook_secret.get_secret_value()))


def _key_of(secret: str) -> bytes | None:
    if not secret:
        return None
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):  # the latter where it is not ASCII
        key = b""
    if not secret.startswith(_SECRET_PREFIX) or len(key) not in _KEY_BYTES:
        raise ConfigError(
            "admin.webhook_secret must be whsec_ and 24 to 64 random bytes in base64; "
            'this makes one: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key


def sign(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """What a Retry-After header asks for (RFC 9110, section 10.2.3); None: nothing readable."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - now).total_seconds())
