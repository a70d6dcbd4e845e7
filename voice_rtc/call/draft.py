"""An answer that was begun before the caller's turn was over.

A `Draft` runs in a task of its own: the language model's text, and the voice of its first piece.
Nothing of it is told or heard. Either the turn's reply takes it over (`text`, `voice`), with
whatever is still to come, or it is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Generic, TypeVar

from voice_rtc.core.audio import Pcm
from voice_rtc.core.sentences import SentenceSplitter, speakable
from voice_rtc.core.spoken import spoken_form
from voice_rtc.engines.base import EngineInfo, TtsEngine, Usage, VoiceOptions
from voice_rtc.errors import EngineError

T = TypeVar("T")

_AS_CONFIGURED = VoiceOptions()

_MOST_CHARACTERS = 2000
"""Of text ahead of a turn that is not over; the model waits behind them."""


class Draft:
    """See the module. `run` it in a task; ending the task ends the work behind it."""

    def __init__(
        self,
        source: Callable[[], AsyncGenerator[str | Usage, None]],
        tts: TtsEngine | None,
        options: VoiceOptions,
        clock: Callable[[], float],
        language: str = "",
    ) -> None:
        """``tts`` None: text only. All is spoken as ``options.reply``, also what is taken over."""
        self._source = source
        self._tts = tts
        self._options = options
        self._clock = clock
        self._language = language
        self._deltas: _Record[str | Usage] = _Record()
        self._sound: _Record[Pcm] = _Record()
        self._first_piece: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._taken = asyncio.Event()
        self.began = clock()
        """When the language model was asked."""
        self.first_token: float | None = None
        self.first_audio: float | None = None
        self.characters = 0
        """Of text so far."""
        self.task: asyncio.Task[None] | None = None
        """That runs it."""

    @property
    def reply(self) -> str:
        """Whose words it speaks, as the voice is told."""
        return self._options.reply

    @property
    def failed(self) -> bool:
        """The language model gave it up, or the voice did."""
        return self._deltas.error is not None or self._sound.error is not None

    async def run(self) -> None:
        """To the end of the text. Never raises but for cancellation."""
        async with asyncio.TaskGroup() as tasks:
            speaking = tasks.create_task(self._speak(), name="draft:voice")
            await self._write()
            if not self._first_piece.done():  # there is nothing to say
                speaking.cancel()

    async def text(self) -> AsyncGenerator[str | Usage, None]:
        """The answer from its beginning, as it comes. Raises what the language model raised."""
        self._taken.set()
        async for delta in self._deltas.follow():
            yield delta

    def cancel(self) -> None:
        """End the work behind it. Idempotent."""
        if self.task is not None:
            self.task.cancel()

    def voice(self, tts: TtsEngine) -> TtsEngine:
        """``tts``, which need not make again what was made."""
        return _Prepared(tts, self)

    def prepared(self, text: str, options: VoiceOptions) -> AsyncGenerator[Pcm, None] | None:
        """The sound of ``text`` if it is the first piece, spoken so; else None."""
        piece = self._first_piece
        if self._tts is None or not piece.done() or piece.cancelled():
            return None
        if (options.voice, options.speed) != (self._options.voice, self._options.speed):
            return None
        return self._sound.follow() if text == piece.result() else None

    async def _write(self) -> None:
        splitter = SentenceSplitter()
        try:
            async with aclosing(self._source()) as deltas:
                async for delta in deltas:
                    self._deltas.add(delta)
                    if isinstance(delta, Usage):
                        continue
                    self.first_token = self.first_token or self._clock()
                    self.characters += len(delta)
                    self._offer(splitter.feed(delta))
                    if self.characters > _MOST_CHARACTERS:
                        await self._taken.wait()
        except EngineError as error:
            self._deltas.end(error)
        self._offer(splitter.flush())
        self._deltas.end()

    def _offer(self, pieces: list[str]) -> None:
        if pieces and not self._first_piece.done():
            self._first_piece.set_result(spoken_form(speakable(pieces[0]), self._language))

    async def _speak(self) -> None:
        piece = await self._first_piece
        try:
            if self._tts is not None and piece:
                async with aclosing(self._tts.synthesize(piece, self._options)) as chunks:
                    async for pcm in chunks:
                        self.first_audio = self.first_audio or self._clock()
                        self._sound.add(pcm)
        except EngineError as error:
            self._sound.end(error)
        self._sound.end()


class _Record(Generic[T]):
    """What one task adds to and one reader follows from its beginning."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._over = False
        self._news = asyncio.Event()
        self.error: EngineError | None = None
        """That it ended with."""

    def add(self, item: T) -> None:
        """One more."""
        self._items.append(item)
        self._news.set()

    def end(self, error: EngineError | None = None) -> None:
        """No more. Idempotent; the first error stands."""
        if not self._over:
            self._over, self.error = True, error
            self._news.set()

    async def follow(self) -> AsyncGenerator[T, None]:
        """All of it, as it comes. Raises the error it ended with."""
        place = 0
        while place < len(self._items) or not self._over:
            if place == len(self._items):
                self._news.clear()
                await self._news.wait()
                continue
            yield self._items[place]
            place += 1
        if self.error is not None:
            raise self.error


class _Prepared:
    """A voice that has the sound of one piece already."""

    def __init__(self, tts: TtsEngine, draft: Draft) -> None:
        self._tts = tts
        self._draft = draft

    @property
    def info(self) -> EngineInfo:
        return self._tts.info

    @property
    def rate_hz(self) -> int:
        return self._tts.rate_hz

    async def start(self) -> None:
        """It runs."""

    async def aclose(self) -> None:
        """It is not ours."""

    def synthesize(
        self, text: str, options: VoiceOptions = _AS_CONFIGURED
    ) -> AsyncGenerator[Pcm, None]:
        """See `TtsEngine.synthesize`."""
        prepared = self._draft.prepared(text, options)
        if prepared is not None:
            return prepared
        return self._tts.synthesize(text, replace(options, reply=self._draft.reply))
