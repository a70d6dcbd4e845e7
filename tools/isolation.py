"""Does anybody ever hear, or get transcribed as, somebody else?

``python -m tools.isolation`` starts a server of its own with the small test Whisper, espeak-ng and
a language model service that repeats the caller's last words, and lets more callers talk to it than
it has slots. Each says a code word of its own that shares no word with another's, again and again,
interrupts replies, hangs up and calls anew on a slot that was another's, while the recogniser's
process is killed or stopped now and then. Every transcript, every reply's text and every reply's
sound, which a second recogniser transcribes, is searched for the code words of all other callers.
With both words of another's it has crossed; a single one is told as misheard, as the small test
model mishears now and then when the machine is busy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import numpy as np

from tools.bot_caller import Bot, CallFailed
from tools.bot_events import Json
from tools.bot_report import BotOptions, report_turns
from tools.llm_service import llm_service
from tools.load import spoken
from tools.page import write
from tools.recognise import words
from tools.second_ear import MODEL, SecondEar
from tools.sentences import code_words
from tools.server import OwnServer, Resources, own_server
from tools.wav import resample
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples

_BARGE_IN_SECONDS = 0.6
_TURN_SECONDS = 30.0
_SETTLE_SECONDS = 3.0
_SHORTEST_REPLY_SAMPLES = LISTEN_RATE_HZ // 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen."""

    callers: int
    slots: int
    turns: int
    """Of all callers together, at least."""
    turns_per_call: int
    fault_seconds: float
    """From one fault to the next; 0: none."""
    port: int


@dataclass(slots=True)
class Outcome:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    crossings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0
    before: Resources | None = None
    after: Resources | None = None
    replays: float = 0.0
    restarts: float = 0.0


class Words:
    """Whose words are in a text."""

    def __init__(self, code_words: Sequence[str]) -> None:
        self._pairs = [words(pair) for pair in code_words]
        self._owner = {word: number for number, pair in enumerate(self._pairs) for word in pair}

    def foreign(self, number: int, text: str) -> list[str]:
        """Words of other callers' code words."""
        return [word for word in words(text) if self._owner.get(word, number) != number]

    def crossed(self, number: int, text: str) -> bool:
        """Is the whole code word of another caller in it?"""
        found = set(words(text))
        others = (pair for at, pair in enumerate(self._pairs) if at != number)
        return any(set(pair) <= found for pair in others)

    def complete(self, number: int, text: str) -> bool:
        """Is the caller's own code word in it?"""
        return set(self._pairs[number]) <= set(words(text))


class Trial:
    """All callers, their server and what goes wrong with it."""

    def __init__(self, plan: Plan, server: OwnServer, ear: SecondEar) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self._server = server
        self._ear = ear
        self._code_words = code_words(plan.callers)
        self._words = Words(self._code_words)

    async def run(self) -> Outcome:
        """Until all turns were taken."""
        loop = asyncio.get_running_loop()
        speech = [await spoken(f"My code word is {pair}.") for pair in self._code_words]
        self.outcome.before = await self._server.resources()
        started = loop.time()
        async with asyncio.TaskGroup() as tasks:
            fault = tasks.create_task(self._break()) if self.plan.fault_seconds else None
            async with asyncio.TaskGroup() as callers:
                for number, samples in enumerate(speech):
                    callers.create_task(self._calls(number, samples))
                callers.create_task(self._tell())
            if fault is not None:
                fault.cancel()
        self.outcome.seconds = loop.time() - started
        await asyncio.sleep(_SETTLE_SECONDS)
        self.outcome.after = await self._server.resources()
        metrics = await self._server.metrics()
        self.outcome.replays = metrics.get("voice_rtc_stt_replays_total", 0.0)
        self.outcome.restarts = metrics.get("voice_rtc_engine_restarts_total", 0.0)
        return self.outcome

    @property
    def _over(self) -> bool:
        return self.outcome.counts["turns"] >= self.plan.turns

    async def _tell(self) -> None:
        while not self._over:
            await asyncio.sleep(15.0)
            print(dict(self.outcome.counts), f"{len(self.outcome.crossings)} crossings", flush=True)

    async def _calls(self, number: int, speech: Samples) -> None:
        """One caller: call after call."""
        await asyncio.sleep(0.25 * number)
        while not self._over:
            await self._call(number, speech)

    async def _call(self, number: int, speech: Samples) -> None:
        options = BotOptions(
            speech, self._server.url, self.plan.turns_per_call, _BARGE_IN_SECONDS,
            max_seconds=_TURN_SECONDS * self.plan.turns_per_call,
        )  # fmt: skip
        bot = Bot(options)
        counts = self.outcome.counts
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
            try:
                async with asyncio.timeout(_TURN_SECONDS):
                    await bot.dial(http, tasks)
                await bot.wait_in_line()
                async with asyncio.timeout(options.max_seconds):
                    await bot.converse()
                counts["calls"] += 1
            except TimeoutError:
                self.outcome.errors.append(f"caller {number}: waited for {bot.waits_for}")
            except CallFailed as error:
                self.outcome.errors.append(f"caller {number}: {error}")
            finally:
                await bot.hang_up(http)
                await bot.close()
        self.outcome.errors += [f"caller {number}: {error}" for error in bot.report.errors]
        for turn, sound in report_turns(bot.turns, bot.events, bot.ear.frames):
            counts["turns"] += 1
            counts["barge-ins"] += turn.reply_status == "cancelled"
            self._check(number, "transcript", turn.transcript)
            self._check(number, "reply text", turn.reply_text)
            samples = resample(sound, SEND_RATE_HZ, LISTEN_RATE_HZ)
            if len(samples) >= _SHORTEST_REPLY_SAMPLES:
                text = await self._ear.hear(samples)
                self._check(number, "reply sound", text)
                if turn.reply_status == "completed" and not self._words.complete(number, text):
                    counts["misheard"] += 1
                    print(f"isolation: {self._code_words[number]!r} heard as {text!r}", flush=True)

    def _check(self, number: int, what: str, text: str) -> None:
        counts = self.outcome.counts
        counts[f"{what}s"] += 1
        counts[f"{what}s with the whole code word"] += self._words.complete(number, text)
        own = self._code_words[number]
        if foreign := self._words.foreign(number, text):
            counts[f"{what}s with a foreign word"] += 1
            print(f"isolation: {what} of {own!r} has {foreign}: {text!r}", flush=True)
        if self._words.crossed(number, text):
            self.outcome.crossings.append(f"{what} of {own!r} is another's: {text!r}")
            print(f"isolation: {self.outcome.crossings[-1]}", flush=True)

    async def _break(self) -> None:
        dice = np.random.default_rng(3)
        while True:
            await asyncio.sleep(self.plan.fault_seconds * dice.uniform(0.5, 1.5))
            fault = signal.SIGKILL if dice.random() < 0.5 else signal.SIGSTOP
            for pid in await self._serving():
                os.kill(pid, fault)
                self.outcome.counts["faults"] += 1

    async def _serving(self) -> list[int]:
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{self._server.url}/pool.json") as response:
                status: dict[str, Any] = await response.json()
        well = [r for r in status["replicas"] if r["role"] == "serving" and r["state"] == "ready"]
        return [pid for replica in well for pid in replica["pids"][:1]]


