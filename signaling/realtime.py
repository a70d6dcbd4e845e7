"""The OpenAI Realtime (GA) call endpoints: offer in, answer out, hang-up.

``POST /v1/realtime/calls`` takes ``application/sdp``, ``multipart/form-data`` (``sdp``,
``session``) or JSON ``{sdp, session}``; see docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import msgspec
import structlog
from aiohttp import BodyPartReader, web

from signaling.realtime_client import RealtimeClient
from signaling.realtime_events import SPARE_EVENTS
from signaling.realtime_session import Session, Terms, new_session
from signaling.server_state import REGISTRY, SETTINGS, STATE
from voice_rtc.call.state import LineWish
from voice_rtc.config import LimitSettings, PoolSettings
from voice_rtc.errors import BadRequest, EnginesLoading

CHANNEL_LABEL = "oai-events"
HEARTBEAT = "voice_rtc.heartbeat"
_LONGEST_TOKEN = 64

log = structlog.get_logger("voice_rtc.signaling")
routes = web.RouteTableDef()


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client asks a call with."""

    sdp: str
    session: Session


@routes.post("/v1/realtime/calls")
async def create_call(request: web.Request) -> web.Response:
    """Answer an offer: 201, the SDP answer, and ``Location`` of the call."""
    registry = request.app[REGISTRY]
    settings = request.app[SETTINGS]
    engines = request.app[STATE].engines
    offer = await read_offer(request, settings.limits)
    wish = line_wish(request, settings.pool)
    call = registry.create(CHANNEL_LABEL, SPARE_EVENTS, wish, heartbeat=HEARTBEAT)
    try:
        if engines is None:  # the registry admits nothing before they are there
            raise EnginesLoading
        session = new_session(call.id, settings, engines)
        client = RealtimeClient(
            call, Terms(session, settings.limits, engines.stt.info, settings.llm)
        )
        if offer.session:
            client.configure(offer.session)
        answer = await call.peer.answer(offer.sdp)
    except BaseException:  # whatever it was: a call that nobody starts would keep its place forever
        await registry.abandon(call)
        raise
    call.attach(client)
    registry.start(call, client.run())
    log.info("call_answered", call=call.id, remote=request.remote)
    return web.Response(
        status=201,
        text=answer,
        content_type="application/sdp",
        headers={"Location": f"/v1/realtime/calls/{call.id}"},
    )


@routes.post("/v1/realtime/calls/{call_id}/hangup")
async def hang_up(request: web.Request) -> web.Response:
    """End a call, the OpenAI way."""
    request.app[REGISTRY].hang_up(request.match_info["call_id"])
    return web.Response(status=200)


@routes.delete("/v1/realtime/calls/{call_id}")
async def delete_call(request: web.Request) -> web.Response:
    """End a call, the REST way (and WHIP's)."""
    request.app[REGISTRY].hang_up(request.match_info["call_id"])
    return web.Response(status=200)


def line_wish(request: web.Request, pool: PoolSettings) -> LineWish:
    """How the caller is lined up: by its network, and by the place it had (``?resume=TOKEN``)."""
    resume = request.query.get("resume", "")
    if len(resume) > _LONGEST_TOKEN:
        raise BadRequest("resume is not a token of this server", code="bad_resume_token")
    origin = request.remote or ""
    return LineWish(head_start(request.remote, pool.head_starts), resume, origin)


def head_start(address: str | None, by_network: Mapping[str, float]) -> float:
    """Seconds of the most specific network that the address is in; 0.0 in none."""
    if address is None or not by_network:
        return 0.0
    try:
        caller = ip_address(address)
    except ValueError:  # a Unix socket has none
        return 0.0
    if isinstance(caller, IPv6Address) and caller.ipv4_mapped is not None:
        caller = caller.ipv4_mapped  # a server on [::] sees IPv4 callers so
    fitting = [(ip_network(name), seconds) for name, seconds in by_network.items()]
    inside = [(net.prefixlen, seconds) for net, seconds in fitting if caller in net]
    return max(inside, default=(0, 0.0))[1]


async def read_offer(request: web.Request, limits: LimitSettings) -> Offer:
    """The offer in any of its three forms. Raises BadRequest."""
    kind = request.content_type
    if kind == "application/sdp":
        return Offer(_text(await request.read(), limits.sdp_bytes, "the offer"), {})
    if kind == "application/json":
        body = await request.read()
        _within(body, limits.sdp_bytes + limits.session_bytes, "the body")
        given = _json(body, "the body")
        return _offer_of(given.get("sdp"), given.get("session"))
    if kind == "multipart/form-data":
        return await _read_multipart(request, limits)
    raise BadRequest(
        "Content-Type must be application/sdp, multipart/form-data or application/json",
        code="unsupported_media_type",
        status=415,
    )


async def _read_multipart(request: web.Request, limits: LimitSettings) -> Offer:
    sdp: str | None = None
    session: Session | None = None
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                raise BadRequest("nested multipart bodies are not supported")
            if part.name == "sdp":
                sdp = _text(await _part_bytes(part, limits.sdp_bytes), limits.sdp_bytes, "sdp")
            elif part.name == "session":
                session = _json(await _part_bytes(part, limits.session_bytes), "session")
            else:
                raise BadRequest("the form may have the parts sdp and session")
    except (ValueError, AssertionError, RuntimeError) as error:
        # What aiohttp's multipart reader raises for broken boundaries and headers.
        raise BadRequest(f"the multipart body cannot be read ({type(error).__name__})") from None
    return _offer_of(sdp, session)


async def _part_bytes(part: BodyPartReader, limit: int) -> bytes:
    body = bytearray()
    while chunk := await part.read_chunk():
        body += chunk
        _within(body, limit, f"the part {part.name}")
    return bytes(body)


def _offer_of(sdp: Any, session: Any) -> Offer:
    if not isinstance(sdp, str):
        raise BadRequest("the offer is missing: sdp must be a string", code="missing_sdp")
    if session is not None and not isinstance(session, dict):
        raise BadRequest("session must be an object", code="invalid_type")
    return Offer(sdp, session or {})


def _text(body: bytes, limit: int, name: str) -> str:
    _within(body, limit, name)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"{name} is not UTF-8 text") from None


def _json(body: bytes, name: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest(f"{name} is not valid JSON", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{name} must be a JSON object", code="invalid_type")
    return value


def _within(body: bytes | bytearray, limit: int, name: str) -> None:
    if len(body) > limit:
        raise BadRequest(f"{name} is larger than {limit} bytes", code="body_too_large", status=413)
