"""Any OpenAI-compatible chat completions service, streamed.

Wire format: https://platform.openai.com/docs/api-reference/chat/streaming. The client's own retries
are off: on a call a second attempt is worth one quick try and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from voice_rtc.core.history import Message
from voice_rtc.engines.base import EngineInfo, LlmEvent, LlmOptions, TextDelta, Usage
from voice_rtc.engines.llm.surrogates import SurrogateJoiner
from voice_rtc.errors import EngineUnavailable, LlmError

if TYPE_CHECKING:
    import openai

_log = structlog.get_logger("voice_rtc.engines")

_NO_KEY = "none"  # the client demands a key; local services ignore it
_PROBE_SECONDS = 3.0
_RETRYABLE = {"llm_rate_limited", "llm_server_error", "llm_unreachable", "llm_timeout"}
AS_CONFIGURED = LlmOptions()
"""The engine's own temperature and length."""


@dataclass(frozen=True, slots=True)
class OpenAiSettings:
    """Where the service is and how long it may take. Times in seconds."""

    model: str
    base_url: str = ""
    """Empty: OpenAI's own."""
    api_key: str = field(default="", repr=False)
    temperature: float | None = None
    max_tokens: int | None = 300
    connect_seconds: float = 5.0
    first_token_seconds: float = 15.0
    gap_seconds: float = 15.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class OpenAiLlm:
    """Answers from the service; every failure is an LlmError with its code."""

    def __init__(self, settings: OpenAiSettings, *, reason: str = "") -> None:
        self._settings = settings
        self._client: openai.AsyncOpenAI | None = None
        self._usage_wanted = True
        where = settings.base_url or "api.openai.com"
        self.info = EngineInfo("llm", "openai", model=f"{settings.model} at {where}", reason=reason)

    async def start(self) -> None:
        """Make the client and try the service once; that it does not answer is only logged."""
        import httpx2
        import openai

        settings = self._settings
        try:
            self._client = openai.AsyncOpenAI(
                api_key=settings.api_key or _NO_KEY,
                # never None: then the client would read its own environment variable
                base_url=settings.base_url or "https://api.openai.com/v1",
                timeout=httpx2.Timeout(None, connect=settings.connect_seconds),
                max_retries=0,
                default_headers=dict(settings.headers),
            )
        except (openai.OpenAIError, httpx2.InvalidURL, ValueError) as error:
            raise EngineUnavailable(f"the LLM client cannot be made: {error}") from error
        await self._probe(self._client)

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def stream(
        self, messages: Sequence[Message], options: LlmOptions = AS_CONFIGURED
    ) -> AsyncGenerator[LlmEvent, None]:
        """Stream one answer; see `LlmEngine.stream`. Closing it closes the HTTP stream."""
        client = self._client
        if client is None:
            raise EngineUnavailable("the LLM client is not running")
        chunks, first = await self._begin(client, self._request(messages, options))
        joiner = SurrogateJoiner()
        try:
            chunk: Any = first
            while chunk is not None:
                for event in _events(chunk, joiner):
                    yield event
                chunk = await self._next(chunks, self._settings.gap_seconds)
            if rest := joiner.flush():
                yield TextDelta(rest)
        finally:
            await chunks.close()

    async def _begin(self, client: openai.AsyncOpenAI, request: dict[str, Any]) -> tuple[Any, Any]:
        """The stream and its first chunk, with one more attempt where that may help."""
        try:
            return await self._attempt(client, request)
        except LlmError as error:
            if error.code == "llm_bad_request" and "stream_options" in request:
                # Some services know no stream_options: the answer matters more than the count.
                _log.info("llm_usage_not_supported")
                del request["stream_options"]
                self._usage_wanted = False
            elif error.code not in ("llm_server_error", "llm_unreachable"):
                raise
            else:
                _log.warning("llm_retry", code=error.code, error=str(error))
        return await self._attempt(client, request)

    async def _attempt(
        self, client: openai.AsyncOpenAI, request: dict[str, Any]
    ) -> tuple[Any, Any]:
        async with AsyncExitStack() as undo:
            async with _deadline(self._settings.first_token_seconds, "no first token"):
                chunks = await self._open(client, request)
                undo.push_async_callback(chunks.close)
                first = await self._next(chunks, self._settings.first_token_seconds)
                while first is not None and not _has_content(first):
                    first = await self._next(chunks, self._settings.first_token_seconds)
            undo.pop_all()
        return chunks, first

    async def _open(self, client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
        import openai

        try:
            return await client.chat.completions.create(**request)
        except openai.OpenAIError as error:
            raise llm_error(error) from error

    @staticmethod
    async def _next(chunks: Any, seconds: float) -> Any:
        """The next chunk, None at the end."""
        import openai

        try:
            async with _deadline(seconds, "the answer stopped"):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return None
        except openai.APIConnectionError as error:
            raise _error("llm_stream_cut", "the answer was cut off") from error
        except openai.OpenAIError as error:
            raise llm_error(error) from error
        except ValueError as error:  # neither JSON nor UTF-8
            raise _error("llm_stream_cut", "the answer was garbled") from error
        if not _is_chunk(chunk):
            raise _error("llm_stream_cut", "the answer was garbled")
        return chunk

    def _request(self, messages: Sequence[Message], options: LlmOptions) -> dict[str, Any]:
        settings = self._settings
        temperature = _first(options.temperature, settings.temperature)
        max_tokens = _first(options.max_tokens, settings.max_tokens)
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": each.role, "content": each.content} for each in messages],
            "stream": True,
        }
        if self._usage_wanted:
            request["stream_options"] = {"include_usage": True}
        if temperature is not None:
            request["temperature"] = temperature
        if max_tokens is not None:
            request["max_tokens"] = max_tokens
        return request

    async def _probe(self, client: openai.AsyncOpenAI) -> None:
        import openai

        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await client.models.list()
        except openai.OpenAIError as error:
            _log.warning("llm_probe_failed", code=llm_error(error).code, error=str(error)[:200])
        except TimeoutError:
            _log.warning("llm_probe_failed", code="llm_timeout", error="no answer")
        except ValueError as error:  # a service without /models may answer with anything
            _log.info("llm_probe_unreadable", error=str(error)[:200])
        else:
            _log.info("llm_probe_ok", model=self._settings.model)


