"""Answers begun while the caller pauses: `core.speculation` with the engines of a call.

What is told here is what the turn machine sees: partials, silence, the end of the turn. A draft
that the turn's reply takes over is out of these hands; any other is dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from secrets import token_hex

from voice_rtc.call.context import CallContext
from voice_rtc.call.draft import Draft
from voice_rtc.core.endpointing import doubt
from voice_rtc.core.history import Message, said_by_user
from voice_rtc.core.similarity import TextSimilarity
from voice_rtc.core.speculation import Speculation, SpeculationRules, Verdict
from voice_rtc.engines.base import LlmOptions, Usage, VoiceOptions

_FIRST_LATENCY_SECONDS = 0.6
"""From a request to its first sound, before any was measured."""
_NEWEST_WEIGHT = 0.3
"""Of the newest measurement in the mean."""

Answer = Callable[[str], AsyncGenerator[str | Usage, None]]
"""Asks the language model as if the caller had said this too."""


class Begun:
    """A draft of one turn and what it was begun on."""

    def __init__(self, draft: Draft, speculation: Speculation, asked: Asked) -> None:
        self.draft = draft
        self._speculation = speculation
        self._asked = asked

    def settle(self, text: str, now: Asked) -> str:
        """``kept``, or why it does not answer ``text`` in the conversation as it is ``now``."""
        if self.draft.failed:
            return "failed"
        verdict = self._speculation.settle(text)
        if verdict is not Verdict.KEEP:
            return verdict.value
        return verdict.value if now == self._asked.with_turn(text) else "stale"


class Asked:
    """All that an answer depends on but the turn itself."""

    def __init__(
        self, messages: list[Message], options: LlmOptions, voice: VoiceOptions, spoken: bool
    ) -> None:
        self._messages = messages
        self._rest = (options, voice, spoken)

    def with_turn(self, text: str) -> Asked:
        """The same with ``text`` said by the caller."""
        return Asked(said_by_user(self._messages, text), *self._rest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Asked):
            return NotImplemented
        return (self._messages, self._rest) == (other._messages, other._rest)


class Speculating:
    """One per call. `close` at its end."""

    def __init__(self, context: CallContext, answer: Answer, can_speak: Callable[[], bool]) -> None:
        self._context = context
        self._answer = answer
        self._can_speak = can_speak
        turns = context.ports.settings.turns
        self._rules = SpeculationRules(
            TextSimilarity(turns.speculation_strategy), most_starts=turns.speculation_starts
        )
        self._speculation: Speculation | None = None
        """Of the open utterance."""
        self._begun: Begun | None = None
        self._silent_since: float | None = None
        self._turn_ends = 0.0
        self._latency = _FIRST_LATENCY_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ what is told

    def open(self) -> None:
        """The caller began to say something."""
        self.drop("withdrawn")
        if self._context.ports.settings.turns.speculate:
            self._speculation = Speculation(self._rules)

    def hear(self, text: str) -> None:
        """The newest partial of it."""
        if self._speculation is not None:
            self._speculation.hear(text, self._context.now(), 1.0 - doubt(text))

    def look(self, silent_since: float | None, turn_ends: float | None) -> None:
        """Begin an answer if it is time; after each event of the turn.

        ``silent_since``: since when the caller pauses, and the turn is over at ``turn_ends``; None:
        the caller speaks. Call seconds.
        """
        self._silent_since = silent_since if turn_ends is not None else None
        self._turn_ends = turn_ends or 0.0
        self._look()

    def take(self) -> Begun | None:
        """The turn is committed and will be answered: what was begun is the reply's to judge."""
        begun, self._begun, self._speculation = self._begun, None, None
        self._stop_timer()
        return begun

    def drop(self, reason: str) -> None:
        """What was begun is not wanted. Idempotent."""
        self._speculation = None
        self._stop_timer()
        begun, self._begun = self._begun, None
        if begun is not None:
            self.give_up(begun, reason)

    def asked(self) -> Asked:
        """What an answer depends on at this moment."""
        settings = self._context.settings
        messages = self._context.conversation.messages(settings.instructions)
        spoken = settings.spoken and self._can_speak()
        return Asked(messages, settings.llm, settings.voice, spoken)

    def give_up(self, begun: Begun, reason: str) -> None:
        """End its work and count it."""
        self._measure(begun.draft)
        begun.draft.cancel()
        metrics = self._context.metrics
        metrics.speculations_total.labels(reason).inc()
        metrics.speculation_wasted_characters_total.inc(begun.draft.characters)

    def keep(self, begun: Begun) -> Draft:
        """It becomes the reply."""
        self._measure(begun.draft)
        self._context.metrics.speculations_total.labels("kept").inc()
        return begun.draft

    # ----------------------------------------------------------------------- beginning

    def _look(self) -> None:
        self._stop_timer()
        speculation = self._speculation
        if speculation is None:
            return
        pause = 0.0 if self._silent_since is None else self._turn_ends - self._silent_since
        now = self._context.now()
        start = speculation.next_start(now, self._silent_since, pause, self._latency)
        if start is not None:
            self._begin(speculation, start.text)
        due = speculation.next_deadline(self._silent_since, pause, self._latency)
        if due is not None and start is None and due > now:
            context = self._context
            self._timer = context.loop.call_at(context.born + due, self._look)

    def _begin(self, speculation: Speculation, text: str) -> None:
        if self._begun is not None:
            self.give_up(self._begun, "replaced")
        context = self._context
        spoken = context.settings.spoken and self._can_speak()
        tts = context.ports.engines.tts if spoken else None
        source = partial(self._answer, text)
        options = replace(context.settings.voice, reply=f"draft_{token_hex(10)}")
        draft = Draft(source, tts, options, context.now, context.language)
        self._begun = Begun(draft, speculation, self.asked())
        draft.task = context.spawn(draft.run(), "draft")

    def _measure(self, draft: Draft) -> None:
        ready = draft.first_audio or draft.first_token
        if ready is not None:
            self._latency += _NEWEST_WEIGHT * (ready - draft.began - self._latency)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
