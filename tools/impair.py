"""A bad network on one machine: a UDP relay between two peers that loses and delays datagrams.

No root, no kernel module. Used by tests and benchmarks:

    async with impaired(Network(to_server=Impairment(loss=0.05)), seed=1) as relay:
        offer = without_candidates(offer)   # the server must not find another way
        answer = await relay.through(answer)

and in front of a server, so that a browser's call goes through it (the server strips the candidates
of offers, as it does by default):

    python -m tools.impair http://127.0.0.1:8080 --loss 0.05 --jitter 0.03

Which datagrams are hit depends on the seed and on their order alone; each link and each direction
has a dice of its own, so that what comes back does not change what gets lost on the way there.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, cast

import aiohttp
import typer
from aiohttp import web

Address = tuple[str, int]

_CANDIDATE = re.compile(
    r"a=candidate:(?P<head>\S+ 1 udp \d+) (?P<host>[\d.]+) (?P<port>\d+) (?P<tail>typ host.*)",
    re.IGNORECASE,
)
_ANY_CANDIDATE = re.compile(r"\s*a=(?:candidate|end-of-candidates)")
_HOP_BY_HOP = frozenset({"connection", "content-length", "host", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class GilbertElliott:
    """Two states, good and bad (Gilbert 1960, Elliott 1963); it begins in the good one."""

    enter: float
    """Probability with each datagram that a bad time begins."""
    leave: float
    """Probability with each datagram that the bad time ends."""
    loss: float = 1.0
    """Share lost in the bad time."""


@dataclass(frozen=True, slots=True)
class Impairment:
    """What happens to datagrams of one direction. Probabilities are of each datagram."""

    loss: float = 0.0
    """Share that is lost, all in all."""
    burst: int = 1
    """So many are lost in a row; 1: independently."""
    bad_times: GilbertElliott | None = None
    """In place of ``loss`` and ``burst``."""
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    """Added to the delay, evenly between nothing and this; never changes the order."""
    reorder: float = 0.0
    """Held back by `reorder_seconds`, so that later ones overtake."""
    reorder_seconds: float = 0.03
    duplicate: float = 0.0
    """Delivered twice."""
    media_only: bool = False
    """STUN, DTLS and RTCP pass untouched: the call is set up as on a good network."""
    most_waiting: int = 1000
    """Datagrams delayed at once; past it new ones are dropped and counted."""


@dataclass(frozen=True, slots=True)
class Network:
    """Both directions of a path."""

    to_server: Impairment = Impairment()
    to_client: Impairment = Impairment()


@dataclass(slots=True)
class Counts:
    """What was done to the datagrams of one direction, on all links."""

    taken: int = 0
    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    overflowed: int = 0
    """Dropped because too many waited."""
    unrouted: int = 0
    """For a client that has not been heard of yet."""

    def __str__(self) -> str:
        return ", ".join(f"{each.name} {getattr(self, each.name)}" for each in fields(self))


@dataclass(frozen=True, slots=True)
class Fate:
    """What is to happen to one datagram."""

    copies: int
    """0: it is lost."""
    delay_seconds: float
    held_back: bool
    """Later ones may overtake."""


class Dice:
    """Decides the fate of one datagram after the other; the same for the same seed."""

    def __init__(self, impairment: Impairment, seed: str) -> None:
        self._impairment = impairment
        self._random = random.Random(seed)
        self._bad = False
        self._lose = 0
        """More of the burst that is under way."""

    def next(self) -> Fate:
        """The next datagram's."""
        wanted, chance = self._impairment, self._random.random
        if self._is_lost():
            return Fate(0, 0.0, False)
        held = chance() < wanted.reorder
        delay = wanted.delay_seconds + chance() * wanted.jitter_seconds
        copies = 2 if chance() < wanted.duplicate else 1
        return Fate(copies, delay + (wanted.reorder_seconds if held else 0.0), held)

    def _is_lost(self) -> bool:
        wanted, chance = self._impairment, self._random.random
        if (times := wanted.bad_times) is not None:
            self._bad = chance() >= times.leave if self._bad else chance() < times.enter
            return self._bad and chance() < times.loss
        if self._lose:
            self._lose -= 1
            return True
        # Of those outside a burst so many begin one that, with its followers, `loss` are lost.
        begins = wanted.loss / (wanted.loss + wanted.burst * (1.0 - wanted.loss))
        if chance() >= begins:
            return False
        self._lose = wanted.burst - 1
        return True


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, take: Callable[[bytes, Address], None]) -> None:
        self._take = take
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._take(data, addr)

    def error_received(self, exc: Exception) -> None:
        """The other end is gone: as on a real network, what is sent there vanishes."""


