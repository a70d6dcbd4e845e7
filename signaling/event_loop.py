"""Which event loop the server runs on: uvloop where it is there, since it costs a call less.

What holds for both: a datagram that cannot be sent is told to the protocol and the socket goes on;
exceptions out of `datagram_received` are told to the loop's handler. uvloop's clock and timers tick
in milliseconds, which 20 ms of audio do not feel: packets are due on absolute time.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import Literal

from voice_rtc.errors import ConfigError

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def loop_factory(wanted: Literal["auto", "uvloop", "asyncio"]) -> LoopFactory:
    """For `asyncio.Runner`. Raises ConfigError when uvloop is demanded and not installed."""
    if wanted == "asyncio" or (wanted == "auto" and not _has_uvloop()):
        return asyncio.new_event_loop
    if not _has_uvloop():
        raise ConfigError(
            "server.event_loop is uvloop, which is not installed: pip install uvloop, or set it to "
            "auto"
        )
    import uvloop

    factory: LoopFactory = uvloop.new_event_loop
    return factory


def _has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None
