"""The headless caller against a whole server, and its command line."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import numpy as np
import pytest

from signaling.main import Server
from tests.support.audio import tone
from tests.support.server import serving
from tests.support.virtual_time import run_virtual
from tools import bot
from tools.bot import call
from tools.bot_caller import CallFailed
from tools.bot_report import BotOptions, BotReport
from tools.wav import read_wav, write_wav
from voice_rtc.core.audio import SEND_RATE_HZ, silence
from voice_rtc.engines.base import EngineSet, LlmEngine, TtsEngine
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.tts.espeak import EspeakTts

LONG = "This reply goes on for quite a while, so that there is time to speak over it at leisure."
SPEECH = tone(0.6)


def engines(llm: LlmEngine | None = None, tts: TtsEngine | None = None) -> EngineSet:
    stt = ScriptedStt(["Hello there.", "How are you?"])
    return EngineSet(ThresholdVad(), stt, llm or EchoLlm(), tts or ToneTts())


def failed(report: BotReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


# ---------------------------------------------------------------------------- whole calls


async def test_turns_are_understood_and_answered():
    async with serving(engines()) as server:
        report = await call(BotOptions(SPEECH, server.url, turns=2))
    assert failed(report) == []
    assert report.passed
    assert [turn.transcript for turn in report.turns] == ["Hello there.", "How are you?"]
    assert [turn.reply_text for turn in report.turns] == [
        "You said: Hello there.",
        "You said: How are you?",
    ]
    for turn in report.turns:
        assert turn.reply_status == "completed"
        assert turn.reply_seconds == pytest.approx(0.06 * len(turn.reply_text), abs=0.1)
        assert turn.reply_dbfs == pytest.approx(-15.3, abs=1.0)  # a sine with a peak of 8000
        assert turn.frames_received == turn.frames_expected
        assert turn.response_seconds is not None and turn.response_seconds > 0
    assert report.setup_seconds is not None
    assert report.events["response.done"] == 2


async def test_a_typed_message_needs_no_speech():
    async with serving(engines()) as server:
        report = await call(BotOptions(url=server.url, text="What is this?"))
    assert failed(report) == []
    assert report.turns[0].typed
    assert report.turns[0].reply_text == "You said: What is this?"


async def test_a_greeting_is_listened_to_first():
    async with serving(engines(), session={"greeting": "Good day."}) as server:
        report = await call(BotOptions(SPEECH, server.url))
    assert failed(report) == []
    assert report.turns[0].reply_text == "You said: Hello there."


async def test_a_barge_in_silences_the_reply_and_is_answered():
    async with serving(engines(EchoLlm([LONG, "Very well."]))) as server:
        report = await call(BotOptions(SPEECH, server.url, barge_in_seconds=0.5))
    assert failed(report) == []
    first, second = report.turns
    assert (first.reply_status, second.reply_status) == ("cancelled", "completed")
    assert second.reply_text == "Very well."
    assert report.barge_in is not None
    assert LONG.startswith(report.barge_in.heard_text or "nothing")
    assert report.barge_in.heard_complete is False
    assert first.reply_seconds < 0.06 * len(LONG)


async def test_a_reply_cut_by_a_noise_is_followed_by_another_which_is_the_one_reported():
    stt = ScriptedStt(["Hello there.", ""])
    chosen = EngineSet(ThresholdVad(), stt, EchoLlm([LONG]), ToneTts())
    speech_and_noise = np.concatenate([SPEECH, silence(2 * SEND_RATE_HZ), SPEECH])
    async with serving(chosen, turns={"barge_in": "any"}) as server:
        report = await call(BotOptions(speech_and_noise, server.url, max_seconds=20.0))
    assert report.errors == []
    assert report.turns[0].reply_status == "completed"
    assert "go on" in report.turns[0].reply_text
    assert report.passed


async def test_a_reply_too_short_for_the_barge_in_is_an_error():
    async with serving(engines(EchoLlm(["Yes."]))) as server:
        report = await call(BotOptions(SPEECH, server.url, barge_in_seconds=1.5))
    assert not report.passed
    assert "was over before the barge-in" in report.errors[0]


async def test_another_transcript_than_expected_fails():
    async with serving(engines()) as server:
        options = BotOptions(SPEECH, server.url, check_text="hello where")
        report = await call(options)
    assert failed(report) == ["turn 1 understood as expected"]


async def test_some_word_errors_can_be_allowed():
    async with serving(engines()) as server:
        options = BotOptions(SPEECH, server.url, check_text="hello where", most_word_errors=0.5)
        report = await call(options)
    assert report.passed


async def test_a_reply_that_says_its_text_passes_the_second_recogniser():
    async with serving(engines(EchoLlm(["I am glad to hear that."]), EspeakTts())) as server:
        report = await call(BotOptions(SPEECH, server.url, check_reply=True))
    assert failed(report) == []
    found = report.turns[0].reply_recognised
    assert found is not None and found.text == "i am glad to hear that"


async def test_a_reply_that_only_makes_noise_fails_it():
    async with serving(engines()) as server:
        report = await call(BotOptions(SPEECH, server.url, check_reply=True))
    assert failed(report) == ["turn 1 reply says its text"]


async def test_a_call_that_the_server_ends_is_reported():
    async with serving(engines(EchoLlm([LONG])), session={"max_call_seconds": 1.5}) as server:
        report = await call(BotOptions(SPEECH, server.url))
    assert not report.passed
    assert "max_duration" in report.errors[0]


async def test_a_call_that_takes_too_long_says_what_it_waits_for():
    async def never(_seconds: float) -> None:
        await asyncio.Event().wait()

    async with serving(engines(EchoLlm(delay=never))) as server:
        report = await call(BotOptions(SPEECH, server.url, max_seconds=2.5))
    assert report.errors == ["not over after 2.5 s, while waiting for the reply to turn 1"]
    assert report.turns[0].transcript == "Hello there."


async def test_a_full_server_is_waited_for():
    pool = {"slots": 1, "hold_message": "All lines are busy. You are number {position}."}
    quick = engines(tts=ToneTts(seconds_per_character=0.03))
    async with asyncio.timeout(30), serving(quick, pool=pool) as server:
        async with asyncio.TaskGroup() as tasks:
            lines = server.registry.pool
            async with lines.lease("somebody"):
                options = BotOptions(SPEECH, server.url)
                first = tasks.create_task(call(options))
                await waiting(server, 1)
                second = tasks.create_task(call(options))
                await waiting(server, 2)
    for report, places in ((first.result(), [1]), (second.result(), [2, 1])):
        assert failed(report) == []
        assert report.line.granted and report.line.positions == places
        assert report.line.waited_seconds > 0
        assert report.turns[0].transcript == "Hello there."
        assert report.turns[0].reply_text == "You said: Hello there."
        assert report.events["voice_rtc.queue.granted"] == 1


async def waiting(server: Server, callers: int) -> None:
    while server.registry.pool.statistics().waiting < callers:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)


async def test_a_bot_that_may_not_wait_so_long_says_where_it_stood():
    async with serving(engines(), pool={"slots": 1}) as server:
        async with server.registry.pool.lease("somebody"):
            report = await call(BotOptions(SPEECH, server.url, wait_seconds=0.3))
            await server.registry.wait_empty()
            assert server.registry.pool.statistics().waiting == 0
    assert report.errors == ["still number 1 in line after 0.3 s"]
    assert not report.passed and not report.line.granted and report.turns == []


async def test_a_wait_that_the_server_ends_is_reported():
    async with serving(engines(), pool={"slots": 1, "max_wait_seconds": 0.3}) as server:
        async with server.registry.pool.lease("somebody"):
            report = await call(BotOptions(SPEECH, server.url))
    assert "its turn in the line: queue_timeout" in report.errors[0]
    assert not report.passed and report.line.positions == [1]


def test_the_limit_of_a_call_does_not_run_while_it_waits():
    async def wait() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60.0) as limit:
            await asyncio.sleep(20.0)
            async with bot.paused(limit):
                await asyncio.sleep(1000.0)
            assert limit.when() - loop.time() == 40.0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60.0) as limit:
                async with bot.paused(limit):
                    await asyncio.sleep(1000.0)
                await asyncio.sleep(60.1)

    run_virtual(wait())


async def test_a_refused_call_shows_the_answer():
    async with serving(engines()) as server:
        with pytest.raises(CallFailed, match=re.compile("answered 404: .*error", re.DOTALL)):
            await call(BotOptions(SPEECH, f"{server.url}/nowhere"))


async def test_the_command_line_writes_report_and_recording(tmp_path):
    write_wav(tmp_path / "say.wav", SPEECH)
    async with serving(engines()) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tools.bot", str(tmp_path / "say.wav"), "--url", server.url),
            *("--json", str(tmp_path / "report.json"), "--save", str(tmp_path / "got.wav")),
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await process.communicate()
    assert process.returncode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True
    assert report["turns"][0]["transcript"] == "Hello there."
    assert np.abs(read_wav(tmp_path / "got.wav")).max() > 5000
    assert b"Hello there." in printed


async def test_the_command_line_tells_of_the_wait(tmp_path):
    quick = engines(tts=ToneTts(seconds_per_character=0.01))
    async with serving(quick, pool={"slots": 1}) as server:
        async with server.registry.pool.lease("somebody"):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tools.bot", "--text", "Hello?", "--url", server.url),
                *("--json", str(tmp_path / "report.json"), "--wait", "20"),
                stdout=asyncio.subprocess.PIPE,
            )
            await waiting(server, 1)
        printed, _ = await process.communicate()
    assert process.returncode == 0
    assert json.loads((tmp_path / "report.json").read_text())["line"]["positions"] == [1]
    assert b"in line: place 1" in printed


# ------------------------------------------------------------------------- the command line


def test_no_server_is_one_clear_line(tmp_path, capsys):
    write_wav(tmp_path / "say.wav", SPEECH)
    # Nothing can listen on port 1 here: it needs root and nobody uses it.
    assert bot.main([str(tmp_path / "say.wav"), "--url", "http://127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bot: cannot reach http://127.0.0.1:1/")
    assert error.count("\n") == 1


def test_a_file_that_is_no_sound_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "say.wav").write_text("hello")
    assert bot.main([str(tmp_path / "say.wav")]) == 2
    assert "not a PCM WAV file" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--text", "hello", "--barge-in", "1"]])
def test_what_cannot_be_done_is_refused(given, capsys):
    with pytest.raises(SystemExit) as stopped:
        bot.main(given)
    assert stopped.value.code == 2
