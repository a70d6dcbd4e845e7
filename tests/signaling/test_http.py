"""The HTTP side: what is asked wrongly gets a clear refusal, never a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from signaling.main import Server, running_server
from tests.support.caller import calling
from tests.support.server import serving
from voice_rtc.config import Settings
from voice_rtc.engines.base import EngineInfo, EngineSet
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.errors import EngineUnavailable

CALLS = "/v1/realtime/calls"
HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@pytest.fixture
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def make_offer() -> tuple[RTCPeerConnection, str]:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio")
    connection.createDataChannel("oai-events")
    await connection.setLocalDescription(await connection.createOffer())
    return connection, connection.localDescription.sdp


async def refusal(response: aiohttp.ClientResponse) -> tuple[int, str]:
    body = await response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) - {"param"} == {"message", "type", "code"}
    assert body["error"]["message"] and "Traceback" not in body["error"]["message"]
    return response.status, body["error"]["code"]


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/sdp", b"", (400, "bad_offer")),
        ("application/sdp", b"\xff\xfe\x00", (400, "bad_request")),
        ("application/sdp", b"hello", (400, "bad_offer")),
        ("application/sdp", (HEAD + "m=audio\r\n").encode(), (400, "bad_offer")),
        ("application/sdp", (HEAD + "m=video 9 x 1\r\n").encode(), (400, "no_audio_track")),
        ("application/sdp", b"v=0" + b"a" * 40_000, (413, "body_too_large")),
        ("application/sdp", b"v=0" + b"a" * 400_000, (413, "body_too_large")),
        ("application/json", b"{", (400, "invalid_json")),
        ("application/json", b"[]", (400, "invalid_type")),
        ("application/json", b"{}", (400, "missing_sdp")),
        ("application/json", b'{"sdp": 7}', (400, "missing_sdp")),
        ("application/json", b'{"sdp": "v=0", "session": []}', (400, "invalid_type")),
        ("application/json", b"[" * 20_000, (400, "invalid_json")),
        ("application/json", b'{"sdp": "v=0"}', (400, "no_audio_track")),
        ("text/plain", b"v=0", (415, "unsupported_media_type")),
        ("application/octet-stream", b"\x00", (415, "unsupported_media_type")),
        ("multipart/form-data", b"nothing", (400, "bad_request")),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nbody", (400, "bad_request")),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--x--\r\n',
            (400, "bad_request"),
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="session"\r\n\r\n{}\r\n--x--\r\n',
            (400, "missing_sdp"),
        ),
    ],
)
async def test_bad_offers_are_refused_with_a_code(
    server: Server,
    http: aiohttp.ClientSession,
    content_type: str,
    body: bytes,
    expected: tuple[int, str],
) -> None:
    async with http.post(CALLS, data=body, headers={"Content-Type": content_type}) as response:
        assert await refusal(response) == expected
    assert server.registry.active == 0


@pytest.mark.parametrize(
    ("session", "code"),
    [
        ({"type": "transcription"}, "invalid_value"),
        ({"output_modalities": ["smell"]}, "invalid_value"),
        ({"instructions": "x" * 8_001}, "text_too_long"),
        ({"audio": {"input": {"turn_detection": {"type": "psychic"}}}}, "invalid_value"),
        ({"audio": {"input": {"turn_detection": {"threshold": 7}}}}, "invalid_value"),
        ({"audio": 7}, "invalid_type"),
        ({"audio": {"input": {"transcription": {"language": "English"}}}}, "invalid_value"),
        ({"max_output_tokens": 0}, "invalid_value"),
        ({"x": json.loads("[" * 900 + "]" * 900)}, "invalid_value"),
    ],
)
async def test_a_bad_session_in_an_offer_is_refused(
    server: Server, http: aiohttp.ClientSession, session: Any, code: str
) -> None:
    connection, sdp = await make_offer()
    async with http.post(CALLS, json={"sdp": sdp, "session": session}) as response:
        assert await refusal(response) == (400, code)
    assert server.registry.active == 0
    await connection.close()


class NamelessTts(ToneTts):
    """A voice that cannot say what it is, once it is asked by a call."""

    is_asked = False

    @property
    def info(self) -> EngineInfo:
        if self.is_asked:
            raise RuntimeError("nobody expects this")
        return EngineInfo("tts", "nameless")

    @info.setter
    def info(self, _value: EngineInfo) -> None:
        pass


async def test_a_call_that_cannot_be_set_up_for_an_unforeseen_reason_leaves_nothing() -> None:
    tts = NamelessTts()
    engines = EngineSet(ThresholdVad(), ScriptedStt(), EchoLlm(), tts)
    async with serving(engines) as server, aiohttp.ClientSession(server.url) as http:
        connection, sdp = await make_offer()
        tts.is_asked = True
        async with http.post(CALLS, json={"sdp": sdp}) as response:
            assert response.status == 500
        assert server.registry.active == 0
        await connection.close()


@pytest.mark.parametrize("form", ["sdp", "json", "multipart"])
async def test_all_three_forms_of_an_offer_are_answered(
    http: aiohttp.ClientSession, form: str
) -> None:
    connection, sdp = await make_offer()
    session = {"type": "realtime", "instructions": "Be brief."}
    kwargs: dict[str, Any] = {"headers": {"Authorization": "Bearer anything"}}
    if form == "sdp":
        kwargs |= {"data": sdp}
        kwargs["headers"]["Content-Type"] = "application/sdp"
    elif form == "json":
        kwargs |= {"json": {"sdp": sdp, "session": session}}
    else:
        with aiohttp.MultipartWriter("form-data") as writer:
            for name, value in (("sdp", sdp), ("session", json.dumps(session))):
                writer.append(value).set_content_disposition("form-data", name=name)
        kwargs |= {"data": writer}
    async with http.post(f"{CALLS}?model=whatever", **kwargs) as response:
        assert response.status == 201
        assert response.content_type == "application/sdp"
        location = response.headers["Location"]
        assert (await response.text()).startswith("v=0")
    assert location.startswith("/v1/realtime/calls/rtc_")
    async with http.post(f"{location}/hangup") as response:
        assert response.status == 200
    await connection.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{CALLS}/nobody/hangup"),
        ("DELETE", f"{CALLS}/nobody"),
        ("DELETE", f"{CALLS}/{'x' * 5000}"),
        ("DELETE", f"{CALLS}/%00%ff"),
    ],
)
async def test_unknown_calls_are_404(http: aiohttp.ClientSession, method: str, path: str) -> None:
    async with http.request(method, path) as response:
        assert await refusal(response) == (404, "call_not_found")


async def test_unknown_paths_and_methods_are_refused_as_json(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/nothing") as response:
        assert await refusal(response) == (404, "not_found")
    async with http.get(CALLS) as response:
        assert await refusal(response) == (405, "method_not_allowed")
    for path in ("/static/../pyproject.toml", "/static/__init__.py", "/static/none.js"):
        async with http.get(path) as response:
            assert response.status == 404, path


async def test_cors_lets_any_page_use_the_api(http: aiohttp.ClientSession) -> None:
    origin = {"Origin": "https://example.org"}
    wanted = "authorization,content-type,x-openai-agents-sdk"
    asked = {
        **origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
    }
    async with http.options(CALLS, headers=asked) as response:
        assert response.status == 204
        allowed = response.headers["Access-Control-Allow-Headers"].replace(" ", "")
        assert set(allowed.split(",")) >= set(wanted.split(","))
        assert response.headers["Access-Control-Allow-Origin"] == "*"
    async with http.post(CALLS, data=b"x", headers=origin) as response:
        assert response.status == 415
        assert "Location" in response.headers["Access-Control-Expose-Headers"]


async def test_cors_can_be_narrowed() -> None:
    async with (
        serving(server={"cors_origins": ("https://good.example",)}) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        async with http.options(CALLS, headers={"Origin": "https://bad.example"}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers
        async with http.options(CALLS, headers={"Origin": "https://good.example"}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "https://good.example"


async def test_probes_metrics_and_page(http: aiohttp.ClientSession) -> None:
    async with http.get("/livez") as response:
        assert response.status == 200
    async with http.get("/readyz") as response:
        assert response.status == 200
        body = await response.json()
    assert body["status"] == "ready"
    assert [engine["kind"] for engine in body["engines"]] == ["vad", "stt", "llm", "tts"]
    assert all(engine["name"] and engine["reason"] for engine in body["engines"])
    async with http.get("/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    for name in ("voice_rtc_calls_active", "voice_rtc_leases_active", "voice_rtc_response_seconds"):
        assert f"# TYPE {name} " in text
    async with http.get("/") as response:
        assert response.status == 200 and response.content_type == "text/html"


async def test_while_engines_load_offers_are_told_to_come_back() -> None:
    release = asyncio.Event()

    async def slow(*_args: Any) -> Any:
        await release.wait()
        raise AssertionError("never released")

    settings = Settings(server={"host": "127.0.0.1", "port": 0})
    async with running_server(settings, slow) as server, aiohttp.ClientSession(server.url) as http:
        connection, sdp = await make_offer()
        headers = {"Content-Type": "application/sdp"}
        async with http.post(CALLS, data=sdp, headers=headers) as response:
            assert await refusal(response) == (503, "engines_loading")
            assert int(response.headers["Retry-After"]) > 0
        async with http.get("/readyz") as response:
            assert response.status == 503
            assert (await response.json())["status"] == "loading"
        async with http.get("/livez") as response:
            assert response.status == 200
        await connection.close()


async def test_when_the_engines_cannot_be_loaded_it_says_so_and_what_to_do() -> None:
    async def broken(*_args: Any) -> Any:
        raise EngineUnavailable("there is no directory /models/none: mend stt.model")

    settings = Settings(server={"host": "127.0.0.1", "port": 0})
    async with (
        running_server(settings, broken) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        await server.state.settled.wait()
        connection, sdp = await make_offer()
        headers = {"Content-Type": "application/sdp"}
        async with http.post(CALLS, data=sdp, headers=headers) as response:
            assert await refusal(response) == (503, "engine_unavailable")
        async with http.get("/readyz") as response:
            body = await response.json()
        assert (response.status, body["status"]) == (503, "failed")
        assert "mend stt.model" in body["detail"]
        await connection.close()


async def test_a_full_pool_refuses_with_retry_after_and_frees_its_slots() -> None:
    async with serving(pool={"slots": 1, "max_waiting": 0}) as server:
        async with calling(server.url) as caller:
            connection, sdp = await make_offer()
            headers = {"Content-Type": "application/sdp"}
            url = server.url + CALLS
            async with caller.http.post(url, data=sdp, headers=headers) as response:
                assert await refusal(response) == (503, "pool_full")
                assert response.headers["Retry-After"]
            await caller.hang_up()
            await caller.event("voice_rtc.call.ended")
            await connection.close()
        async with calling(server.url) as caller:
            assert server.registry.active == 1
            await caller.hang_up()


async def test_an_offer_that_nobody_follows_is_given_up() -> None:
    async with (
        serving(media={"connect_deadline_seconds": 0.3}) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        connection, sdp = await make_offer()
        headers = {"Content-Type": "application/sdp"}
        async with http.post(CALLS, data=sdp, headers=headers) as response:
            assert response.status == 201
        call = server.registry.snapshot()[0]
        async with asyncio.timeout(5):
            await server.registry.wait_empty()
        outcome = server.metrics.registry.get_sample_value(
            "voice_rtc_calls_total", {"outcome": "connect_timeout"}
        )
        assert outcome == 1 and not call.connected
        await connection.close()


async def test_draining_tells_callers_and_refuses_new_ones() -> None:
    async with serving() as server, calling(server.url) as caller:
        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(server.registry.drain(0.5))
            going = await caller.event("voice_rtc.going_away")
            assert going["deadline_seconds"] == 0.5
            async with caller.http.get(server.url + "/readyz") as response:
                assert response.status == 503
                assert (await response.json())["status"] == "draining"
            connection, sdp = await make_offer()
            url, headers = server.url + CALLS, {"Content-Type": "application/sdp"}
            async with caller.http.post(url, data=sdp, headers=headers) as response:
                assert await refusal(response) == (503, "draining")
            ended = await caller.event("voice_rtc.call.ended")
            assert ended["reason"] == "server_shutdown"
            await drain
        assert server.registry.active == 0
        await connection.close()
