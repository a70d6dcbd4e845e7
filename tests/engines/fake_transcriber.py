"""A transcriber whose audio is its script, and a Whisper worker process that runs it.

``python -m tests.engines.fake_transcriber`` speaks the protocol of whisper_worker. The first sample
of a request says what happens to it; the text tells what was asked for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from voice_rtc.engines.stt import whisper_protocol as protocol
from voice_rtc.engines.stt.whisper_model import Transcript, WhisperRequest
from voice_rtc.engines.stt.whisper_worker import Loaded, main
from voice_rtc.errors import EngineCrashed, OutOfGpuMemory

WAITS, RELEASES, CRASHES, RUNS_OUT_OF_MEMORY, BREAKS, DOUBTFUL, ALWAYS_DOUBTFUL = range(901, 908)
"""First samples with a meaning; any other one is simply transcribed."""
FULL_SECONDS = 30.0


class FakeTranscriber:
    """Deterministic; see `BatchWhisper` for what it stands for."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.languages = frozenset({"de", "en", "jw"})
        self.placement = "nowhere"
        self.encoder = "ct2"
        self.most_batch = 1000
        """A larger batch runs out of memory."""
        self.broken = False
        """Whatever it is to transcribe from now on fails."""
        self.released = threading.Event()
        """Set by RELEASES: all that WAITS goes on."""
        self.calls: queue.Queue[tuple[list[str], float, int | None]] = queue.Queue()
        """Texts, window and beam of each batch, as it begins."""

    def transcribe(
        self,
        requests: Sequence[WhisperRequest],
        window_seconds: float,
        *,
        beam_size: int | None = None,
    ) -> list[Transcript]:
        """One batch by its script."""
        self.calls.put(([_text(request) for request in requests], window_seconds, beam_size))
        if self.broken:
            raise EngineCrashed("broken")
        if len(requests) > self.most_batch:
            raise OutOfGpuMemory("too many")
        return [self._one(request, window_seconds) for request in requests]

    def _one(self, request: WhisperRequest, window_seconds: float) -> Transcript:
        match _script(request):
            case script if script == WAITS:
                assert self.released.wait(30.0), "nobody released it"
            case script if script == RELEASES:
                self.released.set()
            case script if script == CRASHES:
                raise EngineCrashed("corrupt result")
            case script if script == RUNS_OUT_OF_MEMORY:
                raise OutOfGpuMemory("no room")
            case script if script == BREAKS:
                raise LookupError("a bug")
            case script if script == DOUBTFUL and window_seconds < FULL_SECONDS:
                return Transcript("doubtful", mean_logprob=-2.0)
            case script if script == ALWAYS_DOUBTFUL:
                sure = -2.0 if window_seconds < FULL_SECONDS else -3.0
                return Transcript(f"doubtful at {window_seconds:g}", mean_logprob=sure)
        return Transcript(_text(request))


def _script(request: WhisperRequest) -> int:
    return int(request.audio[0]) if len(request.audio) else 0


def _text(request: WhisperRequest) -> str:
    parts = [request.language or "", request.prompt, f"{_script(request)}x{len(request.audio)}"]
    return " ".join(part for part in parts if part)


def load(setup: protocol.Setup) -> Loaded:
    """For a worker process."""
    return Loaded(FakeTranscriber(setup.workers), on_gpu=False, utterance_seconds=0.1)


if __name__ == "__main__":
    main(load)
