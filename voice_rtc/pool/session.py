"""One call's speech recognition, whatever becomes of the engine behind it.

A call feeds its audio here. The session keeps the audio of every utterance whose Final has not
come, so that another replica can take over under a running call: the utterance is sent again from
its first sample, and no word is lost. Results are fenced: each utterance gets a new number with
each engine that it is sent to, and what comes under an older number is not delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import structlog

from voice_rtc.core.audio import Pcm
from voice_rtc.core.health import ALONE_AFTER, MOST_ENGINES, Suspicion
from voice_rtc.engines.base import (
    Final,
    Partial,
    SttFailed,
    SttOptions,
    SttResult,
    SttSession,
)
from voice_rtc.errors import EngineCrashed, EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_log = structlog.get_logger("voice_rtc.pool")

_NOT_KEPT = "the audio was not kept"


@dataclass(slots=True, eq=False)
class _Utterance:
    number: int
    """As the call knows it."""
    options: SttOptions
    """Of the moment it was begun."""
    runs: list[Pcm] = field(default_factory=list)
    size: int = 0
    """Bytes of audio kept."""
    kept: bool = True
    """False: too much was waiting, the audio is not kept any more."""
    lost: str = ""
    """Why it fails when it is finished: not all its audio can be sent to an engine."""
    finished_at: float | None = None
    attempts: int = 0
    blamed: int = 0
    """Engines that failed while they had it in work."""
    most_blamed: int = MOST_ENGINES
    inner: int = 0
    """As the present engine's session knows it; 0: it is with no engine."""


