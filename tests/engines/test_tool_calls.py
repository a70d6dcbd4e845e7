"""Tool calls in the pieces that services send."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from voice_rtc.core.tools import ToolCall
from voice_rtc.engines.llm.tool_calls import ToolCallJoiner
from voice_rtc.errors import LlmError


def piece(
    index: int | None = None, call_id: Any = None, name: Any = None, arguments: Any = None
) -> SimpleNamespace:
    function = SimpleNamespace(name=name, arguments=arguments)
    return SimpleNamespace(index=index, id=call_id, function=function)


def joined(*deltas: Any) -> list[ToolCall]:
    joiner = ToolCallJoiner()
    for delta in deltas:
        joiner.feed(delta)
    return joiner.flush()


def test_no_calls():
    assert joined(None, [], None) == []


def test_arguments_come_bit_by_bit():
    calls = joined(
        [piece(0, "a", "weather", "")],
        [piece(0, None, None, '{"city": "Mün')],
        [piece(0, None, None, 'chen"}')],
    )
    assert calls == [ToolCall("a", "weather", '{"city": "München"}')]


def test_calls_beside_each_other():
    calls = joined(
        [piece(0, "a", "one", "{}"), piece(1, "b", "two", "")],
        [piece(1, None, None, '{"x"')],
        [piece(1, None, None, ": 1}")],
    )
    assert calls == [ToolCall("a", "one", "{}"), ToolCall("b", "two", '{"x": 1}')]


def test_calls_that_all_have_the_index_0():
    calls = joined([piece(0, "a", "one", "{}")], [piece(0, "b", "two", "{}")])
    assert [(call.id, call.name) for call in calls] == [("a", "one"), ("b", "two")]


def test_calls_without_an_index():
    calls = joined(
        [piece(None, "a", "one", '{"x":')],
        [piece(None, None, None, "1}")],
        [piece(None, "b", "two")],
    )
    assert calls == [ToolCall("a", "one", '{"x":1}'), ToolCall("b", "two", "{}")]


def test_a_name_and_an_id_that_are_repeated_count_once():
    calls = joined([piece(0, "a", "one", "{")], [piece(0, "a", "one", "}")])
    assert calls == [ToolCall("a", "one", "{}")]


def test_a_call_without_an_id_gets_one_of_its_own():
    first, second = joined([piece(0, None, "one", "{}"), piece(1, "", "two", "{}")])
    assert first.id.startswith("call_") and first.id != second.id


@pytest.mark.parametrize(
    "deltas",
    [
        [[piece(0, "a", None, "{}")]],
        [[piece(0, "a", "one", '{"x": ')]],  # the answer was too long
        [[piece(0, "a", "one", "[1]")]],
        [[piece(0, "a", "one", "5")]],
        [[piece(0, "a", "one", {"x": 1})]],
        [[piece(0, 7, "one", "{}")]],
        [[piece(0, "a", "one", "x" * 70_000)]],
        [[piece(0, "a", "one", "[" * 50_000)]],
        [[piece(number, str(number), "one", "{}")] for number in range(33)],
    ],
)
def test_what_is_no_call_is_an_error(deltas):
    with pytest.raises(LlmError) as caught:
        joined(*deltas)
    assert caught.value.code == "llm_bad_tool_call"
