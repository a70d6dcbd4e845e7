"""What came of each thing the caller did: pure, from what it did, the events and what it heard.

Words of the scoring:

- A turn is **cut off** when the agent begins to be audible before the turn's end, or a response is
  created before it that is not withdrawn unheard.
- **Dead air** is from the end of the caller's last word to the agent's first audible frame; of
  turns that were not cut off.
- A turn is **silent** when the server committed it and nothing of a reply was heard, **unheard**
  when it did not even commit it.
- An interruption is **missed** when the reply is not cut, or goes on for `LONGEST_OVER_SECONDS` and
  more after its onset; **moot** when the reply was over by itself in half of that.
- A noise (backchannel, cough, click, echo, babble) is **false** when the reply was cut before the
  caller wanted the floor again, moot when the reply was over before it could have been cut.
- A reply is **stale** when it does not name the last inserted word that the server itself had
  understood of the turn; this needs a language model that quotes the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tools.bot_events import Received, committed_items, transcripts
from tools.recognise import words
from tools.turn_eval.scripts import Role
from tools.turn_eval.timeline import Heard, longest_gap

LONGEST_OVER_SECONDS = 2.0
"""A reply that is audible for longer after a true interruption has not been interrupted."""
_MOOT_SECONDS = 0.3
"""A reply that is over so soon after a noise could not have been cut by it."""
_RECENT_SECONDS = 1.0
"""A reply is being spoken when it was audible so short a time ago: agents pause too."""
_AFTER_SECONDS = 3.0
"""So long after a noise a hole in the reply is put down to it."""


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that the caller did. Times are loop times."""

    kind: str
    """Of the script."""
    role: Role
    text: str
    keys: tuple[str, ...]
    began: float
    """First audible frame sent."""
    ended: float
    """End of the last one."""


@dataclass(frozen=True, slots=True)
class TurnScore:
    """A turn, or an interruption as a turn."""

    act: Act
    transcript: str
    """What the server understood."""
    cut_off: bool
    early: bool
    """Did the server commit something of it before its end? It may have thought better of it."""
    dead_air: float | None
    commit_seconds: float | None
    """From the end of the last word to the server's word that the turn is over."""
    silent: bool
    unheard: bool
    stale: bool | None
    """None where it cannot be told."""


@dataclass(frozen=True, slots=True)
class InterruptionScore:
    """A true interruption of a reply."""

    act: Act
    reply: str
    """Id."""
    moot: bool
    missed: bool
    silence_seconds: float | None
    """From its onset to the reply's last audible frame; None when missed or moot."""


@dataclass(frozen=True, slots=True)
class NoiseScore:
    """Something over a reply that must not end it."""

    act: Act
    reply: str
    """Id; empty when none was being spoken."""
    moot: bool
    false: bool
    """Was the reply cut?"""
    resumed: bool
    """Was more of it heard afterwards, to its end?"""
    hole_seconds: float
    """The longest silence in the reply around the noise."""
    answered: bool
    """Was another reply heard, made after the noise, that nobody had asked for?"""


@dataclass(slots=True)
class CallScore:
    """Everything about one call."""

    turns: list[TurnScore] = field(default_factory=list)
    interruptions: list[InterruptionScore] = field(default_factory=list)
    noises: list[NoiseScore] = field(default_factory=list)


def judge(acts: Sequence[Act], events: Sequence[Received], replies: Sequence[Heard]) -> CallScore:
    """Score all acts of one call; ``replies`` as `tools.turn_eval.timeline.replies` gives them."""
    score = CallScore()
    for act, until in _windows(acts):
        if act.role == "noise":
            score.noises.append(_noise(act, until, replies))
            continue
        score.turns.append(_turn(act, until, events, replies))
        if act.role == "interruption":
            score.interruptions.append(_interruption(act, replies))
    return score


def _windows(acts: Sequence[Act]) -> Iterator[tuple[Act, float]]:
    """Each act and when the caller next wants the floor: noises do not end the wait for a reply."""
    wanting = [act.began for act in acts if act.role != "noise"]
    for act in acts:
        yield act, min((at for at in wanting if at > act.began), default=float("inf"))


# -------------------------------------------------------------------------------------- turns


