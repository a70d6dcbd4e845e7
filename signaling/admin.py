"""The pool page and its API: GET /pool, /pool.json, /pool/events and POST /pool/actions.

Who sees and may do what is decided here. Without the token the figures are open (unless
``admin.open_status`` is off) and call ids are cut short; every action, and whole ids, need
``Authorization: Bearer TOKEN``. No cookie is ever set, so no other site can act through a browser.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import structlog
from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response

import web as pages
from signaling.pool_view import CallsAndPool, PoolControl, PoolFeed, PoolView
from voice_rtc.config import AdminSettings
from voice_rtc.errors import BadRequest, StateError, Unauthorized

log = structlog.get_logger("voice_rtc.admin")

LARGEST_ACTION_BYTES = 4096
_TOKEN_BYTES = 24
# A page that takes nothing for so long is cut off; it comes back by itself.
_STALLED_SECONDS = 10.0
_PAGE = Path(pages.__file__).parent / "pool.html"
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}
_JSON_HEADERS = {"Cache-Control": "no-store", "Vary": "Accept, Authorization"}

routes = web.RouteTableDef()


@dataclass(frozen=True, slots=True)
class Admin:
    """What the endpoints share."""

    token: str
    """Needed for actions and whole call ids; never empty."""
    open_status: bool
    """May anybody see the figures?"""
    server: CallsAndPool
    view: PoolView
    feed: PoolFeed

    def is_operator(self, request: web.Request) -> bool:
        """Does the request carry the token? Raises Unauthorized for a wrong one."""
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        if not hmac.compare_digest(_bytes(given.strip()), _bytes(self.token)):
            log.warning("admin_token_wrong", remote=request.remote, path=request.path)
            raise Unauthorized("this is not the admin token", code="wrong_token")
        return True

    def may_see(self, request: web.Request) -> bool:
        """Whether whole call ids may be shown. Raises Unauthorized when nothing may be."""
        operator = self.is_operator(request)
        if not operator and not self.open_status:
            raise Unauthorized("the pool's figures need the admin token", code="token_needed")
        return operator


ADMIN = web.AppKey("admin", Admin)


def choose_token(settings: AdminSettings) -> str:
    """The configured token, or a random one for this run of the server."""
    return settings.token.get_secret_value() or secrets.token_urlsafe(_TOKEN_BYTES)


def page_address(url: str, settings: AdminSettings, token: str) -> str:
    """Where the page is, for the log; with the token only when it was made by `choose_token`."""
    configured = settings.token.get_secret_value()
    return f"{url}/pool" if configured else f"{url}/pool#token={token}"


def add_to(
    app: web.Application, settings: AdminSettings, view: PoolView, server: CallsAndPool
) -> None:
    """Put the endpoints into the application; live listeners end when it shuts down."""
    feed = PoolFeed(view, settings.listeners)
    app[ADMIN] = Admin(choose_token(settings), settings.open_status, server, view, feed)
    app.add_routes(routes)

    async def close_feed(_app: web.Application) -> None:
        feed.close()

    app.on_shutdown.append(close_feed)


# --------------------------------------------------------------------------- looking


@routes.get("/pool")
async def pool(request: web.Request) -> web.StreamResponse:
    """The page for browsers (``Accept: text/html``), JSON for everybody else."""
    if "text/html" in request.headers.get("Accept", ""):
        return web.FileResponse(_PAGE, headers=_PAGE_HEADERS)
    return await pool_json(request)


@routes.get("/pool.json")
async def pool_json(request: web.Request) -> web.Response:
    """Everything, with the history of the last hour."""
    admin = request.app[ADMIN]
    full_ids = admin.may_see(request)
    body = admin.view.whole(asyncio.get_running_loop().time(), full_ids=full_ids)
    return web.Response(
        body=body, content_type="application/json", charset="utf-8", headers=_JSON_HEADERS
    )


@routes.get("/pool/events")
async def pool_events(request: web.Request) -> web.StreamResponse:
    """Server-sent events: ``status`` each second. Raises TooManyListeners."""
    admin = request.app[ADMIN]
    full_ids = admin.may_see(request)
    with admin.feed.seat(operator=full_ids):
        async with sse_response(request, send_timeout=_STALLED_SECONDS) as response:
            await _follow(admin.feed, response, full_ids)
    return response


async def _follow(feed: PoolFeed, response: EventSourceResponse, full_ids: bool) -> None:
    """Send the pool's state until the client is gone or the feed closed."""
    try:
        while True:
            await response.send(feed.newest(full_ids=full_ids).decode(), event="status")
            if not await feed.next_is_due():
                return
    except (ConnectionResetError, TimeoutError):
        log.debug("pool_listener_gone")


