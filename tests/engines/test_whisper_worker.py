"""The Whisper worker: its recogniser with a scripted model, and the process with the real one."""

from __future__ import annotations

import asyncio
import io
import os
import queue
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.engines.fake_transcriber import (
    ALWAYS_DOUBTFUL,
    BREAKS,
    CRASHES,
    DOUBTFUL,
    RUNS_OUT_OF_MEMORY,
    WAITS,
    FakeTranscriber,
)
from tests.support.audio import WHISPER_SYNTHETIC, constant
from voice_rtc.core.audio import LISTEN_RATE_HZ
from voice_rtc.engines.stt import whisper_protocol as protocol
from voice_rtc.engines.stt.whisper import WhisperSettings
from voice_rtc.engines.stt.whisper_worker import Loaded, Measurement, Recognizer, rules_for
from voice_rtc.errors import EngineCrashed, EngineError, EngineUnavailable, OutOfGpuMemory

PATIENCE_SECONDS = 20.0
SECOND = LISTEN_RATE_HZ


def setup(folder: str = "nowhere", **changes: object) -> protocol.Setup:
    made = WhisperSettings(device="cpu", language="").setup(folder)
    return msgspec.structs.replace(made, **{"partial_samples": SECOND, **changes})


def measure(*windows: float, slow_seconds: float = 9.0, most_seconds: float = 9.0):
    return protocol.Measure(bytes(2 * SECOND), windows, slow_seconds, most_seconds)


class Parent:
    """Drives a Recognizer as the server would, without a process between them."""

    def __init__(self) -> None:
        self.model = FakeTranscriber()
        self.answers: queue.Queue[protocol.Response] = queue.Queue()
        self.may_load = threading.Event()
        self.at_work: queue.Queue[tuple[int, ...]] = queue.Queue()
        """Keys of the batches, as they begin, and nothing when they are done."""
        self.recognizer = Recognizer(self._take, self._load)

        self.on_gpu = False

    def _take(self, answer: protocol.Response) -> None:
        if isinstance(answer, protocol.AtWork):
            self.at_work.put(answer.keys)
        else:
            self.answers.put(answer)

    def _load(self, _: protocol.Setup) -> Loaded:
        assert self.may_load.wait(PATIENCE_SECONDS)
        return Loaded(self.model, self.on_gpu, utterance_seconds=0.1)

    def start(self, **changes: object) -> Parent:
        self.may_load.set()
        self.tell(setup(**changes))
        assert isinstance(self.answer(), protocol.Ready)
        return self

    def tell(self, *requests: protocol.Request) -> None:
        for request in requests:
            self.recognizer.handle(request)

    def talk(self, key: int, value: int, seconds: float = 0.5, caller: int = 0) -> None:
        self.tell(protocol.Begin(key, caller or key, "", ""))
        self.audio(key, value, seconds)

    def audio(self, key: int, value: int, seconds: float = 0.5) -> None:
        samples = constant(value, round(seconds * SECOND))
        self.tell(protocol.Audio(key, samples.tobytes()))

    def utter(self, key: int, value: int, seconds: float = 0.5) -> None:
        self.talk(key, value, seconds)
        self.tell(protocol.Finish(key))

    def answer(self) -> protocol.Response:
        return self.answers.get(timeout=PATIENCE_SECONDS)

    def call(self) -> tuple[list[str], float, int | None]:
        """What the model was asked for next."""
        return self.model.calls.get(timeout=PATIENCE_SECONDS)

    def texts(self, count: int) -> list[tuple[int, str]]:
        found = []
        for _ in range(count):
            answer = self.answer()
            assert isinstance(answer, protocol.FinalText | protocol.PartialText), answer
            found.append((answer.key, answer.text))
        return found


@pytest.fixture
def parent() -> Iterator[Parent]:
    made = Parent()
    yield made
    made.may_load.set()
    made.model.released.set()
    made.recognizer.end()


