"""Is this replica fit to be spoken to, and what to do when it is not.

A `ReplicaHealth` is fed with all that is observed of one replica and answers with a verdict:

    Ready                    it may get new leases
    Suspect(reason)          it goes on with the calls that it has and gets no new ones
    Replace(reason)          it is dead or stuck: end it, bring another up, send the audio again
    Replace(.., quarantine)  it lives and cannot be trusted: the same, and it is shown as such

What leads there:

    observation                                                      verdict
    ---------------------------------------------------------------  --------------------
    the engine says that its worker is gone                          Replace
    a process is stopped, traced, a zombie or dead                   Replace
    a heartbeat unanswered for ``hang_seconds``, our own tick lived  Replace
    the same for ``loading_hang_seconds``, while it loads            Replace
    one batch takes far longer than the worst that was measured      Replace
    a request failed because the worker is gone                      Replace
    out of GPU memory, or a corrupt result                           Replace, quarantine
    a probe understood as nothing, where there is a sentence         Replace, quarantine
    two probes in a row understood as something else                 Replace, quarantine
    two probes in a row far slower than the first and than the goal  Suspect
    two requests in a row that were not answered in time             Suspect
    three probes in a row unanswered, and no Final meanwhile         Replace
    the next quick probe                                             Ready

**Whose silence is it?** A heartbeat goes unanswered also while our own event loop stands still. An
observation that came late itself accuses nobody, and its lateness is taken off the silence.

Reasons begin with one word of a small set (silent, stuck, stopped, traced, zombie, dead, deaf,
wrong, slow) where they are not the engine's own: it will do as a label.

A Replace is final: the replica never becomes ready again; its successor has a health of its own.
`Restarts` says when the successor may be started, `Suspicion` which utterance it may get.

Pure: ``now`` is an argument, processes and engines are observed elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

ProbeOutcome = Literal["ok", "slow", "wrong"]
"""For metrics. ``wrong`` is a text that is not the reference's."""

GONE_STATES = {
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "dead",
    "x": "dead",
    "stopped": "stopped",
    "tracing-stop": "traced",
    "zombie": "zombie",
    "dead": "dead",
    "gone": "dead",
}
"""States of a process that does not run: letters of ``/proc/PID/stat`` (proc(5)), psutil's words,
and ``gone`` for no process at all."""

QUARANTINE_CODES = frozenset({"out_of_gpu_memory", "corrupt_result"})
"""Failures after which the same worker may fail anybody else in the same way."""

FATAL_CODES = frozenset({"engine_crashed", "engine_unavailable"})
"""Failures of a single request that mean that the whole worker is gone."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Fit."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """Works, but not as it should: no new leases."""

    reason: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Not to be used any more."""

    reason: str
    quarantine: bool = False
    """It may still give answers, which cannot be trusted."""


Verdict = Ready | Suspect | Replace


@dataclass(frozen=True, slots=True)
class HealthRules:
    """Bounds of what is still healthy."""

    hang_seconds: float = 0.75
    """A heartbeat unanswered for longer is a hang."""
    loading_hang_seconds: float = 60.0
    """The same while a replica loads: whole libraries are read then, with nobody to answer."""
    late_seconds: float = 0.25
    """An observation that came so late says nothing about silence."""
    busy_floor_seconds: float = 5.0
    """A batch shorter than this is never stuck."""
    busy_factor: float = 4.0
    """A batch may take so many times the worst that was measured."""
    goal_seconds: float = 0.6
    slow_factor: float = 4.0
    """A probe is slow when it takes so many times its first, and twice the goal."""
    least_ratio: float = 0.6
    """Similarity of a probe's text to its reference, by difflib, 0.0 to 1.0."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a replica."""

    silent_seconds: float = 0.0
    """How long a heartbeat has gone unanswered; 0.0 when none is due."""
    busy_seconds: float = 0.0
    """How long the oldest piece of work has taken; 0.0 when idle."""
    process_states: tuple[str, ...] = ()
    """One per worker process, see `GONE_STATES`; empty when unknown."""
    failure: str | None = None
    """Error code, once the worker is gone for good (`EngineError.code`)."""
    failure_text: str = ""
    worst_batch_seconds: float = 0.0
    """The longest batch that its latency curve allows for; 0.0 when unknown."""
    lateness_seconds: float = 0.0
    """How much later than due this look was taken."""


