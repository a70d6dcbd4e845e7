"""The Kokoro worker process: ``python -m voice_rtc.engines.tts.kokoro_worker``.

The main thread takes requests and answers heartbeats at once; one model thread speaks what
`voice_rtc.core.voicing` says is next. All that they share is under one Condition. A piece that is
cancelled before its batch has begun costs nothing.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from voice_rtc.core.audio import Samples
from voice_rtc.core.voicing import Voicing, VoicingPiece, VoicingRules
from voice_rtc.engines.pipes import Sender, read_frames, run_worker
from voice_rtc.engines.tts import kokoro_protocol as protocol
from voice_rtc.engines.tts.kokoro_voices import Utterance, VoiceBlend
from voice_rtc.errors import EngineError, EngineTimeout, EngineUnavailable, OutOfGpuMemory

_MAX_FRAME_BYTES = 1 << 20
_GPU_BATCH = 4
_GPU_LATERS = 4
"""A first clause that comes meanwhile waits for the end of their batch."""


class Synthesizer(Protocol):
    """What is wanted of `voice_rtc.engines.tts.kokoro_model.KokoroModel`."""

    def speak(self, utterances: Sequence[Utterance]) -> list[Samples]:
        """One batch; blocks. Raises EngineError; any other exception ends the process."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, warm."""

    model: Synthesizer
    on_gpu: bool
    placement: str
    clause_seconds: float
    gpu_problem: str = ""


class Speaker:
    """All pieces of one process: requests in by `handle`, answers out by ``send``.

    ``send`` is called from both threads and takes care of that; ``load`` on the model thread.
    """

    def __init__(
        self,
        send: Callable[[protocol.Response], None],
        load: Callable[[protocol.Setup], Loaded],
    ) -> None:
        self._send = send
        self._load = load
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # All below is under the condition.
        self._ended = False
        self._voicing = Voicing()
        self._wanted: dict[int, Utterance] = {}
        self._busy_since: float | None = None

    # ------------------------------------------------------------------------ the main thread

    def handle(self, request: protocol.Request) -> None:
        """Take one request in; never waits for the model."""
        match request:
            case protocol.Ping(number=number):
                self._send(self._pong(number))
            case protocol.Setup():
                self._thread = threading.Thread(target=self._main, args=(request,), name="model")
                self._thread.start()
            case protocol.Speak():
                self._speak(request)
            case protocol.Cancel(key=key):
                with self._changed:
                    if self._voicing.cancel(key):
                        del self._wanted[key]

    def end(self) -> None:
        """Take no further batch and wait for the one that runs."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _pong(self, number: int) -> protocol.Pong:
        with self._changed:
            since = self._busy_since
            busy_seconds = 0.0 if since is None else time.monotonic() - since
            return protocol.Pong(number, busy_seconds, len(self._voicing))

    def _speak(self, request: protocol.Speak) -> None:
        voice = VoiceBlend(request.voice)
        piece = VoicingPiece(
            request.key, request.caller, request.first, len(request.text), time.monotonic()
        )
        with self._changed:
            taken = self._voicing.add(piece)
            if taken:
                self._wanted[request.key] = Utterance(request.text, voice, request.speed)
                self._changed.notify_all()
        if not taken:
            message = "too many pieces of text wait to be spoken"
            self._send(protocol.Failed(request.key, EngineTimeout.code, message))

    # ----------------------------------------------------------------------- the model thread

    def _main(self, setup: protocol.Setup) -> None:
        try:
            loaded = self._load(setup)
        except EngineError as error:
            self._send(protocol.Unavailable(error.code, str(error)))
            return
        with self._changed:
            self._voicing = Voicing(rules_for(setup, on_gpu=loaded.on_gpu))
        self._send(protocol.Ready(loaded.placement, loaded.clause_seconds, loaded.gpu_problem))
        while batch := self._next():
            self._run(loaded.model, batch)

    def _next(self) -> list[tuple[VoicingPiece, Utterance]]:
        with self._changed:
            self._busy_since = None
            while not self._ended and not len(self._voicing):
                self._changed.wait()
            if self._ended:
                return []
            self._busy_since = time.monotonic()
            taken = self._voicing.take(self._busy_since)
            return [(piece, self._wanted.pop(piece.key)) for piece in taken]

    def _run(self, model: Synthesizer, batch: list[tuple[VoicingPiece, Utterance]]) -> None:
        started = time.monotonic()
        try:
            spoken = model.speak([wanted for _, wanted in batch])
        except EngineError as error:
            self._one_by_one(model, batch, error)
            return
        took = time.monotonic() - started
        for (piece, _), samples in zip(batch, spoken, strict=True):
            queued = started - piece.asked_at
            pcm = samples.astype("<i2", copy=False).tobytes()
            self._send(protocol.Spoken(piece.key, pcm, queued, took, len(batch)))

    def _one_by_one(
        self, model: Synthesizer, batch: list[tuple[VoicingPiece, Utterance]], error: EngineError
    ) -> None:
        """One piece that cannot be spoken, or one too many, must not silence the others."""
        if len(batch) == 1:
            ((piece, _),) = batch
            self._send(protocol.Failed(piece.key, error.code, str(error)))
            return
        for each in batch:
            self._run(model, [each])


def rules_for(setup: protocol.Setup, *, on_gpu: bool) -> VoicingRules:
    """Bounds by what runs the model: on a CPU a batch takes as long as its pieces one by one."""
    most = setup.batch or (_GPU_BATCH if on_gpu else 1)
    return VoicingRules(
        most_waiting=setup.most_waiting,
        patience_seconds=setup.patience_seconds,
        most_firsts=most,
        most_laters=min(most, _GPU_LATERS),
    )


def load_model(setup: protocol.Setup) -> Loaded:
    """Load and warm up; ``auto`` falls back to the CPU. Raises EngineError."""
    import torch

    device = setup.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return _load_on(device, setup, "")
    except EngineError as error:
        if setup.device != "auto" or device == "cpu":
            raise
        return _load_on("cpu", setup, str(error))


def _load_on(device: str, setup: protocol.Setup, gpu_problem: str) -> Loaded:
    import torch

    from voice_rtc.engines.tts.kokoro_model import KokoroModel, ModelSettings

    on_gpu = device == "cuda"
    settings = ModelSettings(
        device=f"cuda:{setup.device_index}" if on_gpu else "cpu",
        precision=setup.precision,
        most_rows=rules_for(setup, on_gpu=on_gpu).most_firsts,
        graphs=setup.graphs,
        threads=setup.threads,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kokoro uses what torch deprecates
            model = KokoroModel(Path(setup.folder), settings)
        clause_seconds = model.warm_up(VoiceBlend(setup.voice))
    except torch.OutOfMemoryError as error:
        raise OutOfGpuMemory(f"Kokoro does not fit into GPU memory: {error}") from error
    except EngineError:
        raise
    except Exception as error:
        # A damaged file fails in torch.load in any way: UnpicklingError, EOFError, ...
        raise EngineUnavailable(f"Kokoro cannot be loaded: {error}") from error
    return Loaded(model, on_gpu, model.placement, clause_seconds, gpu_problem)


def serve(
    stdin: BinaryIO, send: Sender, load: Callable[[protocol.Setup], Loaded] = load_model
) -> None:
    """Work until ``stdin`` closes."""
    decoder = msgspec.msgpack.Decoder(protocol.Request)
    speaker = Speaker(send, load)
    for payload in read_frames(stdin, _MAX_FRAME_BYTES):
        speaker.handle(decoder.decode(payload))


if __name__ == "__main__":
    run_worker(serve)
