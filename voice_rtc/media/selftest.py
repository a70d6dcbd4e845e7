"""Which way audio takes here: past aiortc where that was seen to work, else by its stock tracks.

The joint (`media/joint.py`) touches private names, so it is tried with real media when the server
starts: a `Peer` on the fast path answers a stock aiortc client over this machine's own addresses.

    connect   offer, answer, ICE and DTLS
    stranger  datagrams from an address that passed no connectivity check are dropped
    in        a tone that the client sends comes out of `Peer.inbound`, as loud as it was
    out       a tone of a `FrameSource` is heard by the client
    reports   our RTCP reports reach the client and count what was sent

The time is bounded. What a stage waited for in vain is the reason that operators are told. An
exception out of `voice_rtc.media` in a callback of the loop is one too, and ends the test at once.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import structlog
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from voice_rtc.config import LimitSettings, MediaSettings
from voice_rtc.core.audio import (
    FRAME_SECONDS,
    LISTEN_RATE_HZ,
    SEND_FRAME_SAMPLES,
    SEND_RATE_HZ,
    Samples,
    rms_dbfs,
)
from voice_rtc.errors import MediaPathUnusable
from voice_rtc.media.joint import why_not
from voice_rtc.media.peer import Peer, PeerSettings
from voice_rtc.metrics import Metrics

log = structlog.get_logger("voice_rtc.media")

_IN_HZ, _OUT_HZ = 500, 1000
"""Different, so that nothing that hears itself passes; whole periods in 20 ms."""
_PEAK = 0.3
_LEVEL_DBFS = 20 * math.log10(_PEAK / math.sqrt(2))
_TOLERANCE_DB = 6.0
_LEAST_PURITY = 0.8
"""Share of the energy that is the tone's."""
_HEARD_FRAMES = 10
_LOOK_SECONDS = 0.05
_CLOSING_SECONDS = 1.0
_CANDIDATE = re.compile(r"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", re.IGNORECASE)
_STRANGERS = (b"", b"\x16\xfe\xff" + bytes(40), b"\x80\x60" + bytes(40))
"""Nothing, what looks like DTLS, what looks like RTP."""


@dataclass(frozen=True, slots=True)
class MediaPath:
    """Which way audio takes in this process."""

    path: Literal["fast", "stock"]
    reason: str = ""
    """Why it is the stock way although the fast one was wanted; else empty."""


PathChooser = Callable[[MediaSettings, LimitSettings], Awaitable[MediaPath]]
"""`tested_path`, or `path_by_version`, which tries nothing."""


async def tested_path(media: MediaSettings, limits: LimitSettings) -> MediaPath:
    """Fast where it is wanted and was seen to work just now. Raises MediaPathUnusable."""
    chosen = await path_by_version(media, limits)
    if chosen.path == "stock":
        return chosen
    reason = await self_test(limits, media.self_test_seconds)
    return _without_fast(media, f"the self-test failed: {reason}") if reason else chosen


async def path_by_version(media: MediaSettings, _limits: LimitSettings) -> MediaPath:
    """Fast where it is wanted and the versions are the pinned ones. Raises MediaPathUnusable."""
    if media.path == "stock":
        return MediaPath("stock")
    reason = why_not()
    return _without_fast(media, reason) if reason else MediaPath("fast")


def _without_fast(media: MediaSettings, reason: str) -> MediaPath:
    if media.path == "fast":
        raise MediaPathUnusable(
            f"media.path is fast, but {reason}; with media.path = auto the server starts on the "
            "stock tracks"
        )
    return MediaPath("stock", reason)


async def self_test(limits: LimitSettings, seconds: float) -> str:
    """Why the fast path does not carry real media here; empty: it does.

    Takes ``seconds`` at most, and a little to hang up; twice that when time is what it lacked, as
    on a machine that is busy starting other things. Counts in no metric of the server.
    """
    reason, timed_out = await _tried(limits, seconds)
    if timed_out:
        log.warning("media_self_test_again", reason=reason)
        reason, _ = await _tried(limits, seconds)
    return reason


async def _tried(limits: LimitSettings, seconds: float) -> tuple[str, bool]:
    """Why it failed, and whether it ran out of time."""
    with _faults() as faults:
        test = _SelfTest(limits, faults)
        reason = await test.run(seconds)
        closing = await test.aclose()
        return reason or closing, test.timed_out


class _Unfit(Exception):
    """What does not work; ``str(error)`` says it."""


