"""The pool's API: who sees what, who may do what, and the live feed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from signaling import admin
from signaling.pool_view import PoolFeed, TooManyListeners
from tests.support.pool_status import TOKEN, PoolRig, ScriptedServer, call_id, view_of
from tests.support.server import serving
from tests.support.virtual_time import run_virtual
from voice_rtc.config import AdminSettings
from voice_rtc.errors import Draining

OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def rig() -> AsyncIterator[PoolRig]:
    async with PoolRig() as running:
        yield running


@pytest.fixture
async def http(rig: PoolRig) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(rig.url) as session:
        yield session


async def act(
    http: aiohttp.ClientSession, body: Any, headers: dict[str, str] = OPERATOR
) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post("/pool/actions", data=data, headers=headers) as response:
        return response.status, await response.json()


async def next_event(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next server-sent event's data. Raises EOFError at the end."""
    frame = await response.content.readuntil(b"\r\n\r\n")
    if not frame:
        raise EOFError
    lines = frame.decode().split("\r\n")
    assert lines[0] == "event: status"
    return dict(json.loads(lines[1].removeprefix("data: ")))


# --------------------------------------------------------------------------- looking


async def test_browsers_get_the_page_and_everybody_else_json(http: aiohttp.ClientSession) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    async with http.get("/pool", headers=browser) as page:
        assert page.content_type == "text/html"
        assert "<title>Pool" in await page.text()
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert page.headers["Vary"] == "Accept"
    async with http.get("/pool") as given:
        assert given.content_type == "application/json"
        body = await given.json()
    async with http.get("/pool.json", headers=browser) as always:
        assert (await always.json()).keys() == body.keys()


async def test_everything_is_there(http: aiohttp.ClientSession) -> None:
    async with http.get("/pool.json", headers=OPERATOR) as response:
        body = await response.json()
    assert set(body) == set(
        "version now uptime_seconds status detail media mode rollout fallback admission ladder "
        "slots sizing line leases replicas latency machine calls calls_active alerts events "
        "history redacted turns".split()
    )
    assert body["status"] == "ready" and body["redacted"] is False
    assert body["slots"]["leased"] == len(body["leases"]) == 18
    assert body["calls_active"] == len(body["calls"]) == 25
    assert body["line"]["waiting"] == 7
    first = body["calls"][0]
    assert first["id"] == call_id(1) and first["state"] == "live" and first["lease"] == 101
    assert set(first["last_turn"]) == {
        "outcome", "endpoint_ms", "stt_ms", "llm_first_token_ms", "tts_first_audio_ms",
        "first_packet_ms", "response_ms", "saved_ms",
    }  # fmt: skip
    turns = body["turns"]
    assert (turns["count"], turns["most"], turns["outcomes"]) == (60, 200, {"heard": 59, "cut": 1})
    assert turns["stages"]["endpoint_ms"] == {"turns": 60, "p50": 645.0, "p95": 780.0}
    assert turns["stages"]["response_ms"]["turns"] == 59
    assert body["calls"][-1]["state"] == "waiting" and body["calls"][-1]["lease"] is None
    assert len(body["history"]["series"]["leased"]) == 720


async def test_strangers_see_no_whole_call_id_anywhere(
    rig: PoolRig, http: aiohttp.ClientSession
) -> None:
    rig.server.events = ((3.0, f"a replica was given to {call_id(1)} alone"),)
    async with http.get("/pool.json") as response:
        text = await response.text()
    for number in range(1, 26):
        assert call_id(number) not in text
        assert call_id(number)[-12:] not in text
    body = json.loads(text)
    assert body["redacted"] is True
    assert body["calls"][0]["id"] == body["leases"][0]["call"] == call_id(1)[:8] + "..."
    assert body["events"][0]["text"].endswith("... alone")


