"""Fetches weights in a process of its own, since the hub client reads HF_ENDPOINT at import.

Prints the files, then the last percentage that was told, then whether the cache has them now.
"""

from __future__ import annotations

import asyncio
import os
import sys

from voice_rtc.engines.hub import DownloadProgress, Weights, cached, fetch
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineUnavailable

WEIGHTS = Weights("test/model", ("*.json", "model.bin"), ("config.json", "model.bin"))


async def main() -> None:
    worker, progress = EngineWorker("download"), DownloadProgress()
    told: list[int] = []
    progress.tell = told.append
    try:
        folder = await fetch(WEIGHTS, worker, progress)
    except EngineUnavailable as error:
        sys.exit(str(error))
    finally:
        await worker.aclose()
    again = cached(WEIGHTS) == folder
    files = ",".join(sorted(path.name for path in folder.iterdir()))
    os.write(1, f"{files}\n{told[-1:]}\n{again}\n".encode())


if __name__ == "__main__":
    asyncio.run(main())
