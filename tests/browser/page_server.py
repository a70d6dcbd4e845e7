"""A stand-in for the server behind the call page: it says exactly what a test tells it to say.

It serves ``web/`` as the real server does, answers offers with a real aiortc peer, keeps every
message of the page, and fails on request. Nothing happens by itself except ``session.created`` and
the acknowledgement of ``session.update``; a test plays the rest with `RigCall`'s methods.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from aiortc import MediaStreamTrack, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from av import AudioFrame

from voice_rtc.core.audio import rms_dbfs

WEB = Path(__file__).parents[2] / "web"
PATIENCE_SECONDS = 15.0
QUIET_DBFS = -65.0
"""Between what a muted microphone sends and the softest voice."""
_TONE_HZ = 440.0

READY: dict[str, Any] = {
    "status": "ready",
    "detail": "",
    "progress": [],
    "engines": [
        {
            "kind": "vad",
            "name": "silero",
            "model": "v5",
            "reason": "Best detection that runs on every machine.",
            "notes": [],
        },
        {
            "kind": "stt",
            "name": "faster-whisper",
            "model": "base.en",
            "reason": "The weights are on this machine.",
            "notes": ["A GPU would allow the larger, more accurate turbo model."],
        },
        {
            "kind": "llm",
            "name": "openai",
            "model": "gpt-4o-mini",
            "reason": "A service is configured.",
            "notes": [],
        },
        {
            "kind": "tts",
            "name": "kokoro",
            "model": "Kokoro-82M",
            "reason": "Installed, and its weights are there.",
            "notes": ["Voice: af_heart."],
        },
    ],
    "notes": [],
    "calls_active": 0,
    "slots": 8,
    "version": "0.1.0",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """How an offer is refused."""

    status: int
    code: str
    message: str = "said by the server"
    retry_after: int | None = None

    def response(self) -> web.Response:
        """The error as the API words it."""
        error = {"message": self.message, "type": "server_error", "code": self.code}
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return web.json_response({"error": error}, status=self.status, headers=headers)


class Tone(AudioStreamTrack):
    """Silence, or a tone while `sounding`: mono, int16, 8 kHz, paced by aiortc."""

    sounding = False

    def __init__(self) -> None:
        super().__init__()
        self._at = 0

    async def recv(self) -> AudioFrame:
        """The next 20 ms."""
        frame = await super().recv()
        assert isinstance(frame, AudioFrame)
        if self.sounding:
            at = np.arange(self._at, self._at + frame.samples)
            wave = 8000 * np.sin(2 * np.pi * _TONE_HZ * at / frame.sample_rate)
            frame.planes[0].update(wave.astype(np.int16).tobytes())
        self._at += frame.samples
        return frame


class Changes:
    """Lets a test wait for a condition without polling."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Something changed: conditions are looked at again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds. Raises TimeoutError after PATIENCE_SECONDS."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.discard(waiter)