async def _bind(end: _Socket, host: str) -> None:
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: end, local_addr=(host, 0))


class _Way:
    """One direction of a link."""

    def __init__(self, impairment: Impairment, seed: str, counts: Counts) -> None:
        self._impairment = impairment
        self._dice = Dice(impairment, seed)
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.TimerHandle] = set()
        self._last_due = 0.0

    def carry(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """Hand ``data`` to ``send``, now, later, twice or never."""
        self._counts.taken += 1
        if self._impairment.media_only and not _is_media(data):
            self._send(data, send)
            return
        fate = self._dice.next()
        if not fate.copies:
            self._counts.lost += 1
            return
        self._counts.reordered += fate.held_back
        self._counts.duplicated += fate.copies - 1
        due = self._loop.time() + fate.delay_seconds
        if not fate.held_back:
            # Later than the one before by a hair: timers of the same moment fire in any order.
            due = self._last_due = max(due, self._last_due + 1e-6)
        for _ in range(fate.copies):
            self._send_at(due, data, send)

    def close(self) -> None:
        for timer in self._waiting:
            timer.cancel()
        self._waiting.clear()

    def _send_at(self, due: float, data: bytes, send: Callable[[bytes], None]) -> None:
        if due <= self._loop.time() and not self._waiting:
            self._send(data, send)
            return
        if len(self._waiting) >= self._impairment.most_waiting:
            self._counts.overflowed += 1
            return

        def fire() -> None:
            self._waiting.discard(timer)
            self._send(data, send)

        timer = self._loop.call_at(due, fire)
        self._waiting.add(timer)

    def _send(self, data: bytes, send: Callable[[bytes], None]) -> None:
        self._counts.sent += 1
        send(data)


class _Link:
    """The way of one 5-tuple: a socket that the client takes for the server, and one that the
    server takes for the client."""

    def __init__(self, server: Address, there: _Way, back: _Way, counts: Counts) -> None:
        self._server = server
        self._there, self._back = there, back
        self._counts = counts
        self._client: Address | None = None
        self._near = _Socket(self._from_client)
        self._far = _Socket(self._from_server)

    async def open(self) -> Address:
        """Where the client is to send to: this machine's address that the server uses."""
        await _bind(self._near, self._server[0])
        await _bind(self._far, self._server[0])
        address: Address = self._near.transport.get_extra_info("sockname")[:2]
        return address

    def close(self) -> None:
        self._there.close()
        self._back.close()
        for end in (self._near, self._far):
            end.transport.close()

    def _from_client(self, data: bytes, addr: Address) -> None:
        if self._client is None:
            self._client = addr
        if addr == self._client:
            self._there.carry(data, self._to_server)

    def _from_server(self, data: bytes, _addr: Address) -> None:
        if self._client is None:
            self._counts.unrouted += 1
        else:
            self._back.carry(data, self._to_client)

    def _to_server(self, data: bytes) -> None:
        self._far.transport.sendto(data, self._server)

    def _to_client(self, data: bytes) -> None:
        self._near.transport.sendto(data, self._client)


@dataclass(slots=True)
class Relay:
    """Links through one kind of bad network. Made by `impaired`."""

    network: Network
    seed: int
    to_server: Counts = field(default_factory=Counts)
    to_client: Counts = field(default_factory=Counts)
    _links: list[_Link] = field(default_factory=list)

    async def through(self, answer: str) -> str:
        """The server's SDP answer with this relay for its only address; opens a link for it.

        Raises LookupError when the answer names no IPv4 host candidate.
        """
        found = next(filter(None, map(_CANDIDATE.match, answer.splitlines())), None)
        if found is None:
            raise LookupError("the answer names no IPv4 host candidate")
        host, port = await self.link((found["host"], int(found["port"])))
        ours = f"a=candidate:{found['head']} {host} {port} {found['tail']}"
        lines = []
        for line in answer.splitlines():
            if line == found[0]:
                lines.append(ours)
            elif not line.startswith("a=candidate:"):
                lines.append(line)
        return "".join(f"{line}\r\n" for line in lines)

    async def link(self, server: Address) -> Address:
        """Open a link to ``server``; where to send to instead."""
        number = len(self._links)
        link = _Link(
            server,
            _Way(self.network.to_server, f"{self.seed}/{number}/to_server", self.to_server),
            _Way(self.network.to_client, f"{self.seed}/{number}/to_client", self.to_client),
            self.to_client,
        )
        address = await link.open()
        self._links.append(link)
        return address

    def close(self) -> None:
        """End all links."""
        for link in self._links:
            link.close()
        self._links.clear()


@asynccontextmanager
async def impaired(network: Network, *, seed: int = 1) -> AsyncIterator[Relay]:
    """A relay that stands within the block."""
    relay = Relay(network, seed)
    try:
        yield relay
    finally:
        relay.close()


def without_candidates(sdp: str) -> str:
    """An offer that tells the server no address."""
    return "".join(f"{line}\r\n" for line in sdp.splitlines() if not _ANY_CANDIDATE.match(line))


def _is_media(data: bytes) -> bool:
    """RTP, not RTCP: RFC 7983 and RFC 5761."""
    return len(data) > 12 and 127 < data[0] < 192 and not 192 <= data[1] <= 208


# --------------------------------------------------------------------------------- command line


async def _serve(server: str, port: int, relay: Relay) -> None:
    """A proxy in front of ``server`` that leads the media of its calls through ``relay``."""
    async with aiohttp.ClientSession(auto_decompress=False) as http:

        async def forward(request: web.Request) -> web.StreamResponse:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
            async with http.request(
                request.method, f"{server}{request.path_qs}", headers=headers,
                data=await request.read(), allow_redirects=False,
            ) as got:  # fmt: skip
                kept = {k: v for k, v in got.headers.items() if k.lower() not in _HOP_BY_HOP}
                if got.content_type == "application/sdp" and got.status < 300:
                    answer = await relay.through(await got.text())
                    return web.Response(status=got.status, headers=kept, text=answer)
                response = web.StreamResponse(status=got.status, headers=kept)
                await response.prepare(request)
                async for piece in got.content.iter_any():
                    await response.write(piece)
                return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            print(f"http://127.0.0.1:{port} is {server} through a bad network")
            while True:
                await asyncio.sleep(5.0)
                print(f"to the server: {relay.to_server}\nto the client: {relay.to_client}")
        finally:
            await runner.cleanup()


Share = Annotated[float, typer.Option(min=0.0, max=1.0)]
Seconds = Annotated[float, typer.Option(min=0.0)]


def main(
    server: Annotated[str, typer.Argument(help="URL of the server.")],
    port: Annotated[int, typer.Option(help="Where this one listens, on 127.0.0.1.")] = 8090,
    loss: Share = 0.0,
    burst: Annotated[int, typer.Option(min=1, help="Lost in a row.")] = 1,
    delay: Seconds = 0.0,
    jitter: Seconds = 0.0,
    reorder: Share = 0.0,
    duplicate: Share = 0.0,
    direction: Annotated[str, typer.Option(help="to-server, to-client or both.")] = "both",
    media_only: Annotated[bool, typer.Option(help="Leave STUN, DTLS and RTCP alone.")] = False,
    seed: int = 1,
) -> None:
    """Put a bad network between clients and a server: open the printed URL instead of its own."""
    bad = Impairment(
        loss=loss, burst=burst, delay_seconds=delay, jitter_seconds=jitter, reorder=reorder,
        duplicate=duplicate, media_only=media_only,
    )  # fmt: skip  # as the options stand above
    if direction not in ("both", "to-server", "to-client"):
        raise typer.BadParameter("to-server, to-client or both", param_hint="--direction")
    network = Network(
        bad if direction != "to-client" else Impairment(),
        bad if direction != "to-server" else Impairment(),
    )

    async def run() -> None:
        async with impaired(network, seed=seed) as relay:
            await _serve(server.rstrip("/"), port, relay)

    asyncio.run(run())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
