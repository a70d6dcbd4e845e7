"""coturn, with a shared secret and credentials for a while, on this machine's own address."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from aioice.ice import get_host_addresses
from aioice.stun import Class, Message, Method

TURNSERVER = shutil.which("turnserver", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin")
SECRET = "a secret of the test"
needs_coturn = pytest.mark.skipif(TURNSERVER is None, reason="coturn is missing: `make relay`")


@dataclass(frozen=True, slots=True)
class Relay:
    """A TURN server that runs."""

    host: str
    port: int
    first_port: int
    last_port: int

    @property
    def url(self) -> str:
        return f"turn:{self.host}:{self.port}?transport=udp"


@asynccontextmanager
async def relaying(folder: Path) -> AsyncIterator[Relay]:
    """A TURN server until the end of the block; its files are in ``folder``."""
    assert TURNSERVER is not None
    host = get_host_addresses(use_ipv4=True, use_ipv6=False)[0]
    relay = Relay(host, _free_port(host), 61_000, 61_200)
    process = await asyncio.create_subprocess_exec(
        TURNSERVER, "-n", "--no-cli", "--no-tls", "--no-dtls", "--use-auth-secret",
        f"--static-auth-secret={SECRET}", "--realm=test", f"--listening-ip={host}",
        f"--relay-ip={host}", f"--listening-port={relay.port}", f"--min-port={relay.first_port}",
        f"--max-port={relay.last_port}", "--log-file=stdout", "--simple-log",
        f"--pidfile={folder / 'turn.pid'}", f"--userdb={folder / 'turn.db'}",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    try:
        await _answers(host, relay.port)
        yield relay
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class _Answered(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answered = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.answered.set()


async def _answers(host: str, port: int) -> None:
    """Ask for this socket's address (STUN) until the server says it."""
    loop = asyncio.get_running_loop()
    transport, asked = await loop.create_datagram_endpoint(_Answered, remote_addr=(host, port))
    request = Message(message_method=Method.BINDING, message_class=Class.REQUEST)
    try:
        async with asyncio.timeout(10):
            while not asked.answered.is_set():
                transport.sendto(bytes(request))
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await asked.answered.wait()
    finally:
        transport.close()


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
