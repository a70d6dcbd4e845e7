"""What a client's session means for a call: always the server's defaults and the whole session."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from signaling.realtime_session import (
    Session,
    call_settings,
    merged,
    new_session,
    reply_wishes,
    session_bytes,
)
from voice_rtc.call.state import CallSettings, ReplyWishes
from voice_rtc.config import Settings
from voice_rtc.engines.base import EngineSet, LlmOptions, TtsEngine, VoiceOptions
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.errors import BadRequest

SETTINGS = Settings(turns={"min_pause_seconds": 0.4, "max_pause_seconds": 1.2})
DEFAULTS = CallSettings.from_settings(SETTINGS)


def session_of(settings: Settings, tts: TtsEngine) -> Session:
    engines = EngineSet(ThresholdVad(), ScriptedStt(), EchoLlm(), tts)
    return new_session("rtc_1", settings, engines)


class Client:
    """A session that is updated again and again."""

    def __init__(self, settings: Settings = SETTINGS, tts: TtsEngine | None = None) -> None:
        self.server = settings
        self.defaults = session_of(settings, tts or ToneTts())
        self.session = self.defaults
        self.largest = session_bytes(self.defaults) + settings.limits.session_bytes

    def update(self, **update: Any) -> CallSettings:
        self.session = merged(self.session, update, self.server.limits, self.largest)
        base = CallSettings.from_settings(self.server)
        return call_settings(self.session, self.defaults, base)

    def detect(self, detection: Any) -> CallSettings:
        return self.update(audio={"input": {"turn_detection": detection}})

    def refusal(self, **update: Any) -> str:
        """The code with which ``update`` is refused; nothing has changed."""
        before = copy.deepcopy(self.session)
        with pytest.raises(BadRequest) as caught:
            self.update(**update)
        assert self.session == before
        return caught.value.code


@pytest.fixture
def client() -> Client:
    return Client()


def nested(levels: int) -> Any:
    value: Any = "the bottom"
    for level in range(levels):
        value = {"x": value} if level % 2 else [value]
    return value


def test_the_session_as_it_begins_is_the_servers_settings(client: Client) -> None:
    assert client.update() == DEFAULTS
    assert client.update(tracing="auto") == DEFAULTS


# ------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("levels", [17, 100, 900])
def test_deep_nesting_is_refused(client: Client, levels: int) -> None:
    assert client.refusal(x=nested(levels)) == "invalid_value"


def test_nesting_is_taken_down_to_sixteen_levels(client: Client) -> None:
    client.update(x=nested(15))
    assert client.refusal(x=nested(16)) == "invalid_value"


def test_a_session_cannot_be_made_to_grow_without_bound(client: Client) -> None:
    for number in range(100):
        if client.largest - session_bytes(client.session) < 1_100:
            break
        client.update(**{f"key{number}": "x" * 1_000})
    assert client.refusal(more="x" * 2_000) == "session_too_large"
    assert session_bytes(client.session) <= client.largest
    client.update(key0=None)
    client.update(more="x" * 900)


def test_long_instructions_of_the_operator_do_not_stand_in_the_way() -> None:
    text = "Be kind. " * 3_000
    client = Client(Settings(session={"instructions": text}))
    assert client.update(tracing="auto").instructions == text
    assert client.refusal(instructions="x" * 8_001) == "text_too_long"


# ----------------------------------------------------------------------- turn detection


def test_eagerness_does_not_compound(client: Client) -> None:
    for _ in range(3):
        settings = client.detect({"type": "semantic_vad", "eagerness": "low"})
        assert settings.rules.min_pause_seconds == pytest.approx(0.8)
        assert settings.rules.max_pause_seconds == pytest.approx(2.4)
    assert client.update(tracing="auto").rules.min_pause_seconds == pytest.approx(0.8)
    settings = client.detect({"eagerness": "high"})
    assert settings.rules.max_pause_seconds == pytest.approx(0.72)
    assert client.detect({"eagerness": None}).rules == DEFAULTS.rules
    assert client.detect({"type": "server_vad", "eagerness": "low"}).rules == DEFAULTS.rules


def test_null_gives_the_dynamic_pause_back(client: Client) -> None:
    settings = client.detect({"silence_duration_ms": 300})
    assert settings.rules.min_pause_seconds == settings.rules.max_pause_seconds == 0.3
    assert client.detect({"silence_duration_ms": None}).rules == DEFAULTS.rules


def test_a_fixed_pause_is_not_what_eagerness_scales(client: Client) -> None:
    client.detect({"silence_duration_ms": 300})
    settings = client.detect({"type": "semantic_vad", "eagerness": "low"})
    assert settings.rules.max_pause_seconds == pytest.approx(2.4)


def test_null_gives_the_threshold_back(client: Client) -> None:
    assert client.detect({"threshold": 0.9}).speech_threshold == 0.9
    assert client.update(tracing="auto").speech_threshold == 0.9
    assert client.detect({"threshold": None}).speech_threshold == DEFAULTS.speech_threshold


def test_null_turn_detection_is_push_to_talk_and_no_turn_detection_is_not(client: Client) -> None:
    assert client.detect(None).manual_turns
    assert client.update(instructions="Be brief.").manual_turns
    assert not client.update(audio=None).manual_turns
    assert not client.update(audio={"input": {}}).manual_turns
    assert client.detect(None).manual_turns
    assert client.detect({"type": "server_vad"}).rules == DEFAULTS.rules


def test_replies_and_interruptions_are_allowed_again_by_null(client: Client) -> None:
    rules = client.detect({"create_response": False, "interrupt_response": False}).rules
    assert not rules.creates_reply and not rules.interrupts
    again = client.detect({"create_response": None, "interrupt_response": None}).rules
    assert again.creates_reply and again.interrupts


# ------------------------------------------------------------------------------ answers


def test_inf_and_null_give_the_configured_length_back(client: Client) -> None:
    assert client.defaults["max_output_tokens"] == 300
    for value in ("inf", None, 300):
        assert client.update(max_output_tokens=7).llm == LlmOptions(None, 7)
        assert client.update(max_output_tokens=value).llm == LlmOptions()


@pytest.mark.parametrize("value", [0, -1, 1.5, "7", "many", True, [], {}])
def test_other_lengths_are_refused(client: Client, value: Any) -> None:
    assert client.refusal(max_output_tokens=value) == "invalid_value"


def test_null_gives_instructions_and_modalities_back(client: Client) -> None:
    settings = client.update(instructions="", output_modalities=["text"])
    assert settings.instructions == "" and not settings.spoken
    settings = client.update(instructions=None, output_modalities=None)
    assert settings.instructions == DEFAULTS.instructions and settings.spoken


# -------------------------------------------------------------------------------- voice


def test_an_untouched_voice_is_the_configured_one(client: Client) -> None:
    assert client.defaults["audio"]["output"]["voice"] == "default"
    voice = client.update(audio={"output": {"format": {"type": "audio/pcm"}}}).voice
    assert voice == VoiceOptions()
    assert client.update(audio={"output": {"speed": 1.5}}).voice == VoiceOptions(None, 1.5)
    assert client.update(audio={"output": {"voice": "ash"}}).voice == VoiceOptions("ash", 1.5)
    assert client.update(audio={"output": {"voice": {"id": "x"}}}).voice == VoiceOptions("x", 1.5)
    nothing = {"voice": None, "speed": None}
    assert client.update(audio={"output": nothing}).voice == VoiceOptions()
    assert client.update(audio={"output": {"voice": "default"}}).voice == VoiceOptions()


def test_the_session_shows_the_voice_that_speaks() -> None:
    configured = Settings(tts={"voice": "af_heart", "speed": 1.2})
    client = Client(configured)
    assert client.defaults["audio"]["output"]["voice"] == "af_heart"
    assert client.update(audio={"output": {"voice": "af_heart"}}).voice == VoiceOptions()


@pytest.fixture
async def espeak() -> AsyncIterator[EspeakTts]:
    engine = EspeakTts("de")
    await engine.start()
    yield engine
    await engine.aclose()


async def test_espeaks_voice_is_a_voice_of_espeak(espeak: EspeakTts) -> None:
    client = Client(Settings(tts={"voice": "de"}), espeak)
    assert client.defaults["audio"]["output"]["voice"] == "de"
    assert session_of(Settings(), EspeakTts())["audio"]["output"]["voice"] == "en-us"


# ----------------------------------------------------------------- one reply's own wishes


def wishes(given: Session, defaults: Session | None = None) -> tuple[ReplyWishes, dict[str, str]]:
    return reply_wishes(given, defaults or session_of(SETTINGS, ToneTts()), 100)


def test_wishes_of_one_reply() -> None:
    assert wishes({}) == (ReplyWishes(), {})
    assert wishes({"conversation": "auto", "tools": [], "input": None}) == (ReplyWishes(), {})
    given = {
        "instructions": "Be brief.",
        "output_modalities": ["text"],
        "max_output_tokens": 7,
        "metadata": {"topic": "weather"},
    }
    assert wishes(given) == (ReplyWishes("Be brief.", False, 7), {"topic": "weather"})
    assert wishes({"max_output_tokens": "inf"})[0].max_tokens == 300


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"conversation": "none"}, "unsupported_parameter"),
        ({"conversation": []}, "unsupported_parameter"),
        ({"input": []}, "unsupported_parameter"),
        ({"tools": [{"type": "function", "name": "f"}]}, "unsupported_parameter"),
        ({"output_modalities": ["smell"]}, "invalid_value"),
        ({"output_modalities": "text"}, "invalid_value"),
        ({"max_output_tokens": 0}, "invalid_value"),
        ({"max_output_tokens": "7"}, "invalid_value"),
        ({"instructions": 7}, "invalid_type"),
        ({"instructions": "x" * 101}, "text_too_long"),
        ({"metadata": []}, "invalid_type"),
        ({"metadata": {"number": 7}}, "invalid_type"),
        ({"metadata": {"deep": nested(900)}}, "invalid_type"),
        ({"metadata": {"long": "x" * 513}}, "text_too_long"),
        ({"metadata": {"k" * 65: "x"}}, "text_too_long"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_value"),
    ],
)
def test_what_one_reply_cannot_have_is_refused(given: Session, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        wishes(given)
    assert caught.value.code == code
