"""What every server under test has in common: signaling, what it heard of whom, and its end.

Imports nothing of voice_rtc: the servers of other projects run in environments of their own, with
aiohttp and numpy.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

Samples = NDArray[np.int16]

_LOUD = 300.0
"""RMS of int16 samples from which on the test tone is heard; Opus' noise lies far below."""
_QUIET_SECONDS = 0.2
"""Of silence before a tone is another one."""


class Ear:
    """What was heard in one call."""

    def __init__(self, rate_hz: int = 16_000, *, onsets: bool, record: bool = False) -> None:
        self._rate_hz = rate_hz
        self._detects = onsets
        self._recorded: list[bytes] | None = [] if record else None
        self._quiet = _QUIET_SECONDS * rate_hz
        self.samples = 0
        self.onsets: list[float] = []
        """CLOCK_MONOTONIC: when a tone came out of the network."""

    def hear(self, samples: Samples) -> bool:
        """More of the caller's audio. True when a tone begins in it."""
        self.samples += len(samples)
        if self._recorded is not None:
            self._recorded.append(samples.tobytes())
        if not self._detects:
            return False
        if np.sqrt(np.mean(np.square(samples, dtype=np.float32))) < _LOUD:
            self._quiet += len(samples)
            return False
        begins = self._quiet >= _QUIET_SECONDS * self._rate_hz
        self._quiet = 0.0
        if begins:
            self.onsets.append(time.monotonic())
        return begins

    @property
    def recorded(self) -> bytes:
        """Everything, int16."""
        return b"".join(self._recorded or [])


class Service(Protocol):
    """A server under test."""

    ears: dict[str, Ear]
    """Call id -> its ear; stays when the call ended."""

    async def answer(self, sdp: str) -> tuple[str, str]:
        """The id of a new call and the SDP answer."""
        ...

    async def close(self) -> None:
        """End all calls."""
        ...

    def extra(self) -> dict[str, Any]:
        """More of its state."""
        ...

    def asked_since(self, at: float) -> list[list[float]]:
        """When frames were asked for, by call; empty where that is not known."""
        ...


def routes(service: Service) -> list[web.RouteDef]:
    """The signaling."""

    async def offer(request: web.Request) -> web.Response:
        body = await request.json()
        number, sdp = await service.answer(body["sdp"])
        return web.json_response({"id": number, "sdp": sdp})

    async def state(_request: web.Request) -> web.Response:
        return web.json_response(
            {
                "at": time.monotonic(),
                "samples": sum(ear.samples for ear in service.ears.values()),
                "tasks": len(asyncio.all_tasks()),
                **service.extra(),
            }
        )

    async def asked(request: web.Request) -> web.Response:
        # Apart from the state: it takes so long that frames are late for it.
        since = float(request.query["since"])
        return web.json_response(service.asked_since(since))

    async def onsets(request: web.Request) -> web.Response:
        return web.json_response(service.ears[request.match_info["id"]].onsets)

    async def pcm(request: web.Request) -> web.Response:
        return web.Response(body=service.ears[request.match_info["id"]].recorded)

    async def close(_request: web.Request) -> web.Response:
        await service.close()
        service.ears.clear()
        gc.collect()
        return web.json_response({})

    return [
        web.post("/calls", offer),
        web.delete("/calls", close),
        web.get("/state", state),
        web.get("/asked", asked),
        web.get("/calls/{id}/onsets", onsets),
        web.get("/calls/{id}/pcm", pcm),
    ]


async def serve(service: Service, port: int) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = web.Application()
    app.add_routes(routes(service))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        gc.collect()
        gc.freeze()  # as a server does that has loaded everything
        await stop.wait()
        await service.close()
    finally:
        await runner.cleanup()


def run(server: Coroutine[Any, Any, None]) -> None:
    """Run a server on uvloop where it is installed, as ours does and as uvicorn does."""
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(server)


def parser() -> argparse.ArgumentParser:
    """Options that all servers under test know."""
    made = argparse.ArgumentParser()
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--mode", choices=("talk", "echo", "record"), default="talk")
    made.add_argument("--speech", type=Path, help="raw int16 mono that the agent says")
    return made


def pieces(path: Path, samples: int) -> list[Samples]:
    """A raw file in pieces of so many samples; what is left over is not said."""
    whole = np.frombuffer(path.read_bytes(), np.int16)
    count = len(whole) // samples
    return list(whole[: count * samples].reshape(count, samples))


async def paced(say: Callable[[int], Any], ahead_seconds: float = 0.3) -> None:
    """Call ``say`` with 0, 1, 2, ... once a second, as much ahead as a voice is made."""
    started = time.monotonic()
    number = 0
    while True:
        await say(number)
        number += 1
        await asyncio.sleep(max(0.0, started + number - ahead_seconds - time.monotonic()))
