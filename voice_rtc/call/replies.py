"""The agent's side of a call: replies started, cut and finished."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from secrets import token_hex

from voice_rtc.call import events
from voice_rtc.call.context import CallContext, CallerTurn
from voice_rtc.call.draft import Draft
from voice_rtc.call.figures import Figures
from voice_rtc.call.reply import Reply, TextSource, Voice, perform
from voice_rtc.call.speaker import Speaker
from voice_rtc.call.speculating import Begun, Speculating
from voice_rtc.call.state import ReplyWishes
from voice_rtc.core.history import Item, Message, characters, compacted, said_by_user
from voice_rtc.core.latency import Point
from voice_rtc.core.turns import ReplyAudible, ReplyDone
from voice_rtc.engines.base import SupportsWarmUp, TextDelta, Usage
from voice_rtc.errors import EngineError, LlmError

_NOT_UNDERSTOOD = "Sorry, I could not understand that. Please say it again."
_GO_ON = "Sorry, please go on."
_SPEAK_UP = (
    "The caller has said nothing for a while. In one short sentence, in the language of the "
    "conversation, ask whether they are still there or how you can help."
)
_LAST_WORDS_SECONDS = 1.0
_QUESTION_MARKS = ("?", "？", "؟")


async def _words(text: str) -> AsyncGenerator[str | Usage, None]:
    yield text


class Replies:
    """Carries out what the turn machine decides about the agent's speech."""

    def __init__(self, context: CallContext, can_speak: Callable[[], bool]) -> None:
        self._context = context
        self._can_speak = can_speak
        settings = context.ports.settings
        self.speaker = Speaker(
            self, settings.media.reply_buffer_seconds, context.now, context.metrics,
            settings.turns.duck_seconds,
        )  # fmt: skip
        self._replies: dict[int, Reply] = {}
        self._answered: dict[int, CallerTurn] = {}
        self._begun: dict[int, Begun] = {}
        """Until they are judged."""
        self.speculating = Speculating(context, partial(self.answer, None), can_speak)
        self._figures = Figures(context)
        self._was_cut = False
        self._longest = settings.llm.context_characters
        self.unsettled: Callable[[], list[CallerTurn]] = list
        """Committed turns whose text is still to come."""
        self.created = 0
        """Replies begun so far."""

    async def warm_up(self) -> None:
        """Have the language model ready for a request soon, where that can be done."""
        llm = self._context.ports.engines.llm
        if isinstance(llm, SupportsWarmUp):
            await llm.warm_up()

    async def answer(
        self, wishes: ReplyWishes | None = None, said: str = ""
    ) -> AsyncGenerator[str | Usage, None]:
        """The language model's answer to the conversation as it stands.

        ``said`` is what the caller says just now and is not yet part of it.
        """
        context = self._context
        instructions, options = context.settings.instructions, context.settings.llm
        if wishes is not None and wishes.instructions is not None:
            instructions = wishes.instructions
        if wishes is not None and wishes.max_tokens is not None:
            options = replace(options, max_tokens=wishes.max_tokens)
        while True:
            told = self._told(instructions, said)
            stream = context.ports.engines.llm.stream(told, options)
            try:
                async with aclosing(stream) as answer:
                    async for event in answer:
                        if isinstance(event, TextDelta):
                            yield event.text
                        elif isinstance(event, Usage):
                            self._count(event)
                            yield event
                return
            except LlmError as error:
                if error.code != "llm_context_exceeded" or not self._shorten(told):
                    raise

    def _told(self, instructions: str, said: str) -> list[Message]:
        """The conversation, with what was ``said`` after it, as far as the model has room."""
        messages = self._context.conversation.messages(instructions)
        if said:
            messages = said_by_user(messages, said)
        told = compacted(messages, self._longest)
        if told is not messages:
            self._context.metrics.llm_contexts_cut_total.inc()
        return told

    def _shorten(self, told: list[Message]) -> bool:
        """The model has less room than was set: half of ``told`` from now on, if it can be cut."""
        half = characters(told) // 2
        if len(compacted(told, half)) == len(told):
            return False
        self._longest = half
        self._context.log.warning("llm_context_shortened", characters=half)
        return True

    def _count(self, usage: Usage) -> None:
        tokens = self._context.metrics.llm_tokens_total
        tokens.labels("input").inc(usage.input_tokens)
        tokens.labels("output").inc(usage.output_tokens)

    # -------------------------------------------------------------- actions

    def start(
        self,
        number: int,
        source: TextSource,
        waiting: list[CallerTurn],
        answers: CallerTurn | None = None,
        wishes: ReplyWishes | None = None,
        begun: Begun | None = None,
    ) -> None:
        """Begin reply ``number`` once the turns in ``waiting`` have their text.

        ``answers`` is the turn whose wait for an answer is measured. With ``wishes`` somebody asked
        for the reply. Without, only that turn called for it: when it turns out to be empty and
        nothing that the caller said before is left without an answer, there is no reply. ``begun``
        is used instead of ``source`` where it answers that turn.
        """
        reply = Reply(number, f"resp_{token_hex(10)}", f"item_{token_hex(10)}", wishes)
        self._replies[number] = reply
        if answers is not None:
            self._answered[number] = answers
        if begun is not None:
            self._begun[number] = begun
        work = self._perform(reply, source, waiting)
        reply.task = self._context.spawn(work, f"reply-{number}")

    def id_of(self, number: int) -> str | None:
        """The client's id of reply ``number``; None when there is no such reply now."""
        reply = self._replies.get(number)
        return reply.id if reply is not None else None

    def speak_up_wishes(self) -> ReplyWishes:
        """How the agent speaks to a caller who says nothing."""
        return ReplyWishes(f"{self._context.settings.instructions}\n\n{_SPEAK_UP}".strip())

    def asks(self, number: int) -> bool:
        """Is reply ``number`` about to end, with a question?"""
        reply, left = self._replies.get(number), self.speaker.left_seconds(number)
        if reply is None or left is None or left > _LAST_WORDS_SECONDS:
            return False
        return reply.text.rstrip().endswith(_QUESTION_MARKS)

    def interrupt(self, number: int, reason: str) -> None:
        """Silence first, then cancel, then tell the truth."""
        context = self._context
        heard = self.speaker.cut(number, context.now() if reason == "barge_in" else None)
        reply = self._replies.pop(number)
        if reply.task is not None:
            reply.task.cancel()
        if (begun := self._begun.pop(number, None)) is not None:
            self.speculating.give_up(begun, "withdrawn")
        turn = self._answered.pop(number, None)
        self._was_cut = reason == "barge_in"
        if reason != "cancelled":
            context.metrics.barge_ins_total.labels(reason).inc()
        if not reply.created:
            if reply.wishes is None:  # nobody asked for it, nobody was told of it
                self._figures.close(turn, reply, cut=reason)
                return
            self._create(reply, self._is_spoken(reply))  # who asked for it waits for its end
        context.truncate_item(reply.item_id, heard.text, round(heard.seconds * 1000))
        context.emit(
            events.ReplyInterrupted(
                reply.id, reply.item_id, heard, reply.audible, reason, reply.usage
            )
        )
        self._figures.close(turn, reply, cut=reason)

    def mark_audible(self, number: int) -> None:
        """The first sound of the reply went out."""
        reply = self._replies.get(number)
        if reply is not None:
            reply.audible = True
            self._context.emit(events.ReplyAudible(reply.id, reply.item_id))
            if number in self._answered:
                self._figures.heard(self._answered[number], reply)

    def finish(self, number: int) -> None:
        """The reply was played to its end, or there was nothing to answer."""
        reply = self._replies.pop(number, None)
        turn = self._answered.pop(number, None)
        if reply is None:
            return
        if not reply.created:
            self._figures.close(turn, reply)
            return
        heard_ms = round(self.speaker.heard(number).seconds * 1000)
        self._context.set_item(
            reply.item_id, text=reply.text, status="completed", heard_ms=heard_ms
        )
        self._context.emit(
            events.ReplyFinished(
                reply.id, reply.item_id, reply.text, reply.audible, reply.error, reply.usage
            )
        )
        self._figures.close(turn, reply)

    def close(self) -> None:
        """The call ends: what is still open is accounted for."""
        self.speculating.drop("withdrawn")
        for begun in self._begun.values():
            self.speculating.give_up(begun, "withdrawn")
        self._begun.clear()
        for number, reply in self._replies.items():
            self._figures.close(self._answered.get(number), reply, cut="call_ended")
        self._replies.clear()
        self._answered.clear()

    # ------------------------------------------------------ the reply's task

    async def _perform(self, reply: Reply, source: TextSource, waiting: list[CallerTurn]) -> None:
        context = self._context
        await self._settled(waiting)
        draft = self._judged(reply.number)
        if reply.wishes is None and not self._is_unanswered():
            words = self._instead_of_an_answer(waiting)
            if words is None:
                context.signal(ReplyDone(reply.number))  # it was a noise
                return
            source = partial(_words, words)
        spoken = self._is_spoken(reply)
        self._create(reply, spoken)
        voice = self._voice(spoken)
        if draft is None:
            self._ask(reply.number, context.now())
        else:
            self._ask(reply.number, draft.began)
            reply.draft, source = draft, draft.text
            voice = replace(voice, tts=draft.voice(voice.tts) if voice.tts is not None else None)
        try:
            await perform(reply, source, voice, self)
        finally:
            if draft is not None:
                draft.cancel()
        if not spoken:
            context.signal(ReplyDone(reply.number))  # nobody plays it to its end

    def _judged(self, number: int) -> Draft | None:
        """What was begun for this reply, if it answers what the caller really said."""
        begun, turn = self._begun.pop(number, None), self._answered.get(number)
        if begun is None:
            return None
        text = turn.text if turn is not None else ""
        result = begun.settle(text, self.speculating.asked())
        if result == "kept":
            return self.speculating.keep(begun)
        self.speculating.give_up(begun, result)
        return None

    def _voice(self, spoken: bool) -> Voice:
        context, llm = self._context, self._context.ports.settings.llm
        return Voice(
            context.ports.engines.tts if spoken else None,
            context.settings.voice,
            self.speaker,
            context.language,
            llm.filler,
            llm.filler_seconds,
        )

    async def _settled(self, turns: list[CallerTurn]) -> None:
        """Wait for the text of ``turns``, and of those that are committed meanwhile."""
        waiting = list(turns)
        while waiting:
            await waiting.pop().settled.wait()
            waiting = waiting or [t for t in self.unsettled() if not t.settled.is_set()]

    def _instead_of_an_answer(self, turns: list[CallerTurn]) -> str | None:
        """What is said when no words came: nothing, unless the caller waits for something."""
        if any(turn.failure is not None for turn in turns):
            return _NOT_UNDERSTOOD
        return _GO_ON if self._was_cut else None

    def _create(self, reply: Reply, spoken: bool) -> None:
        self._was_cut = False
        reply.created = True
        reply.spoken = spoken
        self.created += 1
        item = Item(reply.item_id, "assistant", spoken, None, "in_progress")
        after = self._context.conversation.add(item)
        self._context.emit(events.ReplyCreated(reply.id, reply.item_id, after))

    def _is_spoken(self, reply: Reply) -> bool:
        wanted = reply.wishes.spoken if reply.wishes is not None else None
        return (self._context.settings.spoken if wanted is None else wanted) and self._can_speak()

    def _is_unanswered(self) -> bool:
        for message in reversed(self._context.conversation.messages("")):
            if message.role != "system":  # a client may add those at any time
                return message.role == "user"
        return False

    # Told by `perform`.

    def reply_first_token(self, reply: Reply) -> None:
        at = None if reply.draft is None else reply.draft.first_token
        self._pass(reply.number, Point.FIRST_TOKEN, at)

    def reply_first_audio(self, reply: Reply) -> None:
        at = None if reply.draft is None else reply.draft.first_audio
        self._pass(reply.number, Point.FIRST_AUDIO, at)

    def reply_text(self, reply: Reply, delta: str) -> None:
        if reply.number in self._replies:
            self._context.emit(events.ReplyText(reply.id, reply.item_id, delta))

    def reply_filler(self, reply: Reply, filler: str) -> None:
        self._context.metrics.fillers_total.inc()
        self._context.set_item(reply.item_id, filler=filler)

    def reply_failed(self, reply: Reply, engine: str, error: EngineError) -> None:
        self._context.count_failure(engine, error)
        # How long it took to fail is what the caller waited for it.
        self._pass(reply.number, Point.FIRST_TOKEN if engine == "llm" else Point.FIRST_AUDIO)
        if reply.number in self._replies:
            self._context.emit(events.EngineFailed(engine, error))

    def _ask(self, number: int, at: float) -> None:
        turn = self._answered.get(number)
        if turn is not None and turn.clock is not None:
            turn.clock.ask(at)

    def _pass(self, number: int, point: Point, at: float | None = None) -> None:
        if number in self._answered:
            self._context.passed(self._answered[number], point, at)

    # Told by the speaker, from within the sender: dealt with in a task of the call.

    def reply_audible(self, number: int) -> None:
        self._context.signal(ReplyAudible(number))

    def reply_sent(self, number: int) -> None:
        self._pass(number, Point.FIRST_PACKET)

    def reply_played(self, number: int) -> None:
        self._context.signal(ReplyDone(number))
