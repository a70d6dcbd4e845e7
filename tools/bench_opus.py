"""Which Opus mode, complexity and bitrate the agent's voice is sent with: cost and quality.

``python -m tools.bench_opus`` encodes and decodes the same speech with each candidate. Cost is the
processor time of encoding 20 ms. Quality is told by two judges, with and without lost packets:

    distance    log-spectral distance to the original in dB, 100 Hz to 10 kHz, where the clips end,
                in bins so narrow that noise between a voice's harmonics counts, over the frames in
                which somebody speaks; 0 is the original
    WER         word errors of the small Whisper on decoded espeak-ng sentences

Lost packets are the same ones for each candidate. SILK's in-band FEC repairs them where there is
any, as a browser does; the rest is concealed by libopus.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import sys
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from tools.bench_stt import Clip
from tools.bench_windows import Row, measure, spoken
from tools.page import write
from voice_rtc import logs
from voice_rtc.config import LogSettings
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_FRAME_SAMPLES, SEND_RATE_HZ, Samples
from voice_rtc.media.opus import Application, Decoder, Encoder, version

_SPEECH = Path("tests/data/speech")
_WINDOW_SECONDS = 10.0
_LOWEST_HZ, _HIGHEST_HZ = 100, 10_000
_LOUD_DB = 40.0
"""Frames so far below the loudest are pauses."""
_LOSS = 0.05

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings of the encoder."""

    application: Application
    complexity: int
    bitrate: int

    def encoder(self) -> Encoder:
        return Encoder(
            SEND_RATE_HZ, application=self.application, complexity=self.complexity,
            bitrate=self.bitrate, fec=self.application == "voip",
            expected_loss_percent=5 if self.application == "voip" else 0,
        )  # fmt: skip


CANDIDATES = (
    Candidate("lowdelay", 0, 32_000),
    Candidate("lowdelay", 0, 40_000),
    Candidate("lowdelay", 0, 48_000),
    Candidate("lowdelay", 0, 56_000),
    Candidate("lowdelay", 0, 64_000),
    Candidate("lowdelay", 5, 32_000),
    Candidate("lowdelay", 5, 40_000),
    Candidate("lowdelay", 5, 48_000),
    Candidate("lowdelay", 10, 48_000),
    Candidate("audio", 5, 48_000),
    Candidate("voip", 0, 32_000),
    Candidate("voip", 5, 32_000),
    Candidate("voip", 5, 48_000),
)


@dataclass(slots=True)
class Result:
    """Of one candidate."""

    candidate: Candidate
    encode_us: float
    """Processor time of one frame of 20 ms, the median."""
    bits_per_second: float
    distance_db: float
    distance_lost_db: float
    errors: Row
    errors_lost: Row


