"""The Whisper worker process: ``python -m voice_rtc.engines.stt.whisper_worker``.

The main thread reads requests and answers heartbeats at once; model threads take batches from
`voice_rtc.core.scheduling` and send the results. All that they share is under one Condition.

It must be up quickly, since callers wait while one that died is replaced: nothing is imported
that it does not need.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import msgspec
import numpy as np

from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples
from voice_rtc.core.scheduling import (
    FULL_WINDOW_SECONDS,
    WINDOWS_SECONDS,
    Batch,
    BatchRules,
    BatchScheduler,
    TranscriptionRequest,
    WindowPolicy,
)
from voice_rtc.engines.parent import end_with_parent
from voice_rtc.engines.stt import whisper_protocol as protocol
from voice_rtc.engines.stt.whisper_model import BatchWhisper, Transcript, WhisperRequest
from voice_rtc.errors import EngineCrashed, EngineError, EngineUnavailable, OutOfGpuMemory

_BYTES_PER_SAMPLE = 2
_MOST_UTTERANCE_SECONDS = 600
_MAX_FRAME_BYTES = 64 << 20
# Finals are served by their age: each has the same time.
_FINAL_SECONDS = 1.0
# A caller who still speaks has asked for a newer one long before.
_PARTIAL_SECONDS = 2.0
_CPU_BATCH = 8
_GPU_BATCH = 32
# On a CPU a batch takes about as long as its requests one by one, and a final that comes meanwhile
# waits for its end: partials go in smaller ones.
_CPU_PARTIALS_SHARE = 2
# Windows in a batch of partials, summed: about 50 ms on a large GPU with PyTorch's encoder, 100 ms
# with CTranslate2's, which takes one window after the other.
_CPU_PARTIAL_SECONDS = 30.0
_GPU_PARTIAL_SECONDS = {"sdpa": 320.0, "ct2": 120.0}
_GPU_GATHER_SECONDS = 0.004
_WARM_UP_SECONDS = 2
_QUICK_SECONDS = 0.3
_FAST_BEAM = 1


class Transcriber(Protocol):
    """What is wanted of `voice_rtc.engines.stt.whisper_model.BatchWhisper`."""

    workers: int
    placement: str
    encoder: str
    """``ct2`` or ``sdpa``: the one that is used."""

    @property
    def languages(self) -> frozenset[str]:
        """Codes that a request may ask for."""
        ...

    def transcribe(
        self,
        requests: Sequence[WhisperRequest],
        window_seconds: float,
        *,
        beam_size: int | None = None,
    ) -> list[Transcript]:
        """One batch; blocks. Raises EngineError."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, warm."""

    model: Transcriber
    on_gpu: bool
    utterance_seconds: float
    gpu_problem: str = ""


@dataclass(slots=True, eq=False)
class _Utterance:
    key: int
    caller: int
    language: str
    prompt: str
    alone: bool
    audio: bytearray = field(default_factory=bytearray)
    asked: int = 0
    """Samples that there were at the newest partial."""
    finished_at: float | None = None
    run_seconds: float = 0.0
    first_try: Transcript | None = None

    @property
    def samples(self) -> int:
        return len(self.audio) // _BYTES_PER_SAMPLE


@dataclass(frozen=True, slots=True)
class _Job:
    """A batch with what the model is to hear."""

    batch: Batch
    requests: list[WhisperRequest]
    beam_size: int | None


class Measurement:
    """Which batches to time, one after the other."""

    def __init__(self, wanted: protocol.Measure, most_batch: int) -> None:
        self.wanted = wanted
        self.points: list[tuple[float, int, float]] = []
        self.failure = ""
        self._most_batch = most_batch
        self._spent = 0.0
        self._steps = self._plan()

    def next_step(self) -> tuple[float, int] | None:
        """Window in seconds and requests of the next batch, None when all is measured."""
        return None if self.failure else next(self._steps, None)

    def took(self, window_seconds: float, batch: int, seconds: list[float]) -> None:
        """The runs of the step told last."""
        self._spent += sum(seconds)
        self.points.append((window_seconds, batch, min(seconds)))

    def _plan(self) -> Iterator[tuple[float, int]]:
        for window in self.wanted.windows:
            batch, expected_seconds = 1, 0.0
            while batch <= self._most_batch and expected_seconds <= self.wanted.slow_seconds:
                if self._spent + expected_seconds > self.wanted.most_seconds:
                    break
                measured = len(self.points)
                yield window, batch
                if len(self.points) == measured:
                    break  # it did not fit into the memory
                batch, expected_seconds = 2 * batch, 2 * self.points[-1][2]


