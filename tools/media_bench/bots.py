"""Callers that cost next to nothing: real peers whose speech was encoded beforehand.

aiortc does SDP, ICE, DTLS and RTCP as in any client. What is sent goes past its encoder; of what
comes only the header is read, which SRTP leaves in the clear, unless the bot `listens`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import randbits
from typing import Any, cast

import aiohttp
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from numpy.typing import NDArray

from tools.impair import Relay, without_candidates
from tools.media_bench.app import Ear
from voice_rtc.config import LimitSettings
from voice_rtc.core.audio import FRAME_SECONDS, SEND_FRAME_SAMPLES, SEND_RATE_HZ, Pcm, Samples
from voice_rtc.core.buffers import Policy
from voice_rtc.inbox import Inbox
from voice_rtc.media.joint import Joint
from voice_rtc.media.joint_ice import SocketGuard
from voice_rtc.media.opus import Encoder
from voice_rtc.media.rtp_in import InboundRtp
from voice_rtc.media.rtp_out import OutboundRtp
from voice_rtc.metrics import Metrics

_PHASES = 20
"""Bots send in so many groups, a millisecond after one another."""
_CONNECT_SECONDS = 30.0
_CHANNEL = "oai-events"
"""Every caller opens one; FastRTC says nothing without."""
_HEADER = struct.Struct("!BBHII")
_FEC_LOSS_PERCENT = 10
_REFRESH_FRAMES = 20
"""A pause is refreshed every 400 ms, as by libwebrtc."""
_LIMITS = LimitSettings()

Packets = Sequence[bytes | None]
"""Opus packets of 20 ms each, in turn for ever; None: nothing is sent."""


def encoded(samples: Samples) -> list[bytes]:
    """48 kHz speech as a browser's encoder makes packets of it: with in-band FEC."""
    encoder = Encoder(
        SEND_RATE_HZ, application="voip", bitrate=32_000, fec=True,
        expected_loss_percent=_FEC_LOSS_PERCENT,
    )  # fmt: skip
    whole = len(samples) // SEND_FRAME_SAMPLES * SEND_FRAME_SAMPLES
    return [
        encoder.encode(samples[at : at + SEND_FRAME_SAMPLES])
        for at in range(0, whole, SEND_FRAME_SAMPLES)
    ]


def with_pauses(speech: Sequence[bytes], talk_frames: int, pause_frames: int) -> Packets:
    """Speech in spurts, and DTX in between: one frame that announces the pause (RFC 6716 section
    3.1: the table of contents alone), then now and then a frame of background noise."""
    noise = encoded(np.zeros(SEND_FRAME_SAMPLES * (_REFRESH_FRAMES + 1), np.int16))
    cycle: list[bytes | None] = []
    for start in range(0, len(speech) - talk_frames + 1, talk_frames):
        spurt = speech[start : start + talk_frames]
        cycle += spurt
        cycle.append(spurt[-1][:1])
        for number in range(1, pause_frames):
            cycle.append(noise[-1] if number % _REFRESH_FRAMES == 0 else None)
    return cycle


