"""Attacks on a server of one's own, and what honest callers notice of them.

``python -m tools.attack offers``     so many offers a second that nobody follows up, from another
                                      address, while a call is made every half a second
``python -m tools.attack datagrams``  garbage, empty datagrams and false ClientHellos from strange
                                      ports to the ports of twenty calls, set-up included
``python -m tools.attack message``    one data channel message of twelve megabytes, while others
                                      are on the line

Prints figures, and with ``--write`` puts them into docs/benchmarks.md; the exit status is 1 when a
call was lost, set-up took too long, or frames of other calls went missing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from tools.bot_audio import Mouth, News
from tools.bot_caller import Bot, CallFailed
from tools.bot_report import BotOptions
from tools.page import write
from tools.server import OwnServer, own_server

_PATH = "/v1/realtime/calls"
_GOAL_SECONDS = 1.5
_GONE_SECONDS = 15.0
_CONNECTIONS = 16
"""Of each flooding address."""
_HONEST_INTERVAL_SECONDS = 0.5
_SLOTS = 100
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_LEAST_FRAMES = 0.99
_MESSENGER_SECONDS = 30.0
_NAME = b"\x00\x06\x00\x08abcd:efg"


Say = Callable[[str], None]
"""Takes a line of the report."""


@dataclass
class Flood:
    """What came of the offers of the flood."""

    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0


async def offer() -> bytes:
    """An offer as clients make it."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTrack(Mouth(News()))
    connection.createDataChannel("oai-events")
    await connection.setLocalDescription(await connection.createOffer())
    sdp = connection.localDescription.sdp.encode()
    await connection.close()
    return sdp


async def flood(url: str, rate: float, seconds: float, addresses: list[str]) -> Flood:
    """Offers at ``rate`` a second in all, by raw HTTP: it should cost the attacker little."""
    host, port = url.removeprefix("http://").split(":")
    body = await offer()
    head = (
        f"POST {_PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/sdp\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    result = Flood()
    links = [address for address in addresses for _ in range(_CONNECTIONS)]
    async with asyncio.TaskGroup() as tasks:
        for number, address in enumerate(links):
            tasks.create_task(
                _flood_link(
                    host, int(port), address, head.encode() + body, len(links) / rate,
                    number / rate, seconds, result,
                )
            )  # fmt: skip
    return result


async def _flood_link(
    host: str, port: int, address: str, request: bytes, interval: float, phase: float,
    seconds: float, result: Flood,
) -> None:  # fmt: skip
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(host, port, local_addr=(address, 0))

    async def count() -> None:
        tail = b""
        while data := await reader.read(65_536):
            tail += data
            for status in re.findall(rb"HTTP/1\.1 (\d{3})", tail):
                result.statuses[int(status)] += 1
            tail = tail[-11:] if b"HTTP/1.1" not in tail[-11:] else tail[-8:]

    async with asyncio.TaskGroup() as tasks:
        counting = tasks.create_task(count())
        due = loop.time() + phase
        end = due + seconds
        while due < end:
            await asyncio.sleep(due - loop.time())
            writer.write(request)
            result.sent += 1
            due += interval
        await asyncio.sleep(1.0)  # for the last answers
        counting.cancel()
    writer.close()


async def honest_call(url: str, deadline: float) -> float:
    """Seconds from the offer to the greeting. Raises CallFailed."""
    bot = Bot(BotOptions(url=url))
    try:
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
            try:
                async with asyncio.timeout(deadline):
                    await bot.dial(http, tasks)
            except TimeoutError:
                raise CallFailed(f"no call within {deadline:g} s") from None
            finally:
                await bot.hang_up(http)
                await bot.close()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    assert bot.report.setup_seconds is not None
    return bot.report.setup_seconds


async def attack_by_offers(arguments: argparse.Namespace, say: Say) -> bool:
    """True when honest callers hardly noticed."""
    environment = {"VOICE_RTC_ENGINES": "fake", "VOICE_RTC_POOL__SLOTS": str(_SLOTS)}
    async with own_server(arguments.port, environment) as server:
        addresses = [f"127.0.0.{2 + number}" for number in range(arguments.sources)]
        setups: list[float] = []
        refusals: list[str] = []

        async def call() -> None:
            try:
                setups.append(await honest_call(server.url, 10.0))
            except CallFailed as error:
                refusals.append(str(error))

        async with asyncio.TaskGroup() as tasks:
            flooding = tasks.create_task(
                flood(server.url, arguments.rate, arguments.seconds, addresses)
            )
            while not flooding.done():
                await asyncio.sleep(_HONEST_INTERVAL_SECONDS)
                tasks.create_task(call())
        gone = await _until_idle(server)
        result = flooding.result()
    setups.sort()
    p95 = setups[int(0.95 * len(setups))] if setups else float("inf")
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(result.statuses.items()))
    say(f"offers sent: {result.sent} in {arguments.seconds:.0f} s; answers: {answers}")
    say(f"honest calls: {len(setups)} set up, {len(refusals)} not")
    if setups:
        say(f"set-up: median {setups[len(setups) // 2]:.2f} s, 95 % {p95:.2f} s, "
            f"longest {setups[-1]:.2f} s")  # fmt: skip
    for text, count in Counter(each[:150] for each in refusals).most_common(3):
        say(f"not set up: {count} x {text}")
    say(f"the last abandoned call was gone {gone:.1f} s after the flood")
    return p95 < _GOAL_SECONDS and not refusals and gone <= _GONE_SECONDS + 1


