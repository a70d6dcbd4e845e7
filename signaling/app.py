"""The aiohttp application: routes, CORS, errors as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

import web as pages
from signaling import admin, realtime, relay
from signaling.pool_view import PoolView, Readiness
from signaling.server_state import METRICS, REGISTRY, SETTINGS, STATE, ServerState
from voice_rtc.call.registry import CallRegistry
from voice_rtc.config import Settings
from voice_rtc.errors import VoiceRtcError
from voice_rtc.metrics import Metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PAGES = Path(pages.__file__).parent
_API = "/v1/"
_CORS_HEADERS = "authorization, content-type, x-openai-agents-sdk"

routes = web.RouteTableDef()


def build_app(
    settings: Settings, registry: CallRegistry, metrics: Metrics, state: ServerState
) -> web.Application:
    """All of the server's HTTP."""
    # Headroom for multipart framing; each part is measured for itself.
    largest = settings.limits.sdp_bytes + settings.limits.session_bytes + 4096
    app = web.Application(middlewares=[cors, errors_as_json], client_max_size=largest)
    app[SETTINGS] = settings
    app[REGISTRY] = registry
    app[METRICS] = metrics
    app[STATE] = state
    app.add_routes(routes)
    app.add_routes(realtime.routes)
    app.add_routes(relay.routes)

    def readiness() -> Readiness:
        body = state.render(registry)
        return Readiness(body["status"], body["detail"], body["media"])

    view = PoolView(registry, readiness, asyncio.get_running_loop().time())
    admin.add_to(app, settings.admin, view, registry)
    app.router.add_static("/static", _PAGES, append_version=False)
    return app


@routes.get("/")
async def call_page(_request: web.Request) -> web.FileResponse:
    """The call page."""
    return web.FileResponse(_PAGES / "index.html", headers={"Cache-Control": "no-cache"})


@routes.get(r"/static/{name:.*\.pyc?}")
async def no_source(_request: web.Request) -> web.Response:
    """The pages lie in a Python package; its Python is not for the browser."""
    raise web.HTTPNotFound


@routes.get("/livez")
async def livez(_request: web.Request) -> web.Response:
    """The process answers."""
    return web.json_response({"status": "alive"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """200 when calls are taken, else 503; which engines run and why."""
    body = request.app[STATE].render(request.app[REGISTRY])
    return web.json_response(body, status=200 if body["status"] == "ready" else 503)


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Prometheus exposition format."""
    return web.Response(
        body=request.app[METRICS].render(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


@web.middleware
async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let pages of the configured origins use the API; answers every preflight."""
    preflight = request.method == "OPTIONS"
    response = web.Response(status=204) if preflight else await handler(request)
    allowed = request.app[SETTINGS].server.cors_origins
    origin = request.headers.get("Origin")
    if origin and request.path.startswith(_API) and ("*" in allowed or origin in allowed):
        response.headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE, OPTIONS"
        response.headers["Access-Control-Allow-Headers"] = _CORS_HEADERS
        response.headers["Access-Control-Expose-Headers"] = "Location, Retry-After"
        response.headers["Access-Control-Max-Age"] = "600"
        response.headers.add("Vary", "Origin")
    return response


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as ``{"error": {"message", "type", "code"}}``, counted."""
    try:
        return await handler(request)
    except VoiceRtcError as error:
        if request.method == "POST" and request.path == "/v1/realtime/calls":
            request.app[METRICS].offers_rejected_total.labels(error.code).inc()
        response = _refusal(error.http_status, str(error), error.code, error.param)
        if error.retry_after_seconds is not None:
            response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response
    except web.HTTPRequestEntityTooLarge as error:
        request.app[METRICS].offers_rejected_total.labels("body_too_large").inc()
        return _refusal(413, error.text or "the body is too large", "body_too_large")
    except web.HTTPException as error:
        if error.status < 400:
            raise
        refusal = _refusal(error.status, error.reason, error.reason.lower().replace(" ", "_"))
        if "Allow" in error.headers:
            refusal.headers["Allow"] = error.headers["Allow"]
        return refusal


def _refusal(status: int, message: str, code: str, param: str | None = None) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "code": code}
    if param is not None:
        error["param"] = param
    return web.json_response({"error": error}, status=status)
