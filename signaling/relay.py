"""TURN for clients that reach the server only through a relay.

``GET /v1/realtime/ice`` names the relays of the configuration with a user name and password of
their own for each request, made as TURN servers with a shared secret know it (coturn's
``use-auth-secret``; draft-uberti-behave-turn-rest-00): the name is the time at which it ends, the
password its HMAC. The server itself needs no relay: it learns a client's relayed address from the
client's connectivity checks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

from aiohttp import web

from signaling.server_state import SETTINGS
from voice_rtc.config import RelaySettings

routes = web.RouteTableDef()


@routes.get("/v1/realtime/ice")
async def ice_servers(request: web.Request) -> web.Response:
    """``{"ice_servers": [...], "ttl_seconds"}``; the list goes into RTCPeerConnection as it is."""
    relay = request.app[SETTINGS].relay
    servers = [server(relay, datetime.now(UTC))] if relay.urls else []
    body = {"ice_servers": servers, "ttl_seconds": relay.ttl_seconds}
    return web.json_response(body, headers={"Cache-Control": "no-store"})


def server(relay: RelaySettings, now: datetime) -> dict[str, Any]:
    """The relays as an RTCIceServer, with credentials that end ``ttl_seconds`` after ``now``."""
    if not relay.secret.get_secret_value():
        return {"urls": list(relay.urls)}
    name = f"{int(now.timestamp()) + relay.ttl_seconds}:{token_hex(4)}"
    digest = hmac.digest(relay.secret.get_secret_value().encode(), name.encode(), hashlib.sha1)
    return {
        "urls": list(relay.urls),
        "username": name,
        "credential": base64.b64encode(digest).decode(),
    }
