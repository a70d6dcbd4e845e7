"""The chunks of a chat completions stream, checked and read."""

from __future__ import annotations

from typing import Any

from voice_rtc.engines.base import LlmEvent, TextDelta, Usage
from voice_rtc.engines.llm.faults import deadline, fault, llm_error
from voice_rtc.engines.llm.surrogates import SurrogateJoiner
from voice_rtc.engines.llm.tool_calls import ToolCallJoiner


async def next_chunk(chunks: Any, seconds: float) -> Any:
    """The next chunk, None at the end. Raises LlmError."""
    import openai

    try:
        async with deadline(seconds, "the answer stopped"):
            chunk = await anext(chunks)
    except StopAsyncIteration:
        return None
    except openai.APIConnectionError as error:
        raise fault("llm_stream_cut", "the answer was cut off") from error
    except openai.OpenAIError as error:
        raise llm_error(error) from error
    except ValueError as error:  # neither JSON nor UTF-8
        raise fault("llm_stream_cut", "the answer was garbled") from error
    if not _is_chunk(chunk):
        raise fault("llm_stream_cut", "the answer was garbled")
    return chunk


async def first_chunk(chunks: Any, seconds: float) -> Any:
    """The first chunk that says something; None when the answer ends without one."""
    chunk = await next_chunk(chunks, seconds)
    while chunk is not None and not _has_content(chunk):
        chunk = await next_chunk(chunks, seconds)
    return chunk


class ChunkReader:
    """What the chunks of one answer say. Tool calls are whole at the end only."""

    def __init__(self) -> None:
        self._text = SurrogateJoiner()
        self._calls = ToolCallJoiner()
        self._usage: Usage | None = None

    def feed(self, chunk: Any) -> list[LlmEvent]:
        """The text of ``chunk``, if any."""
        self._usage = _usage(chunk) or self._usage
        events: list[LlmEvent] = []
        for choice in (chunk.choices or ())[:1]:
            self._calls.feed(_tool_calls(choice))
            if (content := _content(choice)) and (text := self._text.feed(content)):
                events.append(TextDelta(text))
        return events

    def flush(self) -> list[LlmEvent]:
        """The answer is over: what is left of it. Raises LlmError for a broken tool call."""
        rest = self._text.flush()
        text: list[LlmEvent] = [TextDelta(rest)] if rest else []
        usage: list[LlmEvent] = [self._usage] if self._usage is not None else []
        return [*text, *self._calls.flush(), *usage]


def _is_chunk(chunk: Any) -> bool:
    """The client hands on whatever JSON a service sends, typed or not."""
    if not hasattr(chunk, "choices") or not hasattr(chunk, "usage"):
        return False
    if chunk.choices is not None and not isinstance(chunk.choices, list):
        return False
    contents = [_content(choice) for choice in chunk.choices or ()]
    return all(content is None or isinstance(content, str) for content in contents)


def _usage(chunk: Any) -> Usage | None:
    """The counts, where they are counts: some services send an empty object with each chunk."""
    asked: Any = getattr(chunk.usage, "prompt_tokens", None)
    answered: Any = getattr(chunk.usage, "completion_tokens", None)
    if not (_is_count(asked) and _is_count(answered)):
        return None
    return Usage(asked, answered)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _content(choice: Any) -> Any:
    """Text of a choice; some services send choices without a delta."""
    return getattr(getattr(choice, "delta", None), "content", None)


def _tool_calls(choice: Any) -> Any:
    return getattr(getattr(choice, "delta", None), "tool_calls", None)


def _has_content(chunk: Any) -> bool:
    """Servers begin with a chunk that has only a role; the first token is what is waited for."""
    return _usage(chunk) is not None or any(
        _content(choice) or _tool_calls(choice) or getattr(choice, "finish_reason", None)
        for choice in chunk.choices or ()
    )
