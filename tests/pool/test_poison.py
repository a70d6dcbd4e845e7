"""An utterance that kills every engine it is sent to, among others that do no harm.

With real worker processes in real time: what is tested is who is in them when they die.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from tests.engines.poison_worker import BREAKS_THE_THREAD, KILLS
from tests.support.audio import WHISPER_SYNTHETIC
from voice_rtc.config import Settings
from voice_rtc.core.audio import Pcm
from voice_rtc.core.health import MOST_ENGINES
from voice_rtc.engines.base import EngineSet, Final, Partial, ReplicaSpec, SttResult
from voice_rtc.engines.fakes import EchoLlm, ThresholdVad, ToneTts
from voice_rtc.engines.stt import whisper as whisper_module
from voice_rtc.engines.stt.whisper import WhisperSettings, WhisperStt
from voice_rtc.metrics import Metrics
from voice_rtc.pool.gpu import GpuReadings
from voice_rtc.pool.lease import Lease
from voice_rtc.pool.pool import SttPool

PIECE = 1600
"""0.1 s, fed that often."""


@asynccontextmanager
async def pool(engines: list[WhisperStt]) -> AsyncIterator[SttPool]:
    def make(spec: ReplicaSpec) -> WhisperStt:
        asked = WhisperSettings(
            str(WHISPER_SYNTHETIC), device="cpu", language="", workers=2, mode=spec.mode
        )
        engines.append(WhisperStt(asked))
        return engines[-1]

    settings = Settings(
        pool={"slots": 8, "spares": 1, "memory_high": 0.998, "memory_critical": 0.999,
              "probe_interval_seconds": 600.0}
    )  # fmt: skip
    first = make(ReplicaSpec())
    await first.start()
    chosen = EngineSet(ThresholdVad(), first, EchoLlm(), ToneTts(), (), make)
    try:
        async with SttPool(
            settings, chosen, Metrics(), lambda: GpuReadings((), "")
        ).running() as it:
            yield it
    finally:
        await first.aclose()


class Caller:
    """Reads all the time, as a call does."""

    def __init__(self, lease: Lease, number: int) -> None:
        self.lease = lease
        self.number = number
        self._results: asyncio.Queue[SttResult] = asyncio.Queue(100)
        self._utterance = 0

    async def read(self) -> None:
        async for result in self.lease.session.results():
            if not isinstance(result, Partial):
                self._results.put_nowait(result)

    async def speak(self, number: int, pieces: int) -> SttResult:
        """At the pace of speech: others are begun and finished meanwhile."""
        self._utterance += 1
        self.lease.session.begin(self._utterance)
        for _ in range(pieces):
            self.lease.session.feed(Pcm(np.full(PIECE, number, np.int16), 0))
            await asyncio.sleep(0.1)
        self.lease.session.finish(self._utterance)
        return await self._results.get()

    async def go_on_until(self, done: asyncio.Event) -> list[str]:
        """One utterance that lasts through it all; what is wrong of it."""
        self._utterance += 1
        self.lease.session.begin(self._utterance)
        pieces = 0
        while not done.is_set():
            self.lease.session.feed(Pcm(np.full(PIECE, self.number, np.int16), 0))
            pieces += 1
            await asyncio.sleep(0.1)
        self.lease.session.finish(self._utterance)
        return self._wrong(await self._results.get(), pieces)

    async def talk_until(self, done: asyncio.Event) -> list[str]:
        """One utterance after the other; what is not right of them."""
        wrong = []
        while not done.is_set():
            pieces = 3 + (self._utterance + self.number) % 9
            wrong += self._wrong(await self.speak(self.number, pieces), pieces)
        return wrong

    def _wrong(self, result: SttResult, pieces: int) -> list[str]:
        text = f"{self.number}x{pieces * PIECE}"
        right = isinstance(result, Final) and result.text == text
        return [] if right else [f"{result}, not {text}"]


@pytest.mark.parametrize("poison", [KILLS, BREAKS_THE_THREAD])
async def test_the_others_lose_no_word_by_one_that_kills_every_engine(
    poison: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper_module, "_WORKER_MODULE", "tests.engines.poison_worker")
    engines: list[WhisperStt] = []
    async with asyncio.timeout(100.0), pool(engines) as it:
        callers = [Caller(await it.allocate_instance(f"call-{n}"), n) for n in range(1, 7)]
        steady, *harmless, poisoner = callers
        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for caller in callers:
                tasks.create_task(caller.read())
            lasting = tasks.create_task(steady.go_on_until(done))
            talking = [tasks.create_task(caller.talk_until(done)) for caller in harmless]
            await asyncio.sleep(1.0)
            given_up = await poisoner.speak(poison, pieces=20)
            await asyncio.sleep(2.0)
            done.set()
            wrong = [await task for task in talking]
            still_heard = await poisoner.speak(5, pieces=3)
            for caller in callers:
                await it.return_instance(caller.lease)
        assert lasting.result() == [] and wrong == [[]] * len(harmless)
        assert not isinstance(given_up, Final | Partial)
        died = [engine for engine in engines if engine.health().failure is not None]
        assert len(died) == MOST_ENGINES
        assert isinstance(still_heard, Final), "the call goes on"
