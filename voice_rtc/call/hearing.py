"""The caller's side of a call: utterances from their first sample to their transcript."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from secrets import token_hex

from voice_rtc.call import events
from voice_rtc.call.context import CallContext, CallerTurn
from voice_rtc.call.listener import Listener
from voice_rtc.core.audio import LISTEN_RATE_HZ, Pcm, Samples
from voice_rtc.core.barge_in import UsualLevel
from voice_rtc.core.history import Item
from voice_rtc.core.latency import Point, TurnClock
from voice_rtc.core.turns import PartialHeard, TurnJudged
from voice_rtc.core.vad import GateSettings, SpeechEdge
from voice_rtc.engines.base import Final, Partial, SttFailed, VadSession
from voice_rtc.errors import (
    BadRequest,
    EngineCrashed,
    EngineError,
    EngineTimeout,
    StateError,
    UnknownItem,
)
from voice_rtc.inbox import Inbox
from voice_rtc.pool.lease import Lease

_SHORTEST_MANUAL_SECONDS = 0.1
_LEVEL_SAMPLES = LISTEN_RATE_HZ
"""Speech that its level is measured by."""


class Hearing:
    """Carries out what the turn machine decides about the caller's speech."""

    def __init__(self, context: CallContext, vad: VadSession, lease: Lease) -> None:
        self._context = context
        self._lease = lease
        self._model = context.ports.engines.turn
        heard = self._model.heard_seconds if self._model is not None else 0.0
        self._listener = Listener(vad, lease.session, self._gate(), heard)
        self._turns: dict[int, CallerTurn] = {}
        self._finals: dict[int, asyncio.Future[Final]] = {}
        self._taken_until = 0
        self._began = 0
        """First sample of the turn that was opened last."""
        self._newest: CallerTurn | None = None
        """The turn committed last."""
        self._usual = UsualLevel()
        self._speech_at = 0
        self.committed = 0
        """Turns committed so far."""
        self.apply_settings()

    # ---------------------------------------------------------------- tasks

    async def listen(self, inbound: Inbox[Pcm], on_edge: Callable[[bool, float], None]) -> None:
        """Report speech edges (started?, call seconds) until the audio ends."""

        def convert(edge: SpeechEdge) -> None:
            if not self._context.settings.manual_turns:
                on_edge(edge.started, self._call_seconds(edge.at))

        await self._listener.run(inbound, convert)

    async def read_transcripts(self, handle: Callable[[PartialHeard], None]) -> None:
        """Deliver what the STT says. Ends the call when it will say no more."""
        async for result in self._lease.session.results():
            turn = self._turns.get(result.utterance)
            if turn is None:
                continue  # discarded, or given up after its deadline
            match result:
                case Partial():
                    self._take_partial(turn, result.text, handle)
                case Final():
                    self._context.metrics.stt_audio_seconds_total.inc(result.audio_seconds)
                    final = self._finals.get(turn.utterance)
                    if final is not None and not final.done():
                        final.set_result(result)
                case SttFailed():
                    self._take_failure(turn, result)
        self._context.end("engine_failed")

    # -------------------------------------------------------------- actions

    def apply_settings(self) -> None:
        """Follow the call's settings."""
        settings = self._context.settings
        longest = settings.rules.max_utterance_seconds
        self._listener.keep(longest if settings.manual_turns else None)
        self._listener.set_gate(self._gate())
        self._lease.session.configure(settings.stt)

    def open(self, utterance: int, continues: int | None = None) -> None:
        """The caller began to speak a moment ago, maybe going on with the turn committed last."""
        turns = self._context.ports.settings.turns
        before = turns.prefix_seconds + turns.speech_start_seconds
        turn = self._turns[utterance] = self._new_turn(utterance)
        if continues is not None:
            self._reopen(turn, continues)
        start = self._listener.at - round(before * LISTEN_RATE_HZ)
        # Never what an earlier turn was transcribed from: its last words would come twice.
        start = max(start, self._taken_until)
        if continues is None:
            self._began = start
        self._listener.begin(utterance, start)

    def _reopen(self, turn: CallerTurn, continues: int) -> None:
        earlier = self._newest
        if earlier is None or earlier.utterance != continues:
            raise StateError(f"utterance {continues} is not the turn committed last")
        turn.continues, turn.item_id = earlier, earlier.item_id
        self._context.metrics.turns_reopened_total.inc()

    def announce(self, utterance: int) -> None:
        """Tell the client that the caller speaks; once per turn."""
        turn = self._turns.get(utterance)
        if turn is not None and not turn.announced:
            turn.announced = True
            prefix = self._context.ports.settings.turns.prefix_seconds
            at_ms = max(0, round((self._context.now() - prefix) * 1000))
            self._context.emit(events.CallerSpeechStarted(turn.item_id, at_ms))

    def tell_partial(self, utterance: int) -> None:
        """What came while the speech might have been nothing."""
        turn = self._turns.get(utterance)
        if turn is not None and turn.announced and turn.partial:
            self._context.emit(events.CallerPartial(turn.item_id, _so_far(turn)))

    def tell_silence(self, seconds: float) -> None:
        """The caller said nothing for ``seconds``: an empty turn, of which nothing is expected."""
        context = self._context
        item = Item(f"item_{token_hex(10)}", "user", True, "", "completed")
        now = context.now()
        from_ms, until_ms = (max(0, round(each * 1000)) for each in (now - seconds, now))
        context.emit(events.CallerSilent(item.id, from_ms, until_ms))
        context.emit(events.TurnCommitted(item.id, context.conversation.add(item)))
        context.emit(events.CallerTranscript(item.id, "", 0.0))
        context.metrics.turns_total.labels("idle").inc()

    def mark_edge(self, utterance: int, started: bool, at: float) -> None:
        """Remember when the caller stopped speaking, at ``at`` call seconds."""
        turn = self._turns.get(utterance)
        if turn is not None and turn.committed is None:
            turn.speech_end = None if started else at

    def silent_since(self, utterance: int) -> float | None:
        """Call seconds since when the caller pauses in it; None: they speak."""
        turn = self._turns.get(utterance)
        return turn.speech_end if turn is not None else None

    def stands_alone(self, utterance: int) -> bool:
        """Does it continue no turn that was committed before?"""
        turn = self._turns.get(utterance)
        return turn is None or turn.continues is None

    def mark_speech(self, started: bool, at: float, has_floor: bool) -> None:
        """The caller, or who is taken for them, began or stopped at ``at`` call seconds.

        Who stops and ``has_floor`` is the caller for sure: so loud they usually are.
        """
        if started:
            self._speech_at = self._listener.at - self._samples_since(at)
        elif has_floor:
            self._usual.add(self._speech(self._samples_since(at)))

    def voice(self, samples: int) -> tuple[Samples, int]:
        """``samples`` (16 kHz) or fewer up to `voiced_until`, and how many are of one voice."""
        silent = self._listener.at - self._listener.voiced_until
        newest = self._listener.newest(samples + silent)
        voiced = self._listener.voiced_until - self._speech_at
        return newest[: max(0, len(newest) - silent)], max(0, voiced)

    @property
    def below_usual_db(self) -> float:
        """How much softer the speech that goes on is than the caller's; 0 when not known."""
        silent = self._listener.at - self._listener.voiced_until
        return self._usual.excess_of(self._speech(silent))

    def _speech(self, silent: int) -> Samples:
        """The end of the newest speech, after which ``silent`` samples came."""
        newest = self._listener.newest(_LEVEL_SAMPLES + silent, self._speech_at)
        return newest[: max(0, len(newest) - silent)]

    def discard(self, utterance: int) -> None:
        """It was nothing."""
        self._turns.pop(utterance, None)
        self._listener.discard(utterance)

    def hold(self) -> None:
        """Manual turns: forget what was held; the turn to be committed begins now."""
        self._listener.hold()

    def check_commit(self, utterance: int) -> None:
        """Raises BadRequest when a manual commit would commit nothing."""
        turn = self._turns.get(utterance)
        if self._context.settings.manual_turns:
            if self._listener.held_seconds < _SHORTEST_MANUAL_SECONDS:
                raise BadRequest(
                    "the input audio buffer holds less than 100 ms of audio",
                    code="input_audio_buffer_commit_empty",
                )
        elif turn is None or turn.committed is not None:
            raise BadRequest("nobody is speaking", code="input_audio_buffer_commit_empty")

    def commit(self, utterance: int, end: str) -> CallerTurn:
        """The turn is over: make it an item of the conversation and have it transcribed."""
        context = self._context
        turn = self._turns.get(utterance)
        self._finals[utterance] = context.loop.create_future()
        if turn is None:  # manual turns: nobody opened it, the listener holds the audio
            turn = self._turns[utterance] = self._new_turn(utterance)
            self._listener.commit_held(utterance, self._taken_until)
        else:
            self._listener.finish(utterance)
        self._taken_until = self._listener.at
        self.announce(utterance)
        turn.committed = context.now()
        turn.speech_end = turn.speech_end or turn.committed
        self._newest = turn
        if turn.continues is None:  # a turn that was reopened is still one
            self.committed += 1
            context.metrics.turns_total.labels(end).inc()
        turn.clock, turn.measured = TurnClock(turn.speech_end), False
        context.passed(turn, Point.COMMITTED)
        context.emit(events.CallerSpeechStopped(turn.item_id, round(turn.speech_end * 1000)))
        self._enter(turn)
        context.spawn(self._settle(turn), f"settle-{utterance}")
        return turn

    def _enter(self, turn: CallerTurn) -> None:
        """Make the turn an item, unless it is one since an earlier part of it was committed."""
        context, item_id = self._context, turn.item_id
        if turn.continues is not None:
            try:
                before = context.conversation.previous_id(item_id)
            except UnknownItem:  # the client deleted what was said before, not what was said since
                turn.continues = None
            else:
                context.emit(events.TurnCommitted(item_id, before, reopened=True))
                return
        after = context.conversation.add(Item(item_id, "user", True, None, "completed"))
        context.emit(events.TurnCommitted(item_id, after))

    async def judge(
        self, utterance: int, stopped_at: float, handle: Callable[[TurnJudged], None]
    ) -> None:
        """Ask the turn model, if there is one, about the pause that began at ``stopped_at``."""
        turn, model = self._turns.get(utterance), self._model
        if turn is None or model is None:
            return
        newest = self._listener.at - round(model.heard_seconds * LISTEN_RATE_HZ)
        try:
            found = await model.completeness(
                self._listener.since(max(self._began, newest)), _so_far(turn)
            )
        except EngineError as error:  # the words alone decide
            self._context.count_failure("turn", error)
        else:
            handle(TurnJudged(stopped_at, found))

    @property
    def speaking(self) -> bool:
        """Does the gate hear speech right now, whoever decides about turns?"""
        return self._listener.speaking

    def owns(self, item_id: str) -> bool:
        """Was this item id told to the client for a turn that is not an item yet?"""
        return any(turn.item_id == item_id for turn in self._turns.values())

    def unsettled(self) -> list[CallerTurn]:
        """Committed turns whose text is still to come, oldest first."""
        return [turn for turn in self._turns.values() if turn.committed is not None]

    # ---------------------------------------------------------- transcripts

    def _take_partial(
        self, turn: CallerTurn, text: str, handle: Callable[[PartialHeard], None]
    ) -> None:
        turn.partial = text
        if turn.committed is None:
            whole = _so_far(turn)
            if turn.announced:
                self._context.emit(events.CallerPartial(turn.item_id, whole))
            handle(PartialHeard(whole, self.voiced_until))

    def _take_failure(self, turn: CallerTurn, failed: SttFailed) -> None:
        error = failed.error if isinstance(failed.error, EngineError) else EngineCrashed()
        self._context.count_failure("stt", error)
        self._context.emit(events.EngineFailed("stt", error))
        turn.failure = error
        final = self._finals.get(turn.utterance)
        if final is not None and not final.done():
            final.set_exception(error)

    async def _settle(self, turn: CallerTurn) -> None:
        """Wait for the transcript of a committed turn, whatever becomes of it."""
        said = await self._transcribed(turn)
        earlier = turn.continues
        if earlier is not None:
            await earlier.settled.wait()
            turn.continues = None
        self._conclude(turn, said, earlier.text if earlier is not None else "")
        del self._finals[turn.utterance]
        self._turns.pop(turn.utterance, None)
        self._context.passed(turn, Point.TRANSCRIPT)
        turn.settled.set()

    async def _transcribed(self, turn: CallerTurn) -> Final:
        """The transcript of this part, or its newest partial; then the turn has a failure."""
        context, asked = self._context, self._context.now()
        final = self._finals[turn.utterance]
        if turn.failure is not None and not final.done():
            final.set_exception(turn.failure)
        try:
            async with asyncio.timeout(context.ports.settings.turns.final_deadline_seconds):
                result = await final
        except TimeoutError:
            turn.failure = error = EngineTimeout("the transcript took too long")
            context.count_failure("stt", error)
            self._listener.discard(turn.utterance)  # else it would keep live turns waiting
        except EngineError as caught:
            turn.failure = caught
        else:
            context.endpointing.took(context.now() - asked)
            return result
        return Final(turn.utterance, turn.partial, 0.0)

    def _conclude(self, turn: CallerTurn, said: Final, earlier: str) -> None:
        context = self._context
        turn.text = _joined(earlier, said.text)
        context.set_item(turn.item_id, text=turn.text)
        if turn.failure is not None and not turn.text:
            context.emit(events.CallerTranscriptFailed(turn.item_id, turn.failure))
        else:
            context.emit(
                events.CallerTranscript(turn.item_id, turn.text, said.audio_seconds, earlier)
            )

    @property
    def voiced_until(self) -> float:
        """Call seconds at which the caller was last heard to speak."""
        return self._call_seconds(self._listener.voiced_until)

    def _new_turn(self, utterance: int) -> CallerTurn:
        return CallerTurn(utterance, f"item_{token_hex(10)}")

    def _samples_since(self, seconds: float) -> int:
        """How many samples came in since ``seconds`` on the call's clock."""
        return max(0, round((self._context.now() - seconds) * LISTEN_RATE_HZ))

    def _call_seconds(self, at: int) -> float:
        """A place on the sample clock as call seconds: the newest sample is now."""
        return self._context.now() - (self._listener.at - at) / LISTEN_RATE_HZ

    def _gate(self) -> GateSettings:
        turns = self._context.ports.settings.turns
        return GateSettings(
            speech_threshold=self._context.settings.speech_threshold,
            start_seconds=turns.speech_start_seconds,
            stop_seconds=turns.speech_stop_seconds,
        )


def _so_far(turn: CallerTurn) -> str:
    """What the turn sounds like, with what it continues."""
    if turn.settled.is_set():
        return turn.text
    return _joined(_so_far(turn.continues) if turn.continues is not None else "", turn.partial)


def _joined(*parts: str) -> str:
    return " ".join(part.strip() for part in parts if part.strip())
