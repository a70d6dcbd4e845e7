"""The OpenAI Realtime session object and what it means for a call.

A client changes its session by `session.update`; fields that this server does not act on are kept
and echoed, as the protocol has it ("only the fields that are present are updated"). What the
session means is always worked out from the server's defaults and the whole session: a field that
is null or was never given has the server's value, whatever it was before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from signaling.realtime_llm import check_llm, with_client_fields
from signaling.realtime_transcription import (
    Transcription,
    in_force,
    server_transcription,
    stt_options,
)
from voice_rtc.call.state import CallSettings, ReplyWishes
from voice_rtc.config import LimitSettings, LlmSettings, Settings
from voice_rtc.core.endpointing import PACES
from voice_rtc.core.turns import TurnRules
from voice_rtc.engines.base import EngineInfo, EngineSet, SttOptions, VoiceOptions
from voice_rtc.errors import BadRequest

Session = dict[str, Any]

_FORMAT = {"type": "audio/pcm", "rate": 24_000}
# Eagerness of semantic_vad as a preset; `auto` is the server's own.
_EAGERNESS = {"low": "relaxed", "medium": "default", "high": "eager"}
_DEEPEST = 16
_DEFAULT_VOICE = "default"
# Engines whose `EngineInfo.model` is the name of the voice they speak with.
_MODEL_IS_VOICE = frozenset({"espeak-ng"})
# OpenAI's own bounds on metadata.
_METADATA_PAIRS, _METADATA_KEY, _METADATA_VALUE = 16, 64, 512


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class _TurnDetection(_Lenient):
    type: str = Field("server_vad", pattern="^(server_vad|semantic_vad)$")
    threshold: float | None = Field(None, gt=0, lt=1)
    silence_duration_ms: int | None = Field(None, ge=100, le=10_000)
    eagerness: str | None = Field(None, pattern="^(low|medium|high|auto)$")
    speed: float | None = Field(None, ge=0.5, le=2.0)
    create_response: bool | None = None
    interrupt_response: bool | None = None
    idle_timeout_ms: int | None = Field(None, ge=1000, le=300_000)


class _Input(_Lenient):
    turn_detection: _TurnDetection | None = None
    transcription: Transcription | None = None


class _VoiceId(_Lenient):
    id: str = Field(max_length=200)


class _Output(_Lenient):
    voice: str | _VoiceId | None = None
    speed: float | None = Field(None, ge=0.25, le=4.0)


class _Audio(_Lenient):
    input: _Input | None = None
    output: _Output | None = None


class _Extension(_Lenient):
    """``session.voice_rtc``: what OpenAI's session has no field for."""

    barge_in: Literal["default", "words", "any", "never"] | None = None


class _Session(_Lenient):
    """The fields this server acts on, with their ranges."""

    type: str = Field("realtime", pattern="^realtime$")
    instructions: str | None = None
    audio: _Audio | None = None
    voice_rtc: _Extension | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a call's sessions are measured by."""

    defaults: Session
    """The session that the call begins with: the server's own."""
    limits: LimitSettings
    stt: EngineInfo
    llm: LlmSettings

    @property
    def largest_bytes(self) -> int:
        """As JSON. What fits into an offer fits, however long the operator's own session is."""
        return session_bytes(self.defaults) + self.limits.session_bytes


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
                "transcription": server_transcription(settings.stt, engines.stt.info),
                "noise_reduction": None,
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": settings.turns.speech_threshold,
                    "prefix_padding_ms": round(settings.turns.prefix_seconds * 1000),
                    "silence_duration_ms": None,
                    "create_response": True,
                    "interrupt_response": True,
                    "idle_timeout_ms": round(settings.turns.idle_prompt_seconds * 1000) or None,
                },
            },
            "output": {
                "format": _FORMAT,
                "voice": _default_voice(settings, engines.tts.info),
                "speed": settings.tts.speed,
            },
        },
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": settings.llm.max_tokens or "inf",
        "tracing": None,
        "truncation": "auto",
        "voice_rtc": {"barge_in": settings.turns.barge_in},
    }


def _default_voice(settings: Settings, tts: EngineInfo) -> str:
    if tts.name in _MODEL_IS_VOICE and tts.model:
        return tts.model  # not as configured where the engine has no such voice
    return settings.tts.voice or _DEFAULT_VOICE


