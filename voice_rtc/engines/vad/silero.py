"""Silero VAD v6 (ONNX, shipped with this package), one network for all calls.

Most of a call is silence: gates a hundred times cheaper than the network let windows through only
around what could be speech. The first is the level that the caller's own client measured, where it
sends one; the second is webrtcvad. Closed, windows get probability 0.0 without inference.

What the gates let through is run in batches across calls, each with its own recurrent state: the
same numbers as alone (tests/engines/test_vad.py), at a third of the cost for each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voice_rtc.core.audio import Pcm, Samples, silence
from voice_rtc.engines.base import EngineInfo, VadWindow
from voice_rtc.engines.vad.webrtc import SpeechFrames
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineTimeout, EngineUnavailable

WINDOW_SAMPLES = 512
"""32 ms at 16 kHz; the network knows no other size."""
_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (2, 128)
_GATE_HOLD_WINDOWS = 32  # a second: longer than the pauses inside an utterance
_PRIME_WINDOWS = 8  # a quarter of a second before the gate opened
_SILENT_DBOV = -70
"""A client that measures less hears nothing itself."""
_BATCH_SECONDS = 0.01
"""Between the starts of two batches: with many calls few large ones, with one call no delay."""
_MOST_IN_BATCH = 128
_MOST_WAITING = 4096

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StreamState:
    """What the network remembers of one stream; replaced as a whole by each run."""

    memory: Float32
    """Shape (2, 128): the LSTM's hidden and cell state."""
    context: Float32
    """Shape (64,): the end of the window before."""


def fresh_state() -> StreamState:
    """Nothing was heard so far."""
    return StreamState(np.zeros(_STATE_SHAPE, np.float32), np.zeros(_CONTEXT_SAMPLES, np.float32))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive windows of one stream, 512 int16 samples each, and the state before them."""

    windows: list[Samples]
    state: StreamState


Heard = tuple[list[float], StreamState]
"""The windows' probabilities and the state after them."""


class Network(Protocol):
    """Blocking; called by one thread."""

    def run(self, stretches: list[Stretch]) -> list[Heard]:
        """One result for each stretch."""
        ...


class SileroNetwork:
    """The ONNX session; blocking, one thread."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._rate = np.array(16_000, np.int64)

    def run(self, stretches: list[Stretch]) -> list[Heard]:
        """The first windows of all stretches at once, then the second ones, and so on."""
        probabilities: list[list[float]] = [[] for _ in stretches]
        states = [stretch.state for stretch in stretches]
        for step in range(max(len(stretch.windows) for stretch in stretches)):
            going = [i for i, stretch in enumerate(stretches) if len(stretch.windows) > step]
            rows = np.empty((len(going), _CONTEXT_SAMPLES + WINDOW_SAMPLES), np.float32)
            for row, i in zip(rows, going, strict=True):
                row[:_CONTEXT_SAMPLES] = states[i].context
                row[_CONTEXT_SAMPLES:] = stretches[i].windows[step]
            rows[:, _CONTEXT_SAMPLES:] /= 32768.0
            memory = np.stack([states[i].memory for i in going], axis=1)
            found, memory = self._session.run(
                None, {"input": rows, "state": memory, "sr": self._rate}
            )
            tails = rows[:, -_CONTEXT_SAMPLES:]
            for place, i in enumerate(going):
                probabilities[i].append(float(found[place, 0]))
                states[i] = StreamState(memory[:, place].copy(), tails[place].copy())
        return list(zip(probabilities, states, strict=True))


@dataclass(frozen=True, slots=True)
class _Waiting:
    stretch: Stretch
    result: asyncio.Future[Heard]


class Batcher:
    """Collects the stretches of all calls for one network on one thread.

    A stretch that comes while nothing runs is run at once; those that come meanwhile go together.
    """

    def __init__(self, network: Network, worker: EngineWorker) -> None:
        self._network = network
        self._worker = worker
        self._waiting: deque[_Waiting] = deque()
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        self.batches = 0
        """Batches run so far."""

    def submit(self, stretch: Stretch) -> asyncio.Future[Heard]:
        """The future of its result. Raises EngineTimeout when too many wait."""
        if len(self._waiting) >= _MOST_WAITING:
            raise EngineTimeout(f"the voice activity detector has {_MOST_WAITING} windows waiting")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(stretch, loop.create_future())
        self._waiting.append(waiting)
        self._go_on(loop)
        return waiting.result

    def close(self) -> None:
        """Whoever waits is told that nothing comes any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._fail(list(self._waiting), EngineUnavailable("Silero VAD is closed"))
        self._waiting.clear()

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._running or self._timer is not None or not self._waiting:
            return
        now = loop.time()
        if now < self._next_at:
            self._timer = loop.call_at(self._next_at, self._start, loop)
        else:
            self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        count = min(len(self._waiting), _MOST_IN_BATCH)
        batch = [self._waiting.popleft() for _ in range(count)]
        batch = [each for each in batch if not each.result.done()]  # whose call is over
        if not batch:
            return self._go_on(loop)
        self._next_at = loop.time() + _BATCH_SECONDS
        try:
            work = self._worker.submit(self._network.run, [each.stretch for each in batch])
        except (EngineTimeout, EngineUnavailable) as error:
            return self._fail(batch, error)
        self._running = True
        self.batches += 1
        work.add_done_callback(lambda done: self._finish(loop, batch, done))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Waiting],
        done: asyncio.Future[list[Heard]],
    ) -> None:
        self._running = False
        error = EngineUnavailable("Silero VAD is closed") if done.cancelled() else done.exception()
        if error is not None:
            self._fail(batch, error)
        else:
            for each, heard in zip(batch, done.result(), strict=True):
                if not each.result.done():
                    each.result.set_result(heard)
        self._go_on(loop)

    def _fail(self, batch: list[_Waiting], error: BaseException) -> None:
        for each in batch:
            if not each.result.done():
                each.result.set_exception(error)


