"""The OpenAI Realtime session object and what it means for a call.

A client changes its session by `session.update`; fields that this server does not act on are kept
and echoed, as the protocol has it ("only the fields that are present are updated").
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from voice_rtc.call.state import CallSettings
from voice_rtc.config import Settings
from voice_rtc.core.turns import TurnRules
from voice_rtc.engines.base import EngineSet, LlmOptions, VoiceOptions
from voice_rtc.errors import BadRequest

Session = dict[str, Any]

_FORMAT = {"type": "audio/pcm", "rate": 24_000}
# Eagerness of semantic_vad as a factor on the pauses; `auto` is `medium`, as OpenAI has it.
_EAGERNESS = {"low": 2.0, "medium": 1.0, "auto": 1.0, "high": 0.6}


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class _TurnDetection(_Lenient):
    type: str = Field("server_vad", pattern="^(server_vad|semantic_vad)$")
    threshold: float | None = Field(None, gt=0, lt=1)
    silence_duration_ms: int | None = Field(None, ge=100, le=10_000)
    eagerness: str | None = Field(None, pattern="^(low|medium|high|auto)$")
    create_response: bool | None = None
    interrupt_response: bool | None = None


class _Input(_Lenient):
    turn_detection: _TurnDetection | None = None


class _VoiceId(_Lenient):
    id: str = Field(max_length=200)


class _Output(_Lenient):
    voice: str | _VoiceId | None = None
    speed: float | None = Field(None, ge=0.25, le=4.0)


class _Audio(_Lenient):
    input: _Input | None = None
    output: _Output | None = None


class _Session(_Lenient):
    """The fields this server acts on, with their ranges."""

    type: str = Field("realtime", pattern="^realtime$")
    instructions: str | None = None
    output_modalities: list[str] | None = None
    max_output_tokens: int | str | None = None
    audio: _Audio | None = None


def new_session(call_id: str, settings: Settings, engines: EngineSet) -> Session:
    """The session as it stands when a call begins."""
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": f"sess_{call_id.removeprefix('rtc_')}",
        "model": "voice_rtc",
        "output_modalities": ["audio"],
        "instructions": settings.session.instructions,
        "audio": {
            "input": {
                "format": _FORMAT,
                "transcription": {
                    "model": engines.stt.info.name,
                    "language": settings.stt.language or None,
                },
                "noise_reduction": None,
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": settings.turns.speech_threshold,
                    "prefix_padding_ms": round(settings.turns.prefix_seconds * 1000),
                    "silence_duration_ms": None,
                    "create_response": True,
                    "interrupt_response": True,
                    "idle_timeout_ms": None,
                },
            },
            "output": {
                "format": _FORMAT,
                "voice": settings.tts.voice or engines.tts.info.name,
                "speed": settings.tts.speed,
            },
        },
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": settings.llm.max_tokens or "inf",
        "tracing": None,
        "truncation": "auto",
    }


def merged(session: Session, update: Any, text_limit: int) -> Session:
    """``session`` with ``update`` laid over it. Raises BadRequest; then nothing has changed."""
    if not isinstance(update, dict):
        raise BadRequest("session must be an object", code="invalid_type")
    result = copy.deepcopy(session)
    _lay_over(result, update)
    try:
        checked = _Session.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("session", *first["loc"]))
        raise BadRequest(f"{where}: {first['msg']}", code="invalid_value") from None
    if len(checked.instructions or "") > text_limit:
        raise BadRequest(
            f"instructions may have at most {text_limit} characters", code="text_too_long"
        )
    if checked.output_modalities is not None and checked.output_modalities not in (
        ["audio"],
        ["text"],
    ):
        raise BadRequest('output_modalities must be ["audio"] or ["text"]', code="invalid_value")
    return result


def call_settings(session: Session, update: Session, base: CallSettings) -> CallSettings:
    """What the merged ``session`` means; ``update`` tells which fields the client touched."""
    checked = _Session.model_validate(session)
    settings = replace(base, instructions=checked.instructions or "")
    settings = replace(settings, spoken=checked.output_modalities != ["text"])
    if isinstance(checked.max_output_tokens, int):
        settings = replace(
            settings, llm=LlmOptions(settings.llm.temperature, checked.max_output_tokens)
        )
    audio = checked.audio or _Audio()
    touched = update.get("audio") if isinstance(update.get("audio"), dict) else {}
    assert isinstance(touched, dict)
    if "output" in touched:
        settings = replace(settings, voice=_voice(audio.output or _Output()))
    if "turn_detection" in (touched.get("input") or {}):
        settings = _with_detection(settings, (audio.input or _Input()).turn_detection)
    return settings


def _voice(output: _Output) -> VoiceOptions:
    voice = output.voice.id if isinstance(output.voice, _VoiceId) else output.voice
    speed = min(2.0, max(0.5, output.speed)) if output.speed is not None else None
    return VoiceOptions(voice or None, speed)


def _with_detection(settings: CallSettings, detection: _TurnDetection | None) -> CallSettings:
    if detection is None:
        return replace(settings, manual_turns=True)
    rules = replace(
        settings.rules,
        creates_reply=detection.create_response is not False,
        interrupts=detection.interrupt_response is not False,
    )
    settings = replace(settings, manual_turns=False, rules=rules)
    if detection.threshold is not None:
        settings = replace(settings, speech_threshold=detection.threshold)
    if detection.silence_duration_ms is not None:
        settings = settings.with_pause(detection.silence_duration_ms / 1000)
    if detection.type == "semantic_vad":
        settings = replace(settings, rules=_eager(rules, detection.eagerness or "auto"))
    return settings


def _eager(rules: TurnRules, eagerness: str) -> TurnRules:
    factor = _EAGERNESS[eagerness]
    return replace(
        rules,
        min_pause_seconds=rules.min_pause_seconds * factor,
        max_pause_seconds=rules.max_pause_seconds * factor,
    )


def _lay_over(target: Session, update: Session) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _lay_over(target[key], value)
        else:
            target[key] = copy.deepcopy(value)
