"""One reply on virtual time: what is said, when, and with what the silences are bridged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from tests.support.virtual_time import run_virtual
from voice_rtc.call.reply import Reply, TextSource, Voice, perform
from voice_rtc.call.speaker import Speaker
from voice_rtc.core.audio import Pcm
from voice_rtc.engines.base import Usage, VoiceOptions
from voice_rtc.engines.fakes import ToneTts
from voice_rtc.engines.tts.speakable import AS_CONFIGURED
from voice_rtc.errors import EngineCrashed, EngineError, LlmError
from voice_rtc.metrics import Metrics

FILLER = "One moment, please."
ANSWER = ((1.0, "It is ten. "), (0.0, "Sleep well, dear caller."))


class NotingTts(ToneTts):
    """50 ms a character; notes what it was told to say."""

    def __init__(self) -> None:
        super().__init__(seconds_per_character=0.05, fail_on={"crash": EngineCrashed("tts")})
        self.said: list[str] = []

    async def synthesize(
        self, text: str, options: VoiceOptions = AS_CONFIGURED
    ) -> AsyncGenerator[Pcm, None]:
        self.said.append(text)
        async for pcm in super().synthesize(text, options):
            yield pcm


class Story:
    """Performs one reply and notes what happens when."""

    def __init__(self, tts: NotingTts | None, language: str = "en", filler: str = FILLER) -> None:
        self.tts = tts
        self.language = language
        self.filler = filler
        self.log: list[tuple[float, str]] = []
        self.silent_at = 0.0
        self.longest_silence = 0.0
        self.reply = Reply(1, "resp", "item")
        self.spoken_over: tuple[float, float] | None = None

    def note(self, what: str) -> None:
        self.log.append((round(asyncio.get_running_loop().time(), 2), what))

    def run(self, *script: tuple[float, str | EngineError | Usage]) -> list[tuple[float, str]]:
        run_virtual(self._run(script))
        return self.log

    async def _run(self, script: Sequence[tuple[float, str | EngineError | Usage]]) -> None:
        loop = asyncio.get_running_loop()
        speaker = Speaker(self, 3.0, loop.time, Metrics())
        voice = Voice(self.tts, VoiceOptions(), speaker, self.language, self.filler, 2.5)
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(perform(self.reply, _source(script), voice, self))
            while not work.done() or speaker.buffered_seconds:
                now = loop.time()
                if self.spoken_over is not None:
                    speaker.duck(self.spoken_over[0] <= now < self.spoken_over[1])
                if speaker.next_frame() is not None:
                    self.longest_silence = max(self.longest_silence, now - self.silent_at)
                    self.silent_at = now + 0.02
                await asyncio.sleep(0.02)

    # Told by the speaker and by `perform`.

    def reply_audible(self, reply: int) -> None: ...

    def reply_sent(self, reply: int) -> None: ...

    def reply_played(self, reply: int) -> None: ...

    def reply_first_token(self, reply: Reply) -> None:
        self.note("token")

    def reply_text(self, reply: Reply, delta: str) -> None:
        self.note(delta)

    def reply_first_audio(self, reply: Reply) -> None: ...

    def reply_filler(self, reply: Reply, filler: str) -> None:
        self.note("filler")

    def reply_failed(self, reply: Reply, engine: str, error: EngineError) -> None:
        self.note(error.code)


def _source(script: Sequence[tuple[float, str | EngineError | Usage]]) -> TextSource:
    async def source() -> AsyncGenerator[str | Usage, None]:
        for seconds, what in script:
            await asyncio.sleep(seconds)
            if isinstance(what, EngineError):
                raise what
            yield what

    return source


def test_an_answer_in_time_needs_no_filler():
    story = Story(NotingTts())
    assert story.run(*ANSWER) == [
        (1.0, "token"), (1.0, "It is ten."), (1.0, " Sleep well, dear caller."),
    ]  # fmt: skip


def test_a_late_answer_is_bridged_and_goes_on_behind_the_filler():
    story = Story(NotingTts())
    log = story.run((8.0, "It is ten."))
    assert log == [
        (2.5, "filler"), (2.5, FILLER), (8.0, "token"), (8.0, " It is ten."),
    ]  # fmt: skip
    assert story.reply.text == f"{FILLER} It is ten."
    assert story.tts is not None and story.tts.said == [FILLER, "It is ten."]


def test_a_reply_that_stands_still_needs_no_filler():
    story = Story(NotingTts())
    story.spoken_over = (0.5, 6.0)
    log = story.run((0.0, "This is a sentence of some length. "), (7.5, "And the next."))
    assert log == [
        (0.0, "token"), (0.0, "This is a sentence of some length."), (7.5, " And the next."),
    ]  # fmt: skip


def test_a_failure_after_the_filler_is_told():
    story = Story(NotingTts())
    log = story.run((15.0, LlmError("late", code="llm_timeout")))
    assert [what for _, what in log][:3] == ["filler", FILLER, "llm_timeout"]
    assert "too long to answer" in story.reply.text and story.reply.error is not None


def test_a_token_a_second_is_bridged_too():
    # Nothing can be said of half a sentence: what counts is what the voice has to say.
    words = "The capital of France is the old city of Paris.".split()
    story = Story(NotingTts())
    log = story.run(*((1.0, f"{word} ") for word in words))
    assert log[:3] == [(1.0, "token"), (2.5, "filler"), (2.5, FILLER)]
    assert story.reply.text == f"{FILLER} The capital of France is the old city of Paris."


def test_a_stall_in_the_middle_is_bridged_when_the_sound_has_run_out():
    story = Story(NotingTts())
    log = story.run((0.0, "It is half past ten now. "), (9.0, "Sleep well."))
    spoken = 0.05 * len("It is half past ten now.")
    assert log[2][1] == "filler" and spoken + 2.4 <= log[2][0] <= spoken + 2.6
    assert story.longest_silence <= 9.0 - spoken - 2.5 + 0.1


def test_there_is_one_filler_in_a_reply():
    story = Story(NotingTts())
    log = story.run((4.0, "One. "), (9.0, "Two. "), (9.0, "Three."))
    assert [what for _, what in log].count("filler") == 1


def test_without_a_filler_or_a_voice_there_is_silence():
    for story in (Story(NotingTts(), filler=""), Story(None)):
        assert story.run((8.0, "It is ten.")) == [(8.0, "token"), (8.0, "It is ten.")]


def test_a_voice_that_failed_says_no_filler():
    story = Story(NotingTts())
    log = story.run((0.0, "A crash. "), (9.0, "Two."))
    assert "filler" not in [what for _, what in log]


def test_a_voice_that_failed_is_no_failure_of_the_language_model():
    story = Story(NotingTts())
    log = story.run((0.0, "A crash. "), (9.0, "Two."))
    assert [what for _, what in log if "_" in what] == [EngineCrashed.code]
    assert story.reply.text == "A crash. Two.", "and nobody apologises for the language model"


def test_what_is_spoken_is_normalised_and_what_is_shown_is_not():
    tts = NotingTts()
    story = Story(tts)
    story.run((0.0, "See **https://example.com/x**. It costs $5, e.g. here."))
    assert tts.said == [
        "See example dot com slash x.", "It costs 5 dollars, for example here.",
    ]  # fmt: skip
    assert story.reply.text == "See **https://example.com/x**. It costs $5, e.g. here."


def test_other_languages_are_left_to_the_engine():
    tts = NotingTts()
    Story(tts, language="de").run((0.0, "Es kostet $5, z.B. hier."))
    assert " ".join(tts.said) == "Es kostet $5, z.B. hier."


def test_what_the_text_cost_is_kept():
    story = Story(NotingTts())
    story.run((0.0, "It is ten."), (0.0, Usage(5, 7)))
    assert story.reply.usage == Usage(5, 7)


def test_an_answer_of_white_space_is_a_failure():
    story = Story(NotingTts())
    log = story.run((0.0, "\n"), (0.0, "  "))
    assert [what for _, what in log][:2] == ["token", "llm_empty"] and story.reply.text


def test_an_answer_of_nothing_is_a_failure_whatever_it_cost():
    story = Story(NotingTts())
    log = story.run((0.0, Usage(5, 0)))
    assert log[0][1] == "llm_empty" and story.reply.usage == Usage(5, 0)