def occupy(parent: Parent, key: int = 1) -> None:
    """Keep the only model thread busy until the model is released."""
    parent.utter(key, WAITS)
    assert parent.call()[0] == [f"{WAITS}x8000"]


# ------------------------------------------------------------------------------------- utterances


def test_an_utterance_gets_its_final(parent: Parent) -> None:
    parent.start().tell(protocol.Begin(1, 1, "de", "Falke"))
    parent.audio(1, 5, 0.25)
    parent.audio(1, 6, 0.25)
    parent.tell(protocol.Finish(1))
    answer = parent.answer()
    assert isinstance(answer, protocol.FinalText)
    assert (answer.key, answer.text, answer.samples) == (1, "de Falke 5x8000", 8000)
    assert (answer.spent.batch, answer.spent.window_seconds) == (1, 10.0)
    assert not answer.spent.retried


def test_an_utterance_without_audio_has_a_final_too(parent: Parent) -> None:
    parent.start().tell(protocol.Begin(1, 1, "", ""), protocol.Finish(1))
    assert parent.texts(1) == [(1, "0x0")]


def test_partials_come_with_each_second_of_audio(parent: Parent) -> None:
    parent.start().talk(1, 5, 0.75)
    parent.audio(1, 5, 0.25)
    assert parent.texts(1) == [(1, "5x16000")]
    assert parent.call() == (["5x16000"], 3.0, 1)
    parent.audio(1, 5, 0.75)
    parent.tell(protocol.Finish(1))
    assert parent.texts(1) == [(1, "5x28000")]
    assert parent.model.calls.qsize() == 1, "there was no second partial"


def test_finals_go_first_and_only_the_newest_partials_follow(parent: Parent) -> None:
    parent.start()
    occupy(parent)
    for key in (2, 3, 4, 5):
        parent.talk(key, key, 1.0)
        parent.audio(key, key, 1.0)
    parent.tell(protocol.Finish(4), protocol.Finish(5))
    parent.model.released.set()
    assert parent.texts(5) == [
        (1, f"{WAITS}x8000"),
        *((4, "4x32000"), (5, "5x32000")),
        *((2, "2x32000"), (3, "3x32000")),
    ]
    assert parent.call()[0] == ["4x32000", "5x32000"]
    assert parent.call()[0] == ["2x32000", "3x32000"]
    assert parent.model.calls.empty()


def test_audio_that_comes_while_a_batch_runs_is_not_part_of_it(parent: Parent) -> None:
    parent.start()
    parent.talk(1, WAITS, 1.0)
    parent.call()
    parent.audio(1, WAITS, 0.5)
    parent.model.released.set()
    assert parent.texts(1) == [(1, f"{WAITS}x16000")]


def test_callers_do_not_mix(parent: Parent) -> None:
    parent.start()
    for key in range(1, 9):
        parent.tell(protocol.Begin(key, key, "", f"caller {key}"))
    for _ in range(4):
        for key in range(1, 9):
            parent.audio(key, key, 0.1)
    for key in range(8, 0, -1):
        parent.tell(protocol.Finish(key))
    expected = [(key, f"caller {key} {key}x6400") for key in range(1, 9)]
    assert sorted(parent.texts(8)) == expected


def test_a_partial_of_a_finished_utterance_is_not_told(parent: Parent) -> None:
    parent.start()
    parent.talk(1, WAITS, 1.0)
    parent.call()
    parent.tell(protocol.Finish(1))
    parent.model.released.set()
    assert isinstance(parent.answer(), protocol.FinalText)


def test_what_is_discarded_is_forgotten(parent: Parent) -> None:
    parent.start()
    occupy(parent)
    parent.utter(2, 5)
    parent.talk(3, 5, 1.0)
    parent.tell(*(protocol.Discard(key) for key in (1, 2, 3, 99)))
    parent.audio(2, 5)
    parent.tell(protocol.Finish(2))
    parent.model.released.set()
    parent.utter(4, 7)
    assert parent.texts(1) == [(4, "7x8000")]
    assert parent.call()[0] == ["7x8000"], "neither 2 nor 3 came to the model"


