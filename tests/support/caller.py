"""A stock aiortc client that speaks the OpenAI Realtime protocol, for loopback tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import aiohttp
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from voice_rtc.core.audio import Samples, silence

Json = dict[str, Any]


class Microphone(MediaStreamTrack):
    """Sends what `say` queued, else silence, 20 ms at a time, paced on absolute time."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._queue: Samples = silence(0)
        self._start: float | None = None
        self._pts = 0
        self.spoken = asyncio.Event()
        self.spoken.set()
        self._sent = asyncio.Event()

    async def frame(self) -> None:
        """Wait until the next frame was sent: 20 ms, whatever the other side sends."""
        await self._sent.wait()

    def say(self, samples: Samples) -> None:
        self._queue = np.concatenate([self._queue, samples])
        self.spoken.clear()

    async def recv(self) -> AudioFrame:
        loop = asyncio.get_running_loop()
        if self._start is None:
            self._start = loop.time()
        due = self._start + self._pts / 48_000
        await asyncio.sleep(max(0.0, due - loop.time()))
        head, self._queue = self._queue[:960], self._queue[960:]
        if not len(self._queue):
            self.spoken.set()
        padded = np.concatenate([head, silence(960 - len(head))])
        frame = AudioFrame.from_ndarray(np.repeat(padded, 2)[None], format="s16", layout="stereo")
        frame.sample_rate = 48_000
        frame.pts = self._pts
        frame.time_base = Fraction(1, 48_000)
        self._pts += 960
        self._sent.set()
        self._sent = asyncio.Event()
        return frame


class Caller:
    """One call. ``events`` has every server event with the loop time of its arrival."""

    def __init__(
        self, base_url: str, http: aiohttp.ClientSession, ice: RTCConfiguration | None = None
    ) -> None:
        self.base_url = base_url
        self.http = http
        self.connection = RTCPeerConnection(ice or RTCConfiguration(iceServers=[]))
        self.microphone = Microphone()
        self.channel: RTCDataChannel = self.connection.createDataChannel("oai-events")
        self.call_id = ""
        self.events: list[tuple[float, Json]] = []
        self.frames: list[tuple[float, Samples]] = []
        """Loop time and 960 mono samples of each received frame."""
        self._news = asyncio.Event()
        self._sound = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self.connected = asyncio.Event()
        self.channel_closed = asyncio.Event()
        self.channel.on("message", self._on_message)
        self.channel.on("close", self.channel_closed.set)
        self.connection.on("track", self._on_track)
        self.connection.on("connectionstatechange", self._on_state)

    async def dial(
        self, tasks: asyncio.TaskGroup, session: Json | None = None, resume: str = ""
    ) -> None:
        """Offer, answer, connect, and wait for session.created."""
        self._tasks = tasks
        self.connection.addTrack(self.microphone)
        await self.connection.setLocalDescription(await self.connection.createOffer())
        body = {"sdp": self.connection.localDescription.sdp, "session": session}
        url = f"{self.base_url}/v1/realtime/calls"
        query = {"resume": resume} if resume else None
        async with self.http.post(url, json=body, params=query) as response:
            assert response.status == 201, await response.text()
            self.call_id = response.headers["Location"].rsplit("/", 1)[-1]
            answer = await response.text()
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await self.connected.wait()
        await self.event("session.created")

    def send(self, **event: Any) -> None:
        self.channel.send(json.dumps(event))

    def types(self) -> list[str]:
        return [event["type"] for _, event in self.events]

    async def event(
        self, kind: str, where: Callable[[Json], bool] = lambda _event: True, after: int = 0
    ) -> Json:
        """The first event of ``kind`` at or behind index ``after``, waited for."""
        while True:
            for _, event in self.events[after:]:
                if event["type"] == kind and where(event):
                    return event
            await self._news.wait()

    async def frame(self) -> None:
        """Wait for the next received frame."""
        await self._sound.wait()

    async def say(self, samples: Samples) -> None:
        """Speak 48 kHz samples to their end."""
        self.microphone.say(samples)
        await self.microphone.spoken.wait()

    async def hang_up(self) -> None:
        async with self.http.delete(
            f"{self.base_url}/v1/realtime/calls/{self.call_id}"
        ) as response:
            assert response.status == 200

    def audio(self) -> Samples:
        """Everything received, 48 kHz mono."""
        return np.concatenate([samples for _, samples in self.frames] or [silence(0)])

    async def aclose(self) -> None:
        await self.connection.close()

    def _on_state(self) -> None:
        if self.connection.connectionState == "connected":
            self.connected.set()

    def _on_message(self, text: str) -> None:
        self.events.append((asyncio.get_running_loop().time(), json.loads(text)))
        self._news.set()
        self._news = asyncio.Event()

    def _on_track(self, track: MediaStreamTrack) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, AudioFrame)
            samples = frame.to_ndarray().reshape(-1)[::2]
            self.frames.append((asyncio.get_running_loop().time(), samples))
            self._sound.set()
            self._sound = asyncio.Event()


@asynccontextmanager
async def calling(
    base_url: str,
    session: Json | None = None,
    *,
    resume: str = "",
    address: str | None = None,
    ice: RTCConfiguration | None = None,
) -> AsyncIterator[Caller]:
    """A connected caller; closed, not hung up, at the end of the block.

    ``resume`` is the token of a place in the line, ``address`` where the offer comes from, ``ice``
    says how to get through.
    """
    connector = aiohttp.TCPConnector(local_addr=(address, 0) if address else None)
    async with aiohttp.ClientSession(connector=connector) as http:
        caller = Caller(base_url, http, ice)
        try:
            async with asyncio.TaskGroup() as tasks:
                await caller.dial(tasks, session, resume)
                yield caller
                await caller.aclose()
        finally:
            await caller.aclose()
