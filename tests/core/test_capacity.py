"""Curves, the simulation against them, the formula and advice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from voice_rtc.core.capacity import (
    Batching,
    LatencyCurve,
    LatencyPoint,
    MachineFacts,
    PoolView,
    Sizing,
    Traffic,
    _arrivals,
    calls_of_one_process,
    dedicated_slots,
    percentile,
    plan_for,
    recommendations,
    simulate,
    sustainable_callers,
)


def curve(
    first: float,
    each: float,
    workers: int = 2,
    batches: tuple[int, ...] = (1, 2, 4, 8),
    windows: tuple[float, ...] = (5.0, 10.0, 30.0),
) -> LatencyCurve:
    """``first`` seconds per batch and ``each`` per request and 5 s of window."""
    points = [
        LatencyPoint(window, batch, first + each * batch * window / 5.0)
        for window in windows
        for batch in batches
    ]
    return LatencyCurve(tuple(points), workers)


CPU = curve(0.008, 0.057)
"""Whisper tiny on two cores, as measured: 33.6 utterances/s in batches of 8 at 5 s."""
GPU = curve(0.02, 0.001, batches=(1, 2, 4, 8, 16, 32))
SLOW = curve(0.0, 0.5, workers=1)
"""A second per final: one caller is too many."""


# ------------------------------------------------------------------------------------- curves


def test_measured_points_are_kept():
    for point in CPU.points:
        assert CPU.seconds_for(point.window_seconds, point.batch) == pytest.approx(point.seconds)


def test_between_points_time_is_interpolated():
    assert CPU.seconds_for(5.0, 3) == pytest.approx(0.008 + 3 * 0.057)
    assert CPU.seconds_for(7.5, 1) == pytest.approx(0.008 + 1.5 * 0.057)


def test_past_the_points_time_grows_in_proportion_and_before_them_not_at_all():
    assert CPU.seconds_for(5.0, 16) == pytest.approx(2 * CPU.seconds_for(5.0, 8))
    assert CPU.seconds_for(60.0, 1) == pytest.approx(2 * CPU.seconds_for(30.0, 1))
    assert CPU.seconds_for(1.0, 1) == CPU.seconds_for(5.0, 1)


def test_more_work_never_takes_less_time_whatever_was_measured():
    noisy = LatencyCurve(
        (
            LatencyPoint(5.0, 1, 0.2), LatencyPoint(5.0, 2, 0.1), LatencyPoint(5.0, 8, 0.4),
            LatencyPoint(10.0, 1, 0.15), LatencyPoint(10.0, 4, 0.3), LatencyPoint(30.0, 2, 0.1),
        )
    )  # fmt: skip
    windows, batches = (1.0, 5.0, 7.0, 10.0, 20.0, 30.0, 40.0), range(1, 20)
    times = [[noisy.seconds_for(window, batch) for batch in batches] for window in windows]
    for row in times:
        assert row == sorted(row)
    for column in zip(*times, strict=True):
        assert list(column) == sorted(column)


def test_a_curve_survives_a_file():
    assert LatencyCurve.from_dict(json.loads(json.dumps(GPU.to_dict()))) == GPU


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"points": [], "workers": 1},
        {"points": [[5, 1]], "workers": 1},
        {"points": [[5, 1, "x"]], "workers": 1},
        {"points": [[5, 1, -0.1]], "workers": 1},
        {"points": [[5, 1, float("nan")]], "workers": 1},
        {"points": [[5, 0, 0.1]], "workers": 1},
        {"points": [[5, 1, 0.1]], "workers": 0},
        {"points": [[5, 1, 0.1]], "workers": None},
        {"points": None, "workers": 1},
        {"points": [[5, float("inf"), 0.1]], "workers": 1},
    ],
)
def test_a_damaged_file_is_a_value_error(damaged):
    with pytest.raises(ValueError):
        LatencyCurve.from_dict(damaged)


# --------------------------------------------------------------------------------- simulation


def test_the_simulation_agrees_with_what_was_measured_live():
    # 32 callers of tiny on two cores: final p95 of 0.48 s in a goal of 0.6 s, measured end to end.
    assert 25 <= sustainable_callers(CPU, 0.6) <= 45


def test_the_answer_is_in_time_and_more_callers_are_not():
    carried = sustainable_callers(CPU, 0.6)
    assert simulate(CPU, carried).final_p95_seconds <= 0.42
    worse = simulate(CPU, carried + carried // 4)
    assert worse.final_p95_seconds > 0.42 or worse.partial_share < 0.5


def test_nobody_is_carried_by_an_engine_that_is_too_slow_for_one():
    assert sustainable_callers(SLOW, 0.6) == 0
    assert sustainable_callers(SLOW, 3.0) > 0


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (CPU, curve(0.008, 0.114)),
        (CPU, replace(CPU, workers=1)),
        (GPU, CPU),
        (GPU, curve(0.02, 0.001, batches=(1,))),
    ],
)
def test_a_better_engine_carries_more(better, worse):
    assert sustainable_callers(better, 0.6) > sustainable_callers(worse, 0.6)


def test_traffic_and_rules_matter():
    usual = sustainable_callers(CPU, 0.6)
    assert sustainable_callers(CPU, 0.6, Traffic(talk_share=0.8)) < 0.8 * usual
    assert sustainable_callers(CPU, 0.6, Traffic(partial_seconds=None)) > 1.2 * usual
    assert sustainable_callers(CPU, 0.6, batching=Batching(final_window_seconds=30.0)) < usual
    assert sustainable_callers(CPU, 1.2) > usual
    assert sustainable_callers(CPU, 0.6, headroom=0.4) < usual


def test_no_more_callers_than_are_asked_about():
    assert sustainable_callers(GPU, 0.6, most=7) == 7
    assert sustainable_callers(GPU, 0.6, most=1) == 1


def test_the_same_question_has_the_same_answer():
    assert simulate(CPU, 30) == simulate(CPU, 30)
    assert simulate(CPU, 30) != simulate(CPU, 30, seed=2)


def test_a_lone_caller_waits_for_one_batch_at_most_besides_its_own():
    alone = simulate(CPU, 1)
    own = CPU.seconds_for(10.0, 1)
    assert own <= alone.final_p95_seconds <= own + CPU.seconds_for(10.0, 1)
    assert alone.partial_share > 0.99


def test_without_partials_a_lone_caller_waits_for_its_own_batch():
    alone = simulate(CPU, 1, Traffic(utterance_seconds=2.0, partial_seconds=None))
    assert alone.final_p95_seconds == pytest.approx(CPU.seconds_for(10.0, 1))
    assert alone.partial_share == 1.0


def test_under_overload_partials_give_way_to_finals():
    crowd = simulate(CPU, 60)
    assert crowd.partial_share < 0.5
    assert crowd.final_p95_seconds < 1.5


def test_past_all_bounds_it_gives_up():
    assert simulate(SLOW, 100, give_up_seconds=5.0).final_p95_seconds == float("inf")


def test_a_worker_reserved_for_finals_makes_them_quicker_and_partials_rarer():
    shared, reserved = (
        simulate(CPU, 32),
        simulate(CPU, 32, batching=Batching(reserved_for_finals=1)),
    )
    assert reserved.final_p95_seconds < shared.final_p95_seconds
    assert reserved.partial_share < shared.partial_share


def test_one_worker_is_never_reserved():
    alone = simulate(replace(CPU, workers=1), 5, batching=Batching(reserved_for_finals=3))
    assert alone.partial_share > 0.5


def test_the_simulated_callers_talk_as_much_as_they_should():
    busy = Traffic(talk_share=0.4, utterance_seconds=4.0, partial_seconds=0.5)
    arrivals = _arrivals(200, busy, Batching(), seed=3)
    span = arrivals.times[-1]
    finals = sum(arrivals.finals)
    assert arrivals.times == sorted(arrivals.times) and arrivals.times[0] >= 0.0
    assert finals / (200 * span) == pytest.approx(0.4 / 4.0, rel=0.15)
    assert (len(arrivals.times) - finals) / (200 * span) == pytest.approx(0.4 / 0.5, rel=0.2)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 5.0), (0.95, 10.0), (0.9, 9.0), (0.0, 1.0), (1.0, 10.0)]
)
def test_percentile(share, expected):
    assert percentile([float(n) for n in range(10, 0, -1)], share) == expected


def test_nothing_has_no_percentile():
    assert percentile([], 0.95) is None


# ------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize(
    ("free_mb", "expected"),
    [
        (8 * 1024, 1),
        (24 * 1024, 6),
        (80 * 1024, 25),
        (141 * 1024, 45),
        (4 * 1024, 0),
        (0, 0),
        ([24 * 1024, 24 * 1024], 12),
        ([24 * 1024, 2 * 1024], 6),
        ([], 0),
    ],
)
def test_the_original_plans_formula(free_mb, expected):
    assert dedicated_slots(free_mb) == expected


def test_the_hard_limit_holds():
    assert dedicated_slots(141 * 1024, hard_limit=20) == 20
    assert dedicated_slots(8 * 1024, hard_limit=20) == 1


def test_the_formula_takes_other_sizes():
    assert dedicated_slots(4000, reserve_mb=0, per_instance_mb=500) == 8
    with pytest.raises(ValueError):
        dedicated_slots(4000, per_instance_mb=0)


@pytest.mark.parametrize(
    ("each", "calls"),
    [(0.06, 15), (0.09, 10), (0.1, 9), (0.3, 3), (0.018, 50), (0.0075, 120), (0.9, 1), (1.0, 1)],
)
def test_calls_of_one_process(each, calls):
    assert calls_of_one_process(each) == calls


# ------------------------------------------------------------------------------ plans, advice


def sized(slots: int, limited_by: str = "time") -> Sizing:
    return Sizing(slots, "probe", "measured", limited_by)  # type: ignore[arg-type]


def test_a_plan_for_callers_that_fit_says_so():
    assert plan_for(10, sized(40), MachineFacts()) == [
        "10 callers fit: this machine carries 40 (25 % used)."
    ]
    assert len(plan_for(39, sized(40), MachineFacts())) == 2


def test_a_plan_counts_machines_or_gpus():
    on_cpu = plan_for(100, sized(32), MachineFacts(cores=2))
    assert on_cpu[0] == "100 callers need 4 machines like this one: each carries 32."
    assert any("2 CPU cores" in sentence for sentence in on_cpu)
    two = plan_for(1000, sized(480), MachineFacts(gpus=2))
    assert two[0] == "1000 callers need 5 GPUs like these: each carries 240."


@pytest.mark.parametrize(
    ("sizing", "facts", "word"),
    [
        (sized(4, "settings"), MachineFacts(), "pool.max_slots"),
        (sized(4, "memory"), MachineFacts(gpus=1), "Memory"),
        (sized(4, "media"), MachineFacts(cores=8), "further processes carry more, here (8 CPU"),
        (sized(4), MachineFacts(mode="dedicated", gpus=1), "pool.mode = shared"),
        (sized(4), MachineFacts(gpus=1, torch=False), "voice-rtc[gpu]"),
    ],
)
def test_a_plan_names_what_would_carry_more(sizing, facts, word):
    assert word in " ".join(plan_for(50, sizing, facts))


def test_a_plan_counts_processes_where_media_limit():
    plan = plan_for(500, sized(15, "media"), MachineFacts(gpus=2))
    assert plan[0] == ("500 callers need 34 server processes: each carries the media of 15 calls.")
    assert not any("smaller model" in sentence or "GPU" in sentence for sentence in plan)


def test_what_carries_nobody_is_not_multiplied():
    assert plan_for(5, sized(0), MachineFacts()) == [
        "This machine carries nobody in time, so no number of them carries 5."
    ]


def view(**changes: object) -> PoolView:
    usual = PoolView(
        facts=MachineFacts(gpus=1, engine="whisper"),
        slots=20, leased=5, waiting=0, max_slots=100, goal_seconds=0.6, final_p95_seconds=0.2,
        gpu_busy=0.3, cpu_busy=0.3, memory_fraction=0.4,
    )  # fmt: skip
    return replace(usual, **changes)  # type: ignore[arg-type]


CPU_ONLY = MachineFacts(engine="whisper")


CROWDED = view(leased=20, waiting=10)


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (CROWDED, "half idle: raise pool.slots"),
        (replace(CROWDED, max_slots=20), "raise pool.max_slots"),
        (view(leased=20, waiting=1, eta_seconds=300.0), "raise pool.slots"),
        (replace(CROWDED, final_p95_seconds=0.55), "another GPU"),
        (replace(CROWDED, gpu_busy=0.9), "another GPU"),
        (replace(CROWDED, facts=CPU_ONLY, cpu_busy=0.95), "another machine"),
        (replace(CROWDED, limited_by="media"), "another server process shortens the line"),
        (view(final_p95_seconds=0.9), "smaller model"),
        (view(ladder_step=2), "smaller model"),
        (view(ladder_step=2, facts=CPU_ONLY), "no GPU"),
        (view(ladder_step=2, cpu_busy=0.99), "more cores"),
        (view(memory_fraction=0.95), "95%"),
        (view(facts=MachineFacts(gpus=1, torch=False)), "voice-rtc[gpu]"),
        (view(facts=MachineFacts(engine="pocketsphinx")), "Whisper"),
    ],
)
def test_advice_fits_the_trouble(seen, word):
    assert word in " ".join(recommendations(seen))


@pytest.mark.parametrize("quiet", [view(), view(waiting=1, leased=20, eta_seconds=10.0)])
def test_no_advice_when_all_is_well(quiet):
    assert recommendations(quiet) == []
