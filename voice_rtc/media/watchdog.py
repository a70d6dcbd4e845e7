"""Watches whether a client still lives: `core.liveness` with a clock and somebody to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voice_rtc.core.liveness import Liveness, LivenessRules, Step


class Watchdog:
    """`run` in a task of the call; call `heard` for each sign of life."""

    def __init__(
        self, rules: LivenessRules, ask: Callable[[], None], on_suspended: Callable[[bool], None]
    ) -> None:
        """``ask`` sends the client a question; ``on_suspended`` is told what it is from now on."""
        self._loop = asyncio.get_running_loop()
        self._liveness = Liveness(rules, self._loop.time())
        self._ask = ask
        self._on_suspended = on_suspended

    def heard(self) -> None:
        """The client has just shown that it lives."""
        if self._liveness.heard(self._loop.time()) is Step.RESUME:
            self._on_suspended(False)

    async def run(self) -> None:
        """Returns when the client is to be given up."""
        while True:
            await asyncio.sleep(self._liveness.next_deadline - self._loop.time())
            for step in self._liveness.look(self._loop.time()):
                if step is Step.ASK:
                    self._ask()
                elif step is Step.SUSPEND:
                    self._on_suspended(True)
                elif step is Step.END:
                    return
