"""The Kokoro worker's insides: a scripted model on its thread, requests by hand."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from voice_rtc.core.audio import Samples
from voice_rtc.engines.tts import kokoro_protocol as protocol
from voice_rtc.engines.tts.kokoro_voices import Utterance
from voice_rtc.engines.tts.kokoro_worker import Loaded, Speaker, rules_for
from voice_rtc.errors import EngineCrashed, EngineUnavailable, OutOfGpuMemory

VOICE = (("af_heart", 1.0),)
PATIENCE_SECONDS = 10.0


def setup(**changes: object) -> protocol.Setup:
    values: dict[str, object] = {
        "folder": "", "device": "cpu", "device_index": 0, "precision": "auto", "batch": 4,
        "graphs": False, "threads": 1, "most_waiting": 8, "patience_seconds": 60.0, "voice": VOICE,
        **changes,
    }  # fmt: skip
    return protocol.Setup(**values)  # type: ignore[arg-type] # values come by name


def speak(key: int, text: str, *, caller: str = "", first: bool = True) -> protocol.Speak:
    return protocol.Speak(key, caller or f"caller {key}", first, text, VOICE, 1.0)


class Gated:
    """Speaks a batch whenever it is let; texts say what fails."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.began: queue.Queue[list[str]] = queue.Queue()

    def speak(self, utterances: Sequence[Utterance]) -> list[Samples]:
        texts = [utterance.text for utterance in utterances]
        self.began.put(texts)
        assert self.gate.acquire(timeout=PATIENCE_SECONDS)
        if "crash" in texts:
            raise EngineCrashed("scripted")
        if len(texts) > 1 and "big" in texts:
            raise OutOfGpuMemory("scripted")
        return [np.full(len(text), 7, np.int16) for text in texts]


class Worker:
    """A `Speaker` with what it sent."""

    def __init__(self, **changes: object) -> None:
        self.model = Gated()
        self.sent: queue.Queue[protocol.Response] = queue.Queue()
        self.speaker = Speaker(
            self.sent.put, lambda _: Loaded(self.model, True, "nowhere", 0.01, "none")
        )
        self.speaker.handle(setup(**changes))
        assert self.next() == protocol.Ready("nowhere", 0.01, "none")

    def next(self) -> protocol.Response:
        return self.sent.get(timeout=PATIENCE_SECONDS)

    def began(self) -> list[str]:
        return self.model.began.get(timeout=PATIENCE_SECONDS)

    def ask(self, *requests: protocol.Request) -> None:
        for request in requests:
            self.speaker.handle(request)

    def close(self) -> None:
        self.model.gate.release(100)
        self.speaker.end()


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_a_piece_is_spoken(worker: Worker) -> None:
    worker.ask(speak(1, "hello"))
    assert worker.began() == ["hello"]
    worker.model.gate.release()
    match worker.next():
        case protocol.Spoken(key=1, pcm=pcm, batch=1) as spoken:
            assert np.frombuffer(pcm, "<i2").tolist() == [7] * 5
            assert spoken.queue_seconds >= 0.0 and spoken.run_seconds >= 0.0
        case other:
            pytest.fail(f"{other}")


def test_what_comes_meanwhile_is_spoken_together_first_clauses_first(worker: Worker) -> None:
    worker.ask(speak(1, "one"))
    assert worker.began() == ["one"]
    worker.ask(speak(2, "two", first=False), speak(3, "six"), speak(4, "ten"))
    worker.ask(speak(5, "now", first=False), speak(6, "few", first=False))
    worker.model.gate.release(10)
    assert [worker.began() for _ in range(2)] == [["six", "ten"], ["two", "now", "few"]]
    found = [worker.next() for _ in range(6)]
    assert {spoken.key for spoken in found if isinstance(spoken, protocol.Spoken)} == set(
        range(1, 7)
    )


def test_what_is_cancelled_before_its_batch_is_not_spoken(worker: Worker) -> None:
    worker.ask(speak(1, "one"))
    assert worker.began() == ["one"]
    worker.ask(speak(2, "two"), speak(3, "three"), protocol.Cancel(2), protocol.Cancel(1))
    worker.model.gate.release(10)
    assert worker.began() == ["three"]
    assert [each.key for each in (worker.next(), worker.next())] == [1, 3]  # type: ignore[union-attr] # both Spoken


def test_heartbeats_are_answered_while_the_model_is_busy(worker: Worker) -> None:
    worker.ask(speak(1, "one"))
    assert worker.began() == ["one"]
    worker.ask(speak(2, "two"), protocol.Ping(5))
    match worker.next():
        case protocol.Pong(number=5, waiting=1, busy_seconds=busy):
            assert busy > 0.0
        case other:
            pytest.fail(f"{other}")


def test_past_its_bound_it_refuses() -> None:
    worker = Worker(most_waiting=1)
    worker.ask(speak(1, "one"))
    assert worker.began() == ["one"]
    worker.ask(speak(2, "two"), speak(3, "three"))
    match worker.next():
        case protocol.Failed(key=3, code="engine_timeout"):
            pass
        case other:
            pytest.fail(f"{other}")
    worker.close()


def test_one_that_fails_takes_no_other_with_it(worker: Worker) -> None:
    worker.ask(speak(1, "one"))
    assert worker.began() == ["one"]
    worker.ask(speak(2, "crash"), speak(3, "fine"), speak(4, "big"))
    worker.model.gate.release(10)
    answers = {each.key: type(each) for each in (worker.next() for _ in range(4))}  # type: ignore[union-attr] # none is a Pong
    assert answers == {
        1: protocol.Spoken, 2: protocol.Failed, 3: protocol.Spoken, 4: protocol.Spoken
    }  # fmt: skip


def test_what_cannot_be_loaded_is_told() -> None:
    def load(_: protocol.Setup) -> Loaded:
        raise EngineUnavailable("nothing there")

    sent: queue.Queue[protocol.Response] = queue.Queue()
    speaker = Speaker(sent.put, load)
    speaker.handle(setup())
    answer = sent.get(timeout=PATIENCE_SECONDS)
    assert answer == protocol.Unavailable("engine_unavailable", "nothing there")
    speaker.end()


def test_batches_are_for_gpus() -> None:
    assert rules_for(setup(batch=0), on_gpu=False).most_firsts == 1
    assert rules_for(setup(batch=0), on_gpu=True).most_firsts > 1
    assert rules_for(setup(batch=3), on_gpu=False).most_firsts == 3
    assert rules_for(setup(batch=1), on_gpu=True).most_laters == 1