def session_bytes(session: Session) -> int:
    """How long ``session`` is as JSON."""
    return len(msgspec.json.encode(session))


def merged(session: Session, update: Any, terms: Terms) -> Session:
    """``session`` with ``update`` laid over it. Raises BadRequest; then nothing has changed."""
    limits = terms.limits
    if not isinstance(update, dict):
        raise BadRequest("session must be an object", code="invalid_type", param="session")
    if _is_deeper(update, _DEEPEST):
        raise BadRequest(f"session: nested deeper than {_DEEPEST} levels", code="invalid_value")
    result = copy.deepcopy(session)
    _lay_over(result, update)
    _check(result)
    check_llm(result, terms.llm)
    _settle_transcription(result, terms)
    instructions = update.get("instructions")  # the operator's own may be as long as they like
    if isinstance(instructions, str) and len(instructions) > limits.text_characters:
        raise BadRequest(
            f"instructions may have at most {limits.text_characters} characters",
            code="text_too_long",
            param="session.instructions",
        )
    largest = terms.largest_bytes
    if session_bytes(result) > largest:
        raise BadRequest(
            f"the session would be larger than {largest} bytes", code="session_too_large"
        )
    return result


def _settle_transcription(session: Session, terms: Terms) -> None:
    given = (session.get("audio") or {}).get("input")
    if given is not None:
        server = terms.defaults["audio"]["input"]["transcription"]
        given["transcription"] = in_force(given.get("transcription"), server, terms.stt)


def call_settings(session: Session, defaults: Session, base: CallSettings) -> CallSettings:
    """What ``session``, as `merged` gave it, means for a call.

    ``defaults`` is the session that the call began with, ``base`` the server's settings.
    """
    checked = _Session.model_validate(session)
    spoken = _is_spoken(session.get("output_modalities"), "session")
    audio = checked.audio or _Audio()
    settings = replace(
        base,
        instructions=base.instructions if checked.instructions is None else checked.instructions,
        spoken=base.spoken if spoken is None else spoken,
        llm=with_client_fields(
            replace(base.llm, max_tokens=_own_token_limit(session, defaults)), session
        ),
        voice=_voice(audio.output or _Output(), defaults["audio"]["output"]),
        stt=_stt(session, defaults, base),
    )
    return _with_extension(
        _with_detection(settings, audio.input or _Input()), checked.voice_rtc or _Extension()
    )


def reply_wishes(
    given: Session, defaults: Session, text_limit: int
) -> tuple[ReplyWishes, dict[str, str]]:
    """What the ``response`` of a ``response.create`` asks for, and its metadata.

    Raises BadRequest for what this server does not do.
    """
    if given.get("conversation") not in (None, "auto"):
        raise BadRequest(
            "responses outside the conversation are not supported", code="unsupported_parameter"
        )
    if given.get("input") is not None:
        raise BadRequest("response.input is not supported", code="unsupported_parameter")
    if given.get("tools"):
        raise BadRequest("response.tools are not supported", code="unsupported_parameter")
    instructions = given.get("instructions")
    if instructions is not None:
        instructions = text_of(instructions, "response.instructions", text_limit)
    wishes = ReplyWishes(
        instructions=instructions,
        spoken=_is_spoken(given.get("output_modalities"), "response"),
        max_tokens=_token_limit(given, "response", defaults),
    )
    return wishes, _metadata(given.get("metadata"))


def text_of(value: Any, name: str, limit: int) -> str:
    """``value`` if it is a string of at most ``limit`` characters. Raises BadRequest."""
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a string", code="invalid_type")
    if len(value) > limit:
        raise BadRequest(f"{name} may have at most {limit} characters", code="text_too_long")
    return value


# ------------------------------------------------------------------------------- checking


def _check(session: Session) -> None:
    try:
        _Session.model_validate(session)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = _path(session, first["loc"])
        is_type = first["type"].endswith("_type")
        raise BadRequest(
            f"{param}: {first['msg']}",
            code="invalid_type" if is_type else "invalid_value",
            param=param,
        ) from None
    _is_spoken(session.get("output_modalities"), "session")
    _check_tokens(session.get("max_output_tokens"), "session")


