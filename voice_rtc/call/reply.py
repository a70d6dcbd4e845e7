"""One reply: text from a source, cut into speakable pieces, spoken into the playout.

The original plan's SpeechPipelineManager. A `Reply` is performed by one task; cancelling that
task is how it is aborted, and its number is a fence: after a cut nothing of it is played.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import soxr

from voice_rtc.call.draft import Draft
from voice_rtc.call.speaker import Speaker
from voice_rtc.call.state import ReplyWishes
from voice_rtc.core.audio import SEND_RATE_HZ, Samples
from voice_rtc.core.sentences import SentenceSplitter, speakable
from voice_rtc.core.spoken import spoken_form
from voice_rtc.engines.base import TtsEngine, Usage, VoiceOptions
from voice_rtc.errors import EngineError, LlmError

TextSource = Callable[[], AsyncGenerator[str | Usage, None]]
"""Starts a stream of text, and what it cost; closing it ends the work behind it."""

# Text runs far ahead of speech; past this many pieces the producer waits for the voice.
_PIECES_AHEAD = 64

_APOLOGIES = {
    "llm_unauthorized": "I cannot reach my language model, because its key was refused.",
    "llm_rate_limited": "My language model is busy right now. Please try again in a moment.",
    "llm_timeout": "My language model took too long to answer. Please try again.",
    "llm_unreachable": "I cannot reach my language model right now. Please try again.",
    "llm_stream_cut": "Sorry, I lost my train of thought. Please ask me again.",
}
_APOLOGY = "Sorry, something went wrong with my language model. Please try again."


@dataclass(slots=True)
class Reply:
    """The agent's turn and what became of it so far."""

    number: int
    """The turn machine's id of it."""
    id: str
    item_id: str
    wishes: ReplyWishes | None = None
    """Of whoever asked for it; None: the caller's turn alone called for it."""
    text: str = ""
    """What was handed on to be spoken or shown."""
    created: bool = False
    """The client was told of it."""
    spoken: bool = False
    """Not text only; known once created."""
    audible: bool = False
    draft: Draft | None = None
    """That it took over."""
    usage: Usage | None = None
    """What the text cost, where the language model told."""
    error: EngineError | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class ReplyListener(Protocol):
    """Told of a reply's progress, on the event loop; must not block."""

    def reply_first_token(self, reply: Reply) -> None:
        """The language model began to answer."""
        ...

    def reply_text(self, reply: Reply, delta: str) -> None:
        """``delta`` is about to be spoken, or shown where nothing is spoken."""
        ...

    def reply_first_audio(self, reply: Reply) -> None:
        """The voice delivered its first samples."""
        ...

    def reply_filler(self, reply: Reply, filler: str) -> None:
        """Nothing came for so long that ``filler`` is about to be said."""
        ...

    def reply_failed(self, reply: Reply, engine: str, error: EngineError) -> None:
        """An engine failed; the reply goes on as well as it can."""
        ...


@dataclass(frozen=True, slots=True)
class Voice:
    """How a reply becomes sound. ``tts`` None: text only."""

    tts: TtsEngine | None
    options: VoiceOptions
    speaker: Speaker
    language: str = ""
    """Code of the language that is spoken; empty: not known."""
    filler: str = ""
    """Said, once, when there was nothing to say for ``filler_seconds``; empty: nothing."""
    filler_seconds: float = 2.5


async def perform(reply: Reply, source: TextSource, voice: Voice, listener: ReplyListener) -> None:
    """Speak what ``source`` yields, to its end. Engine failures are told, never raised."""
    pieces: asyncio.Queue[str | None] = asyncio.Queue(_PIECES_AHEAD)
    voice.speaker.begin(reply.number)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_produce(reply, source, pieces, listener), name=f"{reply.id}:text")
        await _Mouth(reply, voice, listener).speak(pieces)
    voice.speaker.finish(reply.number)