async def _until_idle(server: OwnServer) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(round(_PATIENCE_SECONDS / _LOOK_SECONDS)):
        if not (await server.metrics())["voice_rtc_calls_active"]:
            break
        await asyncio.sleep(_LOOK_SECONDS)
    return loop.time() - began


# ------------------------------------------------------------------------------- datagrams


def garbage(dice: random.Random) -> bytes:
    """One datagram of a stranger."""
    kind = dice.randrange(7)
    if kind == 0:
        return b""
    if kind == 1:  # a ClientHello
        return b"\x16\xfe\xff" + bytes(8) + b"\x00\x4d\x01" + dice.randbytes(80)
    if kind == 2:  # RTP
        return b"\x80\x6f" + dice.randbytes(100)
    if kind == 3:  # RTCP
        return b"\x81\xc9\x00\x07" + dice.randbytes(28)
    if kind == 4:  # a connectivity check of somebody else
        return b"\x00\x01\x00\x0c\x21\x12\xa4\x42" + dice.randbytes(12) + _NAME
    if kind == 5:  # DTLS alert
        return b"\x15\xfe\xfd" + bytes(8) + b"\x00\x02\x02\x28"
    return dice.randbytes(dice.randrange(1, 1200))


@contextmanager
def strangers(count: int) -> Iterator[list[socket.socket]]:
    """UDP sockets on ports that belong to no call."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    try:
        for sock in sockets:
            sock.setblocking(False)
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


async def attack_by_datagrams(arguments: argparse.Namespace, say: Say) -> bool:
    """True when no call was lost."""
    ports = range(arguments.udp_port, arguments.udp_port + arguments.calls)
    environment = {
        "VOICE_RTC_ENGINES": "fake", "VOICE_RTC_POOL__SLOTS": str(_SLOTS),
        "VOICE_RTC_MEDIA__UDP_PORTS": f"{ports[0]}-{ports[-1]}",
    }  # fmt: skip
    dice = random.Random(arguments.seed)
    lost: list[str] = []
    async with own_server(arguments.port, environment) as server, aiohttp.ClientSession() as http:
        bots = [Bot(BotOptions(url=server.url, text="Hello.")) for _ in range(arguments.calls)]
        finished = asyncio.Event()

        async def live(bot: Bot, tasks: asyncio.TaskGroup) -> None:
            """Set up and talk under fire, until the last datagram is sent and one turn longer."""
            try:
                async with asyncio.timeout(arguments.datagrams / arguments.rate + 30):
                    await bot.dial(http, tasks)
                    await bot.converse()
                    await finished.wait()
                    await bot.converse()
            except CallFailed as error:
                lost.append(str(error))
            except TimeoutError:
                lost.append(f"waited in vain for {bot.waits_for}")
            await bot.hang_up(http)
            await bot.close()

        async with asyncio.TaskGroup() as tasks:
            for bot in bots:
                tasks.create_task(live(bot, tasks))
            sent = await _fire(dice, arguments.datagrams, arguments.rate, ports)
            finished.set()
        metrics = await server.metrics()
    say(f"datagrams sent: {sent} in {arguments.datagrams / arguments.rate:.0f} s")
    say(f"rejected by the server: {metrics['voice_rtc_datagrams_rejected_total']:.0f}")
    say(f"calls: {arguments.calls}, lost: {len(lost)}")
    for text, count in Counter(lost).most_common(3):
        say(f"lost: {count} x {text}")
    return not lost


async def _fire(dice: random.Random, count: int, rate: float, ports: range) -> int:
    loop = asyncio.get_running_loop()
    address = own_address()
    began, sent = loop.time(), 0
    with strangers(32) as sockets:
        while sent < count:
            due = min(count, int((loop.time() - began) * rate) + 1)
            while sent < due:
                try:
                    dice.choice(sockets).sendto(garbage(dice), (address, dice.choice(ports)))
                except BlockingIOError:
                    break
                sent += 1
            await asyncio.sleep(0.005)
    return sent


def own_address() -> str:
    """Where this machine's calls listen; nothing is sent for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))
        return str(sock.getsockname()[0])


# --------------------------------------------------------------------------------- message


