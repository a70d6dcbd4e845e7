"""Many bots at once against a server of their own, each with a sentence of its own.

``python -m tools.load --callers 8 --turns 9`` starts ``voice-rtc serve --embedded`` with a grammar
of all sentences, lets every bot say its sentence again and again for about a minute, and checks
that each call was transcribed as its own words, that none failed, and that afterwards tasks,
threads, leases and memory are back where they were. ``--whisper`` has the small test Whisper listen
in place of pocketsphinx, and each bot say a code word.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tools.bot import call
from tools.bot_report import BotOptions, BotReport
from tools.page import write
from tools.sentences import code_words
from tools.server import Resources, own_server
from tools.wav import resample
from voice_rtc.core.audio import SEND_RATE_HZ, Samples
from voice_rtc.engines.tts.espeak import EspeakTts

SENTENCES = (
    "my name is peter and i live in london",
    "the red house stands by the river",
    "please call me back on monday morning",
    "what time is the train to paris",
    "i would like seven green apples",
    "the weather is cold and dark today",
    "tell me a story about a horse",
    "she plays the piano every evening",
    "my brother works in a large garden",
    "there are eleven people in the room",
    "the children walk to school at eight",
    "we drink coffee after dinner",
    "his father was a famous doctor",
    "turn off the light in the kitchen",
    "the answer to your question is no",
    "they bought a new car last summer",
)
MODEL = Path(__file__).resolve().parent.parent / "tests" / "data" / "whisper-synthetic-en"
_MOST_CALLERS = 23
_SETTLE_SECONDS = 3.0
_MOST_GROWTH_MB = 30.0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What came of it."""

    calls: list[tuple[str, BotReport]]
    """Sentence said and the bot's report."""
    before: Resources
    during_cpu_share: float
    """CPU time of the server and its workers over wall time; 1.0 is one core."""
    after: Resources

    def problems(self) -> list[str]:
        """What should not have been; empty when all is well."""
        found = []
        for sentence, report in self.calls:
            found += [f"{sentence}: {error}" for error in report.errors]
            found += [f"{sentence}: {c.name}: {c.detail}" for c in report.checks if not c.passed]
        for name in ("leases", "tasks", "threads", "processes"):
            before, after = getattr(self.before, name), getattr(self.after, name)
            if after > before:
                found.append(f"{name}: {before:g} before, {after:g} after")
        if self.after.memory_mb > self.before.memory_mb + _MOST_GROWTH_MB:
            found.append(f"memory grew by {self.after.memory_mb - self.before.memory_mb:.0f} MB")
        return found

    def responses(self) -> list[float]:
        """Response times of all turns in seconds."""
        turns = [turn for _, report in self.calls for turn in report.turns]
        return [t.response_seconds for t in turns if t.response_seconds is not None]


async def run_load(callers: int, turns: int, port: int, whisper: bool = False) -> LoadReport:
    """Call, wait, compare. The first round of calls only warms the server up."""
    if whisper:
        sentences = tuple(f"My code word is {pair}." for pair in code_words(callers))
        stt = {
            "VOICE_RTC_STT__ENGINE": "faster-whisper",
            "VOICE_RTC_STT__MODEL": str(MODEL),
            "VOICE_RTC_TTS__ENGINE": "espeak-ng",
            "VOICE_RTC_LLM__ENGINE": "eliza",
        }
    else:
        sentences = SENTENCES[:callers]
        stt = {"VOICE_RTC_STT__GRAMMAR": "|".join(sentences)}
    voices = {sentence: await spoken(sentence) for sentence in sentences}
    environment = {"VOICE_RTC_POOL__SLOTS": str(callers), **stt}
    async with own_server(port, environment, *([] if whisper else ["--embedded"])) as server:
        await _round(server.url, voices, turns=1)
        await asyncio.sleep(_SETTLE_SECONDS)
        before = await server.resources()
        started = asyncio.get_running_loop().time()
        calls = await _round(server.url, voices, turns)
        seconds = asyncio.get_running_loop().time() - started
        used = (await server.resources()).cpu_seconds - before.cpu_seconds
        await asyncio.sleep(_SETTLE_SECONDS)
        return LoadReport(calls, before, used / seconds, await server.resources())


async def _round(url: str, voices: dict[str, Samples], turns: int) -> list[tuple[str, BotReport]]:
    async with asyncio.TaskGroup() as tasks:
        running = []
        for sentence, speech in voices.items():
            options = BotOptions(
                speech, url, turns=turns, check_text=sentence, max_seconds=30.0 + 12.0 * turns
            )
            running.append((sentence, tasks.create_task(call(options))))
    return [(sentence, task.result()) for sentence, task in running]


async def spoken(text: str) -> Samples:
    """``text`` in espeak-ng's voice, 48 kHz."""
    engine = EspeakTts()
    await engine.start()
    try:
        chunks = [pcm.samples async for pcm in engine.synthesize(text)]
    finally:
        await engine.aclose()
    return resample(np.concatenate(chunks), engine.rate_hz, SEND_RATE_HZ)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--whisper", action="store_true", help="the small test model listens")
    parser.add_argument("--turns", type=int, default=9, help="about 7 s each (default 9)")
    parser.add_argument("--port", type=int, default=18_480)
    parser.add_argument("--write", action="store_true", help="write into docs/benchmarks.md")
    arguments = parser.parse_args()
    most = _MOST_CALLERS if arguments.whisper else len(SENTENCES)
    if not 1 <= arguments.callers <= most:
        parser.error(f"--callers: 1 to {most}")
    report = asyncio.run(
        run_load(arguments.callers, arguments.turns, arguments.port, arguments.whisper)
    )
    section = render(report, arguments.whisper)
    print(section)
    if arguments.write:
        write("load", section)
    for problem in report.problems():
        print(f"load: FAILED {problem}", file=sys.stderr)
    return 1 if report.problems() else 0


def render(report: LoadReport, whisper: bool) -> str:
    """The section of docs/benchmarks.md."""
    responses = report.responses()
    before, after = report.before, report.after
    understood = sum(turn.transcript != "" for _, call in report.calls for turn in call.turns)
    p50, p95, worst = np.percentile(responses, [50, 95, 100])
    problems = report.problems()
    return "\n".join(
        [
            f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs "
            f"({platform.machine()}), server and bots on the same machine, recogniser "
            f"{MODEL.name if whisper else 'pocketsphinx with a grammar'}, ELIZA, espeak-ng.",
            "",
            "| calls at once | turns | answered | response p50 | p95 | worst | server, workers |",
            "|---|---|---|---|---|---|---|",
            f"| {len(report.calls)} | {understood} | {len(responses)} | {1000 * p50:.0f} ms "
            f"| {1000 * p95:.0f} ms | {1000 * worst:.0f} ms "
            f"| {report.during_cpu_share:.2f} cores |",
            "",
            f"Every call's transcripts compared with its own words: {len(problems)} problems. "
            f"Before and after: memory {before.memory_mb:.0f} and {after.memory_mb:.0f} MB, "
            f"threads {before.threads} and {after.threads}, "
            f"tasks {before.tasks:g} and {after.tasks:g}, "
            f"leases {before.leases:g} and {after.leases:g}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
