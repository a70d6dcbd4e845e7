"""Which engines are chosen, what is said about it, and that nothing stays open."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.support.audio import WHISPER_SYNTHETIC
from tests.support.openai_server import openai_server
from voice_rtc.config import load
from voice_rtc.engines.base import EngineInfo, EngineSet
from voice_rtc.engines.catalog import (
    Candidate,
    _Loader,
    close_engines,
    llm_candidates,
    load_engines,
    stt_candidates,
    tts_candidates,
)
from voice_rtc.errors import EngineError, EngineTimeout, EngineUnavailable


async def loaded(**overrides: object) -> tuple[EngineSet, list[str]]:
    """The engines for these settings (``section__field``) and what was reported."""
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    lines: list[str] = []
    engines = await load_engines(load(None, named, {}).settings, lines.append)
    return engines, lines


def names(engines: EngineSet) -> list[str]:
    return [info.name for info in engines.infos()]


async def test_fakes() -> None:
    engines, lines = await loaded(engines="fake")
    assert names(engines) == ["threshold", "scripted", "echo", "tone"]
    assert lines[:2] == ["vad: loading threshold", "vad: threshold is ready"]
    await close_engines(engines)


async def test_embedded_needs_nothing_from_outside() -> None:
    engines, _ = await loaded(engines="embedded", stt__grammar="yes|no", stt__workers=1)
    assert names(engines) == ["silero", "pocketsphinx", "eliza", "espeak-ng"]
    assert all(info.reason for info in engines.infos())
    assert engines.notes == ()
    await close_engines(engines)


async def test_an_engine_by_name_wins_over_the_set() -> None:
    engines, _ = await loaded(engines="fake", tts__engine="espeak-ng", llm__engine="eliza")
    assert names(engines) == ["threshold", "scripted", "eliza", "espeak-ng"]
    await close_engines(engines)


async def test_auto_takes_whisper_when_its_weights_are_there() -> None:
    engines, _ = await loaded(
        stt__model=str(WHISPER_SYNTHETIC), stt__device="cpu", tts__model="/nowhere"
    )
    assert names(engines)[:3] == ["silero", "faster-whisper", "eliza"]
    await close_engines(engines)


async def test_auto_falls_back_and_says_so() -> None:
    engines, lines = await loaded(
        stt__model="/no/weights", stt__workers=1, stt__download=False, tts__model="/no/voice"
    )
    assert names(engines) == ["silero", "pocketsphinx", "eliza", "espeak-ng"]
    assert "/no/weights" in engines.notes[0]
    assert f"stt: {engines.notes[0]}" in lines
    assert len(engines.notes) == 2
    await close_engines(engines)


async def test_an_engine_by_name_that_cannot_start_stops_the_server() -> None:
    with pytest.raises(EngineUnavailable, match="/no/weights"):
        await loaded(stt__engine="faster-whisper", stt__model="/no/weights")
    assert not [t for t in threading.enumerate() if t.name.startswith(("vad", "stt", "tts"))]


async def test_a_later_failure_closes_what_was_started() -> None:
    with pytest.raises(EngineError):
        await loaded(
            engines="embedded",
            stt__grammar="yes|no",
            stt__workers=1,
            tts__engine="kokoro",
            tts__model="/no/voice",
        )
    assert not [t for t in threading.enumerate() if t.name.startswith(("vad", "stt", "tts"))]


async def test_a_language_model_with_an_address_is_used() -> None:
    async with openai_server() as server:
        engines, _ = await loaded(
            engines="auto",
            llm__base_url=server.base_url,
            vad__engine="threshold",
            stt__engine="scripted",
            tts__engine="tone",
        )
        assert names(engines) == ["threshold", "scripted", "openai", "tone"]
        await close_engines(engines)


class Stubborn:
    """An engine that takes for ever to start."""

    def __init__(self, reason: str) -> None:
        self.info = EngineInfo("vad", "stubborn", reason=reason)
        self.closed = False

    async def start(self) -> None:
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


async def test_each_start_has_a_deadline_and_is_closed_after_it() -> None:
    made: list[Stubborn] = []

    def make(reason: str) -> Stubborn:
        made.append(Stubborn(reason))
        return made[-1]

    from contextlib import AsyncExitStack

    async with AsyncExitStack() as started:
        loader = _Loader(started, [].append, [])
        with pytest.raises(EngineTimeout, match="stubborn"):
            await loader.first("vad", [Candidate(make, "", 0.01)])
    assert made[0].closed


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, ["faster-whisper", "pocketsphinx"]),
        ({"stt.grammar": "yes|no"}, ["pocketsphinx"]),
        ({"engines": "embedded"}, ["pocketsphinx"]),
        ({"stt.engine": "faster-whisper"}, ["faster-whisper"]),
        ({"engines": "fake", "stt.engine": "pocketsphinx"}, ["pocketsphinx"]),
    ],
)
def test_speech_recognition_in_order(overrides: dict[str, object], expected: list[str]) -> None:
    settings = load(None, overrides, {}).settings
    made = [candidate.make("").info.name for candidate in stt_candidates(settings)]
    assert made == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, ["eliza"]),
        ({"llm.api_key": "sk-1"}, ["openai"]),
        ({"llm.base_url": "http://localhost:1/v1"}, ["openai"]),
        ({"llm.base_url": "http://localhost:1/v1", "engines": "embedded"}, ["eliza"]),
        ({"llm.engine": "echo"}, ["echo"]),
    ],
)
def test_language_models_in_order(overrides: dict[str, object], expected: list[str]) -> None:
    settings = load(None, overrides, {}).settings
    assert [candidate.make("").info.name for candidate in llm_candidates(settings)] == expected


def test_voices_in_order(tmp_path: Path) -> None:
    settings = load(None, {}, {}).settings
    assert [c.make("").info.name for c in tts_candidates(settings)] == ["kokoro", "espeak-ng"]
