"""Workers end with their server, also when it is killed and they cannot read that it is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

import voice_rtc

SERVER = """
import asyncio, sys
from voice_rtc.engines.process import EngineProcess

async def main():
    process = EngineProcess(sys.argv[1], on_frame=print, on_death=print)
    await process.start()
    print(process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
WORKERS = ["tests.engines.fake_transcriber", "voice_rtc.engines.stt.pocketsphinx_worker"]


def ignores_ctrl_c(pid: int) -> bool:
    """It does once it has begun; its imports come before."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (ignored,) = [line.split()[1] for line in lines if line.startswith("SigIgn")]
    return bool(int(ignored, 16) & 1 << (signal.SIGINT - 1))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("module", WORKERS)
async def test_a_worker_ends_with_a_server_that_is_killed(module: str, stopped: bool) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", SERVER, module),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(voice_rtc.__file__).parent.parent,
        start_new_session=True,
    )
    assert server.stdout is not None
    async with asyncio.timeout(20.0):
        worker = psutil.Process(int(await server.stdout.readline()))
        while not ignores_ctrl_c(worker.pid):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
        if stopped:
            os.kill(worker.pid, signal.SIGSTOP)
        server.kill()
        await server.wait()
        try:
            while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        except psutil.NoSuchProcess:
            return
        finally:
            if worker.is_running():
                worker.kill()
