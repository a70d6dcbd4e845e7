"""The agent's side of a call: replies started, cut and finished, and what they cost in time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from secrets import token_hex

from voice_rtc.call import events
from voice_rtc.call.context import CallContext, CallerTurn
from voice_rtc.call.reply import Reply, TextSource, Voice, perform
from voice_rtc.call.speaker import Speaker
from voice_rtc.call.state import ReplyWishes
from voice_rtc.core.history import Item, Message, characters, compacted
from voice_rtc.core.turns import ReplyAudible, ReplyDone
from voice_rtc.engines.base import SupportsWarmUp, TextDelta, Usage
from voice_rtc.errors import EngineError, LlmError

_NOT_UNDERSTOOD = "Sorry, I could not understand that. Please say it again."
_GO_ON = "Sorry, please go on."


async def _words(text: str) -> AsyncGenerator[str | Usage, None]:
    yield text


class Replies:
    """Carries out what the turn machine decides about the agent's speech."""

    def __init__(self, context: CallContext, can_speak: Callable[[], bool]) -> None:
        self._context = context
        self._can_speak = can_speak
        settings = context.ports.settings
        self.speaker = Speaker(
            self, settings.media.reply_buffer_seconds, context.now, context.metrics
        )
        self._replies: dict[int, Reply] = {}
        self._answered: dict[int, CallerTurn] = {}
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

    async def answer(self, wishes: ReplyWishes | None = None) -> AsyncGenerator[str | Usage, None]:
        """The language model's answer to the conversation as it stands."""
        context = self._context
        instructions, options = context.settings.instructions, context.settings.llm
        if wishes is not None and wishes.instructions is not None:
            instructions = wishes.instructions
        if wishes is not None and wishes.max_tokens is not None:
            options = replace(options, max_tokens=wishes.max_tokens)
        while True:
            told = self._told(instructions)
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

    def _told(self, instructions: str) -> list[Message]:
        """The conversation as far as the model has room for it."""
        messages = self._context.conversation.messages(instructions)
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
    ) -> None:
        """Begin reply ``number`` once the turns in ``waiting`` have their text.

        ``answers`` is the turn whose wait for an answer is measured. With ``wishes`` somebody asked
        for the reply. Without, only that turn called for it: when it turns out to be empty and
        nothing that the caller said before is left without an answer, there is no reply.
        """
        reply = Reply(number, f"resp_{token_hex(10)}", f"item_{token_hex(10)}", wishes)
        self._replies[number] = reply
        if answers is not None:
            self._answered[number] = answers
        work = self._perform(reply, source, waiting)
        reply.task = self._context.spawn(work, f"reply-{number}")

    def id_of(self, number: int) -> str | None:
        """The client's id of reply ``number``; None when there is no such reply now."""
        reply = self._replies.get(number)
        return reply.id if reply is not None else None

    def interrupt(self, number: int, reason: str) -> None:
        """Silence first, then cancel, then tell the truth."""
        context = self._context
        heard = self.speaker.cut(number, context.now() if reason == "barge_in" else None)
        reply = self._replies.pop(number)
        if reply.task is not None:
            reply.task.cancel()
        self._answered.pop(number, None)
        self._was_cut = reason == "barge_in"
        if reason != "cancelled":
            context.metrics.barge_ins_total.labels(reason).inc()
        if not reply.created:
            if reply.wishes is None:
                return  # nobody asked for it, nobody was told of it
            self._create(reply, self._is_spoken(reply))  # who asked for it waits for its end
        context.truncate_item(reply.item_id, heard.text, round(heard.seconds * 1000))
        context.emit(
            events.ReplyInterrupted(
                reply.id, reply.item_id, heard, reply.audible, reason, reply.usage
            )
        )
        self._log(None, reply, cut=reason)

    def mark_audible(self, number: int) -> None:
        """The first sound of the reply went out."""
        reply = self._replies.get(number)
        if reply is not None:
            reply.audible = True
            self._context.emit(events.ReplyAudible(reply.id, reply.item_id))
            self._measure(number)

    def finish(self, number: int) -> None:
        """The reply was played to its end, or there was nothing to answer."""
        reply = self._replies.pop(number, None)
        turn = self._answered.pop(number, None)
        if reply is None or not reply.created:
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
        self._log(turn, reply)

    # ------------------------------------------------------ the reply's task

    async def _perform(self, reply: Reply, source: TextSource, waiting: list[CallerTurn]) -> None:
        context = self._context
        await self._settled(waiting)
        if reply.wishes is None and not self._is_unanswered():
            words = self._instead_of_an_answer(waiting)
            if words is None:
                context.signal(ReplyDone(reply.number))  # it was a noise
                return
            source = partial(_words, words)
        spoken = self._is_spoken(reply)
        self._create(reply, spoken)
        await perform(reply, source, self._voice(spoken), self)
        if not spoken:
            context.signal(ReplyDone(reply.number))  # nobody plays it to its end

    def _voice(self, spoken: bool) -> Voice:
        context, llm = self._context, self._context.ports.settings.llm
        language = context.settings.stt.language
        return Voice(
            context.ports.engines.tts if spoken else None,
            context.settings.voice,
            self.speaker,
            context.ports.settings.stt.language if language is None else language,
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
        self._stage(reply.number, "llm_first_token")

    def reply_first_audio(self, reply: Reply) -> None:
        self._stage(reply.number, "tts_first_audio")

    def reply_text(self, reply: Reply, delta: str) -> None:
        if reply.number in self._replies:
            self._context.emit(events.ReplyText(reply.id, reply.item_id, delta))

    def reply_filler(self, reply: Reply, filler: str) -> None:
        self._context.metrics.fillers_total.inc()
        self._context.set_item(reply.item_id, filler=filler)

    def reply_failed(self, reply: Reply, engine: str, error: EngineError) -> None:
        self._context.count_failure(engine, error)
        if reply.number in self._replies:
            self._context.emit(events.EngineFailed(engine, error))

    # Told by the speaker, from within the sender: dealt with in a task of the call.

    def reply_audible(self, number: int) -> None:
        self._context.signal(ReplyAudible(number))

    def reply_played(self, number: int) -> None:
        self._context.signal(ReplyDone(number))

    # -------------------------------------------------------------- figures

    def _stage(self, number: int, stage: str) -> None:
        turn = self._answered.get(number)
        if turn is None or turn.committed is None:
            return
        start = turn.committed + turn.times.get("stt", 0.0)
        if stage == "tts_first_audio":
            start += turn.times.get("llm_first_token", 0.0)
        turn.times[stage] = max(0.0, self._context.now() - start)
        self._context.metrics.stage_seconds.labels(stage).observe(turn.times[stage])

    def _measure(self, number: int) -> None:
        turn = self._answered.get(number)
        if turn is None or turn.speech_end is None:
            return
        turn.times["response"] = self._context.now() - turn.speech_end
        self._context.metrics.response_seconds.observe(turn.times["response"])

        def ms(stage: str) -> float | None:
            return round(turn.times[stage] * 1000, 1) if stage in turn.times else None

        self._context.emit(
            events.TurnMeasured(
                turn.item_id,
                endpoint_ms=ms("endpoint"),
                stt_ms=ms("stt"),
                llm_first_token_ms=ms("llm_first_token"),
                tts_first_audio_ms=ms("tts_first_audio"),
                response_ms=ms("response"),
            )
        )

    def _log(self, turn: CallerTurn | None, reply: Reply, cut: str | None = None) -> None:
        times = {f"{k}_seconds": round(v, 3) for k, v in (turn.times if turn else {}).items()}
        self._context.log.info(
            "turn",
            reply=reply.number,
            transcript=turn.text if turn else None,
            text=reply.text,
            cut=cut,
            error=reply.error.code if reply.error else None,
            **times,
        )
