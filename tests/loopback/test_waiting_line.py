"""The waiting line as callers have it: real peers, more of them than there are slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from signaling.main import Server
from tests.support.audio import resample, tone
from tests.support.caller import Caller, Json, Microphone, calling
from tests.support.echo_stt import EchoStt
from tests.support.server import serving
from tools.recognise import recognise
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Pcm, Samples, rms_dbfs
from voice_rtc.engines.base import EngineSet, VoiceOptions
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.pool.pool import SttPool

CALLS = "/v1/realtime/calls"
QUIET = {"slots": 1, "hold_message": ""}
UPDATED, GRANTED = "voice_rtc.queue.updated", "voice_rtc.queue.granted"
AUDIBLE_DBFS = -50.0


def pool_of(server: Server) -> SttPool:
    pool = server.registry.pool
    assert pool is not None
    return pool


@asynccontextmanager
async def full(
    chosen: EngineSet | None = None, seconds: float = 30.0, **settings: Any
) -> AsyncIterator[Server]:
    """A server whose slots are taken, by nobody who would need a connection."""
    pool = {**QUIET, **settings.pop("pool", {})}
    quick = EngineSet(ThresholdVad(), ScriptedStt(), EchoLlm(), ToneTts(seconds_per_character=0.01))
    async with asyncio.timeout(seconds), serving(chosen or quick, pool=pool, **settings) as server:
        async with AsyncExitStack() as holders:
            for number in range(pool["slots"]):
                await holders.enter_async_context(pool_of(server).lease(f"holder-{number}"))
            yield server


async def free_slot(server: Server, number: int = 0) -> None:
    pool = pool_of(server)
    await pool.return_instance(pool.lease_of(f"holder-{number}"))


async def place(caller: Caller, position: int, after: int = 0) -> Json:
    return await caller.event(UPDATED, lambda e: e["position"] == position, after)


async def token_of(caller: Caller) -> str:
    token: str = (await caller.event(UPDATED))["resume_token"]
    return token


async def ended(caller: Caller) -> str:
    reason: str = (await caller.event("voice_rtc.call.ended"))["reason"]
    await caller.channel_closed.wait()
    return reason


async def until(holds: Callable[[], bool]) -> None:
    """For what no client is told of."""
    while not holds():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.01)


async def frames(caller: Caller, count: int) -> Samples:
    """What the caller hears in ``count`` frames of 20 ms; while the server is silent, nothing."""
    first = len(caller.frames)
    for _ in range(count):
        await caller.microphone.frame()
    heard = [samples for _, samples in caller.frames[first:]]
    return np.concatenate(heard or [np.zeros(960, np.int16)])


async def sound(caller: Caller) -> None:
    """Wait until the caller hears something."""
    while rms_dbfs(await frames(caller, 2)) <= AUDIBLE_DBFS:
        continue


def audible(caller: Caller) -> int:
    """How many frames with sound the caller heard."""
    return sum(rms_dbfs(samples) > AUDIBLE_DBFS for _, samples in caller.frames)


async def silence(caller: Caller, count: int = 5) -> None:
    """Wait until the caller heard nothing for ``count`` frames of 20 ms."""
    while rms_dbfs(await frames(caller, count)) > AUDIBLE_DBFS:
        continue


async def offer() -> str:
    """An offer of somebody who never connects."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTrack(Microphone())
    connection.createDataChannel("oai-events")
    await connection.setLocalDescription(await connection.createOffer())
    sdp: str = connection.localDescription.sdp
    await connection.close()
    return sdp


def figures(server: Server) -> tuple[int, int, int]:
    """Leases, callers in line, calls."""
    statistics = pool_of(server).statistics()
    return statistics.leased, statistics.waiting, server.registry.active


def count(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"voice_rtc_{name}", labels) or 0.0


# ----------------------------------------------------------------------------------- the line


