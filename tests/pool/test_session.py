"""A call's session keeps every word, whatever becomes of the engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from tests.support.echo_stt import EchoStt, said
from tests.support.virtual_time import run_virtual
from voice_rtc.core.audio import Pcm
from voice_rtc.core.health import MOST_ENGINES
from voice_rtc.engines.base import Final, Partial, SttFailed, SttOptions, SttResult
from voice_rtc.errors import EngineCrashed, EngineError
from voice_rtc.pool.session import LeasedSession


class Pool:
    """What the pool does for a session, told step by step."""

    def __init__(self, *, keep_bytes: int = 1_000_000, replays: bool = True) -> None:
        self.troubles: list[EngineError] = []
        self.finals: list[float] = []
        self.not_kept = 0
        self.replayed: list[str] = []
        self.session = LeasedSession(
            SttOptions(),
            keep_bytes=keep_bytes,
            replays=replays,
            on_trouble=lambda error, _owner: self.troubles.append(error),
            on_final=self.finals.append,
            on_not_kept=self._count,
            on_replay=self.replayed.append,
        )

    def _count(self) -> None:
        self.not_kept += 1


def pcm(number: int, samples: int = 320, at: int = 0) -> Pcm:
    return Pcm(np.full(samples, number, np.int16), at)


async def collect(session: LeasedSession, kind: type[Any], count: int) -> list[SttResult]:
    found: list[SttResult] = []
    async for result in session.results():
        if isinstance(result, kind):
            found.append(result)
        if len(found) == count:
            return found
    return found


def story(work: Coroutine[Any, Any, None]) -> None:
    run_virtual(work)


def test_an_utterance_is_transcribed() -> None:
    async def run() -> None:
        pool, engine = Pool(), EchoStt()
        await pool.session.attach(await engine.open(), "bound")
        pool.session.begin(5)
        pool.session.feed(pcm(7))
        pool.session.feed(pcm(7))
        pool.session.finish(5)
        assert await collect(pool.session, Final, 1) == [Final(5, said(7, 640), 0.04)]
        assert pool.finals == [0.0] and not pool.session.unfinished()
        await pool.session.aclose()

    story(run())


def test_audio_fed_before_there_is_an_engine_is_not_lost() -> None:
    async def run() -> None:
        pool, engine = Pool(), EchoStt()
        pool.session.begin(1)
        pool.session.feed(pcm(7))
        await pool.session.attach(await engine.open(), "bound")
        pool.session.feed(pcm(7))
        pool.session.finish(1)
        assert await collect(pool.session, Final, 1) == [Final(1, said(7, 640), 0.04)]
        assert pool.replayed == []
        await pool.session.aclose()

    story(run())


@pytest.mark.parametrize("moment", ["begun", "fed", "finished"])
def test_a_dead_engine_costs_no_word(moment: str) -> None:
    async def run() -> None:
        pool, first, second = Pool(), EchoStt(seconds=0.5), EchoStt()
        session = pool.session
        await session.attach(await first.open(), "bound")
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(collect(session, Final, 1))
            session.begin(1)
            if moment == "begun":
                first.kill()
            session.feed(pcm(7))
            if moment == "fed":
                first.kill()
            session.feed(pcm(7))
            session.finish(1)
            if moment == "finished":
                first.kill()
            await asyncio.sleep(0.1)
            assert len(pool.troubles) == 1
            await session.attach(await second.open(), "killed")
        assert reading.result() == [Final(1, said(7, 640), 0.04)]
        assert pool.replayed == ["killed"] and session.replays == 1
        assert pool.finals == [pytest.approx(0.1)]
        await session.aclose()

    story(run())


def test_a_stopped_engine_that_answers_late_is_not_heard() -> None:
    async def run() -> None:
        pool, first, second = Pool(), EchoStt(seconds=1.0), EchoStt(seconds=2.0)
        session = pool.session
        await session.attach(await first.open(), "bound")
        session.begin(1)
        session.feed(pcm(7))
        session.finish(1)
        await session.attach(await second.open(), "hung")
        found = await collect(session, Final, 1)
        assert found == [Final(1, said(7, 320), 0.02)]
        assert pool.finals == [pytest.approx(2.0)]  # the second's answer, not the first's
        await session.aclose()

    story(run())


def test_the_engine_that_takes_over_gets_the_newest_options() -> None:
    async def run() -> None:
        pool, first, second = Pool(), EchoStt(), EchoStt()
        session = pool.session
        german, french = SttOptions("de", "Falke"), SttOptions("fr", "Aigle")
        await session.attach(await first.open(session.options), "bound")
        session.configure(german)
        session.begin(1)
        opened = await second.open(session.options)
        session.configure(french)  # while the other is being opened
        session.feed(pcm(1))
        session.finish(1)
        await session.attach(opened, "killed")
        session.begin(2)
        session.feed(pcm(2))
        session.finish(2)
        assert len(await collect(session, Final, 2)) == 2
        assert first.begun == [german]
        assert second.begun == [german, french]  # what is sent again is what it was
        assert session.options == french
        await session.aclose()

    story(run())


def test_several_unfinished_utterances_are_replayed_in_order() -> None:
    async def run() -> None:
        pool, first, second = Pool(), EchoStt(seconds=9.0), EchoStt()
        session = pool.session
        await session.attach(await first.open(), "bound")
        for number in (1, 2):
            session.begin(number)
            session.feed(pcm(number))
            session.finish(number)
        session.begin(3)
        session.feed(pcm(3))
        await session.attach(await second.open(), "killed")
        session.feed(pcm(3))
        session.finish(3)
        found = await collect(session, Final, 3)
        assert [(r.utterance, r.text) for r in found if isinstance(r, Final)] == [
            (1, said(1, 320)), (2, said(2, 320)), (3, said(3, 640)),
        ]  # fmt: skip
        await session.aclose()

    story(run())


def test_an_utterance_that_fails_everywhere_is_told_as_failed() -> None:
    async def run() -> None:
        pool = Pool()
        session = pool.session
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(collect(session, SttFailed, 1))
            session.begin(1)
            session.feed(pcm(7))
            session.finish(1)
            for _ in range(MOST_ENGINES):
                engine = EchoStt()
                engine.next_error = EngineCrashed("again")
                await session.attach(await engine.open(), "again")
                await asyncio.sleep(0.1)
        assert [r.utterance for r in reading.result()] == [1]
        assert len(pool.troubles) == MOST_ENGINES and not session.unfinished()
        await session.aclose()

    story(run())


def test_without_another_engine_a_failure_is_told_at_once() -> None:
    async def run() -> None:
        pool, engine = Pool(replays=False), EchoStt()
        session = pool.session
        engine.next_error = EngineCrashed("once")
        await session.attach(await engine.open(), "bound")
        session.begin(1)
        session.feed(pcm(7))
        assert session.kept_bytes == 0
        session.finish(1)
        found = await collect(session, SttFailed, 1)
        assert isinstance(found[0], SttFailed) and str(found[0].error) == "once"
        await session.aclose()

    story(run())


def test_without_another_engine_its_end_is_the_end() -> None:
    async def run() -> None:
        pool, engine = Pool(replays=False), EchoStt()
        await pool.session.attach(await engine.open(), "bound")
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(collect(pool.session, Final, 1))
            await asyncio.sleep(0)
            await engine.aclose()
        assert reading.result() == []
        await pool.session.aclose()

    story(run())


def test_a_discarded_utterance_is_not_delivered_nor_replayed() -> None:
    async def run() -> None:
        pool, first, second = Pool(), EchoStt(seconds=1.0), EchoStt()
        session = pool.session
        await session.attach(await first.open(), "bound")
        session.begin(1)
        session.feed(pcm(1))
        session.finish(1)
        session.discard(1)
        session.begin(2)
        session.feed(pcm(2))
        session.finish(2)
        await session.attach(await second.open(), "killed")
        assert await collect(session, Final, 1) == [Final(2, said(2, 320), 0.02)]
        await session.aclose()

    story(run())


def test_the_memory_of_a_call_is_bounded_and_what_goes_is_counted() -> None:
    async def run() -> None:
        pool, first, second = Pool(keep_bytes=1000), EchoStt(seconds=9.0), EchoStt()
        session = pool.session
        await session.attach(await first.open(), "bound")
        for number in (1, 2):
            session.begin(number)
            session.feed(pcm(number))
            session.finish(number)
        assert session.kept_bytes == 640 and pool.not_kept == 1
        async with asyncio.TaskGroup() as tasks:
            failed = tasks.create_task(collect(session, SttFailed | Final, 2))  # type: ignore[arg-type]
            first.kill()
            await asyncio.sleep(0)
            await session.attach(await second.open(), "killed")
        outcome = {r.utterance: type(r) for r in failed.result()}
        assert outcome == {1: SttFailed, 2: Final}
        await session.aclose()

    story(run())


def test_closing_ends_the_results_and_frees_the_engine() -> None:
    async def run() -> None:
        pool, engine = Pool(), EchoStt()
        await pool.session.attach(await engine.open(), "bound")
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(collect(pool.session, Partial, 99))
            pool.session.begin(1)
            pool.session.feed(pcm(7))
            await asyncio.sleep(0.1)
            await pool.session.aclose()
            await pool.session.aclose()
        assert len(reading.result()) == 1 and not engine.sessions
        assert not await pool.session.attach(await engine.open(), "late") and not engine.sessions

    story(run())
