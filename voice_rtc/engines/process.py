"""A process of an engine's own, for models that would hold the media loop's interpreter lock.

The other side is a module run as ``python -m MODULE``: it reads frames from stdin, writes frames to
stdout and must end when stdin closes. A frame is a 4-byte big-endian length and that many bytes of
MessagePack.
"""

from __future__ import annotations

import asyncio
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import structlog

import voice_rtc
from voice_rtc.errors import EngineCrashed, EngineTimeout

_log = structlog.get_logger("voice_rtc.engines")
_LENGTH = struct.Struct(">I")
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_MAX_STDERR_LINE = 2000
_MOST_STDERR_LINES = 20
"""Logged of what is read at once; the event loop is for audio."""
_LAST_WORDS_SECONDS = 0.5
"""How long the pipes of a process that has ended are read on, when somebody else holds them too."""


class FrameTooLarge(Exception):
    """The other side announced a frame beyond the bound."""


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that ``data`` completes. Raises FrameTooLarge."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self._max:
                raise FrameTooLarge(f"{length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield frame


def frame(payload: bytes) -> bytes:
    """``payload`` with its length before it."""
    return _LENGTH.pack(len(payload)) + payload


class EngineProcess:
    """One run of a worker process; start another one to replace it when it died.

    ``on_frame`` gets each frame; ``on_death`` is called once when the process ends without having
    been asked to. Both run on the event loop and must not block. What the process writes to
    stderr goes to the log.
    """

    def __init__(
        self,
        module: str,
        *,
        on_frame: Callable[[bytes], None],
        on_death: Callable[[EngineCrashed], None],
        max_frame_bytes: int = 1 << 20,
        backlog_bytes: int = 4 << 20,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``environment``: variables that the process gets besides those of this one."""
        self._module = module
        # By env(1), which adds to what it inherits: this process's own is not looked at here.
        assigned = [f"{name}={value}" for name, value in (environment or {}).items()]
        self._command = ("env", *assigned, sys.executable) if assigned else (sys.executable,)
        self._on_frame = on_frame
        self._on_death = on_death
        self._max_frame_bytes = max_frame_bytes
        self._backlog_bytes = backlog_bytes
        self._transport: asyncio.SubprocessTransport | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closing = False
        self._died: EngineCrashed | None = None
        self._reads = asyncio.Event()
        """Set: little waits for it, or nothing ever will."""
        self._reads.set()

    async def start(self) -> None:
        """Spawn the process. Raises EngineCrashed when the system refuses."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        try:
            transport, _ = await loop.subprocess_exec(
                lambda: _Pipes(self),
                *(*self._command, "-m", self._module),
                # so that the package is found however the server was started
                cwd=Path(voice_rtc.__file__).parent.parent,
            )
        except OSError as error:
            raise EngineCrashed(f"{self._module} could not be started: {error}") from error
        self._transport = transport

    @property
    def pid(self) -> int | None:
        """Process id, None before `start`."""
        return None if self._transport is None else self._transport.get_pid()

    @property
    def alive(self) -> bool:
        """Started, not dead and not being closed."""
        return self._transport is not None and self._died is None and not self._closing

    def send(self, payload: bytes) -> None:
        """Queue one frame; never waits.

        Raises:
            EngineCrashed: the process is gone.
            EngineTimeout: it has not read for so long that ``backlog_bytes`` wait.
        """
        stdin = self._stdin()
        if stdin is None:
            raise self._died or EngineCrashed(f"{self._module} is not running")
        if stdin.get_write_buffer_size() > self._backlog_bytes:
            raise EngineTimeout(f"{self._module} does not keep up")
        stdin.write(frame(payload))

    async def keeps_up(self) -> None:
        """Wait until it has read nearly all that was sent, or ends. For who has much to send."""
        while not self._reads.is_set():
            await self._reads.wait()

    def kill(self) -> None:
        """End the process at once; counts as its death."""
        if self._transport is not None and self._transport.get_returncode() is None:
            self._transport.kill()

    async def aclose(self, grace_seconds: float = 2.0) -> None:
        """Close its stdin and wait for the end; after ``grace_seconds`` kill it. Idempotent."""
        self._closing = True
        self._reads.set()
        if self._transport is None or self._ended is None:
            return
        if (stdin := self._stdin()) is not None:
            stdin.close()
        try:
            async with asyncio.timeout(grace_seconds):
                await asyncio.shield(self._ended)
        except TimeoutError:
            _log.warning("engine_process_killed", module=self._module, pid=self.pid)
            self.kill()
            await self._ended
        self._transport.close()

    def _stdin(self) -> asyncio.WriteTransport | None:
        if self._transport is None or self._died is not None:
            return None
        pipe = cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(_STDIN))
        return None if pipe is None or pipe.is_closing() else pipe

    def frames_came(self, frames: Iterator[bytes]) -> None:
        """From the pipes: hand the frames on; a process that sends rubbish is killed."""
        try:
            for each in frames:
                if not self._closing:
                    self._on_frame(each)
        except FrameTooLarge as error:
            _log.error("engine_process_protocol", module=self._module, pid=self.pid, why=str(error))
            self.kill()

    def exited(self) -> None:
        """From the pipes: it has ended. They stay open where a child of its inherited them."""
        loop = asyncio.get_running_loop()
        loop.call_later(_LAST_WORDS_SECONDS, self._close_pipes)

    def _close_pipes(self) -> None:
        if self._transport is not None and self._ended is not None and not self._ended.done():
            self._transport.close()

    def ended(self) -> None:
        """From the pipes: the process is gone and everything it wrote has been read."""
        if self._ended is None or self._ended.done():
            return
        self._ended.set_result(None)
        self._reads.set()
        if self._closing or self._transport is None:
            return
        code = self._transport.get_returncode()
        self._died = EngineCrashed(f"{self._module} {_how_it_ended(code)}")
        _log.error("engine_process_died", module=self._module, pid=self.pid, status=code)
        self._transport.close()
        self._on_death(self._died)

    def reads(self, well: bool) -> None:
        """From the pipes: whether little of what was sent waits still."""
        if well or self._closing or self._died is not None:
            self._reads.set()
        else:
            self._reads.clear()

    def new_reader(self) -> FrameReader:
        """From the pipes: cuts stdout into frames."""
        return FrameReader(self._max_frame_bytes)

    def said(self, line: str, more: int) -> None:
        """From the pipes: one line of stderr, and how many after it are not told."""
        extra = {"more": more} if more else {}
        _log.warning("engine_process_stderr", module=self._module, pid=self.pid, line=line, **extra)


def _how_it_ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with status {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:  # a real-time signal
        name = ""
    return f"was killed by signal {-code}{name}"


class _Pipes(asyncio.SubprocessProtocol):
    """Callbacks rather than streams: they need no task of their own to read."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self._reader = process.new_reader()
        self._stderr = bytearray()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == _STDOUT:
            self._process.frames_came(self._reader.feed(data))
        elif fd == _STDERR:
            self._stderr += data
            *lines, rest = self._stderr.split(b"\n")
            self._stderr = bytearray(rest[:_MAX_STDERR_LINE])
            told = lines[:_MOST_STDERR_LINES]
            for number, line in enumerate(told, start=1):
                more = len(lines) - len(told) if number == len(told) else 0
                self._process.said(line[:_MAX_STDERR_LINE].decode(errors="replace"), more)

    def pause_writing(self) -> None:
        self._process.reads(well=False)

    def resume_writing(self) -> None:
        self._process.reads(well=True)

    def process_exited(self) -> None:
        self._process.exited()

    def connection_lost(self, exc: Exception | None) -> None:
        self._process.ended()


class Restarts:
    """When a worker that died may be started again: at once, then after ever longer waits.

    Pure: ``now`` is any monotonic clock in seconds.
    """

    def __init__(self, first_seconds: float = 0.5, longest_seconds: float = 30.0) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._wait = 0.0
        self._last = float("-inf")

    def died(self, now: float) -> float:
        """Seconds to wait before the next start. A minute without a death forgives all."""
        if now - self._last > 60.0:
            self._wait = 0.0
        wait = self._wait
        self._wait = min(self._longest, max(self._first, 2 * wait))
        self._last = now
        return wait
