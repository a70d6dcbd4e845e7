"""Relays and their credentials, as clients are told of them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from signaling.relay import server
from tests.support.server import serving
from voice_rtc.config import RelaySettings

NOW = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
URLS = ("turn:relay.example:3478?transport=udp", "turns:relay.example:443?transport=tcp")


def relays(**more: Any) -> RelaySettings:
    return RelaySettings(urls=URLS, secret="north", **more)


def test_the_password_is_the_hmac_of_the_name_and_the_name_says_when_it_ends() -> None:
    found = server(relays(ttl_seconds=600), NOW)
    ends, _, stranger = found["username"].partition(":")
    assert int(ends) == int(NOW.timestamp()) + 600 and stranger
    digest = hmac.new(b"north", found["username"].encode(), hashlib.sha1).digest()
    assert found["credential"] == base64.b64encode(digest).decode()
    assert found["urls"] == list(URLS)
    assert server(relays(), NOW)["username"] != server(relays(), NOW)["username"]


def test_without_a_secret_there_are_no_credentials() -> None:
    assert server(RelaySettings(urls=URLS), NOW) == {"urls": list(URLS)}


@pytest.mark.parametrize("url", ["stun:a:1", "http://a", "turn:", "a"])
def test_what_is_no_relay_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        RelaySettings(urls=(url,))


async def test_without_relays_the_list_is_empty() -> None:
    async with (
        asyncio.timeout(20),
        serving() as running,
        aiohttp.ClientSession() as http,
        http.get(f"{running.url}/v1/realtime/ice") as response,
    ):
        assert await response.json() == {"ice_servers": [], "ttl_seconds": 3600}
        assert response.headers["Cache-Control"] == "no-store"