@pytest.mark.parametrize("path", ["/pool", "/pool.json", "/pool/events"])
@pytest.mark.parametrize(
    "sent", ["Bearer wrong", f"Bearer {TOKEN}x", "Bearer ", "Bearer ÿ"], ids=range(4)
)
async def test_a_wrong_token_is_said(http: aiohttp.ClientSession, path: str, sent: str) -> None:
    async with http.get(path, headers={"Authorization": sent}) as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == "wrong_token"


async def test_figures_can_be_for_operators_only() -> None:
    async with PoolRig(open_status=False) as rig, aiohttp.ClientSession(rig.url) as http:
        for path in ("/pool", "/pool.json", "/pool/events"):
            async with http.get(path) as response:
                assert response.status == 401
                assert (await response.json())["error"]["code"] == "token_needed"
        async with http.get("/pool.json", headers=OPERATOR) as response:
            assert response.status == 200
        async with http.get("/pool", headers={"Accept": "text/html"}) as page:
            assert page.status == 200  # it asks for the token
        assert rig.feed.listeners == 0


async def test_a_server_without_a_pool_says_so(rig: PoolRig, http: aiohttp.ClientSession) -> None:
    rig.server.has_pool = False
    async with http.get("/pool.json") as response:
        body = await response.json()
    assert body["mode"] is None and body["machine"] is None and body["calls"] == []
    assert body["slots"] == {"total": 0, "leased": 0, "free": 0, "target": 0, "max": 0}
    assert body["history"]["series"] == {}
    status, answer = await act(http, {"action": "probe"})
    assert (status, answer["error"]["code"]) == (409, "bad_state")
    assert "not loaded" in answer["error"]["message"]


# --------------------------------------------------------------------------- acting


@pytest.mark.parametrize(
    ("action", "done", "detail"),
    [
        ({"action": "hang_up", "call": call_id(2)}, ("end", f"{call_id(2)} hangup"), "ended"),
        ({"action": "isolate", "call": call_id(2)}, ("isolate", call_id(2)), "dedicated-4"),
        ({"action": "drain"}, ("drain", None), "refused"),
        ({"action": "admit"}, ("admit", None), "taken again"),
        ({"action": "quarantine", "replica": "shared-1"}, ("quarantine", "shared-1"), "replaced"),
        ({"action": "restart", "replica": "shared-2"}, ("restart", "shared-2"), "replaced"),
        ({"action": "resize", "slots": 9}, ("resize", 9), "9 slots"),
        ({"action": "resize", "slots": 0}, ("resize", 0), "24 slots"),
        ({"action": "mode", "mode": "dedicated"}, ("mode", "dedicated"), "dedicated"),
        ({"action": "probe"}, ("probe", None), "Measured"),
    ],
)
async def test_actions(
    rig: PoolRig, http: aiohttp.ClientSession, action: Any, done: Any, detail: str
) -> None:
    status, answer = await act(http, action)
    assert status == 200 and answer["ok"] is True
    assert detail in answer["detail"]
    assert rig.server.done == [done]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "token_needed"),
        ({"Authorization": "Bearer nonsense"}, "wrong_token"),
        ({"Authorization": f"Basic {TOKEN}"}, "token_needed"),
        ({"Cookie": f"token={TOKEN}"}, "token_needed"),
    ],
)
async def test_actions_need_the_token(
    rig: PoolRig, http: aiohttp.ClientSession, headers: dict[str, str], code: str
) -> None:
    status, answer = await act(http, {"action": "drain"}, headers)
    assert (status, answer["error"]["code"]) == (401, code)
    assert rig.server.done == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "invalid_json")),
        (b"{", (400, "invalid_json")),
        (b"\xff\xfe", (400, "invalid_json")),
        (b'{"action":' + b"[" * 4000, (400, "invalid_json")),
        (b"[]", (400, "invalid_value")),
        (b"{}", (400, "invalid_value")),
        ({"action": "explode"}, (400, "invalid_value")),
        ({"action": ["drain"]}, (400, "invalid_value")),
        ({"action": "hang_up"}, (400, "invalid_value")),
        ({"action": "hang_up", "call": 7}, (400, "invalid_value")),
        ({"action": "drain", "call": "rtc_x"}, (400, "invalid_value")),
        ({"action": "resize", "slots": 2.5}, (400, "invalid_value")),
        ({"action": "resize", "slots": 10**40}, (400, "invalid_value")),
        ({"action": "mode", "mode": "turbo"}, (400, "invalid_value")),
        ({"action": "hang_up", "call": "x" * 4100}, (413, "body_too_large")),
        ({"action": "hang_up", "call": call_id(1)[:8] + "..."}, (404, "call_not_found")),
        ({"action": "isolate", "call": "rtc_none"}, (404, "call_not_found")),
        ({"action": "restart", "replica": "shared-9"}, (404, "replica_not_found")),
        ({"action": "resize", "slots": 33}, (409, "bad_state")),
    ],
    ids=range(19),
)
async def test_wrong_actions_are_refused(
    rig: PoolRig, http: aiohttp.ClientSession, body: Any, expected: tuple[int, str]
) -> None:
    status, answer = await act(http, body)
    assert (status, answer["error"]["code"]) == expected
    assert set(answer["error"]) == {"message", "type", "code"}
    assert not rig.server.ended and not rig.server.draining


