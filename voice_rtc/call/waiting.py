"""What a caller is told, on the data channel and by voice, while it waits for a slot."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable

from voice_rtc.call import events
from voice_rtc.call.context import CallContext
from voice_rtc.call.reply import Reply, Voice, perform
from voice_rtc.call.speaker import Speaker
from voice_rtc.core.audio import Samples
from voice_rtc.errors import EngineError
from voice_rtc.pool.lease import Place


class WaitingRoom:
    """Tells the place at each change, speaks the hold message, and stops when a slot is there.

    It has a mouth of its own, so that hold messages are never taken for replies.
    """

    def __init__(self, context: CallContext, can_speak: Callable[[], bool]) -> None:
        self._context = context
        self._can_speak = can_speak
        settings = context.ports.settings
        self._speaker = Speaker(
            self, settings.media.reply_buffer_seconds, context.now, context.metrics
        )
        self._messages = 0
        self._played = asyncio.Event()
        self._entered = asyncio.Event()
        self.place: Place | None = None
        """Where the caller stands; None before it waits and after."""

    async def entered(self) -> None:
        """Wait until the caller is told to wait; for ever when it gets a slot at once."""
        await self._entered.wait()

    def moved(self, place: Place) -> None:
        """From the pool: the caller stands here now."""
        self.place = place
        self._entered.set()
        self._context.emit(
            events.QueueUpdated(place.position, place.waiting, place.eta_seconds, place.token)
        )

    def granted(self, waited_seconds: float) -> None:
        """The caller has a slot: silence, and tell it if it was told to wait."""
        if self.place is None:
            return
        self.place = None
        if self._messages:
            self._speaker.cut(self._messages, None)
        self._context.emit(events.QueueGranted(round(waited_seconds, 2)))

    def next_frame(self) -> Samples | None:
        """The next 20 ms of the hold message; None for silence. See `media.outbound`."""
        return self._speaker.next_frame() if self._messages else None

    def on_sound(self, wake: Callable[[], None]) -> None:
        """``wake`` is called whenever there may be something to play."""
        self._speaker.on_sound(wake)

    async def keep_company(self) -> None:
        """Speak the hold message now and then, for as long as the caller waits."""
        await self.entered()
        context = self._context
        pool = context.ports.settings.pool
        while pool.hold_message:
            began = context.now()
            # The client may ask for text alone at any time.
            if self.place is not None and context.settings.spoken and self._can_speak():
                await self._say(_filled(pool.hold_message, self.place, pool.max_wait_seconds))
            await asyncio.sleep(max(0.0, began + pool.hold_repeat_seconds - context.now()))

    async def _say(self, text: str) -> None:
        """Returns when the caller has heard all of it."""
        context = self._context

        async def words() -> AsyncGenerator[str, None]:
            yield text

        self._messages += 1
        self._played.clear()
        voice = Voice(context.ports.engines.tts, context.settings.voice, self._speaker)
        reply = Reply(self._messages, f"hold-{context.id}", "hold")
        await perform(reply, words, voice, self)
        await self._played.wait()

    # Told by the speaker.

    def reply_audible(self, reply: int) -> None:
        """Nothing to note."""

    def reply_sent(self, reply: int) -> None:
        """Nothing to note."""

    def reply_played(self, reply: int) -> None:
        """The next one may follow."""
        self._played.set()

    # Told by `perform`: nobody but the caller's ear needs to know.

    def reply_first_token(self, reply: Reply) -> None:
        """Nothing to note."""

    def reply_first_audio(self, reply: Reply) -> None:
        """Nothing to note."""

    def reply_text(self, reply: Reply, delta: str) -> None:
        """Nothing to note: the place is shown by its own event."""

    def reply_filler(self, reply: Reply, filler: str) -> None:
        """Never: the words are there at once."""

    def reply_failed(self, reply: Reply, engine: str, error: EngineError) -> None:
        """The place is still shown; the voice was missing."""
        self._context.count_failure(engine, error)


def _filled(message: str, place: Place, longest_seconds: float) -> str:
    """Without an estimate nobody waits longer than the limit."""
    seconds = longest_seconds if place.eta_seconds is None else place.eta_seconds
    minutes = max(1, math.ceil(seconds / 60.0))
    filled = message.replace("{position}", str(place.position))
    return filled.replace("{minutes}", str(minutes))
