"""Tool calls out of the pieces in which chat completions services stream them.

The format gives each call an index and sends its id and name once, then its arguments bit by bit.
Services differ: some leave the index out or give every call the index 0, some repeat the name,
some send no id.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from voice_rtc.core.tools import ToolCall
from voice_rtc.engines.llm.faults import fault

_MOST_CALLS = 32
_LONGEST_ARGUMENTS = 65_536


@dataclass(slots=True)
class _Call:
    index: int | None
    id: str = ""
    name: str = ""
    arguments: str = ""


class ToolCallJoiner:
    """One per answer. Raises LlmError ``llm_bad_tool_call`` for what is no call."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def feed(self, pieces: Any) -> None:
        """Take the ``tool_calls`` of one delta: a list, or None."""
        if pieces is not None and not isinstance(pieces, list):
            raise fault("llm_bad_tool_call", "tool calls that are no list")
        for piece in pieces or ():
            function = getattr(piece, "function", None)
            call = self._call_of(getattr(piece, "index", None), _text(piece, "id"))
            call.name = call.name or _text(function, "name")
            call.arguments += _text(function, "arguments")
            if len(call.arguments) > _LONGEST_ARGUMENTS:
                raise fault("llm_bad_tool_call", "the arguments of a tool call do not end")

    def flush(self) -> list[ToolCall]:
        """The answer is over: its calls, in order."""
        calls, self._calls = self._calls, []
        return [_whole(call) for call in calls]

    def _call_of(self, index: int | None, call_id: str) -> _Call:
        for call in reversed(self._calls):
            if call.index == index and (not call_id or call_id == call.id):
                return call
        if len(self._calls) == _MOST_CALLS:
            raise fault("llm_bad_tool_call", f"more than {_MOST_CALLS} tool calls in one answer")
        self._calls.append(_Call(index, call_id))
        return self._calls[-1]


def _text(holder: Any, name: str) -> str:
    value = getattr(holder, name, None)
    if value is not None and not isinstance(value, str):
        raise fault("llm_bad_tool_call", f"the {name} of a tool call is not text")
    return value or ""


def _whole(call: _Call) -> ToolCall:
    if not call.name:
        raise fault("llm_bad_tool_call", "a tool call without a name")
    arguments = call.arguments.strip() or "{}"
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise fault("llm_bad_tool_call", f"the arguments for {call.name[:64]} are no JSON object")
    return ToolCall(call.id or f"call_{token_hex(10)}", call.name, arguments)
