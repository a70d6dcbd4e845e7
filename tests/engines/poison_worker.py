"""A Whisper worker process that dies of some audio, by SIGKILL or of a thread that breaks.

``python -m tests.engines.poison_worker`` speaks the protocol of whisper_worker.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from tests.engines.fake_transcriber import FakeTranscriber
from voice_rtc.engines.stt import whisper_protocol as protocol
from voice_rtc.engines.stt.whisper_model import Transcript, WhisperRequest
from voice_rtc.engines.stt.whisper_worker import Loaded, main

KILLS, BREAKS_THE_THREAD = 921, 922
"""First samples with a meaning."""
BATCH_SECONDS = 0.05


class Poisoned(FakeTranscriber):
    """Takes a while for each batch, so that others are in work at the same time."""

    def transcribe(
        self,
        requests: Sequence[WhisperRequest],
        window_seconds: float,
        *,
        beam_size: int | None = None,
    ) -> list[Transcript]:
        """One batch; may not return."""
        time.sleep(BATCH_SECONDS)
        first = {int(request.audio[0]) for request in requests if len(request.audio)}
        if KILLS in first:
            os.kill(os.getpid(), signal.SIGKILL)
        if BREAKS_THE_THREAD in first:
            return []  # more than a model can do wrong: the thread that counts on it ends
        return super().transcribe(requests, window_seconds, beam_size=beam_size)


def load(setup: protocol.Setup) -> Loaded:
    """For a worker process."""
    return Loaded(Poisoned(setup.workers), on_gpu=False, utterance_seconds=0.1)


if __name__ == "__main__":
    main(load)
