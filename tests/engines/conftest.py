"""Engines that several tests use, closed after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from voice_rtc.engines.tts.espeak import EspeakTts


@pytest.fixture
async def espeak() -> AsyncIterator[EspeakTts]:
    """The real espeak-ng."""
    engine = EspeakTts()
    await engine.start()
    yield engine
    await engine.aclose()
