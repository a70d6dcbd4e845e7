"""Whisper in its worker process: the real tiny model that knows 235 words, and a scripted one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import ctranslate2
import psutil
import pytest

from tests.engines.fake_transcriber import (
    CRASHES,
    DOUBTFUL,
    RELEASES,
    RUNS_OUT_OF_MEMORY,
    WAITS,
)
from tests.engines.speech import frames, outcome, plain, say, transcribe, utter
from tests.support.audio import WHISPER_SYNTHETIC, constant, noise
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, silence
from voice_rtc.engines.base import (
    Final,
    Partial,
    SttFailed,
    SttOptions,
    SttQuality,
    SttTiming,
    SupportsHealth,
    SupportsProbe,
    SupportsQuality,
    SupportsTiming,
)
from voice_rtc.engines.stt import whisper as whisper_module
from voice_rtc.engines.stt.whisper import (
    WhisperSession,
    WhisperSettings,
    WhisperStt,
    slots_for,
    weights_of,
)
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.errors import (
    EngineCrashed,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    OutOfGpuMemory,
)

SENTENCES = [
    "My code word is falcon river.",
    "What is the weather in Paris today?",
    "Tell me more about London.",
    "This is caller seven, my code word is silver dolphin.",
    "Turn off the lantern.",
]
PATIENCE_SECONDS = 20.0


def settings(**changes: object) -> WhisperSettings:
    values: dict[str, object] = {"model": str(WHISPER_SYNTHETIC), "device": "cpu", **changes}
    return WhisperSettings(**values)  # type: ignore[arg-type] # values come by name


@pytest.fixture
async def whisper() -> AsyncIterator[WhisperStt]:
    engine = WhisperStt(settings())
    await engine.start()
    yield engine
    await engine.aclose()


@pytest.fixture
async def scripted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WhisperStt]:
    """With the scripted model of fake_transcriber in the worker: two threads, no batches."""
    monkeypatch.setattr(whisper_module, "_WORKER_MODULE", "tests.engines.fake_transcriber")
    engine = WhisperStt(settings(language="", workers=2, most_batch=1))
    await engine.start()
    yield engine
    await engine.aclose()


def script(session: WhisperSession, utterance: int, value: int, seconds: float = 0.5) -> None:
    """Begin an utterance of the scripted model and give it its audio."""
    session.begin(utterance)
    for pcm in frames(constant(value, round(seconds * LISTEN_RATE_HZ))):
        session.feed(pcm)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until ``condition`` holds; fails after a while."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


def pid_of(engine: WhisperStt) -> int:
    (pid,) = engine.health().pids
    return pid


# ----------------------------------------------------------------------------- what is understood


async def test_sentences_of_the_lexicon_are_exact(whisper: WhisperStt, espeak: EspeakTts) -> None:
    heard = [plain(await transcribe(whisper, await say(espeak, text))) for text in SENTENCES]
    assert heard == [plain(text) for text in SENTENCES]


async def test_callers_who_speak_at_the_same_time_do_not_mix(
    whisper: WhisperStt, espeak: EspeakTts
) -> None:
    texts = [SENTENCES[number % len(SENTENCES)] for number in range(8)]
    sessions = [await whisper.open() for _ in texts]
    voices = [list(frames(await say(espeak, text))) for text in texts]
    for session in sessions:
        session.begin(1)
    for moment in range(max(map(len, voices))):
        for session, voice in zip(sessions, voices, strict=True):
            if moment < len(voice):
                session.feed(voice[moment])
    for session in sessions:
        session.finish(1)
    for session, text in zip(sessions, texts, strict=True):
        _, final = await outcome(session, 1)
        assert isinstance(final, Final)
        assert plain(final.text) == plain(text)
    assert whisper.health().failure is None


@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.0])
async def test_silence_is_no_text(whisper: WhisperStt, seconds: float) -> None:
    session = await whisper.open()
    utter(session, 1, silence(int(seconds * LISTEN_RATE_HZ)))
    assert await outcome(session, 1) == ([], Final(1, "", seconds))


async def test_noise_is_no_text(whisper: WhisperStt) -> None:
    assert await transcribe(whisper, noise(1.0, 5, LISTEN_RATE_HZ, 0.01)) == ""


async def test_partials_come_while_the_caller_speaks(
    whisper: WhisperStt, espeak: EspeakTts
) -> None:
    session = await whisper.open()
    spoken = await say(espeak, SENTENCES[0])
    session.begin(1)
    for pcm in frames(spoken):
        session.feed(pcm)
    results = session.results()
    first = await anext(results)
    assert isinstance(first, Partial)
    session.finish(1)
    while isinstance(result := await anext(results), Partial):
        pass
    assert isinstance(result, Final)
    assert plain(result.text) == plain(SENTENCES[0])


@pytest.mark.parametrize("mode", ["single", "dedicated"])
async def test_without_batches(espeak: EspeakTts, mode: str) -> None:
    engine = WhisperStt(settings(mode=mode, workers=4, most_batch=8, full_windows=True))
    await engine.start()
    timings: list[SttTiming] = []
    engine.on_timing = timings.append
    assert engine.info.model.endswith("1 worker)")
    assert plain(await transcribe(engine, await say(espeak, SENTENCES[0]))) == plain(SENTENCES[0])
    assert {(timing.batch, timing.window_seconds) for timing in timings} == {(1, 30.0)}
    assert engine.recommended_slots == 1 or mode == "single"
    await engine.aclose()


# ----------------------------------------------------------------------------- order and fences


async def test_a_discarded_utterance_gives_nothing(whisper: WhisperStt, espeak: EspeakTts) -> None:
    session = await whisper.open()
    utter(session, 1, await say(espeak, SENTENCES[0]))
    session.discard(1)
    utter(session, 2, await say(espeak, SENTENCES[2]))
    _, final = await outcome(session, 2)
    assert isinstance(final, Final)
    assert plain(final.text) == plain(SENTENCES[2])


async def test_what_was_told_before_a_discard_is_not_delivered(scripted: WhisperStt) -> None:
    session, other = await scripted.open(), await scripted.open()
    script(session, 1, 5, seconds=1.0)
    script(other, 1, 6)
    other.finish(1)
    await outcome(other, 1)
    await until(lambda: bool(len(session._results._inbox)))  # its partial waits to be read
    session.discard(1)
    script(session, 2, 7, seconds=0.1)
    session.finish(2)
    assert await outcome(session, 2) == ([], Final(2, "7x1600", 0.1))


async def test_finals_of_a_caller_come_in_their_order(scripted: WhisperStt) -> None:
    """The second is done first: on its thread it is what lets the first go on."""
    session = await scripted.open()
    script(session, 1, WAITS, seconds=0.2)
    session.finish(1)
    script(session, 2, RELEASES, seconds=0.2)
    session.finish(2)
    assert (await outcome(session, 1))[1] == Final(1, f"{WAITS}x3200", 0.2)
    assert (await outcome(session, 2))[1] == Final(2, f"{RELEASES}x3200", 0.2)


async def test_a_discard_lets_the_next_result_through(scripted: WhisperStt) -> None:
    session, other = await scripted.open(), await scripted.open()
    script(session, 1, WAITS, seconds=0.2)
    session.finish(1)
    utter(session, 2, constant(5, 1600))
    utter(other, 1, constant(6, 1600))
    assert (await outcome(other, 1))[1] == Final(1, "6x1600", 0.1)
    session.discard(1)
    assert (await outcome(session, 2))[1] == Final(2, "5x1600", 0.1)
    utter(other, 2, constant(RELEASES, 1600))
    await outcome(other, 2)


async def test_a_final_while_an_older_utterance_is_still_open(scripted: WhisperStt) -> None:
    session = await scripted.open()
    session.begin(1)
    utter(session, 2, constant(5, 1600))
    assert (await outcome(session, 2))[1] == Final(2, "5x1600", 0.1)


# ------------------------------------------------------------------------- options and quality


async def test_language_and_prompt_are_those_of_the_session(scripted: WhisperStt) -> None:
    session = await scripted.open(SttOptions(language="de", prompt="Falke"))
    plainly = await scripted.open()
    utter(session, 1, constant(5, 1600))
    utter(plainly, 1, constant(5, 1600))
    assert (await outcome(session, 1))[1] == Final(1, "de Falke 5x1600", 0.1)
    assert (await outcome(plainly, 1))[1] == Final(1, "5x1600", 0.1)
    session.begin(2)
    session.configure(SttOptions(language="", prompt="Adler"))
    session.finish(2)
    assert (await outcome(session, 2))[1] == Final(2, "de Falke 0x0", 0.0)
    utter(session, 3, constant(5, 1600))
    assert (await outcome(session, 3))[1] == Final(3, "Adler 5x1600", 0.1)


async def test_the_configured_language_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper_module, "_WORKER_MODULE", "tests.engines.fake_transcriber")
    engine = WhisperStt(settings(language="fr", workers=1))
    await engine.start()
    assert await transcribe(engine, constant(5, 1600)) == "fr 5x1600"
    detecting = await engine.open(SttOptions(language=""))
    utter(detecting, 1, constant(5, 1600))
    assert (await outcome(detecting, 1))[1] == Final(1, "5x1600", 0.1)
    await engine.aclose()


async def test_it_tells_which_languages_it_knows(scripted: WhisperStt) -> None:
    assert scripted.info.languages == ("de", "en", "jv") and scripted.info.takes_prompt


async def test_an_english_only_model_knows_english_alone(whisper: WhisperStt) -> None:
    assert whisper.info.languages == ("en",) and whisper.info.takes_prompt


async def test_javanese_is_asked_for_as_whisper_names_it(scripted: WhisperStt) -> None:
    session = await scripted.open(SttOptions(language="jv"))
    utter(session, 1, constant(5, 1600))
    assert (await outcome(session, 1))[1] == Final(1, "jw 5x1600", 0.1)


async def test_quality_reaches_the_worker(scripted: WhisperStt) -> None:
    scripted.set_quality(SttQuality(partial_factor=None, economy=True))
    session = await scripted.open()
    utter(session, 1, constant(DOUBTFUL, 16000))
    assert await outcome(session, 1) == ([], Final(1, "doubtful", 1.0))


async def test_the_time_of_each_transcription_is_told(scripted: WhisperStt) -> None:
    timings: list[SttTiming] = []
    scripted.on_timing = timings.append
    session = await scripted.open()
    script(session, 1, 5, seconds=0.5)  # enough for one partial
    results = session.results()
    assert isinstance(await anext(results), Partial)
    session.finish(1)
    assert isinstance(await anext(results), Final)
    utter(session, 2, constant(DOUBTFUL, 1600))
    await anext(results)
    partial, final, retried = timings[0], *(timing for timing in timings if timing.final)
    assert not partial.final
    assert [t.window_seconds for t in (partial, final, retried)] == [3.0, 10.0, 30.0]
    assert [t.retried for t in (partial, final, retried)] == [False, False, True]
    for timing in timings:
        assert timing.total_seconds >= timing.run_seconds > 0.0
        assert timing.queue_seconds >= 0.0


# --------------------------------------------------------------------------------- health


async def test_it_offers_what_a_pool_asks_for(whisper: WhisperStt) -> None:
    for protocol in (SupportsHealth, SupportsQuality, SupportsProbe, SupportsTiming):
        assert isinstance(whisper, protocol)


async def test_heartbeats_are_answered(scripted: WhisperStt) -> None:
    assert psutil.Process(pid_of(scripted)).is_running()
    session = await scripted.open()
    script(session, 1, WAITS)
    session.finish(1)
    await until(lambda: scripted.health().busy_seconds > 0.0)
    health = scripted.health()
    assert health.failure is None
    other = await scripted.open()
    utter(other, 1, constant(RELEASES, 1600))
    await outcome(session, 1)
    await until(lambda: scripted.health().busy_seconds == 0.0)
    assert scripted.health().batch_mean == 1.0


async def test_a_heartbeat_that_cannot_be_sent_is_an_unanswered_one(whisper: WhisperStt) -> None:
    """Its stdin broke and its end is not known yet; whoever looks must not fail by that."""
    pid = pid_of(whisper)
    await until(lambda: whisper._ping_sent_at is None)
    assert whisper._process is not None
    stdin = whisper._process._stdin()
    assert stdin is not None
    os.kill(pid, signal.SIGSTOP)
    stdin.abort()
    whisper.health()
    await asyncio.sleep(0.01)
    assert whisper.health().silent_seconds > 0.0
    whisper.abort(EngineCrashed("silent"))


async def test_a_killed_worker_fails_every_open_utterance(whisper: WhisperStt) -> None:
    waits, talks, idle = [await whisper.open() for _ in range(3)]
    os.kill(pid_of(whisper), signal.SIGSTOP)
    utter(waits, 1, silence(LISTEN_RATE_HZ))
    utter(waits, 2, silence(LISTEN_RATE_HZ))
    talks.begin(1)
    os.kill(pid_of(whisper), signal.SIGKILL)
    for session, utterance in ((waits, 1), (waits, 2), (talks, 1)):
        _, failed = await outcome(session, utterance)
        assert isinstance(failed, SttFailed)
        assert isinstance(failed.error, EngineCrashed)
    health = whisper.health()
    assert isinstance(health.failure, EngineCrashed)
    assert "killed by signal 9 (SIGKILL)" in str(health.failure)
    assert health.pids == ()
    talks.feed(Pcm(silence(320), 0))
    talks.finish(1)
    utter(idle, 1, silence(320))
    assert isinstance((await outcome(idle, 1))[1], SttFailed)
    for ask in (whisper.open, whisper.measure):
        with pytest.raises(EngineCrashed):
            await ask()
    await idle.aclose()


async def test_who_was_in_work_when_the_worker_died_is_told_apart(scripted: WhisperStt) -> None:
    """Two threads, one request each: the third waits and the fourth still speaks."""
    sessions = [await scripted.open() for _ in range(4)]
    for number, session in enumerate(sessions):
        script(session, 1, WAITS if number < 2 else 5, seconds=0.3)
        if number < 3:
            session.finish(1)
        if number == 1:
            await until(lambda: len(scripted._at_work) == 2)
    os.kill(pid_of(scripted), signal.SIGKILL)
    outcomes = [(await outcome(session, 1))[1] for session in sessions]
    assert all(isinstance(each, SttFailed) for each in outcomes)
    blameless = [each.blameless for each in outcomes if isinstance(each, SttFailed)]
    assert blameless == [False, False, True, True]


async def test_who_is_done_is_not_to_blame(scripted: WhisperStt) -> None:
    session = await scripted.open()
    script(session, 1, 5, seconds=1.0)
    async for result in session.results():
        assert isinstance(result, Partial)
        break
    await until(lambda: not scripted._at_work)
    os.kill(pid_of(scripted), signal.SIGKILL)
    failed = (await outcome(session, 1))[1]
    assert isinstance(failed, SttFailed) and failed.blameless


async def test_a_stopped_worker_falls_silent_and_can_be_ended(whisper: WhisperStt) -> None:
    pid, process = pid_of(whisper), whisper._process
    assert process is not None
    await until(lambda: whisper.health().silent_seconds == 0.0)
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: whisper.health().silent_seconds > 0.05)
    os.kill(pid, signal.SIGCONT)
    await until(lambda: whisper.health().silent_seconds == 0.0)
    os.kill(pid, signal.SIGSTOP)
    session = await whisper.open()
    utter(session, 1, silence(LISTEN_RATE_HZ))
    hung = EngineTimeout("it is silent")
    whisper.abort(hung)
    assert (await outcome(session, 1))[1] == SttFailed(1, hung, blameless=True)
    assert whisper.health().failure is hung
    await until(lambda: not process.alive)
    assert whisper.health().failure is hung, "its death is not another failure"


async def test_fifty_long_utterances_at_once_are_no_backlog(scripted: WhisperStt) -> None:
    """As when they are sent again to the successor of a dead engine, all in one moment."""
    samples = 12 * LISTEN_RATE_HZ
    said = constant(5, samples)

    async def replay() -> str:
        session = await scripted.open()
        session.begin(1)
        session.feed(Pcm(said, 0))
        session.finish(1)
        _, final = await outcome(session, 1)
        await session.aclose()
        return final.text if isinstance(final, Final) else repr(final)

    async with asyncio.timeout(60.0):
        texts = await asyncio.gather(*(replay() for _ in range(50)))
    assert texts == [f"5x{samples}"] * 50
    assert scripted.health().failure is None


async def test_an_utterance_of_four_minutes_can_be_sent_again(scripted: WhisperStt) -> None:
    session = await scripted.open()
    session.begin(1)
    session.feed(Pcm(constant(5, 240 * LISTEN_RATE_HZ), 0))
    session.finish(1)
    _, final = await outcome(session, 1)
    assert isinstance(final, Final) and final.text == f"5x{240 * LISTEN_RATE_HZ}"


async def test_who_waits_for_a_worker_that_does_not_read_hears_of_its_end(
    whisper: WhisperStt,
) -> None:
    session = await whisper.open()
    os.kill(pid_of(whisper), signal.SIGSTOP)
    session.begin(1)
    session.feed(Pcm(silence(60 * LISTEN_RATE_HZ), 0))
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(PATIENCE_SECONDS):
        opening = tasks.create_task(failure_of(whisper.open()))
        await asyncio.sleep(0.1)
        assert not opening.done()
        whisper.abort(EngineCrashed("silent"))
    assert str(opening.result()) == "silent"


async def failure_of(work: Awaitable[object]) -> EngineError | None:
    try:
        await work
    except EngineError as error:
        return error
    return None


async def test_a_worker_that_does_not_read_is_given_up(whisper: WhisperStt) -> None:
    session = await whisper.open()
    os.kill(pid_of(whisper), signal.SIGSTOP)
    session.begin(1)
    for _ in range(40):
        session.feed(Pcm(silence(60 * LISTEN_RATE_HZ), 0))
    failed = (await outcome(session, 1))[1]
    assert isinstance(failed, SttFailed)
    assert isinstance(failed.error, EngineTimeout)
    assert whisper.health().failure is failed.error


@pytest.mark.parametrize(
    ("script_value", "error"), [(CRASHES, EngineError), (RUNS_OUT_OF_MEMORY, OutOfGpuMemory)]
)
async def test_a_failing_model_costs_the_utterance(
    scripted: WhisperStt, script_value: int, error: type[Exception]
) -> None:
    session = await scripted.open()
    utter(session, 1, constant(script_value, 1600))
    _, failed = await outcome(session, 1)
    assert isinstance(failed, SttFailed)
    assert type(failed.error) is error
    utter(session, 2, constant(5, 1600))
    assert (await outcome(session, 2))[1] == Final(2, "5x1600", 0.1)
    assert scripted.health().failure is None


# ------------------------------------------------------------------------------ measurements


async def test_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper_module, "_SLOW_SECONDS", 0.0)  # no batch larger than one
    engine = WhisperStt(settings(workers=2))
    with pytest.raises(EngineUnavailable):
        await engine.measure()
    await engine.start()
    one, two = await asyncio.gather(engine.measure(), engine.measure())
    assert one is two
    assert [(p.window_seconds, p.batch) for p in one.points] == [(5.0, 1), (10.0, 1), (30.0, 1)]
    assert all(point.seconds > 0.0 for point in one.points)
    assert one.workers == 2
    await engine.aclose()


async def test_a_measurement_goes_on_when_who_asked_gives_up(scripted: WhisperStt) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await scripted.measure()
    assert {point.batch for point in (await scripted.measure()).points} == {1}


async def test_a_death_ends_a_measurement(whisper: WhisperStt) -> None:
    os.kill(pid_of(whisper), signal.SIGSTOP)
    measuring = asyncio.gather(whisper.measure(), return_exceptions=True)
    await asyncio.sleep(0)
    os.kill(pid_of(whisper), signal.SIGKILL)
    (error,) = await measuring
    assert isinstance(error, EngineCrashed)


# ------------------------------------------------------------------------------ start and end


async def test_closing_ends_sessions_and_the_process() -> None:
    engine = WhisperStt(settings())
    await engine.start()
    pid = pid_of(engine)
    session = await engine.open()
    utter(session, 1, silence(LISTEN_RATE_HZ))
    await engine.aclose()
    assert [result async for result in session.results()] == []
    assert not psutil.pid_exists(pid)
    assert "stt-whisper" not in {thread.name for thread in threading.enumerate()}
    assert engine.health().failure is None
    with pytest.raises(EngineUnavailable):
        await engine.open()
    await engine.aclose()


async def test_closing_while_it_loads_ends_the_process() -> None:
    engine = WhisperStt(settings())
    starting = asyncio.gather(engine.start(), return_exceptions=True)
    await until(lambda: engine.health().pids != ())
    await engine.aclose()
    (error,) = await starting
    assert isinstance(error, EngineUnavailable)


async def test_what_was_loaded_is_told() -> None:
    engine = WhisperStt(settings(workers=2))
    await engine.start()
    assert engine.info.model.endswith("(cpu int8, 2 workers)")
    assert engine.recommended_slots >= 1
    environment = psutil.Process(pid_of(engine)).environ()
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
    await engine.aclose()


async def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    for file in WHISPER_SYNTHETIC.iterdir():
        if file.name != "tokenizer.json":
            shutil.copy(file, tmp_path)
    engine = WhisperStt(settings(model=str(tmp_path)))
    with pytest.raises(EngineUnavailable, match=r"lacks tokenizer\.json"):
        await engine.start()
    await engine.aclose()


@pytest.mark.parametrize("file", ["model.bin", "tokenizer.json"])
async def test_a_broken_model_is_refused(tmp_path: Path, file: str) -> None:
    shutil.copytree(WHISPER_SYNTHETIC, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_bytes(b"broken")
    engine = WhisperStt(settings(model=str(tmp_path)))
    with pytest.raises(EngineUnavailable, match="cannot be loaded"):
        await engine.start()
    await engine.aclose()


async def test_a_missing_directory_is_named() -> None:
    engine = WhisperStt(settings(model="/no/such/model"))
    with pytest.raises(EngineUnavailable, match="/no/such/model"):
        await engine.start()
    await engine.aclose()


async def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="no Whisper model 'huge'"):
        weights_of("huge")


@pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="there is a GPU")
async def test_a_gpu_that_is_not_there_is_refused() -> None:
    engine = WhisperStt(settings(device="cuda"))
    with pytest.raises(EngineUnavailable, match="cannot be loaded"):
        await engine.start()
    await engine.aclose()


def test_slots_follow_the_speed() -> None:
    assert [slots_for(seconds) for seconds in (0.01, 0.25, 1.0, 10.0)] == [32, 20, 5, 1]
