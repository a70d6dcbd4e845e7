"""Kokoro: the natural voice, 82 million parameters, shared by all calls.

The model runs in a worker process for each device (`kokoro_worker`), so that this process keeps its
interpreter lock for audio. Here are the streams of the calls and the care for workers: a heartbeat,
an end by force, a new start. A piece of text that no worker spoke in time is spoken by the
fall-back voice, and so is the rest of its reply: two voices in a sentence are one too many.

A piece is synthesised in one go: there is no streaming inside it. `core.voicing` decides whose turn
it is. A stream that is closed takes back what the worker has not begun.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog

from voice_rtc.core.audio import Pcm, Samples
from voice_rtc.core.buffers import Policy
from voice_rtc.engines.base import EngineInfo, TtsEngine, TtsTiming, TtsWatcher, VoiceOptions
from voice_rtc.engines.hub import (
    DownloadProgress,
    Weights,
    cache_folder,
    cached,
    fetch,
    local_folder,
)
from voice_rtc.engines.process import EngineProcess, Restarts
from voice_rtc.engines.tts import kokoro_protocol as protocol
from voice_rtc.engines.tts.kokoro_files import (
    CONFIG,
    DEFAULT_VOICE,
    MODEL,
    REPOSITORY,
    required_files,
    voices_in,
    weights_for,
    why_not_installed,
)
from voice_rtc.engines.tts.kokoro_voices import VoiceBlend, named_in, parse_voice
from voice_rtc.engines.tts.speakable import AS_CONFIGURED, chunks, clean, pieces
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import (
    EngineCrashed,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    OutOfGpuMemory,
)
from voice_rtc.inbox import Inbox

__all__ = ["DEFAULT_VOICE", "KokoroSettings", "KokoroTts", "weights_of", "why_not_installed"]

_log = structlog.get_logger("voice_rtc.engines")

_WORKER_MODULE = "voice_rtc.engines.tts.kokoro_worker"
_RATE_HZ = 24_000
_PIECE_CHARACTERS = 200
_VOICES_REMEMBERED = 1000
_REPLIES_REMEMBERED = 1000
_HEARTBEAT_SECONDS = 1.0
# A piece of 200 characters at half speed lasts 40 s at the very most.
_MAX_FRAME_BYTES = 4 << 20
_WHAT_TO_DO = (
    "Let the server reach the Hugging Face hub once, or set tts.model (VOICE_RTC_TTS__MODEL) to a "
    f"directory with {CONFIG}, {MODEL} and voices/{DEFAULT_VOICE}.pt"
)
_ERRORS = {
    error.code: error for error in (EngineUnavailable, OutOfGpuMemory, EngineTimeout, EngineCrashed)
}


@dataclass(frozen=True, slots=True)
class KokoroSettings:
    """What to load and how to use it; see `voice_rtc.config.TtsSettings`."""

    model: str = ""
    """Local directory; empty takes the hub's Kokoro-82M, cached or downloaded."""
    voice: str = DEFAULT_VOICE
    speed: float = 1.0
    download: bool = True
    device: str = "auto"
    devices: tuple[int, ...] = (0,)
    """Indices of GPUs; each has a worker. On a CPU each entry is one."""
    precision: str = "auto"
    batch: int = 0
    graphs: bool = True
    threads: int = 0
    """PyTorch's on a CPU; 0: two, where there are two cores."""
    waiting: int = 256
    patience_seconds: float = 1.0
    deadline_seconds: float = 5.0
    hang_seconds: float = 20.0
    load_seconds: float = 300.0

    def setup(self, folder: Path, device_index: int, voice: VoiceBlend) -> protocol.Setup:
        """For a worker."""
        return protocol.Setup(
            folder=str(folder),
            device=self.device,
            device_index=device_index,
            precision=self.precision,
            batch=self.batch,
            graphs=self.graphs,
            threads=self.threads or min(2, os.cpu_count() or 2),
            most_waiting=self.waiting,
            patience_seconds=self.patience_seconds,
            voice=voice.parts,
        )


