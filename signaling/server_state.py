"""What request handlers share: settings, the registry, metrics, and how far the server is."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from aiohttp import web

from voice_rtc import __version__
from voice_rtc.call.registry import CallRegistry
from voice_rtc.config import Settings
from voice_rtc.engines.base import EngineSet
from voice_rtc.media.selftest import MediaPath
from voice_rtc.metrics import Metrics

_PROGRESS_LINES = 20


@dataclass(slots=True)
class ServerState:
    """How far the server is, as /readyz tells it."""

    status: Literal["loading", "ready", "failed"] = "loading"
    detail: str = "The speech engines are loading."
    progress: list[str] = field(default_factory=list)
    engines: EngineSet | None = None
    media: MediaPath | None = None
    """Which way audio takes; None until that is known."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when loading is over, well or not."""

    def report(self, line: str) -> None:
        """Note one line of progress; the newest are kept."""
        self.progress = [*self.progress[-_PROGRESS_LINES:], line]

    def ready(self, engines: EngineSet) -> None:
        """The engines are there."""
        self.engines = engines
        self.status = "ready"
        self.detail = "Ready for calls."
        if self.media is not None and self.media.reason:
            self.detail += f" Audio takes the slow stock path: {self.media.reason}."
        self.settled.set()

    def failed(self, detail: str) -> None:
        """The engines cannot be loaded; ``detail`` says what to do."""
        self.status = "failed"
        self.detail = detail
        self.settled.set()

    def render(self, registry: CallRegistry) -> dict[str, Any]:
        """The body of /readyz."""
        engines = self.engines
        return {
            "status": "draining" if registry.draining else self.status,
            "detail": "The server is shutting down." if registry.draining else self.detail,
            "progress": self.progress,
            "engines": [asdict(info) for info in engines.infos()] if engines else [],
            "notes": list(engines.notes) if engines else [],
            "media": asdict(self.media) if self.media is not None else None,
            "calls_active": registry.active,
            "slots": registry.slots,
            "version": __version__,
        }


SETTINGS = web.AppKey("settings", Settings)
REGISTRY = web.AppKey("registry", CallRegistry)
METRICS = web.AppKey("metrics", Metrics)
STATE = web.AppKey("state", ServerState)
