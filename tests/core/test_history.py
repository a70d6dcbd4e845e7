"""The conversation as the client and the LLM are told it."""

from __future__ import annotations

import pytest

from voice_rtc.core.history import Conversation, Item, Message
from voice_rtc.errors import BadRequest, UnknownItem


def user(name: str, text: str | None = "hello") -> Item:
    return Item(name, "user", True, text, "completed")


def agent(name: str, text: str | None = "hi", **more: object) -> Item:
    return Item(name, "assistant", True, text, "completed", **more)  # type: ignore[arg-type]  # a test's shorthand


def ids(conversation: Conversation) -> list[str]:
    return [item.id for item in conversation.items()]


def filled(*items: Item, limit: int = 10) -> Conversation:
    conversation = Conversation(limit)
    for item in items:
        conversation.add(item)
    return conversation


def test_what_precedes_an_item():
    conversation = filled(user("a"), agent("b"))
    assert conversation.previous_id("a") is None
    assert conversation.previous_id("b") == "a"
    with pytest.raises(UnknownItem):
        conversation.previous_id("c")


def test_what_the_agent_said_last():
    conversation = filled(user("a"))
    assert conversation.last_said() == ""
    conversation.add(agent("b", "Who is it?"))
    conversation.add(user("c", "Me."))
    assert conversation.last_said() == "Who is it?"
    conversation.add(agent("d", "", interrupted=True, heard_ms=0))  # taken back unheard
    assert conversation.last_said() == "Who is it?"
    conversation.add(agent("e", "And where are", interrupted=True, heard_ms=400))
    assert conversation.last_said() == "And where are—"
    conversation.add(Item("f", "assistant", True, None, "in_progress"))
    assert conversation.last_said() == ""


def test_items_follow_each_other():
    conversation = Conversation(10)
    assert conversation.last_id is None
    assert conversation.add(user("a")) is None
    assert conversation.add(agent("b")) == "a"
    assert conversation.last_id == "b" and ids(conversation) == ["a", "b"]


@pytest.mark.parametrize(
    ("after", "order", "previous"),
    [("root", ["x", "a", "b"], None), ("a", ["a", "x", "b"], "a"), ("b", ["a", "b", "x"], "b")],
)
def test_an_item_can_be_put_anywhere(after, order, previous):
    conversation = filled(user("a"), agent("b"))
    assert conversation.add(user("x"), after=after) == previous
    assert ids(conversation) == order


def test_root_puts_an_item_first_also_when_empty():
    conversation = Conversation(10)
    assert conversation.add(user("a"), after="root") is None
    assert ids(conversation) == ["a"]


def test_unknown_and_doubled_ids_change_nothing():
    conversation = filled(user("a"))
    with pytest.raises(UnknownItem):
        conversation.add(user("b"), after="nowhere")
    with pytest.raises(BadRequest) as caught:
        conversation.add(user("a", "again"))
    assert caught.value.code == "item_exists"
    assert conversation.items() == (user("a"),)


@pytest.mark.parametrize(
    "do",
    [
        lambda c: c.get("x"),
        lambda c: c.update("x", text="y"),
        lambda c: c.delete("x"),
        lambda c: c.truncate("x", "y", 1),
    ],
)
def test_an_unknown_item_is_an_error(do):
    with pytest.raises(UnknownItem):
        do(filled(user("a")))


def test_beyond_the_limit_the_oldest_is_forgotten_and_counted():
    conversation = filled(user("a"), agent("b"), user("c"), limit=2)
    assert ids(conversation) == ["b", "c"] and conversation.dropped == 1


def test_an_item_in_progress_and_the_new_one_are_forgotten_last():
    running = Item("run", "assistant", True, None, "in_progress")
    conversation = filled(running, user("b"), user("c"), limit=2)
    assert ids(conversation) == ["run", "c"]
    conversation.add(user("d"), after="root")
    assert ids(conversation) == ["d", "run"]


def test_an_update_changes_only_what_is_given():
    conversation = filled(agent("a", "long text"))
    assert conversation.update("a", status="incomplete") == Item(
        "a", "assistant", True, "long text", "incomplete"
    )
    assert conversation.update("a", text=None).text is None
    assert conversation.get("a").status == "incomplete"


def test_an_update_keeps_the_order():
    conversation = filled(user("a"), agent("b"))
    conversation.update("a", text="new")
    assert ids(conversation) == ["a", "b"]


def test_a_deleted_item_is_gone():
    conversation = filled(user("a"), agent("b"))
    conversation.delete("b")
    assert ids(conversation) == ["a"] and conversation.last_id == "a"


def test_truncating_keeps_what_was_heard():
    conversation = filled(agent("a", "one two three"))
    item = conversation.truncate("a", "one two", 800)
    assert item == Item("a", "assistant", True, "one two", "incomplete", 800, True)
    assert conversation.get("a") == item


def test_only_the_assistants_items_are_truncated():
    with pytest.raises(BadRequest):
        filled(user("a")).truncate("a", "", 0)


def test_the_llm_is_told_instructions_first():
    conversation = filled(user("a", "hello"), agent("b", "hi"))
    assert conversation.messages("Be kind.") == [
        Message("system", "Be kind."), Message("user", "hello"), Message("assistant", "hi"),
    ]  # fmt: skip
    assert conversation.messages("")[0] == Message("user", "hello")


def test_what_the_caller_said_in_a_row_is_one_message():
    conversation = filled(user("a", "I would like"), user("b", None), user("c", " a pizza. "))
    assert conversation.messages("") == [Message("user", "I would like a pizza.")]


def test_an_interrupted_reply_ends_with_a_dash():
    conversation = filled(user("a"), agent("b", "one two three, four"))
    conversation.truncate("b", "one two three,", 800)
    assert conversation.messages("")[-1] == Message("assistant", "one two three—")


@pytest.mark.parametrize(("text", "heard_ms"), [("", 300), ("something", 0)])
def test_a_reply_of_which_nothing_was_heard_is_left_out(text, heard_ms):
    conversation = filled(user("a", "one"), agent("b"), user("c", "two"))
    conversation.truncate("b", text, heard_ms)
    assert conversation.messages("") == [Message("user", "one two")]


def test_system_items_keep_their_place():
    system = Item("s", "system", False, "Now whisper.", "completed")
    conversation = filled(user("a", "one"), system, user("b", "two"))
    assert [m.role for m in conversation.messages("x")] == ["system", "user", "system", "user"]


def test_a_limit_must_allow_something():
    with pytest.raises(ValueError, match="limit"):
        Conversation(0)