class _SelfTest:
    """One call. `run`, then `aclose` whatever came of it."""

    def __init__(self, limits: LimitSettings, faults: _Faults) -> None:
        self._faults = faults
        self._metrics = Metrics()
        # No STUN server is asked: the call does not leave this machine.
        settings = PeerSettings(MediaSettings(path="fast"), limits, "self-test")
        self._peer = Peer(settings, _ToneSource(), self._metrics)
        self._client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.timed_out = False
        self._missing: Callable[[], str] = lambda: "nothing happened"
        """What did not come, in words, asked for when the time is over."""

    async def run(self, seconds: float) -> str:
        """All stages; empty, or why one failed."""
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._faults.raised(), name="self-test-faults")
                await self._connect()
                hearing = tasks.create_task(self._peer.run_inbound(), name="self-test-inbound")
                await self._refuse_strangers()
                await self._hear()
                await self._be_heard()
                await self._report()
                watching.cancel()
                hearing.cancel()
        except TimeoutError:
            self.timed_out = True
            return f"{self._missing()} within {seconds:g} s"
        # Another aiortc fails in any way at all: that is the question here.
        except Exception as error:  # noqa: BLE001
            return _in_words(error)
        return ""

    async def aclose(self) -> str:
        """End the call; empty, or why it does not end."""
        problem = ""
        for close in (self._client.close, self._peer.aclose):
            try:
                async with asyncio.timeout(_CLOSING_SECONDS):
                    await close()
            except Exception as error:  # noqa: BLE001 - as above
                problem = f"the connection does not close: {_in_words(error)}"
        return problem

    async def _connect(self) -> None:
        client, peer = self._client, self._peer
        self._missing = lambda: "no offer and answer were made"
        client.addTrack(_ToneTrack())
        await client.setLocalDescription(await client.createOffer())
        if not _addresses(client.localDescription.sdp):
            raise _Unfit(
                "this machine has no address that WebRTC media can use: only loopback, or UDP "
                "sockets are not allowed"
            )
        answer = await peer.answer(client.localDescription.sdp)
        if peer.path != "fast":
            raise _Unfit("the call took the stock way")
        await client.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        hosts = ", ".join(host for host, _ in _addresses(answer))
        self._missing = lambda: (
            f"no connection over UDP between this machine's own addresses ({hosts}) came about"
        )
        await peer.connected()

    async def _refuse_strangers(self) -> None:
        for host, port in _addresses(self._client.remoteDescription.sdp):
            with socket.socket(_family(host), socket.SOCK_DGRAM) as stranger:
                stranger.setblocking(False)
                for datagram in _STRANGERS:
                    stranger.sendto(datagram, (host, port))
        self._missing = lambda: (
            "datagrams of a stranger were not seen and dropped (SocketGuard.datagram_received)"
        )
        while True:
            if self._rejected("stranger") > 1 and self._rejected("empty"):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _hear(self) -> None:
        ear = _Ear(_IN_HZ, LISTEN_RATE_HZ)
        self._missing = lambda: (
            f"a tone that was sent to the server did not come in (InboundRtp: "
            f"{self._peer.frames_received} frames decoded{self._refused()}; {ear})"
        )
        while not ear.hears((await self._peer.inbound.get()).samples):
            pass

    async def _be_heard(self) -> None:
        ear = _Ear(_OUT_HZ, SEND_RATE_HZ)
        self._missing = lambda: (
            f"a tone that the server plays did not go out (OutboundRtp: "
            f"{self._count('frames_sent_total'):.0f} frames sent; {ear})"
        )
        track = self._client.getReceivers()[0].track
        while not ear.hears(_left(await track.recv())):
            pass

    async def _report(self) -> None:
        said: dict[str, int] = {}
        self._missing = lambda: f"no true RTCP reports of the server came ({said or 'none'})"
        while not _are_true(said):
            await asyncio.sleep(_LOOK_SECONDS)
            said.update(_reported(await self._client.getStats()))

    def _rejected(self, reason: str) -> float:
        return self._count("datagrams_rejected_total", reason=reason)

    def _refused(self) -> str:
        reasons = ("srtp", "not_rtp", "payload_type", "rate", "ssrc", "not_opus")
        counts = {each: self._count("rtp_packets_rejected_total", reason=each) for each in reasons}
        return "".join(
            f", {count:.0f} refused as {each}" for each, count in counts.items() if count
        )

    def _count(self, name: str, **labels: str) -> float:
        return self._metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0


class _Ear:
    """Listens for a tone."""

    def __init__(self, hz: int, rate_hz: int) -> None:
        self._hz, self._rate_hz = hz, rate_hz
        self._samples: Samples = np.zeros(0, np.int16)
        self._level, self._purity = -100.0, 0.0

    def hears(self, samples: Samples) -> bool:
        """Is it heard by now? Once it was so for 200 ms without a break."""
        length = round(_HEARD_FRAMES * FRAME_SECONDS * self._rate_hz)
        self._samples = np.concatenate([self._samples, samples])[-length:]
        self._level = rms_dbfs(self._samples)
        self._purity = _purity(self._samples, self._hz, self._rate_hz)
        return (
            len(self._samples) == length
            and abs(self._level - _LEVEL_DBFS) < _TOLERANCE_DB
            and self._purity > _LEAST_PURITY
        )

    def __str__(self) -> str:
        return f"{self._level:.0f} dBFS, {self._purity:.0%} of it at {self._hz} Hz"


