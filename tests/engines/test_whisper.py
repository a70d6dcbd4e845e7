"""Whisper through the real faster-whisper, with the tiny model that knows 235 words."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engines.speech import frames, outcome, plain, say, transcribe, utter
from tests.support.audio import WHISPER_SYNTHETIC, noise
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, silence
from voice_rtc.engines.base import Final, Partial, SttFailed
from voice_rtc.engines.stt.whisper import WhisperSettings, WhisperStt, slots_for, weights_of
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.errors import EngineCrashed, EngineUnavailable

SENTENCES = [
    "My code word is falcon river.",
    "What is the weather in Paris today?",
    "Tell me more about London.",
    "This is caller seven, my code word is silver dolphin.",
    "Turn off the lantern.",
]


def settings(**changes: object) -> WhisperSettings:
    values: dict[str, object] = {"model": str(WHISPER_SYNTHETIC), "device": "cpu", **changes}
    return WhisperSettings(**values)  # type: ignore[arg-type] # values come by name


@pytest.fixture
async def whisper() -> AsyncIterator[WhisperStt]:
    engine = WhisperStt(settings())
    await engine.start()
    yield engine
    await engine.aclose()


async def test_sentences_of_the_lexicon_are_exact(whisper: WhisperStt, espeak: EspeakTts) -> None:
    heard = [plain(await transcribe(whisper, await say(espeak, text))) for text in SENTENCES]
    assert heard == [plain(text) for text in SENTENCES]


async def test_callers_do_not_mix(whisper: WhisperStt, espeak: EspeakTts) -> None:
    sessions = [await whisper.open() for _ in SENTENCES]
    for session, text in zip(sessions, SENTENCES, strict=True):
        utter(session, 1, await say(espeak, text))
    for session, text in zip(sessions, SENTENCES, strict=True):
        _, final = await outcome(session, 1)
        assert isinstance(final, Final)
        assert plain(final.text) == plain(text)


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


async def test_finals_go_before_partials(whisper: WhisperStt, espeak: EspeakTts) -> None:
    """While the worker is busy with one caller, others ask for partials and one for a final."""
    spoken = await say(espeak, SENTENCES[0])
    order: list[str] = []
    callers = {name: await whisper.open() for name in ("busy", "talks", "talks too", "waits")}
    for session in callers.values():
        session.begin(1)
    utter(callers["busy"], 2, spoken)
    for name in ("talks", "talks too", "waits"):
        for pcm in frames(spoken):
            callers[name].feed(pcm)
    callers["waits"].finish(1)
    for name, session in callers.items():
        original = session.transcribed

        def note(*args, _name=name, _original=original, **kwargs) -> None:
            order.append(_name)
            _original(*args, **kwargs)

        session.transcribed = note  # type: ignore[method-assign] # listens, changes nothing
    for name in ("talks", "talks too"):
        await anext(callers[name].results())
    # One partial each, though each asked for several: the newest replaced the older ones.
    assert order[-3:] == ["waits", "talks", "talks too"]


async def test_a_discarded_utterance_gives_nothing(whisper: WhisperStt, espeak: EspeakTts) -> None:
    session = await whisper.open()
    utter(session, 1, await say(espeak, SENTENCES[0]))
    session.discard(1)
    utter(session, 2, await say(espeak, SENTENCES[2]))
    _, final = await outcome(session, 2)
    assert isinstance(final, Final)
    assert plain(final.text) == plain(SENTENCES[2])


async def test_a_failing_model_costs_the_utterance(whisper: WhisperStt) -> None:
    session = await whisper.open()
    session.begin(1)
    session.feed(Pcm(silence(LISTEN_RATE_HZ), 0))
    session._newest.runs.append("not audio")  # type: ignore[union-attr,arg-type] # on purpose
    session.finish(1)
    _, result = await outcome(session, 1)
    assert isinstance(result, SttFailed)
    assert isinstance(result.error, EngineCrashed)
    utter(session, 2, silence(LISTEN_RATE_HZ))
    assert (await outcome(session, 2))[1] == Final(2, "", 1.0)


async def test_closing_ends_sessions_and_the_thread() -> None:
    engine = WhisperStt(settings())
    await engine.start()
    session = await engine.open()
    utter(session, 1, silence(LISTEN_RATE_HZ))
    await engine.aclose()
    assert [result async for result in session.results()] == []
    assert "stt-whisper" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(EngineUnavailable):
        await engine.open()
    await engine.aclose()


async def test_what_was_loaded_is_told(whisper: WhisperStt) -> None:
    assert whisper.info.model.endswith("(cpu int8)")
    assert whisper.recommended_slots >= 1


async def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    for file in WHISPER_SYNTHETIC.iterdir():
        if file.name != "tokenizer.json":
            shutil.copy(file, tmp_path)
    engine = WhisperStt(settings(model=str(tmp_path)))
    with pytest.raises(EngineUnavailable, match=r"lacks tokenizer\.json"):
        await engine.start()
    await engine.aclose()


async def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    shutil.copytree(WHISPER_SYNTHETIC, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.bin").write_bytes(b"broken")
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


def test_slots_follow_the_speed() -> None:
    assert [slots_for(seconds) for seconds in (0.01, 0.25, 1.0, 10.0)] == [32, 20, 5, 1]
