"""Broken offers by the thousand, for a server of their own: does any of them hurt it?

``python -m tools.fuzz_offers --offers 10000`` changes a good offer in many ways, sends each, and
prints what was answered and how long the slowest took. The exit status is 1 when an answer was a
server error, or none came, or the slowest took too long. The same seed sends the same offers.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import aiohttp

from tools.attack import offer
from tools.server import own_server

_SLOWEST_GOAL_SECONDS = 0.05
_SHOWN = 400
_REPEATED, _REPEATS = 50, 4
"""So many of the slowest are sent so often again."""
_NUMBERS = ("0", "-1", "65536", "4294967296", str(2**64), "9" * 4000, "1.5", "1e9", "٣", "")
_PIECES = (
    "\x00", "\r", "\n", "\r\n\r\n", "\x0b", "\x85", " ", ":", ";", "=", "/", "m=", "a=", "\ud7ff",
    "\U0001f600", "%s", "a=ice-lite\r\n", "a=setup:passive\r\n", "a=mid:0\r\n", "a=rtcp-mux\r\n",
    "a=group:BUNDLE 0 0 0\r\n", "a=inactive\r\n", "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\n",
    "m=application 9 DTLS/SCTP 5000\r\n", "a=rtcp:9 IN IP4 203.0.113.9\r\n",
    "c=IN IP4 203.0.113.9\r\n", "a=candidate:1 1 udp 1 203.0.113.9 9 typ host\r\n",
    "a=fingerprint:md5 00\r\n", "a=rtpmap:111 opus/48000/2\r\n", "a=ssrc-group:FID 1 2\r\n",
)  # fmt: skip
_FLOODS = (
    "a=candidate:{} 1 udp 2130706431 203.0.113.9 {} typ host\r\n",
    "m=audio 9 UDP/TLS/RTP/SAVPF {}\r\n",
    "m=video {} UDP/TLS/RTP/SAVPF 96\r\n",
    "a=rtpmap:{} opus/48000/2\r\n",
    "a=rtcp-fb:{} nack\r\n",
    "a=fmtp:{} minptime=10\r\n",
    "a=extmap:{} urn:x:{}\r\n",
    "a=ssrc:{} cname:x{}\r\n",
    "a=ssrc-group:FID {} 2\r\n",
    "a=fingerprint:sha-256 {}\r\n",
    "a=group:BUNDLE {}\r\n",
    "a=msid-semantic: WMS {}\r\n",
    "a=mid:{}\r\n",
    "a=x-{}:y\r\n",
)


@dataclass
class Findings:
    """What came of the offers."""

    statuses: Counter[int] = field(default_factory=Counter)
    times: list[tuple[float, str]] = field(default_factory=list)
    """Seconds that each offer took."""
    bad: list[tuple[int, str]] = field(default_factory=list)
    """Status (0: no answer) and offer, where it was a server error."""

    def add(self, status: int, sdp: str, seconds: float) -> None:
        """One answer."""
        self.statuses[status] += 1
        self.times.append((seconds, sdp))
        if status == 0 or (status >= 500 and status != 503):
            self.bad.append((status, sdp))


def mutants(good: str, seed: int) -> Iterator[str]:
    """Offers without end, each with one to four things wrong. ``good`` has lines with CRLF."""
    dice = random.Random(seed)
    kinds: tuple[Callable[[list[str], random.Random], None], ...] = (
        _drop, _drop, _double, _swap, _number, _number, _number, _character, _piece, _piece,
        _rename, _truncate, _value, _flood,
    )  # fmt: skip
    while True:
        lines = good.splitlines(keepends=True)
        for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
            if lines:
                dice.choice(kinds)(lines, dice)
        yield "".join(lines)


def _at(lines: list[str], dice: random.Random) -> int:
    return dice.randrange(len(lines))


def _drop(lines: list[str], dice: random.Random) -> None:
    del lines[_at(lines, dice)]


def _double(lines: list[str], dice: random.Random) -> None:
    lines.insert(_at(lines, dice), lines[_at(lines, dice)])


def _swap(lines: list[str], dice: random.Random) -> None:
    one, other = _at(lines, dice), _at(lines, dice)
    lines[one], lines[other] = lines[other], lines[one]


def _number(lines: list[str], dice: random.Random) -> None:
    with_digits = [number for number, line in enumerate(lines) if re.search(r"\d", line)]
    if with_digits:
        at = dice.choice(with_digits)
        place = dice.choice(list(re.finditer(r"\d+", lines[at])))
        lines[at] = lines[at][: place.start()] + dice.choice(_NUMBERS) + lines[at][place.end() :]


def _character(lines: list[str], dice: random.Random) -> None:
    at = _at(lines, dice)
    place = dice.randrange(len(lines[at]))
    lines[at] = lines[at][:place] + chr(dice.randrange(0xD800)) + lines[at][place + 1 :]


def _piece(lines: list[str], dice: random.Random) -> None:
    at = _at(lines, dice)
    place = dice.choice((0, dice.randrange(len(lines[at]) + 1)))
    lines[at] = lines[at][:place] + dice.choice(_PIECES) + lines[at][place:]


def _rename(lines: list[str], dice: random.Random) -> None:
    at = _at(lines, dice)
    lines[at] = re.sub(r"^(.=)[\w-]*", rf"\1{dice.choice(('', 'mid', 'x'))}", lines[at])


def _truncate(lines: list[str], dice: random.Random) -> None:
    at = _at(lines, dice)
    if dice.random() < 0.5:
        del lines[at:]
    else:
        lines[at] = lines[at][: dice.randrange(len(lines[at]))] + "\r\n"


def _value(lines: list[str], dice: random.Random) -> None:
    at = _at(lines, dice)
    lines[at] = lines[at].split(":")[0].split("=")[0] + "=" + "A" * dice.randrange(3000) + "\r\n"


def _flood(lines: list[str], dice: random.Random) -> None:
    line = dice.choice(_FLOODS)
    most = dice.choice((50, 300, 1000, 8000))
    lines.insert(
        _at(lines, dice) + 1,
        "".join(line.replace("{}", str(number)) for number in range(most)),
    )


async def send(http: aiohttp.ClientSession, sdp: str) -> int:
    """The status of the answer; 0 when there was none."""
    headers = {"Content-Type": "application/sdp"}
    body = sdp.encode("utf-8", "surrogatepass")
    try:
        async with http.post("/v1/realtime/calls", data=body, headers=headers) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return 0


async def fuzz(url: str, good: str, count: int, seed: int) -> Findings:
    """Send ``count`` broken offers, one after the other."""
    findings = Findings()
    offers = mutants(good, seed)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(url, timeout=timeout) as http:
        for _ in range(count):
            sdp = next(offers)
            began = time.perf_counter()
            status = await send(http, sdp)
            findings.add(status, sdp, time.perf_counter() - began)
        await _repeat_slowest(http, findings)
    return findings


async def _repeat_slowest(http: aiohttp.ClientSession, findings: Findings) -> None:
    """A busy machine makes any offer slow once; an offer that is slow is slow again."""
    findings.times.sort()
    slowest, findings.times[-_REPEATED:] = findings.times[-_REPEATED:], []
    for first, sdp in slowest:
        best = first
        for _ in range(_REPEATS):
            began = time.perf_counter()
            await send(http, sdp)
            best = min(best, time.perf_counter() - began)
        findings.times.append((best, sdp))
    findings.times.sort()


async def _run(arguments: argparse.Namespace) -> bool:
    environment = {
        "VOICE_RTC_ENGINES": "fake",
        "VOICE_RTC_POOL__SLOTS": "1000",
        "VOICE_RTC_LIMITS__CONNECTING_CALLS": "1000",
        "VOICE_RTC_LIMITS__CONNECTING_CALLS_PER_ADDRESS": "1000",
        # Many broken offers can be answered; nobody follows them up.
        "VOICE_RTC_MEDIA__CONNECT_DEADLINE_SECONDS": "0.2",
    }
    good = (await offer()).decode()
    async with own_server(arguments.port, environment) as server:
        began = time.perf_counter()
        findings = await fuzz(server.url, good, arguments.offers, arguments.seed)
        seconds = time.perf_counter() - began
    statuses = ", ".join(f"{count} x {code}" for code, count in sorted(findings.statuses.items()))
    print(f"{arguments.offers} offers in {seconds:.0f} s, seed {arguments.seed}: {statuses}")
    slowest, sdp = findings.times[-1]
    median = findings.times[len(findings.times) // 2][0]
    print(f"answers: median {1000 * median:.1f} ms, slowest {1000 * slowest:.1f} ms")
    if arguments.verbose:
        print(f"to {sdp[:_SHOWN]!r}")
    for status, sdp in findings.bad[:5]:
        print(f"answered {status}: {sdp[:_SHOWN]!r}")
    return not findings.bad and slowest < _SLOWEST_GOAL_SECONDS


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--offers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=18_081, help="of the server")
    parser.add_argument("--verbose", action="store_true", help="print the slowest offer")
    return 0 if asyncio.run(_run(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