class KokoroTts:
    """The best voice that this server has. Needs the extra ``voice-rtc[kokoro]``."""

    def __init__(
        self,
        settings: KokoroSettings = KokoroSettings(),
        *,
        fallback: TtsEngine | None = None,
        reason: str = "",
    ) -> None:
        """``fallback`` speaks what cannot be spoken here; it is started and closed with this."""
        self._settings = settings
        self._fallback = _Fallback(fallback) if fallback is not None else None
        self._reason = reason
        self._finder = EngineWorker("tts-kokoro")
        self._workers = [_Worker(self, index) for index in settings.devices]
        self._setups: dict[int, protocol.Setup] = {}
        self._voice = VoiceBlend(((DEFAULT_VOICE, 1.0),))
        self._known: frozenset[str] = frozenset()
        self._voices: dict[str, VoiceBlend] = {}
        self._keys = itertools.count(1)
        self._fallen: OrderedDict[str, None] = OrderedDict()
        """Replies that go on in the fall-back voice."""
        self._dead: Inbox[_Worker] = Inbox(1024, Policy.DROP_OLDEST)
        # Open from `start` to `aclose`, maybe in different tasks: so its tasks must not raise.
        self._tasks = AsyncExitStack()
        self._own: list[asyncio.Task[None]] = []
        self._closed = False
        self.watcher: TtsWatcher | None = None
        """Told of what is to be counted."""
        self.progress = DownloadProgress()
        """Of the weights' download, for /readyz."""
        self.info = EngineInfo("tts", "kokoro", model=settings.model or REPOSITORY, reason=reason)

    @property
    def rate_hz(self) -> int:
        """24000."""
        return _RATE_HZ

    def busy_seconds(self) -> float:
        """How long the oldest batch had been running at the last heartbeat."""
        return max((worker.pong.busy_seconds for worker in self._workers), default=0.0)

    @property
    def load_seconds(self) -> float:
        """A worker that takes longer to load has failed."""
        return self._settings.load_seconds

    @property
    def ready_workers(self) -> int:
        """Those that take text at the moment."""
        return sum(worker.alive for worker in self._workers)

    def worker_pids(self) -> list[int]:
        """Process ids of the workers, for status pages and operators."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    # ------------------------------------------------------------------------ start and end

    async def start(self) -> None:
        """Find or fetch the weights, load and warm up. Raises EngineError."""
        if why := await self._finder.run(why_not_installed):
            raise EngineUnavailable(why)
        wanted = self._settings.voice or DEFAULT_VOICE
        folder = await self._find(named_in(wanted) or (DEFAULT_VOICE,))
        self._known = await self._finder.run(voices_in, folder)
        voice = parse_voice(wanted, self._known)
        if voice is None:
            raise EngineUnavailable(f"{folder}/voices has no English voice {wanted}")
        self._voice = voice
        if self._fallback is not None:
            await self._fallback.start()
        for worker in self._workers:
            self._setups[worker.device] = self._settings.setup(folder, worker.device, voice)
            await self._load(worker)
        group = await self._tasks.enter_async_context(asyncio.TaskGroup())
        self._own.append(group.create_task(self._keep_alive(), name="tts-kokoro:keeper"))
        self._own.append(group.create_task(self._watch(), name="tts-kokoro:watch"))
        for worker in self._workers:
            if not worker.alive:  # it died while the others were loading
                self.worker_died(worker, EngineCrashed("a Kokoro worker died at once"))
        self._describe()

    async def _load(self, worker: _Worker) -> None:
        try:
            await worker.start(self._setups[worker.device])
        except EngineCrashed as error:
            raise EngineUnavailable(f"Kokoro cannot be loaded: {error}") from error

    def _describe(self) -> None:
        ready = [worker.ready for worker in self._workers if worker.ready is not None]
        where = "; ".join(each.placement for each in ready)
        slowest = max((each.clause_seconds for each in ready), default=0.0)
        for each in ready:
            if each.gpu_problem:
                _log.warning("tts_gpu_unusable", error=each.gpu_problem)
        self.info = EngineInfo(
            "tts",
            "kokoro",
            model=f"{self._settings.model or REPOSITORY} ({where})",
            reason=self._reason,
            notes=(f"A clause of four words takes {slowest * 1000:.0f} ms on this machine.",),
        )

    async def aclose(self) -> None:
        """End the workers. Idempotent; open streams end with an error."""
        self._closed = True
        self.progress.cancel()
        self._dead.close()
        for task in self._own:
            task.cancel()
        await self._tasks.aclose()
        for worker in self._workers:
            await worker.aclose()
        if self._fallback is not None:
            await self._fallback.aclose()
        await self._finder.aclose()

    # ----------------------------------------------------------------------------- the streams

    async def synthesize(
        self, text: str, options: VoiceOptions = AS_CONFIGURED
    ) -> AsyncGenerator[Pcm, None]:
        """Speak ``text`` in chunks of 100 ms; long text in pieces, each made when it is needed."""
        if not self._own or self._closed:
            raise EngineUnavailable("Kokoro is not loaded")
        voice, at = self._voice_for(options), 0
        for number, piece in enumerate(pieces(clean(text), _PIECE_CHARACTERS)):
            samples = await self._piece(piece, voice, options, first=options.first and number == 0)
            for chunk in chunks(samples, at, _RATE_HZ):
                yield chunk
            at += len(samples)

    async def _piece(
        self, text: str, voice: VoiceBlend, options: VoiceOptions, *, first: bool
    ) -> Samples:
        speed = options.speed or self._settings.speed
        if self._fallback is not None and options.reply in self._fallen:
            return await self._fallback.speak(text, voice, speed)
        key = next(self._keys)
        request = protocol.Speak(
            key=key,
            caller=options.reply or f"piece {key}",
            first=first,
            text=text,
            voice=voice.parts,
            speed=speed,
        )
        try:
            return await self._worker().speak(request, self._patience(first))
        except EngineError as error:
            if self._fallback is None or self._closed:
                raise
            self._fall_back(options.reply, error)
            return await self._fallback.speak(text, voice, speed)

    def _patience(self, first: bool) -> float:
        """Whoever hears a reply already can wait longer for what follows."""
        return self._settings.deadline_seconds if first else self._settings.hang_seconds

    def _worker(self) -> _Worker:
        ready = [worker for worker in self._workers if worker.alive]
        if not ready:
            raise EngineCrashed("the Kokoro worker is restarting")
        return min(ready, key=lambda worker: len(worker.open))

    def _fall_back(self, reply: str, error: EngineError) -> None:
        _log.warning("tts_fallback", code=error.code, error=str(error))
        if self.watcher is not None:
            self.watcher.tts_fell_back(error)
        if reply:
            self._fallen[reply] = None
        if len(self._fallen) > _REPLIES_REMEMBERED:
            self._fallen.popitem(last=False)

    def _voice_for(self, options: VoiceOptions) -> VoiceBlend:
        wanted = options.voice
        if not wanted:
            return self._voice
        if wanted in self._voices:
            return self._voices[wanted]
        voice = parse_voice(wanted, self._known)
        if voice is None:
            _log.warning("tts_voice_unknown", voice=wanted[:64], instead=str(self._voice))
        if len(self._voices) < _VOICES_REMEMBERED:
            self._voices[wanted] = voice or self._voice
        return voice or self._voice

    # ----------------------------------------------------------------------------- the workers

    def spoken(self, timing: TtsTiming) -> None:
        """From a worker: a piece is there."""
        if self.watcher is not None:
            self.watcher.tts_spoke(timing)

    def cancelled(self) -> None:
        """From a worker: a piece that was asked for is not wanted any more."""
        if self.watcher is not None:
            self.watcher.tts_cancelled()

    def worker_died(self, worker: _Worker, error: EngineError) -> None:
        """From a worker: its process is gone; start it again, later if it dies often."""
        if self._closed or not self._own:
            return
        loop = asyncio.get_running_loop()
        delay = worker.restarts.died(loop.time())
        _log.warning("tts_worker_restarting", device=worker.device, delay_seconds=delay)
        if self.watcher is not None:
            self.watcher.tts_worker_died(error)
        loop.call_later(delay, self._dead.put, worker)

    async def _keep_alive(self) -> None:
        async for worker in self._dead:
            try:
                await worker.start(self._setups[worker.device])
                _log.info("tts_worker_restarted", device=worker.device, pid=worker.pid)
            except EngineError as error:
                # A start that fails ends in a death, which has put the worker in line again.
                _log.error("tts_worker_restart_failed", device=worker.device, error=str(error))
            except Exception:  # noqa: BLE001 - a root: without this loop no worker comes back
                _log.exception("tts_worker_restart_failed", device=worker.device)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            for worker in self._workers:
                worker.heartbeat(loop.time(), self._settings.hang_seconds)

    # ------------------------------------------------------------------------------ the weights

    async def _find(self, voices: tuple[str, ...]) -> Path:
        if not self._settings.model:
            return await self._from_hub(weights_for(voices))
        folder = local_folder(self._settings.model, required_files(voices))
        if folder is None:
            raise EngineUnavailable(f"there is no directory {self._settings.model}")
        return folder

    async def _from_hub(self, weights: Weights) -> Path:
        if not self._settings.download:
            if (found := await self._finder.run(cached, weights)) is not None:
                return found
            raise EngineUnavailable(
                f"Kokoro is not in the hub cache {cache_folder()} and tts.download is off. "
                f"{_WHAT_TO_DO}"
            )
        try:
            return await fetch(weights, self._finder, self.progress)
        except EngineUnavailable as error:
            raise EngineUnavailable(f"Kokoro: {error}. {_WHAT_TO_DO}") from error


@dataclass(slots=True)
class _Asked:
    """A piece that a worker has been asked for."""

    result: asyncio.Future[Samples]
    first: bool
    asked_at: float
    """Event loop time."""


class _Worker:
    """One worker process on one device; `start` again after a death."""

    def __init__(self, engine: KokoroTts, device: int) -> None:
        self._engine = engine
        self.device = device
        self.open: dict[int, _Asked] = {}
        self.restarts = Restarts()
        self.pong = protocol.Pong(0, 0.0, 0)
        self.ready: protocol.Ready | None = None
        """What the present run said, once it was loaded."""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(protocol.Response)
        self._process: EngineProcess | None = None
        self._loading: asyncio.Future[protocol.Ready] | None = None
        self._pings = itertools.count(1)
        self._ping_sent_at: float | None = None

    @property
    def alive(self) -> bool:
        """Loaded and taking text."""
        return self.ready is not None and self._process is not None and self._process.alive

    @property
    def pid(self) -> int | None:
        """Process id of the present run."""
        return None if self._process is None else self._process.pid

    async def start(self, setup: protocol.Setup) -> None:
        """Spawn the process and wait until it has loaded. Raises EngineError."""
        self._loading = asyncio.get_running_loop().create_future()
        self.ready, self._ping_sent_at, self.pong = None, None, protocol.Pong(0, 0.0, 0)
        self._process = EngineProcess(
            _WORKER_MODULE,
            on_frame=self._frame,
            on_death=self._death,
            max_frame_bytes=_MAX_FRAME_BYTES,
        )
        try:
            await self._process.start()
        except EngineCrashed as error:
            self._engine.worker_died(self, error)
            raise
        self._send(setup)
        try:
            async with asyncio.timeout(self._engine.load_seconds):
                self.ready = await self._loading
        except TimeoutError:
            self._process.kill()  # its death puts it in line for a restart
            raise EngineTimeout("a Kokoro worker did not load in time") from None

    async def speak(self, request: protocol.Speak, deadline_seconds: float) -> Samples:
        """The sound of one piece. Raises EngineError; cancelling it takes the request back."""
        loop = asyncio.get_running_loop()
        asked = _Asked(loop.create_future(), request.first, loop.time())
        self._send(request)
        self.open[request.key] = asked
        try:
            async with asyncio.timeout(deadline_seconds):
                return await asked.result
        except TimeoutError:
            raise EngineTimeout("Kokoro did not speak in time") from None
        finally:
            if self.open.pop(request.key, None) is not None:
                self._take_back(request.key)

    def heartbeat(self, now: float, hang_seconds: float) -> None:
        """Send the next one; a process that is silent, or at one batch, for so long is ended."""
        if not self.alive or self._process is None:
            return
        silent_seconds = 0.0 if self._ping_sent_at is None else now - self._ping_sent_at
        if self._ping_sent_at is None:
            self._ping_sent_at = now
            self._tell(protocol.Ping(next(self._pings)))
        if max(silent_seconds, self.pong.busy_seconds) > hang_seconds:
            _log.warning("tts_worker_hangs", device=self.device, pid=self.pid)
            self._process.kill()

    async def aclose(self) -> None:
        """End the process."""
        if self._process is not None:
            await self._process.aclose()
        self._fail_all(EngineUnavailable("Kokoro was closed"))

    def _take_back(self, key: int) -> None:
        self._engine.cancelled()
        self._tell(protocol.Cancel(key))

    def _tell(self, request: protocol.Request) -> None:
        """What need not arrive: with a process that does not take it, its heartbeat ends."""
        try:
            self._send(request)
        except EngineError as error:
            _log.debug("tts_worker_stuck", device=self.device, error=str(error))

    def _send(self, request: protocol.Request) -> None:
        if self._process is None:
            raise EngineCrashed("the Kokoro worker is not running")
        self._process.send(self._encoder.encode(request))

    def _frame(self, payload: bytes) -> None:
        try:
            response = self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            _log.error("tts_worker_protocol", device=self.device, error=str(error))
            if self._process is not None:
                self._process.kill()
            return
        self._take(response)

    def _take(self, response: protocol.Response) -> None:
        match response:
            case protocol.Spoken() as spoken:
                self._spoken(spoken)
            case protocol.Failed(key=key, code=code, message=message):
                if asked := self.open.pop(key, None):
                    _fail(asked.result, _ERRORS.get(code, EngineError)(message))
            case protocol.Pong() as pong:
                self.pong, self._ping_sent_at = pong, None
            case protocol.Ready() as ready:
                if self._loading is not None and not self._loading.done():
                    self._loading.set_result(ready)
            case protocol.Unavailable(code=code, message=message):
                self._fail_loading(_ERRORS.get(code, EngineUnavailable)(message))

    def _spoken(self, spoken: protocol.Spoken) -> None:
        asked = self.open.pop(spoken.key, None)
        if asked is None or asked.result.done():
            return
        asked.result.set_result(np.frombuffer(spoken.pcm, "<i2").astype(np.int16, copy=False))
        total = asyncio.get_running_loop().time() - asked.asked_at
        self._engine.spoken(
            TtsTiming(asked.first, spoken.queue_seconds, spoken.run_seconds, total, spoken.batch)
        )

    def _death(self, error: EngineCrashed) -> None:
        self.ready = None
        self._fail_loading(error)
        self._fail_all(error)
        self._engine.worker_died(self, error)

    def _fail_loading(self, error: EngineError) -> None:
        if self._loading is not None and not self._loading.done():
            _fail(self._loading, error)

    def _fail_all(self, error: EngineError) -> None:
        lost, self.open = list(self.open.values()), {}
        for asked in lost:
            _fail(asked.result, error)


class _Fallback:
    """The voice that takes over, at Kokoro's rate."""

    def __init__(self, engine: TtsEngine) -> None:
        self._engine = engine
        self._usable = False

    async def start(self) -> None:
        """Without it there is no fall-back, which is no reason not to start."""
        try:
            await self._engine.start()
        except EngineError as error:
            _log.warning("tts_fallback_unusable", error=str(error))
            return
        self._usable = True

    async def speak(self, text: str, voice: VoiceBlend, speed: float) -> Samples:
        """All of ``text``, a piece at most. Raises EngineError."""
        if not self._usable:
            raise EngineUnavailable("the fall-back voice cannot be used either")
        options = VoiceOptions("en-gb" if voice.british else "en-us", speed)
        async with aclosing(self._engine.synthesize(text, options)) as run:
            made = [pcm.samples async for pcm in run]
        if not made:
            return np.zeros(0, np.int16)
        return _resampled(np.concatenate(made), self._engine.rate_hz)

    async def aclose(self) -> None:
        """Close the engine."""
        await self._engine.aclose()


def weights_of(voice: str) -> Weights:
    """What Kokoro needs from the hub to speak with ``voice``, a name or a blend."""
    return weights_for(named_in(voice) or (DEFAULT_VOICE,))


def _resampled(samples: Samples, rate_hz: int) -> Samples:
    if rate_hz == _RATE_HZ:
        return samples
    import soxr

    made: Samples = soxr.resample(samples, rate_hz, _RATE_HZ)
    return made


def _fail(future: asyncio.Future[Any], error: EngineError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # maybe nobody waits any more
