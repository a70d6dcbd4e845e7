"""Kokoro's worker processes as the calls see them: a scripted model in a real process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from tests.engines.fake_kokoro import LOUDNESS, SAMPLES_A_CHARACTER
from voice_rtc.engines.base import SupportsBusy, SupportsTtsWatcher, TtsTiming, VoiceOptions
from voice_rtc.engines.fakes import ToneTts
from voice_rtc.engines.tts import kokoro as kokoro_module
from voice_rtc.engines.tts.kokoro import KokoroSettings, KokoroTts
from voice_rtc.errors import EngineCrashed, EngineError, EngineUnavailable

PATIENCE_SECONDS = 20.0
FALLBACK_RATE_HZ = 22_050
Start = Callable[..., Awaitable[KokoroTts]]


class Watch:
    """Implements `TtsWatcher`."""

    def __init__(self) -> None:
        self.spoken: list[TtsTiming] = []
        self.cancelled = 0
        self.fallen: list[str] = []
        self.died: list[str] = []

    def tts_spoke(self, timing: TtsTiming) -> None:
        self.spoken.append(timing)

    def tts_cancelled(self) -> None:
        self.cancelled += 1

    def tts_fell_back(self, error: EngineError) -> None:
        self.fallen.append(error.code)

    def tts_worker_died(self, error: EngineError) -> None:
        self.died.append(error.code)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Looks like Kokoro's weights; the scripted model reads none of it."""
    (tmp_path / "voices").mkdir()
    for name in ("config.json", "kokoro-v1_0.pth", "voices/af_heart.pt", "voices/bm_lewis.pt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch, folder: Path) -> AsyncIterator[Start]:
    monkeypatch.setattr(kokoro_module, "_WORKER_MODULE", "tests.engines.fake_kokoro")
    monkeypatch.setattr(kokoro_module, "why_not_installed", str)
    made: list[KokoroTts] = []

    async def begin(*, fallback: bool = True, **settings: object) -> KokoroTts:
        values: dict[str, object] = {"model": str(folder), "patience_seconds": 60.0, **settings}
        engine = KokoroTts(
            KokoroSettings(**values),  # type: ignore[arg-type] # values come by name
            fallback=ToneTts(rate_hz=FALLBACK_RATE_HZ) if fallback else None,
        )
        made.append(engine)
        await engine.start()
        engine.watcher = Watch()
        return engine

    yield begin
    for engine in made:
        await engine.aclose()


def watch(engine: KokoroTts) -> Watch:
    assert isinstance(engine.watcher, Watch)
    return engine.watcher


async def say(
    engine: KokoroTts, text: str, reply: str = "", *, first: bool = True, voice: str = ""
) -> bool:
    """True: in Kokoro's own voice; False: in the fall-back's."""
    options = VoiceOptions(voice or None, reply=reply, first=first)
    async with asyncio.timeout(PATIENCE_SECONDS):
        chunks = [chunk async for chunk in engine.synthesize(text, options)]
    samples = np.concatenate([chunk.samples for chunk in chunks])
    assert [chunk.at for chunk in chunks] == list(range(0, len(samples), 2400))
    assert {chunk.rate_hz for chunk in chunks} == {24_000}
    ours = bool((samples == LOUDNESS).all())
    assert len(samples) == SAMPLES_A_CHARACTER * len(text) or not ours
    return ours


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


def spoken(folder: Path) -> list[str]:
    path = folder / "spoken"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition("|")[0] for line in lines]


def release(folder: Path) -> None:
    (folder / "released").touch()


async def test_it_speaks_from_another_process(start: Start) -> None:
    engine = await start()
    assert isinstance(engine, SupportsBusy)
    assert isinstance(engine, SupportsTtsWatcher)
    assert await say(engine, "hello")
    (pid,) = engine.worker_pids()
    assert pid != os.getpid()
    assert [timing.first for timing in watch(engine).spoken] == [True]
    assert "nowhere" in engine.info.model


async def test_a_long_text_is_made_piece_by_piece_as_it_is_read(start: Start, folder: Path) -> None:
    engine = await start()
    text = "A sentence that is there to be long. " * 12
    options = VoiceOptions(reply="r")
    async with aclosing(engine.synthesize(text, options)) as run:
        await anext(run)
        assert len(spoken(folder)) == 1
        rest = [chunk async for chunk in run]
    assert len(spoken(folder)) == 3
    assert rest[-1].at > 0
    assert [timing.first for timing in watch(engine).spoken] == [True, False, False]


async def test_blends_and_unknown_voices(start: Start, folder: Path) -> None:
    engine = await start()
    await say(engine, "one", voice="af_heart*3+bm_lewis")
    await say(engine, "two", voice="../../etc/passwd")
    await say(engine, "six", voice="bm_lewis")
    voices = [line.split("|")[1] for line in (folder / "spoken").read_text().splitlines()]
    assert voices == ["af_heart*0.75+bm_lewis*0.25", "af_heart", "bm_lewis"]


