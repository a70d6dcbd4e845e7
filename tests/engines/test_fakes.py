"""The shipped fakes keep the contracts of the engines they stand for."""

from __future__ import annotations

import pytest

from tests.engines.speech import frames, outcome, utter
from voice_rtc.core.audio import LISTEN_RATE_HZ, silence
from voice_rtc.core.history import Message
from voice_rtc.engines.base import (
    Final,
    LlmEngine,
    Partial,
    SttEngine,
    SttFailed,
    TextDelta,
    TtsEngine,
    Usage,
    VadEngine,
    VoiceOptions,
)
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.errors import EngineCrashed, LlmError


def test_they_keep_the_protocols() -> None:
    """Checked by mypy as much as by running."""
    vad: VadEngine = ThresholdVad()
    stt: SttEngine = ScriptedStt()
    llm: LlmEngine = EchoLlm()
    tts: TtsEngine = ToneTts()
    assert [engine.info.kind for engine in (vad, stt, llm, tts)] == ["vad", "stt", "llm", "tts"]


async def test_the_script_is_said_line_by_line() -> None:
    stt = ScriptedStt(["One two three.", "Four."], word_seconds=0.1)
    session = await stt.open()
    for number, (partials, text) in enumerate(
        [(["One", "One two", "One two three."], "One two three."), (["Four."], "Four.")] * 2,
        start=1,
    ):
        utter(session, number, silence(LISTEN_RATE_HZ // 2))
        assert await outcome(session, number) == (partials, Final(number, text, 0.5))
    await stt.aclose()
    assert [result async for result in session.results()] == []


async def test_a_line_may_be_a_failure() -> None:
    crash = EngineCrashed("the script says so")
    session = await ScriptedStt([crash, "Fine."]).open()
    utter(session, 1, silence(16_000))
    utter(session, 2, silence(0))
    assert await outcome(session, 1) == ([], SttFailed(1, crash))
    assert await outcome(session, 2) == ([], Final(2, "Fine.", 0.0))
    await session.aclose()


async def test_what_is_discarded_is_not_delivered() -> None:
    session = await ScriptedStt(["A.", "B.", "C."], word_seconds=0.1).open()
    session.begin(1)
    for pcm in frames(silence(8000)):
        session.feed(pcm)
    session.discard(1)
    session.finish(1)
    utter(session, 2, silence(8000))
    session.discard(2)
    utter(session, 3, silence(0))
    assert await outcome(session, 3) == ([], Final(3, "C.", 0.0))
    await session.aclose()


async def test_two_sessions_have_their_own_place_in_the_script() -> None:
    stt = ScriptedStt(["A.", "B."])
    first, second = await stt.open(), await stt.open()
    utter(first, 1, silence(0))
    utter(first, 2, silence(0))
    utter(second, 1, silence(0))
    assert (await outcome(second, 1))[1] == Final(1, "A.", 0.0)
    await stt.aclose()


async def test_echo_repeats_the_caller() -> None:
    llm = EchoLlm()
    asked = [Message("user", "first"), Message("assistant", "x"), Message("user", "last words")]
    events = [event async for event in llm.stream(asked)]
    assert events == [
        *(TextDelta("You"), TextDelta(" said:"), TextDelta(" last"), TextDelta(" words")),
        Usage(4, 4),
    ]
    assert llm.asked[-1] == tuple(asked)
    assert llm.closed_early == 0


async def test_echo_plays_its_replies_failures_and_delays() -> None:
    waited = []

    async def delay(seconds: float) -> None:
        waited.append(seconds)

    failure = LlmError("full", code="llm_rate_limited")
    llm = EchoLlm(["One two.", failure], first_seconds=0.4, word_seconds=0.1, delay=delay)
    texts = [event async for event in llm.stream([])]
    assert texts[:2] == [TextDelta("One"), TextDelta(" two.")]
    assert waited == [0.4, 0.1]
    with pytest.raises(LlmError):
        await anext(llm.stream([]))
    assert [event async for event in llm.stream([])] == texts


async def test_echo_knows_when_it_was_cut_short() -> None:
    llm = EchoLlm(["A long reply that nobody waits for."])
    stream = llm.stream([])
    await anext(stream)
    await stream.aclose()
    assert llm.closed_early == 1


async def test_a_tone_is_as_long_as_its_text() -> None:
    tts = ToneTts(seconds_per_character=0.1)
    chunks = [chunk async for chunk in tts.synthesize("Hello!")]
    assert [chunk.at for chunk in chunks] == [0, 2400, 4800, 7200, 9600, 12000]
    fast = [chunk async for chunk in tts.synthesize("Hello!", VoiceOptions(speed=2.0))]
    assert len(fast) == 3
    assert [chunk async for chunk in tts.synthesize("...")] == []
    assert list(tts.spoken) == ["Hello!", "Hello!"]


async def test_a_tone_is_made_as_it_is_read() -> None:
    tts = ToneTts()
    stream = tts.synthesize("A text of some length.")
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    assert tts.chunks_made == 2


async def test_a_tone_may_fail() -> None:
    tts = ToneTts(fail_on={"crash": EngineCrashed("asked to")})
    stream = tts.synthesize("Please crash now.")
    await anext(stream)
    with pytest.raises(EngineCrashed):
        await anext(stream)
    assert [chunk async for chunk in tts.synthesize("Fine.")]


async def test_partials_of_a_session_grow() -> None:
    session = await ScriptedStt(["One two three four."], word_seconds=0.02).open()
    session.begin(1)
    for pcm in frames(silence(640)):
        session.feed(pcm)
    results = session.results()
    assert [await anext(results), await anext(results)] == [
        Partial(1, "One"),
        Partial(1, "One two"),
    ]
    await session.aclose()
