"""The call page of a caller who gets through by a TURN server only."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.browser.conftest import OpenChromium
from tests.loopback.test_relay import comes_from, through
from tests.support.audio import read_wav, write_wav
from tests.support.server import serving
from tests.support.turn import needs_coturn, relaying
from voice_rtc.core.audio import SEND_RATE_HZ, silence

pytestmark = [pytest.mark.browser, needs_coturn]


async def test_a_caller_behind_a_relay_is_heard_and_hears(
    chromium_page: OpenChromium, talking_wav: Path, tmp_path: Path
) -> None:
    microphone = tmp_path / "microphone.wav"
    pause = silence(3 * SEND_RATE_HZ)
    write_wav(
        microphone, np.concatenate([read_wav(talking_wav, SEND_RATE_HZ), pause]), SEND_RATE_HZ
    )
    async with (
        asyncio.timeout(55),
        relaying(tmp_path) as relay,
        serving(relay=through(relay)) as server,
    ):
        opened = await chromium_page(fake_wav=microphone)
        await opened.open(f"{server.url}/?relay")
        await opened.call()
        port = comes_from(server, await opened.state("callId"))
        assert relay.first_port <= port <= relay.last_port
        await opened.until(
            "voiceRtc.captions.some(c => c.side === 'caller' && c.phase === 'final')"
            " && voiceRtc.remoteEnergy > 0.001"
        )
        await opened.press("Hang up")
        await server.registry.wait_empty()
        assert opened.problems == []