class _ToneSource:
    """What the server plays."""

    def __init__(self) -> None:
        self._frame = _tone_frame(_OUT_HZ)

    def next_frame(self) -> Samples | None:
        """As `FrameSource`."""
        return self._frame

    def frame_sent(self) -> None:
        """As `FrameSource`."""

    def on_sound(self, wake: Callable[[], None]) -> None:
        """As `FrameSource`; there always is some."""


class _ToneTrack(MediaStreamTrack):
    """What the client says."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._plane = np.repeat(_tone_frame(_IN_HZ), 2).reshape(1, -1)
        self._pts = 0
        self._started = asyncio.get_running_loop().time()

    async def recv(self) -> AudioFrame:
        """20 ms, when they are due."""
        if self.readyState != "live":
            raise MediaStreamError
        due = self._started + self._pts / SEND_RATE_HZ
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        frame = AudioFrame.from_ndarray(self._plane, format="s16", layout="stereo")
        frame.sample_rate, frame.pts = SEND_RATE_HZ, self._pts
        frame.time_base = Fraction(1, SEND_RATE_HZ)
        self._pts += SEND_FRAME_SAMPLES
        return frame


class _Faults:
    """Exceptions that came out of our media code in callbacks of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._first: asyncio.Future[BaseException] = loop.create_future()

    def take(self, error: BaseException) -> None:
        """The first is the reason; those that follow are the same again."""
        if not self._first.done():
            self._first.set_result(error)

    async def raised(self) -> None:
        """Wait for one, and raise it."""
        raise await self._first


@contextmanager
def _faults() -> Iterator[_Faults]:
    """Exceptions of `voice_rtc.media` in callbacks of the running loop; others go their way."""
    loop = asyncio.get_running_loop()
    faults, before = _Faults(loop), loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and _is_of_media(error):
            faults.take(error)
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
    try:
        yield faults
    finally:
        loop.set_exception_handler(before)


def _is_of_media(error: BaseException) -> bool:
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(f.f_globals.get("__name__", "").startswith("voice_rtc.media.") for f in frames)


def _in_words(error: BaseException) -> str:
    """An exception as a reason: the innermost one, and where it came from."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, _Unfit):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{where}: {error}"


def _addresses(sdp: str) -> list[tuple[str, int]]:
    """Host candidates of a description."""
    return [(found[1], int(found[2])) for found in _CANDIDATE.finditer(sdp)]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _reported(stats: dict[str, Any]) -> dict[str, int]:
    """What our reports say, and what came."""
    said = {}
    for each in stats.values():
        if each.type == "remote-outbound-rtp":
            said["sent"], said["bytes"] = each.packetsSent, each.bytesSent
        elif each.type == "remote-inbound-rtp":
            said["lost"] = each.packetsLost
        elif each.type == "inbound-rtp":
            said["received"] = each.packetsReceived
        elif each.type == "outbound-rtp":
            said["said"] = each.packetsSent
    return said


def _are_true(said: dict[str, int]) -> bool:
    """A sender report of about what came, a receiver report without losses to speak of.

    Roughly: both are older than the counts that they are compared with.
    """
    if not said.keys() >= {"sent", "bytes", "lost", "received", "said"}:
        return False
    sent, lost = said["sent"], said["lost"]
    about_right = said["received"] / 2 <= sent <= 2 * said["received"]
    return about_right and said["bytes"] > sent > 0 and abs(lost) <= said["said"] / 2


def _tone_frame(hz: int) -> Samples:
    times = np.arange(SEND_FRAME_SAMPLES) / SEND_RATE_HZ
    return np.rint(_PEAK * 32767 * np.sin(2 * np.pi * hz * times)).astype(np.int16)


def _purity(samples: Samples, hz: int, rate_hz: int) -> float:
    """Share of the energy at ``hz``, 0.0 to 1.0: one bin of a Fourier transform."""
    signal = samples.astype(np.float64)
    energy = float(np.dot(signal, signal)) * len(signal) / 2
    turns = np.exp(-2j * np.pi * hz / rate_hz * np.arange(len(signal)))
    return float(abs(np.dot(signal, turns)) ** 2) / energy if energy else 0.0


def _left(frame: Any) -> Samples:
    """The left channel of what aiortc decoded: packed stereo."""
    samples: Samples = frame.to_ndarray().reshape(-1)[::2]
    return samples
