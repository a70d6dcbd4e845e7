"""When the caller heard which reply, from the server's events and the frames that came.

Pure. Times are the bot's loop times, in seconds. A frame's place in time is that of its stretch of
RTP time: the earliest that any of its frames allows, so that frames that the jitter buffer gave
late, as it does with the last ones before the server falls silent, lie where a loudspeaker would
have played them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tools.bot_audio import HeardFrame
from tools.bot_events import Received, response_id, status_of, text_of
from voice_rtc.core.audio import FRAME_SECONDS, SEND_RATE_HZ, Samples, silence

_STARTED = "output_audio_buffer.started"
_CUTS = ("output_audio_buffer.cleared", "conversation.item.truncated")


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A frame where it was heard."""

    at: float
    samples: Samples
    audible: bool

    @property
    def end(self) -> float:
        """When it had been played."""
        return self.at + len(self.samples) / SEND_RATE_HZ


def placed(frames: Sequence[HeardFrame]) -> list[Placed]:
    """All frames in the order they are heard."""
    found: list[Placed] = []
    for stretch in _stretches(frames):
        first = stretch[0].pts
        start = min(frame.at - (frame.pts - first) / SEND_RATE_HZ for frame in stretch)
        for frame in stretch:
            at = start + (frame.pts - first) / SEND_RATE_HZ
            found.append(Placed(at, frame.samples, frame.audible))
    return found


def _stretches(frames: Sequence[HeardFrame]) -> list[list[HeardFrame]]:
    """Frames of which each begins where the one before ends."""
    stretches: list[list[HeardFrame]] = []
    due = None
    for frame in frames:
        if due is None or frame.pts != due:
            stretches.append([])
        stretches[-1].append(frame)
        due = frame.pts + len(frame.samples)
    return stretches


def laid_out(frames: Sequence[Placed], start: float, end: float) -> Samples:
    """What was heard from ``start`` to ``end``, silence where nothing was."""
    whole = silence(max(0, round((end - start) * SEND_RATE_HZ)))
    for frame in frames:
        at = round((frame.at - start) * SEND_RATE_HZ)
        piece = frame.samples[max(0, -at) :]
        at = max(0, at)
        room = whole[at : at + len(piece)]
        room[:] = piece[: len(room)]
    return whole


@dataclass(slots=True)
class Heard:
    """One reply as the caller had it."""

    id: str
    created_at: float
    status: str = ""
    """``completed``, ``cancelled``, ``failed``, or empty while it is not over."""
    text: str = ""
    """What the server says of it, as far as it was made."""
    item: str = ""
    """Id of its item."""
    cut_at: float | None = None
    """When the server told that it was cut."""
    cut_ms: int | None = None
    """How much of its audio was heard, as the server says."""
    frames: list[Placed] = field(default_factory=list)
    """The audible ones."""

    @property
    def first(self) -> float | None:
        """Its first audible moment."""
        return self.frames[0].at if self.frames else None

    @property
    def last(self) -> float | None:
        """The end of its last audible frame."""
        return self.frames[-1].end if self.frames else None

    @property
    def withdrawn(self) -> bool:
        """Taken back before anything of it was heard?"""
        return not self.frames and (self.cut_at is not None or self.status != "completed")


def replies(events: Sequence[Received], frames: Sequence[Placed]) -> list[Heard]:
    """All replies in the order they were created, each with the frames that are its own.

    A frame belongs to the newest reply whose audio had begun: by ``output_audio_buffer.started``
    where the server sends that, else by ``response.created``.
    """
    found = {
        response_id(event): Heard(response_id(event), event.at)
        for event in events
        if event.type == "response.created"
    }
    for reply in found.values():
        reply.status = status_of(events, reply.id)
        reply.text = text_of(events, reply.id)
    _note_cuts(events, found)
    kinds = {event.type for event in events}
    begins = _STARTED if _STARTED in kinds else "response.created"
    begun = [(e.at, response_id(e)) for e in events if e.type == begins and response_id(e) in found]
    for frame in frames:
        owner = bisect_right(begun, frame.at, key=lambda begin: begin[0]) - 1
        if frame.audible and owner >= 0:
            found[begun[owner][1]].frames.append(frame)
    return list(found.values())


def _note_cuts(events: Sequence[Received], found: dict[str, Heard]) -> None:
    for event in events:
        if event.type == "response.output_item.added" and response_id(event) in found:
            found[response_id(event)].item = str(event.body.get("item", {}).get("id", ""))
    by_item = {reply.item: reply for reply in found.values() if reply.item}
    for event in events:
        about = found.get(response_id(event)) or by_item.get(str(event.body.get("item_id", "")))
        if about is None:
            continue
        cancelled = event.type == "response.done" and about.status == "cancelled"
        if event.type in _CUTS or cancelled:
            about.cut_at = event.at if about.cut_at is None else about.cut_at
        if event.type == "conversation.item.truncated":
            about.cut_ms = int(event.body.get("audio_end_ms", 0))


def longest_gap(frames: Sequence[Placed], start: float, end: float) -> float:
    """The longest silence between two audible frames that lies within ``start`` and ``end``."""
    inside = [frame.at for frame in frames if start <= frame.at < end]
    gaps = [later - earlier for earlier, later in pairwise(inside)]
    return max((gap - FRAME_SECONDS for gap in gaps), default=0.0)