async def _produce(
    reply: Reply,
    source: TextSource,
    pieces: asyncio.Queue[str | None],
    listener: ReplyListener,
) -> None:
    splitter = SentenceSplitter()
    started = said = False
    failure: EngineError | None = None
    try:
        async with aclosing(source()) as deltas:
            async for delta in deltas:
                if isinstance(delta, Usage):
                    reply.usage = delta
                    continue
                if not started:
                    started = True
                    listener.reply_first_token(reply)
                for piece in splitter.feed(delta):
                    said = True
                    await pieces.put(piece)
    except EngineError as error:
        failure = error
    rest = splitter.flush()
    if not (said or rest or failure):  # white space is no answer either
        failure = LlmError("the language model gave an empty answer", code="llm_empty")
    if failure is not None:
        reply.error = failure
        listener.reply_failed(reply, "llm", failure)
        rest = [*rest, _APOLOGIES.get(failure.code, _APOLOGY)]
    for piece in rest:
        await pieces.put(piece)
    await pieces.put(None)


class _Mouth:
    """Takes pieces of text, yields sound; one resampler for the whole reply."""

    def __init__(self, reply: Reply, voice: Voice, listener: ReplyListener) -> None:
        self._reply = reply
        self._voice = voice
        self._listener = listener
        self._resampler: soxr.ResampleStream | None = None
        self._silent = voice.tts is None
        self._heard_from_tts = False
        self._may_fill = bool(voice.filler) and voice.tts is not None

    async def speak(self, pieces: asyncio.Queue[str | None]) -> None:
        while (piece := await self._next(pieces)) is not None:
            await self._utter(piece)
        if self._resampler is not None:
            await self._write(self._resampler.resample_chunk(np.zeros(0, np.int16), last=True))

    async def _next(self, pieces: asyncio.Queue[str | None]) -> str | None:
        """The next piece; the silence until it comes is bridged once in a reply."""
        while self._may_fill:
            try:
                silent_at = self._voice.speaker.buffered_seconds
                async with asyncio.timeout(silent_at + self._voice.filler_seconds):
                    return await pieces.get()
            except TimeoutError:
                if not self._voice.speaker.buffered_seconds:  # else the reply stood still
                    await self._fill()
        return await pieces.get()

    async def _fill(self) -> None:
        self._may_fill = False
        if not self._silent:  # what is only shown needs no bridge
            self._listener.reply_filler(self._reply, self._voice.filler)
            await self._utter(self._voice.filler)

    async def _utter(self, piece: str) -> None:
        delta = piece if not self._reply.text else f" {piece}"
        self._reply.text += delta
        self._listener.reply_text(self._reply, delta)
        await self._say(piece, delta)

    async def _say(self, piece: str, delta: str) -> None:
        text = spoken_form(speakable(piece), self._voice.language)
        if self._voice.tts is None or self._silent or not text:
            return
        self._voice.speaker.segment(self._reply.number, delta)
        try:
            async with aclosing(self._samples(self._voice.tts, text)) as chunks:
                async for chunk in chunks:
                    await self._write(chunk)
        except EngineError as error:
            # What follows is shown only: one failure per reply is enough to tell.
            self._silent = True
            self._reply.error = self._reply.error or error
            self._listener.reply_failed(self._reply, "tts", error)

    async def _samples(self, tts: TtsEngine, text: str) -> AsyncGenerator[Samples, None]:
        options = replace(self._voice.options, reply=self._reply.id, first=not self._heard_from_tts)
        async with aclosing(tts.synthesize(text, options)) as run:
            async for pcm in run:
                if not self._heard_from_tts:
                    self._heard_from_tts = True
                    self._listener.reply_first_audio(self._reply)
                if self._resampler is None:
                    self._resampler = soxr.ResampleStream(
                        tts.rate_hz, SEND_RATE_HZ, 1, dtype="int16"
                    )
                yield self._resampler.resample_chunk(pcm.samples)

    async def _write(self, samples: Samples) -> None:
        if len(samples):
            await self._voice.speaker.write(self._reply.number, samples)
