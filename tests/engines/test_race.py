"""Which of two attempts wins, on virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from tests.support.virtual_time import run_virtual
from voice_rtc.engines.llm.faults import fault, retry_after
from voice_rtc.engines.llm.race import Race, RaceRules
from voice_rtc.errors import LlmError

RULES = RaceRules(deadline_seconds=10.0, hedge_seconds=2.0)


@dataclass
class Service:
    """Each attempt takes its number of seconds, then answers with its name or raises."""

    script: list[tuple[float, str | LlmError]]
    begun: list[float] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    async def attempt(self) -> str:
        number = len(self.begun)
        self.begun.append(asyncio.get_running_loop().time())
        seconds, outcome = self.script[number]
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        if isinstance(outcome, LlmError):
            raise outcome
        return outcome

    async def discard(self, answer: str) -> None:
        self.discarded.append(answer)

    def race(self, rules: RaceRules = RULES) -> Race[str]:
        return Race(self.attempt, self.discard, rules, self.told.append)


def run(service: Service, rules: RaceRules = RULES) -> tuple[str | LlmError, float]:
    """What came of it, and when."""

    async def it() -> tuple[str | LlmError, float]:
        try:
            outcome: str | LlmError = await service.race(rules).winner()
        except LlmError as error:
            outcome = error
        return outcome, asyncio.get_running_loop().time()

    return run_virtual(it())


def code(outcome: str | LlmError) -> str:
    assert isinstance(outcome, LlmError)
    return outcome.code


def limited(seconds: float | None) -> LlmError:
    error = fault("llm_rate_limited", "slow down")
    error.wait_seconds = seconds
    return error


def test_an_answer_in_time_is_asked_for_once():
    service = Service([(1.9, "a")])
    assert run(service) == ("a", 1.9)
    assert service.told == ["first"]


def test_a_late_one_gets_a_twin_and_the_sooner_of_both_wins():
    service = Service([(9.0, "a"), (0.5, "b")])
    assert run(service) == ("b", 2.5)
    assert service.begun == [0.0, 2.0] and service.cancelled == [0]
    assert service.told == ["first", "hedge", "hedge_won"]
    assert service.discarded == []


def test_a_twin_may_lose():
    service = Service([(3.0, "a"), (5.0, "b")])
    assert run(service) == ("a", 3.0)
    assert service.cancelled == [1] and service.told[-1] == "hedge_lost"


def test_of_two_answers_in_the_same_moment_one_is_given_back():
    service = Service([(3.0, "a"), (1.0, "b")])
    outcome, _ = run(service)
    assert [outcome, *service.discarded] in (["a", "b"], ["b", "a"])


def test_without_hedging_there_is_no_twin():
    service = Service([(9.0, "a")])
    assert run(service, RaceRules(10.0)) == ("a", 9.0)


@pytest.mark.parametrize("kind", ["llm_unreachable", "llm_server_error", "llm_stream_cut"])
def test_what_may_be_a_hiccup_is_tried_again_at_once_and_once(kind):
    service = Service([(0.1, fault(kind, "x")), (0.2, "b")])
    assert run(service) == ("b", pytest.approx(0.3))
    assert service.told == ["first", "retry"]
    service = Service([(0.1, fault(kind, "x"))] * 2)
    outcome, at = run(service)
    assert (code(outcome), at) == (kind, pytest.approx(0.2))


@pytest.mark.parametrize("kind", ["llm_unauthorized", "llm_bad_request", "llm_rate_limited"])
def test_what_would_fail_again_is_not_tried_again(kind):
    service = Service([(0.1, fault(kind, "x"))])
    outcome, _ = run(service)
    assert code(outcome) == kind and service.told == ["first"]


def test_a_service_that_says_when_is_asked_then():
    service = Service([(0.5, limited(3.0)), (0.2, "b")])
    assert run(service) == ("b", pytest.approx(3.7))
    assert service.begun == [0.0, 3.5], "and no twin meanwhile"
    assert service.told == ["first", "retry"]


def test_a_service_that_says_too_late_is_not_waited_for():
    service = Service([(0.5, limited(9.6))])
    outcome, at = run(service)
    assert (code(outcome), at) == ("llm_rate_limited", 0.5)


def test_when_one_fails_the_other_is_waited_for():
    late = fault("llm_rate_limited", "x")
    service = Service([(4.0, late), (4.0, "b")])
    assert run(service) == ("b", 6.0)


def test_when_both_fail_the_last_error_is_told():
    service = Service([(4.0, limited(None)), (4.0, fault("llm_timeout", "x"))])
    outcome, at = run(service)
    assert (code(outcome), at) == ("llm_timeout", 6.0)


def test_a_refused_key_is_refused_for_both():
    service = Service([(4.0, fault("llm_unauthorized", "x")), (9.0, "b")])
    outcome, at = run(service)
    assert (code(outcome), at) == ("llm_unauthorized", 4.0) and service.cancelled == [1]


def test_at_the_deadline_both_are_cancelled():
    service = Service([(99.0, "a"), (99.0, "b")])
    outcome, at = run(service)
    assert (code(outcome), at) == ("llm_timeout", 10.0)
    assert sorted(service.cancelled) == [0, 1]


def test_all_attempts_together_have_the_deadline():
    service = Service([(9.0, fault("llm_server_error", "x")), (99.0, "b"), (99.0, "c")])
    outcome, at = run(service)
    assert (code(outcome), at) == ("llm_timeout", 10.0)


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 2.0, 2.5, 3.0])
def test_whoever_waits_may_be_cancelled_at_any_time(at: float):
    """An answer is used or given back, or was never there."""
    service = Service([(3.0, "a"), (0.5, "b")])

    async def it() -> list[str]:
        task = asyncio.get_running_loop().create_task(service.race().winner())
        await asyncio.sleep(at)
        task.cancel()
        await asyncio.wait([task])
        return [] if task.cancelled() else [task.result()]

    used = run_virtual(it())
    begun, ended = len(service.begun), len(service.cancelled) + len(used + service.discarded)
    assert begun == ended


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_when_a_service_says_to_come_back(headers, seconds):
    assert retry_after(headers) == seconds
