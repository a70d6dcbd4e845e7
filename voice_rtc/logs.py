"""Logging: structlog, as text or JSON lines, with words spoken left out unless asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from voice_rtc.config import LogSettings

_SPOKEN = ("text", "transcript")
_CHATTY = ("aiortc", "aioice", "aiohttp.access", "httpx", "httpcore", "openai", "faster_whisper")

Entry = MutableMapping[str, Any]


def configure(settings: LogSettings) -> None:
    """Set structlog and the standard library's logging up; once per process."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_none,
    ]
    if not settings.transcripts:
        shared.append(_without_words)
    renderer: structlog.typing.Processor
    if settings.json_lines:
        renderer = structlog.processors.JSONRenderer()
        shared.append(structlog.processors.format_exc_info)
    else:
        # Plain tracebacks: the pretty ones print local variables, words spoken among them, and
        # take minutes for a deep recursion.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _standard_library(level, shared, renderer)


def _standard_library(
    level: int, shared: list[structlog.typing.Processor], renderer: structlog.typing.Processor
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _without_none(_logger: Any, _method: str, entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if value is not None}


def _without_words(_logger: Any, _method: str, entry: Entry) -> Entry:
    for key in _SPOKEN:
        entry.pop(key, None)
    return entry
