"""Utterances that outlive their engines: what is sent again, what is lost, and who is to blame."""

from __future__ import annotations

import asyncio

import pytest

from tests.pool.test_session import Pool, collect, pcm, story
from tests.support.echo_stt import EchoSession, EchoStt, said
from voice_rtc.core.health import ALONE_AFTER, MOST_ENGINES
from voice_rtc.engines.base import Final, SttFailed, SttOptions
from voice_rtc.errors import EngineCrashed


@pytest.mark.parametrize("dropped", ["with its engine", "without an engine"])
def test_an_utterance_longer_than_what_is_kept_fails_when_it_is_finished(dropped: str) -> None:
    """Not after the call's deadline for transcripts, nor with the text of its end alone."""

    async def run() -> None:
        pool, first, second = Pool(keep_bytes=1000), EchoStt(), EchoStt()
        session = pool.session
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(5.0):
            results = tasks.create_task(collect(session, SttFailed | Final, 2))  # type: ignore[arg-type]
            await session.attach(await first.open(), "bound")
            await asyncio.sleep(0)
            session.begin(1)
            for piece in range(4):
                if piece == 1 and dropped == "without an engine":
                    first.kill()
                    await asyncio.sleep(0.1)
                session.feed(pcm(7))
            assert pool.not_kept == 1 and session.kept_bytes == 0
            first.stop()
            await session.attach(await second.open(), "killed")
            await asyncio.sleep(0.1)
            session.feed(pcm(7))
            session.finish(1)
            session.begin(2)
            session.feed(pcm(8))
            session.finish(2)
        failed, final = results.result()
        assert isinstance(failed, SttFailed) and failed.utterance == 1
        assert final == Final(2, said(8, 320), 0.02)
        assert not session.unfinished()
        await session.aclose()

    story(run())


def test_an_utterance_longer_than_what_is_kept_is_whole_while_its_engine_lives() -> None:
    async def run() -> None:
        pool, engine = Pool(keep_bytes=1000), EchoStt()
        session = pool.session
        await session.attach(await engine.open(), "bound")
        session.begin(1)
        for _ in range(10):
            session.feed(pcm(7))
        session.finish(1)
        assert await collect(session, Final, 1) == [Final(1, said(7, 3200), 0.2)]
        assert pool.not_kept == 1
        await session.aclose()

    story(run())


# ----------------------------------------------------------------------------------- blame


class Engine(EchoStt):
    """Notes what it was begun with; dies while it works on the utterance, or on others."""

    def __init__(self) -> None:
        super().__init__(seconds=1.0)
        self.alone: list[bool] = []

    async def attach_to(self, pool: Pool) -> EchoSession:
        session = await self.open()
        configure = session.configure

        def noting(options: SttOptions) -> None:
            self.alone.append(options.alone)
            configure(options)

        session.configure = noting  # type: ignore[method-assign]
        await pool.session.attach(session, "killed")
        return session

    def die(self, session: EchoSession, *, blameless: bool) -> None:
        self.failure = EngineCrashed("killed")
        for utterance in list(session._audio):
            del session._audio[utterance]
            session._results.put(SttFailed(utterance, self.failure, blameless))


def test_an_utterance_survives_engines_that_die_of_others() -> None:
    async def run() -> None:
        pool = Pool()
        async with asyncio.TaskGroup() as tasks:
            results = tasks.create_task(collect(pool.session, SttFailed | Final, 1))  # type: ignore[arg-type]
            pool.session.begin(1)
            pool.session.feed(pcm(7))
            for _ in range(3 * MOST_ENGINES):
                engine = Engine()
                session = await engine.attach_to(pool)
                await asyncio.sleep(0.01)
                engine.die(session, blameless=True)
                await asyncio.sleep(0.01)
                assert engine.alone == [False]
            pool.session.finish(1)
            await Engine().attach_to(pool)
        assert results.result() == [Final(1, said(7, 320), 0.02)]
        await pool.session.aclose()

    story(run())


async def costs(pool: Pool, utterance: int) -> tuple[list[bool], bool]:
    """Of an utterance that kills each engine: was it to be alone there, and did it fail?"""
    alone: list[bool] = []
    pool.session.begin(utterance)
    pool.session.feed(pcm(7))
    pool.session.finish(utterance)
    async with asyncio.TaskGroup() as tasks:
        results = tasks.create_task(collect(pool.session, SttFailed | Final, 1))  # type: ignore[arg-type]
        while not results.done():
            engine = Engine()
            session = await engine.attach_to(pool)
            await asyncio.sleep(0.01)
            if engine.sessions and not results.done():
                alone += engine.alone
                if not session._audio[pool.session._last_inner]:
                    await asyncio.sleep(2.0)  # nothing of it was sent: nobody dies
                    continue
                engine.die(session, blameless=False)
                await asyncio.sleep(0.01)
    return alone, isinstance(results.result()[0], SttFailed)


def test_one_that_kills_every_engine_is_left_alone_with_them_and_then_given_up() -> None:
    async def run() -> None:
        pool = Pool()
        alone, failed = await costs(pool, 1)
        assert alone == [False] * ALONE_AFTER + [True] * (MOST_ENGINES - ALONE_AFTER)
        assert failed
        await pool.session.aclose()

    story(run())


def test_a_call_that_kills_engines_again_and_again_is_kept_from_them() -> None:
    """It costs one more, then none for half a minute, one more, none for a minute ..."""

    async def run() -> None:
        pool = Pool()
        for utterance in range(1, 40):
            _, failed = await costs(pool, utterance)
            assert failed
            await asyncio.sleep(5.0)
        assert MOST_ENGINES + 2 <= len(pool.troubles) <= MOST_ENGINES + 5, "in three minutes"
        await pool.session.aclose()

    story(run())


def test_a_transcript_clears_a_call() -> None:
    async def run() -> None:
        pool = Pool()
        await costs(pool, 1)
        engine = Engine()
        await engine.attach_to(pool)
        for utterance in (2, 3):
            pool.session.begin(utterance)
            pool.session.feed(pcm(5))
            pool.session.finish(utterance)
            assert await collect(pool.session, Final, 1) == [Final(utterance, said(5, 320), 0.02)]
        assert engine.alone == [True, False]
        await pool.session.aclose()

    story(run())
