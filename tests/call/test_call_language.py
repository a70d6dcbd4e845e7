"""A call has its own language and prompt, whichever engine transcribes it: real peers."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.support.audio import tone
from tests.support.caller import Caller, calling
from tests.support.echo_stt import EchoStt
from tests.support.server import serving
from voice_rtc.engines.base import EngineInfo, EngineSet, ReplicaSpec, SttOptions
from voice_rtc.engines.fakes import EchoLlm, ThresholdVad, ToneTts

GERMAN = {"model": "whisper-1", "language": "de", "prompt": "Zugspitze"}
SERVER = {"language": "fr", "prompt": "Montmartre"}


def wanted(transcription: Any) -> dict[str, Any]:
    return {"audio": {"input": {"transcription": transcription}}}


def shown(event: dict[str, Any]) -> Any:
    return event["session"]["audio"]["input"]["transcription"]


async def update(caller: Caller, transcription: Any) -> Any:
    """What the session says of it afterwards."""
    after = len(caller.events)
    caller.send(type="session.update", session=wanted(transcription))
    return shown(await caller.event("session.updated", after=after))


async def turn(caller: Caller) -> None:
    """The caller says something and is answered."""
    after = len(caller.events)
    await caller.say(tone(0.5))
    await caller.event("conversation.item.input_audio_transcription.completed", after=after)
    await caller.event("output_audio_buffer.stopped", after=after)


async def test_what_is_asked_for_reaches_the_engine_with_the_next_utterance() -> None:
    stt = EchoStt()
    chosen = EngineSet(ThresholdVad(), stt, EchoLlm(("Yes.",)), ToneTts())
    async with (
        asyncio.timeout(50),
        serving(chosen, stt=SERVER) as server,
        calling(server.url, session=wanted(GERMAN)) as caller,
    ):
        assert shown(await caller.event("session.created")) == GERMAN
        await turn(caller)
        assert await update(caller, {"prompt": ""}) == {**GERMAN, "prompt": ""}
        await turn(caller)
        assert await update(caller, {"language": None, "prompt": None}) == {**GERMAN, **SERVER}
        await turn(caller)
    asked = [SttOptions("de", "Zugspitze"), SttOptions("de", ""), SttOptions(None, "Montmartre")]
    assert stt.begun == asked


async def test_an_engine_that_takes_over_gets_what_the_call_asked_for() -> None:
    engines: list[EchoStt] = []

    def make(spec: ReplicaSpec) -> EchoStt:
        engines.append(EchoStt(spec))
        return engines[-1]

    first = make(ReplicaSpec())
    chosen = EngineSet(ThresholdVad(), first, EchoLlm(("Yes.",)), ToneTts(), (), make)
    async with (
        asyncio.timeout(50),
        serving(chosen, pool={"slots": 1, "probe_interval_seconds": 3600}) as server,
        calling(server.url) as caller,
    ):
        first.begun.clear()  # of the pool's own probe
        await update(caller, {"language": "de", "prompt": "Zugspitze"})
        await turn(caller)
        assert first.begun == [SttOptions("de", "Zugspitze")]
        first.kill()
        await turn(caller)
        heirs = [engine for engine in engines[1:] if SttOptions("de", "Zugspitze") in engine.begun]
        assert len(heirs) == 1 and not heirs[0].closed


@pytest.mark.parametrize("language", ["de", "german"])
async def test_a_language_that_is_not_there_is_an_error_and_nothing_changes(language: str) -> None:
    stt = EchoStt()
    stt.info = EngineInfo("stt", "pocketsphinx", "en-us", languages=("en",))
    chosen = EngineSet(ThresholdVad(), stt, EchoLlm(("Yes.",)), ToneTts())
    async with (
        asyncio.timeout(50),
        serving(chosen, stt={"prompt": "Montmartre"}) as server,
        calling(server.url) as caller,
    ):
        before = shown(await caller.event("session.created"))
        assert before == {"model": "pocketsphinx", "language": "en", "prompt": ""}
        caller.send(type="session.update", event_id="e1", session=wanted({"language": language}))
        error = (await caller.event("error"))["error"]
        assert error["code"] == "invalid_value" and error["event_id"] == "e1"
        assert error["param"] == "session.audio.input.transcription.language"
        assert await update(caller, {"prompt": "Zugspitze"}) == before
        await turn(caller)
    assert stt.begun == [SttOptions(None, "Montmartre")]  # as the server has it: it is ignored


async def test_an_offer_with_a_language_that_is_not_there_is_refused_with_its_place() -> None:
    stt = EchoStt()
    stt.info = EngineInfo("stt", "faster-whisper", "base.en", languages=("en",), takes_prompt=True)
    chosen = EngineSet(ThresholdVad(), stt, EchoLlm(), ToneTts())
    async with (
        asyncio.timeout(50),
        serving(chosen) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        offer = {"sdp": "v=0", "session": wanted({"language": "de"})}
        async with http.post("/v1/realtime/calls", json=offer) as response:
            assert response.status == 400
            error = (await response.json())["error"]
        assert error["code"] == "invalid_value" and "en only" in error["message"]
        assert error["param"] == "session.audio.input.transcription.language"
        assert server.registry.active == 0
