"""The self-test of the media path: a changed aiortc is found out, named, and left alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import pylibsrtp
import pytest
from aioice import ice

from signaling.main import running_server
from tests.support.audio import tone
from tests.support.caller import calling
from tests.support.server import ready
from voice_rtc.config import LimitSettings, MediaSettings, Settings
from voice_rtc.errors import MediaPathUnusable
from voice_rtc.media import joint, selftest
from voice_rtc.media.rtp_out import OutboundRtp
from voice_rtc.media.selftest import MediaPath, self_test

Patch = pytest.MonkeyPatch
LIMITS = LimitSettings()
BINDING: Any = pylibsrtp._binding
ENOUGH_SECONDS = 10.0
SHORT_SECONDS = 1.5
"""For what ends by time alone: the stages before it take some 0.3 s."""


async def test_it_passes_here_and_leaves_nothing_behind() -> None:
    async with asyncio.timeout(20):
        assert await self_test(LIMITS, ENOUGH_SECONDS) == ""
    assert asyncio.get_running_loop().get_exception_handler() is None


async def test_who_was_too_slow_is_tried_once_more(monkeypatch: Patch) -> None:
    tries, stage = [], selftest._SelfTest._refuse_strangers

    async def slow_at_first(self: Any) -> None:
        tries.append(self)
        if len(tries) == 1:
            await asyncio.get_running_loop().create_future()
        await stage(self)

    monkeypatch.setattr(selftest._SelfTest, "_refuse_strangers", slow_at_first)
    async with asyncio.timeout(40):
        assert await self_test(LIMITS, ENOUGH_SECONDS / 2) == ""
    assert len(tries) == 2


# -------------------------------------------------------------------- another aiortc or aioice


def name_missing(patch: Patch) -> None:
    patch.setattr(joint, "_RECEIVER_NAMES", ("no_such_name",))


def no_codecs(patch: Patch) -> None:
    """The list of codecs became a tuple."""
    from aiortc import RTCRtpTransceiver as Transceiver

    patch.setattr(
        Transceiver,
        "_codecs",
        property(
            lambda self: tuple(self.__dict__.get("codecs", ())),
            lambda self, value: self.__dict__.__setitem__("codecs", value),
        ),
        raising=False,
    )


class KeyedLibrary:
    """libsrtp, of which `srtp_protect` wants a key too, as that of another version might."""

    def __getattr__(self, name: str) -> Any:
        return getattr(BINDING.lib, name)

    def srtp_protect(self, context: Any, _key: Any, room: Any, length: Any) -> int:
        done: int = BINDING.lib.srtp_protect(context, room, length)
        return done


def protect_is_another(patch: Patch) -> None:
    keyed = SimpleNamespace(ffi=BINDING.ffi, lib=KeyedLibrary())
    patch.setattr(pylibsrtp, "_binding", keyed)


class Relay:
    """What the transport calls in place of the protocol, whose class it asks for the method."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def datagram_received(self, data: bytes, addr: Any) -> None:
        type(self._protocol).datagram_received(self._protocol, data, addr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)


def datagrams_go_elsewhere(patch: Patch) -> None:
    made = ice.StunProtocol.connection_made

    def connection_made(self: Any, transport: Any) -> None:
        made(self, transport)
        transport.set_protocol(Relay(self))

    patch.setattr(ice.StunProtocol, "connection_made", connection_made)


def nothing_is_sent(patch: Patch) -> None:
    patch.setattr(OutboundRtp, "wake", lambda _self: None)


def reports_are_another(patch: Patch) -> None:
    """The sender's counts have other names, which nothing is told."""
    for name in ("_RTP_TIMESTAMP", "_NTP_TIMESTAMP", "_PACKET_COUNT", "_OCTET_COUNT"):
        patch.setattr(joint, name, f"another{name}")


def no_address(patch: Patch) -> None:
    patch.setattr(ice, "get_host_addresses", lambda **_: [])


