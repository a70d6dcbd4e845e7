"""RealtimeSTT's real recorders over shared engines: a script, and Whisper with 235 words."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import psutil
import pytest

from tests.engines.speech import frames, outcome, plain, say, utter
from tests.support.audio import WHISPER_SYNTHETIC, noise
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples, silence
from voice_rtc.engines.base import (
    Final,
    Partial,
    SttEngine,
    SttFailed,
    SttOptions,
    SttSession,
    SupportsBusy,
    SupportsHealth,
    SupportsProbe,
    SupportsQuality,
)
from voice_rtc.engines.fakes import ScriptedStt, ScriptedSttSession
from voice_rtc.engines.stt.realtimestt import (
    AudioInputProcessor,
    RealtimeSttEngine,
    why_not_installed,
)
from voice_rtc.engines.stt.whisper import WhisperSettings, WhisperStt
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.errors import EngineCrashed, EngineTimeout, EngineUnavailable

WHY_SKIPPED = "RealtimeSTT is not installed; `make test-extras` runs this"
pytestmark = pytest.mark.filterwarnings("ignore")  # torch and its friends deprecate much
AS_CONFIGURED = SttOptions()
SENTENCES = [
    "My code word is falcon river.",
    "This is caller seven, my code word is silver dolphin.",
    "What is the weather in Paris today?",
    "Turn off the lantern.",
]


def sound(seconds: float) -> Samples:
    """Noise: no two pieces of it are alike."""
    return noise(seconds, 7, LISTEN_RATE_HZ, 0.1)


class SlowSession(ScriptedSttSession):
    """Takes everything and never has a Final."""

    def __init__(self, stt: ScriptedStt) -> None:
        super().__init__(stt.finals, 1600, stt._sessions.discard)
        self.asked = asyncio.Event()

    def finish(self, utterance: int) -> None:
        """It is thinking."""
        self.asked.set()


class SlowStt(ScriptedStt):
    """Its sessions never come to a Final."""

    async def open(self, options: SttOptions = AS_CONFIGURED) -> SlowSession:
        """A fresh session."""
        session = SlowSession(self)
        self._sessions.add(session)
        return session


async def started(shared: SttEngine, **options: object) -> RealtimeSttEngine:
    pytest.importorskip("RealtimeSTT", reason=WHY_SKIPPED)
    engine = RealtimeSttEngine(shared, partial_seconds=0.05, **options)  # type: ignore[arg-type]
    await engine.start()
    return engine


@pytest.fixture
def script() -> ScriptedStt:
    """Its last line shows whether a recorder makes sentences of what was heard."""
    return ScriptedStt(["One two three.", "Four five.", "and six"], word_seconds=0.1, slots=100)


@pytest.fixture
async def engine(script: ScriptedStt) -> AsyncIterator[RealtimeSttEngine]:
    engine = await started(script)
    yield engine
    await engine.aclose()


@pytest.fixture
async def over_whisper() -> AsyncIterator[RealtimeSttEngine]:
    whisper = WhisperStt(WhisperSettings(model=str(WHISPER_SYNTHETIC), device="cpu"))
    engine = await started(whisper)
    yield engine
    await engine.aclose()


def recorded(session: AudioInputProcessor) -> Samples:
    """What the shared engine was given, as far as the scripted one remembers."""
    shared = session._shared
    assert isinstance(shared, ScriptedSttSession)
    return np.concatenate([pcm.samples for pcm in shared.fed])


# ------------------------------------------------------------------------------ with Whisper


async def test_callers_are_understood_and_do_not_mix(
    over_whisper: RealtimeSttEngine, espeak: EspeakTts
) -> None:
    spoken = [await say(espeak, text) for text in SENTENCES]
    sessions = [await over_whisper.open() for _ in SENTENCES]
    for session in sessions:
        session.begin(1)
    # In turns, as from the network, so that all recorders record at the same time.
    streams = [list(frames(samples)) for samples in spoken]
    for number in range(max(map(len, streams))):
        for session, stream in zip(sessions, streams, strict=True):
            if number < len(stream):
                session.feed(stream[number])
    for session in sessions:
        session.finish(1)
    heard = [await outcome(session, 1) for session in sessions]
    texts = [plain(final.text) for _, final in heard if isinstance(final, Final)]
    assert texts == [plain(text) for text in SENTENCES]


async def test_partials_come_while_the_caller_speaks(
    over_whisper: RealtimeSttEngine, espeak: EspeakTts
) -> None:
    session = await over_whisper.open()
    session.begin(1)
    for pcm in frames(await say(espeak, SENTENCES[0])):
        session.feed(pcm)
    results = session.results()
    assert isinstance(first := await anext(results), Partial)
    assert plain(first.text).split()[0] == "my"
    session.finish(1)
    while isinstance(result := await anext(results), Partial):
        pass
    assert isinstance(result, Final)
    assert plain(result.text) == plain(SENTENCES[0])


async def test_what_whisper_can_it_can(over_whisper: RealtimeSttEngine) -> None:
    assert isinstance(over_whisper, SupportsQuality)
    assert isinstance(over_whisper, SupportsProbe)
    assert isinstance(over_whisper, SupportsHealth)
    shared = over_whisper._shared
    assert isinstance(shared, WhisperStt)
    assert over_whisper.health().pids == shared.health().pids != ()
    over_whisper.on_timing = print
    assert shared.on_timing is print


async def test_the_shared_engine_dies(over_whisper: RealtimeSttEngine) -> None:
    assert isinstance(over_whisper, SupportsHealth)
    session = await over_whisper.open()
    session.begin(1)
    session.feed(Pcm(sound(1.0), 0))
    session.finish(1)
    (pid,) = over_whisper.health().pids
    psutil.Process(pid).kill()
    _, failed = await outcome(session, 1)
    assert isinstance(failed, SttFailed)
    assert isinstance(failed.error, EngineCrashed)
    assert over_whisper.health().failure is not None


# --------------------------------------------------------------------------- with the script


async def test_utterances_end_when_the_call_says_so(engine: RealtimeSttEngine) -> None:
    session = await engine.open()
    for number, text in enumerate(["One two three.", "Four five.", "and six"], start=1):
        utter(session, number, sound(0.5))
        assert (await outcome(session, number))[1] == Final(number, text, 0.5)


async def test_the_next_one_may_begin_before_the_final(engine: RealtimeSttEngine) -> None:
    session = await engine.open()
    for number in range(1, 4):
        utter(session, number, sound(0.3))
    for number, text in enumerate(["One two three.", "Four five.", "and six"], start=1):
        assert (await outcome(session, number))[1] == Final(number, text, 0.3)


async def test_partials_replace_each_other(engine: RealtimeSttEngine) -> None:
    session = await engine.open()
    results = session.results()
    session.begin(1)
    session.feed(Pcm(sound(0.15), 0))
    assert await anext(results) == Partial(1, "One")
    session.feed(Pcm(sound(0.1), 2400))
    assert await anext(results) == Partial(1, "One two")
    session.finish(1)
    assert await anext(results) == Final(1, "One two three.", 0.25)


@pytest.mark.parametrize("size", [1, 319, 512, 16_000 * 30])
async def test_no_sample_is_lost_or_changed(engine: RealtimeSttEngine, size: int) -> None:
    """In whatever pieces, and half a minute at once, which a recorder would drop by itself."""
    samples = sound(30.0 if size > 16_000 else 0.1)
    samples[:2] = (-32768, 32767)
    session = await engine.open()
    session.begin(1)
    for start in range(0, len(samples), size):
        session.feed(Pcm(samples[start : start + size], start))
    session.finish(1)
    _, final = await outcome(session, 1)
    assert isinstance(final, Final)
    assert final.audio_seconds == len(samples) / LISTEN_RATE_HZ
    assert np.array_equal(recorded(session), samples)


@pytest.mark.parametrize("samples", [0, 1, 511])
async def test_almost_nothing_said(engine: RealtimeSttEngine, samples: int) -> None:
    session = await engine.open()
    utter(session, 1, sound(1.0)[:samples])
    _, final = await outcome(session, 1)
    assert isinstance(final, Final)
    assert final.audio_seconds == samples / LISTEN_RATE_HZ


async def test_what_is_discarded_is_not_delivered(engine: RealtimeSttEngine) -> None:
    session = await engine.open()
    session.begin(1)
    session.feed(Pcm(sound(0.5), 0))
    session.discard(1)
    session.finish(1)
    utter(session, 2, sound(0.5))
    session.discard(2)
    utter(session, 3, silence(3200))
    _, final = await outcome(session, 3)
    assert isinstance(final, Final)
    assert final.audio_seconds == 0.2
    assert np.array_equal(recorded(session)[-3200:], silence(3200))


async def test_it_never_listens_by_itself(engine: RealtimeSttEngine) -> None:
    """Armed, it would end an utterance after 0.6 s of silence by the wall clock."""
    session = await engine.open()
    for number in range(1, 4):
        utter(session, number, silence(0) if number == 2 else sound(0.3))
        await outcome(session, number)
        assert session._recorder is not None
        recorder = session._recorder._recorder
        assert not recorder.start_recording_on_voice_activity
        assert not recorder.stop_recording_on_voice_deactivity
        assert not recorder.continuous_listening


async def test_a_failure_of_the_shared_engine_is_told() -> None:
    crash = EngineCrashed("the script says so")
    engine = await started(ScriptedStt([crash, "Fine."]))
    session = await engine.open()
    utter(session, 1, sound(0.3))
    assert await outcome(session, 1) == ([], SttFailed(1, crash))
    utter(session, 2, sound(0.3))
    assert (await outcome(session, 2))[1] == Final(2, "Fine.", 0.3)
    await engine.aclose()


async def test_closed_while_it_transcribes() -> None:
    engine = await started(SlowStt())
    session = await engine.open()
    session.begin(1)
    session.feed(Pcm(sound(0.3), 0))
    session.finish(1)
    session.begin(2)
    session.feed(Pcm(sound(0.3), 0))
    assert isinstance(session._shared, SlowSession)
    await session._shared.asked.wait()  # then a thread of the recorder's waits for the Final
    await session.aclose()
    await session.aclose()
    assert [result async for result in session.results()] == []
    session.begin(3)
    session.feed(Pcm(sound(0.3), 0))
    session.finish(3)
    session.discard(3)
    await engine.aclose()


async def test_a_final_that_does_not_come() -> None:
    engine = await started(SlowStt())
    assert engine._group is not None
    session = AudioInputProcessor(
        await SlowStt().open(), 9, language="en", partial_seconds=0.05, final_seconds=0.05
    )
    await session.start(engine._group)
    utter(session, 1, sound(0.3))
    _, failed = await outcome(session, 1)
    assert isinstance(failed, SttFailed)
    assert isinstance(failed.error, EngineTimeout)
    await session.aclose()
    await engine.aclose()


async def test_the_shared_session_ends(engine: RealtimeSttEngine) -> None:
    session = await engine.open()
    session.begin(1)
    await session._shared.aclose()
    _, failed = await outcome(session, 1)
    assert isinstance(failed, SttFailed)
    assert isinstance(failed.error, EngineUnavailable)
    utter(session, 2, sound(0.1))
    assert isinstance((await outcome(session, 2))[1], SttFailed)


async def test_other_audio_than_it_was_fed_is_refused(engine: RealtimeSttEngine) -> None:
    session = await engine.open()
    session.begin(1)
    session.feed(Pcm(sound(0.3), 0))
    assert isinstance(await anext(session.results()), Partial)  # so it is recording
    assert session._recorder is not None
    session._recorder._recorder.feed_audio(sound(0.1).tobytes())
    session.finish(1)
    _, failed = await outcome(session, 1)
    assert isinstance(failed, SttFailed)
    assert "other audio" in str(failed.error)


async def test_a_partial_of_other_audio_is_none(engine: RealtimeSttEngine) -> None:
    """A recorder's thread may come late with what it kept of the utterance before."""
    session = await engine.open()
    session.begin(1)
    session.feed(Pcm(sound(0.3), 0))
    assert isinstance(await anext(session.results()), Partial)  # so it is recording
    assert session._transcribe_partial(sound(0.3)[1:].tobytes()) == ""
    session.finish(1)
    _, final = await outcome(session, 1)
    assert isinstance(final, Final)
    assert np.array_equal(recorded(session), sound(0.3))


