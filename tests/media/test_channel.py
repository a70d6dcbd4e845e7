"""The data channel's bounds."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from voice_rtc.config import LimitSettings
from voice_rtc.media.channel import Channel, Rejected
from voice_rtc.metrics import Metrics


class Wire:
    """The part of an RTCDataChannel that `Channel` uses, with a stall to be switched."""

    def __init__(self) -> None:
        self.readyState = "open"
        self.bufferedAmount = 0
        self.bufferedAmountLowThreshold = 0
        self.sent: list[dict[str, Any]] = []
        self.closed = False
        self.handlers: dict[str, Callable[..., None]] = {}

    def on(self, event: str, handler: Callable[..., None]) -> None:
        self.handlers[event] = handler

    def send(self, text: str) -> None:
        self.sent.append(msgspec.json.decode(text))

    def close(self) -> None:
        self.closed = True


def channel(**limits: Any) -> tuple[Channel, Metrics]:
    metrics = Metrics()
    settings = LimitSettings(**limits)
    return Channel(settings, metrics, frozenset({"spare"})), metrics


async def test_events_wait_for_the_channel_and_keep_their_order() -> None:
    events, _ = channel()
    events.send({"type": "a"})
    events.send({"type": "b"})
    wire = Wire()
    events.attach(wire)  # type: ignore[arg-type]  # a stand-in with the same surface
    events.send({"type": "c"})
    assert [e["type"] for e in wire.sent] == ["a", "b", "c"]


async def test_a_second_channel_is_closed() -> None:
    events, _ = channel()
    first, second = Wire(), Wire()
    events.attach(first)  # type: ignore[arg-type]  # a stand-in with the same surface
    events.attach(second)  # type: ignore[arg-type]  # a stand-in with the same surface
    assert second.closed and not first.closed


async def test_for_a_client_that_does_not_read_only_spare_events_are_dropped() -> None:
    events, metrics = channel(channel_events=16)
    wire = Wire()
    wire.bufferedAmount = 10_000_000
    events.attach(wire)  # type: ignore[arg-type]  # a stand-in with the same surface
    for number in range(40):
        events.send({"type": "spare", "n": number})
    for number in range(10):
        events.send({"type": "must", "n": number})
    wire.bufferedAmount = 0
    wire.handlers["bufferedamountlow"]()
    assert [e["n"] for e in wire.sent if e["type"] == "must"] == list(range(10))
    assert [e["n"] for e in wire.sent if e["type"] == "spare"] == list(range(34, 40))
    dropped = metrics.registry.get_sample_value("voice_rtc_channel_events_dropped_total")
    assert dropped == 34


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("x" * 16_385, "message_too_large"),
        (b"\xff\xfe", "invalid_json"),
        ("{", "invalid_json"),
        ("[1]", "invalid_event"),
        ("7", "invalid_event"),
        ("[" * 16_000, "invalid_json"),
    ],
)
async def test_garbage_comes_out_as_a_refusal(data: str | bytes, code: str) -> None:
    events, _ = channel()
    wire = Wire()
    events.attach(wire)  # type: ignore[arg-type]  # a stand-in with the same surface
    wire.handlers["message"](data)
    events.close()
    (message,) = [m async for m in events.messages()]
    assert isinstance(message, Rejected) and message.code == code


async def test_a_flood_is_refused_and_counted() -> None:
    events, metrics = channel()
    wire = Wire()
    events.attach(wire)  # type: ignore[arg-type]  # a stand-in with the same surface
    for _ in range(300):
        wire.handlers["message"]("{}")
    events.close()
    assert len([m async for m in events.messages()]) == 256
    refused = metrics.registry.get_sample_value(
        "voice_rtc_channel_messages_rejected_total", {"reason": "rate_limited"}
    )
    assert refused == 44


async def test_heartbeats_are_answered_at_once_and_not_read_as_messages() -> None:
    metrics = Metrics()
    events = Channel(LimitSettings(), metrics, frozenset(), "beat")
    heard: list[None] = []
    events.on_life = lambda: heard.append(None)
    wire = Wire()
    events.attach(wire)  # type: ignore[arg-type]  # a stand-in with the same surface
    for _ in range(300):  # more than may wait
        wire.handlers["message"]('{"type":"other"}')
    wire.handlers["message"]('{"type":"beat","more":1}')
    assert wire.sent == [{"type": "beat"}]
    assert len(heard) == 301
    events.close()
    assert {m["type"] async for m in events.messages() if isinstance(m, dict)} == {"other"}


async def test_a_client_that_does_not_read_gets_no_more_answers_to_heartbeats() -> None:
    events = Channel(LimitSettings(), Metrics(), frozenset(), "beat")
    wire = Wire()
    events.attach(wire)  # type: ignore[arg-type]  # a stand-in with the same surface
    wire.bufferedAmount = 10_000_000
    for _ in range(100):
        wire.handlers["message"]('{"type":"beat"}')
    wire.bufferedAmount = 0
    wire.handlers["bufferedamountlow"]()
    assert wire.sent == [{"type": "beat"}]


async def test_whoever_floods_is_told_once_and_then_given_up() -> None:
    events, metrics = channel()
    told: list[str] = []
    abuse: list[str] = []
    events.on_limit, events.on_abuse = told.append, abuse.append
    wire = Wire()
    events.attach(wire)  # type: ignore[arg-type]  # a stand-in with the same surface
    for _ in range(5000):
        wire.handlers["message"]("{}")
    assert abuse == ["channel_flood"]
    assert told == ["more than 20 messages a second; some were not read"]
    flood = metrics.registry.get_sample_value(
        "voice_rtc_channel_messages_rejected_total", {"reason": "flood"}
    )
    assert flood == 1
    events.send({"type": "farewell"})
    assert wire.sent == [{"type": "farewell"}]