class Recognizer:
    """All utterances of one process: requests in by `handle`, answers out by ``send``.

    ``send`` is called from all threads and takes care of that. ``load`` is called on a model
    thread.
    """

    def __init__(
        self,
        send: Callable[[protocol.Response], None],
        load: Callable[[protocol.Setup], Loaded],
    ) -> None:
        self._send = send
        self._load = load
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._ended = False
        # All below is under the condition.
        self._scheduler: BatchScheduler | None = None
        self._utterances: dict[int, _Utterance] = {}
        self._windows = WindowPolicy()
        self._partial_samples = 0
        self._quality = protocol.Quality(1.0, False)
        self._measurement: Measurement | None = None
        self._measuring = False

    # ------------------------------------------------------------------------ the main thread

    def handle(self, request: protocol.Request) -> None:
        """Take one request in; never waits for the model."""
        match request:
            case protocol.Ping(number=number):
                self._send(self._pong(number))
            case protocol.Setup():
                self._start_thread(lambda: self._first_thread(request))
            case protocol.Begin():
                self._begin(request)
            case protocol.Audio(key=key, pcm=pcm):
                self._audio(key, pcm)
            case protocol.Finish(key=key):
                self._finish(key)
            case protocol.Discard(key=key):
                with self._changed:
                    self._forget(key)
            case protocol.Quality():
                self._set_quality(request)
            case protocol.Measure():
                self._measure(request)

    def end(self) -> None:
        """Take no further batch and wait for those that run."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in list(self._threads):
            thread.join()

    def _pong(self, number: int) -> protocol.Pong:
        with self._changed:
            if self._scheduler is None:
                return protocol.Pong(number, 0.0, None)
            busy_seconds = self._scheduler.busy_seconds(time.monotonic())
            return protocol.Pong(number, busy_seconds, self._scheduler.statistics())

    def _begin(self, request: protocol.Begin) -> None:
        utterance = _Utterance(
            request.key, request.caller, request.language, request.prompt, request.alone
        )
        with self._changed:
            self._utterances[request.key] = utterance

    def _audio(self, key: int, pcm: bytes) -> None:
        with self._changed:
            utterance = self._utterances.get(key)
            if utterance is None or utterance.finished_at is not None:
                return
            utterance.audio += pcm
            if utterance.samples <= _MOST_UTTERANCE_SECONDS * LISTEN_RATE_HZ:
                self._want_partial(utterance)
                return
            self._forget(key)
        message = f"an utterance of more than {_MOST_UTTERANCE_SECONDS} s"
        self._send(protocol.Failed(key, EngineError.code, message))

    def _want_partial(self, utterance: _Utterance) -> None:
        factor = self._quality.partial_factor
        if factor is None or self._scheduler is None or utterance.alone:
            return
        if utterance.samples - utterance.asked < self._partial_samples * factor:
            return
        utterance.asked = utterance.samples
        now = time.monotonic()
        seconds = utterance.samples / LISTEN_RATE_HZ
        window = self._windows.for_partial(seconds)
        self._scheduler.add(
            TranscriptionRequest(
                key=utterance.key,
                caller=utterance.caller,
                final=False,
                audio_seconds=seconds,
                window_seconds=window,
                deadline=now + _PARTIAL_SECONDS,
                arrival=now,
            )
        )
        self._changed.notify_all()

    def _finish(self, key: int) -> None:
        with self._changed:
            utterance = self._utterances.get(key)
            if utterance is None or utterance.finished_at is not None:
                return
            if self._scheduler is not None:
                utterance.finished_at = time.monotonic()
                seconds = utterance.samples / LISTEN_RATE_HZ
                window = self._windows.for_final(seconds, economy=self._quality.economy)
                self._want_final(utterance, window)
                return
            self._forget(key)
        self._send(protocol.Failed(key, EngineUnavailable.code, "Whisper is not loaded"))

    def _want_final(self, utterance: _Utterance, window_seconds: float) -> None:
        assert self._scheduler is not None
        assert utterance.finished_at is not None
        self._scheduler.add(
            TranscriptionRequest(
                key=utterance.key,
                caller=utterance.caller,
                final=True,
                audio_seconds=utterance.samples / LISTEN_RATE_HZ,
                window_seconds=window_seconds,
                deadline=utterance.finished_at + _FINAL_SECONDS,
                arrival=utterance.finished_at,
                alone=utterance.alone,
            )
        )
        self._changed.notify_all()

    def _set_quality(self, quality: protocol.Quality) -> None:
        with self._changed:
            self._quality = quality
            if quality.partial_factor is None and self._scheduler is not None:
                self._scheduler.withdraw_partials()

    def _measure(self, request: protocol.Measure) -> None:
        with self._changed:
            if self._scheduler is not None:
                self._measurement = Measurement(request, self._scheduler.rules.most_finals)
                self._changed.notify_all()
                return
        self._send(protocol.Measured((), "Whisper is not loaded"))

    def _forget(self, key: int) -> None:
        utterance = self._utterances.pop(key, None)
        if utterance is None or self._scheduler is None:
            return
        self._scheduler.withdraw(key)
        if not any(each.caller == utterance.caller for each in self._utterances.values()):
            self._scheduler.forget(utterance.caller)

    # ----------------------------------------------------------------------- the model threads

    def _start_thread(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"whisper-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _first_thread(self, setup: protocol.Setup) -> None:
        try:
            loaded = self._load(setup)
        except EngineError as error:
            self._send(protocol.Unavailable(error.code, str(error)))
            return
        except Exception as error:  # noqa: BLE001 - a root: what loads a model fails in any way
            traceback.print_exc()
            self._send(protocol.Unavailable(EngineUnavailable.code, repr(error)))
            return
        rules = rules_for(setup, loaded)
        windows = windows_for(setup)
        plan = shapes_to_warm(rules, windows) if loaded.on_gpu else []
        with self._changed:
            self._windows = windows
            self._partial_samples = setup.partial_samples
            further = 0 if self._ended else rules.workers - 1
            warm = threading.Barrier(1 + further)
            for _ in range(further):
                self._start_thread(lambda: self._further_thread(loaded.model, plan, warm))
        _warm_thread(loaded.model, plan, warm)
        with self._changed:
            self._scheduler = BatchScheduler(rules)
            self._changed.notify_all()
        self._send(
            protocol.Ready(
                placement=loaded.model.placement,
                languages=tuple(loaded.model.languages),
                workers=rules.workers,
                most_batch=rules.most_finals,
                utterance_seconds=loaded.utterance_seconds,
                gpu_problem=loaded.gpu_problem,
            )
        )
        self._work(loaded.model)

    def _further_thread(
        self, model: Transcriber, plan: Sequence[tuple[float, int]], warm: threading.Barrier
    ) -> None:
        _warm_thread(model, plan, warm)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._scheduler is not None)
        self._work(model)

    def _work(self, model: Transcriber) -> None:
        while (job := self._next_job()) is not None:
            if isinstance(job, _Job):
                self._transcribe(model, job)
            else:
                self._measure_step(model, job)

    def _next_job(self) -> _Job | Measurement | None:
        """Waits for a batch, or when nobody has anything to do for a measurement."""
        with self._changed:
            while not self._ended:
                assert self._scheduler is not None
                now = time.monotonic()
                batch = self._scheduler.next_batch(now)
                if batch is not None:
                    return self._job(batch)
                wakeup = self._scheduler.next_wakeup()
                if wakeup is None and self._measurement is not None and not self._measuring:
                    self._measuring = True
                    return self._measurement
                self._changed.wait(None if wakeup is None else max(0.0, wakeup - now))
        return None

    def _job(self, batch: Batch) -> _Job:
        """With the audio as it is now: what comes while the batch runs must not be part of it."""
        requests = []
        for request in batch.requests:
            utterance = self._utterances[request.key]
            audio = samples_of(utterance.audio, round(request.audio_seconds * LISTEN_RATE_HZ))
            requests.append(WhisperRequest(audio, utterance.language, utterance.prompt))
        fast = self._quality.economy or not batch.final
        return _Job(batch, requests, _FAST_BEAM if fast else None)

    def _transcribe(self, model: Transcriber, job: _Job) -> None:
        batch = job.batch
        self._send(protocol.AtWork(batch.number, tuple(each.key for each in batch.requests)))
        outcomes = self._outcomes(model, job)
        with self._changed:
            assert self._scheduler is not None
            self._scheduler.finished(batch)
            answers = self._answers(batch, outcomes)
            self._changed.notify_all()
        for answer in answers:
            self._send(answer)
        self._send(protocol.AtWork(batch.number, ()))

    def _outcomes(self, model: Transcriber, job: _Job) -> Sequence[Transcript | EngineError]:
        """A transcript or an error for each request: one that cannot be transcribed fails alone."""
        together = _attempt(model, job.requests, job)
        if not isinstance(together, EngineError):
            return together
        if isinstance(together, OutOfGpuMemory):
            return [together] * len(job.requests)
        alone = [together] if len(job.requests) == 1 else list(self._one_by_one(model, job))
        if any(isinstance(each, EngineError) for each in alone) and not _is_sound(model):
            return alone
        return [_harmless(each) if isinstance(each, EngineError) else each for each in alone]

    def _one_by_one(self, model: Transcriber, job: _Job) -> Iterator[Transcript | EngineError]:
        for request, wanted in zip(job.batch.requests, job.requests, strict=True):
            self._send(protocol.AtWork(job.batch.number, (request.key,)))
            found = _attempt(model, [wanted], job)
            yield found if isinstance(found, EngineError) else found[0]

    def _answers(
        self, batch: Batch, outcomes: Sequence[Transcript | EngineError]
    ) -> list[protocol.Response]:
        run_seconds = time.monotonic() - batch.started_at
        answers: list[protocol.Response] = []
        for request, outcome in zip(batch.requests, outcomes, strict=True):
            utterance = self._utterances.get(request.key)
            if utterance is None:
                continue
            utterance.run_seconds += run_seconds if request.final else 0.0
            if isinstance(outcome, EngineError):
                # Of a partial too: what broke the model will do so again.
                self._forget(request.key)
                answers.append(protocol.Failed(request.key, outcome.code, str(outcome)))
            elif request.final:
                answers += self._final(batch, utterance, outcome)
            elif utterance.finished_at is None:
                spent = protocol.Spent(
                    queue_seconds=batch.started_at - request.arrival,
                    run_seconds=run_seconds,
                    batch=len(batch.requests),
                    window_seconds=batch.window_seconds,
                )
                answers.append(protocol.PartialText(request.key, outcome.text, spent))
        return answers

    def _final(
        self, batch: Batch, utterance: _Utterance, transcript: Transcript
    ) -> list[protocol.Response]:
        """The answer; nothing when a doubtful result is to be had once more."""
        first, retried = utterance.first_try, utterance.first_try is not None
        if first is None:
            longer = self._windows.second_try(
                batch.window_seconds,
                doubtful=transcript.doubtful,
                economy=self._quality.economy,
            )
            if longer is not None:
                utterance.first_try = transcript
                self._want_final(utterance, longer)
                return []
        elif transcript.doubtful and transcript.mean_logprob < first.mean_logprob:
            transcript = first
        assert utterance.finished_at is not None
        self._forget(utterance.key)
        waited = time.monotonic() - utterance.finished_at - utterance.run_seconds
        spent = protocol.Spent(
            queue_seconds=max(0.0, waited),
            run_seconds=utterance.run_seconds,
            batch=len(batch.requests),
            window_seconds=batch.window_seconds,
            retried=retried,
        )
        return [protocol.FinalText(utterance.key, transcript.text, utterance.samples, spent)]

    def _measure_step(self, model: Transcriber, measurement: Measurement) -> None:
        step = measurement.next_step()
        if step is not None:
            _time_batches(model, measurement, *step)
        with self._changed:
            self._measuring = False
            done = step is None and self._measurement is measurement
            if done:
                self._measurement = None
            self._changed.notify_all()
        if done:
            self._send(protocol.Measured(tuple(measurement.points), measurement.failure))


def _attempt(
    model: Transcriber, requests: Sequence[WhisperRequest], job: _Job
) -> Sequence[Transcript] | EngineError:
    try:
        return model.transcribe(requests, job.batch.window_seconds, beam_size=job.beam_size)
    except EngineError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a root: this thread serves all callers
        traceback.print_exc()
        return EngineCrashed(f"Whisper failed: {error!r}")


def _is_sound(model: Transcriber) -> bool:
    """Does it do what it did when it was loaded?"""
    try:
        _transcribe_noise(model)
    except Exception:  # noqa: BLE001 - a root, as in `_attempt`
        traceback.print_exc()
        return False
    return True


def _transcribe_noise(model: Transcriber) -> None:
    model.transcribe([WhisperRequest(_noise(), "en")], FULL_WINDOW_SECONDS)


def _harmless(error: EngineError) -> EngineError:
    """The model goes on: what failed is this utterance, and no reason to replace the engine."""
    return error if isinstance(error, OutOfGpuMemory) else EngineError(str(error))


def _time_batches(
    model: Transcriber, measurement: Measurement, window_seconds: float, batch: int
) -> None:
    audio = bytearray(measurement.wanted.pcm)
    samples = min(len(audio) // _BYTES_PER_SAMPLE, int(window_seconds * LISTEN_RATE_HZ))
    requests = [WhisperRequest(samples_of(audio, samples), "en")] * batch
    seconds: list[float] = []
    try:
        # Short ones twice: the first of a new shape may have to make room for itself.
        while len(seconds) < 2 and sum(seconds) < _QUICK_SECONDS:
            started = time.monotonic()
            model.transcribe(requests, window_seconds)
            seconds.append(time.monotonic() - started)
    except OutOfGpuMemory:
        return  # so large a batch does not fit; what was measured stands
    except EngineError as error:
        measurement.failure = str(error)
        return
    measurement.took(window_seconds, batch, seconds)


# ------------------------------------------------------------------------------------- loading


def load_model(setup: protocol.Setup) -> Loaded:
    """The model, warm; blocking. Raises EngineError.

    With ``device`` auto a GPU that cannot be used (old driver, missing libraries) means the CPU.
    """
    device = setup.device if setup.device != "auto" else _best_device()
    try:
        return _load_on(device, setup, "")
    except EngineError as error:
        if setup.device != "auto" or device == "cpu":
            raise
        return _load_on("cpu", setup, str(error))


def _best_device() -> str:
    import ctranslate2

    return "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"


def _load_on(device: str, setup: protocol.Setup, gpu_problem: str) -> Loaded:
    model = BatchWhisper(
        setup.folder,
        device=device,
        device_index=setup.device_index,
        compute_type=setup.compute_type,
        workers=setup.workers,
        beam_size=setup.beam_size,
        encoder=setup.encoder,
    )
    return Loaded(model, device == "cuda", _warm_up(model, windows_for(setup)), gpu_problem)


def _warm_up(model: Transcriber, windows: WindowPolicy) -> float:
    """Transcribe twice, once to warm up; seconds that the second run took."""
    request = WhisperRequest(_noise(), "en")
    window = windows.for_final(_WARM_UP_SECONDS)
    started = 0.0
    for _ in range(2):
        started = time.monotonic()
        model.transcribe([request], window)
    return time.monotonic() - started


def shapes_to_warm(rules: BatchRules, windows: WindowPolicy) -> list[tuple[float, int]]:
    """Window and size of the largest batches that a GPU may get, the most memory first.

    Each first one of its shape makes room for itself and has its kernels chosen, or compiled: up to
    a second in which callers would wait.
    """
    shapes = set()
    for seconds in WINDOWS_SECONDS:
        final, partial = windows.for_final(seconds - 1.0), windows.for_partial(seconds - 1.0)
        shapes.add((final, rules.most_finals))
        fit = rules.partial_seconds / partial
        shapes.add((partial, max(1, int(min(rules.most_partials, fit)))))
    # Small ones too: most batches are.
    shapes |= {(window, 1) for window, _ in shapes}
    return sorted(shapes, key=lambda shape: (-shape[0] * shape[1], -shape[0]))


def _warm_thread(
    model: Transcriber, plan: Sequence[tuple[float, int]], warm: threading.Barrier
) -> None:
    """On a model thread, which has a stream and memory of its own; waits for the others."""
    try:
        for window_seconds, batch in plan:
            model.transcribe([WhisperRequest(_noise(), "en")] * batch, window_seconds)
    except EngineError:  # what does not fit now will be told when it is wanted
        traceback.print_exc()
    finally:
        warm.wait()


def _noise() -> Samples:
    """Silence would not do: its transcript may end before the decoder has run."""
    noise = np.random.default_rng(0).normal(0, 1000, _WARM_UP_SECONDS * LISTEN_RATE_HZ)
    return noise.astype(np.int16)


def windows_for(setup: protocol.Setup) -> WindowPolicy:
    """The windows that the settings ask for."""
    least = min(setup.final_window_seconds, FULL_WINDOW_SECONDS)
    return WindowPolicy(final_window_seconds=least, full=setup.full_windows)


def rules_for(setup: protocol.Setup, loaded: Loaded) -> BatchRules:
    """Bounds of the batches, by what runs the model.

    A GPU takes a few requests more in hardly more time, so it is worth waiting for company there,
    and with a worker for finals alone partials do not stand in their way.
    """
    most = setup.most_batch or (_GPU_BATCH if loaded.on_gpu else _CPU_BATCH)
    workers = loaded.model.workers
    together = _GPU_PARTIAL_SECONDS[loaded.model.encoder]
    return BatchRules(
        most_finals=most,
        most_partials=most if loaded.on_gpu else max(1, most // _CPU_PARTIALS_SHARE),
        partial_seconds=together if loaded.on_gpu else _CPU_PARTIAL_SECONDS,
        workers=workers,
        reserved_for_finals=int(loaded.on_gpu and workers > 1),
        gather_seconds=_GPU_GATHER_SECONDS if loaded.on_gpu else 0.0,
    )


def samples_of(audio: bytearray, samples: int) -> Samples:
    """The first ``samples`` of ``audio``, copied."""
    return np.frombuffer(bytes(audio[: samples * _BYTES_PER_SAMPLE]), dtype="<i2")


# ----------------------------------------------------------------------------------- the pipes


class _Sender:
    """Frames to the server, from any thread."""

    def __init__(self, stdout: int) -> None:
        self._stdout = stdout
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()

    def __call__(self, response: protocol.Response) -> None:
        with self._lock:
            data = memoryview(protocol.frame(self._encoder.encode(response)))
            try:
                while data:
                    data = data[os.write(self._stdout, data) :]
            except BrokenPipeError:
                return  # the server is gone; the end of stdin says so too


def serve(stdin: BinaryIO, stdout: int, load: Callable[[protocol.Setup], Loaded]) -> None:
    """Work until ``stdin`` closes. Raises ProtocolError or msgspec.MsgspecError on rubbish."""
    decoder = msgspec.msgpack.Decoder(protocol.Request)
    recognizer = Recognizer(_Sender(stdout), load)
    for payload in protocol.read_frames(stdin, _MAX_FRAME_BYTES):
        recognizer.handle(decoder.decode(payload))


def _end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """A model thread that is gone would leave a worker that answers heartbeats and nothing else."""
    traceback.print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


def main(load: Callable[[protocol.Setup], Loaded] = load_model) -> None:
    """Entry point of the process; does not return."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; stdin ends us
    threading.excepthook = _end_with_thread
    # Whatever C code prints must not get between the frames.
    stdout = os.dup(1)
    os.dup2(2, 1)
    status = 0
    try:
        serve(sys.stdin.buffer, stdout, load)
    except (protocol.ProtocolError, msgspec.MsgspecError):
        traceback.print_exc()
        status = 1
    # Nobody wants what the model threads still do, and the weights need no farewell.
    os._exit(status)


if __name__ == "__main__":
    main()