class Pacer:
    """Sends the packets of all bots, each 20 ms after its last, from one timer."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._groups: list[list[Mouth]] = [[] for _ in range(_PHASES)]
        self._started = self._loop.time()
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None
        self.late_seconds: list[float] = []
        """Of each tick, while `keeps`."""
        self.keeps = False

    def add(self, mouth: Mouth) -> None:
        """Send its packets from now on."""
        min(self._groups, key=len).append(mouth)
        if self._timer is None:
            self._tick = round((self._loop.time() - self._started) * 1000)
            self._again()

    def remove(self, mouth: Mouth) -> None:
        """No more. Idempotent."""
        for group in self._groups:
            if mouth in group:
                group.remove(mouth)

    def _again(self) -> None:
        for step in range(1, _PHASES + 1):
            if self._groups[(self._tick + step) % _PHASES]:
                self._tick += step
                due = self._started + self._tick * FRAME_SECONDS / _PHASES
                self._timer = self._loop.call_at(due, self._fire, due)
                return
        self._timer = None

    def _fire(self, due: float) -> None:
        now = self._loop.time()
        if self.keeps:
            self.late_seconds.append(now - due)
        for mouth in self._groups[self._tick % _PHASES]:
            mouth.send_next(now)
        self._again()


class Mouth:
    """Stands where `OutboundRtp` stands in a `Joint`."""

    def __init__(self, packets: Packets, start: int, pacer: Pacer, marked: int | None) -> None:
        """``marked`` is the packet of which the times are kept."""
        self._packets = packets
        self._next = start
        self._pacer = pacer
        self._marked = marked
        self._send: Callable[[bytes], None] | None = None
        self._payload_type = self._ssrc = 0
        self._sequence = randbits(15)
        self._spurt = True
        self.timestamp = randbits(32)
        self.packets = self.bytes = 0
        self.frames = 0
        """Of 20 ms, sent or not."""
        self.marked_at: list[float] = []

    def start(self, send: Callable[[bytes], None], payload_type: int, ssrc: int) -> None:
        self._send, self._payload_type, self._ssrc = send, payload_type, ssrc
        self._pacer.add(self)

    def stop(self) -> None:
        self._send = None
        self._pacer.remove(self)

    def send_next(self, now: float) -> None:
        """The frame that is due."""
        payload = self._packets[self._next]
        if self._next == self._marked:
            self.marked_at.append(now)
        self._next = (self._next + 1) % len(self._packets)
        self.frames += 1
        self.timestamp = (self.timestamp + SEND_FRAME_SAMPLES) & 0xFFFFFFFF
        if payload is None or self._send is None:
            self._spurt = self._spurt or payload is None
            return
        self._sequence = (self._sequence + 1) & 0xFFFF
        second = self._payload_type | (0x80 if self._spurt else 0)
        header = _HEADER.pack(0x80, second, self._sequence, self.timestamp, self._ssrc)
        self._spurt = False
        self.packets += 1
        self.bytes += len(payload)
        self._send(header + payload)


class _Heard(Inbox[Pcm]):
    """Where a bot's decoder puts sound: looked at as it comes, not kept."""

    def __init__(self, ear: Ear) -> None:
        super().__init__(1, Policy.DROP_OLDEST)
        self._ear = ear

    def put(self, item: Pcm) -> bool:
        self._ear.hear(item.samples)
        return True


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What came in one call, in the order of its coming."""

    at: NDArray[np.float64]
    sequence: NDArray[np.int64]
    """Unwrapped."""
    timestamp: NDArray[np.int64]
    """Unwrapped, 48 kHz."""

    @property
    def lost(self) -> int:
        """Packets that are missing between the first and the last."""
        if not len(self.sequence):
            return 0
        span = int(self.sequence.max() - self.sequence.min()) + 1
        return span - len(np.unique(self.sequence))

    def lateness(self) -> NDArray[np.float64]:
        """Seconds that each packet came later than an even grid of 20 ms through the earliest one;
        every talk spurt has a grid of its own."""
        offset = self.at - self.timestamp / SEND_RATE_HZ
        gaps = np.diff(self.timestamp) - SEND_FRAME_SAMPLES * np.diff(self.sequence)
        spurts = np.split(offset, np.nonzero(gaps > 0)[0] + 1)
        return np.concatenate([spurt - spurt.min() for spurt in spurts if len(spurt)] or [offset])


class Bot:
    """One caller."""

    def __init__(
        self, packets: Packets, pacer: Pacer, *,
        start: int = 0, listens: bool = False, marked: int | None = None,
    ) -> None:  # fmt: skip
        """``listens``: what comes is decoded and tones in it are noted in `ear`."""
        self._metrics = Metrics()
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._connected = asyncio.Event()
        self._connection.on("connectionstatechange", self._on_state)
        self._listens = listens
        self.ear = Ear(onsets=True)
        self.mouth = Mouth(packets, start, pacer, marked)
        self.id = ""
        """The server's name of the call."""
        rtp = InboundRtp(_Heard(self.ear), self._metrics, payload_types=frozenset(range(96, 128)))
        transceiver = self._connection.addTransceiver("audio")
        self._joint = Joint(rtp, cast(OutboundRtp, self.mouth), _LIMITS, self._metrics)
        self._joint.attach(transceiver)
        self._connection.createDataChannel(_CHANNEL)
        self._transport: Any = transceiver.receiver.transport
        self.keeps = False
        """Are arrivals noted?"""
        self._kept: list[tuple[float, int, int]] = []
        self._loop = asyncio.get_running_loop()

    async def connect(self, http: aiohttp.ClientSession, relay: Relay | None = None) -> None:
        """Call the server that ``http`` is a session of. Raises TimeoutError."""
        await self._connection.setLocalDescription(await self._connection.createOffer())
        SocketGuard(self._transport, _LIMITS, self._metrics).attach(self._receive)
        offer = self._connection.localDescription.sdp
        if relay is not None:
            offer = without_candidates(offer)
        async with http.post("/calls", json={"sdp": offer}) as response:
            response.raise_for_status()
            body = await response.json()
        self.id, answer = body["id"], body["sdp"]
        if relay is not None:
            answer = await relay.through(answer)
        await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        async with asyncio.timeout(_CONNECT_SECONDS):
            await self._connected.wait()

    async def run(self) -> None:
        """Send receiver reports until the call ends."""
        await self._joint.run()

    async def aclose(self) -> None:
        """Idempotent."""
        self._joint.close()
        await self._connection.close()

    def take(self) -> Arrivals:
        """What was kept; forgets it."""
        kept, self._kept = self._kept, []
        at, sequence, timestamp = zip(*kept, strict=True) if kept else ((), (), ())
        return Arrivals(
            np.array(at, np.float64), _unwrapped(sequence, 16), _unwrapped(timestamp, 32)
        )

    def _receive(self, data: bytes) -> None:
        if self.keeps:
            _, _, sequence, timestamp, _ = _HEADER.unpack_from(data)
            self._kept.append((self._loop.time(), sequence, timestamp))
        if self._listens:
            self._joint.receive_rtp(data)

    def _on_state(self) -> None:
        if self._connection.connectionState == "connected":
            self._connected.set()