def test_an_endless_utterance_is_refused(parent: Parent) -> None:
    parent.start(partial_samples=1000 * SECOND).talk(1, 5, 599.0)
    parent.audio(1, 5, 2.0)
    answer = parent.answer()
    assert isinstance(answer, protocol.Failed)
    assert "more than 600 s" in answer.message
    parent.tell(protocol.Finish(1))
    parent.utter(2, 6)
    assert parent.texts(1) == [(2, "6x8000")]


# ------------------------------------------------------------------------------- doubts and quality


def test_a_doubtful_final_is_tried_once_more_in_a_long_window(parent: Parent) -> None:
    parent.start(beam_size=5).utter(1, DOUBTFUL)
    answer = parent.answer()
    assert isinstance(answer, protocol.FinalText)
    assert answer.text == f"{DOUBTFUL}x8000"
    assert (answer.spent.retried, answer.spent.window_seconds) == (True, 30.0)
    assert [parent.call()[1:] for _ in range(2)] == [(10.0, None), (30.0, None)]


def test_the_surer_of_two_doubtful_results_stands(parent: Parent) -> None:
    parent.start().utter(1, ALWAYS_DOUBTFUL)
    assert parent.texts(1) == [(1, "doubtful at 10")]
    assert parent.model.calls.qsize() == 2


def test_economy_is_short_greedy_and_without_a_second_try(parent: Parent) -> None:
    parent.start().tell(protocol.Quality(1.0, True))
    parent.utter(1, DOUBTFUL)
    assert parent.texts(1) == [(1, "doubtful")]
    assert parent.call()[1:] == (3.0, 1)
    parent.tell(protocol.Quality(1.0, False))
    parent.utter(2, 5)
    assert parent.texts(1) == [(2, "5x8000")]
    assert parent.call()[1:] == (10.0, None)


def test_partials_can_be_made_rarer_and_given_up(parent: Parent) -> None:
    parent.start().tell(protocol.Quality(2.0, False))
    parent.talk(1, 5, 1.9)
    parent.audio(1, 5, 0.1)
    assert parent.texts(1) == [(1, "5x32000")]
    assert parent.call()[0] == ["5x32000"]
    occupy(parent, key=2)
    parent.audio(1, 5, 2.0)
    parent.tell(protocol.Quality(None, False))
    parent.audio(1, 5, 9.0)
    parent.model.released.set()
    parent.utter(3, 6)
    assert [key for key, _ in parent.texts(2)] == [2, 3], "what waited was withdrawn"


def test_full_windows(parent: Parent) -> None:
    parent.start(full_windows=True).talk(1, 5, 1.0)
    parent.texts(1)
    parent.tell(protocol.Finish(1))
    parent.texts(1)
    assert [parent.call()[1] for _ in range(2)] == [30.0, 30.0]


# ----------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (CRASHES, "engine_error"),
        (RUNS_OUT_OF_MEMORY, "out_of_gpu_memory"),
        (BREAKS, "engine_error"),
    ],
)
def test_a_failing_model_costs_the_utterance(parent: Parent, script: int, code: str) -> None:
    parent.start().utter(1, script)
    answer = parent.answer()
    assert isinstance(answer, protocol.Failed)
    assert (answer.key, answer.code) == (1, code)
    parent.utter(2, 5)
    assert parent.texts(1) == [(2, "5x8000")]


def test_one_that_fails_costs_its_company_nothing(parent: Parent) -> None:
    parent.start(most_batch=8)
    occupy(parent, key=9)
    for key, value in ((1, 5), (2, CRASHES), (3, 6)):
        parent.utter(key, value)
    parent.model.released.set()
    assert parent.texts(1) == [(9, f"{WAITS}x8000")]
    failed = {}
    texts = {}
    for _ in range(3):
        answer = parent.answer()
        if isinstance(answer, protocol.Failed):
            failed[answer.key] = answer.code
        else:
            assert isinstance(answer, protocol.FinalText)
            texts[answer.key] = answer.text
    assert texts == {1: "5x8000", 3: "6x8000"}
    assert failed == {2: EngineError.code}, "the model is sound, and is not to be replaced"


