"""The server under test that is ours: `Peer` alone, without engines, as a process.

``talk``: the caller's audio is counted, the agent speaks all the time or ``--duty`` of it;
``echo``: the caller hears itself; ``record``: what it says is kept. ``--vad`` has the voice
activity detection that a server would choose listen to every call.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from signaling.collector import Collector
from tools.media_bench.app import Ear, parser, pieces, run, serve
from voice_rtc import logs
from voice_rtc.call.listener import Listener
from voice_rtc.config import LogSettings, MediaSettings, Settings
from voice_rtc.core.audio import (
    FRAME_SECONDS,
    SEND_FRAME_SAMPLES,
    SEND_RATE_HZ,
    Pcm,
    Samples,
    silence,
)
from voice_rtc.core.collection import CollectionRules
from voice_rtc.core.vad import GateSettings, SpeechEdge
from voice_rtc.engines.base import VadEngine, VadSession, VadWindow
from voice_rtc.engines.fakes import ScriptedStt
from voice_rtc.media.outbound import FrameSource
from voice_rtc.media.peer import Peer, PeerSettings
from voice_rtc.metrics import Metrics

Mode = Literal["talk", "echo", "record"]
_SPURT_FRAMES = 200
"""4 s of talk, then a pause that makes it the wanted share."""
_MOST_ECHO_FRAMES = 3
"""More would be a delay that stays: the oldest goes."""
_SILENT_SPAN = 60
"""Between the least and the most sample of a frame that an agent would not say."""
_KEPT_TIMES = 3000


class Talk:
    """A frame source that speaks all the time, or a share of it."""

    def __init__(self, frames: Sequence[Samples], start: int, duty: float) -> None:
        self._frames = frames
        self._next = start
        self._pause_seconds = _SPURT_FRAMES * FRAME_SECONDS * (1.0 / duty - 1.0)
        self._silent = False
        self._wake: Callable[[], None] | None = None
        self.times: deque[float] = deque(maxlen=_KEPT_TIMES)
        """When frames were asked for."""

    def next_frame(self) -> Samples | None:
        if self._silent:
            return None
        self.times.append(time.monotonic())
        self._next += 1
        if self._pause_seconds and self._next % _SPURT_FRAMES == 0:
            self._silent = True
            asyncio.get_running_loop().call_later(self._pause_seconds, self._go_on)
        return self._frames[self._next % len(self._frames)]

    def frame_sent(self) -> None:
        """Nothing to note."""

    def on_sound(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def _go_on(self) -> None:
        self._silent = False
        if self._wake is not None:
            self._wake()


class EchoSource:
    """A frame source that says what it was fed, 16 kHz made 48 kHz by straight lines."""

    def __init__(self) -> None:
        self._frames: deque[Samples] = deque(maxlen=_MOST_ECHO_FRAMES)
        self._rest = silence(0)
        self._last = 0
        self._wake: Callable[[], None] | None = None

    def feed(self, samples: Samples) -> None:
        known = np.concatenate([[self._last], samples])
        places = np.arange(1, 3 * len(samples) + 1) / 3.0
        raised = np.interp(places, np.arange(len(known)), known).astype(np.int16)
        self._last = int(samples[-1])
        self._rest = np.concatenate([self._rest, raised])
        while len(self._rest) >= SEND_FRAME_SAMPLES:
            frame = self._rest[:SEND_FRAME_SAMPLES]
            if np.ptp(frame) > _SILENT_SPAN:
                self._frames.append(frame)
            self._rest = self._rest[SEND_FRAME_SAMPLES:]
        if self._wake is not None and self._frames:
            self._wake()

    def next_frame(self) -> Samples | None:
        return self._frames.popleft() if self._frames else None

    def frame_sent(self) -> None:
        """Nothing to note."""

    def on_sound(self, wake: Callable[[], None]) -> None:
        self._wake = wake


class Silent:
    """A frame source that never has anything."""

    def next_frame(self) -> Samples | None:
        return None

    def frame_sent(self) -> None:
        """Nothing to note."""

    def on_sound(self, wake: Callable[[], None]) -> None:
        """There never is any."""


class _Counted:
    """A VAD session that tells the ear how much it was fed."""

    def __init__(self, session: VadSession, ear: Ear) -> None:
        self._session = session
        self._ear = ear

    async def feed(self, pcm: Pcm) -> list[VadWindow]:
        self._ear.samples = pcm.end
        return await self._session.feed(pcm)

    def close(self) -> None:
        self._session.close()


class OwnService:
    """Calls of `Peer`. A call ends when its client closes or with `close`."""

    def __init__(
        self,
        settings: PeerSettings,
        mode: Mode,
        frames: Sequence[Samples],
        tasks: asyncio.TaskGroup,
        *,
        duty: float = 1.0,
        vad: VadEngine | None = None,
    ) -> None:
        self._settings = settings
        self._mode = mode
        self._frames = frames
        self._tasks = tasks
        self._duty = duty
        self._vad = vad
        self._running: dict[str, asyncio.Task[None]] = {}
        self._peers: dict[str, Peer] = {}
        self._talking: list[Talk] = []
        self._count = 0
        self._edges = 0
        self._metrics = Metrics()
        self.collector = Collector(CollectionRules(), self, self._metrics)
        self.ears: dict[str, Ear] = {}

    async def answer(self, sdp: str) -> tuple[str, str]:
        self._count += 1
        number = str(self._count)
        source = self._source()
        peer = Peer(self._settings, source, self._metrics)
        try:
            answer = await peer.answer(sdp)
        except BaseException:
            await peer.aclose()
            raise
        ear = Ear(onsets=self._mode == "echo", record=self._mode == "record")
        self.ears[number] = ear
        self._peers[number] = peer
        self._running[number] = self._tasks.create_task(self._call(number, peer, source, ear))
        return number, answer

    async def close(self) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        self._talking.clear()

    @property
    def active(self) -> int:
        """Calls from offer to end."""
        return len(self._peers)

    @property
    def anybody_hears(self) -> bool:
        """Is a call being sent sound?"""
        return any(peer.is_sending for peer in self._peers.values())

    def extra(self) -> dict[str, Any]:
        value = self._metrics.registry.get_sample_value
        name = "voice_rtc_frames_concealed_total"
        methods = ("fec", "plc", "silence", "clock")
        return {
            "calls": len(self._running),
            "filled": {m: value(name, {"method": m}) or 0.0 for m in methods},
            "edges": self._edges,
        }

    def asked_since(self, at: float) -> list[list[float]]:
        """When frames were asked for since ``at``, of each call that the agent talks in."""
        return [[each for each in talk.times if each >= at] for talk in self._talking]

    def _source(self) -> FrameSource:
        if self._mode == "echo":
            return EchoSource()
        if self._mode == "record":
            return Silent()
        talk = Talk(self._frames, self._count * 37, self._duty)
        self._talking.append(talk)
        return talk

    async def _call(self, number: str, peer: Peer, source: FrameSource, ear: Ear) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                inbound = tasks.create_task(peer.run_inbound())
                listening = tasks.create_task(self._listen(peer, source, ear))
                vanished = tasks.create_task(_vanished(peer))
                lost = tasks.create_task(peer.lost())
                await asyncio.wait((lost, vanished), return_when=asyncio.FIRST_COMPLETED)
                for task in (lost, vanished, inbound):
                    task.cancel()
                listening.cancel()
        finally:
            if isinstance(source, Talk) and source in self._talking:
                self._talking.remove(source)
            self._running.pop(number, None)
            try:
                await peer.aclose()
            finally:
                del self._peers[number]
                self.collector.call_ended()

    async def _listen(self, peer: Peer, source: FrameSource, ear: Ear) -> None:
        if self._vad is not None:
            await self._detect(self._vad, peer, ear)
            return
        async for pcm in peer.inbound:
            ear.hear(pcm.samples)
            if isinstance(source, EchoSource):
                source.feed(pcm.samples)

    async def _detect(self, vad: VadEngine, peer: Peer, ear: Ear) -> None:
        session = _Counted(vad.open(), ear)
        stt = await ScriptedStt().open()  # never begun: what was said is not wanted

        def on_edge(_edge: SpeechEdge) -> None:
            self._edges += 1

        listener = Listener(session, stt, GateSettings())
        try:
            await listener.run(peer.inbound, on_edge)
        finally:
            session.close()
            await stt.aclose()


async def _vanished(peer: Peer) -> None:
    """Watched as in a call."""
    await peer.connected()
    await peer.vanished(lambda _suspended: None)


async def _run() -> None:
    made = parser()
    made.add_argument("--path", choices=("fast", "stock"), default="fast")
    made.add_argument("--duty", type=float, default=1.0)
    made.add_argument("--vad", action="store_true")
    arguments = made.parse_args()
    logs.configure(LogSettings(level="error"))
    settings = Settings()
    peers = PeerSettings(MediaSettings(path=arguments.path), settings.limits, "oai-events")
    frames = pieces(arguments.speech, SEND_RATE_HZ // 50) if arguments.speech else []
    vad = None
    if arguments.vad:
        # Here, because it brings the libraries of all engines, which media alone does without.
        from voice_rtc.engines.catalog import vad_candidates

        vad = vad_candidates(settings)[0].make("benchmark")
        await vad.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            service = OwnService(peers, arguments.mode, frames, tasks, duty=arguments.duty, vad=vad)
            with service.collector.running():  # as our server does
                service.collector.settle()
                await serve(service, arguments.port)
    finally:
        if vad is not None:
            await vad.aclose()


if __name__ == "__main__":
    run(_run())
