"""The chunks of a chat completions stream, checked and read."""

from __future__ import annotations

from typing import Any

from voice_rtc.engines.base import LlmEvent, TextDelta, Usage
from voice_rtc.engines.llm.faults import deadline, fault, llm_error
from voice_rtc.engines.llm.surrogates import SurrogateJoiner


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


def chunk_events(chunk: Any, joiner: SurrogateJoiner) -> list[LlmEvent]:
    """What ``chunk`` says."""
    events: list[LlmEvent] = [
        TextDelta(text)
        for choice in (chunk.choices or ())[:1]
        if (content := _content(choice)) and (text := joiner.feed(content))
    ]
    if chunk.usage is not None:
        events.append(Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
    return events


def _is_chunk(chunk: Any) -> bool:
    """The client hands on whatever JSON a service sends, typed or not."""
    if not hasattr(chunk, "choices") or not hasattr(chunk, "usage"):
        return False
    contents = [_content(choice) for choice in chunk.choices or ()]
    return all(content is None or isinstance(content, str) for content in contents)


def _content(choice: Any) -> Any:
    """Text of a choice; some services send choices without a delta."""
    return getattr(getattr(choice, "delta", None), "content", None)


def _has_content(chunk: Any) -> bool:
    """Servers begin with a chunk that has only a role; the first token is what is waited for."""
    return chunk.usage is not None or any(
        _content(choice) or getattr(choice, "finish_reason", None) for choice in chunk.choices or ()
    )
