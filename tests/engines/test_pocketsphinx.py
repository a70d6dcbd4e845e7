"""pocketsphinx in its real worker processes, fed by espeak-ng and by people."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.engines.speech import frames, outcome, plain, say, transcribe, utter
from tests.support.audio import speech_clips
from voice_rtc.core.audio import LISTEN_RATE_HZ, silence
from voice_rtc.engines.base import Final, SttFailed
from voice_rtc.engines.stt.grammar import load_grammar, sentences_grammar, words_of
from voice_rtc.engines.stt.pocketsphinx import PocketsphinxStt
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.errors import EngineCrashed, EngineUnavailable

SENTENCES = [
    "hello how are you today",
    "what is the weather like in paris",
    "please stop talking",
    "tell me a joke about computers",
    "yes",
    "no thank you",
    "what time is it",
]
GRAMMAR = "|".join(SENTENCES)


@pytest.fixture
async def grammar() -> AsyncIterator[PocketsphinxStt]:
    """One worker that knows SENTENCES."""
    engine = PocketsphinxStt(grammar=GRAMMAR, workers=1, partial_seconds=0.2)
    await engine.start()
    yield engine
    await engine.aclose()


async def test_a_grammar_is_understood_exactly(grammar: PocketsphinxStt, espeak: EspeakTts) -> None:
    heard = [await transcribe(grammar, await say(espeak, sentence)) for sentence in SENTENCES]
    assert heard == SENTENCES


async def test_partials_grow_and_never_repeat(grammar: PocketsphinxStt, espeak: EspeakTts) -> None:
    session = await grammar.open()
    utter(session, 1, await say(espeak, SENTENCES[3]))
    partials, final = await outcome(session, 1)
    assert len(partials) >= 2
    assert all(a != b for a, b in pairwise(partials))
    assert isinstance(final, Final)
    assert final.text == SENTENCES[3]


async def test_silence_is_no_text(grammar: PocketsphinxStt) -> None:
    session = await grammar.open()
    utter(session, 1, silence(LISTEN_RATE_HZ))
    assert await outcome(session, 1) == ([], Final(1, "", 1.0))


async def test_it_knows_english_alone_and_takes_no_prompt(grammar: PocketsphinxStt) -> None:
    assert grammar.info.languages == ("en",) and not grammar.info.takes_prompt


async def test_no_audio_is_no_text(grammar: PocketsphinxStt) -> None:
    session = await grammar.open()
    utter(session, 1, silence(0))
    assert await outcome(session, 1) == ([], Final(1, "", 0.0))


async def test_half_a_sentence_of_the_grammar_is_still_delivered(
    grammar: PocketsphinxStt, espeak: EspeakTts
) -> None:
    text = await transcribe(grammar, await say(espeak, "what is the weather"))
    assert text == "what is the weather"


async def test_sessions_of_one_worker_do_not_mix(
    grammar: PocketsphinxStt, espeak: EspeakTts
) -> None:
    spoken = [await say(espeak, sentence) for sentence in SENTENCES]
    sessions = [await grammar.open() for _ in spoken]
    for session in sessions:
        session.begin(1)
    # interleaved as it comes from several callers at once
    streams = [list(frames(samples)) for samples in spoken]
    for index in range(max(map(len, streams))):
        for session, stream in zip(sessions, streams, strict=True):
            if index < len(stream):
                session.feed(stream[index])
    for session in reversed(sessions):
        session.finish(1)
    finals = [(await outcome(session, 1))[1] for session in sessions]
    assert [final.text for final in finals if isinstance(final, Final)] == SENTENCES


async def test_a_new_utterance_may_begin_before_the_last_final(
    grammar: PocketsphinxStt, espeak: EspeakTts
) -> None:
    session = await grammar.open()
    for number, sentence in enumerate(SENTENCES[:3], start=1):
        utter(session, number, await say(espeak, sentence))
    for number, sentence in enumerate(SENTENCES[:3], start=1):
        _, final = await outcome(session, number)
        assert isinstance(final, Final)
        assert final.text == sentence


async def test_a_discarded_utterance_gives_nothing(
    grammar: PocketsphinxStt, espeak: EspeakTts
) -> None:
    session = await grammar.open()
    utter(session, 1, await say(espeak, SENTENCES[0]))
    session.discard(1)
    session.begin(2)
    session.discard(2)
    utter(session, 3, await say(espeak, SENTENCES[4]))
    _, final = await outcome(session, 3)
    assert isinstance(final, Final)
    assert final.text == "yes"


async def test_closing_a_session_ends_its_results(grammar: PocketsphinxStt) -> None:
    session = await grammar.open()
    session.begin(1)
    await session.aclose()
    assert [result async for result in session.results()] == []
    session.begin(2)
    session.finish(2)
    await session.aclose()


async def test_more_callers_than_decoders_take_turns(espeak: EspeakTts) -> None:
    engine = PocketsphinxStt(grammar=GRAMMAR, workers=1)
    engine._slots_each = 1  # so that two decoders are the bound
    await engine.start()
    samples = await say(espeak, "yes")
    sessions = [await engine.open() for _ in range(5)]
    for session in sessions:
        utter(session, 1, samples)
    finals = [(await outcome(session, 1))[1] for session in sessions]
    assert [final.text for final in finals if isinstance(final, Final)] == ["yes"] * 5
    await engine.aclose()


async def test_a_crash_costs_the_open_utterances_and_no_more(
    grammar: PocketsphinxStt, espeak: EspeakTts
) -> None:
    session, other = await grammar.open(), await grammar.open()
    session.begin(1)
    other.begin(1)
    utter(session, 2, silence(0))  # never decoded: utterance 1 is still open
    (pid,) = grammar.worker_pids()
    os.kill(pid, signal.SIGKILL)
    _, lost = await outcome(session, 2)
    assert isinstance(lost, SttFailed)
    assert isinstance(lost.error, EngineCrashed)
    other.finish(1)
    _, lost = await outcome(other, 1)
    assert isinstance(lost, SttFailed)

    text, number = "", 2
    while text != "yes":  # until the worker has been started again
        number += 1
        utter(session, number, await say(espeak, "yes"))
        _, result = await outcome(session, number)
        text = result.text if isinstance(result, Final) else ""
    assert grammar.worker_pids() != [pid]
    assert await transcribe(grammar, await say(espeak, "no thank you")) == "no thank you"


async def test_busy_while_a_final_is_waited_for(grammar: PocketsphinxStt) -> None:
    session = await grammar.open()
    assert grammar.busy_seconds() == 0.0
    utter(session, 1, silence(LISTEN_RATE_HZ))
    assert grammar.busy_seconds() >= 0.0
    assert len(grammar._workers[0].open) == 1
    await outcome(session, 1)
    assert grammar.busy_seconds() == 0.0
    assert not grammar._workers[0].open


async def test_free_speech_gives_some_of_the_words() -> None:
    engine = PocketsphinxStt(workers=1)
    await engine.start()
    clip = speech_clips()[0]
    heard = set(plain(await transcribe(engine, clip.samples)).split())
    assert {"being", "comparatively"} & heard & set(plain(clip.text).split())
    assert engine.recommended_slots == 2
    await engine.aclose()


async def test_unknown_words_are_named() -> None:
    engine = PocketsphinxStt(grammar="open the zorkmid|yes|qwyjibo", workers=1)
    with pytest.raises(EngineUnavailable, match="qwyjibo, zorkmid"):
        await engine.start()
    await engine.aclose()


async def test_a_grammar_file_is_used(tmp_path: Path, espeak: EspeakTts) -> None:
    file = tmp_path / "lamps.gram"
    file.write_text(
        "#JSGF V1.0;\n// lamps\ngrammar lamps;\n"
        "public <order> = [please] turn (on | off) the (light | radio) {tag};\n"
    )
    engine = PocketsphinxStt(grammar=str(file), workers=1)
    await engine.start()
    assert engine.recommended_slots == 8
    heard = await transcribe(engine, await say(espeak, "Please turn off the radio!"))
    assert heard == "please turn off the radio"
    await engine.aclose()


@pytest.mark.parametrize("text", ["#JSGF V1.0; grammar g; public <u> = ( yes ;", "#JSGF V1.0;"])
async def test_a_broken_grammar_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.gram"
    file.write_text(text)
    engine = PocketsphinxStt(grammar=str(file), workers=1)
    with pytest.raises(EngineUnavailable):
        await engine.start()
    await engine.aclose()


def test_grammars_from_settings() -> None:
    assert load_grammar("") == ""
    jsgf = sentences_grammar(["Hello, World!", "hello world", "It’s 'fine'."])
    assert "hello world | it's fine ;" in jsgf
    assert words_of(jsgf) == {"hello", "world", "it's", "fine"}
    with pytest.raises(EngineUnavailable, match="no sentence"):
        load_grammar("! | ?")
    with pytest.raises(EngineUnavailable, match="cannot be read"):
        load_grammar("/nowhere/at/all.gram")