@asynccontextmanager
async def _deadline(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise _error("llm_timeout", f"{what} within {seconds:g} s") from error


def llm_error(error: openai.OpenAIError) -> LlmError:
    """The client's error as ours. ``str()`` of it is fit to be shown, without the key."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        # Only connecting has a timeout in the client; the other deadlines are ours.
        return _error("llm_unreachable", "the LLM service did not accept a connection in time")
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__ if error.__cause__ else "no cause known"
        return _error("llm_unreachable", f"the LLM service cannot be reached ({cause})")
    if isinstance(error, openai.APIStatusError):
        return _error(_code(error.status_code), _status_message(error))
    if isinstance(error, openai.APIError):
        return _error("llm_server_error", f"the LLM service failed: {error.message}")
    return _error("llm_error", f"the LLM client failed: {type(error).__name__}")


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


def _error(code: str, message: str) -> LlmError:
    error = LlmError(message, code=code)
    error.retryable = code in _RETRYABLE
    return error


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


def _events(chunk: Any, joiner: SurrogateJoiner) -> list[LlmEvent]:
    events: list[LlmEvent] = [
        TextDelta(text)
        for choice in (chunk.choices or ())[:1]
        if (content := _content(choice)) and (text := joiner.feed(content))
    ]
    if chunk.usage is not None:
        events.append(Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
    return events


def _first(own: Any, configured: Any) -> Any:
    return configured if own is None else own
