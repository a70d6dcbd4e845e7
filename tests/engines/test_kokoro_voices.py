"""Voices by name and their blends."""

from __future__ import annotations

import pytest

from voice_rtc.engines.tts.kokoro_voices import VoiceBlend, parse_voice

KNOWN = frozenset({"af_heart", "am_adam", "bf_emma", "bm_lewis", "af_sky", "zf_xiaobei"})


def test_one_voice() -> None:
    found = parse_voice("af_heart", KNOWN)
    assert found == VoiceBlend((("af_heart", 1.0),))
    assert str(found) == "af_heart"
    assert not found.british


def test_a_blend_has_shares_that_sum_to_one() -> None:
    found = parse_voice("bf_emma*3 + af_heart*1", KNOWN)
    assert found == VoiceBlend((("af_heart", 0.25), ("bf_emma", 0.75)))
    assert found.british
    assert parse_voice(str(found), KNOWN) == found


@pytest.mark.parametrize(
    "text",
    ["af_heart*0.6+am_adam*0.4", "am_adam*0.4+af_heart*0.6", "af_heart*3+am_adam*2",
     "af_heart*0.3+am_adam*0.4+af_heart*0.3"],
)  # fmt: skip
def test_equal_blends_are_equal(text: str) -> None:
    found = parse_voice(text, KNOWN)
    assert found is not None
    assert dict(found.parts) == pytest.approx({"af_heart": 0.6, "am_adam": 0.4})
    assert [name for name, _ in found.parts] == ["af_heart", "am_adam"]


def test_without_weights_all_count_the_same() -> None:
    found = parse_voice("af_heart+am_adam", KNOWN)
    assert found == VoiceBlend((("af_heart", 0.5), ("am_adam", 0.5)))


@pytest.mark.parametrize(
    "text",
    ["", "+", "af_heart+", "nobody", "af_nobody", "af_heart*-1", "af_heart*x", "af_heart*0",
     "../../etc/passwd", "af_heart*1e9", "af_heart**2", "zf_xiaobei", "AF_HEART",
     "af_heart+am_adam+bf_emma+bm_lewis+af_sky", "af_heart*0.5+" * 40 + "af_heart"],
)  # fmt: skip
def test_what_is_not_understood_is_none(text: str) -> None:
    assert parse_voice(text, KNOWN) is None
