"""The scripted caller: a `Bot` that performs scripts in one call and notes what it did when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from tools.bot_audio import HeardFrame
from tools.bot_caller import Bot, CallFailed
from tools.bot_events import Json, Received, pending_speech, response_id, response_is_over
from tools.bot_report import BotOptions
from tools.turn_eval.score import Act
from tools.turn_eval.scripts import Background, Script, Step
from tools.turn_eval.sounds import Echo, Loop, Voices
from tools.turn_eval.timeline import laid_out, placed
from voice_rtc.core.audio import FRAME_SECONDS, Samples, silence

_SETUP_SECONDS = 30.0
_LOOK_SECONDS = 0.05
_QUIET_SECONDS = 1.2
"""The agent is done when it was not audible for so long."""
_SETTLE_SECONDS = 2.5
"""After the caller's last sound, before it is believed that nothing will come of it."""
_ANSWER_SECONDS = 8.0
"""A reply that is not audible by then is not waited for."""
_LONGEST_REPLY_SECONDS = 40.0
_GOING_ON_SECONDS = 0.7
"""A reply that was audible so short a time ago is still being spoken."""


@dataclass(slots=True)
class CallLog:
    """One call as the caller had it."""

    number: int
    acts: list[Act] = field(default_factory=list)
    events: list[Received] = field(default_factory=list)
    frames: list[HeardFrame] = field(default_factory=list)
    sent: list[Samples] = field(default_factory=list)
    """Every frame of the microphone, when it was kept."""
    began: float = 0.0
    """Loop time of the first of them."""
    skipped: int = 0
    """Steps over a reply that was over, or never came."""
    errors: list[str] = field(default_factory=list)

    def recording(self) -> tuple[Samples, Samples]:
        """Caller and agent on one clock, 48 kHz; empty when nothing was kept."""
        if not self.sent:
            return silence(0), silence(0)
        caller = np.concatenate(self.sent)
        end = self.began + len(self.sent) * FRAME_SECONDS
        return caller, laid_out(placed(self.frames), self.began, end)[: len(caller)]


