"""One call, from its peer connection to its end: one TaskGroup that owns everything.

The pure `TurnMachine` decides who has the floor; `Hearing` and `Replies` carry out what it says
about the caller's and the agent's speech. What happens is told as events of `call.events`. The
commands are synchronous, run on the event loop and take effect at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from voice_rtc.call import events
from voice_rtc.call.context import CallContext, CallerTurn, CallPorts
from voice_rtc.call.hearing import Hearing
from voice_rtc.call.replies import Replies
from voice_rtc.call.reply import TextSource
from voice_rtc.call.state import (
    AS_IT_COMES,
    CallSettings,
    CallState,
    LineWish,
    ReplyWishes,
)
from voice_rtc.call.waiting import WaitingRoom
from voice_rtc.core.audio import Samples
from voice_rtc.core.barge_in import NOTHING_KNOWN, Surroundings
from voice_rtc.core.buffers import Policy
from voice_rtc.core.connecting import Connecting
from voice_rtc.core.echo import HEARD_SAMPLES
from voice_rtc.core.history import Conversation, Item
from voice_rtc.core.turns import (
    Action,
    CancelRequested,
    CommitTurn,
    DeadlineReached,
    DiscardUtterance,
    Duck,
    Event,
    Floor,
    Interrupt,
    KeepUtterance,
    ManualCommit,
    OpenUtterance,
    PartialHeard,
    ReplyAudible,
    ReplyDone,
    ReplyRequested,
    SpeechStarted,
    SpeechStopped,
    StartReply,
    TurnMachine,
)
from voice_rtc.engines.base import Usage
from voice_rtc.errors import (
    AdmissionError,
    BadRequest,
    CallEnded,
    CallReplaced,
    EngineError,
    QueueTimeout,
)
from voice_rtc.inbox import Inbox
from voice_rtc.media.peer import Peer, PeerSettings
from voice_rtc.pool.lease import REPLACED, Lease, LeaseRequest

_LAST_WORDS_SECONDS = 1.0
_SIGNALS = 256
_LIFELESS_SECONDS = 1.0
"""Clients that follow their offers up do so in less."""

REASONS = {
    "hangup": "The call was hung up.",
    "peer_gone": "The media connection was lost.",
    "channel_abused": "The data channel was misused.",
    "connect_timeout": "The media connection could not be established in time.",
    "idle": "Nobody said anything for too long.",
    "max_duration": "The call reached its maximum length.",
    "server_shutdown": "The server is shutting down.",
    "no_slot": "No speech recognition slot was free, and the waiting line is full.",
    "queue_timeout": "No speech recognition slot became free in time.",
    "replaced": "The caller came back on another connection.",
    "lease_lost": "The speech recognition slot was taken back.",
    "engine_failed": "The speech recognition engine failed.",
    "internal_error": "The server made a mistake.",
}
"""Every way a call can end, and the sentence that a client is shown."""


class Call:
    """See the module. `attach` an event sink, then `run`."""

    def __init__(
        self, call_id: str, ports: CallPorts, peer: PeerSettings, line: LineWish = AS_IT_COMES
    ) -> None:
        self._line = line
        self._context = CallContext(call_id, ports)
        self.id = call_id
        self.log = self._context.log
        self._wake: Callable[[], None] = lambda: None
        self._replies = Replies(self._context, self._can_speak)
        self._waiting_room = WaitingRoom(self._context, self._can_speak)
        self.peer = Peer(peer, self, ports.metrics)
        self._turns = TurnMachine(self.settings.rules, self._context.endpointing)
        # Few and quickly dealt with; were they ever to pile up, the newest state is what counts.
        self._signals: Inbox[Event] = Inbox(_SIGNALS, Policy.DROP_OLDEST)
        self._context.signal = self._signals.put
        self._context.end = self.end
        self._timer: asyncio.TimerHandle | None = None
        self._judging: asyncio.Task[None] | None = None
        self._end: asyncio.Future[str] = self._context.loop.create_future()
        self._hearing: Hearing | None = None
        self._lease: Lease | None = None
        self._is_connected = False
        self._is_suspended = False
        self._has_asked = False
        self._touched = 0.0
        self._prepared: TextSource | None = None
        self._wishes = ReplyWishes()
        self._unanswered: CallerTurn | None = None
        """The turn committed last, until a reply to it begins or the client says more."""

    # ------------------------------------------------------------------ life

    def attach(self, sink: events.EventSink) -> None:
        """Tell ``sink`` what happens from now on."""
        self._context.sink = sink

    async def run(self, client: Coroutine[Any, Any, None]) -> str:
        """Live the call to its end; ``client`` (the adapter's loop) runs in its TaskGroup.

        Returns the reason of the end, a key of `REASONS`. Never raises but for cancellation.
        """
        reason = "internal_error"
        try:
            async with asyncio.TaskGroup() as tasks:
                self._context.tasks = tasks
                self._context.spawn(client, "client")
                self._context.spawn(self._watch_end(), "end")
                self._context.spawn(self._watch_peer(), "peer")
                self._context.spawn(self._watch_life(), "life")
                self._context.spawn(self._watch_abuse(), "abuse")
                self._context.spawn(self.peer.run_inbound(), "inbound")
                # Not before: an offer that nobody follows up never takes a slot.
                await self.peer.connected()
                async with self._leased() as lease:
                    await self._live(lease)
        except BaseExceptionGroup as group:
            reason = self._reason_of(group)
        finally:
            client.close()  # does nothing unless the group never came to start it
            await self._close(reason)
        return reason

    def _reason_of(self, group: BaseExceptionGroup[BaseException]) -> str:
        ended, rest = group.split(CallEnded)
        if rest is not None:
            self.log.error("call_crashed", exc_info=rest)
            return "internal_error"
        found: BaseException | None = ended
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        return found.reason if isinstance(found, CallEnded) else "internal_error"

    @asynccontextmanager
    async def _leased(self) -> AsyncGenerator[Lease, None]:
        lease = await self._wait_for_slot()
        try:
            self._lease = lease
            self._waiting_room.granted(lease.waited_seconds)
            yield lease
        finally:
            await self._context.ports.pool.return_instance(lease)

    async def _wait_for_slot(self) -> Lease:
        room = self._waiting_room
        deaf = self._context.spawn(self._discard_audio(), "waiting")
        company = self._context.spawn(room.keep_company(), "hold")
        request = LeaseRequest(
            self.id,
            self._line.head_start_seconds,
            self._line.resume,
            room.moved,
            lambda reason: self.end("replaced" if reason == REPLACED else "lease_lost"),
        )
        self._has_asked = True
        try:
            return await self._context.ports.pool.allocate_instance(request)
        except CallReplaced:
            raise CallEnded("replaced") from None
        except QueueTimeout:
            raise CallEnded("queue_timeout") from None
        except AdmissionError:
            raise CallEnded("no_slot") from None
        except EngineError as error:
            self._context.count_failure("stt", error)
            raise CallEnded("engine_failed") from error
        finally:
            deaf.cancel()
            company.cancel()

    async def _discard_audio(self) -> None:
        """Who waits is not listened to. Who gets a slot at once is, from the first word."""
        await self._waiting_room.entered()
        async for _ in self.peer.inbound:
            pass

    async def _live(self, lease: Lease) -> None:
        vad = self._context.ports.engines.vad.open()
        try:
            hearing = self._hearing = Hearing(self._context, vad, lease)
            self._replies.unsettled = hearing.unsettled
            work = {
                "limits": self._watch_limits(),
                "listen": hearing.listen(self.peer.inbound, self._on_edge),
                "transcripts": hearing.read_transcripts(self._handle),
                "signals": self._read_signals(),
                "greeting": self._greet(),
                "warm-up": self._replies.warm_up(),
            }
            async with asyncio.TaskGroup() as tasks:
                for name, coroutine in work.items():
                    tasks.create_task(coroutine, name=f"{self.id}:{name}")
        finally:
            vad.close()

    async def _close(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._is_suspended:
            self._is_suspended = False
            self._context.metrics.calls_suspended.dec()
            self._context.metrics.suspensions_total.labels("ended").inc()
        try:
            self._replies.close()
            self._context.emit(events.Ended(reason, REASONS[reason]))
            await self.peer.channel.flushed(_LAST_WORDS_SECONDS if self._is_connected else 0.0)
        finally:
            await self.peer.aclose()

    async def _watch_end(self) -> None:
        raise CallEnded(await self._end)

    async def _watch_peer(self) -> None:
        context = self._context
        try:
            async with asyncio.timeout(context.ports.settings.media.connect_deadline_seconds):
                await self.peer.connected()
        except TimeoutError:
            self.end("connect_timeout")
            return
        self._is_connected = True
        context.metrics.call_setup_seconds.observe(context.now())
        self.log.info("call_connected", setup_seconds=round(context.now(), 3))
        await self.peer.lost()
        self._lose_peer()

    def _lose_peer(self) -> None:
        if not self._end.done():  # who has hung up wants its place no more
            self._context.ports.pool.keep_place(self.id)
        self.end("peer_gone")

    async def _watch_life(self) -> None:
        await self.peer.connected()
        await self.peer.vanished(self._suspend)
        self._lose_peer()

    def _suspend(self, suspended: bool) -> None:
        """Nobody hears the agent, or somebody does again."""
        self._is_suspended = suspended
        self._context.metrics.calls_suspended.inc(1 if suspended else -1)
        if not suspended:
            self._context.metrics.suspensions_total.labels("resumed").inc()
            self._wake()
        self.log.info("call_suspended" if suspended else "call_resumed")

    async def _watch_abuse(self) -> None:
        reason = await self.peer.abused()
        self.log.warning("channel_abused", reason=reason)
        self.end("channel_abused")

    async def _watch_limits(self) -> None:
        """Both limits count from the slot: who waits is neither idle nor talking."""
        session = self._context.ports.settings.session
        self._touched = self._context.now()
        last = self._touched + session.max_call_seconds
        while (now := self._context.now()) < last:
            idle_at = self._touched + session.idle_seconds
            if now >= idle_at:
                self.end("idle")
                return
            await asyncio.sleep(min(last, idle_at) - now)
        self.end("max_duration")

    async def _greet(self) -> None:
        text = self._context.ports.settings.session.greeting
        if not text:
            return

        async def greeting() -> AsyncGenerator[str | Usage, None]:
            yield text

        if self._turns.floor is Floor.IDLE:  # nobody is greeted in the middle of a word
            self._prepared = greeting
            self._handle(ReplyRequested())

    def next_frame(self) -> Samples | None:
        """What the caller hears next; see `media.outbound.FrameSource`."""
        if self._is_suspended:
            return None  # what is to be said waits
        held = self._waiting_room.next_frame()
        return held if held is not None else self._replies.speaker.next_frame()

    def frame_sent(self) -> None:
        """See `media.outbound.FrameSource`."""
        self._replies.speaker.frame_sent()

    def on_sound(self, wake: Callable[[], None]) -> None:
        """See `media.outbound.FrameSource`."""
        self._wake = wake
        self._waiting_room.on_sound(wake)
        self._replies.speaker.on_sound(wake)

    def _can_speak(self) -> bool:
        return self.peer.sends_audio

    # -------------------------------------------------------------- commands

    @property
    def settings(self) -> CallSettings:
        """What the call is set to."""
        return self._context.settings

    @property
    def conversation(self) -> Conversation:
        """What was said so far."""
        return self._context.conversation

    def end(self, reason: str) -> None:
        """Ask the call to end; the first reason stands."""
        if not self._end.done():
            self._end.set_result(reason)

    def configure(self, settings: CallSettings) -> None:
        """Use other settings from now on."""
        manual_before = self.settings.manual_turns
        self._context.settings = settings
        self._turns.rules = replace(settings.rules, manual=settings.manual_turns)
        if self._hearing is None:
            return
        self._hearing.apply_settings()
        if self._hearing.speaking and settings.manual_turns != manual_before:
            # Between the modes the gate is not heard: as if the caller had stopped, or begun.
            self._on_edge(manual_before, self._context.now())

    def request_reply(self, wishes: ReplyWishes | None = None) -> str | None:
        """Answer now, to the conversation as it stands. Raises BadRequest during a reply.

        ``wishes`` stand in for the call's settings, for this reply only. Returns the id that
        its events will carry, None when the call is ending.
        """
        if self._turns.reply_active:
            raise BadRequest(
                "a response is already in progress",
                code="conversation_already_has_active_response",
            )
        self._require_hearing()
        self._wishes = wishes or ReplyWishes()
        self._handle(ReplyRequested())
        return self._replies.id_of(self._turns.reply)

    def cancel_reply(self) -> bool:
        """Cut the reply in progress; False when there is none."""
        self._require_hearing()
        if not self._turns.reply_active:
            return False
        self._handle(CancelRequested())
        return True

    def add_item(self, item: Item, after: str | None) -> str | None:
        """Put a text of the client into the conversation; returns the id it stands behind.

        Raises UnknownItem, or BadRequest when the id is taken.
        """
        if self._hearing is not None and self._hearing.owns(item.id):
            raise BadRequest(f"an item {item.id} exists already", code="item_exists")
        self._touched = self._context.now()
        self._unanswered = None  # what is answered next is this
        return self.conversation.add(item, after)

    def truncate_item(self, item_id: str, heard_ms: int) -> int:
        """Forget what of a spoken reply lies behind ``heard_ms``; returns what is kept, in ms.

        Text is cut in proportion. Raises UnknownItem or BadRequest.
        """
        item = self.conversation.get(item_id)
        if item.role != "assistant" or not item.spoken or item.status == "in_progress":
            raise BadRequest("only finished spoken replies can be truncated")
        spoken_ms = item.heard_ms or 0
        if heard_ms >= spoken_ms:
            return spoken_ms
        words = (item.text or "").split()
        kept = words[: len(words) * heard_ms // spoken_ms]
        self.conversation.truncate(item_id, " ".join(kept), heard_ms)
        return heard_ms

    def clear_audio(self) -> None:
        """Manual turns: forget what was held; the turn to be committed begins now."""
        self._require_hearing().hold()

    def commit_audio(self) -> None:
        """End the caller's turn now. Raises BadRequest when there is nothing to commit."""
        self._require_hearing().check_commit(self._turns.utterance)
        self._handle(ManualCommit())

    def announce(self, event: events.CallEvent) -> None:
        """Pass an event of the server (draining, ...) to the client."""
        self._context.emit(event)

    def state(self) -> CallState:
        """A snapshot."""
        return CallState(
            id=self.id,
            age_seconds=round(self._context.now(), 1),
            connected=self._is_connected,
            suspended=self._is_suspended,
            phase=self._phase,
            floor=self._turns.floor.name,
            lease_id=self._lease.id if self._lease else None,
            turns=self._hearing.committed if self._hearing else 0,
            replies=self._replies.created,
            frames_received=self.peer.frames_received,
            inbound_dropped=self.peer.inbound.statistics().dropped,
            underruns=self._replies.speaker.underruns,
            last_turn=self._context.last_turn,
        )

    @property
    def connecting(self) -> Connecting | None:
        """How it stands while its media is not connected; None afterwards and at its end."""
        if self._is_connected or self._end.done():
            return None
        return Connecting(self.id, self._line.origin, self._context.now(), self.peer.heard)

    @property
    def needs_place(self) -> bool:
        """Will it take up a slot, or room in the line, of which the pool does not know yet?"""
        if self._has_asked or self._end.done():
            return False
        if not self.peer.heard and self._context.now() > _LIFELESS_SECONDS:
            return False  # nobody may ever follow this offer up
        return not self._context.ports.pool.has_place(self._line.resume)

    @property
    def _phase(self) -> Literal["connecting", "waiting", "live"]:
        if self._lease is not None:
            return "live"
        return "waiting" if self._waiting_room.place is not None else "connecting"

    def _require_hearing(self) -> Hearing:
        if self._hearing is None:
            raise BadRequest("the call is not ready yet", code="call_not_ready")
        return self._hearing

    # ----------------------------------------------------------- turn taking

    def _on_edge(self, started: bool, at: float) -> None:
        hearing = self._require_hearing()
        hearing.mark_edge(self._turns.utterance, started, at)
        hearing.mark_speech(started, at, self._turns.floor is Floor.USER)
        if not started:
            self._handle(SpeechStopped(at))
        else:
            self._handle(SpeechStarted(at, self._surroundings() or NOTHING_KNOWN))

    def _surroundings(self) -> Surroundings | None:
        """What a voice sounds like and meets; None where that does not matter.

        In IDLE it may be the echo of a reply that has just ended.
        """
        matters = (Floor.AGENT, Floor.OVERLAP, Floor.IDLE)
        if self._hearing is None or self._turns.floor not in matters:
            return None
        heard, voiced = self._hearing.voice(HEARD_SAMPLES)
        return Surroundings(
            self._replies.speaker.echo_in(heard, voiced, self._hearing.voiced_until),
            self._hearing.below_usual_db,
            self._replies.asks(self._turns.reply),
        )

    async def _read_signals(self) -> None:
        async for event in self._signals:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        """The only way into the turn machine: decide, do, set the timer."""
        if self._end.done():
            return  # the tasks that an event would start have nobody to own them any more
        if not isinstance(event, DeadlineReached):
            self._touched = self._context.now()
        if isinstance(event, ReplyAudible):
            self._replies.mark_audible(event.reply)
        elif isinstance(event, ReplyDone):
            self._replies.finish(event.reply)
        elif isinstance(event, SpeechStopped):  # it may be the answer to a question
            self._context.endpointing.replied(self.conversation.last_said())
        paused = self._turns.floor is Floor.PAUSE
        for action in self._turns.handle(event, self._context.now()):
            self._do(action, self._require_hearing())
        self._speculate(event)
        if self._turns.floor is Floor.USER and self._hearing is not None:
            # Not before: speech over a reply may yet turn out to be nothing.
            self._hearing.announce(self._turns.utterance)
        if self._turns.floor is Floor.PAUSE and not paused:
            self._judge(self._require_hearing())
        self._set_timer()

    def _speculate(self, event: Event) -> None:
        speculating, floor = self._replies.speculating, self._turns.floor
        if self._hearing is None or floor not in (Floor.USER, Floor.PAUSE):
            return
        if not self.settings.answers_by_itself or self._hearing.unsettled():
            return
        if not self._hearing.stands_alone(self._turns.utterance):
            return  # the conversation holds its first part already
        if isinstance(event, PartialHeard):
            speculating.hear(event.text)
        paused = floor is Floor.PAUSE
        since = self._hearing.silent_since(self._turns.utterance) if paused else None
        speculating.look(since, self._turns.next_deadline)

    def _judge(self, hearing: Hearing) -> None:
        if self._judging is not None:
            self._judging.cancel()  # about a pause that is over
            self._judging = None
        stopped_at = hearing.silent_since(self._turns.utterance)
        if self._context.ports.engines.turn is not None and stopped_at is not None:
            work = hearing.judge(self._turns.utterance, stopped_at, self._handle)
            self._judging = self._context.spawn(work, "judge")

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._turns.next_deadline
        if deadline is not None:
            self._timer = self._context.loop.call_at(
                self._context.born + deadline, self._on_deadline
            )

    def _on_deadline(self) -> None:
        # When speech stopped is known later than that it did: the gate waits to be sure.
        voiced = self._hearing.voiced_until if self._hearing else None
        self._signals.put(DeadlineReached(voiced, self._surroundings()))

    def _do(self, action: Action, hearing: Hearing) -> None:
        match action:
            case OpenUtterance(utterance, continues):
                hearing.open(utterance, continues)
                self._replies.speculating.open()
                self._context.spawn(self._replies.warm_up(), "warm-up")
            case DiscardUtterance(utterance, what):
                hearing.discard(utterance)
                self._replies.speculating.drop("withdrawn")
                self._context.metrics.barge_ins_total.labels(what).inc()
            case KeepUtterance():
                self._context.metrics.barge_ins_total.labels("kept").inc()
            case CommitTurn(utterance, reply, end):
                turn = hearing.commit(utterance, end)
                self._unanswered = turn if reply is None else None
                if reply is None:
                    self._replies.speculating.drop("withdrawn")
                else:
                    self._replies.start(
                        reply, self._replies.answer, hearing.unsettled(), turn,
                        begun=self._replies.speculating.take(),
                    )  # fmt: skip
            case StartReply():
                self._start_requested(action, hearing)
            case Interrupt():
                self._interrupt(action, hearing)
            case Duck(on):
                self._replies.speaker.duck(on)

    def _interrupt(self, cut: Interrupt, hearing: Hearing) -> None:
        if cut.by is not None:
            self._context.metrics.barge_in_confirm_seconds.labels(cut.by).observe(cut.after_seconds)
        if cut.reason != "cancelled":
            hearing.announce(self._turns.utterance)
        self._replies.interrupt(cut.reply, cut.reason)
        hearing.tell_partial(self._turns.utterance)

    def _start_requested(self, start: StartReply, hearing: Hearing) -> None:
        reply = start.reply
        if start.because_idle:
            hearing.tell_silence(self._turns.rules.idle_seconds)
            self._wishes = self._replies.speak_up_wishes()
        wishes, self._wishes = self._wishes, ReplyWishes()
        source, self._prepared = self._prepared, None
        if source is not None:  # prepared words answer nobody
            self._replies.start(reply, source, hearing.unsettled(), None, wishes)
            return
        source = partial(self._replies.answer, wishes)
        answers, self._unanswered = self._unanswered, None
        self._replies.start(reply, source, hearing.unsettled(), answers, wishes)
