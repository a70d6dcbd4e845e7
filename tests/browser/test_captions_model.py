"""web/captions.js and web/activity.js: what is made of the server's events, without a call."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import OpenChromium
from .page_server import PageServer

pytestmark = pytest.mark.browser

FEED = """async (events) => {
  const { Captions } = await import("/static/captions.js");
  const { Activity } = await import("/static/activity.js");
  const captions = new Captions();
  const activity = new Activity();
  for (const event of events) { captions.apply(event); activity.apply(event); }
  return {
    turns: captions.turns.map((t) => [t.side, t.phase, t.heard, t.unheard]),
    floor: activity.floor,
  };
}"""

SPLIT = """async ([text, heard]) => {
  const { splitHeard } = await import("/static/captions.js");
  return splitHeard(text, heard);
}"""


def started(item: str) -> dict[str, Any]:
    return {"type": "input_audio_buffer.speech_started", "item_id": item}


def stopped(item: str) -> dict[str, Any]:
    return {"type": "input_audio_buffer.speech_stopped", "item_id": item}


def committed(item: str) -> dict[str, Any]:
    return {"type": "input_audio_buffer.committed", "item_id": item}


def partial(item: str, text: str) -> dict[str, Any]:
    return {"type": "voice_rtc.transcript.partial", "item_id": item, "text": text}


def final(item: str, text: str) -> dict[str, Any]:
    kind = "conversation.item.input_audio_transcription.completed"
    return {"type": kind, "item_id": item, "transcript": text}


def delta(item: str, text: str) -> dict[str, Any]:
    return {"type": "response.output_audio_transcript.delta", "item_id": item, "delta": text}


def heard(item: str, text: str, *, complete: bool = False) -> dict[str, Any]:
    kind = "voice_rtc.reply.heard"
    return {"type": kind, "item_id": item, "text": text, "complete": complete}


def truncated(item: str) -> dict[str, Any]:
    return {"type": "conversation.item.truncated", "item_id": item, "audio_end_ms": 900}


def added(item: str, part: dict[str, Any], after: str | None = None) -> dict[str, Any]:
    entry = {"id": item, "type": "message", "role": "user", "content": [part]}
    return {"type": "conversation.item.added", "item": entry, "previous_item_id": after}


TYPED = {"type": "input_text", "text": "Typed."}
SPOKEN = {"type": "input_audio", "transcript": None}
DONE = {"type": "response.done", "response": {"id": "r", "status": "completed"}}

STORIES: dict[str, tuple[list[dict[str, Any]], list[list[str]], str]] = {
    "a late partial does not undo the final": (
        [started("a"), committed("a"), final("a", "Good morning."), partial("a", "good mor")],
        [["caller", "final", "Good morning.", ""]],
        "thinking",
    ),
    "nothing understood is said, and nobody waits for a reply": (
        [started("a"), stopped("a"), committed("a"), final("a", "")],
        [["caller", "final", "", ""]],
        "listening",
    ),
    "a cough that came to nothing disappears with the next turn": (
        [started("a"), stopped("a"), started("b"), partial("b", "so")],
        [["caller", "speaking", "so", ""]],
        "caller",
    ),
    "a committed turn without words yet is being written down": (
        [started("a"), stopped("a"), committed("a")],
        [["caller", "transcribing", "", ""]],
        "thinking",
    ),
    "turns stand in the order in which they began, whenever their text comes": (
        [
            started("a"),
            committed("a"),
            delta("b", "Yes "),
            final("a", "Really?"),
            delta("b", "so."),
        ],
        [["caller", "final", "Really?", ""], ["agent", "speaking", "Yes so.", ""]],
        "thinking",
    ),
    "what was typed while the caller spoke comes before it": (
        [
            final("0", "First."),
            started("a"),
            added("t", TYPED, after="0"),
            committed("a"),
            added("a", SPOKEN, after="t"),
            final("a", "Spoken."),
        ],
        [["caller", "final", text, ""] for text in ("First.", "Typed.", "Spoken.")],
        "thinking",
    ),
    "a reply without its last event ends with the response": (
        [delta("b", "Half a sen"), DONE],
        [["agent", "final", "Half a sen", ""]],
        "listening",
    ),
    "a reply that was heard to the end has no rest": (
        [delta("b", "All of it."), heard("b", "All of it.", complete=True)],
        [["agent", "final", "All of it.", ""]],
        "listening",
    ),
    "what is heard may be known before the whole text": (
        [delta("b", "One two "), heard("b", "One two"), delta("b", "three.")],
        [["agent", "final", "One two", " three."]],
        "listening",
    ),
    "a reply that was cut is final when it is known what was heard": (
        [delta("b", "One two three."), truncated("b")],
        [["agent", "speaking", "One two three.", ""]],
        "listening",
    ),
    "a reply that was cut ends where it was heard last": (
        [delta("b", "One two three."), truncated("b"), heard("b", "One two"), DONE],
        [["agent", "final", "One two", " three."]],
        "listening",
    ),
    "a reply of which nothing was heard is no part of the conversation": (
        [started("a"), committed("a"), final("a", "Hm"), delta("b", "I think"), heard("b", "")],
        [["caller", "final", "Hm", ""]],
        "thinking",
    ),
    "a turn that is reopened goes on in its own place": (
        [
            started("a"),
            committed("a"),
            final("a", "I would"),
            delta("b", "Yes?"),
            started("a"),
            heard("b", ""),
            partial("a", "I would like"),
        ],
        [["caller", "speaking", "I would like", ""]],
        "caller",
    ),
    "a reopened turn has its whole text in the end": (
        [
            started("a"),
            committed("a"),
            final("a", "I would"),
            started("a"),
            partial("a", "I would like"),
            stopped("a"),
            committed("a"),
            final("a", "I would like that."),
        ],
        [["caller", "final", "I would like that.", ""]],
        "thinking",
    ),
    "an unknown event changes nothing": (
        [{"type": "voice_rtc.something.new", "item_id": "x"}, {"type": "constructor"}],
        [],
        "listening",
    ),
}

SPLITS = [
    ("One two three.", "One two", ["One two", " three."]),
    ("One two three.", "  One two ", ["One two", " three."]),
    ("One  two, three.", "One two", ["One  two,", " three."]),
    ("One two three.", "", ["", "One two three."]),
    ("", "One", ["One", ""]),
    ("One two.", "One two and more words", ["One two.", ""]),
]


async def test_stories(chromium_page: OpenChromium, page_server: PageServer) -> None:
    opened = await chromium_page()
    await opened.open(page_server.url)
    for name, (events, turns, floor) in STORIES.items():
        result = await opened.page.evaluate(FEED, events)
        assert result == {"turns": turns, "floor": floor}, name
    for text, part, expected in SPLITS:
        assert await opened.page.evaluate(SPLIT, [text, part]) == expected
    many = [final(str(number), "x") for number in range(300)]
    assert len((await opened.page.evaluate(FEED, many))["turns"]) == 200
