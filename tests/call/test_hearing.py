"""Turns that are reopened: one item and one text, in whatever order the transcripts come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.virtual_time import run_virtual
from voice_rtc.call import events
from voice_rtc.call.context import CallContext, CallerTurn, CallPorts
from voice_rtc.call.hearing import Hearing
from voice_rtc.config import Settings
from voice_rtc.core.audio import Pcm
from voice_rtc.core.latency import RecentTurns
from voice_rtc.core.turns import PartialHeard
from voice_rtc.engines.base import EngineSet, Final, Partial, SttFailed, SttOptions, SttResult
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.stt.results import ResultStream
from voice_rtc.errors import EngineCrashed
from voice_rtc.metrics import Metrics
from voice_rtc.pool.lease import Lease


class Ear:
    """An STT session that understands what the test says, when it says so."""

    def __init__(self) -> None:
        self.stream = ResultStream()

    def begin(self, utterance: int) -> None:
        """It needs no sound."""

    def feed(self, pcm: Pcm) -> None:
        """It needs no sound."""

    def finish(self, utterance: int) -> None:
        """The test says when."""

    def discard(self, utterance: int) -> None:
        self.stream.discard(utterance)

    def configure(self, options: SttOptions) -> None:
        """It understands every language."""

    async def results(self) -> AsyncIterator[SttResult]:
        async for result in self.stream:
            yield result


class Room:
    """A `Hearing`, its ear, and all that it tells."""

    def __init__(self) -> None:
        engines = EngineSet(ThresholdVad(), ScriptedStt(), EchoLlm(), ToneTts())
        no_pool: Any = None  # the lease is there already
        self.metrics = Metrics()
        self.context = CallContext(
            "rtc_1",
            CallPorts(Settings(engines="fake"), engines, no_pool, self.metrics, RecentTurns(10)),
        )
        self.context.sink = self
        self.context.end = lambda _reason: None
        self.ear = Ear()
        session: Any = self.ear
        self.hearing = Hearing(
            self.context, ThresholdVad().open(), Lease(1, "rtc_1", session, granted_at=0.0)
        )
        self.told: list[events.CallEvent] = []
        self.heard: list[str] = []

    def emit(self, event: events.CallEvent) -> None:
        self.told.append(event)

    def take(self, partial: PartialHeard) -> None:
        self.heard.append(partial.text)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    def texts(self) -> list[str | None]:
        return [item.text for item in self.context.conversation.items()]

    async def understand(self, *results: SttResult) -> None:
        """Time passes, and these come."""
        await asyncio.sleep(0.1)
        for result in results:
            self.ear.stream.put(result)
        await asyncio.sleep(0.01)

    def speak(self, utterance: int, continues: int | None = None) -> None:
        self.hearing.open(utterance, continues)
        self.hearing.announce(utterance)

    def commit(self, utterance: int) -> CallerTurn:
        return self.hearing.commit(utterance, "endpointing")


@asynccontextmanager
async def reopened() -> AsyncIterator[Room]:
    """Utterance 1 is committed, and utterance 2, which continues it, is open."""
    room = Room()
    async with asyncio.TaskGroup() as tasks:
        room.context.tasks = tasks
        tasks.create_task(room.hearing.read_transcripts(room.take))
        room.speak(1)
        await room.understand(Partial(1, "I would like"))
        room.commit(1)
        await asyncio.sleep(0.1)
        room.speak(2, continues=1)
        yield room
        room.ear.stream.close()


def test_both_parts_are_one_item_and_one_text():
    async def story() -> None:
        async with reopened() as room:
            await room.understand(Final(1, "I would like", 1.0), Partial(2, "a"))
            again = room.commit(2)
            assert not again.settled.is_set()
            await room.understand(Final(2, "a pizza.", 0.5))
            assert again.settled.is_set() and again.text == "I would like a pizza."
            assert room.texts() == ["I would like a pizza."]
            assert room.heard == ["I would like", "I would like a"]
            committed = room.of(events.TurnCommitted)
            assert [event.reopened for event in committed] == [False, True]
            assert {event.item_id for event in committed} == {again.item_id}
            assert {event.item_id for event in room.of(events.CallerSpeechStarted)} == {
                again.item_id
            }
            transcripts = room.of(events.CallerTranscript)
            assert [(t.text, t.earlier, t.audio_seconds) for t in transcripts] == [
                ("I would like", "", 1.0), ("I would like a pizza.", "I would like", 0.5),
            ]  # fmt: skip
            value = room.metrics.registry.get_sample_value
            assert value("voice_rtc_turns_reopened_total") == 1
            assert value("voice_rtc_turns_total", {"end": "endpointing"}) == 1
            assert room.hearing.committed == 1 and not room.hearing.unsettled()

    run_virtual(story())


def test_a_first_part_that_is_understood_last_still_comes_first():
    async def story() -> None:
        async with reopened() as room:
            await room.understand(Partial(2, "a pizza"))
            assert room.heard[-1] == "I would like a pizza"
            again = room.commit(2)
            await room.understand(Final(2, "a pizza.", 0.5))
            assert not again.settled.is_set() and len(room.hearing.unsettled()) == 2
            await room.understand(Final(1, "I would love", 1.0))
            assert again.text == "I would love a pizza." == room.texts()[0]

    run_virtual(story())


def test_a_noise_adds_nothing():
    async def story() -> None:
        async with reopened() as room:
            room.commit(2)
            await room.understand(Final(1, "I would like", 1.0), Final(2, "", 0.2))
            assert room.texts() == ["I would like"]
            assert not room.of(events.CallerTranscriptFailed)

    run_virtual(story())


def test_three_parts_are_one_text():
    async def story() -> None:
        async with reopened() as room:
            room.commit(2)
            room.speak(3, continues=2)
            await room.understand(Partial(3, "please"))
            assert room.heard[-1] == "I would like please"  # of the second nothing is known yet
            last = room.commit(3)
            await room.understand(Final(3, "please.", 0.5), Final(2, "a pizza,", 0.5))
            await room.understand(Final(1, "I would like", 1.0))
            assert last.text == "I would like a pizza, please." and room.texts() == [last.text]

    run_virtual(story())


def test_a_second_part_that_fails_does_not_take_the_first_with_it():
    async def story() -> None:
        async with reopened() as room:
            again = room.commit(2)
            await room.understand(
                Final(1, "I would like", 1.0), SttFailed(2, EngineCrashed("the ear died"))
            )
            assert again.failure is not None and again.settled.is_set()
            assert room.texts() == ["I would like"] and not room.of(events.CallerTranscriptFailed)

    run_virtual(story())


def test_a_first_part_that_fails_leaves_its_partial():
    async def story() -> None:
        async with reopened() as room:
            room.commit(2)
            failed = SttFailed(1, EngineCrashed("the ear died"))
            await room.understand(failed, Final(2, "a pizza.", 0.5))
            assert room.texts() == ["I would like a pizza."]

    run_virtual(story())


def test_a_first_part_that_never_comes_is_waited_for_no_longer_than_alone():
    async def story() -> None:
        async with reopened() as room:
            again = room.commit(2)
            await room.understand(Final(2, "a pizza.", 0.5))
            await again.settled.wait()
            assert 10.0 < room.context.now() < 10.5  # turns.final_deadline_seconds
            assert room.texts() == ["I would like a pizza."]

    run_virtual(story())


def test_what_was_said_since_is_kept_when_the_client_deletes_what_was_said_before():
    async def story() -> None:
        async with reopened() as room:
            await room.understand(Final(1, "I would like", 1.0))
            room.context.conversation.delete(room.of(events.TurnCommitted)[0].item_id)
            room.commit(2)
            await room.understand(Final(2, "a pizza.", 0.5))
            assert room.texts() == ["a pizza."]
            assert [event.reopened for event in room.of(events.TurnCommitted)] == [False, False]

    run_virtual(story())
