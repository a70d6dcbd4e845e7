"""End to end with the engines that are really shipped: speech in, transcript, speech out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from tests.loopback.voices import heard_as, spoken
from tests.support.audio import WHISPER_SYNTHETIC, Clip, speech_clips
from tests.support.caller import Caller, calling
from tests.support.server import serving
from voice_rtc.core.audio import rms_dbfs

SENTENCES = (
    "hello how are you today",
    "what is the weather like in paris",
    "please stop talking",
    "tell me a joke about computers",
)
GRAMMAR = "|".join(SENTENCES)


async def test_human_speech_gets_a_transcript_and_a_spoken_answer() -> None:
    async with asyncio.timeout(58), serving(engines="embedded") as server:
        async with asyncio.TaskGroup() as tasks:  # as many as it has slots for at once
            queue = iter(speech_clips(48_000))
            for _ in range(2):
                tasks.create_task(call_with_each(server.url, queue))


async def call_with_each(url: str, clips: Iterator[Clip]) -> None:
    for clip in clips:
        async with calling(url) as caller:
            text = await heard_as(caller, clip.samples)
            said, meant = set(text.split()), set(clip.text.lower().strip(".,").split())
            assert said & meant, f"{text!r} has no word of {clip.text!r}"
            await caller.event("output_audio_buffer.stopped")
            audible = [frame for _, frame in caller.frames if rms_dbfs(frame) > -50]
            assert len(audible) * 0.02 >= 1.0


async def test_a_grammar_is_transcribed_exactly() -> None:
    async with asyncio.timeout(50), serving(engines="embedded", stt={"grammar": GRAMMAR}) as server:
        async with calling(server.url) as caller:
            for sentence in SENTENCES:
                assert await heard_as(caller, await spoken(sentence)) == sentence
                # The next sentence is a barge-in over the reply to this one.
                await caller.event("output_audio_buffer.started")


async def test_whisper_transcribes_exactly_and_callers_do_not_cross() -> None:
    stt = {"engine": "faster-whisper", "model": str(WHISPER_SYNTHETIC)}
    words = ("My code word is falcon river.", "My code word is golden tower.")
    async with asyncio.timeout(50), serving(engines="embedded", stt=stt) as server:
        async with calling(server.url) as first, calling(server.url) as second:
            async with asyncio.TaskGroup() as tasks:
                one = tasks.create_task(heard_as(first, await spoken(words[0])))
                two = tasks.create_task(heard_as(second, await spoken(words[1])))
            assert (one.result(), two.result()) == words


async def test_a_barge_in_silences_the_real_voice() -> None:
    async with (
        asyncio.timeout(50),
        serving(engines="embedded", session={"greeting": LONG_GREETING}) as server,
        calling(server.url) as caller,
    ):
        await caller.event("output_audio_buffer.started")
        await asyncio.wait_for(first_sound(caller), 10)
        before = len(caller.events)
        await caller.say(await spoken("please stop talking"))
        cleared = await caller.event("output_audio_buffer.cleared", after=before)
        arrival = next(at for at, event in caller.events if event is cleared)
        await caller.event("conversation.item.input_audio_transcription.completed", after=before)
        reply = next(
            (at for at, event in caller.events[before:] if event["type"].endswith("er.started")),
            float("inf"),
        )
        late = [f for at, f in caller.frames if arrival < at < reply and rms_dbfs(f) > -50]
        assert len(late) <= 10  # 200 ms, most of it the client's own jitter buffer
        heard = await caller.event("voice_rtc.reply.heard", after=before)
        assert LONG_GREETING.startswith(heard["text"]) and heard["text"] != LONG_GREETING


LONG_GREETING = (
    "Welcome. I am going to read you a rather long greeting, so that there is plenty of time to "
    "interrupt me. It goes on and on, with one sentence after the other, until somebody speaks."
)


async def first_sound(caller: Caller) -> None:
    """Wait until the caller's own ear got something."""
    while not any(rms_dbfs(frame) > -50 for _, frame in caller.frames[-10:]):
        await caller.frame()