async def test_an_error_of_the_server_keeps_its_code(
    rig: PoolRig, http: aiohttp.ClientSession
) -> None:
    rig.server.fails_with = Draining()
    status, answer = await act(http, {"action": "drain"})
    assert (status, answer["error"]["code"]) == (503, "draining")


def test_the_token_is_the_configured_one_or_a_new_one() -> None:
    configured, empty = AdminSettings(token="mine"), AdminSettings()
    assert admin.choose_token(configured) == "mine"
    made = admin.choose_token(empty)
    assert len(made) >= 32 and made != admin.choose_token(empty)
    # A token that the operator chose has no business in the log.
    assert admin.page_address("http://x:1", configured, "mine") == "http://x:1/pool"
    assert admin.page_address("http://x:1", empty, made) == f"http://x:1/pool#token={made}"


# ------------------------------------------------------------------------- following


async def test_the_feed_tells_the_newest(rig: PoolRig, http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(10), http.get("/pool/events", headers=OPERATOR) as response:
        assert response.content_type == "text/event-stream"
        first = await next_event(response)
        assert "history" not in first
        assert first["redacted"] is False and first["calls"][0]["id"] == call_id(1)
        assert first["point"]["leased"] == 18
        rig.server.hang_up(call_id(1))
        second = await next_event(response)
        assert second["slots"]["leased"] == 17
        assert second["uptime_seconds"] > first["uptime_seconds"]


async def test_listeners_are_bounded_and_their_places_come_free() -> None:
    async with PoolRig(listeners=1) as rig, aiohttp.ClientSession(rig.url) as http:
        async with asyncio.timeout(10), http.get("/pool/events") as response:
            first = await next_event(response)
            assert first["redacted"] is True and call_id(1) not in str(first)
            async with http.get("/pool/events") as refused:
                assert refused.status == 503
                assert (await refused.json())["error"]["code"] == "too_many_listeners"
                assert "Retry-After" in refused.headers
        # The client is gone: the server notices at the next event it sends.
        async with asyncio.timeout(10):
            while (again := await http.get("/pool/events")).status == 503:
                again.close()
                await rig.feed.next_is_due()
            await next_event(again)
            again.close()


async def test_strangers_do_not_keep_an_operator_from_the_feed() -> None:
    async with PoolRig(listeners=1) as rig, aiohttp.ClientSession(rig.url) as http:
        async with asyncio.timeout(10), http.get("/pool/events") as stranger:
            await next_event(stranger)
            async with http.get("/pool/events", headers=OPERATOR) as operator:
                assert (await next_event(operator))["redacted"] is False
                async with http.get("/pool/events", headers=OPERATOR) as another:
                    assert another.status == 503, "their places are bounded too"


async def test_listeners_end_with_the_server() -> None:
    async with PoolRig() as rig, aiohttp.ClientSession(rig.url) as http:
        async with asyncio.timeout(10), http.get("/pool/events") as response:
            await next_event(response)
            await rig.stop()
            with pytest.raises(EOFError):
                while True:
                    await next_event(response)
        assert rig.feed.listeners == 0


def test_one_snapshot_serves_all_who_listen_and_none_is_made_for_nobody() -> None:
    async def story() -> None:
        server = ScriptedServer()
        feed = PoolFeed(view_of(server), most=3)
        heard: list[tuple[int, bytes]] = []

        async def listen(number: int, *, full_ids: bool) -> None:
            with feed.seat():
                heard.append((number, feed.newest(full_ids=full_ids)))
                while await feed.next_is_due():
                    heard.append((number, feed.newest(full_ids=full_ids)))

        await asyncio.sleep(100)
        assert feed.made == 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(1, full_ids=True))
            await asyncio.sleep(0.3)
            tasks.create_task(listen(2, full_ids=True))
            tasks.create_task(listen(3, full_ids=False))
            await asyncio.sleep(0)
            with pytest.raises(TooManyListeners), feed.seat():
                pass
            await asyncio.sleep(5)
            feed.close()
        assert feed.made == 6
        assert feed.listeners == 0
        per_listener = [[body for who, body in heard if who == number] for number in (1, 2, 3)]
        assert [len(bodies) for bodies in per_listener] == [6, 6, 6]
        assert all(one is two for one, two in zip(*per_listener[:2], strict=True))
        assert per_listener[0][0] != per_listener[2][0]
        await asyncio.sleep(100)
        assert feed.made == 6

    run_virtual(story())


