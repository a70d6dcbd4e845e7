"""Any OpenAI-compatible chat completions service, streamed.

Wire format: https://platform.openai.com/docs/api-reference/chat/streaming. The client's own retries
are off: on a call what helps is asking again before the caller notices (`race.py`), once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from voice_rtc.core.hedging import UsualTime
from voice_rtc.core.history import Message
from voice_rtc.core.tools import ToolSpec
from voice_rtc.engines.base import EngineInfo, LlmEvent, LlmOptions
from voice_rtc.engines.llm.chunks import ChunkReader, first_chunk, next_chunk
from voice_rtc.engines.llm.faults import llm_error
from voice_rtc.engines.llm.race import Race, RaceRules
from voice_rtc.errors import EngineUnavailable, LlmError

if TYPE_CHECKING:
    import httpx2
    import openai

_log = structlog.get_logger("voice_rtc.engines")

_OPENAI = "https://api.openai.com/v1"
_NO_KEY = "none"  # the client demands a key; local services ignore it
_PROBE_SECONDS = 3.0
_CONNECTIONS, _IDLE_CONNECTIONS = 1000, 100
_WARM_UPS = 8
"""At the same time; more would be a load of their own."""
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
    hedge_seconds: float | None = None
    """A request without a first token for so long gets a twin; None: never."""
    keep_alive_seconds: float = 60.0
    """How long a connection that is not used is kept."""
    warm_up: bool = True
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Mapping[str, Any] = field(default_factory=dict)
    """More fields of each request."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One that has begun. ``first`` None: it ended without a word."""

    chunks: Any
    first: Any
    seconds: float
    """From its own request to its first token."""

    async def aclose(self) -> None:
        await self.chunks.close()


