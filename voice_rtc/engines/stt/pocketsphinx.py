"""pocketsphinx: the embedded speech recognition. Its model is inside the wheel.

The decoders live in worker processes (`pocketsphinx_worker`); here are the sessions and the care
for workers that die.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
import structlog

from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm
from voice_rtc.core.buffers import Policy
from voice_rtc.engines.base import (
    STT_AS_CONFIGURED,
    EngineInfo,
    Final,
    Partial,
    SttFailed,
    SttOptions,
    SttResult,
)
from voice_rtc.engines.process import EngineProcess, Restarts
from voice_rtc.engines.stt import pocketsphinx_protocol as protocol
from voice_rtc.engines.stt.grammar import load_grammar
from voice_rtc.engines.stt.results import ResultStream
from voice_rtc.errors import EngineCrashed, EngineError, EngineTimeout, EngineUnavailable
from voice_rtc.inbox import Inbox

_log = structlog.get_logger("voice_rtc.engines")

_WORKER_MODULE = "voice_rtc.engines.stt.pocketsphinx_worker"
_LOAD_SECONDS = 30.0
_MOST_DEFAULT_WORKERS = 4
_GRAMMAR_SLOTS = 8
_DICTATION_SLOTS = 2


@dataclass(slots=True, eq=False)
class _Utterance:
    """One utterance as the server sees it, from begin to its last result."""

    key: int
    number: int
    session: PocketsphinxSession
    worker: _Worker | None
    """None when there was no worker to take it or the worker died."""
    error: EngineError | None = None
    finished_at: float | None = None
    """Event loop time of `finish`."""


class _Worker:
    """One worker process with its open utterances; `start` again after a death."""

    def __init__(self, engine: PocketsphinxStt, number: int) -> None:
        self._engine = engine
        self.number = number
        self.open: dict[int, _Utterance] = {}
        self.sessions = 0
        self.restarts = Restarts()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(protocol.Response)
        self._process: EngineProcess | None = None
        self._ready: asyncio.Future[None] | None = None

    @property
    def alive(self) -> bool:
        """Taking audio. While it loads, what comes waits in its pipe."""
        return self._process is not None and self._process.alive

    @property
    def pid(self) -> int | None:
        """Process id of the present run."""
        return None if self._process is None else self._process.pid

    async def start(self, setup: protocol.Setup) -> None:
        """Spawn the process and wait until it has loaded. Raises EngineError."""
        self._ready = asyncio.get_running_loop().create_future()
        self._process = EngineProcess(_WORKER_MODULE, on_frame=self._frame, on_death=self._death)
        try:
            await self._process.start()
        except EngineCrashed:
            self._engine.worker_died(self)
            raise
        self.send(setup)
        try:
            async with asyncio.timeout(_LOAD_SECONDS):
                await self._ready
        except TimeoutError:
            self._process.kill()  # its death puts it in line for a restart
            raise EngineTimeout("a pocketsphinx worker did not load in time") from None

    def send(self, request: protocol.Request) -> None:
        """Raises EngineError when the process cannot take it."""
        if self._process is None:
            raise EngineCrashed("the pocketsphinx worker is not running")
        self._process.send(self._encoder.encode(request))

    def forget_session(self, session: int) -> None:
        """Tell the process, if there is one, that a session is over."""
        if self.alive:
            try:
                self.send(protocol.CloseSession(session))
            except EngineError as error:
                # It does not even read: what it holds of the session dies with it.
                self.give_up(error)

    def give_up(self, error: EngineError) -> None:
        """It does not take what it is sent: end it, its death has it started again."""
        _log.warning("stt_worker_stuck", worker=self.number, error=str(error))
        if self._process is not None:
            self._process.kill()

    async def aclose(self) -> None:
        """End the process."""
        if self._process is not None:
            await self._process.aclose()

    def _frame(self, payload: bytes) -> None:
        match self._decoder.decode(payload):
            case protocol.Ready():
                self._settle(None)
            case protocol.Unavailable(message=message):
                self._settle(EngineUnavailable(message))
            case protocol.PartialText(key=key, text=text):
                if utterance := self.open.get(key):
                    utterance.session.deliver(Partial(utterance.number, text))
            case protocol.FinalText(key=key, text=text, samples=samples):
                if utterance := self.open.pop(key, None):
                    seconds = samples / LISTEN_RATE_HZ
                    utterance.session.deliver(Final(utterance.number, text, seconds), utterance)
            case protocol.Failed(key=key, message=message):
                if utterance := self.open.pop(key, None):
                    utterance.session.failed(utterance, EngineCrashed(message))

    def _death(self, error: EngineCrashed) -> None:
        self._settle(error)
        lost, self.open = list(self.open.values()), {}
        for utterance in lost:
            utterance.session.failed(utterance, error)
        self._engine.worker_died(self)

    def _settle(self, error: EngineError | None) -> None:
        if self._ready is None or self._ready.done():
            return
        if error is None:
            self._ready.set_result(None)
        else:
            self._ready.set_exception(error)


class PocketsphinxStt:
    """Speech to text without weights to fetch: exact with a grammar, poor for dictation."""

    def __init__(
        self,
        *,
        grammar: str = "",
        workers: int = 0,
        partial_seconds: float = 0.4,
        reason: str = "",
    ) -> None:
        """``grammar``: path of a JSGF file or sentences separated by ``|``; see SttSettings."""
        self._grammar_setting = grammar
        count = workers or min(os.cpu_count() or 1, _MOST_DEFAULT_WORKERS)
        self._workers = [_Worker(self, number) for number in range(count)]
        self._slots_each = _GRAMMAR_SLOTS if grammar else _DICTATION_SLOTS
        self._partial_seconds = partial_seconds
        self._setup: protocol.Setup | None = None
        self._keys = itertools.count(1)
        self._dead: Inbox[_Worker] = Inbox(1024, Policy.DROP_OLDEST)
        # Open from `start` to `aclose`, maybe in different tasks: so the keeper must not raise.
        self._tasks = AsyncExitStack()
        self._keeper: asyncio.Task[None] | None = None
        self._sessions: set[PocketsphinxSession] = set()
        self._closed = False
        self.info = EngineInfo(
            "stt",
            "pocketsphinx",
            model="grammar" if grammar else "en-us",
            reason=reason,
            notes=(
                "Exact with a grammar (stt.grammar)."
                if grammar
                else "Good for commands and demos, not for dictation: about every second word of "
                "free speech is wrong. A list of sentences in stt.grammar makes it exact.",
                "For real speech recognition use Whisper: let the server reach the Hugging Face "
                "hub once, or set stt.model to a directory with a faster-whisper model.",
            ),
            languages=("en",),
        )

    @property
    def recommended_slots(self) -> int:
        """Two callers per worker with the full model, eight with a grammar."""
        return len(self._workers) * self._slots_each

    def worker_pids(self) -> list[int]:
        """Process ids of the workers, for status pages and operators."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def busy_seconds(self) -> float:
        """How long the oldest Final asked for has been waited for."""
        now = asyncio.get_running_loop().time()
        waits = [
            now - utterance.finished_at
            for worker in self._workers
            for utterance in worker.open.values()
            if utterance.finished_at is not None
        ]
        return max(waits, default=0.0)

    async def start(self) -> None:
        """Start all workers. Raises EngineUnavailable, e.g. for words the dictionary lacks."""
        self._setup = protocol.Setup(
            grammar=load_grammar(self._grammar_setting),
            ready_decoders=self._slots_each,
            most_decoders=2 * self._slots_each,
            partial_samples=int(self._partial_seconds * LISTEN_RATE_HZ),
        )
        # One after the other: a grammar that does not load is found out once.
        for worker in self._workers:
            try:
                await worker.start(self._setup)
            except EngineCrashed as error:
                raise EngineUnavailable(f"pocketsphinx cannot be started: {error}") from error
        group = await self._tasks.enter_async_context(asyncio.TaskGroup())
        self._keeper = group.create_task(self._keep_alive(), name="stt-pocketsphinx:keeper")
        for worker in self._workers:
            if not worker.alive:  # it died while the others were loading
                self.worker_died(worker)

    async def open(self, options: SttOptions = STT_AS_CONFIGURED) -> PocketsphinxSession:
        """A fresh session. Raises EngineUnavailable before `start` and after `aclose`."""
        if self._setup is None or self._closed:
            raise EngineUnavailable("pocketsphinx is not running")
        session = PocketsphinxSession(self, next(self._keys))
        self._sessions.add(session)
        return session

    async def aclose(self) -> None:
        """End all sessions and processes. Idempotent."""
        self._closed = True
        for session in list(self._sessions):
            await session.aclose()
        self._dead.close()
        if self._keeper is not None:
            self._keeper.cancel()
        await self._tasks.aclose()
        for worker in self._workers:
            await worker.aclose()

    def worker_died(self, worker: _Worker) -> None:
        """From the worker: its process is gone; start it again, later if it dies often."""
        if self._closed or self._keeper is None:
            return
        loop = asyncio.get_running_loop()
        delay = worker.restarts.died(loop.time())
        _log.warning("stt_worker_restarting", worker=worker.number, delay_seconds=delay)
        loop.call_later(delay, self._dead.put, worker)

    async def _keep_alive(self) -> None:
        async for worker in self._dead:
            try:
                await self._restart(worker)
            except EngineError as error:
                # A start that fails ends in a death, which has put the worker in line again.
                _log.error("stt_worker_restart_failed", worker=worker.number, error=str(error))
            except Exception:  # noqa: BLE001 - a root: without this loop no worker comes back
                _log.exception("stt_worker_restart_failed", worker=worker.number)

    async def _restart(self, worker: _Worker) -> None:
        if self._setup is not None:
            await worker.start(self._setup)
            _log.info("stt_worker_restarted", worker=worker.number, pid=worker.pid)

    def new_utterance(self, session: PocketsphinxSession, number: int) -> _Utterance:
        """From a session: an utterance with a worker that takes it, or with its error."""
        utterance = _Utterance(next(self._keys), number, session, self._worker_for(session))
        worker = utterance.worker
        if worker is None:
            utterance.error = EngineCrashed("the speech recognition workers are restarting")
            return utterance
        try:
            worker.send(protocol.Begin(session.number, utterance.key))
        except EngineError as error:
            utterance.worker, utterance.error = None, error
            return utterance
        worker.open[utterance.key] = utterance
        return utterance

    def closed(self, session: PocketsphinxSession) -> None:
        """From a session: it is over."""
        self._sessions.discard(session)
        for worker in session.workers:
            worker.sessions -= 1
            worker.forget_session(session.number)

    def _worker_for(self, session: PocketsphinxSession) -> _Worker | None:
        """The worker that knows the caller, else the one with the fewest sessions."""
        alive = [worker for worker in self._workers if worker.alive]
        known = [worker for worker in alive if worker in session.workers]
        if known:
            return known[-1]
        if not alive:
            return None
        worker = min(alive, key=lambda each: each.sessions)
        worker.sessions += 1
        session.workers.append(worker)
        return worker