CHANGES = [
    (name_missing, ENOUGH_SECONDS, "RTCRtpReceiver has no no_such_name"),
    (no_codecs, ENOUGH_SECONDS, "RTCRtpTransceiver has no list of codecs"),
    (protect_is_another, ENOUGH_SECONDS, "TypeError in processed: .*protect"),
    (datagrams_go_elsewhere, SHORT_SECONDS, "SocketGuard.datagram_received.* within"),
    (nothing_is_sent, SHORT_SECONDS, "OutboundRtp: 0 frames sent; -100 dBFS"),
    (reports_are_another, SHORT_SECONDS, "no true RTCP reports .*'sent': 0"),
    (no_address, ENOUGH_SECONDS, "no address that WebRTC media can use"),
]


@pytest.mark.parametrize(("change", "seconds", "reason"), CHANGES)
async def test_a_change_is_found_and_named(
    monkeypatch: Patch, change: Callable[[Patch], None], seconds: float, reason: str
) -> None:
    change(monkeypatch)
    found = ""
    async with asyncio.timeout(50):
        # On a machine that is busy the time may be over before the stage that is meant began.
        for each in (seconds, 3 * seconds, 6 * seconds):
            media = MediaSettings(path="fast", self_test_seconds=each)
            with pytest.raises(MediaPathUnusable) as caught:
                await selftest.tested_path(media, LIMITS)
            found = str(caught.value)
            if re.search(reason, found):
                break
    assert re.search(f"the self-test failed: .*{reason}", found)


@pytest.mark.parametrize("change", [name_missing, protect_is_another, datagrams_go_elsewhere])
async def test_a_server_starts_on_the_stock_path_and_takes_calls(
    monkeypatch: Patch, change: Callable[[Patch], None]
) -> None:
    change(monkeypatch)
    settings = Settings(
        engines="fake",
        server={"host": "127.0.0.1", "port": 0, "drain_seconds": 0.0},
        media={"self_test_seconds": SHORT_SECONDS},
        pool={"loop_lag_seconds": 60.0},
    )
    async with (
        asyncio.timeout(50),
        running_server(settings, choose_path=selftest.tested_path) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        await ready(server)
        async with http.get("/readyz") as response:
            readiness = await response.json()
        assert response.status == 200 and readiness["media"]["path"] == "stock"
        reason = readiness["media"]["reason"]
        assert reason.startswith("the self-test failed: ") and reason in readiness["detail"]
        async with calling(server.url) as caller:
            assert [call.peer.path for call in server.registry.calls()] == ["stock"]
            await caller.say(tone(1.0))
            await caller.event("response.done")
            assert caller.frames
        while True:
            async with http.get("/pool.json") as response:
                pool = await response.json()
            if pool["alerts"]:
                break
        assert pool["media"] == readiness["media"]
        [alert] = pool["alerts"]
        assert alert["name"] == "media_path_stock" and reason in alert["text"]
        value = server.metrics.registry.get_sample_value
        assert value("voice_rtc_media_path", {"path": "stock"}) == 1
        assert value("voice_rtc_media_path", {"path": "fast"}) == 0


# ------------------------------------------------------------------------- what is decided


async def test_another_version_is_not_even_tried(monkeypatch: Patch) -> None:
    monkeypatch.setitem(joint.PINNED, "aiortc", "0.0.1")
    monkeypatch.setattr(selftest, "self_test", None)
    chosen = await selftest.tested_path(MediaSettings(), LIMITS)
    assert chosen.path == "stock" and "not 0.0.1" in chosen.reason
    with pytest.raises(MediaPathUnusable, match=r"not 0\.0\.1; with media\.path = auto"):
        await selftest.tested_path(MediaSettings(path="fast"), LIMITS)


async def test_who_wants_the_stock_path_gets_it_untested(monkeypatch: Patch) -> None:
    monkeypatch.setattr(selftest, "self_test", None)
    assert await selftest.tested_path(MediaSettings(path="stock"), LIMITS) == MediaPath("stock")


async def test_a_server_that_must_be_fast_does_not_start(monkeypatch: Patch) -> None:
    no_address(monkeypatch)
    settings = Settings(
        engines="fake", media={"path": "fast"}, server={"host": "127.0.0.1", "port": 0}
    )
    with pytest.raises(MediaPathUnusable, match="no address") as caught:
        async with running_server(settings, choose_path=selftest.tested_path):
            pass
    assert caught.value.code == "media_path_unusable"


def test_calls_on_the_stock_path_cost_more() -> None:
    assert MediaSettings(path="stock").share_of_a_call == 0.06
    assert MediaSettings().share_of_a_call == 0.03