def _turn(
    act: Act, until: float, events: Sequence[Received], replies: Sequence[Heard]
) -> TurnScore:
    new = [reply for reply in replies if act.began < reply.created_at < until]
    audible = [reply for reply in new if reply.first is not None]
    during = [event for event in events if act.began <= event.at < until]
    commits = [event.at for event in during if event.type == "input_audio_buffer.committed"]
    cut_off = _is_cut_off(act, replies)
    answer = next((r for r in audible if r.first is not None and r.first >= act.ended), None)
    heard_at = answer.first if answer is not None else None
    before = [event for event in during if heard_at is None or event.at <= heard_at]
    transcript = _transcript(before, events)
    return TurnScore(
        act=act,
        transcript=transcript,
        cut_off=cut_off,
        early=any(at < act.ended for at in commits),
        dead_air=answer.first - act.ended if not cut_off and answer and answer.first else None,
        commit_seconds=_commit_seconds(act, commits, answer) if not cut_off else None,
        silent=bool(commits) and not audible,
        unheard=not commits and not audible,
        stale=_is_stale(act, transcript, answer) if not cut_off and answer else None,
    )


def _is_cut_off(act: Act, replies: Sequence[Heard]) -> bool:
    for reply in replies:
        if act.began < reply.created_at < act.ended and not reply.withdrawn:
            return True
        if reply.first is not None and act.began < reply.first < act.ended:
            return True
    return False


def _commit_seconds(act: Act, commits: Sequence[float], answer: Heard | None) -> float | None:
    """Until the commit that the answer follows."""
    heard_at = answer.first if answer is not None else None
    before = [at for at in commits if heard_at is None or at <= heard_at]
    return before[-1] - act.ended if before else None


def _transcript(before: Sequence[Received], events: Sequence[Received]) -> str:
    """What was understood of all that was committed before the answer; it may come later."""
    said = transcripts(events)
    items = committed_items(before)
    return " ".join(text for item, text in said.items() if item in items and text)


def _is_stale(act: Act, transcript: str, answer: Heard) -> bool | None:
    understood = [key for key in act.keys if key in words(transcript)]
    if not understood or answer.status != "completed" or answer.cut_at is not None:
        return None
    return understood[-1] not in words(answer.text)


# ------------------------------------------------------------------------------ over a reply


def _spoken_at(moment: float, replies: Sequence[Heard]) -> Heard | None:
    """The reply that was being spoken then."""
    for reply in reversed(replies):
        heard = [frame.at for frame in reply.frames if frame.at <= moment]
        if heard and heard[-1] >= moment - _RECENT_SECONDS:
            return reply
    return None


def _interruption(act: Act, replies: Sequence[Heard]) -> InterruptionScore:
    reply = _spoken_at(act.began, replies)
    if reply is None or reply.last is None or reply.last <= act.began:
        return InterruptionScore(act, reply.id if reply else "", True, False, None)
    over = reply.last - act.began
    is_cut = reply.cut_at is not None
    moot = not is_cut and over <= LONGEST_OVER_SECONDS / 2
    missed = not moot and (not is_cut or over >= LONGEST_OVER_SECONDS)
    return InterruptionScore(act, reply.id, moot, missed, None if moot or missed else over)


def _noise(act: Act, until: float, replies: Sequence[Heard]) -> NoiseScore:
    reply = _spoken_at(act.began + _MOOT_SECONDS, replies) or _spoken_at(act.began, replies)
    if reply is None or reply.last is None:
        return NoiseScore(act, "", True, False, False, 0.0, False)
    is_cut = reply.cut_at is not None and act.began <= reply.cut_at < until
    moot = not is_cut and reply.last < act.began + _MOOT_SECONDS
    hole = longest_gap(reply.frames, act.began - 0.1, act.ended + _AFTER_SECONDS)
    resumed = not moot and not is_cut and reply.status == "completed" and reply.last > act.ended
    answered = any(act.began < each.created_at < until and each.frames for each in replies)
    return NoiseScore(act, reply.id, moot, is_cut, resumed, hole, answered)


def cut_replies(replies: Sequence[Heard]) -> list[Heard]:
    """Every reply that was cut after something of it was heard."""
    return [reply for reply in replies if reply.cut_at is not None and reply.frames]