async def test_who_finds_no_slot_waits_and_then_has_a_call_like_any_other() -> None:
    stt = ScriptedStt(["Hello there."])
    chosen = EngineSet(ThresholdVad(), stt, EchoLlm(), ToneTts(seconds_per_character=0.02))
    async with (
        asyncio.timeout(30),
        serving(chosen, pool=QUIET) as server,
        calling(server.url) as first,
        calling(server.url) as second,
        calling(server.url) as third,
    ):
        told = await place(second, 1)
        assert 1 <= told["waiting"] <= 2 and told["eta_seconds"] > 0
        assert (await place(third, 2))["waiting"] == 2
        await third.say(tone(1.0))
        await frames(third, 25)  # the end of it has arrived
        assert [call.phase for call in server.registry.snapshot()] == ["live", "waiting", "waiting"]
        await second.hang_up()
        assert (await place(third, 1))["waiting"] == 1
        await first.hang_up()
        granted = await third.event(GRANTED)
        assert granted["waited_seconds"] > 0
        assert UPDATED not in first.types() and GRANTED not in second.types()
        await frames(third, 40)  # nothing is heard now of what was said while waiting
        assert not [kind for kind in third.types() if kind.startswith("input_audio_buffer.")]
        await third.say(tone(0.8))
        done = await third.event("response.done")
        content = done["response"]["output"][0]["content"][0]
        assert content["transcript"] == "You said: Hello there."
        assert third.types().count("input_audio_buffer.committed") == 1
        assert rms_dbfs(third.audio()) > AUDIBLE_DBFS


async def test_a_slot_goes_on_without_waiting_for_anything_to_come_round() -> None:
    """Nobody looks at the pool within the ten seconds that this test may take."""
    async with full(seconds=9.0, pool={"heartbeat_seconds": 10.0}) as server:
        async with calling(server.url) as caller:
            await place(caller, 1)
            await free_slot(server)
            await caller.event(GRANTED)
            lease = pool_of(server).lease_of(caller.call_id)
            await caller.hang_up()
            await server.registry.wait_empty()
            assert lease.waited_seconds > 0 and figures(server) == (0, 0, 0)


async def test_thirty_hasty_callers_on_two_slots_leave_nothing() -> None:
    pool = {**QUIET, "slots": 2, "resume_seconds": 0.3}
    media = {"connect_deadline_seconds": 3.0}
    async with asyncio.timeout(50), serving(pool=pool, media=media) as server:

        async def hasty(number: int) -> None:
            async with calling(server.url) as caller:
                if number % 3 == 0:
                    await caller.hang_up()
                elif number % 3 == 1:
                    caller.send(type="response.create")
                    await caller.hang_up()
                    await ended(caller)

        async def unconnected() -> None:
            async with aiohttp.ClientSession(server.url) as http:
                async with http.post(CALLS, json={"sdp": sdp}) as response:
                    assert response.status == 201
                    location = response.headers["Location"]
                async with http.delete(location) as response:
                    assert response.status == 200

        sdp = await offer()
        for start in range(0, 24, 6):
            async with asyncio.TaskGroup() as tasks:
                for number in range(start, start + 6):
                    tasks.create_task(hasty(number))
                tasks.create_task(unconnected())
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(unconnected())
        await server.registry.wait_empty()
        await until(lambda: figures(server) == (0, 0, 0))
        assert sum(count(server, "calls_total", outcome=o) for o in ("hangup", "peer_gone")) == 30
        assert count(server, "leases_active") == 0
        assert not [t for t in asyncio.all_tasks() if t.get_name().startswith("rtc_")]


# ---------------------------------------------------------------------------------- the voice