def _unwrapped(numbers: Sequence[int], bits: int) -> NDArray[np.int64]:
    whole = np.array(numbers, np.int64)
    if not len(whole):
        return whole
    half, period = 1 << (bits - 1), 1 << bits
    steps = (np.diff(whole) + half) % period - half
    return np.concatenate([whole[:1], whole[0] + np.cumsum(steps)])


@asynccontextmanager
async def crowd(url: str) -> AsyncIterator[Crowd]:
    """Callers of one server; all are closed at the end of the block."""
    async with aiohttp.ClientSession(url) as http, asyncio.TaskGroup() as tasks:
        made = Crowd(http, tasks)
        try:
            yield made
        finally:
            await made.close()


class Crowd:
    """Made by `crowd`."""

    def __init__(self, http: aiohttp.ClientSession, tasks: asyncio.TaskGroup) -> None:
        self.http = http
        self.pacer = Pacer()
        self.bots: list[Bot] = []
        self._tasks = tasks

    async def add(self, bot: Bot, relay: Relay | None = None) -> None:
        """Connect ``bot`` and keep it."""
        self.bots.append(bot)
        await bot.connect(self.http, relay)
        self._tasks.create_task(bot.run())

    async def remove(self, bot: Bot) -> None:
        """It hangs up."""
        self.bots.remove(bot)
        await bot.aclose()

    async def close(self) -> None:
        """All hang up."""
        for bot in list(self.bots):
            await self.remove(bot)
