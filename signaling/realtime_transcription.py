"""`session.audio.input.transcription`: the caller's language and words to expect.

What stands in a session is what is in force: a field that is null or was never given gets the
server's value, and what the engine cannot do does not stay. A language that it does not know is
refused: transcripts in another one would be nonsense. A prompt is a hint: an engine that takes none
has an empty one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from voice_rtc.config import STT_PROMPT_CHARACTERS, SttSettings
from voice_rtc.engines.base import EngineInfo, SttOptions
from voice_rtc.errors import BadRequest

Json = dict[str, Any]

_PARAM = "session.audio.input.transcription.language"
_CODE = re.compile("[a-z]{2,3}")
"""Whisper has three letters where ISO 639-1 has no code."""
_MODEL_CHARACTERS = 200
_MOST_NAMED = 12
"""Languages that a refusal lists; of more it tells the number."""


class Transcription(BaseModel):
    """The fields that are acted on, and ``model``, which is kept. Others are kept too."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, max_length=_MODEL_CHARACTERS)
    language: str | None = None
    prompt: str | None = Field(None, max_length=STT_PROMPT_CHARACTERS)

    @field_validator("language")
    @classmethod
    def _is_code(cls, value: str | None) -> str | None:
        if value is None or _CODE.fullmatch(value):
            return value
        raise PydanticCustomError(
            "language_code", 'must be an ISO 639-1 language code such as "en", or null'
        )


def server_transcription(settings: SttSettings, stt: EngineInfo) -> Json:
    """How callers are transcribed who ask for nothing."""
    return {
        "model": stt.name,
        "language": _configured(settings.language, stt),
        "prompt": settings.prompt if stt.takes_prompt else "",
    }


def in_force(given: Json | None, server: Json, stt: EngineInfo) -> Json:
    """``given``, which was checked, with the server's values where it names none.

    Raises BadRequest for a language that the engine does not know.
    """
    named = {key: value for key, value in (given or {}).items() if value is not None}
    result = {**(given or {}), **server, **named}
    if not stt.takes_prompt:
        result["prompt"] = ""
    language = named.get("language")
    if language is not None and stt.languages and language not in stt.languages:
        raise BadRequest(
            f'{_PARAM}: {stt.name} {stt.model} does not know "{language}", but {_known(stt)}',
            code="invalid_value",
            param=_PARAM,
        )
    return result


def stt_options(asked: Json, server: Json, base: SttOptions) -> SttOptions:
    """What ``asked``, as `in_force` gave it, means for the engine; ``base`` is the server's own."""
    options = base
    if asked["language"] != server["language"]:
        options = replace(options, language=asked["language"])
    if asked["prompt"] != server["prompt"]:
        options = replace(options, prompt=asked["prompt"])
    return options


def _configured(language: str, stt: EngineInfo) -> str | None:
    """The language of ``stt.language``, None where it is detected.

    An engine of one language goes on with that one, whatever was configured.
    """
    if len(stt.languages) == 1:
        return stt.languages[0]
    if stt.languages and language not in stt.languages:
        return None
    return language or None


def _known(stt: EngineInfo) -> str:
    if len(stt.languages) > _MOST_NAMED:
        return f"{len(stt.languages)} others"
    return ", ".join(stt.languages) + " only"