class PocketsphinxSession:
    """One call's utterances."""

    def __init__(self, engine: PocketsphinxStt, number: int) -> None:
        self._engine = engine
        self.number = number
        self.workers: list[_Worker] = []
        """Workers that have had utterances of this session."""
        self._utterances: dict[int, _Utterance] = {}
        self._newest: _Utterance | None = None
        self._closed = False
        self._results = ResultStream()

    def begin(self, utterance: int) -> None:
        """Start an utterance; see `SttSession`."""
        if not self._closed:
            self._newest = self._engine.new_utterance(self, utterance)
            self._utterances[utterance] = self._newest

    def feed(self, pcm: Pcm) -> None:
        """Audio of the utterance begun last; ignored when none is open."""
        if self._newest is not None:
            self._send(self._newest, protocol.Audio(self._newest.key, pcm.samples.tobytes()))

    def finish(self, utterance: int) -> None:
        """The Final (or SttFailed) is wanted now."""
        found = self._utterances.get(utterance)
        if found is None or found.finished_at is not None:
            return
        if found is self._newest:
            self._newest = None
        found.finished_at = asyncio.get_running_loop().time()
        self._send(found, protocol.Finish(found.key))
        if found.error is not None:
            self._fail(found, found.error)

    def discard(self, utterance: int) -> None:
        """Nothing more is delivered of the utterance."""
        self._results.discard(utterance)
        found = self._utterances.pop(utterance, None)
        if found is None:
            return
        if found is self._newest:
            self._newest = None
        self._send(found, protocol.Discard(found.key))
        if found.worker is not None:
            found.worker.open.pop(found.key, None)

    def configure(self, options: SttOptions) -> None:
        """It knows one language and takes no prompt."""

    async def results(self) -> AsyncIterator[SttResult]:
        """Results in order of utterances, until the session is closed."""
        async for result in self._results:
            yield result

    async def aclose(self) -> None:
        """End the session. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for number in list(self._utterances):
            self.discard(number)
        self._results.close()
        self._engine.closed(self)

    def deliver(self, result: SttResult, done: _Utterance | None = None) -> None:
        """From the worker: a result; ``done`` is the utterance that it ends."""
        if done is not None:
            self._utterances.pop(done.number, None)
        self._results.put(result)

    def failed(self, utterance: _Utterance, error: EngineError) -> None:
        """From the worker: the utterance is lost. Told when, or once, its Final is asked for."""
        utterance.worker, utterance.error = None, error
        if utterance.finished_at is not None:
            self._fail(utterance, error)

    def _fail(self, utterance: _Utterance, error: EngineError) -> None:
        self.deliver(SttFailed(utterance.number, error), utterance)

    @staticmethod
    def _send(utterance: _Utterance, request: protocol.Request) -> None:
        if utterance.worker is None:
            return
        try:
            utterance.worker.send(request)
        except EngineError as error:
            utterance.worker.open.pop(utterance.key, None)
            # What it never heard the end of would keep the caller's later turns waiting for ever.
            utterance.worker.give_up(error)
            utterance.worker, utterance.error = None, error
