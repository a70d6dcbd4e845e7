"""When a replica is suspect, when it is replaced, and how fast its successor may come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from voice_rtc.core.health import (
    MOST_ENGINES,
    HealthRules,
    Observation,
    Ready,
    Replace,
    ReplicaHealth,
    Restarts,
    Suspect,
    Suspicion,
)

RULES = HealthRules(hang_seconds=0.75, late_seconds=0.25, busy_floor_seconds=5.0, goal_seconds=0.6)
SENTENCE = "The quick brown fox jumps over the lazy dog."
FINE = Observation(process_states=("S", "R"))


def health() -> ReplicaHealth:
    return ReplicaHealth(RULES)


def watch(
    replica: ReplicaHealth, silence_from: float, until: float, late: tuple[float, ...] = ()
) -> float | None:
    """Look every 0.2 s, later where ``late`` says so; when it was ordered to be replaced."""
    now, delays = silence_from, list(late)
    while now < until:
        delay = delays.pop(0) if delays else 0.0
        now += 0.2 + delay
        seen = replace(FINE, silent_seconds=now - silence_from, lateness_seconds=delay)
        if isinstance(replica.observe(now, seen), Replace):
            return round(now - silence_from, 3)
    return None


# ------------------------------------------------------------------------------------- vitals


def test_a_replica_that_answers_is_ready():
    assert health().observe(1.0, FINE) == Ready()


def test_a_failure_replaces_at_once():
    dead = replace(FINE, failure="engine_crashed", failure_text="killed by signal 9")
    assert health().observe(1.0, dead) == Replace("killed by signal 9")


def test_out_of_memory_is_quarantined():
    replica = health()
    lost = replace(FINE, failure="out_of_gpu_memory")
    assert replica.observe(1.0, lost) == Replace("out_of_gpu_memory", quarantine=True)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("T", "stopped"), ("stopped", "stopped"), ("t", "traced"), ("Z", "zombie"),
        ("zombie", "zombie"), ("gone", "dead"), ("X", "dead"),
    ],
)  # fmt: skip
def test_a_process_that_does_not_run_is_replaced_at_once(state, word):
    verdict = health().observe(1.0, replace(FINE, process_states=("S", state)))
    assert isinstance(verdict, Replace) and verdict.reason.startswith(word + ":")


@pytest.mark.parametrize("state", ["R", "S", "D", "I", "running", "sleeping", "disk-sleep"])
def test_a_process_that_works_or_sleeps_is_fine(state):
    assert health().observe(1.0, replace(FINE, process_states=(state,))) == Ready()


def test_silence_is_a_hang_within_a_second():
    assert watch(health(), 10.0, 20.0) == 0.8


def test_silence_that_is_ours_accuses_nobody():
    replica = health()
    stalled = replace(FINE, silent_seconds=5.0, lateness_seconds=4.8)
    assert replica.observe(10.0, stalled) == Ready()
    assert replica.observe(10.2, replace(FINE, silent_seconds=0.0)) == Ready()


def test_our_stall_only_delays_the_verdict():
    found = watch(health(), 10.0, 20.0, late=(2.0,))
    assert found is not None and 2.75 <= found <= 3.2


def test_a_loop_that_is_always_late_still_finds_a_hang():
    found = watch(health(), 10.0, 40.0, late=(0.2,) * 100)  # late, but not too late
    assert found is not None and found <= 1.2


def test_an_old_stall_does_not_excuse_a_new_silence():
    replica = health()
    replica.observe(10.0, replace(FINE, silent_seconds=3.0, lateness_seconds=3.0))
    replica.observe(10.2, FINE)
    assert watch(replica, 20.0, 30.0) == 0.8


def test_a_new_silence_is_new_even_if_no_quiet_look_lay_between():
    replica = health()
    replica.observe(10.0, replace(FINE, silent_seconds=3.0, lateness_seconds=3.0))
    verdicts = [
        replica.observe(10.0 + s, replace(FINE, silent_seconds=s)) for s in (0.2, 0.4, 0.6, 0.8)
    ]
    assert isinstance(verdicts[-1], Replace) and verdicts[-2] == Ready()


def test_a_long_batch_is_work_until_it_is_far_too_long():
    replica = health()
    assert replica.observe(1.0, replace(FINE, busy_seconds=4.9)) == Ready()
    verdict = replica.observe(2.0, replace(FINE, busy_seconds=5.1))
    assert isinstance(verdict, Replace) and verdict.reason.startswith("stuck:")


def test_a_slow_model_may_take_longer():
    replica = health()
    slow = replace(FINE, worst_batch_seconds=2.0)
    assert replica.observe(1.0, replace(slow, busy_seconds=7.9)) == Ready()
    assert isinstance(replica.observe(2.0, replace(slow, busy_seconds=8.1)), Replace)


def test_the_first_reason_to_replace_stays():
    replica = health()
    first = replica.observe(1.0, replace(FINE, process_states=("Z",)))
    assert replica.observe(2.0, FINE) == first
    assert replica.failed(3.0, "out_of_gpu_memory") == first
    replica.probed(4.0, 0.1, SENTENCE, SENTENCE)
    assert replica.verdict == first


# ----------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("out_of_gpu_memory", Replace("words", quarantine=True)),
        ("corrupt_result", Replace("words", quarantine=True)),
        ("engine_crashed", Replace("words")),
        ("engine_timeout", Ready()),
        ("engine_error", Ready()),
    ],
)
def test_what_a_failed_request_says_of_the_replica(code, verdict):
    assert health().failed(1.0, code, "words") == verdict


def test_two_requests_without_an_answer_are_suspicious_and_a_quick_probe_forgives():
    replica = health()
    replica.failed(1.0, "engine_timeout", "no answer")
    assert replica.failed(2.0, "engine_timeout", "no answer") == Suspect("slow: no answer")
    assert replica.observe(3.0, FINE) == Suspect("slow: no answer")
    assert replica.probed(4.0, 0.1, SENTENCE, SENTENCE) == "ok"
    assert replica.observe(5.0, FINE) == Ready()


# ------------------------------------------------------------------------------------- probes


@pytest.mark.parametrize(
    "heard", [SENTENCE, "the quick brown fox jumps over the lazy dog", "A quick brown fox jumped"]
)
def test_a_probe_need_not_be_perfect(heard):
    replica = health()
    for now in range(5):
        assert replica.probed(now, 0.1, heard, SENTENCE) == "ok"
    assert replica.verdict == Ready()


def test_two_wrong_probes_in_a_row_are_quarantined():
    replica = health()
    assert replica.probed(1.0, 0.1, "Thanks for watching!", SENTENCE) == "wrong"
    assert replica.verdict == Ready()
    assert replica.probed(2.0, 0.1, "Subscribe, subscribe.", SENTENCE) == "wrong"
    verdict = replica.verdict
    assert isinstance(verdict, Replace) and verdict.quarantine
    assert verdict.reason.startswith("wrong:")


def test_wrong_probes_that_are_not_in_a_row_are_forgiven():
    replica = health()
    for now in range(6):
        replica.probed(now, 0.1, "Thank you." if now % 2 else SENTENCE, SENTENCE)
    assert replica.verdict == Ready()


@pytest.mark.parametrize("nothing", ["", "   ", " ...! "])
def test_a_probe_that_is_not_heard_at_all_is_quarantined_at_once(nothing):
    replica = health()
    assert replica.probed(1.0, 0.1, nothing, SENTENCE) == "wrong"
    verdict = replica.verdict
    assert isinstance(verdict, Replace) and verdict.quarantine


@pytest.mark.parametrize("reference", [None, ""])
def test_without_a_reference_only_time_counts(reference):
    replica = health()
    for now in range(3):
        assert replica.probed(now, 0.1, "", reference) == "ok"
    assert replica.verdict == Ready()


def test_two_slow_probes_make_it_suspect_and_a_quick_one_ready():
    replica = health()
    replica.probed(0.0, 0.2, SENTENCE, SENTENCE)
    assert replica.probed(1.0, 1.3, SENTENCE, SENTENCE) == "slow"
    assert replica.verdict == Ready()
    assert replica.probed(2.0, 1.4, SENTENCE, SENTENCE) == "slow"
    assert replica.verdict == Suspect("slow: a probe takes 1.40 s; the first took 0.20 s")
    assert replica.probed(3.0, 1.3, SENTENCE, SENTENCE) == "slow"
    assert replica.probed(4.0, 0.3, SENTENCE, SENTENCE) == "ok"
    assert replica.verdict == Ready()


def test_slow_probes_that_are_not_in_a_row_are_forgiven():
    replica = health()
    for now in range(8):
        replica.probed(now, 3.0 if now % 2 else 0.2, SENTENCE, SENTENCE)
        assert replica.verdict == Ready()


@pytest.mark.parametrize(("first", "later"), [(0.05, 1.1), (1.0, 3.9)])
def test_a_probe_is_slow_by_both_measures_or_not_at_all(first, later):
    replica = health()
    replica.probed(0.0, first, SENTENCE, SENTENCE)
    for now in range(1, 4):
        assert replica.probed(now, later, SENTENCE, SENTENCE) == "ok"
    assert replica.verdict == Ready()


@pytest.mark.parametrize(("silent", "verdict"), [(59.0, Ready), (61.0, Replace)])
def test_one_that_loads_may_be_silent_for_long_and_not_for_ever(silent, verdict):
    seen = replace(FINE, silent_seconds=silent)
    assert type(health().observe(100.0, seen, loading=True)) is verdict


def test_one_that_is_stopped_while_it_loads_is_not_waited_for():
    stopped = replace(FINE, process_states=("T",))
    assert isinstance(health().observe(1.0, stopped, loading=True), Replace)


def test_one_that_answers_heartbeats_and_nothing_else_is_replaced():
    replica = health()
    for _ in range(2):
        replica.unanswered(0.0, "no transcript")
    assert isinstance(replica.verdict, Suspect)
    replica.answered()
    for _ in range(2):
        assert isinstance(replica.unanswered(0.0, "no transcript"), Suspect)
    assert replica.unanswered(0.0, "no transcript") == Replace("deaf: 3 probes were not answered")


# ----------------------------------------------------------------------------------- suspicion


def test_a_call_is_trusted_until_one_of_its_utterances_is_given_up():
    suspicion = Suspicion(first_seconds=30.0, longest_seconds=50.0)
    assert suspicion.engines(0.0) == MOST_ENGINES
    suspicion.gave_up(0.0)
    assert suspicion.engines(0.0) == 1
    suspicion.gave_up(1.0)
    assert (suspicion.engines(30.9), suspicion.engines(31.0)) == (0, 1)
    suspicion.gave_up(31.0)
    assert (suspicion.engines(80.9), suspicion.engines(81.0)) == (0, 1)
    suspicion.clear()
    assert suspicion.engines(81.0) == MOST_ENGINES


# ------------------------------------------------------------------------------------ restarts


def test_the_first_replacement_is_immediate():
    assert Restarts().died(5.0) == 0.0


def test_a_replica_that_dies_at_once_does_not_spin():
    restarts = Restarts(first_seconds=0.5, longest_seconds=30.0)
    now, waits = 0.0, []
    for _ in range(10):
        wait = restarts.died(now)
        waits.append(wait)
        now += wait + 0.1
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_replica_that_lived_long_forgives_all():
    restarts = Restarts(stable_seconds=60.0)
    for now in (0.0, 0.1, 1.0):
        restarts.died(now)
    assert restarts.died(100.0) == 0.0


def test_the_wait_itself_is_no_life():
    restarts = Restarts(first_seconds=50.0, longest_seconds=100.0, stable_seconds=60.0)
    restarts.died(0.0)
    assert restarts.died(1.0) == 50.0
    assert restarts.died(51.0 + 20.0) == 100.0  # it lived 20 s, not 70
