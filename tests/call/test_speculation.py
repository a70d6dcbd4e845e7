"""Answers begun while the caller pauses: heard when they fit, never otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import pytest

from tests.call.test_call import call, count, speak
from voice_rtc.call.draft import Draft
from voice_rtc.core.audio import Pcm
from voice_rtc.core.spoken import spoken_form
from voice_rtc.engines.base import EngineSet, Usage, VoiceOptions
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.tts.speakable import AS_CONFIGURED
from voice_rtc.errors import EngineCrashed, LlmError

SPECULATING = {"speculate": True}
LONG = "I would like to order a large pizza with olives please."
NUMBER = "I would like to order seven large pizzas with olives please."


def scripted(final: str, llm: EchoLlm, tts: ToneTts | None = None) -> EngineSet:
    voice = tts or ToneTts(seconds_per_character=0.03)
    return EngineSet(ThresholdVad(), ScriptedStt((final,)), llm, voice)


async def test_an_answer_that_fits_is_asked_for_once_and_heard_earlier() -> None:
    llm, voice = EchoLlm(), ToneTts(seconds_per_character=0.03)
    async with call(scripted("Hello there.", llm, voice), turns=SPECULATING) as (server, caller):
        before = await speak(caller)
        done = await caller.event("response.done", after=before)
        assert done["response"]["status"] == "completed"
        metrics = await caller.event("voice_rtc.turn.metrics")
        assert metrics["saved_ms"] > 0
        assert [messages[-1].content for messages in llm.asked] == ["Hello there."]
        assert list(voice.spoken) == ["You said: Hello there."]
        assert count(server, "speculations_total", result="kept") == 1
        assert count(server, "speculation_wasted_characters_total") == 0


@pytest.mark.parametrize(("final", "result"), [(LONG, "wording"), (NUMBER, "meaning")])
async def test_an_answer_to_half_a_sentence_is_never_heard(final: str, result: str) -> None:
    llm = EchoLlm()
    async with call(scripted(final, llm), turns=SPECULATING) as (server, caller):
        before = await speak(caller)
        done = await caller.event("response.done", after=before)
        said = done["response"]["output"][0]["content"][0]["transcript"]
        assert said == f"You said: {final}"
        assert llm.asked[-1][-1].content == final
        assert len(llm.asked) >= 2
        assert count(server, "speculations_total", result=result) == 1
        assert count(server, "speculation_wasted_characters_total") > 0


async def test_an_answer_that_failed_early_is_asked_for_again() -> None:
    llm = EchoLlm([LlmError("busy", code="llm_rate_limited"), "All is well."])
    async with call(scripted("Hello there.", llm), turns=SPECULATING) as (server, caller):
        before = await speak(caller)
        done = await caller.event("response.done", after=before)
        assert done["response"]["output"][0]["content"][0]["transcript"] == "All is well."
        assert count(server, "speculations_total", result="failed") == 1
        assert "error" not in caller.types()


async def test_what_the_client_added_meanwhile_is_answered_too() -> None:
    llm = EchoLlm()
    # A pause so long that the client has time to add something to what was begun.
    turns = {**SPECULATING, "min_pause_seconds": 2.0, "max_pause_seconds": 2.0}
    async with call(scripted("Hello there.", llm), turns=turns) as (server, caller):
        before = await speak(caller)
        while not llm.asked:
            await caller.microphone.frame()
        content = [{"type": "input_text", "text": "My name is Ann."}]
        item = {"type": "message", "role": "user", "content": content}
        caller.send(type="conversation.item.create", item=item)
        await caller.event("response.done", after=before)
        assert llm.asked[-1][-1].content == "My name is Ann. Hello there."
        assert count(server, "speculations_total", result="stale") == 1


async def test_hanging_up_ends_what_was_begun() -> None:
    stuck = asyncio.Event()

    async def forever(_seconds: float) -> None:
        await stuck.wait()

    llm = EchoLlm(delay=forever)
    turns = {**SPECULATING, "min_pause_seconds": 5.0, "max_pause_seconds": 5.0}
    async with call(scripted("Hello there.", llm), turns=turns) as (server, caller):
        await speak(caller)
        while not llm.asked:
            await caller.microphone.frame()
        await caller.hang_up()
        await server.registry.wait_empty()
        assert llm.closed_early == 1
        assert count(server, "speculations_total", result="withdrawn") == 1


async def test_nothing_is_begun_where_it_is_switched_off() -> None:
    llm = EchoLlm()
    async with call(scripted("Hello there.", llm)) as (server, caller):
        before = await speak(caller)
        await caller.event("response.done", after=before)
        assert len(llm.asked) == 1
        assert count(server, "speculations_total", result="kept") == 0


async def test_nothing_is_begun_for_a_client_that_asks_for_its_answers() -> None:
    llm = EchoLlm()
    async with call(scripted("Hello there.", llm), turns=SPECULATING) as (_, caller):
        caller.send(
            type="session.update",
            session={
                "type": "realtime",
                "audio": {
                    "input": {"turn_detection": {"type": "server_vad", "create_response": False}}
                },
            },
        )
        await caller.event("session.updated")
        before = await speak(caller)
        await caller.event("conversation.item.input_audio_transcription.completed", after=before)
        assert not llm.asked


# ------------------------------------------------------------------------------------- draft


class Model:
    """A language model that says what it is given, when it is told to go on."""

    def __init__(self, *deltas: str | Usage | LlmError) -> None:
        self._deltas = deltas
        self.go_on = asyncio.Semaphore(0)
        self.closed = False

    async def __call__(self) -> AsyncGenerator[str | Usage, None]:
        try:
            for delta in self._deltas:
                await self.go_on.acquire()
                if isinstance(delta, LlmError):
                    raise delta
                yield delta
        finally:
            self.closed = True

    def release(self, count: int) -> None:
        for _ in range(count):
            self.go_on.release()


def draft_of(model: Model, tts: ToneTts | None) -> Draft:
    return Draft(model, tts, VoiceOptions(), asyncio.get_running_loop().time, "en")


async def begun(model: Model, tts: ToneTts | None, tasks: asyncio.TaskGroup) -> Draft:
    draft = draft_of(model, tts)
    draft.task = tasks.create_task(draft.run())
    return draft


async def until(happened: Callable[[], bool]) -> None:
    for _ in range(1000):
        if happened():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


async def test_a_draft_is_taken_over_in_the_middle() -> None:
    model, tts = Model("One two three, ", "four five six. ", "Seven."), ToneTts()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        draft = await begun(model, tts, tasks)
        model.release(2)
        await until(lambda: bool(tts.spoken))
        text = draft.text()
        assert [await anext(text), await anext(text)] == ["One two three, ", "four five six. "]
        model.release(1)
        assert [delta async for delta in text] == ["Seven."]
        voice = draft.voice(tts)
        made = [pcm async for pcm in voice.synthesize("One two three,", VoiceOptions())]
        assert sum(len(pcm.samples) for pcm in made) > 0
        assert list(tts.spoken) == ["One two three,"], "made once"
        other = [pcm async for pcm in voice.synthesize("One two three,", VoiceOptions("880"))]
        assert other and len(tts.spoken) == 2, "another voice is another sound"


class NotingTts(ToneTts):
    """Notes whose words it speaks."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: list[tuple[str, bool]] = []

    def synthesize(
        self, text: str, options: VoiceOptions = AS_CONFIGURED
    ) -> AsyncGenerator[Pcm, None]:
        self.replies.append((options.reply, options.first))
        return super().synthesize(text, options)