async def test_the_hold_message_is_spoken_again_and_again_until_the_slot_is_there() -> None:
    tts = ToneTts(seconds_per_character=0.1)
    chosen = EngineSet(ThresholdVad(), ScriptedStt(), EchoLlm(), tts)
    message = "You are number {position}."
    pool = {"hold_message": message, "hold_repeat_seconds": 0.1}
    async with full(chosen, pool=pool) as server, calling(server.url) as caller:
        while len(tts.spoken) < 2:
            await sound(caller)
        whole = audible(caller)
        await free_slot(server)
        await caller.event(GRANTED)
        await silence(caller, 10)
        assert whole > 50  # of 85: the second one waited for its end
        assert audible(caller) - whole < 0.7 * whole
        assert list(tts.spoken) == ["You are number 1."] * 2
        assert "response.created" not in caller.types()
        caller.send(type="response.create")
        await caller.event("output_audio_buffer.started")
        await sound(caller)


async def test_the_hold_message_can_be_understood() -> None:
    chosen = EngineSet(ThresholdVad(), ScriptedStt(), EchoLlm(), EspeakTts())
    message = "All lines are busy. You are number {position} in line."
    async with full(chosen, pool={"hold_message": message}) as server, calling(server.url) as it:
        await sound(it)
        await silence(it, 30)  # longer than between sentences
    heard = resample(it.audio(), SEND_RATE_HZ, LISTEN_RATE_HZ)
    found = recognise(heard, "All lines are busy. You are number one in line.")
    assert found.passed, found


@pytest.mark.parametrize("silent_by", ["setting", "client"])
async def test_who_wants_no_voice_hears_none(silent_by: str) -> None:
    tts = ToneTts()
    chosen = EngineSet(ThresholdVad(), ScriptedStt(), EchoLlm(), tts)
    session = {"type": "realtime", "output_modalities": ["text"]}
    by_client = silent_by == "client"
    pool = {"hold_message": "Please wait." if by_client else "", "hold_repeat_seconds": 0.1}
    async with full(chosen, pool=pool) as server:
        async with calling(server.url, session if by_client else None) as caller:
            await place(caller, 1)
            assert not np.any(await frames(caller, 25))
            assert not tts.spoken


AS_CONFIGURED = VoiceOptions()