async def test_recorders_are_bounded(script: ScriptedStt) -> None:
    engine = await started(script, most_recorders=3)
    assert engine.recommended_slots == 1
    sessions = [await engine.open() for _ in range(3)]
    with pytest.raises(EngineUnavailable, match="3 RealtimeSTT recorders"):
        await engine.open()
    assert len(script._sessions) == 3
    await sessions[0].aclose()
    await engine.open()
    await engine.aclose()
    assert AudioInputProcessor.alive == set()


async def test_nothing_is_left_of_ten_recorders(engine: RealtimeSttEngine) -> None:
    process = psutil.Process()

    async def cycle() -> None:
        session = await engine.open()
        utter(session, 1, sound(1.0))
        await outcome(session, 1)
        await session.aclose()

    await cycle()
    threads, children = set(threading.enumerate()), process.children()
    memory = process.memory_info().rss
    for _ in range(10):
        await cycle()
    assert set(threading.enumerate()) == threads
    assert process.children() == children
    assert process.memory_info().rss - memory < 20e6


async def test_it_is_quiet(engine: RealtimeSttEngine, capfd: pytest.CaptureFixture[str]) -> None:
    session = await engine.open()
    utter(session, 1, silence(0))
    utter(session, 2, sound(0.3))
    await outcome(session, 1)
    await outcome(session, 2)
    await session.aclose()
    logger = logging.getLogger("realtimestt")
    assert len(logger.handlers) == 1
    assert not logger.isEnabledFor(logging.WARNING)
    assert multiprocessing.get_start_method() != "spawn"  # which would start a child process
    assert capfd.readouterr() == ("", "")