def test_a_model_that_is_broken_is_told_as_such(parent: Parent) -> None:
    parent.start(most_batch=8)
    occupy(parent, key=9)
    parent.utter(1, CRASHES)
    parent.utter(2, CRASHES)
    parent.model.broken = True
    parent.model.released.set()
    parent.texts(1)
    codes = [parent.answer() for _ in range(2)]
    assert {answer.key: answer.code for answer in codes if isinstance(answer, protocol.Failed)} == {
        1: EngineCrashed.code,
        2: EngineCrashed.code,
    }


def test_what_is_in_work_is_told_before_and_after(parent: Parent) -> None:
    parent.start(most_batch=8)
    occupy(parent, key=9)
    assert parent.at_work.get(timeout=PATIENCE_SECONDS) == (9,)
    parent.utter(1, 5)
    parent.utter(2, CRASHES)
    parent.model.released.set()
    told = [parent.at_work.get(timeout=PATIENCE_SECONDS) for _ in range(5)]
    assert told == [(), (1, 2), (1,), (2,), ()]


def test_an_utterance_that_is_to_be_alone_has_no_partials_and_no_company(parent: Parent) -> None:
    parent.start(most_batch=8)
    occupy(parent, key=9)
    parent.tell(protocol.Begin(1, 1, "", "", alone=True))
    parent.audio(1, 5, 3.0)
    parent.tell(protocol.Finish(1))
    parent.utter(2, 6)
    parent.model.released.set()
    assert parent.texts(3) == [(9, f"{WAITS}x8000"), (1, "5x48000"), (2, "6x8000")]
    assert [parent.call()[0] for _ in range(2)] == [["5x48000"], ["6x8000"]]


def test_a_failing_partial_does_too(parent: Parent) -> None:
    parent.start().talk(1, CRASHES, 1.0)
    answer = parent.answer()
    assert isinstance(answer, protocol.Failed)
    parent.tell(protocol.Finish(1))
    parent.utter(2, 5)
    assert parent.texts(1) == [(2, "5x8000")]


def test_a_model_that_cannot_be_loaded_is_told_with_its_code() -> None:
    answers: queue.Queue[protocol.Response] = queue.Queue()

    def load(wanted: protocol.Setup) -> Loaded:
        if wanted.folder == "large":
            raise OutOfGpuMemory("no room")
        raise LookupError("damaged")

    for folder, code in (("large", "out_of_gpu_memory"), ("broken", "engine_unavailable")):
        recognizer = Recognizer(answers.put, load)
        recognizer.handle(setup(folder))
        answer = answers.get(timeout=PATIENCE_SECONDS)
        assert isinstance(answer, protocol.Unavailable)
        assert answer.code == code
        recognizer.end()


def test_what_comes_before_the_model_is_loaded_fails(parent: Parent) -> None:
    parent.tell(setup(), measure(5.0))
    parent.utter(1, 5)
    measured, failed = parent.answer(), parent.answer()
    assert isinstance(measured, protocol.Measured)
    assert measured.failure
    assert isinstance(failed, protocol.Failed)
    assert failed.code == EngineUnavailable.code


# ------------------------------------------------------------------------------------- heartbeats


def test_pings_are_answered_while_the_model_loads_and_works(parent: Parent) -> None:
    parent.tell(setup(), protocol.Ping(1))
    assert parent.answer() == protocol.Pong(1, 0.0, None)
    parent.may_load.set()
    assert isinstance(parent.answer(), protocol.Ready)
    occupy(parent)
    parent.utter(2, 5)
    parent.tell(protocol.Ping(2))
    pong = parent.answer()
    assert isinstance(pong, protocol.Pong)
    assert pong.busy_seconds > 0.0
    assert pong.statistics is not None
    assert (pong.statistics.running, pong.statistics.waiting_finals) == (1, 1)
    parent.model.released.set()
    parent.texts(2)
    parent.tell(protocol.Ping(3))
    pong = parent.answer()
    assert isinstance(pong, protocol.Pong)
    assert pong.busy_seconds == 0.0


