"""What the bot keeps of the frames it received."""

from __future__ import annotations

import numpy as np

from tests.tools.bot_stories import LOUD, frame
from tools.bot_audio import recorded
from voice_rtc.core.audio import silence


def test_a_recording_has_silence_where_frames_were_lost():
    sound = recorded([frame(0.0, 5, LOUD), frame(0.02, 7, LOUD)])
    assert np.array_equal(sound, np.concatenate([LOUD, silence(960), LOUD]))


def test_a_leap_of_the_clock_is_no_hole():
    sound = recorded([frame(0.0, 5, LOUD), frame(0.02, 5_000_000, LOUD)])
    assert len(sound) == 2 * 960