class OpenAiLlm:
    """Answers from the service; every failure is an LlmError with its code."""

    def __init__(self, settings: OpenAiSettings, *, reason: str = "") -> None:
        self._settings = settings
        self._client: openai.AsyncOpenAI | None = None
        self._http: httpx2.AsyncClient | None = None
        self._usage_wanted = True
        self._usual = UsualTime()
        self._warming = 0
        self.on_request: Callable[[str], None] | None = None
        where = settings.base_url or "api.openai.com"
        self.info = EngineInfo("llm", "openai", model=f"{settings.model} at {where}", reason=reason)

    async def start(self) -> None:
        """Make the client and try the service once; that it does not answer is only logged."""
        import httpx2
        import openai

        settings = self._settings
        try:
            self._http = openai.DefaultAsyncHttpxClient(
                limits=httpx2.Limits(
                    max_connections=_CONNECTIONS,
                    max_keepalive_connections=_IDLE_CONNECTIONS,
                    # The default of 5 s is less than a turn: each would begin with a handshake.
                    keepalive_expiry=settings.keep_alive_seconds,
                ),
            )
            self._client = openai.AsyncOpenAI(
                api_key=settings.api_key or _NO_KEY,
                # never None: then the client would read its own environment variable
                base_url=settings.base_url or _OPENAI,
                timeout=httpx2.Timeout(None, connect=settings.connect_seconds),
                max_retries=0,
                default_headers=dict(settings.headers),
                http_client=self._http,
            )
        except (openai.OpenAIError, httpx2.InvalidURL, ValueError) as error:
            raise EngineUnavailable(f"the LLM client cannot be made: {error}") from error
        await self._probe(self._client)

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        client, self._client = self._client, None
        http, self._http = self._http, None
        if client is not None:
            await client.close()
        elif http is not None:  # the client could not be made
            await http.aclose()

    async def warm_up(self) -> None:
        """See `SupportsWarmUp`: one small request, since only a request opens a connection."""
        import httpx2

        client, http = self._client, self._http
        if client is None or http is None or not self._settings.warm_up:
            return
        if self._warming >= _WARM_UPS:
            return
        self._warming += 1
        self._count("warm_up")
        try:
            async with asyncio.timeout(self._settings.connect_seconds):
                # Whatever it answers, the connection is there then.
                await http.head(f"{str(client.base_url).rstrip('/')}/models", headers=self._own())
        except (httpx2.HTTPError, TimeoutError) as error:
            _log.info("llm_warm_up_failed", error=type(error).__name__)
        finally:
            self._warming -= 1

    async def stream(
        self, messages: Sequence[Message], options: LlmOptions = AS_CONFIGURED
    ) -> AsyncGenerator[LlmEvent, None]:
        """Stream one answer; see `LlmEngine.stream`. Closing it closes the HTTP stream."""
        client = self._client
        if client is None:
            raise EngineUnavailable("the LLM client is not running")
        answer = await self._begin(client, self._request(messages, options))
        reader = ChunkReader()
        try:
            chunk: Any = answer.first
            while chunk is not None:
                for event in reader.feed(chunk):
                    yield event
                chunk = await next_chunk(answer.chunks, self._settings.gap_seconds)
            for event in reader.flush():
                yield event
        finally:
            await answer.aclose()

    async def _begin(self, client: openai.AsyncOpenAI, request: dict[str, Any]) -> _Answer:
        """An answer that has begun, the first of those that were asked for."""
        settings = self._settings
        hedge = settings.hedge_seconds
        rules = RaceRules(
            settings.first_token_seconds, None if hedge is None else self._usual.late_after(hedge)
        )

        async def attempt() -> _Answer:
            return await self._attempt(client, request)

        answer = await Race(attempt, _Answer.aclose, rules, self._count).winner()
        if answer.first is not None:
            self._usual.note(answer.seconds)
        return answer

    async def _attempt(self, client: openai.AsyncOpenAI, request: dict[str, Any]) -> _Answer:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with AsyncExitStack() as undo:
            chunks = await self._open(client, request)
            undo.push_async_callback(chunks.close)
            first = await first_chunk(chunks, self._settings.first_token_seconds)
            undo.pop_all()
        return _Answer(chunks, first, loop.time() - began)

    async def _open(self, client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
        usage = {"stream_options": {"include_usage": True}} if self._usage_wanted else {}
        try:
            return await _create(client, {**request, **usage})
        except LlmError as error:
            if error.code != "llm_bad_request" or not usage:
                raise
        # Some services know no stream_options: the answer matters more than the count.
        chunks = await _create(client, request)
        self._usage_wanted = False
        _log.info("llm_usage_not_supported")
        return chunks

    def _request(self, messages: Sequence[Message], options: LlmOptions) -> dict[str, Any]:
        settings = self._settings
        temperature = _first(options.temperature, settings.temperature)
        max_tokens = _first(options.max_tokens, settings.max_tokens)
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": [_message(each) for each in messages],
            "stream": True,
            **_tools(options),
        }
        if temperature is not None:
            request["temperature"] = temperature
        if max_tokens is not None:
            request["max_tokens"] = max_tokens
        if body := {**settings.body, **options.body}:
            request["extra_body"] = body
        if options.headers:
            request["extra_headers"] = dict(options.headers)
        return request

    def _own(self) -> dict[str, str]:
        """Headers of requests past the client."""
        settings = self._settings
        return {"Authorization": f"Bearer {settings.api_key or _NO_KEY}", **settings.headers}

    def _count(self, kind: str) -> None:
        if self.on_request is not None:
            self.on_request(kind)

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


async def _create(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    import openai

    try:
        return await client.chat.completions.create(**request)
    except openai.OpenAIError as error:
        raise llm_error(error) from error


def _message(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    return told


def _tools(options: LlmOptions) -> dict[str, Any]:
    if not options.tools:
        return {}
    choice: Any = options.tool_choice
    if choice not in ("auto", "none", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    return {"tools": [_tool(each) for each in options.tools], "tool_choice": choice}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": function}


def _first(own: Any, configured: Any) -> Any:
    return configured if own is None else own