def repeated(messages: Sequence[Json]) -> str:
    """What the language model service answers: the caller's newest words."""
    said = [str(each["content"]) for each in messages if each["role"] == "user"]
    return said[-1] if said else "Hello."


async def run(plan: Plan) -> Outcome:
    """The whole trial."""
    ear = SecondEar()
    await ear.start()
    try:
        async with llm_service(repeated) as llm:
            environment = {
                "OPENAI_BASE_URL": llm,
                "OPENAI_API_KEY": "none",
                "VOICE_RTC_STT__ENGINE": "faster-whisper",
                "VOICE_RTC_STT__MODEL": str(MODEL),
                "VOICE_RTC_TTS__ENGINE": "espeak-ng",
                "VOICE_RTC_POOL__SLOTS": str(plan.slots),
                "VOICE_RTC_POOL__HOLD_MESSAGE": "",
            }
            async with own_server(plan.port, environment, "--log-level", "error") as server:
                return await Trial(plan, server, ear).run()
    finally:
        await ear.aclose()


def render(plan: Plan, outcome: Outcome) -> str:
    """The section of docs/benchmarks.md."""
    counts = outcome.counts
    before, after = outcome.before, outcome.after
    assert before is not None and after is not None
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs ({platform.machine()}), "
        f"real peer connections, {plan.callers} callers on {plan.slots} slots, "
        f"{counts['calls']} calls in {outcome.seconds / 60:.0f} minutes, {counts['faults']} times "
        f"the serving engine was killed or stopped ({outcome.restarts:.0f} replacements, "
        f"{outcome.replays:.0f} utterances sent again).",
        "",
        "| searched | how many | with the whole own code word | with a single word of another's, "
        "misheard | with another's code word |",
        "|---|---|---|---|---|",
    ]
    for what in ("transcript", "reply text", "reply sound"):
        found = sum(crossing.startswith(f"{what} of") for crossing in outcome.crossings)
        whole = counts[f"{what}s with the whole code word"]
        misheard = counts[f"{what}s with a foreign word"] - found
        lines.append(f"| {what} | {counts[f'{what}s']} | {whole} | {misheard} | {found} |")
    lines += [
        "",
        f"{counts['turns']} turns, {counts['barge-ins']} of the replies interrupted, "
        f"{len(outcome.errors)} errors. Before and after: leases {before.leases:g} and "
        f"{after.leases:g}, tasks {before.tasks:g} and {after.tasks:g}, processes "
        f"{before.processes} and {after.processes}, memory {before.memory_mb:.0f} MB and "
        f"{after.memory_mb:.0f} MB.",
    ]
    return "\n".join(lines)


def main() -> int:
    """The command line; 1 when anything crossed or a lease is left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--callers", type=int, default=20)
    add("--slots", type=int, default=12)
    add("--turns", type=int, default=2000)
    add("--turns-per-call", type=int, default=6)
    add("--fault-seconds", type=float, default=20.0, help="between two faults; 0 for none")
    add("--port", type=int, default=18_481)
    add("--write", action="store_true", help="write into docs/benchmarks.md")
    given = parser.parse_args()
    plan = Plan(
        given.callers, given.slots, given.turns, given.turns_per_call, given.fault_seconds,
        given.port,
    )  # fmt: skip
    outcome = asyncio.run(run(plan))
    section = render(plan, outcome)
    print(section)
    for problem in outcome.errors:
        print(f"isolation: {problem}", file=sys.stderr)
    if given.write:
        write("isolation", section)
    assert outcome.after is not None
    return 1 if outcome.crossings or outcome.after.leases else 0


if __name__ == "__main__":
    sys.exit(main())