# ------------------------------------------------------------------------------------ measurements


def test_batches_are_measured_until_they_do_not_fit(parent: Parent) -> None:
    parent.model.most_batch = 3
    parent.start().tell(measure(5.0, 10.0))
    answer = parent.answer()
    assert isinstance(answer, protocol.Measured)
    assert [(window, batch) for window, batch, _ in answer.points] == [
        *((5.0, 1), (5.0, 2), (10.0, 1), (10.0, 2)),
    ]
    assert answer.failure == ""


def test_a_model_that_fails_cannot_be_measured(parent: Parent) -> None:
    crashing = constant(CRASHES, SECOND).tobytes()
    parent.start().tell(msgspec.structs.replace(measure(5.0), pcm=crashing))
    assert parent.answer() == protocol.Measured((), "corrupt result")


def test_callers_go_before_a_measurement(parent: Parent) -> None:
    waiting = constant(WAITS, SECOND).tobytes()
    parent.start(most_batch=2).tell(msgspec.structs.replace(measure(5.0), pcm=waiting))
    assert parent.call()[0] == [f"en {WAITS}x16000"]
    parent.utter(1, 5)
    parent.model.released.set()
    assert parent.texts(1) == [(1, "5x8000")]
    assert isinstance(parent.answer(), protocol.Measured)
    asked = [parent.call()[0] for _ in range(4)]
    assert asked.index(["5x8000"]) < asked.index([f"en {WAITS}x16000"] * 2)


def steps(measurement: Measurement, seconds_each: float) -> list[tuple[float, int]]:
    found = []
    while (step := measurement.next_step()) is not None:
        found.append(step)
        measurement.took(*step, [seconds_each * step[1]])
    return found


def test_slow_batches_are_not_made_larger() -> None:
    found = steps(Measurement(measure(5.0, 10.0, slow_seconds=1.0, most_seconds=99.0), 64), 0.5)
    assert found == [(5.0, 1), (5.0, 2), (10.0, 1), (10.0, 2)], "4 would take two seconds"


def test_a_measurement_ends_in_time() -> None:
    found = steps(Measurement(measure(5.0, 10.0, most_seconds=4.0), 64), 1.0)
    assert found == [(5.0, 1), (5.0, 2), (10.0, 1)], "each as long as the last one told"


def test_the_largest_batch_is_measured() -> None:
    assert steps(Measurement(measure(5.0), 8), 0.001) == [(5.0, batch) for batch in (1, 2, 4, 8)]


# ------------------------------------------------------------------------------------------- rules


def test_batches_suit_the_device() -> None:
    model = FakeTranscriber(workers=2)
    on_cpu = rules_for(setup(), Loaded(model, False, 0.1))
    assert (on_cpu.most_finals, on_cpu.most_partials) == (8, 4)
    assert (on_cpu.reserved_for_finals, on_cpu.gather_seconds) == (0, 0.0)
    on_gpu = rules_for(setup(), Loaded(model, True, 0.1))
    assert (on_gpu.most_finals, on_gpu.most_partials) == (32, 32)
    assert on_gpu.reserved_for_finals == 1
    assert on_gpu.gather_seconds > 0.0
    assert on_cpu.partial_seconds < on_gpu.partial_seconds
    model.encoder = "sdpa"
    assert on_gpu.partial_seconds < rules_for(setup(), Loaded(model, True, 0.1)).partial_seconds
    alone = rules_for(setup(most_batch=1), Loaded(FakeTranscriber(), True, 0.1))
    assert (alone.most_finals, alone.most_partials, alone.reserved_for_finals) == (1, 1, 0)