async def attack_by_message(arguments: argparse.Namespace, say: Say) -> bool:
    """True when the others lost no more than a hundredth of what they sent."""
    environment = {"VOICE_RTC_ENGINES": "fake", "VOICE_RTC_POOL__SLOTS": str(_SLOTS)}
    async with own_server(arguments.port, environment) as server, aiohttp.ClientSession() as http:
        bots = [Bot(BotOptions(url=server.url)) for _ in range(arguments.calls)]
        async with asyncio.TaskGroup() as tasks:
            try:
                for bot in bots:
                    await bot.dial(http, tasks)
                received, sent = await _frames(server, bots)
                took = await _messenger(server.url, arguments.megabytes)
                # Several times the time that the message would hold the loop up.
                await asyncio.sleep(2.0)
                after = await _frames(server, bots)
                active = (await server.metrics())["voice_rtc_calls_active"]
            finally:
                for bot in bots:
                    await bot.hang_up(http)
                    await bot.close()
    # Sent and received are asked for one after the other: a few frames more or less.
    share = min(1.0, (after[0] - received) / (after[1] - sent))
    say(f"the call that sent {arguments.megabytes} MB in one message was ended after {took:.2f} s")
    say(f"calls beside it: {arguments.calls}, on the line afterwards: {active:.0f}; of the frames "
        f"that they sent meanwhile {share:.1%} were received")  # fmt: skip
    return share >= _LEAST_FRAMES and active == arguments.calls


async def _frames(server: OwnServer, bots: list[Bot]) -> tuple[float, int]:
    """Received by the server and sent by the bots, since the start."""
    sent = sum([await bot.packets_sent() for bot in bots])
    return (await server.metrics())["voice_rtc_frames_received_total"], sent


async def _messenger(url: str, megabytes: int) -> float:
    """Send the message from a process of its own; seconds until its call was ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.attack", "messenger", "--url", url,
        "--megabytes", str(megabytes), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip  # reads as the command line that it is
    async with asyncio.timeout(_MESSENGER_SECONDS):
        told, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the messenger failed")
    return float(told)


async def send_message(arguments: argparse.Namespace, _say: Say) -> bool:
    """The messenger: a client without a microphone that ignores what the answer allows."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio")
    channel = connection.createDataChannel("oai-events")
    opened, ended = asyncio.Event(), asyncio.Event()
    channel.on("open", opened.set)
    channel.on("message", lambda text: ended.set() if _ENDED in text else None)
    try:
        await connection.setLocalDescription(await connection.createOffer())
        async with aiohttp.ClientSession() as http:
            headers = {"Content-Type": "application/sdp"}
            sdp = connection.localDescription.sdp
            async with http.post(arguments.url + _PATH, data=sdp, headers=headers) as response:
                response.raise_for_status()
                answer = RTCSessionDescription(await response.text(), "answer")
        await connection.setRemoteDescription(answer)
        await opened.wait()
        assert connection.sctp is not None
        connection.sctp._remote_max_message_size = 0  # noqa: SLF001 - no bound
        began = asyncio.get_running_loop().time()
        channel.send("x" * (arguments.megabytes * 1_000_000))
        await ended.wait()
        print(asyncio.get_running_loop().time() - began)
    finally:
        await connection.close()
    return True


_ENDED = "voice_rtc.call.ended"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    offers = commands.add_parser("offers")
    offers.add_argument("--rate", type=float, default=300.0, help="offers a second")
    offers.add_argument("--seconds", type=float, default=60.0)
    offers.add_argument("--sources", type=int, default=1, help="addresses that they come from")
    datagrams = commands.add_parser("datagrams")
    datagrams.add_argument("--calls", type=int, default=20)
    datagrams.add_argument("--datagrams", type=int, default=100_000)
    datagrams.add_argument("--rate", type=float, default=5000.0, help="datagrams a second")
    datagrams.add_argument("--udp-port", type=int, default=21_000, help="first of the calls' ports")
    datagrams.add_argument("--seed", type=int, default=1)
    message = commands.add_parser("message")
    message.add_argument("--calls", type=int, default=10, help="beside the one that attacks")
    message.add_argument("--megabytes", type=int, default=12)
    for each in (offers, datagrams, message):
        each.add_argument("--port", type=int, default=18_080, help="of the server")
        each.add_argument("--write", action="store_true", help="write into docs/benchmarks.md")
    messenger = commands.add_parser("messenger")
    messenger.add_argument("--url", required=True)
    messenger.add_argument("--megabytes", type=int, default=12)
    return parser.parse_args()


_ATTACKS = {
    "offers": attack_by_offers,
    "datagrams": attack_by_datagrams,
    "message": attack_by_message,
    "messenger": send_message,
}


def main() -> int:
    """Exit status."""
    arguments = _arguments()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    passed = asyncio.run(_ATTACKS[arguments.command](arguments, say))
    if getattr(arguments, "write", False):
        head = f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs."
        write(f"attack_{arguments.command}", "\n".join([head, "", *(f"- {x}" for x in lines)]))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
