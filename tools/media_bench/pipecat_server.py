"""Pipecat's SmallWebRTC as a server under test, in an environment of its own."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
from loguru import logger
from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame, TTSAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.workers.runner import WorkerRunner

from tools.media_bench.app import Ear, Samples, paced, parser, pieces, run, serve

_RATE_HZ = 24_000
_LISTEN_RATE_HZ = 16_000
_CLOSE_SECONDS = 5.0


class Talk(FrameProcessor):  # type: ignore[misc]  # the package is not installed here
    """Counts what the caller says and talks all the time, in seconds, as a TTS does."""

    def __init__(self, ear: Ear, seconds: list[Samples]) -> None:
        super().__init__()
        self._ear = ear
        self._seconds = seconds

    async def process_frame(self, frame: Any, direction: Any) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._ear.hear(np.frombuffer(frame.audio, np.int16))
            return
        await self.push_frame(frame, direction)

    def begin(self) -> None:
        self.create_task(paced(self._say))

    async def _say(self, number: int) -> None:
        audio = self._seconds[number % len(self._seconds)].tobytes()
        frame = TTSAudioRawFrame(audio=audio, sample_rate=_RATE_HZ, num_channels=1)
        await self.push_frame(frame, FrameDirection.DOWNSTREAM)


class Echo(FrameProcessor):  # type: ignore[misc]
    """Sends back what the caller says."""

    def __init__(self, ear: Ear) -> None:
        super().__init__()
        self._ear = ear

    async def process_frame(self, frame: Any, direction: Any) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._ear.hear(np.frombuffer(frame.audio, np.int16))
            frame = OutputAudioRawFrame(
                audio=frame.audio, sample_rate=frame.sample_rate, num_channels=1
            )
        await self.push_frame(frame, direction)


class PipecatService:
    """Calls of Pipecat: transport in, one processor, transport out."""

    def __init__(self, echo: bool, seconds: list[Samples], tasks: asyncio.TaskGroup) -> None:
        self._echo = echo
        self._seconds = seconds
        self._tasks = tasks
        self._workers: list[Any] = []
        self._count = 0
        self.ears: dict[str, Ear] = {}

    async def answer(self, sdp: str) -> tuple[str, str]:
        self._count += 1
        number = str(self._count)
        connection = SmallWebRTCConnection()
        await connection.initialize(sdp=sdp, type="offer")
        transport = SmallWebRTCTransport(
            connection, TransportParams(audio_in_enabled=True, audio_out_enabled=True)
        )
        ear = self.ears[number] = Ear(_LISTEN_RATE_HZ, onsets=self._echo)
        processor = Echo(ear) if self._echo else Talk(ear, self._seconds)
        worker = PipelineWorker(
            Pipeline([transport.input(), processor, transport.output()]),
            params=PipelineParams(
                audio_in_sample_rate=_LISTEN_RATE_HZ,
                audio_out_sample_rate=_LISTEN_RATE_HZ if self._echo else _RATE_HZ,
            ),
            idle_timeout_secs=None,
        )

        async def connected(_transport: Any, _client: Any) -> None:
            if isinstance(processor, Talk):
                processor.begin()

        transport.add_event_handler("on_client_connected", connected)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        self._tasks.create_task(runner.run())
        self._workers.append(worker)
        return number, connection.get_answer()["sdp"]

    async def close(self) -> None:
        for worker in self._workers:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await worker.cancel()
        self._workers.clear()

    def asked_since(self, at: float) -> list[list[float]]:
        """Not known."""
        return []

    def extra(self) -> dict[str, Any]:
        return {"calls": len(self._workers)}


async def _run() -> None:
    arguments = parser().parse_args()
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    seconds = pieces(arguments.speech, _RATE_HZ) if arguments.speech else []
    async with asyncio.TaskGroup() as tasks:
        service = PipecatService(arguments.mode == "echo", seconds, tasks)
        await serve(service, arguments.port)


if __name__ == "__main__":
    run(_run())
