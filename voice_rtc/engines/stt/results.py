"""The way of results from an STT engine to one call."""

from __future__ import annotations

from collections.abc import AsyncIterator

from voice_rtc.core.buffers import Policy
from voice_rtc.engines.base import Partial, SttResult
from voice_rtc.inbox import Inbox

_MOST_DISCARDED = 1000
"""Fences that are remembered: of utterances that were discarded without any result after them, as
in a noisy place. What is still to come of older ones would be hours late."""


class ResultStream:
    """Results of one session: finals are never dropped, discarded utterances never delivered."""

    def __init__(self, limit: int = 64) -> None:
        self._inbox: Inbox[SttResult] = Inbox(
            limit, Policy.DROP_OLDEST, keep=lambda result: not isinstance(result, Partial)
        )
        self._discarded: set[int] = set()

    def put(self, result: SttResult) -> None:
        """Deliver ``result`` when the reader comes to it."""
        self._inbox.put(result)

    def discard(self, utterance: int) -> None:
        """A fence: what waits of ``utterance`` and what may still come is not delivered."""
        self._discarded.add(utterance)
        if len(self._discarded) > _MOST_DISCARDED:
            self._discarded.remove(min(self._discarded))

    def close(self) -> None:
        """End the stream at once: what waits is dropped."""
        self._inbox.clear()
        self._inbox.close()

    async def __aiter__(self) -> AsyncIterator[SttResult]:
        async for result in self._inbox:
            if result.utterance in self._discarded:
                continue
            # Results come in order of utterances, so older fences are not needed any more.
            self._discarded = {number for number in self._discarded if number > result.utterance}
            yield result
