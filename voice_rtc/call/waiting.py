"""What a caller is told, on the data channel and by voice, while it waits for a slot."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator

from voice_rtc.call import events
from voice_rtc.call.context import CallContext
from voice_rtc.call.reply import Reply, Voice, perform
from voice_rtc.call.speaker import Speaker
from voice_rtc.errors import EngineError
from voice_rtc.pool.lease import Place

HOLD = -1
"""Number of the hold message in the playout; replies count from 1."""


class WaitingRoom:
    """Tells the place at each change, speaks the hold message, and stops when a slot is there."""

    def __init__(self, context: CallContext, speaker: Speaker) -> None:
        self._context = context
        self._speaker = speaker
        self._news = asyncio.Event()
        self.place: Place | None = None
        """Where the caller stands; None before it waits and after."""

    def moved(self, place: Place) -> None:
        """From the pool: the caller stands here now."""
        self.place = place
        self._news.set()
        self._context.emit(
            events.QueueUpdated(place.position, place.waiting, place.eta_seconds, place.token)
        )

    def granted(self, waited_seconds: float) -> None:
        """The caller has a slot: silence, and tell it if it was told to wait."""
        if self.place is not None:
            self._speaker.cut(HOLD, None)
            self._context.emit(events.QueueGranted(round(waited_seconds, 2)))
        self.place = None

    async def keep_company(self) -> None:
        """Speak the hold message now and then, for as long as the caller waits."""
        await self._news.wait()
        pool = self._context.ports.settings.pool
        while pool.hold_message:
            place = self.place
            if place is not None:
                await self._say(_filled(pool.hold_message, place))
            await asyncio.sleep(pool.hold_repeat_seconds)

    async def _say(self, text: str) -> None:
        context = self._context

        async def words() -> AsyncGenerator[str, None]:
            yield text

        voice = Voice(context.ports.engines.tts, context.settings.voice, self._speaker)
        await perform(Reply(HOLD, "hold", "hold"), words, voice, self)

    # Told by `perform`: nobody but the caller's ear needs to know.

    def reply_first_token(self, reply: Reply) -> None:
        """Nothing to note."""

    def reply_first_audio(self, reply: Reply) -> None:
        """Nothing to note."""

    def reply_text(self, reply: Reply, delta: str) -> None:
        """Nothing to note: the place is shown by its own event."""

    def reply_failed(self, reply: Reply, engine: str, error: EngineError) -> None:
        """The place is still shown; the voice was missing."""
        self._context.count_failure(engine, error)


def _filled(message: str, place: Place) -> str:
    minutes = max(1, math.ceil((place.eta_seconds or 60.0) / 60.0))
    filled = message.replace("{position}", str(place.position))
    return filled.replace("{minutes}", str(minutes))
