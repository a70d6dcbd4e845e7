"""Eight callers at once on the embedded engines: everyone gets their own words, all is freed."""

from __future__ import annotations

import asyncio
import gc

import psutil

from tests.loopback.voices import heard_as, spoken
from tests.support.caller import Caller, calling
from tests.support.server import serving
from voice_rtc.core.audio import Samples

CALLERS = (
    "my name is peter and i live in london",
    "the red house stands by the river",
    "please call me back on monday morning",
    "what time is the train to paris",
    "i would like seven green apples",
    "the weather is cold and dark today",
    "tell me a story about a horse",
    "she plays the piano every evening",
)
ROUNDS = 2


async def talk(url: str, sentence: str, samples: Samples) -> list[str]:
    async with calling(url) as caller:
        texts = []
        for _ in range(ROUNDS):
            texts.append(await heard_as(caller, samples))
            await caller.event("output_audio_buffer.stopped", after=last_committed(caller))
        await caller.hang_up()
        await caller.event("voice_rtc.call.ended")
    return texts


def last_committed(caller: Caller) -> int:
    types = caller.types()
    return len(types) - types[::-1].index("input_audio_buffer.committed")


async def test_eight_callers_never_cross_and_leave_nothing_behind() -> None:
    voices = {sentence: await spoken(sentence) for sentence in CALLERS}
    grammar = {"grammar": "|".join(CALLERS)}
    async with asyncio.timeout(55), serving(engines="embedded", stt=grammar) as server:
        async with asyncio.TaskGroup() as tasks:
            calls = {
                sentence: tasks.create_task(talk(server.url, sentence, samples))
                for sentence, samples in voices.items()
            }
        assert {s: call.result() for s, call in calls.items()} == {
            sentence: [sentence] * ROUNDS for sentence in CALLERS
        }
        await server.registry.wait_empty()
        sample = server.metrics.registry.get_sample_value
        assert sample("voice_rtc_leases_active") == 0
        assert sample("voice_rtc_calls_total", {"outcome": "hangup"}) == len(CALLERS)
        assert sample("voice_rtc_inbound_dropped_total") == 0
        gc.collect()
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not [name for name in names if name.startswith("rtc_")]
        assert len(psutil.Process().children()) == 2  # the pocketsphinx workers, as before
