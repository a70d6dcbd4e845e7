"""Scripted calls against one server in one setting: several at a time, scored as each one ends."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from tools.bot_events import Json, Received
from tools.bot_report import BotOptions
from tools.recognise import words
from tools.turn_eval.caller import CallLog, ScriptedCaller, place_call
from tools.turn_eval.remembered import is_error, words_heard
from tools.turn_eval.score import CallScore, cut_replies, judge
from tools.turn_eval.scripts import Script
from tools.turn_eval.sounds import Voices
from tools.turn_eval.timeline import Heard, laid_out, placed, replies
from tools.wav import resample
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples

_SCRIPTS_A_CALL = 8
_SCRIPT_SECONDS = 90.0
_STAGGER_SECONDS = 1.3
"""From one first call to the next: they do not speak in step."""
_MOST_WHOLE = 40
"""Replies heard to their end that the recogniser of `remembered` is measured with."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server and how it is called."""

    url: str
    session: Json
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A reply's sound, for the second recogniser."""

    use: str
    """``cut``, ``noise`` or ``whole``."""
    samples: Samples
    """16 kHz."""
    text: str
    """What the reply says, as far as the server told."""
    remembered: str | None = None
    """Cut ones: what the server's history holds; None when it did not tell."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What the second recogniser found in a clip."""

    use: str
    heard: int
    """Words from the first on."""
    words: int
    """In its text."""
    remembered: str | None

    @property
    def is_error(self) -> bool:
        """Are unheard words remembered?"""
        return self.remembered is not None and is_error(self.remembered, self.heard)


@dataclass(slots=True)
class Outcome:
    """What came of all calls of one setting."""

    name: str
    score: CallScore = field(default_factory=CallScore)
    recalls: list[Recall] = field(default_factory=list)
    excess_ms: list[float] = field(default_factory=list)
    """Each cut reply's ``audio_end_ms`` beyond what the caller had heard."""
    calls: int = 0
    skipped: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    logs: list[CallLog] = field(default_factory=list)
    """Of recorded calls."""


class Trial:
    """`run` once."""

    def __init__(
        self, name: str, target: Target, scripts: Sequence[Script], records: bool = False
    ) -> None:
        """``records``: keep every call's sound."""
        self.outcome = Outcome(name)
        self._target = target
        self._scripts = iter(scripts)
        self._records = records
        self._clips: list[Clip] = []
        self._due = 0.0
        self._over = False

    async def run(self, calls: int, seconds: float) -> Outcome:
        """``calls`` at a time; after ``seconds`` no script is begun any more."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._due = began + seconds
        voices = Voices()
        await voices.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(calls):
                    tasks.create_task(self._caller(number, voices))
        finally:
            await voices.aclose()
        self.outcome.seconds = loop.time() - began
        self.outcome.recalls = await _recalled(self._clips)
        return self.outcome

    async def _caller(self, number: int, voices: Voices) -> None:
        """Call after call, until there is no script left."""
        await asyncio.sleep(_STAGGER_SECONDS * number)
        while not self._over:
            self.outcome.calls += 1
            log = CallLog(self.outcome.calls)
            options = BotOptions(
                url=self._target.url,
                session=self._target.session,
                headers=self._target.headers,
                query=self._target.query,
            )
            some = islice(self._take(), _SCRIPTS_A_CALL)
            next_script = partial(next, some, None)
            caller = ScriptedCaller(options, voices, next_script, log, self._records)
            await place_call(caller, _SCRIPT_SECONDS * _SCRIPTS_A_CALL)
            self._note(log)
            if not log.acts:
                self._over = True  # it does not answer, or there is nothing left to say

    def _take(self) -> Iterator[Script]:
        while asyncio.get_running_loop().time() < self._due:
            script = next(self._scripts, None)
            if script is None:
                break
            yield script
        self._over = True

    def _note(self, log: CallLog) -> None:
        outcome = self.outcome
        heard = replies(log.events, placed(log.frames))
        score = judge(log.acts, log.events, heard)
        outcome.score.turns += score.turns
        outcome.score.interruptions += score.interruptions
        outcome.score.noises += score.noises
        outcome.skipped += log.skipped
        outcome.errors += log.errors
        self._clips += _clips(log, heard, score)
        outcome.excess_ms += [
            reply.cut_ms - 1000 * (reply.last - reply.first)
            for reply in cut_replies(heard)
            if reply.cut_ms is not None and reply.last is not None and reply.first is not None
        ]
        if self._records:
            outcome.logs.append(log)


def _clips(log: CallLog, heard: Sequence[Heard], score: CallScore) -> Iterator[Clip]:
    by_id = {reply.id: reply for reply in heard}
    for reply in cut_replies(heard):
        yield Clip("cut", _sound(reply), reply.text, _remembered(log.events, reply))
    noises = [each for each in score.noises if not each.moot]
    for noise in noises:
        if not noise.false:
            yield Clip("noise", _sound(by_id[noise.reply]), by_id[noise.reply].text)
    disturbed = {noise.reply for noise in noises}
    whole = [each for each in heard if each.status == "completed" and each.frames]
    for reply in whole[:2]:
        if reply.id not in disturbed:
            yield Clip("whole", _sound(reply), reply.text)


def _sound(reply: Heard) -> Samples:
    assert reply.first is not None and reply.last is not None  # only audible ones are asked for
    samples = laid_out(reply.frames, reply.first, reply.last)
    return resample(samples, SEND_RATE_HZ, LISTEN_RATE_HZ)


def _remembered(events: Sequence[Received], reply: Heard) -> str | None:
    """The item's text as the server gave it when asked after the cut."""
    for event in reversed(events):
        item = event.body.get("item", {})
        if event.type == "conversation.item.retrieved" and item.get("id") == reply.item:
            parts = item.get("content") or []
            return " ".join(str(part.get("transcript") or part.get("text") or "") for part in parts)
    return None


async def _recalled(clips: Sequence[Clip]) -> list[Recall]:
    """In a process of its own, when all calls are over."""
    context = multiprocessing.get_context("spawn")
    loop = asyncio.get_running_loop()
    whole = [clip for clip in clips if clip.use == "whole"][:_MOST_WHOLE]
    found = []
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for clip in [*whole, *(clip for clip in clips if clip.use != "whole")]:
            text = max(clip.text, clip.remembered or "", key=len)
            heard = await loop.run_in_executor(pool, words_heard, clip.samples, text)
            found.append(Recall(clip.use, heard, len(words(text)), clip.remembered))
    return found
