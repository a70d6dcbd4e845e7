"""Utterances that outlive their engines: what is sent again, what is lost, and who is to blame."""

from __future__ import annotations

import asyncio

import pytest

from tests.pool.test_session import Pool, collect, pcm, story
from tests.support.echo_stt import EchoStt, said
from voice_rtc.engines.base import Final, SttFailed


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
