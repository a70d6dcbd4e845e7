"""The bench of the audio path: what it computes, and that it measures a real server."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tools.bench_media import make_bench
from tools.impair import Impairment
from tools.media_bench.app import Ear
from tools.media_bench.bots import Arrivals, Packets, encoded, with_pauses
from tools.media_bench.capacity import Capacity, Step, capacity
from tools.media_bench.measure import Bench, cycles, delay, delivered, tones
from tools.media_bench.process import Candidate, candidates
from tools.media_bench.report import Figures, render
from tools.media_bench.words import Words
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples, silence
from voice_rtc.media.opus import Decoder


def decoded(packets: Packets) -> Samples:
    decoder = Decoder(LISTEN_RATE_HZ)
    return np.concatenate([decoder.decode(packet) for packet in packets if packet is not None])


def beep(samples: int) -> Samples:
    return np.full(samples, 2000, np.int16)


def test_an_ear_hears_each_tone_once() -> None:
    ear = Ear(onsets=True)
    began = [ear.hear(piece) for piece in (beep(320), beep(320), *[silence(320)] * 9, beep(320))]
    assert began == [True, *[False] * 11]  # 0.18 s of silence: still the same tone
    assert [ear.hear(piece) for piece in (*[silence(320)] * 10, beep(320))][-1]
    assert len(ear.onsets) == 2
    assert ear.samples == 23 * 320


def test_tones_can_be_heard_and_their_pauses_are_quiet() -> None:
    heard = decoded(tones())
    assert len(heard) == LISTEN_RATE_HZ
    loud = np.abs(heard) > 1000
    assert loud[:3200].mean() > 0.5
    assert not loud[4000:].any()


def test_pauses_are_announced_and_refreshed() -> None:
    speech = encoded(silence(SEND_RATE_HZ))
    cycle = with_pauses(speech, talk_frames=20, pause_frames=30)
    assert len(cycle) == 2 * (20 + 30)
    pause = cycle[20:50]
    assert pause[0] is not None and len(pause[0]) == 1
    assert [number for number, packet in enumerate(pause) if packet is not None] == [0, 20]
    assert len(decoded(cycle)) == 2 * 22 * 320


def arrivals(at: list[float], sequence: list[int], timestamp: list[int]) -> Arrivals:
    return Arrivals(np.array(at), np.array(sequence), np.array(timestamp))


def test_lateness_is_against_the_earliest_packet_of_a_spurt() -> None:
    came = arrivals(
        [1.005, 1.020, 1.047, 9.500, 9.523], [1, 2, 3, 4, 5], [0, 960, 1920, 96_000, 96_960]
    )
    assert came.lateness() == pytest.approx([0.005, 0.0, 0.007, 0.0, 0.003])
    assert came.lost == 0


def test_a_missing_packet_is_lost_and_an_overtaken_one_is_not() -> None:
    assert arrivals([0, 0, 0], [7, 9, 8], [0, 1920, 960]).lost == 0
    assert arrivals([0, 0, 0], [7, 11, 8], [0, 3840, 960]).lost == 2
    assert arrivals([], [], []).lost == 0


def step(calls: int, late: float = 0.001, **changed: object) -> Step:
    given = {
        "cpu_share": calls / 100, "bots_cpu_share": 0.2, "late_p50": 0.001, "late_p99": late,
        "asked_late_p99": None, "bots_late_p99": 0.001, "lost": 0, "received_share": 1.0,
        "heard_share": 1.0, "others_share": 0.0, "memory_mb": 100 + calls, "threads": 1,
        "slower": 1.0,
    }  # fmt: skip
    return Step(calls, **{**given, **changed})  # type: ignore[arg-type]


def test_the_most_calls_without_an_objection_are_held() -> None:
    climb = Capacity([step(10), step(20), step(30, late=0.02)], idle_mb=100)
    assert climb.held is not None and climb.held.calls == 20
    assert climb.mb_per_call == pytest.approx(1.0)
    assert step(30, late=0.02).objections == ["late p99 20 ms"]
    assert step(96).objections == ["CPU 96%"]
    assert step(10, lost=1, heard_share=0.9).objections == ["1 lost", "heard 90%"]
    assert step(10, others_share=0.3).disturbed and not step(10).disturbed
    assert "20% slower" in step(10, slower=1.2).disturbed


def test_a_peer_that_is_not_installed_is_skipped_and_said_so(tmp_path: Path) -> None:
    known = candidates(tmp_path)
    assert known["pipecat"].why_not and known["fastrtc"].why_not
    assert not known["fast"].why_not
    figures = Figures(1.0, 1, skipped=["FastRTC (it is not there)"])
    figures.capacity["fast"] = [Capacity([step(10)], 100)]
    sections = render(figures, [known["fast"]])
    assert "Not measured: FastRTC (it is not there)." in sections["bench_media_capacity"]


def test_what_was_measured_is_in_the_page(tmp_path: Path) -> None:
    fast = candidates(tmp_path)["fast"]
    figures = Figures(8.0, 2)
    figures.capacity["fast"] = [
        Capacity([step(10), step(20)], 100), Capacity([step(10), step(20, late=0.1)], 100)
    ]  # fmt: skip
    words = Words()
    words.add("one two three four", "one two tree four")
    figures.words["fast", 0.05] = [words]
    sections = render(figures, [fast])
    calls, network = sections["bench_media_capacity"], sections["bench_media_network"]
    assert "| voice_rtc, its own way | 15 (10 to 20) | 1.00 % |" in calls
    assert "| voice_rtc, its own way | 5 % | 25.0 % | 0 of 1 |" in network
    assert set(sections) == {"bench_media_capacity", "bench_media_network"}, "what was measured"
    assert '"fast/0.05"' in figures.saved()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = make_bench(tmp_path, min(os.sched_getaffinity(0)))
    return replace(made, settle_seconds=0.3)


@pytest.fixture(params=["fast", "stock"])
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> Candidate:
    return candidates(tmp_path)[request.param]


async def test_two_bots_are_counted(bench: Bench, tmp_path: Path) -> None:
    fast = candidates(tmp_path)["fast"]
    async with asyncio.timeout(40):
        climb = await capacity(bench, fast, [2], 1.0)
    got = climb.steps[0]
    assert got.calls == 2 and got.lost == 0
    assert np.isfinite(got.late_p99)
    assert got.received_share and got.heard_share
    assert 0 < got.cpu_share < 2


async def test_tones_come_in_and_back(bench: Bench, tmp_path: Path) -> None:
    fast = candidates(tmp_path)["fast"]
    async with asyncio.timeout(40):
        got = await delay(bench, fast, 0.0, 2.0, calls=2, seed=1)
    assert got.tones and got.inbound and got.echo
    assert 0 < min(got.inbound) < min(got.echo)


async def test_what_is_lost_is_made_good_or_silent(bench: Bench, ours: Candidate) -> None:
    bad = Impairment(loss=0.2, media_only=True)
    async with asyncio.timeout(40):
        got = await delivered(bench, ours, bad, 2.0, calls=2, seed=1)
    if ours.name == "fast":
        assert got.fec > 0.05 and got.concealed > 0
    else:
        assert got.silent > 0.1 and got.fec == got.concealed == 0
    assert got.decoded < 0.95


async def test_calls_that_ended_leave_nothing(bench: Bench, tmp_path: Path) -> None:
    fast = candidates(tmp_path)["fast"]
    async with asyncio.timeout(40):
        got = await cycles(bench, fast, 4, 2)
    assert got.after.threads == got.before.threads
    assert got.after.files == got.before.files
    assert got.after.state["tasks"] == got.before.state["tasks"]
