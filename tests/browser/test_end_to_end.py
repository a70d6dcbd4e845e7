"""The call page against the real server and the engines that ship, with human speech."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.browser.conftest import OpenChromium
from tests.support.audio import SPEECH, read_wav, write_wav
from tests.support.server import serving
from voice_rtc.core.audio import SEND_RATE_HZ, Samples, silence
from voice_rtc.engines.base import EngineSet
from voice_rtc.engines.fakes import EchoLlm
from voice_rtc.engines.stt.pocketsphinx import PocketsphinxStt
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.engines.vad.silero import SileroVad

pytestmark = pytest.mark.browser

LONG_REPLY = (
    "Well, that is an interesting thing to say, and I have a lot to answer to it. I shall begin at "
    "the beginning, go on until I come to the end, and stop there, unless you interrupt me before."
)


def pause(seconds: float) -> Samples:
    return silence(round(seconds * SEND_RATE_HZ))


def clip(name: str) -> Samples:
    return read_wav(SPEECH / f"{name}.wav", SEND_RATE_HZ)


async def test_a_human_speaks_is_understood_hears_an_answer_and_interrupts_it(
    chromium_page: OpenChromium, tmp_path: Path
) -> None:
    microphone = tmp_path / "microphone.wav"
    story = [pause(1), clip("LJ001-0002"), pause(3.5), clip("LJ001-0013"), pause(8)]
    write_wav(microphone, np.concatenate(story), SEND_RATE_HZ)
    engines = EngineSet(
        SileroVad(), PocketsphinxStt(workers=1), EchoLlm((LONG_REPLY,)), EspeakTts()
    )
    async with asyncio.timeout(55), serving(engines) as server:
        opened = await chromium_page(fake_wav=microphone, loop_wav=False)
        await opened.open(server.url)
        await opened.call()
        await opened.page.wait_for_function(
            "voiceRtc.captions.some(c => c.side === 'agent' && c.interrupted)", timeout=20_000
        )
        assert await opened.state("remoteEnergy") > 0
        captions = await opened.state("captions")
        caller = next(c for c in captions if c["side"] == "caller")
        assert set(caller["text"].split()) & {"in", "being", "comparatively", "modern"}
        cut = next(c for c in captions if c["interrupted"])
        assert cut["heard"] and LONG_REPLY.startswith(cut["heard"])
        assert cut["unheard"].strip()
        await opened.page.wait_for_function(
            "voiceRtc.captions.filter(c => c.side === 'caller').length >= 2 "
            "&& voiceRtc.captions.filter(c => c.side === 'agent').length >= 2",
            timeout=15_000,
        )
        assert (await opened.state("metrics"))["response_ms"] > 0
        await opened.press("Hang up")
        await server.registry.wait_empty()
        sample = server.metrics.registry.get_sample_value
        assert sample("voice_rtc_calls_total", {"outcome": "hangup"}) == 1
        assert sample("voice_rtc_leases_active") == 0
        assert opened.problems == []


async def test_a_closed_page_frees_its_call(chromium_page: OpenChromium) -> None:
    async with asyncio.timeout(55), serving() as server:
        opened = await chromium_page()
        await opened.open(server.url)
        await opened.call()
        assert server.registry.active == 1
        await opened.page.close(run_before_unload=True)
        await server.registry.wait_empty()
        sample = server.metrics.registry.get_sample_value
        assert sample("voice_rtc_calls_total", {"outcome": "hangup"}) == 1
        assert sample("voice_rtc_leases_active") == 0