def _path(session: Session, place: Sequence[str | int]) -> str:
    """Where ``place`` of a ValidationError is; it names the members of unions too."""
    names, value = ["session"], session
    for part in place:
        if not isinstance(value, dict) or part not in value:
            break
        names.append(str(part))
        value = value[str(part)]
    return ".".join(names)


def _is_deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in value)


def _is_spoken(modalities: Any, name: str) -> bool | None:
    if modalities is None:
        return None
    if modalities not in (["audio"], ["text"]):
        raise BadRequest(
            f'{name}.output_modalities must be ["audio"] or ["text"]',
            code="invalid_value",
            param=f"{name}.output_modalities",
        )
    return bool(modalities == ["audio"])


def _check_tokens(value: Any, name: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and value != "inf" and not (whole and value >= 1):
        raise BadRequest(
            f'{name}.max_output_tokens must be a whole number from 1 or "inf"',
            code="invalid_value",
            param=f"{name}.max_output_tokens",
        )


def _token_limit(given: Session, name: str, defaults: Session) -> int | None:
    """The limit that ``given`` names; "inf" is the server's own, None: it names none."""
    value = given.get("max_output_tokens")
    _check_tokens(value, name)
    if value == "inf":
        value = defaults["max_output_tokens"]
    return value if isinstance(value, int) else None


def _own_token_limit(session: Session, defaults: Session) -> int | None:
    limit = _token_limit(session, "session", defaults)
    return None if limit == defaults["max_output_tokens"] else limit


def _metadata(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadRequest("response.metadata must be an object", code="invalid_type")
    if len(given) > _METADATA_PAIRS:
        raise BadRequest(
            f"response.metadata may have at most {_METADATA_PAIRS} keys", code="invalid_value"
        )
    for key, value in given.items():
        text_of(key, "a key of response.metadata", _METADATA_KEY)
        text_of(value, "a value of response.metadata", _METADATA_VALUE)
    return given


# -------------------------------------------------------------------------------- meaning


def _voice(output: _Output, default: Session) -> VoiceOptions:
    voice = output.voice.id if isinstance(output.voice, _VoiceId) else output.voice
    speed = output.speed
    return VoiceOptions(
        None if voice == default["voice"] else voice or None,
        None if speed is None or speed == default["speed"] else min(2.0, max(0.5, speed)),
    )


def _stt(session: Session, defaults: Session, base: CallSettings) -> SttOptions:
    asked = ((session.get("audio") or {}).get("input") or {}).get("transcription")
    server = defaults["audio"]["input"]["transcription"]
    return stt_options(asked or server, server, base.stt)


def _with_detection(settings: CallSettings, given: _Input) -> CallSettings:
    detection = given.turn_detection
    if detection is None:
        # Null is push-to-talk; to say nothing of it is not.
        return replace(settings, manual_turns="turn_detection" in given.model_fields_set)
    rules = replace(
        settings.rules,
        creates_reply=detection.create_response is not False,
        interrupts=detection.interrupt_response is not False,
    )
    if detection.idle_timeout_ms is not None:
        rules = replace(rules, idle_seconds=detection.idle_timeout_ms / 1000)
    settings = replace(settings, manual_turns=False, rules=rules)
    if detection.threshold is not None:
        settings = replace(settings, speech_threshold=detection.threshold)
    if detection.type == "semantic_vad":
        return replace(settings, rules=_paced(rules, detection))
    if detection.silence_duration_ms is not None:
        settings = settings.with_pause(detection.silence_duration_ms / 1000)
    return settings


def _paced(rules: TurnRules, detection: _TurnDetection) -> TurnRules:
    preset = _EAGERNESS.get(detection.eagerness or "auto")
    pace = rules.pace if preset is None else PACES[preset]
    return replace(rules, pace=pace / (detection.speed or 1.0))


def _with_extension(settings: CallSettings, given: _Extension) -> CallSettings:
    if given.barge_in is None:
        return settings
    barge_in = replace(settings.rules.barge_in, policy=given.barge_in)
    return replace(settings, rules=replace(settings.rules, barge_in=barge_in))


def _lay_over(target: Session, update: Session) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _lay_over(target[key], value)
        else:
            target[key] = copy.deepcopy(value)
