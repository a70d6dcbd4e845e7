"""``voice-rtc capacity``, as an operator types it, and what it works out from a loaded engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_nvml import FakeNvml, gpu_of
from voice_rtc.capacity_report import CapacityReport, examine
from voice_rtc.config import MediaSettings, PoolSettings, Settings, SttSettings
from voice_rtc.errors import EngineUnavailable
from voice_rtc.pool.gpu import read_gpus

MODEL = str(Path(__file__).parent / "data" / "whisper-synthetic-en")


def capacity(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voice_rtc", "capacity", *arguments],
        env={**os.environ, "COLUMNS": "200", "VOICE_RTC_STT__DOWNLOAD": "false", **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def by_mode(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["mode"]: each for each in report["modes"]}


def test_a_machine_without_weights_and_gpu_is_told_what_it_carries(tmp_path: Path) -> None:
    done = capacity("--callers", "500", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    for words in (
        "pocketsphinx",
        "Whisper is not available",
        "shared (set)",
        "dedicated",
        "single",
        "pocketsphinx was not measured",
        "For 500 callers:",
        "500 callers need",
        "media path          fast",
        "pocketsphinx understands commands, not dictation",
    ):
        assert words in done.stdout, words
    assert "is not in the hub cache" in done.stderr, "why it is not Whisper"
    assert "measuring" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_configured_model_is_measured_once_and_kept(tmp_path: Path) -> None:
    environment = {
        "VOICE_RTC_STT__MODEL": MODEL,
        "VOICE_RTC_STT__ENGINE": "faster-whisper",
        "VOICE_RTC_STT__DEVICE": "cpu",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    first = capacity("--json", **environment)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "voice-rtc" / "probe.json").is_file()
    again = capacity("--json", "--no-measure", "--callers", "9", **environment)
    before, after = json.loads(first.stdout), json.loads(again.stdout)
    assert before["measured"] and after["measured"] and before["engine"] == "faster-whisper"
    carried = by_mode(before)["shared"]
    assert carried["source"] == "probe" and carried["callers"] == before["slots"] >= 1
    assert by_mode(after)["shared"]["callers"] == carried["callers"], "the same measurement"
    assert before["callers"] is None and carried["plan"] == [] and carried["more"]
    assert after["callers"] == 9 and by_mode(after)["shared"]["plan"]


def test_an_engine_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    done = capacity(VOICE_RTC_STT__ENGINE="faster-whisper", HF_HOME=str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("voice-rtc: ") and "Traceback" not in done.stderr


def test_a_wrong_number_of_callers_is_refused() -> None:
    assert capacity("--callers", "0").returncode == 2


# ------------------------------------------------------------------------------- the report


def settings(directory: Path, **pool: Any) -> Settings:
    return Settings(
        stt=SttSettings(engine="scripted"), pool=PoolSettings(cache_directory=directory, **pool)
    )


async def examined(directory: Path, callers: int | None = None, **pool: Any) -> CapacityReport:
    return await examine(
        settings(directory, **pool), callers, gpus=lambda: read_gpus(FakeNvml([gpu_of(141)]))
    )


async def test_a_gpu_that_the_engine_does_not_use_is_shown_but_carries_nobody(
    tmp_path: Path,
) -> None:
    report = await examined(tmp_path)
    assert report.gpus.gpus[0].name == "NVIDIA H200" and not report.measured
    assert not any("GPU" in each.why for each in report.modes)
    assert [each.mode for each in report.modes] == ["shared", "dedicated", "single"]


@pytest.mark.parametrize("mode", ["shared", "dedicated", "single"])
async def test_the_configured_mode_gives_the_slots(tmp_path: Path, mode: str) -> None:
    report = await examined(tmp_path, mode=mode)
    assert report.mode == mode
    assert report.slots == {each.mode: each.callers for each in report.modes}[report.mode]


async def test_more_slots_than_the_machine_carries_are_warned_of(tmp_path: Path) -> None:
    report = await examined(tmp_path, slots=900)
    assert report.slots == 900
    assert "pool.slots is 900, but this machine carries" in report.advice[0]
    report = await examined(tmp_path, slots=1)
    assert report.slots == 1 and report.advice[0].startswith("pool.slots is 1; this machine")


async def test_the_plan_is_for_the_callers_asked_for(tmp_path: Path) -> None:
    report = await examined(tmp_path, callers=1)
    assert report.modes[0].plan[0].startswith("1 callers fit")


async def test_an_engine_that_fails_to_load_is_the_callers_business(tmp_path: Path) -> None:
    broken = Settings(stt=SttSettings(engine="faster-whisper", model=str(tmp_path)))
    with pytest.raises(EngineUnavailable):
        await examine(broken)


async def test_where_the_servers_own_process_limits_the_plan_is_in_processes(
    tmp_path: Path,
) -> None:
    media = MediaSettings(call_core_share=0.45)
    tight = settings(tmp_path).model_copy(update={"media": media})
    report = await examine(tight, 11, gpus=lambda: read_gpus(FakeNvml([gpu_of(141)])))
    assert report.media_calls == report.slots == 2
    shared = report.modes[0]
    assert (shared.callers, shared.limited_by) == (2, "media")
    assert "The server's own process carries about 2 calls" in shared.why
    assert shared.plan[0] == (
        "11 callers need 6 server processes: each carries the media of 2 calls."
    )
    assert shared.more[0].startswith("The server's own process is what limits")
    wanted = settings(tmp_path, slots=9).model_copy(update={"media": media})
    report = await examine(wanted, gpus=lambda: read_gpus(FakeNvml()))
    assert report.slots == 9 and "this machine carries 2" in report.advice[0]