def transmit(candidate: Candidate, samples: Samples, loss: float) -> tuple[Samples, list[bytes]]:
    """48 kHz in, 48 kHz out in time with it, and the packets."""
    encoder, decoder, dice = candidate.encoder(), Decoder(SEND_RATE_HZ), random.Random(7)
    late = encoder.lookahead
    whole = np.concatenate([samples, np.zeros(late + SEND_FRAME_SAMPLES, np.int16)])
    frames = whole[: len(whole) // SEND_FRAME_SAMPLES * SEND_FRAME_SAMPLES]
    packets = [encoder.encode(frame) for frame in frames.reshape(-1, SEND_FRAME_SAMPLES)]
    heard: list[Samples] = []
    hole = False
    for packet in packets:
        if dice.random() < loss:
            if hole:
                heard.append(decoder.conceal(SEND_FRAME_SAMPLES))
            hole = True
            continue
        if hole:
            heard.append(decoder.recover(packet, SEND_FRAME_SAMPLES))
        hole = False
        heard.append(decoder.decode(packet))
    if hole:
        heard.append(decoder.conceal(SEND_FRAME_SAMPLES))
    return np.concatenate(heard)[late : late + len(samples)], packets


def distance(original: Samples, other: Samples) -> float:
    """Log-spectral distance in dB; 0.0 for the same sound."""
    mine, theirs = _spectra_db(original), _spectra_db(other)
    loudness = mine.max(axis=1)
    spoken_frames = loudness > loudness.max() - _LOUD_DB
    return float(np.sqrt(((mine - theirs)[spoken_frames] ** 2).mean(axis=1)).mean())


def _spectra_db(samples: Samples) -> Float:
    """Shape (frames, bins of 25 Hz): 40 ms every 20 ms, above a floor of -70 dB."""
    size = 2 * SEND_FRAME_SAMPLES
    windows = np.lib.stride_tricks.sliding_window_view(samples, size)[::SEND_FRAME_SAMPLES]
    spectrum = np.fft.rfft(windows / 32768.0 * np.hanning(size), axis=1)
    heard = slice(_LOWEST_HZ * size // SEND_RATE_HZ, _HIGHEST_HZ * size // SEND_RATE_HZ)
    return np.asarray(10 * np.log10(np.abs(spectrum[:, heard]) ** 2 / size + 1e-7))


def _encode_us(candidate: Candidate, samples: Samples) -> float:
    frames = samples[: len(samples) // SEND_FRAME_SAMPLES * SEND_FRAME_SAMPLES]
    rows = [np.ascontiguousarray(row) for row in frames.reshape(-1, SEND_FRAME_SAMPLES)]
    found = []
    for _ in range(5):
        encoder = candidate.encoder()
        started = time.process_time()
        for row in rows:
            encoder.encode(row)
        found.append((time.process_time() - started) / len(rows) * 1e6)
    return float(np.median(found))


def human() -> list[Samples]:
    """The clips of human speech at 48 kHz."""
    clips = []
    for path in sorted(_SPEECH.glob("*.wav")):
        with wave.open(str(path), "rb") as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        clips.append(soxr.resample(samples, rate, SEND_RATE_HZ).astype(np.int16))
    if not clips:
        raise FileNotFoundError(f"no clips in {_SPEECH}; run this in the project's folder")
    return clips


async def judge(
    candidate: Candidate, clips: Sequence[Samples], sentences: Sequence[Clip], model: str
) -> Result:
    """Everything about one candidate."""
    bits = seconds = 0.0
    found: dict[float, list[float]] = {0.0: [], _LOSS: []}
    for loss, distances in found.items():
        for clip in clips:
            other, packets = transmit(candidate, clip, loss)
            distances.append(distance(clip, other))
            bits += 8 * sum(map(len, packets))
            seconds += len(packets) * 0.02
    rows = [
        await measure(_WINDOW_SECONDS, [_heard(candidate, each, loss) for each in sentences], model)
        for loss in found
    ]
    return Result(
        candidate, _encode_us(candidate, np.concatenate(list(clips))), bits / seconds,
        float(np.mean(found[0.0])), float(np.mean(found[_LOSS])), *rows,
    )  # fmt: skip


def _heard(candidate: Candidate, clip: Clip, loss: float) -> Clip:
    loud = soxr.resample(clip.samples, LISTEN_RATE_HZ, SEND_RATE_HZ).astype(np.int16)
    other, _packets = transmit(candidate, loud, loss)
    samples = soxr.resample(other, SEND_RATE_HZ, LISTEN_RATE_HZ).astype(np.int16)
    return Clip(samples, clip.text)


def render(results: Sequence[Result], clips: Sequence[Samples]) -> str:
    """The section of docs/benchmarks.md."""
    seconds = sum(map(len, clips)) / SEND_RATE_HZ
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs ({platform.machine()}), "
        f"{version()}: {len(clips)} clips of human speech ({seconds:.0f} s) for cost and distance, "
        f"{results[0].errors.sentences} espeak-ng sentences for the word errors. "
        f"`voip` has in-band FEC, `lowdelay` and `audio` at these rates have none.",
        "",
        "| mode | complexity | kbit/s set | kbit/s sent | µs per 20 ms | distance "
        f"| at {_LOSS:.0%} loss | WER | at {_LOSS:.0%} loss |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r.candidate.application} | {r.candidate.complexity} "
            f"| {r.candidate.bitrate / 1000:.0f} | {r.bits_per_second / 1000:.0f} "
            f"| {r.encode_us:.0f} | {r.distance_db:.1f} dB | {r.distance_lost_db:.1f} dB "
            f"| {r.errors.errors / r.errors.words:.1%} "
            f"| {r.errors_lost.errors / r.errors_lost.words:.1%} |"
            for r in results
        ),
    ]
    return "\n".join(lines)


async def _all(given: argparse.Namespace) -> str:
    clips, sentences = human(), await spoken(given.sentences)
    results = []
    for candidate in CANDIDATES:
        results.append(await judge(candidate, clips, sentences, given.model))
        print(results[-1], file=sys.stderr, flush=True)
    return render(results, clips)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tests/data/whisper-synthetic-en")
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--write", action="store_true", help="write into docs/benchmarks.md")
    given = parser.parse_args()
    logs.configure(LogSettings(level="error"))
    section = asyncio.run(_all(given))
    print(section)
    if given.write:
        write("bench_opus", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