async def test_first_clauses_go_before_later_ones(start: Start, folder: Path) -> None:
    engine = await start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(say(engine, "hold", "a"))
        await until(lambda: spoken(folder) == ["hold"])
        tasks.create_task(say(engine, "later", "b", first=False))
        await asyncio.sleep(0)
        tasks.create_task(say(engine, "first", "c"))
        await asyncio.sleep(0)
        release(folder)
    assert spoken(folder) == ["hold", "hold", "first", "later"]


async def test_a_barge_in_takes_back_what_has_not_begun(start: Start, folder: Path) -> None:
    engine = await start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(say(engine, "hold", "a"))
        await until(lambda: spoken(folder) == ["hold"])
        cut = tasks.create_task(say(engine, "never", "b"))
        tasks.create_task(say(engine, "after", "c"))
        await asyncio.sleep(0)
        cut.cancel()
        await asyncio.sleep(0)
        release(folder)
    assert spoken(folder) == ["hold", "hold", "after"]
    assert watch(engine).cancelled == 1


async def test_when_the_worker_dies_the_reply_goes_on_in_the_fallback_voice(start: Start) -> None:
    engine = await start()
    assert await say(engine, "well", "a")
    assert not await say(engine, "die now", "a", first=False)
    assert watch(engine).fallen == [EngineCrashed.code]
    await until(lambda: watch(engine).died == [EngineCrashed.code])
    assert not await say(engine, "and so on", "a", first=False)
    await until(lambda: engine.ready_workers == 1)
    assert not await say(engine, "to the end", "a", first=False)
    assert await say(engine, "a new reply", "b")
    assert len(watch(engine).fallen) == 1


async def test_all_who_wait_when_it_dies_are_spoken_to(start: Start, folder: Path) -> None:
    engine = await start()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(say(engine, "hold", "a"))]
        await until(lambda: spoken(folder) == ["hold"])
        asked += [tasks.create_task(say(engine, "more", f"r{n}")) for n in range(5)]
        await asyncio.sleep(0)
        os.kill(engine.worker_pids()[0], signal.SIGKILL)
    assert not any(task.result() for task in asked)
    assert len(watch(engine).fallen) == 6


@pytest.mark.parametrize(
    ("text", "code"), [("crash", "engine_crashed"), ("oom", "out_of_gpu_memory")]
)
async def test_what_cannot_be_spoken_is_spoken_by_the_fallback(
    start: Start, text: str, code: str
) -> None:
    engine = await start()
    assert not await say(engine, text, "a")
    assert watch(engine).fallen == [code]
    assert await say(engine, "next", "b")
    assert watch(engine).died == []


async def test_a_gpu_that_is_lost_ends_the_process_and_it_comes_back(start: Start) -> None:
    engine = await start()
    before = engine.worker_pids()
    assert not await say(engine, "break", "a")
    await until(lambda: engine.worker_pids() != before)
    await until(lambda: engine.ready_workers == 1)
    assert await say(engine, "next", "b")


async def test_first_words_that_do_not_come_in_time(start: Start, folder: Path) -> None:
    engine = await start(deadline_seconds=0.1)
    assert not await say(engine, "hold", "a")
    assert watch(engine).fallen == ["engine_timeout"]
    release(folder)


async def test_past_the_bound_the_fallback_speaks(start: Start, folder: Path) -> None:
    engine = await start(waiting=1)
    async with asyncio.TaskGroup() as tasks:
        held = tasks.create_task(say(engine, "hold", "a"))
        await until(lambda: spoken(folder) == ["hold"])
        waits = tasks.create_task(say(engine, "waits", "b"))
        await asyncio.sleep(0)
        assert not await say(engine, "too many", "c")
        release(folder)
    assert held.result() and waits.result()


async def test_a_worker_that_hangs_is_replaced(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kokoro_module, "_HEARTBEAT_SECONDS", 0.02)
    engine = await start(hang_seconds=0.3)
    os.kill(engine.worker_pids()[0], signal.SIGSTOP)
    assert not await say(engine, "hello", "a")
    await until(lambda: watch(engine).died == [EngineCrashed.code])
    await until(lambda: engine.ready_workers == 1)
    assert await say(engine, "again", "b")


async def test_without_a_fallback_it_says_what_failed(start: Start) -> None:
    engine = await start(fallback=False)
    with pytest.raises(EngineCrashed):
        await say(engine, "crash", "a")
    assert await say(engine, "next", "a")


async def test_two_devices_share_the_work(start: Start, folder: Path) -> None:
    engine = await start(devices=(0, 1))
    assert len(set(engine.worker_pids())) == 2
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(say(engine, "hold", "a"))
        await until(lambda: spoken(folder) == ["hold"])
        assert await say(engine, "beside", "b")
        release(folder)


async def test_what_cannot_be_loaded_is_unavailable(start: Start, folder: Path) -> None:
    (folder / "broken").touch()
    with pytest.raises(EngineUnavailable, match="scripted"):
        await start()


async def test_after_its_end_it_is_unavailable(start: Start) -> None:
    engine = await start()
    await engine.aclose()
    with pytest.raises(EngineUnavailable):
        await anext(engine.synthesize("hello"))
    await engine.aclose()