def test_strangers_who_ask_without_end_cost_one_snapshot_a_second() -> None:
    server = ScriptedServer()
    view = view_of(server)
    asked = []
    snapshot = server.snapshot
    server.snapshot = lambda: asked.append(1) or snapshot()  # type: ignore[method-assign,func-returns-value]
    bodies = {view.whole(5.0 + number / 1000, full_ids=False) for number in range(900)}
    assert len(bodies) == 1 and b'"redacted":true' in bodies.pop()
    once = len(asked)
    assert once <= 3
    view.whole(6.5, full_ids=False)
    assert len(asked) == 2 * once
    for _ in range(3):  # an operator wants to see what came of an action
        assert b'"redacted":false' in view.whole(6.6, full_ids=True)
    assert len(asked) == 5 * once


def test_a_slow_listener_misses_events_and_then_hears_the_newest() -> None:
    async def story() -> None:
        server = ScriptedServer()
        feed = PoolFeed(view_of(server), most=1)
        feed.newest(full_ids=True)
        await asyncio.sleep(7.5)  # its connection took nothing for so long
        server.leased = 3
        assert json.loads(feed.newest(full_ids=True))["slots"]["leased"] == 3
        assert feed.made == 2
        assert await feed.next_is_due()
        assert asyncio.get_running_loop().time() == pytest.approx(8.0)

    run_virtual(story())


# ------------------------------------------------------------------- the real server


async def test_a_whole_server_has_the_page_and_its_api() -> None:
    async with serving() as server, aiohttp.ClientSession(server.url) as http:
        async with http.get("/pool", headers={"Accept": "text/html"}) as page:
            assert page.content_type == "text/html"
        async with http.get("/pool.json") as response:
            body = await response.json()
        assert body["status"] == "ready"
        assert body["slots"]["total"] == server.registry.slots
        assert body["calls"] == []
        status, answer = await act(http, {"action": "drain"}, {})
        assert (status, answer["error"]["code"]) == (401, "token_needed")