# --------------------------------------------------------------------------- acting


class _Action(msgspec.Struct, tag_field="action", forbid_unknown_fields=True):
    pass


class HangUp(_Action, tag="hang_up"):
    """End a call, as if its caller had hung up."""

    call: str


class Isolate(_Action, tag="isolate"):
    """Give a call a replica of its own."""

    call: str


class Drain(_Action, tag="drain"):
    """Refuse new calls; running ones go on."""


class Admit(_Action, tag="admit"):
    """Take new calls again."""


class Quarantine(_Action, tag="quarantine"):
    """Take a replica out of service."""

    replica: str


class Restart(_Action, tag="restart"):
    """Load a replica anew."""

    replica: str


class Resize(_Action, tag="resize"):
    """Have so many slots; 0 is automatic."""

    slots: Annotated[int, msgspec.Meta(ge=0, le=10_000)]


class SwitchMode(_Action, tag="mode"):
    """Give new calls another mode."""

    mode: Literal["shared", "dedicated", "single"]


class Probe(_Action, tag="probe"):
    """Measure anew what the engine carries."""


Action = HangUp | Isolate | Drain | Admit | Quarantine | Restart | Resize | SwitchMode | Probe
_actions: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)


@routes.post("/pool/actions")
async def pool_actions(request: web.Request) -> web.Response:
    """Do one thing; answers when it is done, with a sentence that says what came of it."""
    admin = request.app[ADMIN]
    if not admin.is_operator(request):
        raise Unauthorized("actions need the admin token", code="token_needed")
    action = _decoded(await _body(request))
    try:
        detail = await act(action, admin.server)
    except StateError as error:
        raise BadRequest(str(error), code=error.code, status=409) from error
    log.info("admin_action", **msgspec.to_builtins(action), detail=detail)
    return web.json_response({"ok": True, "detail": detail})


async def act(action: Action, server: CallsAndPool) -> str:
    """Carry out one action. Raises VoiceRtcError: UnknownCall, StateError, ..."""
    match action:
        case HangUp(call):
            server.hang_up(call)
            return "The call is being ended."
        case Drain():
            server.set_draining(True)
            return f"New calls are refused; {server.active} running calls go on."
        case Admit():
            server.set_draining(False)
            return "New calls are taken again."
        case _:
            return await _act_on_pool(action, _pool_of(server))


async def _act_on_pool(
    action: Isolate | Quarantine | Restart | Resize | SwitchMode | Probe, pool: PoolControl
) -> str:
    match action:
        case Isolate(call):
            return await pool.isolate(call)
        case Quarantine(replica):
            return await pool.quarantine(replica)
        case Restart(replica):
            return await pool.restart(replica)
        case Resize(slots):
            return await pool.resize(slots)
        case SwitchMode(mode):
            return await pool.switch_mode(mode)
        case Probe():
            return await pool.probe()


def _pool_of(server: CallsAndPool) -> PoolControl:
    if server.pool is None:
        raise StateError("there is no pool: the speech engines are not loaded")
    return server.pool


async def _body(request: web.Request) -> bytes:
    """Raises BadRequest for more than LARGEST_ACTION_BYTES, as soon as that is known."""
    body = bytearray()
    async for chunk in request.content.iter_chunked(LARGEST_ACTION_BYTES):
        body += chunk
        if len(body) > LARGEST_ACTION_BYTES:
            raise BadRequest(
                f"an action is at most {LARGEST_ACTION_BYTES} bytes",
                code="body_too_large",
                status=413,
            )
    return bytes(body)


def _decoded(body: bytes) -> Action:
    try:
        return _actions.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"not an action: {error}", code="invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("the body is not valid JSON", code="invalid_json") from None


def _bytes(token: str) -> bytes:
    return token.encode(errors="surrogateescape")
