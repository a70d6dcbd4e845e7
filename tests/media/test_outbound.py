"""The stock way out: what the source is told."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.audio import tone
from tests.support.virtual_time import run_virtual
from voice_rtc.core.audio import Samples
from voice_rtc.media.outbound import OutboundTrack
from voice_rtc.metrics import Metrics


class Once:
    """A frame source with a single frame of sound, behind one of silence."""

    def __init__(self) -> None:
        self._frames: list[Samples | None] = [None, tone(0.02), None]
        self.told: list[int] = []
        """Frames that were left when it was told that sound was sent."""

    def next_frame(self) -> Samples | None:
        return self._frames.pop(0)

    def frame_sent(self) -> None:
        self.told.append(len(self._frames))

    def on_sound(self, wake: Callable[[], None]) -> None:
        """aiortc asks for every frame."""


def test_the_source_is_told_of_sound_that_aiortc_took_and_not_of_silence() -> None:
    async def run() -> None:
        source = Once()
        track = OutboundTrack(source, Metrics())
        frames = [await track.recv() for _ in range(3)]
        assert [bool(frame.to_ndarray().any()) for frame in frames] == [False, True, False]
        assert source.told == [1]
        track.stop()

    run_virtual(run())
