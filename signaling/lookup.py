"""Names to addresses for an aiohttp client, in a thread of its own.

aiohttp's own resolver goes to the event loop's default executor. That one belongs to aiortc's Opus
encoder, and a process does not end before it: a name server without an answer would keep the server
from stopping.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult


class ThreadResolver(AbstractResolver):
    """For a client that talks to one host: at most one lookup, one daemon thread, at a time."""

    def __init__(self) -> None:
        self._lookup: asyncio.Future[list[ResolveResult]] | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of ``host``. Raises OSError. Who comes meanwhile gets the same answer."""
        if self._lookup is None or self._lookup.done():
            loop = asyncio.get_running_loop()
            self._lookup = loop.create_future()
            work = (loop, self._lookup, host, port, family)
            threading.Thread(target=_look_up, args=work, name="lookup", daemon=True).start()
        return await asyncio.shield(self._lookup)

    async def close(self) -> None:
        """A lookup under way is left to itself."""


def _look_up(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[list[ResolveResult]],
    host: str,
    port: int,
    family: socket.AddressFamily,
) -> None:
    found: list[ResolveResult] | OSError
    try:
        found = _addresses(host, port, family)
    except OSError as error:
        found = error
    except UnicodeError as error:  # no name of any host
        found = OSError(f"{host[:64]} is no host name: {error}")
    try:
        loop.call_soon_threadsafe(_settle, answer, found)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    results = []
    for kind, _, protocol, _, address in socket.getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    ):
        # The interface of a link-local IPv6 address is the fourth of its parts.
        numeric, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        results.append(
            ResolveResult(
                hostname=host,
                host=numeric,
                port=port,
                family=kind,
                proto=protocol,
                flags=flags,
            )
        )
    return results


def _settle(answer: asyncio.Future[Any], found: list[ResolveResult] | OSError) -> None:
    if isinstance(found, OSError):
        answer.set_exception(found)
        answer.exception()  # maybe nobody waits any more
    else:
        answer.set_result(found)
