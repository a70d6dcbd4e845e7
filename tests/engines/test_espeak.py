"""espeak-ng through the real library."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import threading

import pytest
import structlog.testing

from tests.engines.speech import say
from voice_rtc.engines.base import VoiceOptions
from voice_rtc.engines.tts import espeak as module
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.engines.tts.speakable import clean, pieces
from voice_rtc.errors import EngineUnavailable

LONG = "This sentence is here to be spoken, again and again, for a good while. " * 12


async def seconds(engine: EspeakTts, text: str, **options: object) -> float:
    voice = VoiceOptions(**options)  # type: ignore[arg-type] # options come by name
    return sum([chunk.seconds async for chunk in engine.synthesize(text, voice)])


async def test_it_speaks_in_chunks(espeak: EspeakTts) -> None:
    chunks = [chunk async for chunk in espeak.synthesize("Hello, how are you today?")]
    assert espeak.rate_hz == 22_050
    assert {chunk.rate_hz for chunk in chunks} == {22_050}
    assert {len(chunk.samples) for chunk in chunks[:-1]} == {2205}
    assert 1.0 < sum(chunk.seconds for chunk in chunks) < 3.0


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "\n\x01\x00", "🙂"])
async def test_nothing_to_speak_yields_nothing(espeak: EspeakTts, text: str) -> None:
    assert await seconds(espeak, text) == 0.0


@pytest.mark.parametrize(
    "text",
    ["<speak>a & b</speak>", "[[h@l'oU]]", "a\x01b", "100 %1 <break time='10s'/> done", "x" * 700],
)
async def test_odd_text_is_spoken(espeak: EspeakTts, text: str) -> None:
    assert 0.1 < await seconds(espeak, text) < 120.0


async def test_speed_is_kept(espeak: EspeakTts) -> None:
    slow, normal, fast = [
        await seconds(espeak, "one two three four five six", speed=s) for s in (0.5, 1.0, 2.0)
    ]
    assert slow > 1.4 * normal
    assert normal > 1.4 * fast


async def test_voices_differ(espeak: EspeakTts) -> None:
    american = await say(espeak, "tomato", VoiceOptions(voice="en-us"))
    german = await say(espeak, "tomato", VoiceOptions(voice="de"))
    assert american.shape != german.shape or (american != german).any()


@pytest.mark.parametrize("voice", ["alloy", "../../etc/passwd", "en us", "x" * 100])
async def test_an_unknown_voice_is_the_default_and_said_once(espeak: EspeakTts, voice: str) -> None:
    with structlog.testing.capture_logs() as logs:
        assert await seconds(espeak, "hello", voice=voice) > 0.1
        assert await seconds(espeak, "hello", voice=voice) > 0.1
    assert [log["event"] for log in logs] == ["tts_voice_unknown"]


async def test_closing_the_generator_ends_the_speech(espeak: EspeakTts) -> None:
    stream = espeak.synthesize(LONG)
    await anext(stream)
    await stream.aclose()
    assert [chunk async for chunk in stream] == []
    assert espeak.busy_seconds() == 0.0


async def test_an_aborted_synthesis_stops_inside_the_library() -> None:
    """The abort is set before the first callback: no samples come, where else many would."""
    abort = threading.Event()
    module._library.load()
    whole = module._library.speak(LONG, "en-us", 175, abort)
    abort.set()
    assert len(module._library.speak(LONG, "en-us", 175, abort)) == 0
    assert len(whole) > 22_050 * 20


async def test_long_text_is_made_piece_by_piece(espeak: EspeakTts) -> None:
    made = []
    original = espeak._speak

    async def note(text: str, voice: str, speed: float):
        made.append(text)
        return await original(text, voice, speed)

    espeak._speak = note  # type: ignore[method-assign] # listens, changes nothing
    stream = espeak.synthesize(LONG)
    await anext(stream)
    assert len(made) == 1
    await stream.aclose()
    assert len(made) == 1


async def test_two_engines_share_the_library(espeak: EspeakTts) -> None:
    other = EspeakTts(voice="de")
    await other.start()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(say(engine, "one two three"))
            for engine in (espeak, other, espeak, other)
        ]
    assert all(len(task.result()) > 16_000 for task in tasks)
    await other.aclose()
    assert await seconds(espeak, "still here") > 0.3


async def test_before_start_it_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable):
        await anext(EspeakTts().synthesize("hello"))


async def test_an_unknown_voice_in_the_settings_is_replaced() -> None:
    engine = EspeakTts(voice="af_heart")
    await engine.start()
    assert engine.info.model == "en-us"
    await engine.aclose()


def test_pieces_are_cut_between_sentences_then_words() -> None:
    assert list(pieces("One. Two three. Four", 100)) == ["One. Two three. Four"]
    assert list(pieces("One two. Three four five", 14)) == ["One two.", "Three four", "five"]
    assert list(pieces("abcdefghij", 4)) == ["abcd", "efgh", "ij"]
    assert "".join(pieces(LONG, 60)).replace(" ", "") == LONG.replace(" ", "")
    assert max(map(len, pieces(LONG, 60))) <= 60


def test_clean_keeps_what_can_be_spoken() -> None:
    assert clean(" a\x01\tb ") == "a b"
    assert clean("-- !") == ""


async def test_speech_of_any_length_leaves_no_types_behind(espeak: EspeakTts) -> None:
    def array_types() -> int:
        kind = type(ctypes.c_short * 1)
        return sum(isinstance(each, kind) for each in gc.get_objects())

    before = array_types()
    lengths = {await seconds(espeak, LONG[: 11 * n], speed=1.0 + n / 17) for n in range(1, 8)}
    assert len(lengths) == 7
    assert array_types() == before
