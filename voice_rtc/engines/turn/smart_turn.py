"""Smart-Turn v3 (ONNX, from a path): hears in the voice whether the caller is finished.

The model (pipecat-ai/smart-turn-v3; 8 MB for CPUs) takes the last 8 s of 16 kHz audio, silence in
front where there is less, brought to mean 0 and variance 1 and made a log-mel spectrogram of 80 x
800, as ``input_features``; its first output is the probability that the turn is complete. As in
Pipecat's ``local_smart_turn_v3.py``: the same figures for the same audio.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples, silence
from voice_rtc.engines.base import EngineInfo
from voice_rtc.engines.stt.mel import Features, log_mel
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineCrashed, EngineUnavailable

P = ParamSpec("P")
T = TypeVar("T")

HEARD_SECONDS = 8
_MELS = 80
_FRAMES = 100 * HEARD_SECONDS
_SAMPLES = LISTEN_RATE_HZ * HEARD_SECONDS
_TINY = 1e-7  # added to the variance, as upstream does
_MOST_WAITING = 64
"""A judgement that waits for more of them comes too late for its pause."""


class SmartTurn:
    """Implements `engines.base.TurnModel`: one network and one thread for all calls."""

    heard_seconds = float(HEARD_SECONDS)

    def __init__(self, path: Path, *, reason: str = "") -> None:
        self._path = path
        self._worker = EngineWorker("turn-model", limit=_MOST_WAITING)
        self._session: Any = None
        self.info = EngineInfo("turn", "smart-turn", model=path.name, reason=reason)

    async def start(self) -> None:
        """Load the network and run it once. Raises EngineUnavailable."""
        try:
            self._session = await self._worker.run(_guarded, _load, self._path)
            await self._worker.run(_guarded, self._judge, silence(0))
        except EngineCrashed as error:
            raise EngineUnavailable(f"{self._path} is no Smart-Turn model: {error}") from error

    async def aclose(self) -> None:
        """End the thread and free the network."""
        await self._worker.aclose()
        self._session = None

    def busy_seconds(self) -> float:
        """How long the inference in progress has run."""
        return self._worker.busy_seconds()

    async def completeness(self, samples: Samples, text: str) -> float:
        """See `engines.base.TurnModel`; the text is not looked at."""
        return await self._worker.run(_guarded, self._judge, samples)

    def _judge(self, samples: Samples) -> float:
        found = self._session.run(None, {"input_features": features(samples)[None]})
        probability = float(np.asarray(found[0]).reshape(-1)[0])
        if not 0.0 <= probability <= 1.0:
            raise EngineCrashed(f"{probability} is no probability")
        return probability


def features(samples: Samples) -> Features:
    """The last 8 s of 16 kHz audio as the model wants them: float32 ``[80, 800]``."""
    newest = samples[-_SAMPLES:]
    audio: NDArray[np.float32] = np.zeros(_SAMPLES, np.float32)
    if len(newest):
        audio[-len(newest) :] = newest
    audio /= 32768.0
    audio = (audio - audio.mean()) / np.sqrt(audio.var() + _TINY)
    return log_mel(audio, _MELS, _FRAMES)


def _guarded(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``work`` returns. Raises EngineCrashed for whatever it raises."""
    try:
        return work(*args, **kwargs)
    except Exception as error:  # the errors of onnxruntime have no base class of their own
        raise EngineCrashed(str(error)) from error


def _load(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