class StuckTts(ToneTts):
    """Begins to speak and never goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.running = 0

    async def synthesize(
        self, text: str, options: VoiceOptions = AS_CONFIGURED
    ) -> AsyncGenerator[Pcm, None]:
        self.running += 1
        try:
            async for pcm in super().synthesize(text, options):
                yield pcm
                self.begun.set()
                await asyncio.Event().wait()
        finally:
            self.running -= 1


@pytest.mark.parametrize("how", ["hang_up", "vanish", "granted"])
async def test_a_hold_message_that_is_being_made_keeps_nobody(how: str) -> None:
    tts = StuckTts()
    chosen = EngineSet(ThresholdVad(), ScriptedStt(), EchoLlm(), tts)
    pool = {"hold_message": "Please wait.", "resume_seconds": 0.2}
    async with full(chosen, pool=pool) as server, calling(server.url) as caller:
        await tts.begun.wait()
        if how == "granted":
            await free_slot(server)
            await caller.event(GRANTED)
            await until(lambda: tts.running == 0)
        if how == "vanish":
            await caller.aclose()
        else:
            await caller.hang_up()
        await server.registry.wait_empty()
        await until(lambda: figures(server) == (0 if how == "granted" else 1, 0, 0))
        assert tts.running == 0


# ------------------------------------------------------------------------------ the data channel


async def test_settings_hold_once_live_and_commands_are_refused_before() -> None:
    llm = EchoLlm()
    chosen = EngineSet(ThresholdVad(), ScriptedStt(["Hello."]), llm, ToneTts())
    async with full(chosen) as server, calling(server.url) as caller:
        await place(caller, 1)
        session = {"type": "realtime", "instructions": "Be brief.", "output_modalities": ["text"]}
        caller.send(type="session.update", session=session)
        await caller.event("session.updated")
        content = [{"type": "input_text", "text": "The caller is in a hurry."}]
        item = {"type": "message", "role": "system", "content": content}
        caller.send(type="conversation.item.create", item=item)
        await caller.event("conversation.item.done")
        refused = ("response.create", "response.cancel", "output_audio_buffer.clear",
                   "input_audio_buffer.clear", "input_audio_buffer.commit")  # fmt: skip
        for kind in refused:
            caller.send(type=kind, event_id=kind)
            error = await caller.event("error", lambda e, k=kind: e["error"]["event_id"] == k)
            assert error["error"]["code"] == "call_not_ready"
        await free_slot(server)
        await caller.event(GRANTED)
        await caller.say(tone(0.8))
        done = await caller.event("response.done")
        assert done["response"]["output_modalities"] == ["text"]
        asked = [message.content for message in llm.asked[-1]]
        assert asked == ["Be brief.", "The caller is in a hurry.", "Hello."]


async def test_neither_limit_of_a_call_runs_while_it_waits() -> None:
    limits = {"idle_seconds": 0.5, "max_call_seconds": 0.7}
    async with full(session=limits) as server, calling(server.url) as caller:
        await place(caller, 1)
        await frames(caller, 60)  # 1.2 s
        assert "voice_rtc.call.ended" not in caller.types()
        await free_slot(server)
        await caller.event(GRANTED)
        assert await ended(caller) == "idle"


# --------------------------------------------------------------------------------- coming back


@asynccontextmanager
async def line(
    chosen: EngineSet | None = None, **settings: Any
) -> AsyncIterator[tuple[Server, Callable[..., Awaitable[Caller]]]]:
    """A full server and a way to join its line, for stories of who comes when."""
    async with full(chosen, **settings) as server, AsyncExitStack() as callers:

        async def join(**how: str) -> Caller:
            return await callers.enter_async_context(calling(server.url, **how))

        yield server, join


async def test_a_lost_connection_keeps_its_place_ahead_of_later_callers() -> None:
    async with line() as (server, join):
        lost, later = await join(), await join()
        await place(later, 2)
        token = await token_of(lost)
        await lost.aclose()
        await until(lambda: server.registry.active == 1)
        assert figures(server) == (1, 2, 1)
        back = await join(resume=token)
        told = await place(back, 1)
        assert told["waiting"] == 2 and told["resume_token"] != token
        assert count(server, "calls_total", outcome="peer_gone") == 1
        again = await join(resume=token)  # used already
        await place(again, 3)
        await free_slot(server)
        await back.event(GRANTED)
        await place(later, 1)
        assert GRANTED not in later.types()


async def test_a_place_is_kept_for_so_long_and_no_longer() -> None:
    async with line(pool={"resume_seconds": 0.3}) as (server, join):
        lost, later = await join(), await join()
        token = await token_of(lost)
        await place(later, 2)
        await lost.aclose()
        await place(later, 1)
        assert pool_of(server).group.book.statistics().forgotten == 1
        await place(await join(resume=token), 2)


async def test_an_absent_caller_is_passed_over() -> None:
    async with line() as (server, join):
        lost, later = await join(), await join()
        token = await token_of(lost)
        await place(later, 2)
        await lost.aclose()
        await until(lambda: server.registry.active == 1)
        await free_slot(server)
        await later.event(GRANTED)
        assert figures(server) == (1, 1, 1)
        back = await join(resume=token)
        await place(back, 1)
        await later.hang_up()
        await back.event(GRANTED)


async def test_a_token_that_nobody_has_is_lined_up_at_the_end() -> None:
    async with line() as (server, join):
        first = await join()
        token = await token_of(first)
        assert len(token) >= 16  # 96 random bits in base64
        made_up = await join(resume=token[:-1] + ("A" if token[-1] != "A" else "B"))
        await place(made_up, 2)
        assert "voice_rtc.call.ended" not in first.types()
        async with aiohttp.ClientSession(server.url) as http:
            async with http.post(f"{CALLS}?resume={'x' * 65}", json={"sdp": ""}) as response:
                assert response.status == 400
                assert (await response.json())["error"]["code"] == "bad_resume_token"


async def test_coming_back_while_the_old_connection_waits_ends_that_one() -> None:
    async with line() as (_, join):
        old, later = await join(), await join()
        await place(later, 2)
        new = await join(resume=await token_of(old))
        assert await ended(old) == "replaced"
        assert (await place(new, 1))["waiting"] == 2
        assert {e["position"] for _, e in later.events if e["type"] == UPDATED} == {2}


async def test_coming_back_to_a_slot_that_a_dead_connection_was_granted() -> None:
    """A connection that is lost without a word is noticed after half a minute."""
    async with line() as (server, join):
        old, later = await join(), await join()
        token = await token_of(old)
        await place(later, 2)
        await free_slot(server)
        await old.event(GRANTED)
        new = await join(resume=token)
        assert await ended(old) == "replaced"
        assert UPDATED not in new.types()
        await new.say(tone(0.8))
        await new.event("conversation.item.input_audio_transcription.completed")
        await place(later, 1)
        assert GRANTED not in later.types() and figures(server) == (1, 1, 2)
        await place(await join(resume=token), 2)


async def test_hanging_up_gives_the_place_up_at_once() -> None:
    async with line() as (server, join):
        first, lost, last = await join(), await join(), await join()
        await place(last, 3)
        token = await token_of(first)
        await first.hang_up()
        await place(last, 2)
        await lost.aclose()
        await until(lambda: server.registry.active == 1)
        assert figures(server) == (1, 2, 1)
        await lost.hang_up()  # a page that closes its connection before it says so
        await place(last, 1)
        await place(await join(resume=token), 2)
        async with lost.http.delete(f"{server.url}{CALLS}/{lost.call_id}") as response:
            assert response.status == 404


# -------------------------------------------------------------------------------------- limits


async def test_a_wait_in_vain_is_told_and_ends() -> None:
    async with full(pool={"max_wait_seconds": 0.5}) as server, calling(server.url) as caller:
        await place(caller, 1)
        assert await ended(caller) == "queue_timeout"
        await server.registry.wait_empty()
        assert figures(server) == (1, 0, 0)
        assert count(server, "leases_total", result="timed_out") == 1


async def refusal(server: Server, sdp: str) -> tuple[str, int]:
    """Error code and Retry-After of an offer that must be refused."""
    before = figures(server)
    async with aiohttp.ClientSession(server.url) as http:
        async with http.post(CALLS, json={"sdp": sdp}) as response:
            assert response.status == 503
            code = (await response.json())["error"]["code"]
            wait = int(response.headers["Retry-After"])
    assert figures(server) == before
    return code, wait


async def test_a_full_line_refuses_and_says_when_to_come_back() -> None:
    async with full(pool={"max_waiting": 1, "max_wait_seconds": 20.0}) as server:
        sdp = await offer()
        async with calling(server.url) as caller:
            told = await place(caller, 1)
            code, wait = await refusal(server, sdp)
            assert code == "pool_full"
            assert told["eta_seconds"] > 100 and 1 <= wait <= 20  # the first in line gives up then
            assert count(server, "offers_rejected_total", reason="pool_full") == 1
            await caller.hang_up()
            await server.registry.wait_empty()
        async with calling(server.url) as caller:
            await place(caller, 1)


async def test_without_a_line_nobody_waits() -> None:
    async with full(pool={"max_waiting": 0}) as server:
        code, wait = await refusal(server, await offer())
        assert code == "pool_full" and 100 < wait < 600  # half a conversation as it is expected
        await free_slot(server)
        async with calling(server.url) as caller:
            await caller.say(tone(0.8))
            await caller.event("response.done")
            assert UPDATED not in caller.types()


async def test_who_is_still_connecting_is_counted_until_the_deadline() -> None:
    media = {"connect_deadline_seconds": 0.7}
    async with full(pool={"max_waiting": 2}, media=media) as server:
        sdp = await offer()
        async with aiohttp.ClientSession(server.url) as http:
            for _ in range(2):
                async with http.post(CALLS, json={"sdp": sdp}) as response:
                    assert response.status == 201
        assert figures(server) == (1, 0, 2)
        assert (await refusal(server, sdp))[0] == "pool_full"
        await server.registry.wait_empty()
        assert figures(server) == (1, 0, 0)
        assert count(server, "calls_total", outcome="connect_timeout") == 2
        async with calling(server.url) as caller:
            await place(caller, 1)


async def test_a_place_that_comes_back_is_not_counted_twice() -> None:
    async with line(pool={"max_waiting": 2}) as (server, join):
        lost = await join()
        token = await token_of(lost)
        await lost.aclose()
        await until(lambda: server.registry.active == 0)
        sdp = await offer()
        async with aiohttp.ClientSession(server.url) as http:
            for query in (f"?resume={token}", "", f"?resume={token}"):
                async with http.post(f"{CALLS}{query}", json={"sdp": sdp}) as response:
                    assert response.status == 201
        assert figures(server) == (1, 1, 3)
        assert (await refusal(server, sdp))[0] == "pool_full"
        await place(await join(resume=token), 1)


async def test_draining_serves_the_line_until_its_deadline() -> None:
    async with line() as (server, join):
        served, unserved = await join(), await join()
        await place(unserved, 2)
        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(server.registry.drain(1.0))
            for caller in (served, unserved):
                going = await caller.event("voice_rtc.going_away")
                assert going["deadline_seconds"] == 1.0
            assert await refusal(server, await offer()) == ("draining", 30)
            await free_slot(server)
            await served.event(GRANTED)
            assert not drain.done()
            assert await ended(unserved) == "server_shutdown"
            assert await ended(served) == "server_shutdown"
        assert figures(server) == (0, 0, 0)


# -------------------------------------------------------------------- priority, modes of the pool


@pytest.mark.parametrize("head_starts", [{}, {"127.0.0.0/8": 5.0, "127.0.0.2/32": 600.0}])
async def test_a_head_start_goes_by_the_address_of_the_offer(head_starts: Json) -> None:
    async with line(pool={"head_starts": head_starts}) as (server, join):
        first = await join(address="127.0.0.1")
        await place(first, 1)
        second = await join(address="127.0.0.2")
        await place(second, 1 if head_starts else 2)
        await place(first, 2 if head_starts else 1)
        await free_slot(server)
        await (second if head_starts else first).event(GRANTED)


async def test_each_mode_has_a_line_of_its_own_with_true_positions() -> None:
    chosen = EngineSet(ThresholdVad(), EchoStt(), EchoLlm(), ToneTts(), (), EchoStt)
    rollout = {**QUIET, "spares": 0, "rollout_mode": "single", "rollout_share": 0.5}
    async with asyncio.timeout(30), serving(chosen, pool=rollout) as server, AsyncExitStack() as it:
        pool = pool_of(server)
        modes = {pool.mode_of(name): name for name in (f"holder-{n}" for n in range(50))}
        for name in modes.values():
            await it.enter_async_context(pool.lease(name))
        lines: dict[str, list[Caller]] = {"shared": [], "single": []}
        while len(lines["single"]) < 2 or not lines["shared"]:  # which one is left to chance
            caller = await it.enter_async_context(calling(server.url))
            mine = lines[pool.mode_of(caller.call_id)]
            mine.append(caller)
            assert (await place(caller, len(mine)))["waiting"] == len(mine)
        await pool.return_instance(pool.lease_of(modes["single"]))
        first, *others = lines["single"]
        await first.event(GRANTED)
        assert pool.lease_of(first.call_id).mode == "single"
        for position, caller in enumerate(others, start=1):
            await place(caller, position)
        for position, caller in enumerate(lines["shared"], start=1):
            told = {e["position"] for _, e in caller.events if e["type"] == UPDATED}
            assert told == {position} and GRANTED not in caller.types()
