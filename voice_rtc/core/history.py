"""What was said in a call, as the language model and the client are told it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

from voice_rtc.core.tools import ToolCall
from voice_rtc.errors import BadRequest, UnknownItem

Role = Literal["system", "user", "assistant"]
Status = Literal["in_progress", "completed", "incomplete"]

ROOT = "root"
"""``after=ROOT`` puts an item first."""


class _Unset(Enum):
    UNSET = 0


_UNSET = _Unset.UNSET


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of the conversation as the LLM sees it."""

    role: Role | Literal["tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Assistant: what it wanted to be called."""
    tool_call_id: str = ""
    """Tool: which call ``content`` is the result of."""


_LEFT_OUT = Message("system", "Earlier parts of this conversation are left out here.")


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the conversation as the client sees it."""

    id: str
    role: Role
    spoken: bool
    """Was it said aloud, or typed?"""
    text: str | None
    """None while it is not known, e.g. before the transcript has come."""
    status: Status
    heard_ms: int | None = None
    """Assistant: how much of the audio the caller got; None when nothing is known of it."""
    interrupted: bool = False
    """Assistant: the reply was cut; ``text`` is what was heard of it."""
    filler: str = ""
    """Assistant: what within ``text`` only bridged a silence; the LLM is not told of it."""


class Conversation:
    """The items of one call in order, at most ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("limit must be positive")
        self._limit = limit
        self._items: dict[str, Item] = {}
        self.dropped = 0
        """Items forgotten because of the limit."""

    @property
    def last_id(self) -> str | None:
        """Id of the newest entry's item, None when empty."""
        return next(reversed(self._items), None)

    def items(self) -> tuple[Item, ...]:
        """All items, first to last."""
        return tuple(self._items.values())

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put ``item`` after the item ``after``, at the end by default, first with ``ROOT``.

        Returns the id of the item it now follows, None when it is the first. Beyond the limit the
        oldest other item is forgotten, one still in progress last. Raises UnknownItem for an
        unknown ``after`` and BadRequest for an id that is taken.
        """
        if item.id in self._items:
            raise BadRequest(f"the conversation has an item {item.id} already", code="item_exists")
        previous = self._previous(after)
        if previous == self.last_id:
            self._items[item.id] = item
        else:
            self._insert(item, previous)
        if len(self._items) > self._limit:
            self._forget_oldest(item.id)
        return previous

    def get(self, item_id: str) -> Item:
        """The item. Raises UnknownItem."""
        try:
            return self._items[item_id]
        except KeyError:
            raise UnknownItem(f"the conversation has no item {item_id}") from None

    def previous_id(self, item_id: str) -> str | None:
        """Id of the item before it, None for the first. Raises UnknownItem."""
        self.get(item_id)
        ids = list(self._items)
        place = ids.index(item_id)
        return ids[place - 1] if place else None

    def last_said(self) -> str:
        """What was heard of the agent's last reply; "" for none, and while it is not finished."""
        for item in reversed(self._items.values()):
            said = _content(item)
            if item.role == "assistant" and (said or item.status == "in_progress"):
                return said
        return ""

    def update(
        self,
        item_id: str,
        *,
        text: str | _Unset | None = _UNSET,
        status: Status | _Unset = _UNSET,
        heard_ms: int | _Unset | None = _UNSET,
        interrupted: bool | _Unset = _UNSET,
        filler: str | _Unset = _UNSET,
    ) -> Item:
        """Change what is given; return the new item. Raises UnknownItem."""
        given = {
            "text": text, "status": status, "heard_ms": heard_ms, "interrupted": interrupted,
            "filler": filler,
        }  # fmt: skip  # one line reads as the list of fields that it is
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not _UNSET}
        item = replace(self.get(item_id), **changes)
        self._items[item_id] = item
        return item

    def delete(self, item_id: str) -> None:
        """Remove the item. Raises UnknownItem."""
        self.get(item_id)
        del self._items[item_id]

    def truncate(self, item_id: str, text: str, heard_ms: int) -> Item:
        """Keep only what was heard of an assistant's item; it counts as interrupted.

        Raises UnknownItem, and BadRequest for an item that is not the assistant's.
        """
        if self.get(item_id).role != "assistant":
            raise BadRequest("only an item of the assistant can be truncated")
        return self.update(
            item_id, text=text, heard_ms=heard_ms, interrupted=True, status="incomplete"
        )

    def messages(self, instructions: str) -> list[Message]:
        """The conversation as the LLM is told it: ``instructions`` first, empty entries left out.

        User items in a row are one message, since services want the roles to take turns; a
        dash ends what the assistant could not finish saying.
        """
        messages = [Message("system", instructions)] if instructions.strip() else []
        for item in self._items.values():
            content = _content(item)
            if not content:
                continue
            if item.role == "user":
                messages = said_by_user(messages, content)
            else:
                messages.append(Message(item.role, content))
        return messages

    def _previous(self, after: str | None) -> str | None:
        if after is None:
            return self.last_id
        return None if after == ROOT else self.get(after).id

    def _insert(self, item: Item, previous: str | None) -> None:
        items = list(self._items.values())
        index = 0 if previous is None else list(self._items).index(previous) + 1
        items.insert(index, item)
        self._items = {entry.id: entry for entry in items}

    def _forget_oldest(self, spared: str) -> None:
        others = [entry for entry in self._items.values() if entry.id != spared]
        settled = [entry for entry in others if entry.status != "in_progress"]
        for entry in (settled or others)[:1]:
            del self._items[entry.id]
            self.dropped += 1