async def test_a_reply_goes_on_as_the_draft_that_it_took_over() -> None:
    # An engine whose fall-back voice began a reply ends it with that voice.
    model, tts = Model("One two three, ", "four five six."), NotingTts()
    clock, options = asyncio.get_running_loop().time, VoiceOptions("880", reply="draft_1")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        draft = Draft(model, tts, options, clock)
        draft.task = tasks.create_task(draft.run())
        model.release(2)
        voice, asked = draft.voice(tts), VoiceOptions("880", reply="resp_1")
        await until(lambda: bool(tts.replies))
        assert [pcm async for pcm in voice.synthesize("One two three,", asked)]
        later = replace(asked, first=False)
        assert [pcm async for pcm in voice.synthesize("four five six.", later)]
    assert tts.replies == [("draft_1", True), ("draft_1", False)]


async def test_a_draft_tells_what_it_cost_and_speaks_as_replies_do() -> None:
    model, tts, cost = Model("It costs $5. ", "Really.", Usage(7, 5)), ToneTts(), Usage(7, 5)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        draft = await begun(model, tts, tasks)
        model.release(3)
        assert [each async for each in draft.text()] == ["It costs $5. ", "Really.", cost]
        assert draft.characters == len("It costs $5. Really.")
        said = spoken_form("It costs $5.", "en")
        made = [pcm async for pcm in draft.voice(tts).synthesize(said, VoiceOptions())]
        assert made and list(tts.spoken) == [said] and "$" not in said


async def test_a_cancelled_draft_ends_its_work() -> None:
    model = Model("One.", "Two.")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        draft = await begun(model, None, tasks)
        model.release(1)
        await until(lambda: draft.characters > 0)
        draft.cancel()
    assert model.closed


async def test_what_fails_is_told_to_whoever_takes_over() -> None:
    model = Model("One. ", LlmError("cut", code="llm_stream_cut"))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        draft = await begun(model, None, tasks)
        text = draft.text()
        model.release(2)
        assert await anext(text) == "One. "
        with pytest.raises(LlmError):
            await anext(text)
        assert draft.failed


async def test_a_voice_that_fails_fails_the_draft() -> None:
    tts = ToneTts(fail_on={"One": EngineCrashed("no voice")})
    model = Model("One. ", "Two. ")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        draft = await begun(model, tts, tasks)
        model.release(2)
    assert draft.failed


async def test_a_model_far_ahead_waits() -> None:
    model = Model(*(["word " * 200] * 10))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        draft = await begun(model, None, tasks)
        model.release(10)
        for _ in range(100):
            await asyncio.sleep(0)
        assert 2000 < draft.characters < 5000
        assert len([delta async for delta in draft.text()]) == 10