class ReplicaHealth:
    """The health of one replica, from its start to its end."""

    def __init__(self, rules: HealthRules = HealthRules()) -> None:
        self.rules = rules
        self._verdict: Verdict = Ready()
        self._silence_began = float("-inf")
        self._our_share = 0.0
        """Of the present silence: time in which we did not listen."""
        self._first_probe: float | None = None
        self._slow = 0
        self._wrong = 0
        self._unanswered = 0

    @property
    def verdict(self) -> Verdict:
        """The newest."""
        return self._verdict

    def observe(self, now: float, seen: Observation, *, loading: bool = False) -> Verdict:
        """Judge a look at the replica; to be called at each tick of the supervision."""
        patience = self.rules.loading_hang_seconds if loading else self.rules.hang_seconds
        if seen.failure is not None:
            text = seen.failure_text or seen.failure
            return self._replace(text, seen.failure in QUARANTINE_CODES)
        reason = self._gone(seen) or self._stuck(seen) or self._hung(now, seen, patience)
        return self._replace(reason) if reason else self._verdict

    def failed(self, now: float, code: str, text: str = "") -> Verdict:
        """One request failed, with the engine's error code; the worker may still live."""
        if code in QUARANTINE_CODES or code in FATAL_CODES:
            return self._replace(text or code, code in QUARANTINE_CODES)
        if code == "engine_timeout":
            self._slow += 1
            self._suspect(f"slow: {text or 'a request was not answered in time'}")
        return self._verdict

    def unanswered(self, now: float, text: str) -> Verdict:
        """A probe was not answered in time, though heartbeats may be."""
        self._unanswered += 1
        if self._unanswered >= _MOST_UNANSWERED:
            return self._replace(f"deaf: {self._unanswered} probes were not answered")
        return self.failed(now, "engine_timeout", text)

    def answered(self) -> None:
        """It transcribed something."""
        self._unanswered = 0

    def probed(self, now: float, seconds: float, text: str, reference: str | None) -> ProbeOutcome:
        """A known sentence was transcribed as ``text``. What follows from it is in `verdict`.

        ``reference`` is what a sound replica makes of it; None or empty: only time counts.
        """
        self.answered()
        if reference and not self._is_alike(text, reference):
            return "wrong"
        return self._judge_time(seconds)

    def _replace(self, reason: str, quarantine: bool = False) -> Verdict:
        if not isinstance(self._verdict, Replace):
            self._verdict = Replace(reason, quarantine)
        return self._verdict

    def _suspect(self, reason: str) -> None:
        if self._slow >= 2 and not isinstance(self._verdict, Replace):
            self._verdict = Suspect(reason)

    def _gone(self, seen: Observation) -> str:
        for state in seen.process_states:
            if state in GONE_STATES:
                return f"{GONE_STATES[state]}: its process does not run"
        return ""

    def _stuck(self, seen: Observation) -> str:
        allowed = self.rules.busy_factor * seen.worst_batch_seconds
        if seen.busy_seconds > max(self.rules.busy_floor_seconds, allowed):
            return f"stuck: one batch has taken {seen.busy_seconds:.1f} s"
        return ""

    def _hung(self, now: float, seen: Observation, patience: float) -> str:
        began = now - seen.silent_seconds
        if seen.silent_seconds <= 0.0 or began > self._silence_began + _SAME_SILENCE_SECONDS:
            self._silence_began = began
            self._our_share = 0.0
        if seen.lateness_seconds > self.rules.late_seconds:
            self._our_share += seen.lateness_seconds
            return ""
        if seen.silent_seconds - self._our_share > patience:
            return f"silent for {seen.silent_seconds:.1f} s"
        return ""

    def _is_alike(self, text: str, reference: str) -> bool:
        heard, expected = _words(text), _words(reference)
        if expected and not heard:
            self._replace("deaf: it understood nothing of a known sentence", quarantine=True)
            return False
        alike = SequenceMatcher(None, heard, expected, autojunk=False).ratio()
        if alike >= self.rules.least_ratio:
            self._wrong = 0
            return True
        self._wrong += 1
        if self._wrong >= 2:
            self._replace("wrong: it misunderstood a known sentence twice", quarantine=True)
        return False

    def _judge_time(self, seconds: float) -> ProbeOutcome:
        if self._first_probe is None:
            self._first_probe = seconds
        rules, first = self.rules, self._first_probe
        if seconds > max(rules.slow_factor * first, 2 * rules.goal_seconds):
            self._slow += 1
            self._suspect(f"slow: a probe takes {seconds:.2f} s; the first took {first:.2f} s")
            return "slow"
        self._slow = 0
        if isinstance(self._verdict, Suspect):
            self._verdict = Ready()
        return "ok"


_MOST_UNANSWERED = 3
_SAME_SILENCE_SECONDS = 0.05
"""Beginnings so close together are of one silence: the two clocks are read apart."""


def _words(text: str) -> str:
    """Lower case, letters and digits only, single spaces: punctuation is no misunderstanding."""
    kept = "".join(c if c.isalnum() else " " for c in text.casefold())
    return " ".join(kept.split())


MOST_ENGINES = 4
"""How many engines an utterance is sent to, each of which dies or fails while it is in work there,
before its failure is told to the call."""
ALONE_AFTER = 2
"""After so many of them nothing else is in work with it, so that nobody fails by it any more."""


class Suspicion:
    """How many engines a call's next utterance may cost.

    Of a call whose utterance was given up each further one may cost one engine; when that fails
    too, none for a while, ever longer. A transcript clears the call.
    """

    def __init__(self, first_seconds: float = 30.0, longest_seconds: float = 600.0) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._given_up = 0
        self._until = float("-inf")

    def engines(self, now: float) -> int:
        """0: it is not to be sent to any."""
        if not self._given_up:
            return MOST_ENGINES
        return 1 if now >= self._until else 0

    def gave_up(self, now: float) -> None:
        """An utterance has cost all the engines that it might."""
        self._given_up += 1
        if self._given_up > 1:
            self._until = now + min(self._longest, self._first * 2.0 ** (self._given_up - 2))

    def clear(self) -> None:
        """A transcript came."""
        self._given_up = 0


class Restarts:
    """When a replica that was lost may be replaced: at once, then after ever longer waits.

    A successor that lived for ``stable_seconds`` forgives all that was before it.
    """

    def __init__(
        self,
        first_seconds: float = 0.5,
        longest_seconds: float = 30.0,
        stable_seconds: float = 60.0,
    ) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._stable = stable_seconds
        self._wait = 0.0
        self._not_before = float("-inf")

    def died(self, now: float) -> float:
        """A replica is gone: seconds to wait before its successor is started."""
        if now - self._not_before >= self._stable:
            self._wait = 0.0
        wait = self._wait
        self._wait = min(self._longest, max(self._first, 2 * wait))
        self._not_before = now + wait
        return wait
