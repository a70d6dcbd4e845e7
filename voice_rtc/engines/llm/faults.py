"""What can go wrong with a chat completions service, as LlmErrors with their codes."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from voice_rtc.errors import LlmError

if TYPE_CHECKING:
    import openai

_RETRYABLE = {"llm_rate_limited", "llm_server_error", "llm_unreachable", "llm_timeout"}


def fault(code: str, message: str) -> LlmError:
    """An LlmError that knows whether another attempt may help."""
    error = LlmError(message, code=code)
    error.retryable = code in _RETRYABLE
    return error


@asynccontextmanager
async def deadline(seconds: float, what: str) -> AsyncIterator[None]:
    """Raises LlmError ``llm_timeout`` when the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise fault("llm_timeout", f"{what} within {seconds:g} s") from error


def llm_error(error: openai.OpenAIError) -> LlmError:
    """The client's error as ours. ``str()`` of it is fit to be shown, without the key."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        # Only connecting has a timeout in the client; the other deadlines are ours.
        return fault("llm_unreachable", "the LLM service did not accept a connection in time")
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__ if error.__cause__ else "no cause known"
        return fault("llm_unreachable", f"the LLM service cannot be reached ({cause})")
    if isinstance(error, openai.APIStatusError):
        code = "llm_context_exceeded" if _is_too_long(error) else _code(error.status_code)
        ours = fault(code, _status_message(error))
        ours.wait_seconds = retry_after(error.response.headers)
        return ours
    if isinstance(error, openai.APIError):
        return fault("llm_server_error", f"the LLM service failed: {error.message}")
    return fault("llm_error", f"the LLM client failed: {type(error).__name__}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a service asks to wait (RFC 9110, 10.2.3); None when it does not say.

    Dates are not read: their resolution of a second and two clocks are no help within a turn.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0.0:
            return seconds
    return None


def _is_too_long(error: openai.APIStatusError) -> bool:
    """OpenAI and vLLM, llama.cpp; others only say it in their own words."""
    if error.status_code not in (400, 413, 422):
        return False
    if error.code == "context_length_exceeded" or error.type == "exceed_context_size_error":
        return True
    return re.search(r"context (?:length|size|window)", error.message, re.IGNORECASE) is not None


def _code(status: int) -> str:
    if status in (401, 403):
        return "llm_unauthorized"
    if status == 429:
        return "llm_rate_limited"
    return "llm_server_error" if status >= 500 else "llm_bad_request"


def _status_message(error: openai.APIStatusError) -> str:
    if error.status_code in (401, 403):
        # The service's own words may quote a part of the key.
        return f"the LLM service refused the API key (status {error.status_code})"
    return f"the LLM service answered {error.status_code}: {error.message[:300]}"
