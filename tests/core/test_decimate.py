"""48 kHz to 16 kHz."""

import numpy as np
import pytest

from tests.support.audio import noise, tone
from voice_rtc.core.audio import rms_dbfs
from voice_rtc.core.decimate import Decimator


def test_a_third_as_many_samples_come_out_at_once() -> None:
    decimator = Decimator()
    assert [len(decimator.feed(tone(0.02))) for _ in range(5)] == [320] * 5


@pytest.mark.parametrize("hz", [100, 1000, 3000, 6000])
def test_speech_passes(hz: float) -> None:
    out = Decimator().feed(tone(1.0, hz=hz))
    assert rms_dbfs(out[100:]) == pytest.approx(rms_dbfs(tone(1.0, hz=hz)), abs=0.5)


@pytest.mark.parametrize("hz", [9000, 12_000, 15_000, 20_000])
def test_what_would_alias_does_not(hz: float) -> None:
    out = Decimator().feed(tone(1.0, hz=hz))
    assert rms_dbfs(out[100:]) < rms_dbfs(tone(1.0, hz=hz)) - 50


@pytest.mark.parametrize("cuts", [[1], [7, 11, 2], [960], [333, 1]])
def test_the_cuts_do_not_matter(cuts: list[int]) -> None:
    whole = noise(0.1, seed=3)
    decimator, pieces, at, turn = Decimator(), [], 0, 0
    while at < len(whole):
        step = cuts[turn % len(cuts)]
        pieces.append(decimator.feed(whole[at : at + step]))
        at, turn = at + step, turn + 1
    # Sums of fractions come out differently by the last bit when they are grouped differently.
    np.testing.assert_allclose(np.concatenate(pieces), Decimator().feed(whole), atol=1)


def test_full_scale_does_not_wrap() -> None:
    square = np.where(np.arange(4800) // 24 % 2, 32767, -32768).astype(np.int16)
    out = Decimator().feed(square)
    assert out.max() == 32767 and out.min() == -32768
