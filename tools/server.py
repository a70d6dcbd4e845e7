"""A server of one's own for tools: started, watched and ended as a process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

_START_SECONDS = 120.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Resources:
    """What a server and its worker processes hold."""

    memory_mb: float
    """Resident, all processes."""
    threads: int
    processes: int
    tasks: float
    """asyncio tasks of the server, as /metrics tells."""
    leases: float
    cpu_seconds: float
    """User and system, all processes, since their start."""


class OwnServer:
    """A running ``voice-rtc serve``."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url

    async def resources(self) -> Resources:
        """A snapshot."""
        samples = await self.metrics()
        main = psutil.Process(self._process.pid)
        family = [main, *main.children(recursive=True)]
        times = [process.cpu_times() for process in family]
        return Resources(
            memory_mb=sum(process.memory_info().rss for process in family) / 1e6,
            threads=sum(process.num_threads() for process in family),
            processes=len(family),
            tasks=samples["voice_rtc_tasks_active"],
            leases=samples["voice_rtc_leases_active"],
            cpu_seconds=sum(time.user + time.system for time in times),
        )

    async def metrics(self) -> dict[str, float]:
        """/metrics without labels: name -> sum over its labels."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
            totals: dict[str, float] = {}
            for sample in (sample for family in families for sample in family.samples):
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
            return totals


@asynccontextmanager
async def own_server(
    port: int, environment: Mapping[str, str], *arguments: str
) -> AsyncIterator[OwnServer]:
    """Serve on loopback inside a block. Raises RuntimeError when it does not come up."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "voice_rtc", "serve", "--host", "127.0.0.1", "--port", str(port),
        "--log-level", "warning", *arguments, env={**os.environ, **environment},
    )  # fmt: skip  # reads as the command line that it is
    try:
        server = OwnServer(process, f"http://127.0.0.1:{port}")
        await _until_ready(server, process)
        yield server
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _until_ready(server: OwnServer, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_START_SECONDS), aiohttp.ClientSession() as http:
        while process.returncode is None:
            try:
                async with http.get(f"{server.url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass  # it does not listen yet
            await asyncio.sleep(_POLL_SECONDS)
    raise RuntimeError("the server did not start")
