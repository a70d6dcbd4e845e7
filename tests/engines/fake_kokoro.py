"""A synthesiser whose text is its script, and a Kokoro worker process that runs it.

``python -m tests.engines.fake_kokoro`` speaks the protocol of kokoro_worker. What it speaks it
notes in the file ``spoken`` of the folder that it was told to load. A text of n characters is
n x 100 ms of a constant.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voice_rtc.core.audio import Samples
from voice_rtc.engines.pipes import run_worker
from voice_rtc.engines.tts import kokoro_protocol as protocol
from voice_rtc.engines.tts.kokoro_voices import Utterance
from voice_rtc.engines.tts.kokoro_worker import Loaded, serve
from voice_rtc.errors import EngineCrashed, EngineUnavailable, OutOfGpuMemory

SAMPLES_A_CHARACTER = 2400
LOUDNESS = 1234
"""Every sample of it."""
_PATIENCE_SECONDS = 30.0


class FakeSynthesizer:
    """Deterministic; see `KokoroModel` for what it stands for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def speak(self, utterances: Sequence[Utterance]) -> list[Samples]:
        """One batch by its script."""
        return [self._one(utterance) for utterance in utterances]

    def _one(self, utterance: Utterance) -> Samples:
        match utterance.text.partition(" ")[0]:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hold":
                self._note("hold")
                self._wait_for(self._folder / "released")
            case "crash":
                raise EngineCrashed("scripted")
            case "oom":
                raise OutOfGpuMemory("scripted")
            case "break":
                raise RuntimeError("CUDA error: scripted")
        self._note(f"{utterance.text}|{utterance.voice}|{utterance.speed:g}")
        return np.full(SAMPLES_A_CHARACTER * len(utterance.text), LOUDNESS, np.int16)

    def _note(self, line: str) -> None:
        with (self._folder / "spoken").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def _wait_for(self, path: Path) -> None:
        end = time.monotonic() + _PATIENCE_SECONDS
        while not path.exists():
            assert time.monotonic() < end, "nobody released it"
            time.sleep(0.005)


def load(setup: protocol.Setup) -> Loaded:
    """As quick as can be; a folder with a file ``broken`` cannot be loaded."""
    folder = Path(setup.folder)
    if (folder / "broken").exists():
        raise EngineUnavailable("Kokoro cannot be loaded: scripted")
    return Loaded(FakeSynthesizer(folder), on_gpu=False, placement="nowhere", clause_seconds=0.01)


if __name__ == "__main__":
    run_worker(lambda stdin, send: serve(stdin, send, load))
