"""`session.voice_rtc.llm`: what a client adds to the requests to the language model.

``body`` holds fields of the chat completions request, ``headers`` HTTP headers. The operator names
those that clients may set (`llm.client_fields`, `llm.client_headers`); everything else is refused.
Null is the server's own value, as elsewhere in the session.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from voice_rtc.config import LlmSettings
from voice_rtc.engines.base import LlmOptions
from voice_rtc.errors import BadRequest

_PARAM = "session.voice_rtc.llm"
_LONGEST_HEADER = 1000


def with_client_fields(options: LlmOptions, session: dict[str, Any]) -> LlmOptions:
    """``options`` with what ``session``, which `check_llm` let pass, adds."""
    given = _given(session)
    return replace(
        options,
        body=_set(given.get("body")),
        headers=_set(given.get("headers")),
    )


def check_llm(session: dict[str, Any], llm: LlmSettings) -> None:
    """Raises BadRequest, with ``param``, for what clients may not set."""
    given = _given(session)
    _only(given, ("body", "headers"), _PARAM, "llm_unknown_field")
    body, headers = _object(given, "body"), _object(given, "headers")
    _only(body, llm.client_fields, f"{_PARAM}.body", "llm_field_not_allowed")
    allowed = [name.lower() for name in llm.client_headers]
    lowered = {name.lower() for name in headers}
    _only(lowered, allowed, f"{_PARAM}.headers", "llm_header_not_allowed")
    for name, value in headers.items():
        if value is not None and not _is_header(value):
            raise _refused(
                f"{_PARAM}.headers.{name}",
                f"must be a string of at most {_LONGEST_HEADER} printable ASCII characters",
                "invalid_value",
            )


def _given(session: dict[str, Any]) -> dict[str, Any]:
    ours = session.get("voice_rtc")
    if ours is None:
        return {}
    if not isinstance(ours, dict):
        raise _refused("session.voice_rtc", "must be an object", "invalid_type")
    llm = ours.get("llm")
    if llm is not None and not isinstance(llm, dict):
        raise _refused(_PARAM, "must be an object", "invalid_type")
    return llm or {}


def _object(given: dict[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name)
    if value is not None and not isinstance(value, dict):
        raise _refused(f"{_PARAM}.{name}", "must be an object", "invalid_type")
    return value or {}


def _only(given: Collection[str], allowed: Collection[str], param: str, code: str) -> None:
    for name in given:
        if name not in allowed:
            known = ", ".join(allowed) or "nothing"
            raise _refused(
                f"{param}.{name[:64]}", f"clients of this server may set {known} here", code
            )


def _is_header(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= _LONGEST_HEADER
        and value.isascii()
        and value.isprintable()
    )


def _set(values: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (values or {}).items() if value is not None}


def _refused(param: str, message: str, code: str) -> BadRequest:
    return BadRequest(f"{param}: {message}", code=code, param=param)
