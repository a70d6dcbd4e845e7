"""ELIZA: answers fit, are the same for the same words, and nothing upsets it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_rtc.core.history import Message
from voice_rtc.engines.base import TextDelta
from voice_rtc.engines.llm.eliza import ElizaLlm, ElizaRules
from voice_rtc.errors import EngineUnavailable

RULES = ElizaRules()


async def reply(llm: ElizaLlm, *said: str) -> str:
    messages = [Message("user", text) for text in said]
    pieces = [event async for event in llm.stream(messages) if isinstance(event, TextDelta)]
    return "".join(piece.text for piece in pieces)


@pytest.fixture
async def eliza() -> ElizaLlm:
    llm = ElizaLlm(seed=1)
    await llm.start()
    return llm


async def test_it_turns_words_around(eliza: ElizaLlm) -> None:
    assert "you are" not in (text := await reply(eliza, "I need my coffee"))
    assert "your coffee" in text


async def test_it_streams_word_by_word(eliza: ElizaLlm) -> None:
    messages = [Message("user", "I am sad")]
    pieces = [event async for event in eliza.stream(messages) if isinstance(event, TextDelta)]
    assert len(pieces) > 3
    assert all(len(piece.text.split()) == 1 for piece in pieces)


async def test_it_opens_a_conversation_without_words(eliza: ElizaLlm) -> None:
    assert await reply(eliza) == "Hello. How are you feeling today?"


@pytest.mark.parametrize("said", ["", "   ", "...", "?"])
async def test_it_says_so_when_nothing_was_said(eliza: ElizaLlm, said: str) -> None:
    assert "did not hear" in await reply(eliza, said)


async def test_the_same_conversation_goes_the_same_way(eliza: ElizaLlm) -> None:
    other = ElizaLlm(seed=2)
    await other.start()
    said = [f"Hello number {number}" for number in range(20)]
    mine = [await reply(eliza, text) for text in said]
    random.seed(99)  # the global generator is not asked
    assert [await reply(eliza, text) for text in said] == mine
    assert [await reply(other, text) for text in said] != mine


async def test_it_does_not_repeat_itself(eliza: ElizaLlm) -> None:
    messages = []
    for _ in range(10):
        messages.append(Message("user", "Hello"))
        pieces = [event async for event in eliza.stream(messages) if isinstance(event, TextDelta)]
        messages.append(Message("assistant", "".join(piece.text for piece in pieces)))
    said = [message.content for message in messages if message.role == "assistant"]
    assert all(a != b for a, b in pairwise(said))


@given(st.text(max_size=2000))
def test_any_text_gets_an_answer(said: str) -> None:
    answer = RULES.answer(said, random.Random(0))
    assert answer
    assert len(answer) < 500


@pytest.mark.parametrize("said", ["a " * 100_000, "sorry " * 50_000, "%1%2%9 " * 999, "I am %5"])
def test_long_and_odd_words_are_survived(said: str) -> None:
    assert RULES.answer(said, random.Random(0))


async def test_before_start_it_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable):
        await reply(ElizaLlm(), "hello")