def said_by_user(messages: list[Message], text: str) -> list[Message]:
    """``messages`` and what the user said then: with what they said before, if that is the end."""
    if messages and messages[-1].role == "user":
        return [*messages[:-1], Message("user", f"{messages[-1].content} {text}")]
    return [*messages, Message("user", text)]


def compacted(messages: list[Message], limit: int) -> list[Message]:
    """``messages`` without their oldest turns, so that they have at most ``limit`` characters.

    Kept are the instructions (a system message that comes first), the newest message of the user
    and what comes after it, however long they are; a note stands where something was left out, and
    after it the user speaks first. Other system messages go only when nothing else is left to go.
    Returns ``messages`` itself when nothing had to go.

    What is left out grows by a quarter of ``limit`` at once, not turn by turn: services reuse
    their work on requests that begin as the last one did.
    """
    if characters(messages) <= limit:
        return messages
    told = messages[:1] if messages[0].role == "system" else []
    rest = messages[len(told) :]
    newest = max((i for i, each in enumerate(rest) if each.role == "user"), default=len(rest) - 1)
    old, kept = rest[: max(0, newest)], rest[max(0, newest) :]
    room = limit - characters([*told, _LEFT_OUT, *kept])
    notes = _newest_within([each for each in old if each.role == "system"], room)
    spoken = [each for each in old if each.role != "system"]
    first = _first_kept(spoken, room - characters(notes), limit // 4)
    remaining = {id(each) for each in [*notes, *spoken[first:]]}
    if len(remaining) == len(old):
        return messages
    return [*told, _LEFT_OUT, *(each for each in old if id(each) in remaining), *kept]


def characters(messages: Iterable[Message]) -> int:
    """How long ``messages`` are, as the bound of `compacted` counts it."""
    return sum(
        len(each.content) + sum(len(call.arguments) for call in each.tool_calls)
        for each in messages
    )


def _newest_within(messages: list[Message], room: int) -> list[Message]:
    while messages and characters(messages) > room:
        messages = messages[1:]
    return messages


def _first_kept(messages: list[Message], room: int, step: int) -> int:
    """Index of the first message to keep: a user's, the first behind a whole number of steps."""
    left, gone, bound = characters(messages), 0, 0
    for index, each in enumerate(messages):
        if each.role == "user" and gone >= bound:
            if left - gone <= room:
                return index
            bound = (gone // step + 1) * step
        gone += len(each.content)
    return len(messages)


def _content(item: Item) -> str:
    text = without_filler((item.text or "").strip(), item.filler)
    if item.role != "assistant" or not item.interrupted:
        return text
    if item.heard_ms == 0 or not text:
        return ""
    return text.rstrip(" —-,;:") + "—"


def without_filler(text: str, filler: str) -> str:
    """``text`` without ``filler``, or without the beginning of it that ``text`` was cut in."""
    before, found, after = text.partition(filler) if filler else (text, "", "")
    if found:
        return f"{before.rstrip()} {after.lstrip()}".strip()
    words = filler.split()
    for count in range(len(words), 0, -1):
        beginning = " ".join(words[:count])
        if text == beginning or text.endswith(f" {beginning}"):
            return text[: len(text) - len(beginning)].rstrip()
    return text