class SileroVad:
    """The default VAD."""

    def __init__(self, gate_aggressiveness: int = 1, *, reason: str = "") -> None:
        self._gate_aggressiveness = gate_aggressiveness
        self._worker = EngineWorker("vad-silero")
        self._batcher: Batcher | None = None
        self.info = EngineInfo("vad", "silero", model="silero_vad_v6", reason=reason)

    async def start(self) -> None:
        """Load the network and run it once. Raises EngineUnavailable."""
        try:
            network = await self._worker.run(_load)
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineUnavailable(f"Silero VAD cannot be loaded: {error}") from error
        self._batcher = Batcher(network, self._worker)

    async def aclose(self) -> None:
        """End the thread and free the network."""
        if self._batcher is not None:
            self._batcher.close()
        await self._worker.aclose()
        self._batcher = None

    def busy_seconds(self) -> float:
        """How long the inference in progress has run."""
        return self._worker.busy_seconds()

    def open(self) -> SileroVadSession:
        """A fresh session. Raises EngineUnavailable before `start`."""
        if self._batcher is None:
            raise EngineUnavailable("Silero VAD is not loaded")
        return SileroVadSession(self._batcher, self._gate_aggressiveness)


class SileroVadSession:
    """One call's windows, gates and network state."""

    _gate: SpeechFrames
    _open_windows: int
    _skipped: deque[Samples]
    _state: StreamState
    _rest: Samples
    _at: int
    _expected: int

    def __init__(self, batcher: Batcher, gate_aggressiveness: int) -> None:
        self._batcher = batcher
        self._gate_aggressiveness = gate_aggressiveness
        self.inferences = 0
        """Windows that the network has seen."""
        self._reset(0)

    async def feed(self, pcm: Pcm) -> list[VadWindow]:
        """Windows of 512 samples completed by ``pcm``; see `VadSession.feed`."""
        if pcm.at != self._expected:
            self._reset(pcm.at)
        self._expected = pcm.end
        if pcm.level_dbov is not None and pcm.level_dbov <= _SILENT_DBOV:
            self._gate.skip()
        elif any(self._gate.feed(pcm.samples)):
            self._open_windows = _GATE_HOLD_WINDOWS
        data = np.concatenate([self._rest, pcm.samples]) if len(self._rest) else pcm.samples
        whole = len(data) // WINDOW_SAMPLES * WINDOW_SAMPLES
        self._rest = data[whole:]
        if not whole:
            return []
        first = self._at
        self._at += whole
        windows = [data[i : i + WINDOW_SAMPLES] for i in range(0, whole, WINDOW_SAMPLES)]
        return [
            VadWindow(first + i * WINDOW_SAMPLES, WINDOW_SAMPLES, probability)
            for i, probability in enumerate(await self._probabilities(windows))
        ]

    def close(self) -> None:
        """Forget the state."""
        self._reset(0)

    async def _probabilities(self, windows: list[Samples]) -> list[float]:
        if self._open_windows <= 0:
            self._skipped.extend(windows)
            return [0.0] * len(windows)
        self._open_windows -= len(windows)
        if self._skipped:
            # The network starts afresh on the windows that came just before the gate opened.
            self._state = fresh_state()
        prime, self._skipped = list(self._skipped), deque(maxlen=_PRIME_WINDOWS)
        self.inferences += len(prime) + len(windows)
        heard = self._batcher.submit(Stretch([*prime, *windows], self._state))
        probabilities, self._state = await heard
        return probabilities[len(prime) :]

    def _reset(self, at: int) -> None:
        self._gate = SpeechFrames(self._gate_aggressiveness)
        self._open_windows = 0
        self._skipped = deque(maxlen=_PRIME_WINDOWS)
        self._state = fresh_state()
        self._rest = silence(0)
        self._at = at
        self._expected = at


def _load() -> SileroNetwork:
    file = resources.files("voice_rtc").joinpath("assets/silero_vad/silero_vad_16k_op15.onnx")
    with resources.as_file(file) as path:
        network = SileroNetwork(path)
    network.run([Stretch([silence(WINDOW_SAMPLES)], fresh_state())])
    return network
