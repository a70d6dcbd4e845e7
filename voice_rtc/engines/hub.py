"""Model weights: found in a directory or in the hub cache, else downloaded from the hub.

Weights are looked for before anything is loaded: the loaders of the libraries themselves go to the
network on their own and then take half a minute, or for ever, to find out that there is none.
The hub client's own environment variables hold: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and
proxies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineUnavailable

_log = structlog.get_logger("voice_rtc.engines")
_PROBE_SECONDS = 3.0
_PERCENT_STEP = 10


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model needs from a hub repository."""

    repository: str
    """``owner/name``."""
    patterns: tuple[str, ...]
    """Glob patterns of the files to fetch."""
    required: tuple[str, ...]
    """Files without which the snapshot is of no use."""

    def missing_in(self, folder: Path) -> list[str]:
        """Required files that ``folder`` lacks."""
        return [name for name in self.required if not (folder / name).is_file()]


class DownloadProgress:
    """How far a download is; written by the hub's threads, read by anyone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = 0.0
        self._total = 0.0
        self._told = -_PERCENT_STEP
        self._cancelled = False
        self.name = ""
        self.tell: Callable[[int], object] | None = None
        """Called with each tenth percent, from a thread of the hub client."""

    @property
    def percent(self) -> int | None:
        """0 to 100, None while the size is unknown or nothing is downloaded."""
        return int(100 * min(1.0, self._done / self._total)) if self._total else None

    def cancel(self) -> None:
        """Make the download fail at its next step: its threads cannot be stopped otherwise."""
        self._cancelled = True

    def update(self, done: float, total: float) -> None:
        """From the download: bytes so far and in all, as far as known."""
        if self._cancelled:
            raise DownloadCancelled
        with self._lock:
            self._done, self._total = done, total
            percent = self.percent
            if percent is None or percent < self._told + _PERCENT_STEP:
                return
            self._told = percent - percent % _PERCENT_STEP
        _log.info("model_download", model=self.name, percent=percent)
        if self.tell is not None:
            self.tell(percent)


class DownloadCancelled(Exception):  # raised through the hub client's code
    """The download is not wanted any more."""


def cached(weights: Weights) -> Path | None:
    """The snapshot in the hub cache, None when it is not there or not whole. No network."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = huggingface_hub.snapshot_download(
            weights.repository, allow_patterns=list(weights.patterns), local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(found)
    return None if weights.missing_in(folder) else folder


async def why_unreachable(worker: EngineWorker) -> str:
    """Why the hub cannot be asked, found out within seconds; "" when it answers."""
    return await worker.run(probe)


async def fetch(weights: Weights, worker: EngineWorker, progress: DownloadProgress) -> Path:
    """The snapshot's folder: from the cache, else downloaded. Cancelling stops the download.

    Raises:
        EngineUnavailable: not cached and the hub cannot be reached or has no such model.
    """
    folder = await worker.run(cached, weights)
    if folder is not None:
        return folder
    if why := await why_unreachable(worker):
        raise EngineUnavailable(f"{weights.repository} is not in the hub cache and {why}")
    try:
        return await worker.run(_download, weights, progress)
    finally:
        progress.cancel()


def cache_folder() -> str:
    """Where the hub client keeps what it downloads."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def probe() -> str:
    """`why_unreachable`, blocking for at most some seconds."""
    import httpx2
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub"
    try:
        # Not the hub client's session: it retries with growing pauses.
        httpx2.head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return ""


def _download(weights: Weights, progress: DownloadProgress) -> Path:
    import httpx2
    import huggingface_hub

    progress.name = weights.repository
    _log.info("model_download_started", model=weights.repository)
    try:
        found = huggingface_hub.snapshot_download(
            weights.repository,
            allow_patterns=list(weights.patterns),
            tqdm_class=_bar_class(progress),
        )
    except (httpx2.HTTPError, OSError, ValueError, DownloadCancelled) as error:
        why = str(error).split("\n")[0]
        raise EngineUnavailable(f"{weights.repository} cannot be downloaded: {why}") from error
    _log.info("model_downloaded", model=weights.repository)
    folder = Path(found)
    _require(weights, folder)
    return folder


def _require(weights: Weights, folder: Path) -> None:
    if missing := weights.missing_in(folder):
        raise EngineUnavailable(f"{weights.repository} lacks {', '.join(missing)}")


def local_folder(name: str, required: Sequence[str]) -> Path | None:
    """``name`` as a directory with all ``required`` files; None when it is no directory.

    Raises:
        EngineUnavailable: it is a directory, but files are missing.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith(("/", "./", "../", "~")):
            raise EngineUnavailable(f"there is no directory {name}")
        return None
    missing = [file for file in required if not (folder / file).is_file()]
    if missing:
        raise EngineUnavailable(f"the model directory {name} lacks {', '.join(missing)}")
    return folder


def _bar_class(progress: DownloadProgress) -> Any:
    """A tqdm that draws nothing and tells ``progress``; the hub client wants a class."""
    from tqdm import tqdm  # type: ignore[import-untyped] # no stubs among our dependencies

    class Bar(tqdm):  # type: ignore[misc] # untyped base, see above
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of the bars that the hub client makes, this one counts bytes written to disk.
            self.counts_bytes = "Reconstructing" in str(kwargs.get("desc"))
            self.bytes_so_far = 0.0
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            if self.counts_bytes:
                self.bytes_so_far += n or 0
                progress.update(self.bytes_so_far, self.total or 0)

    return Bar