def test_a_gpu_has_seen_its_largest_batches_before_the_first_caller(parent: Parent) -> None:
    parent.on_gpu = True
    parent.model.workers = 2
    parent.start()
    warmed = [parent.call() for _ in range(parent.model.calls.qsize())]
    shapes = Counter((window, len(texts)) for texts, window, _ in warmed)
    assert set(shapes.values()) == {2}, "each of the two threads has memory of its own"
    assert {(10.0, 32), (30.0, 32), (30.0, 4), (5.0, 24), (5.0, 1), (10.0, 1)} <= shapes.keys()
    parent.utter(1, 5)
    assert parent.texts(1) == [(1, "5x8000")]


def test_a_warm_up_that_does_not_fit_is_no_failure(parent: Parent) -> None:
    parent.on_gpu = True
    parent.model.most_batch = 8
    parent.start()
    parent.utter(1, 5)
    assert parent.texts(1) == [(1, "5x8000")]


# ------------------------------------------------------------------------------------------ frames


def test_frames_are_read_until_the_stream_ends() -> None:
    stream = b"".join(map(protocol.frame, (b"a", b"", b"long" * 50)))
    assert list(protocol.read_frames(io.BytesIO(stream), 1000)) == [b"a", b"", b"long" * 50]
    assert list(protocol.read_frames(io.BytesIO(stream[:-1]), 1000)) == [b"a", b""]


def test_a_frame_beyond_the_bound_is_refused() -> None:
    with pytest.raises(protocol.ProtocolError, match="11 bytes"):
        list(protocol.read_frames(io.BytesIO(protocol.frame(b"x" * 11)), 10))


# ------------------------------------------------------------------------------------- the process


class Worker:
    """The real process, with the real model, spoken to without our own side of the pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout, self.process = process.stdin, process.stdout, process

    def tell(self, *requests: protocol.Request) -> None:
        for request in requests:
            self.stdin.write(protocol.frame(msgspec.msgpack.encode(request)))

    async def answer(self) -> protocol.Response:
        length = int.from_bytes(await self.stdout.readexactly(4), "big")
        payload = await self.stdout.readexactly(length)
        return msgspec.msgpack.decode(payload, type=protocol.Response)

    async def end(self) -> int:
        self.stdin.close()
        return await self.process.wait()


async def spawn() -> Worker:
    pipe = asyncio.subprocess.PIPE
    module = "voice_rtc.engines.stt.whisper_worker"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module), stdin=pipe, stdout=pipe, stderr=pipe
    )
    return Worker(process)


async def test_it_transcribes_and_ends_with_its_stdin() -> None:
    worker = await spawn()
    worker.tell(setup(str(WHISPER_SYNTHETIC), workers=2))
    ready = await worker.answer()
    assert isinstance(ready, protocol.Ready)
    assert (ready.placement, ready.workers) == ("cpu int8, 2 workers", 2)
    assert ready.utterance_seconds > 0.0
    out, err = (os.readlink(f"/proc/{worker.process.pid}/fd/{number}") for number in (1, 2))
    assert out == err, "what a library prints does not get between the frames"
    silence = np.zeros(SECOND, np.int16).tobytes()
    worker.tell(protocol.Begin(1, 1, "", ""), protocol.Audio(1, silence), protocol.Finish(1))
    final = await worker.answer()
    while isinstance(final, protocol.PartialText | protocol.AtWork):
        final = await worker.answer()
    assert isinstance(final, protocol.FinalText)
    assert (final.text, final.samples) == ("", SECOND)
    worker.tell(protocol.Begin(2, 1, "", ""), protocol.Audio(2, silence), protocol.Finish(2))
    assert await worker.end() == 0


async def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    shutil.copytree(WHISPER_SYNTHETIC, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.bin"
    os.truncate(weights, weights.stat().st_size // 2)
    worker = await spawn()
    worker.tell(setup(str(tmp_path)))
    answer = await worker.answer()
    assert isinstance(answer, protocol.Unavailable)
    assert answer.code == "engine_unavailable"
    assert await worker.end() == 0


async def test_rubbish_ends_it() -> None:
    worker = await spawn()
    worker.stdin.write(protocol.frame(b"rubbish"))
    assert await worker.process.wait() == 1
