"""Where our choice of UDP ports meets aioice, which otherwise takes whatever port the system gives.

As in `joint`, only the methods of one connection are replaced.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import structlog
from aioice import stun, turn
from aioice.candidate import Candidate, candidate_foundation, candidate_priority
from aioice.ice import StunProtocol, server_reflexive_candidate

from voice_rtc.errors import NoMediaPort
from voice_rtc.media.misfit import Misfit, replace_method

log = structlog.get_logger("voice_rtc.media")


class PortRange:
    """The UDP ports of all calls of a server, given out in turn: what is sent to a port whose call
    has just ended does not meet another call."""

    def __init__(self, ports: range) -> None:
        self._ports = ports
        self._next = 0

    def bind(self, address: str) -> socket.socket:
        """A socket on the next free port of ``address``.

        Raises NoMediaPort, or OSError when the address is not this machine's.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, turn.UDP_SOCKET_BUFFER_SIZE)
            if self._bind(sock, address):
                return sock
        except BaseException:
            sock.close()
            raise
        sock.close()
        raise NoMediaPort

    def _bind(self, sock: socket.socket, address: str) -> bool:
        for _ in self._ports:
            port = self._ports[self._next]
            self._next = (self._next + 1) % len(self._ports)
            try:
                sock.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return True
        return False


def use_ports(dtls: Any, ports: PortRange) -> None:
    """Have this transport gather its candidates on ``ports``. Before the answer is set.

    Then gathering raises NoMediaPort when no address has a free port. Raises Misfit.
    """
    connection: Any = getattr(dtls.transport, "_connection", None)
    if not isinstance(getattr(connection, "_protocols", None), list):
        raise Misfit("aioice's connection has no list of protocols")

    async def get_component_candidates(
        component: int, addresses: list[str], timeout: int = 5
    ) -> list[Candidate]:
        protocols = []
        for address in addresses:
            try:
                sock = ports.bind(address)
            except NoMediaPort:
                continue
            except OSError as error:
                log.info("address_not_usable", address=address, error=str(error))
                continue
            protocol = await _listen(connection, sock, component)
            protocols.append(protocol)
            connection._protocols.append(protocol)
        if not protocols:
            raise NoMediaPort
        candidates = [protocol.local_candidate for protocol in protocols]
        if connection.stun_server:
            candidates += await _seen_from_outside(protocols, connection.stun_server, timeout)
        return candidates

    replace_method(connection, "get_component_candidates", get_component_candidates)


async def _listen(connection: Any, sock: socket.socket, component: int) -> StunProtocol:
    protocol = StunProtocol(connection)
    host, port = sock.getsockname()[:2]
    # Before it listens: strangers who know the ports may be quicker than the event loop.
    protocol.local_candidate = Candidate(
        foundation=candidate_foundation("host", "udp", host),
        component=component,
        transport="udp",
        priority=candidate_priority(component, "host"),
        host=host,
        port=port,
        type="host",
    )
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: protocol, sock=sock)
    return protocol


async def _seen_from_outside(
    protocols: list[StunProtocol], server: tuple[str, int], seconds: float
) -> list[Candidate]:
    """Server-reflexive candidates, as many as there are in time."""
    found: list[Candidate] = []
    try:
        async with asyncio.timeout(seconds):
            for protocol in protocols:
                if ":" not in protocol.local_candidate.host:
                    candidate, _ = await server_reflexive_candidate(protocol, server)
                    found.append(candidate)
    except (TimeoutError, stun.TransactionError, OSError) as error:
        log.warning("stun_server_silent", server=f"{server[0]}:{server[1]}", error=str(error))
    return found
