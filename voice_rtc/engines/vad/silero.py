"""Silero VAD v6 (ONNX, bundled with faster-whisper) behind a webrtcvad gate.

Most of a call is silence: the gate, a hundred times cheaper than the network, lets windows through
only around what could be speech. Closed, windows get probability 0.0 without inference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voice_rtc.core.audio import Pcm, Samples, silence
from voice_rtc.engines.base import EngineInfo, VadWindow
from voice_rtc.engines.vad.webrtc import SpeechFrames
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineUnavailable

WINDOW_SAMPLES = 512
"""32 ms at 16 kHz; the network knows no other size."""
_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (1, 1, 128)
_GATE_HOLD_WINDOWS = 32  # a second: longer than the pauses inside an utterance
_PRIME_WINDOWS = 8  # a quarter of a second before the gate opened

Float32 = NDArray[np.float32]


class _State:
    """What the recurrent network remembers of one stream; replaced as a whole by each run."""

    __slots__ = ("c", "context", "h")

    def __init__(self, h: Float32, c: Float32, context: Float32) -> None:
        self.h = h
        self.c = c
        self.context = context


def _fresh_state() -> _State:
    return _State(
        np.zeros(_STATE_SHAPE, np.float32),
        np.zeros(_STATE_SHAPE, np.float32),
        np.zeros(_CONTEXT_SAMPLES, np.float32),
    )


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

    def run(self, windows: Sequence[Samples], state: _State) -> tuple[list[float], _State]:
        """Probabilities of consecutive windows (512 int16 samples each), and the new state."""
        audio = np.concatenate(windows).astype(np.float32) / 32768.0
        rows = audio.reshape(-1, WINDOW_SAMPLES)
        tails = rows[:, -_CONTEXT_SAMPLES:]
        contexts = np.concatenate([state.context[None], tails[:-1]])
        probabilities, h, c = self._session.run(
            None, {"input": np.concatenate([contexts, rows], axis=1), "h": state.h, "c": state.c}
        )
        return [float(p) for p in np.reshape(probabilities, -1)], _State(h, c, tails[-1].copy())


class SileroVad:
    """The default VAD."""

    def __init__(self, gate_aggressiveness: int = 1, *, reason: str = "") -> None:
        self._gate_aggressiveness = gate_aggressiveness
        self._worker = EngineWorker("vad-silero", limit=4096)
        self._network: SileroNetwork | None = None
        self.info = EngineInfo("vad", "silero", model="silero_vad_v6", reason=reason)

    async def start(self) -> None:
        """Load the network and run it once. Raises EngineUnavailable."""
        try:
            self._network = await self._worker.run(_load)
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineUnavailable(f"Silero VAD cannot be loaded: {error}") from error

    async def aclose(self) -> None:
        """End the thread and free the network."""
        await self._worker.aclose()
        self._network = None

    def busy_seconds(self) -> float:
        """How long the inference in progress has run."""
        return self._worker.busy_seconds()

    def open(self) -> SileroVadSession:
        """A fresh session. Raises EngineUnavailable before `start`."""
        if self._network is None:
            raise EngineUnavailable("Silero VAD is not loaded")
        return SileroVadSession(self._network, self._worker, self._gate_aggressiveness)


class SileroVadSession:
    """One call's windows, gate and network state."""

    _gate: SpeechFrames
    _open_windows: int
    _skipped: deque[Samples]
    _state: _State
    _rest: Samples
    _at: int
    _expected: int

    def __init__(
        self, network: SileroNetwork, worker: EngineWorker, gate_aggressiveness: int
    ) -> None:
        self._network = network
        self._worker = worker
        self._gate_aggressiveness = gate_aggressiveness
        self.inferences = 0
        """Windows that the network has seen."""
        self._reset(0)

    async def feed(self, pcm: Pcm) -> list[VadWindow]:
        """Windows of 512 samples completed by ``pcm``; see `VadSession.feed`."""
        if pcm.at != self._expected:
            self._reset(pcm.at)
        self._expected = pcm.end
        if any(self._gate.feed(pcm.samples)):
            self._open_windows = _GATE_HOLD_WINDOWS
        data = np.concatenate([self._rest, pcm.samples])
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
            self._state = _fresh_state()
        prime, self._skipped = list(self._skipped), deque(maxlen=_PRIME_WINDOWS)
        self.inferences += len(prime) + len(windows)
        work = self._worker.submit(self._network.run, [*prime, *windows], self._state)
        probabilities, self._state = await work
        return probabilities[len(prime) :]

    def _reset(self, at: int) -> None:
        self._gate = SpeechFrames(self._gate_aggressiveness)
        self._open_windows = 0
        self._skipped = deque(maxlen=_PRIME_WINDOWS)
        self._state = _fresh_state()
        self._rest = silence(0)
        self._at = at
        self._expected = at


def _load() -> SileroNetwork:
    # the asset is found without importing faster_whisper, which loads CTranslate2
    from importlib.util import find_spec

    spec = find_spec("faster_whisper")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package faster-whisper, which brings the model, is missing")
    path = Path(spec.submodule_search_locations[0], "assets", "silero_vad_v6.onnx")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    network = SileroNetwork(path)
    network.run([silence(WINDOW_SAMPLES)], _fresh_state())
    return network