async def test_the_clock_is_set_back(
    engine: RealtimeSttEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await engine.open()
    session.begin(1)
    session.feed(Pcm(sound(0.3), 0))
    assert isinstance(await anext(session.results()), Partial)  # so it is recording
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    session.finish(1)
    assert (await outcome(session, 1))[1] == Final(1, "One two three.", 0.3)
    utter(session, 2, sound(0.3))
    assert (await outcome(session, 2))[1] == Final(2, "Four five.", 0.3)


async def test_what_the_script_cannot_it_cannot(engine: RealtimeSttEngine) -> None:
    for capability in (SupportsBusy, SupportsHealth, SupportsQuality, SupportsProbe):
        assert not isinstance(engine, capability)


class Noted(ScriptedStt):
    """Remembers the options that each utterance was begun with."""

    def __init__(self) -> None:
        super().__init__(["One."], slots=100)
        self.info = replace(self.info, languages=("de", "fr"), takes_prompt=True)
        self.begun: list[SttOptions] = []

    async def open(self, options: SttOptions = AS_CONFIGURED) -> ScriptedSttSession:
        """A session that remembers."""
        session = NotedSession(self, options)
        self._sessions.add(session)
        return session


class NotedSession(ScriptedSttSession):
    """One of them."""

    def __init__(self, stt: Noted, options: SttOptions) -> None:
        super().__init__(stt.finals, 1600, stt._sessions.discard)
        self._stt, self._options = stt, options

    def configure(self, options: SttOptions) -> None:
        """For the next utterance."""
        self._options = options

    def begin(self, utterance: int) -> None:
        """With what was said last."""
        self._stt.begun.append(self._options)
        super().begin(utterance)


async def test_each_utterance_has_the_options_of_its_beginning() -> None:
    shared = Noted()
    engine = await started(shared)
    try:
        assert engine.info.languages == ("de", "fr") and engine.info.takes_prompt
        german, french = SttOptions("de", "Falke"), SttOptions("fr", "Aigle")
        session = await engine.open(german)
        session.begin(1)  # which the shared engine hears of later
        session.configure(french)
        session.feed(Pcm(sound(0.3), 0))
        session.finish(1)
        assert (await outcome(session, 1))[1] == Final(1, "One.", 0.3)
        utter(session, 2, sound(0.3))
        assert (await outcome(session, 2))[1] == Final(2, "One.", 0.3)
        assert shared.begun == [german, french]
    finally:
        await engine.aclose()


async def test_it_keeps_the_protocols(engine: RealtimeSttEngine) -> None:
    """Checked by mypy as much as by running."""
    stt: SttEngine = engine
    session: SttSession = await stt.open(SttOptions(language="de", prompt="Hallo"))
    session.configure(SttOptions())
    assert stt.info.model == "1.1.2 over scripted"
    await stt.aclose()
    with pytest.raises(EngineUnavailable):
        await stt.open()


# ------------------------------------------------------------------------- without RealtimeSTT


async def test_before_start_it_is_unavailable(script: ScriptedStt) -> None:
    engine = RealtimeSttEngine(script)
    with pytest.raises(EngineUnavailable):
        await engine.open()
    await engine.aclose()


@pytest.mark.skipif(find_spec("RealtimeSTT") is not None, reason="RealtimeSTT is installed here")
async def test_without_the_extra_it_says_how_to_install(script: ScriptedStt) -> None:
    engine = RealtimeSttEngine(script)
    with pytest.raises(EngineUnavailable, match=r"voice-rtc\[realtimestt\]"):
        await engine.start()
    assert why_not_installed()
    await engine.aclose()
