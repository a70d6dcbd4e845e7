"""Batches of one recogniser: stories, windows, and invariants under random steps."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import count

import pytest

from voice_rtc.core.scheduling import (
    FULL_WINDOW_SECONDS,
    WINDOWS_SECONDS,
    Batch,
    BatchRules,
    BatchScheduler,
    TranscriptionRequest,
    WindowPolicy,
)


def final(key: int, *, at: float = 0.0, window: float = 10.0, caller: int = 0, due: float = 0.0):
    """Caller and deadline follow from key and arrival unless they are given."""
    return TranscriptionRequest(
        key, caller or key, True, window - 1.0, window, due or at + 1.0, arrival=at
    )


def partial(key: int, *, at: float = 0.0, window: float = 5.0, caller: int = 0, due: float = 0.0):
    return replace(final(key, at=at, window=window, caller=caller, due=due or 100.0), final=False)


def scheduler(*requests: TranscriptionRequest, **rules: float) -> BatchScheduler:
    made = BatchScheduler(BatchRules(**rules))  # type: ignore[arg-type] # rules come by name
    for request in requests:
        made.add(request)
    return made


def keys(batch: Batch | None) -> list[int]:
    return [] if batch is None else [request.key for request in batch.requests]


def all_batches(made: BatchScheduler, now: float = 0.0) -> list[list[int]]:
    """What a single worker does, one batch after the other."""
    done = []
    while (batch := made.next_batch(now)) is not None:
        done.append(keys(batch))
        made.finished(batch)
    return done


def test_a_batch_of_long_audio_is_busy_by_its_windows():
    """Else an engine that transcribes a monologue of minutes would be taken for stuck."""
    long = replace(final(1, window=30.0), audio_seconds=250.0)
    made = scheduler(long, final(2, window=30.0), most_finals=1, workers=2)
    assert keys(made.next_batch(1.0)) == [1]
    assert made.busy_seconds(11.0) == pytest.approx(1.0)
    assert keys(made.next_batch(11.0)) == [2]
    assert made.busy_seconds(21.0) == pytest.approx(5.0), "29 s take two windows at most"


# ---------------------------------------------------------------------------------------- alone


def alone(key: int, **changes: float) -> TranscriptionRequest:
    return replace(final(key, **changes), alone=True)  # type: ignore[arg-type]


def test_one_that_is_to_be_alone_has_no_company():
    made = scheduler(final(1), alone(2, at=0.1), final(3, at=0.2), final(4, at=0.3), partial(5))
    assert all_batches(made, 1.0) == [[1, 3, 4], [2], [5]]
    made = scheduler(alone(1), alone(2, at=0.1), final(3, at=0.2))
    assert all_batches(made, 1.0) == [[1], [2], [3]]


def test_nothing_runs_beside_one_that_is_to_be_alone():
    made = scheduler(final(1), alone(2, at=0.1), workers=3, most_finals=1)
    first = made.next_batch(1.0)
    assert first is not None and keys(first) == [1]
    assert made.next_batch(1.0) is None, "it waits until the others are done"
    made.add(final(3, at=0.2))
    made.add(partial(4))
    assert made.next_batch(1.0) is None, "and nobody else begins"
    assert made.next_wakeup() is None
    made.finished(first)
    by_itself = made.next_batch(1.0)
    assert by_itself is not None and keys(by_itself) == [2]
    assert made.next_batch(1.0) is None and made.next_wakeup() is None
    made.finished(by_itself)
    assert keys(made.next_batch(1.0)) == [3] and keys(made.next_batch(1.0)) == [4]


# ------------------------------------------------------------------------------------- who is next


def test_nothing_waits():
    made = scheduler()
    assert made.next_batch(0.0) is None
    assert made.next_wakeup() is None


def test_finals_go_before_partials():
    made = scheduler(partial(1), partial(2), final(3), final(4))
    assert all_batches(made) == [[3, 4], [1, 2]]


def test_the_oldest_deadline_goes_first():
    made = scheduler(final(1, due=9.0), final(2, due=3.0), final(3, due=6.0), most_finals=1)
    assert all_batches(made) == [[2], [3], [1]]


def test_partials_of_long_windows_go_in_smaller_batches():
    """A final that comes meanwhile waits for the end of the batch."""
    long = [partial(key, window=30.0) for key in (1, 2, 3)]
    short = [partial(key, window=5.0) for key in (4, 5, 6)]
    made = scheduler(*long, *short, partial_seconds=60.0)
    assert all_batches(made) == [[1, 2], [3], [4, 5, 6]]
    alone = scheduler(*long, partial_seconds=20.0)
    assert all_batches(alone) == [[1], [2], [3]], "one is taken however long it is"
    finals = scheduler(*(final(key, window=30.0) for key in (1, 2, 3)), partial_seconds=20.0)
    assert all_batches(finals) == [[1, 2, 3]]


def test_a_batch_that_is_full_by_its_windows_does_not_wait_for_company():
    made = scheduler(partial(1, window=30.0), partial_seconds=30.0, gather_seconds=0.5)
    assert keys(made.next_batch(0.0)) == [1]
    waiting = scheduler(partial(1, window=5.0), partial_seconds=30.0, gather_seconds=0.5)
    assert waiting.next_batch(0.0) is None
    assert waiting.next_wakeup() == 0.5


def test_a_full_batch_leaves_the_rest_for_the_next():
    made = scheduler(*(final(key, at=key / 10) for key in range(1, 8)), most_finals=3)
    assert all_batches(made, 1.0) == [[1, 2, 3], [4, 5, 6], [7]]


def test_finals_and_partials_have_their_own_bounds():
    requests = [final(1), final(2), partial(3), partial(4)]
    made = scheduler(*requests, most_finals=2, most_partials=1)
    assert all_batches(made) == [[1, 2], [3], [4]]


def test_a_batch_has_one_window():
    made = scheduler(final(1), final(2, at=0.1, window=30.0), final(3, at=0.2))
    assert all_batches(made, 1.0) == [[1, 3], [2]]


def test_shorter_ones_ride_along_where_that_is_wished():
    requests = [final(1, window=30.0), *(final(key, at=1.0) for key in range(2, 9))]
    made = scheduler(*requests, ride_along_share=0.25)
    assert all_batches(made, 2.0) == [[1, 2, 3], [4, 5, 6, 7, 8]]
    assert made.statistics().rode_along == 2


def test_longer_ones_never_ride_in_a_shorter_window():
    made = scheduler(final(1, window=5.0), final(2, at=0.1), ride_along_share=1.0)
    assert all_batches(made, 1.0) == [[1], [2]]


def test_partials_take_turns():
    """Caller 7 was served once: now the others are, then it again."""
    made = scheduler(partial(1, caller=7), most_partials=1)
    assert all_batches(made) == [[1]]
    for key, caller in ((2, 8), (3, 7), (4, 9)):
        made.add(partial(key, caller=caller))
    assert all_batches(made) == [[3], [2], [4]], "served before the others asked at all"
    for key, caller in ((5, 9), (6, 8), (7, 7)):
        made.add(partial(key, caller=caller))
    assert all_batches(made) == [[7], [6], [5]]


def test_who_was_just_served_goes_behind_those_who_wait():
    made = scheduler(partial(1, caller=1), partial(2, caller=2), most_partials=1)
    served = []
    for key in range(3, 7):
        batch = made.next_batch(0.0)
        assert batch is not None
        served.append(batch.requests[0].caller)
        made.finished(batch)
        made.add(partial(key, caller=served[-1]))
    assert served == [1, 2, 1, 2]


def test_the_newest_partial_keeps_the_place_of_the_older_one():
    made = scheduler(partial(1, caller=1), partial(2, caller=2), most_partials=1)
    made.add(partial(3, caller=1))
    assert all_batches(made) == [[3], [2]]
    assert made.statistics().replaced == 1


def test_a_final_makes_the_partial_needless():
    made = scheduler(partial(1, caller=1), final(1, caller=1))
    assert all_batches(made) == [[1]]
    assert made.statistics().replaced == 1


def test_the_partial_of_the_next_utterance_stays():
    made = scheduler(partial(2, caller=1), final(1, caller=1))
    assert all_batches(made) == [[1], [2]]


def test_a_caller_has_one_partial_at_a_time_in_work():
    made = scheduler(partial(1, caller=1), workers=2)
    first = made.next_batch(0.0)
    made.add(partial(1, caller=1, at=1.0))
    assert made.next_batch(1.0) is None
    assert first is not None
    made.finished(first)
    assert keys(made.next_batch(1.0)) == [1]


def test_late_partials_are_dropped_and_finals_never():
    made = scheduler(partial(1, due=5.0), partial(2, due=7.0), final(3, due=1.0))
    assert all_batches(made, 6.0) == [[3], [2]]
    assert made.statistics().late == 1


def test_what_is_withdrawn_does_not_run():
    made = scheduler(final(1), partial(2), final(3), partial(4))
    made.withdraw(1)
    made.withdraw(2)
    made.withdraw(99)
    assert all_batches(made) == [[3], [4]]
    made.add(partial(5))
    made.withdraw_partials()
    assert all_batches(made) == []
    assert made.statistics().withdrawn == 3


def test_a_second_final_of_an_utterance_is_refused_while_one_waits():
    made = scheduler(final(1))
    with pytest.raises(ValueError, match="waiting already"):
        made.add(final(1))
    with pytest.raises(ValueError, match="waiting already"):
        made.add(partial(1))
    assert all_batches(made) == [[1]]
    made.add(final(1, window=30.0))  # once more in a longer window
    assert all_batches(made) == [[1]]


# ----------------------------------------------------------------------------------------- workers


def test_no_more_batches_than_workers():
    made = scheduler(*(final(key) for key in range(1, 6)), most_finals=1, workers=2)
    first, second = made.next_batch(0.0), made.next_batch(0.0)
    assert keys(first) == [1]
    assert keys(second) == [2]
    assert made.next_batch(0.0) is None
    assert made.next_wakeup() is None, "the end of a batch is what there is to wait for"
    assert first is not None
    made.finished(first)
    assert keys(made.next_batch(0.0)) == [3]


def test_a_reserved_worker_takes_finals_only():
    requests = [partial(key) for key in range(1, 4)]
    made = scheduler(*requests, most_partials=1, workers=2, reserved_for_finals=1)
    first = made.next_batch(0.0)
    assert keys(first) == [1]
    assert made.next_batch(0.0) is None
    assert made.next_wakeup() is None
    made.add(final(9))
    assert keys(made.next_batch(0.0)) == [9]
    assert first is not None
    made.finished(first)
    assert keys(made.next_batch(0.0)) == [2]


def test_reserving_every_worker_is_refused():
    with pytest.raises(ValueError, match="left for partials"):
        BatchScheduler(BatchRules(workers=1, reserved_for_finals=1))


def test_busy_seconds_are_of_the_oldest_batch():
    made = scheduler(final(1), final(2), most_finals=1, workers=2)
    assert made.busy_seconds(5.0) == 0.0
    first = made.next_batch(5.0)
    made.next_batch(7.0)
    assert made.busy_seconds(8.0) == 3.0
    assert first is not None
    made.finished(first)
    assert made.busy_seconds(8.0) == 1.0


# --------------------------------------------------------------------------------------- gathering


def test_a_batch_waits_for_company():
    made = scheduler(final(1, at=1.0), gather_seconds=0.5)
    assert made.next_batch(1.0) is None
    assert made.next_wakeup() == 1.5
    made.add(final(2, at=1.4))
    assert made.next_batch(1.4) is None
    assert made.next_wakeup() == 1.5
    assert keys(made.next_batch(1.5)) == [1, 2]


def test_a_full_batch_does_not_wait():
    made = scheduler(final(1, at=1.0), final(2, at=1.0), gather_seconds=0.5, most_finals=2)
    assert keys(made.next_batch(1.0)) == [1, 2]


def test_what_waited_for_a_worker_has_gathered_enough():
    made = scheduler(final(1, at=1.0), gather_seconds=0.5)
    first = made.next_batch(1.5)
    made.add(final(2, at=2.0))
    assert first is not None
    made.finished(first)
    assert keys(made.next_batch(2.6)) == [2]


def test_partials_do_not_slip_in_while_a_final_gathers():
    made = scheduler(partial(1, at=0.0), final(2, at=1.0), gather_seconds=0.5)
    assert made.next_batch(1.1) is None
    assert keys(made.next_batch(1.5)) == [2]


# ------------------------------------------------------------------------------------- statistics


def test_statistics_and_repr_tell_what_is_going_on():
    made = scheduler(final(1), final(2), partial(3), partial(4, window=3.0))
    assert repr(made) == "<BatchScheduler: 2 finals and 2 partials waiting, 0 batches running>"
    assert made.statistics().batch_mean == 0.0
    made.next_batch(0.0)
    figures = made.statistics()
    assert (figures.waiting_finals, figures.waiting_partials, figures.running) == (0, 2, 1)
    assert (figures.finals, figures.partials, figures.batches) == (2, 0, 1)
    assert figures.batch_mean == 2.0


# ----------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("seconds", "window"),
    [(0.0, 3.0), (2.3, 3.0), (2.31, 5.0), (9.0, 10.0), (14.3, 15.0), (20.0, 30.0), (95.0, 30.0)],
)
def test_partials_get_the_shortest_window_with_room_for_the_pad(seconds: float, window: float):
    assert WindowPolicy().for_partial(seconds) == window


def test_finals_get_a_window_that_is_long_enough():
    policy = WindowPolicy(final_window_seconds=10.0)
    assert [policy.for_final(s) for s in (0.5, 9.3, 9.4, 29.9)] == [10.0, 10.0, 15.0, 30.0]
    assert policy.for_final(0.5, economy=True) == 3.0
    assert WindowPolicy(final_window_seconds=3.0).for_final(0.5) == 3.0
    assert WindowPolicy(final_window_seconds=30.0).for_final(0.5) == 30.0


def test_full_windows_are_for_everything():
    policy = WindowPolicy(full=True)
    assert policy.for_partial(1.0) == FULL_WINDOW_SECONDS
    assert policy.for_final(1.0, economy=True) == FULL_WINDOW_SECONDS


def test_a_doubtful_final_is_tried_once_more_in_the_full_window():
    policy = WindowPolicy()
    assert policy.second_try(10.0, doubtful=True, economy=False) == 30.0
    assert policy.second_try(10.0, doubtful=False, economy=False) is None
    assert policy.second_try(10.0, doubtful=True, economy=True) is None
    assert policy.second_try(30.0, doubtful=True, economy=False) is None


# ------------------------------------------------------------------------------------ random steps


class Model:
    """What must be true after any steps, kept in the plainest way."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        workers = self.random.randint(1, 3)
        self.rules = BatchRules(
            most_finals=self.random.randint(1, 4),
            most_partials=self.random.randint(1, 4),
            workers=workers,
            reserved_for_finals=self.random.randint(0, workers - 1),
            gather_seconds=self.random.choice([0.0, 0.0, 0.3]),
            ride_along_share=self.random.choice([0.0, 0.5]),
            partial_seconds=self.random.choice([30.0, 1000.0]),
        )
        self.made = BatchScheduler(self.rules)
        self.now = 0.0
        self.keys = count(1)
        self.callers = range(1, self.random.randint(2, 8))
        self.finals: dict[int, TranscriptionRequest] = {}
        self.partials: dict[int, TranscriptionRequest] = {}
        self.running: list[Batch] = []
        self.passed_over: Counter[int] = Counter()
        """Caller -> batches of partials that began while its own waited."""
        self.ran = 0

    def ask(self, wants_final: bool) -> None:
        caller = self.random.choice(self.callers)
        window = self.random.choice(WINDOWS_SECONDS)
        make = final if wants_final else partial
        request = make(next(self.keys), at=self.now, window=window, caller=caller)
        if not wants_final:
            request = replace(request, deadline=self.now + self.random.choice([0.5, 50.0]))
        self.made.add(request)
        if wants_final:
            self.finals[request.key] = request
            self.partials.pop(caller, None)
            self.passed_over.pop(caller, None)
        else:
            self.partials[caller] = request

    def discard(self) -> None:
        waiting = [*self.finals, *(each.key for each in self.partials.values())]
        if waiting:
            key = self.random.choice(waiting)
            self.made.withdraw(key)
            self.finals.pop(key, None)
            self.partials = {c: p for c, p in self.partials.items() if p.key != key}

    def expire(self) -> None:
        late = [c for c, each in self.partials.items() if each.deadline < self.now]
        for caller in late:
            del self.partials[caller]
            self.passed_over.pop(caller, None)

    def work(self) -> None:
        batch = self.made.next_batch(self.now)
        self.expire()
        if batch is None:
            self.check_idle()
            return
        assert len(self.running) < self.rules.workers
        assert 1 <= len(batch.requests)
        windows = [request.window_seconds for request in batch.requests]
        assert batch.window_seconds == windows[0] == max(windows)
        (self.check_finals if batch.final else self.check_partials)(batch)
        self.running.append(batch)
        self.ran += len(batch.requests)

    def check_finals(self, batch: Batch) -> None:
        assert len(batch.requests) <= self.rules.most_finals
        assert batch.requests[0].deadline == min(f.deadline for f in self.finals.values())
        for request in batch.requests:
            assert self.finals.pop(request.key) is request, "lost, doubled, or not the newest"

    def check_partials(self, batch: Batch) -> None:
        assert not self.finals, "a final waits"
        assert len(batch.requests) <= self.rules.most_partials
        running = [each for each in self.running if not each.final]
        assert len(running) < self.rules.workers - self.rules.reserved_for_finals
        busy = {request.caller for each in running for request in each.requests}
        for request in batch.requests:
            assert request.caller not in busy
            assert self.partials.pop(request.caller) is request
            self.passed_over.pop(request.caller, None)
        self.passed_over.update(set(self.partials) - busy)
        for caller, batches in self.passed_over.items():
            assert batches < len(self.callers), f"caller {caller} starves"

    def check_idle(self) -> None:
        """Nothing runs although something waits: for a worker, for company, or for its own."""
        if len(self.running) >= self.rules.workers or not (self.finals or self.partials):
            assert self.made.next_wakeup() is None
            return
        wakeup = self.made.next_wakeup()
        if wakeup is None:
            assert not self.finals
            running = [each for each in self.running if not each.final]
            busy = {request.caller for each in running for request in each.requests}
            reserved = len(running) >= self.rules.workers - self.rules.reserved_for_finals
            assert reserved or set(self.partials) <= busy
        else:
            assert self.now < wakeup <= self.now + self.rules.gather_seconds

    def finish(self) -> None:
        if self.running:
            done = self.running.pop(self.random.randrange(len(self.running)))
            self.made.finished(done)

    def check_statistics(self) -> None:
        figures = self.made.statistics()
        assert figures.waiting_finals == len(self.finals)
        assert figures.running == len(self.running)
        assert figures.finals + figures.partials == self.ran

    def step(self) -> None:
        match self.random.randrange(10):
            case 0 | 1:
                self.ask(wants_final=True)
            case 2 | 3 | 4:
                self.ask(wants_final=False)
            case 5 | 6 | 7:
                self.work()
            case 8:
                self.finish()
            case 9:
                self.discard() if self.random.random() < 0.3 else None
                self.now += self.random.choice([0.01, 0.2, 1.0])
        self.check_statistics()

    def drain(self) -> None:
        """Everything that waits runs in the end."""
        for _ in range(1000):
            if not (self.finals or self.partials or self.running):
                break
            self.work()
            self.finish()
            self.now += 0.1
        assert not self.finals
        assert not self.partials
        assert self.made.statistics().waiting_partials == 0


@pytest.mark.parametrize("seed", range(150))
def test_random_steps(seed: int):
    model = Model(seed)
    for _ in range(200):
        model.step()
    model.drain()
    figures = model.made.statistics()
    asked = next(model.keys) - 1
    gone = figures.finals + figures.partials + figures.replaced + figures.late + figures.withdrawn
    assert gone == asked, "each request ran, or was dropped and counted"


def test_nobody_starves_while_strangers_keep_coming():
    made = scheduler(partial(1, caller=1), most_partials=1)
    served = []
    for stranger in range(2, 12):
        made.add(partial(stranger, caller=stranger))
        batch = made.next_batch(0.0)
        assert batch is not None
        served += keys(batch)
        made.finished(batch)
    assert served == list(range(1, 11))


def test_a_forgotten_caller_comes_as_a_stranger():
    made = scheduler(partial(1, caller=1), most_partials=1)
    all_batches(made)
    made.forget(1)
    made.add(partial(2, caller=2))
    made.add(partial(3, caller=1))
    assert all_batches(made) == [[2], [3]]