class LeasedSession:
    """An `SttSession` over whichever replica the pool has attached.

    ``on_trouble`` is called with the error when the engine failed an utterance that can be sent
    again, or when its session ended: the pool then calls `attach`. Until it does, audio is kept
    and nothing is lost. ``on_final`` gets the seconds from `finish` to each Final.
    """

    def __init__(
        self,
        options: SttOptions,
        *,
        keep_bytes: int,
        replays: bool,
        on_trouble: Callable[[EngineError, object], None],
        on_final: Callable[[float], None],
        on_not_kept: Callable[[], object],
        on_replay: Callable[[str], object],
    ) -> None:
        self._options = options
        self._keep_bytes = keep_bytes if replays else 0
        self._on_trouble = on_trouble
        self._on_final = on_final
        self._on_not_kept = on_not_kept
        self._on_replay = on_replay
        self._replays = replays
        self._utterances: dict[int, _Utterance] = {}
        self._by_inner: dict[int, _Utterance] = {}
        self._newest: _Utterance | None = None
        self._inner: SttSession | None = None
        self._owner: object = None
        self._last_inner = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._suspicion = Suspicion()
        self._failed: list[SttFailed] = []
        """Given up without an engine; delivered by `results`."""
        self.utterances = 0
        """Begun so far."""
        self.replays = 0
        """Utterances sent to another engine so far."""

    @property
    def attached(self) -> bool:
        """Has it an engine?"""
        return self._inner is not None

    @property
    def kept_bytes(self) -> int:
        """Audio kept for the case that the engine dies."""
        return sum(each.size for each in self._utterances.values())

    def waited_seconds(self, now: float) -> float:
        """How long the oldest Final that was asked for has been waited for; 0.0 for none."""
        since = [u.finished_at for u in self._utterances.values() if u.finished_at is not None]
        return now - min(since) if since else 0.0

    # ------------------------------------------------------------- the call's side

    def begin(self, utterance: int) -> None:
        """Start an utterance; see `SttSession`."""
        if self._closed:
            return
        self.utterances += 1
        engines = self._suspicion.engines(asyncio.get_running_loop().time())
        begun = _Utterance(utterance, self._options, kept=self._replays, most_blamed=engines)
        if not engines:
            begun.kept, begun.lost = False, "this call's utterances made engines fail"
        self._newest = self._utterances[utterance] = begun
        self._send_begin(begun)

    def feed(self, pcm: Pcm) -> None:
        """Audio of the utterance begun last; ignored when none is open."""
        utterance = self._newest
        if utterance is None:
            return
        if utterance.kept:
            utterance.runs.append(pcm)
            utterance.size += pcm.samples.nbytes
            self._bound()
        if self._inner is not None and utterance.inner:
            if not utterance.lost:
                self._inner.feed(pcm)
        elif not utterance.kept:
            utterance.lost = _NOT_KEPT

    def finish(self, utterance: int) -> None:
        """The Final is wanted now."""
        found = self._utterances.get(utterance)
        if found is None or found.finished_at is not None:
            return
        if found is self._newest:
            self._newest = None
        found.finished_at = asyncio.get_running_loop().time()
        if self._inner is not None and found.inner:
            self._inner.finish(found.inner)
        elif not found.kept:
            self._give_up(found, EngineCrashed("the engine died and the audio was not kept"))

    def discard(self, utterance: int) -> None:
        """Nothing more is delivered of the utterance."""
        found = self._utterances.pop(utterance, None)
        if found is None:
            return
        if found is self._newest:
            self._newest = None
        if found.inner:
            self._by_inner.pop(found.inner, None)
            if self._inner is not None:
                self._inner.discard(found.inner)

    def configure(self, options: SttOptions) -> None:
        """Use other options from the next utterance on, whichever engine gets it."""
        self._options = options

    async def results(self) -> AsyncIterator[SttResult]:
        """Results of all engines that the session has been attached to, until it is closed."""
        while not self._closed:
            while self._failed:
                yield self._failed.pop(0)
            inner = self._inner
            if inner is None:
                await self._wait()
                continue
            stream = cast("AsyncGenerator[SttResult, None]", inner.results())
            async with aclosing(stream):
                async for result in stream:
                    if inner is not self._inner or self._closed:
                        break
                    if (translated := self._translate(result)) is not None:
                        yield translated
            self._stream_ended(inner)

    async def aclose(self) -> None:
        """End the session. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._utterances.clear()
        self._by_inner.clear()
        self._newest = None
        inner, self._inner = self._inner, None
        self._wake()
        if inner is not None:
            await inner.aclose()

    # ------------------------------------------------------------- the pool's side

    async def attach(self, opened: SttSession, why: str, owner: object = None) -> bool:
        """Go on with another engine's session: unfinished utterances are sent to it again.

        False when the session was closed meanwhile: then ``opened`` is closed too.
        """
        if self._closed:
            await opened.aclose()
            return False
        old = self.detach()
        self._inner, self._owner = opened, owner
        self._wake()
        for utterance in list(self._utterances.values()):
            self._replay(utterance, why)
        if old is not None:
            await old.aclose()
        return True

    @property
    def options(self) -> SttOptions:
        """What the next engine's session is to be opened with."""
        return self._options

    def detach(self) -> SttSession | None:
        """Part from the engine; audio is kept until `attach`. Returns its session, to be closed."""
        old, self._inner = self._inner, None
        self._by_inner.clear()
        for utterance in self._utterances.values():
            utterance.inner = 0
            if not utterance.kept:
                utterance.lost = utterance.lost or _NOT_KEPT
        return old

    def unfinished(self) -> bool:
        """Is there an utterance whose Final has not come?"""
        return bool(self._utterances)

    # ------------------------------------------------------------------- innards

    def _send_begin(self, utterance: _Utterance) -> None:
        if self._inner is None:
            return
        self._last_inner += 1
        utterance.inner = self._last_inner
        utterance.attempts += 1
        self._by_inner[utterance.inner] = utterance
        # Each time: an engine that took over may have been opened with older ones, and an utterance
        # that is sent again keeps its own.
        alone = utterance.blamed >= ALONE_AFTER or utterance.most_blamed < MOST_ENGINES
        self._inner.configure(replace(utterance.options, alone=alone))
        self._inner.begin(utterance.inner)

    def _replay(self, utterance: _Utterance, why: str) -> None:
        if utterance.inner:
            return  # begun with this engine already
        if not utterance.kept:
            # Begun without its audio: so its failure is told in its turn, when it is finished.
            self._send_begin(utterance)
            if self._inner is not None and utterance.finished_at is not None:
                self._inner.finish(utterance.inner)
            return
        if utterance.attempts:
            self.replays += 1
            self._on_replay(why)
            _log.info("stt_utterance_replayed", why=why, attempt=utterance.attempts + 1)
        self._send_begin(utterance)
        if self._inner is not None and utterance.runs:
            joined = np.concatenate([pcm.samples for pcm in utterance.runs])
            self._inner.feed(Pcm(joined, utterance.runs[0].at))
        if self._inner is not None and utterance.finished_at is not None:
            self._inner.finish(utterance.inner)

    def _translate(self, result: SttResult) -> SttResult | None:
        utterance = self._by_inner.get(result.utterance)
        if utterance is None:
            return None  # discarded, or of an engine that is not ours any more
        match result:
            case Partial() | Final() if utterance.lost:
                return self._tell_lost(utterance, result)
            case Partial(text=text):
                return Partial(utterance.number, text)
            case Final(text=text, audio_seconds=seconds):
                self._forget(utterance)
                self._suspicion.clear()
                if utterance.finished_at is not None:
                    now = asyncio.get_running_loop().time()
                    self._on_final(now - utterance.finished_at)
                return Final(utterance.number, text, seconds)
            case SttFailed():
                return self._failure(utterance, result)

    def _tell_lost(self, utterance: _Utterance, result: SttResult) -> SttFailed | None:
        if isinstance(result, Partial):
            return None
        self._forget(utterance)
        return SttFailed(utterance.number, EngineCrashed(utterance.lost))

    def _failure(self, utterance: _Utterance, failed: SttFailed) -> SttFailed | None:
        self._by_inner.pop(utterance.inner, None)
        utterance.inner = 0
        utterance.blamed += not failed.blameless
        error = failed.error
        engine_error = error if isinstance(error, EngineError) else EngineCrashed(str(error))
        may_go_on = utterance.kept and utterance.blamed < utterance.most_blamed
        if utterance.kept and not may_go_on:
            self._suspicion.gave_up(asyncio.get_running_loop().time())
        # The pool hears of it in any case: what failed here may fail others.
        self._on_trouble(engine_error, self._owner)
        if may_go_on:
            return None
        self._forget(utterance)
        return SttFailed(utterance.number, engine_error)

    def _give_up(self, utterance: _Utterance, error: EngineError) -> None:
        self._forget(utterance)
        self._failed.append(SttFailed(utterance.number, error))
        self._wake()

    def _forget(self, utterance: _Utterance) -> None:
        self._utterances.pop(utterance.number, None)
        self._by_inner.pop(utterance.inner, None)
        if utterance is self._newest:
            self._newest = None

    def _stream_ended(self, inner: SttSession) -> None:
        if inner is not self._inner or self._closed:
            return
        self.detach()
        if not self._replays:
            self._closed = True  # there will be no other
            return
        self._on_trouble(EngineCrashed("the engine closed the session"), self._owner)

    def _bound(self) -> None:
        """Keep no more than the call's share of memory; the oldest audio goes first."""
        excess = self.kept_bytes - self._keep_bytes
        for utterance in self._utterances.values():
            if excess <= 0:
                return
            if utterance.kept and utterance.size:
                excess -= utterance.size
                utterance.runs.clear()
                utterance.size = 0
                utterance.kept = False
                if not utterance.inner:
                    utterance.lost = _NOT_KEPT
                self._on_not_kept()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()

    def __repr__(self) -> str:
        state: dict[str, Any] = {
            "attached": self.attached,
            "unfinished": len(self._utterances),
            "kept_bytes": self.kept_bytes,
        }
        return f"<LeasedSession {state}>"