@dataclass(eq=False)
class RigCall:
    """One call of the page. Methods that speak send the events a server would send."""

    id: str
    changes: Changes
    resume: str = ""
    """The token that the page called with."""
    peer: RTCPeerConnection = field(default_factory=RTCPeerConnection)
    tone: Tone = field(default_factory=Tone)
    messages: list[dict[str, Any]] = field(default_factory=list)
    """Every message of the page but heartbeats, oldest first."""
    is_dead: bool = False
    """It answers nothing any more."""
    channel: RTCDataChannel | None = None
    inbound: MediaStreamTrack | None = None
    hung_up: bool = False
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _taken: int = 0

    async def answer(self, offer: str) -> str:
        """Answer the page's offer; returns the SDP answer."""
        self.peer.on("datachannel", self._opened)
        self.peer.on("track", self._heard)
        await self.peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        self.peer.addTrack(self.tone)
        await self.peer.setLocalDescription(await self.peer.createAnswer())
        return self.peer.localDescription.sdp

    def _opened(self, channel: RTCDataChannel) -> None:
        self.channel = channel
        channel.on("message", self._receive)
        self.send("session.created", session={"type": "realtime", "id": self.id})
        self.changes.notify()

    def _heard(self, track: MediaStreamTrack) -> None:
        self.inbound = track

    def _receive(self, text: str) -> None:
        message = json.loads(text)
        if message["type"] == "voice_rtc.heartbeat":
            if not self.is_dead:
                self.send("voice_rtc.heartbeat")
            return
        self.messages.append(message)
        if message["type"] == "session.update":
            self.send("session.updated", session=message["session"])
        self.changes.notify()

    def send(self, kind: str, **fields: Any) -> None:
        """Send one server event."""
        assert self.channel is not None, "the data channel is not open yet"
        self.channel.send(json.dumps({"type": kind, **fields}))

    async def next_messages(self, *kinds: str) -> list[dict[str, Any]]:
        """Wait for exactly these message types, in this order, after those taken before."""
        end = self._taken + len(kinds)
        await self.changes.until(lambda: len(self.messages) >= end)
        messages = self.messages[self._taken : end]
        assert [message["type"] for message in messages] == list(kinds)
        self._taken = end
        return messages

    async def hears(self, *, sound: bool) -> None:
        """Wait for half a second of sound from the page, or of silence.

        Raises TimeoutError when neither comes within PATIENCE_SECONDS.
        """
        assert self.inbound is not None, "the page offered no audio"
        # aiortc keeps what nobody read, in a private queue; only the present counts here.
        queue: asyncio.Queue[object] = getattr(self.inbound, "_queue")  # noqa: B009 - untyped there
        while not queue.empty():
            queue.get_nowait()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await self._loudness(frames=25) > QUIET_DBFS) is not sound:
                pass

    async def _loudness(self, frames: int) -> float:
        assert self.inbound is not None
        heard = []
        for _ in range(frames):
            frame = await self.inbound.recv()
            assert isinstance(frame, AudioFrame)
            heard.append(frame.to_ndarray().ravel())
        return rms_dbfs(np.concatenate(heard))

    # ------------------------------------------------------------------ the story

    def caller_starts(self) -> str:
        """The server hears the caller; returns the item's id."""
        item = f"item_{next(self._ids)}"
        self.send("input_audio_buffer.speech_started", item_id=item, audio_start_ms=0)
        return item

    def caller_partial(self, item: str, text: str) -> None:
        """What the caller's turn sounds like so far."""
        self.send("voice_rtc.transcript.partial", item_id=item, text=text)

    def caller_ends(self, item: str, text: str) -> None:
        """The caller's turn is committed and transcribed."""
        self.send("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=1000)
        self.send("input_audio_buffer.committed", item_id=item)
        content = [{"type": "input_audio", "transcript": None}]
        entry = {"id": item, "type": "message", "role": "user", "content": content}
        self.send("conversation.item.added", item=entry)
        self.send("conversation.item.done", item=entry)
        kind = "conversation.item.input_audio_transcription.completed"
        self.send(kind, item_id=item, transcript=text)

    def caller_says(self, text: str) -> str:
        """A whole turn of the caller; returns the item's id."""
        item = self.caller_starts()
        self.caller_ends(item, text)
        return item

    def caller_types(self, text: str) -> None:
        """The server takes over a typed message."""
        content = [{"type": "input_text", "text": text}]
        item = f"item_{next(self._ids)}"
        entry = {"id": item, "type": "message", "role": "user", "content": content}
        self.send("conversation.item.added", item=entry)
        self.send("conversation.item.done", item=entry)

    def agent_starts(self, text: str) -> str:
        """The agent begins to speak ``text``; returns the item's id."""
        item = f"item_{next(self._ids)}"
        response = f"resp_{item}"
        entry = {"id": item, "type": "message", "role": "assistant", "content": []}
        self.send("response.created", response={"id": response, "status": "in_progress"})
        self.send("response.output_item.added", response_id=response, item=entry)
        self.send("conversation.item.added", item=entry)
        for word in text.split(" "):
            delta = f"{word} "
            self.send("response.output_audio_transcript.delta", item_id=item, delta=delta)
        self.send("output_audio_buffer.started", response_id=response)
        self.tone.sounding = True
        return item

    def agent_ends(self, item: str, text: str, **metrics: float) -> None:
        """The reply was played to its end."""
        self.tone.sounding = False
        self.send("response.output_audio_transcript.done", item_id=item, transcript=text)
        response = {"id": f"resp_{item}", "status": "completed", "status_details": None}
        self.send("response.done", response=response)
        self.send("output_audio_buffer.stopped", response_id=response["id"])
        self.send("voice_rtc.turn.metrics", **metrics)

    def agent_interrupted(self, item: str, heard: str) -> None:
        """The reply was cut after ``heard``."""
        self.tone.sounding = False
        response = {
            "id": f"resp_{item}",
            "status": "cancelled",
            "status_details": {"type": "cancelled", "reason": "turn_detected"},
        }
        self.send("output_audio_buffer.cleared", response_id=response["id"])
        self.send("conversation.item.truncated", item_id=item, content_index=0, audio_end_ms=900)
        self.send(
            "voice_rtc.reply.heard", item_id=item, text=heard, complete=False, audio_end_ms=900
        )
        self.send("response.done", response=response)

    def queue(self, position: int, waiting: int, eta_seconds: float | None, token: str) -> None:
        """The caller stands here in the waiting line now."""
        place = {"position": position, "waiting": waiting, "eta_seconds": eta_seconds}
        self.send("voice_rtc.queue.updated", **place, resume_token=token)

    def grant(self) -> None:
        """The wait is over."""
        self.send("voice_rtc.queue.granted", waited_seconds=1.0)

    def end(self, reason: str) -> None:
        """The server ends the call."""
        self.send("voice_rtc.call.ended", reason=reason, message="said by the server")

    async def vanish(self) -> None:
        """The server goes away without a word."""
        await self.peer.close()


class PageServer:
    """The rig: one HTTP server on a free port of the loopback interface."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.calls: list[RigCall] = []
        self.refusals: deque[Refusal] = deque()
        """The next offers are refused like this, one each."""
        self.readiness: dict[str, Any] = dict(READY)
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        """Listen on ``port``; 0 takes a free one."""
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_static("/static/", WEB)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/v1/realtime/ice", self._ice)
        app.router.add_post("/v1/realtime/calls", self._offer)
        app.router.add_delete("/v1/realtime/calls/{id}", self._hang_up)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop_listening(self) -> None:
        """Go down: the next requests are refused by the operating system. `start` comes back."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def close(self) -> None:
        """Stop listening and end every call."""
        await self.stop_listening()
        for call in self.calls:
            await call.peer.close()

    async def next_call(self, number: int = 1) -> RigCall:
        """The ``number``-th call, once its data channel is open."""

        def open_channel() -> bool:
            return len(self.calls) >= number and self.calls[number - 1].channel is not None

        await self.changes.until(open_channel)
        return self.calls[number - 1]

    async def _index(self, _request: web.Request) -> web.FileResponse:
        return web.FileResponse(WEB / "index.html")

    async def _readyz(self, _request: web.Request) -> web.Response:
        status = 200 if self.readiness["status"] == "ready" else 503
        return web.json_response(self.readiness, status=status)

    async def _ice(self, _request: web.Request) -> web.Response:
        return web.json_response({"ice_servers": [], "ttl_seconds": 3600})

    async def _offer(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/sdp"
        if self.refusals:
            return self.refusals.popleft().response()
        resume = request.query.get("resume", "")
        call = RigCall(f"rtc_{len(self.calls) + 1}", self.changes, resume)
        self.calls.append(call)
        answer = await call.answer(await request.text())
        location = f"/v1/realtime/calls/{call.id}"
        return web.Response(
            status=201, text=answer, content_type="application/sdp", headers={"Location": location}
        )

    async def _hang_up(self, request: web.Request) -> web.Response:
        call = next(call for call in self.calls if call.id == request.match_info["id"])
        call.hung_up = True
        self.changes.notify()
        return web.Response()
