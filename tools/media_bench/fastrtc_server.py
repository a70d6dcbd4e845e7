"""FastRTC as a server under test, in an environment of its own."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import numpy as np
from fastrtc import AsyncStreamHandler, Stream

from tools.media_bench.app import Ear, Samples, parser, pieces, run, serve

_RATE_HZ = 24_000
_LISTEN_RATE_HZ = 16_000
_AHEAD_SECONDS = 0.3
_MOST_ECHO_FRAMES = 50


class Handler(AsyncStreamHandler):  # type: ignore[misc]  # the package is not installed here
    """Counts what the caller says; talks all the time, in seconds, as a TTS does, or echoes."""

    def __init__(self, service: FastRtcService, echo: bool, seconds: list[Samples]) -> None:
        super().__init__(
            expected_layout="mono",
            output_sample_rate=_LISTEN_RATE_HZ if echo else _RATE_HZ,
            input_sample_rate=_LISTEN_RATE_HZ,
        )
        self._service = service
        self._echo = echo
        self._seconds = seconds
        self._ear = service.newest
        self._heard: asyncio.Queue[Any] = asyncio.Queue(_MOST_ECHO_FRAMES)
        self._started: float | None = None
        self._said = 0

    def copy(self) -> Handler:
        """Called for each call, at once when its offer is handed over."""
        return Handler(self._service, self._echo, self._seconds)

    async def start_up(self) -> None:
        """Nothing to load."""

    async def shutdown(self) -> None:
        """Nothing to free."""

    async def receive(self, frame: tuple[int, Any]) -> None:
        self._ear.hear(np.asarray(frame[1], np.int16).reshape(-1))
        if self._echo and not self._heard.full():
            self._heard.put_nowait(frame)

    async def emit(self) -> Any:
        if self._echo:
            return await self._heard.get()
        now = time.monotonic()
        if self._started is None:
            self._started = now
        await asyncio.sleep(max(0.0, self._started + self._said - _AHEAD_SECONDS - now))
        second = self._seconds[self._said % len(self._seconds)]
        self._said += 1
        return (_RATE_HZ, second[None, :])


class FastRtcService:
    """Calls of FastRTC's Stream."""

    def __init__(self, echo: bool, seconds: list[Samples]) -> None:
        self.ears: dict[str, Ear] = {}
        self._echo = echo
        self.newest = Ear(_LISTEN_RATE_HZ, onsets=False)
        """Of the call whose offer is being handed over."""
        self._stream = Stream(
            handler=Handler(self, echo, seconds),
            modality="audio",
            mode="send-receive",
            concurrency_limit=1000,
            server_rtc_configuration={"iceServers": []},
            ui_args={},
        )

    async def answer(self, sdp: str) -> tuple[str, str]:
        number = uuid.uuid4().hex
        self.newest = self.ears[number] = Ear(_LISTEN_RATE_HZ, onsets=self._echo)
        body = {"sdp": sdp, "type": "offer", "webrtc_id": number}
        answer = await self._stream.handle_offer(body, self._stream.set_additional_outputs(number))
        return number, answer["sdp"]

    async def close(self) -> None:
        for connection in list(self._stream.pcs.values()):
            await connection.close()

    def asked_since(self, at: float) -> list[list[float]]:
        """Not known."""
        return []

    def extra(self) -> dict[str, Any]:
        return {"calls": len(self._stream.pcs)}


async def _run() -> None:
    arguments = parser().parse_args()
    seconds = pieces(arguments.speech, _RATE_HZ) if arguments.speech else []
    await serve(FastRtcService(arguments.mode == "echo", seconds), arguments.port)


if __name__ == "__main__":
    run(_run())
