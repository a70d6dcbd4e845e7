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

from voice_rtc.call.speaker import Speaker
from voice_rtc.call.state import ReplyWishes
from voice_rtc.core.audio import SEND_RATE_HZ, Samples
from voice_rtc.core.sentences import SentenceSplitter, speakable
from voice_rtc.engines.base import TtsEngine, VoiceOptions
from voice_rtc.errors import EngineError, LlmError

TextSource = Callable[[], AsyncGenerator[str, None]]
"""Starts a stream of text; closing it ends the work behind it."""

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
    audible: bool = False
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

    def reply_failed(self, reply: Reply, engine: str, error: EngineError) -> None:
        """An engine failed; the reply goes on as well as it can."""
        ...


@dataclass(frozen=True, slots=True)
class Voice:
    """How a reply becomes sound. ``tts`` None: text only."""

    tts: TtsEngine | None
    options: VoiceOptions
    speaker: Speaker


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
    started = False
    try:
        async with aclosing(source()) as deltas:
            async for delta in deltas:
                if not started:
                    started = True
                    listener.reply_first_token(reply)
                for piece in splitter.feed(delta):
                    await pieces.put(piece)
            if not started:
                raise LlmError("the language model gave an empty answer", code="llm_empty")
    except EngineError as error:
        reply.error = error
        listener.reply_failed(reply, "llm", error)
    for piece in splitter.flush():
        await pieces.put(piece)
    if reply.error is not None:
        await pieces.put(_APOLOGIES.get(reply.error.code, _APOLOGY))
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

    async def speak(self, pieces: asyncio.Queue[str | None]) -> None:
        while (piece := await pieces.get()) is not None:
            delta = piece if not self._reply.text else f" {piece}"
            self._reply.text += delta
            self._listener.reply_text(self._reply, delta)
            await self._say(piece, delta)
        if self._resampler is not None:
            await self._write(self._resampler.resample_chunk(np.zeros(0, np.int16), last=True))

    async def _say(self, piece: str, delta: str) -> None:
        spoken = speakable(piece)
        if self._voice.tts is None or self._silent or not spoken:
            return
        self._voice.speaker.segment(self._reply.number, delta)
        try:
            async with aclosing(self._samples(self._voice.tts, spoken)) as chunks:
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