class ScriptedCaller(Bot):
    """A bot that takes scripts from ``next_script`` until it gives None."""

    def __init__(
        self,
        options: BotOptions,
        voices: Voices,
        next_script: Callable[[], Script | None],
        log: CallLog,
        keeps_sound: bool,
    ) -> None:
        super().__init__(options)
        self._voices = voices
        self._next_script = next_script
        self.log = log
        log.events, log.frames = self.events, self.ear.frames
        if keeps_sound:
            self._mouth.kept = log.sent

    async def converse(self) -> None:
        """All scripts. Raises CallFailed when the call ends before they are over."""
        self.log.began = self._mouth.started_at or 0.0
        await self._until_quiet()
        while (script := self._next_script()) is not None:
            await self._perform(script)

    async def _perform(self, script: Script) -> None:
        sounds = [
            await self._voices.said(step.pieces, script.voice, seed=len(self.log.acts))
            for step in script.steps
        ]
        self._mouth.under = await self._background(script.background)
        try:
            for step, samples in zip(script.steps, sounds, strict=True):
                if step.over_seconds is None:
                    await self._until_quiet()
                elif not await self._until_into_reply(step.over_seconds):
                    self.log.skipped += 1
                    continue
                await self._act(script, step, samples)
            if script.steps[-1].role != "noise":
                await self._until_into_reply(0.0)
            await self._until_quiet()
        finally:
            self._mouth.under = None

    async def _background(self, wanted: Background | None) -> Callable[[float], Samples] | None:
        if wanted is None:
            return None
        if wanted.kind == "echo":
            return Echo(self.ear.frames, wanted.level_db, wanted.delay_seconds)
        return Loop(await self._voices.babble(wanted.level_db))

    async def _act(self, script: Script, step: Step, samples: Samples) -> None:
        began = ended = self._loop.time()
        if len(samples):
            speaking = self._mouth.say(samples)
            await self._until("the caller to have spoken", lambda: speaking.sent)
            began = speaking.first_audible_at or began
            ended = (speaking.last_audible_at or began) + FRAME_SECONDS
        self.log.acts.append(Act(script.kind, step.role, step.text, step.keys, began, ended))

    # -------------------------------------------------------------------------------- waiting

    @property
    def _last_wanting(self) -> Act | None:
        """The newest act that wants an answer."""
        return next((act for act in reversed(self.log.acts) if act.role != "noise"), None)

    def _reply_audible(self) -> HeardFrame | None:
        """The first audible frame of the reply to the newest turn."""
        act = self._last_wanting
        if act is None:
            return None
        begun = [e.at for e in self.events if e.type == "response.created" and e.at > act.began]
        if not begun:
            return None
        after = max(act.ended, begun[0])
        late = _from(self.ear.frames, after)
        return next((frame for frame in late if frame.audible), None)

    async def _until_into_reply(self, seconds: float) -> bool:
        """Until it has been audible for so long; False when it never is, or is over before."""
        act = self._last_wanting
        due = (act.ended if act else self._loop.time()) + _ANSWER_SECONDS
        while (first := self._reply_audible()) is None:
            if self._loop.time() > due:
                return False
            await self._look()
        await asyncio.sleep(max(0.0, first.at + seconds - self._loop.time()))
        self._raise_if_over()
        return self._is_audible_within(_GOING_ON_SECONDS)

    def _is_audible_within(self, seconds: float) -> bool:
        since = self._loop.time() - seconds
        return any(frame.audible for frame in _from(self.ear.frames, since))

    async def _until_quiet(self) -> None:
        """Until the agent has nothing more to say; at most as long as its longest reply."""
        due = self._loop.time() + _LONGEST_REPLY_SECONDS
        while not self._is_quiet() and self._loop.time() < due:
            await self._look()
        self._raise_if_over()

    def _is_quiet(self) -> bool:
        ended = self.log.acts[-1].ended if self.log.acts else 0.0
        since = self._loop.time() - ended
        if since < _SETTLE_SECONDS or self._is_audible_within(_QUIET_SECONDS):
            return False
        new = [event for event in self.events if event.at >= ended - 1.0]
        created = [response_id(e) for e in new if e.type == "response.created"]
        if since < _ANSWER_SECONDS and pending_speech(new):
            return False
        return all(response_is_over(self.events, each) for each in created)

    async def _look(self) -> None:
        self._raise_if_over()
        await asyncio.sleep(_LOOK_SECONDS)

    def _raise_if_over(self) -> None:
        if self._call_ended():
            raise CallFailed(f"the call ended: {self._ending()}")

    # ---------------------------------------------------------------------------- the history

    def _on_message(self, message: str | bytes) -> None:
        super()._on_message(message)
        event = self.events[-1]
        if event.type == "conversation.item.truncated":
            # What the model is told of it from now on.
            item: Json = {"type": "conversation.item.retrieve", "item_id": event.body["item_id"]}
            self._send(item)


def _from(frames: Sequence[HeardFrame], since: float) -> Sequence[HeardFrame]:
    """The frames that came since then; they came in order."""
    place = len(frames)
    while place and frames[place - 1].at >= since:
        place -= 1
    return frames[place:]


async def place_call(caller: ScriptedCaller, most_seconds: float) -> None:
    """Dial, perform, hang up. What goes wrong is in the log's ``errors``."""
    log = caller.log
    timeout = aiohttp.ClientTimeout(total=_SETUP_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as tasks:
        try:
            async with asyncio.timeout(_SETUP_SECONDS):
                await caller.dial(http, tasks)
            async with asyncio.timeout(most_seconds):
                await caller.wait_in_line()
                await caller.converse()
        except TimeoutError:
            log.errors.append(
                f"call {log.number}: not over in time, waiting for {caller.waits_for}"
            )
        except CallFailed as error:
            log.errors.append(f"call {log.number}: {error}")
        finally:
            await caller.hang_up(http)
            await caller.close()
    log.errors += [f"call {log.number}: {error}" for error in caller.report.errors]
