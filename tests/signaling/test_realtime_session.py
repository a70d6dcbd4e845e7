"""What a client's session means for a call: always the server's defaults and the whole session."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from signaling.realtime_session import (
    Session,
    Terms,
    call_settings,
    merged,
    new_session,
    reply_wishes,
    session_bytes,
)
from voice_rtc.call.state import CallSettings, ReplyWishes
from voice_rtc.config import STT_PROMPT_CHARACTERS, Settings
from voice_rtc.engines.base import (
    EngineInfo,
    EngineSet,
    LlmOptions,
    SttOptions,
    TtsEngine,
    VoiceOptions,
)
from voice_rtc.engines.fakes import EchoLlm, ScriptedStt, ThresholdVad, ToneTts
from voice_rtc.engines.tts.espeak import EspeakTts
from voice_rtc.errors import BadRequest

SETTINGS = Settings(turns={"min_pause_seconds": 0.4, "max_pause_seconds": 1.2})
DEFAULTS = CallSettings.from_settings(SETTINGS)
WHISPER = EngineInfo(
    "stt", "faster-whisper", "turbo", languages=("de", "en", "fr"), takes_prompt=True
)
ENGLISH_WHISPER = EngineInfo(
    "stt", "faster-whisper", "base.en", languages=("en",), takes_prompt=True
)
POCKETSPHINX = EngineInfo("stt", "pocketsphinx", "en-us", languages=("en",))


def session_of(settings: Settings, tts: TtsEngine, stt: EngineInfo | None = None) -> Session:
    ear = ScriptedStt()
    ear.info = stt or ear.info
    return new_session("rtc_1", settings, EngineSet(ThresholdVad(), ear, EchoLlm(), tts))


class Client:
    """A session that is updated again and again."""

    def __init__(
        self,
        settings: Settings = SETTINGS,
        tts: TtsEngine | None = None,
        stt: EngineInfo | None = None,
    ) -> None:
        self.server = settings
        self.defaults = session_of(settings, tts or ToneTts(), stt)
        self.session = self.defaults
        ear = stt or ScriptedStt().info
        self.terms = Terms(self.defaults, settings.limits, ear, settings.llm)
        self.largest = self.terms.largest_bytes

    @property
    def transcription(self) -> Any:
        """As the client is told."""
        return self.session["audio"]["input"]["transcription"]

    def update(self, **update: Any) -> CallSettings:
        self.session = merged(self.session, update, self.terms)
        base = CallSettings.from_settings(self.server)
        return call_settings(self.session, self.defaults, base)

    def detect(self, detection: Any) -> CallSettings:
        return self.update(audio={"input": {"turn_detection": detection}})

    def transcribe(self, transcription: Any) -> SttOptions:
        return self.update(audio={"input": {"transcription": transcription}}).stt

    def refusal(self, **update: Any) -> str:
        """The code with which ``update`` is refused; nothing has changed."""
        return self.refused(**update).code

    def refused(self, **update: Any) -> BadRequest:
        before = copy.deepcopy(self.session)
        with pytest.raises(BadRequest) as caught:
            self.update(**update)
        assert self.session == before
        return caught.value


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
        assert settings.rules == replace(DEFAULTS.rules, pace=2.0)
    assert client.update(tracing="auto").rules.pace == 2.0
    assert client.detect({"eagerness": "high"}).rules.pace == 0.6
    assert client.detect({"eagerness": "medium"}).rules == DEFAULTS.rules
    assert client.detect({"eagerness": None}).rules == DEFAULTS.rules
    assert client.detect({"type": "server_vad", "eagerness": "low"}).rules == DEFAULTS.rules


def test_auto_is_the_preset_of_the_server_and_medium_is_not() -> None:
    client = Client(Settings(turns={"preset": "relaxed"}))
    assert client.update().rules.pace == 2.0
    assert client.detect({"type": "semantic_vad", "eagerness": "auto"}).rules.pace == 2.0
    assert client.detect({"eagerness": "medium"}).rules.pace == 1.0
    assert client.detect({"eagerness": None}).rules.pace == 2.0


def test_a_call_can_have_a_speed_of_its_own(client: Client) -> None:
    paced = client.detect({"type": "semantic_vad", "eagerness": "low", "speed": 1.25})
    assert paced.rules.pace == pytest.approx(1.6)
    assert client.detect({"eagerness": None}).rules.pace == pytest.approx(0.8)
    assert client.detect({"speed": None}).rules == DEFAULTS.rules
    refused = client.refused(audio={"input": {"turn_detection": {"speed": 3}}})
    assert refused.param == "session.audio.input.turn_detection.speed"


def test_null_gives_the_dynamic_pause_back(client: Client) -> None:
    settings = client.detect({"silence_duration_ms": 300})
    assert settings.rules.min_pause_seconds == settings.rules.max_pause_seconds == 0.3
    assert client.detect({"silence_duration_ms": None}).rules == DEFAULTS.rules


def test_a_fixed_pause_is_not_what_eagerness_scales(client: Client) -> None:
    client.detect({"silence_duration_ms": 300})
    settings = client.detect({"type": "semantic_vad", "eagerness": "low"})
    assert settings.rules == replace(DEFAULTS.rules, pace=2.0)


def test_eagerness_does_not_scale_a_fixed_pause() -> None:
    client = Client(Settings(turns={"preset": "relaxed"}))
    rules = client.detect({"silence_duration_ms": 300}).rules
    assert (rules.min_pause_seconds, rules.max_pause_seconds, rules.pace) == (0.3, 0.3, 1.0)


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


@pytest.mark.parametrize("policy", ["default", "words", "any", "never"])
def test_what_interrupts_is_a_field_of_our_own(client: Client, policy: str) -> None:
    assert client.session["voice_rtc"] == {"barge_in": "default"}
    rules = client.update(voice_rtc={"barge_in": policy}).rules
    assert rules.barge_in.policy == policy
    assert rules.interruptible is (policy != "never")
    assert client.session["voice_rtc"] == {"barge_in": policy}
    assert client.update(voice_rtc=None).rules == DEFAULTS.rules


def test_a_client_that_wants_no_interruptions_has_none_whatever_the_policy(client: Client) -> None:
    client.update(voice_rtc={"barge_in": "any"})
    assert not client.detect({"interrupt_response": False}).rules.interruptible


@pytest.mark.parametrize("wrong", ["always", 1, {}])
def test_an_unknown_policy_is_refused(client: Client, wrong: Any) -> None:
    refused = client.refused(voice_rtc={"barge_in": wrong})
    assert (refused.code, refused.param) == ("invalid_value", "session.voice_rtc.barge_in")


# ------------------------------------------------------------------------ transcription

FRENCH_SERVER = Settings(stt={"language": "fr", "prompt": "Montmartre"})


def test_the_servers_language_and_prompt_are_shown_and_used() -> None:
    client = Client(FRENCH_SERVER, stt=WHISPER)
    shown = {"model": "faster-whisper", "language": "fr", "prompt": "Montmartre"}
    assert client.transcription == shown
    assert client.update(tracing="auto").stt == SttOptions(None, "Montmartre")


def test_a_call_has_its_own_language_and_prompt_until_null_gives_the_servers_back() -> None:
    client = Client(FRENCH_SERVER, stt=WHISPER)
    asked = {"model": "whisper-1", "language": "de", "prompt": "Zugspitze"}
    assert client.transcribe(asked) == SttOptions("de", "Zugspitze")
    assert client.transcription == asked
    assert client.update(tracing="auto").stt == SttOptions("de", "Zugspitze")
    assert client.transcribe({"prompt": ""}) == SttOptions("de", "")
    assert client.transcribe({"prompt": None}) == SttOptions("de", "Montmartre")
    assert client.transcribe({"language": None}) == SttOptions(None, "Montmartre")
    assert client.transcription == {**client.transcription, "model": "whisper-1", "language": "fr"}
    assert client.transcribe({"model": None}) == SttOptions(None, "Montmartre")
    assert client.transcription == client.defaults["audio"]["input"]["transcription"]


@pytest.mark.parametrize(
    "nothing", [{"audio": None}, {"audio": {"input": None}}, {"audio": {"input": {}}},
                {"audio": {"input": {"transcription": None}}}]
)  # fmt: skip
def test_an_update_that_names_no_transcription_at_all(nothing: Session) -> None:
    client = Client(FRENCH_SERVER, stt=WHISPER)
    client.transcribe({"language": "de", "prompt": "Zugspitze"})
    kept = nothing == {"audio": {"input": {}}}
    expected = SttOptions("de", "Zugspitze") if kept else SttOptions(None, "Montmartre")
    assert client.update(**nothing).stt == expected
    assert client.transcribe({"language": "en"}).language == "en"


def test_what_a_client_read_it_may_write_back() -> None:
    for settings in (SETTINGS, FRENCH_SERVER, Settings(stt={"language": "", "prompt": "x"})):
        for stt in (WHISPER, ENGLISH_WHISPER, POCKETSPHINX):
            client = Client(settings, stt=stt)
            before = client.update(tracing="auto")
            shown = copy.deepcopy(client.transcription)
            assert client.transcribe(shown) == before.stt
            assert client.transcription == shown


def test_fields_that_are_not_acted_on_are_kept() -> None:
    client = Client(stt=WHISPER)
    client.transcribe({"delay": "low", "keywords": None})
    assert client.transcription["delay"] == "low" and client.transcription["keywords"] is None


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ({"language": 7}, "invalid_type", ".language"),
        ({"language": ["de"]}, "invalid_type", ".language"),
        ({"language": ""}, "invalid_value", ".language"),
        ({"language": "German"}, "invalid_value", ".language"),
        ({"language": "de-DE"}, "invalid_value", ".language"),
        ({"language": "DE"}, "invalid_value", ".language"),
        ({"language": "d1"}, "invalid_value", ".language"),
        ({"language": "xx"}, "invalid_value", ".language"),
        ({"prompt": 7}, "invalid_type", ".prompt"),
        ({"prompt": {"text": "x"}}, "invalid_type", ".prompt"),
        ({"prompt": "x" * (STT_PROMPT_CHARACTERS + 1)}, "invalid_value", ".prompt"),
        ({"model": 7}, "invalid_type", ".model"),
        ("whisper-1", "invalid_type", ""),
    ],
)
def test_wrong_transcriptions_are_refused_with_their_place(
    given: Any, code: str, field: str
) -> None:
    error = Client(stt=WHISPER).refused(audio={"input": {"transcription": given}})
    assert (error.code, error.param) == (code, f"session.audio.input.transcription{field}")
    assert str(error).startswith(str(error.param))


def test_the_longest_prompt_is_taken() -> None:
    longest = "x" * STT_PROMPT_CHARACTERS
    assert Client(stt=WHISPER).transcribe({"prompt": longest}).prompt == longest


@pytest.mark.parametrize("stt", [ENGLISH_WHISPER, POCKETSPHINX])
def test_a_language_that_the_engine_does_not_know_is_refused(stt: EngineInfo) -> None:
    client = Client(Settings(stt={"language": "fr"}), stt=stt)
    assert client.transcription["language"] == "en"  # what runs, not what was configured
    error = client.refused(audio={"input": {"transcription": {"language": "de"}}})
    assert error.code == "invalid_value" and stt.name in str(error) and "en only" in str(error)
    assert client.transcribe({"language": "en"}) == SttOptions()


def test_of_many_languages_a_refusal_tells_the_number() -> None:
    codes = tuple(f"a{letter}" for letter in "abcdefghijklmnopqrst")
    client = Client(stt=EngineInfo("stt", "big", languages=codes))
    error = client.refused(audio={"input": {"transcription": {"language": "xx"}}})
    assert "20 others" in str(error)


def test_a_language_is_detected_where_the_configured_one_is_unknown() -> None:
    for configured in ("", "xx"):
        client = Client(Settings(stt={"language": configured}), stt=WHISPER)
        assert client.transcription["language"] is None
        assert client.transcribe({"language": "de"}).language == "de"
        assert client.transcribe({"language": None}).language is None


def test_an_engine_without_prompts_shows_none() -> None:
    client = Client(Settings(stt={"prompt": "Montmartre"}), stt=POCKETSPHINX)
    assert client.transcription["prompt"] == ""
    client.transcribe({"prompt": "Zugspitze"})
    assert client.transcription["prompt"] == ""


# ------------------------------------------------------------------------------ answers


def test_inf_and_null_give_the_configured_length_back(client: Client) -> None:
    assert client.defaults["max_output_tokens"] == 300
    for value in ("inf", None, 300):
        assert client.update(max_output_tokens=7).llm == LlmOptions(None, 7)
        assert client.update(max_output_tokens=value).llm == LlmOptions()


@pytest.mark.parametrize("value", [0, -1, 1.5, "7", "many", True, [], {}])
def test_other_lengths_are_refused(client: Client, value: Any) -> None:
    assert client.refusal(max_output_tokens=value) == "invalid_value"


def llm(**given: Any) -> dict[str, Any]:
    return {"voice_rtc": {"llm": given}}


def open_client() -> Client:
    allowed = {"client_fields": ("temperature", "top_p"), "client_headers": ("X-Tenant",)}
    return Client(Settings(llm=allowed))


def test_a_client_may_set_the_fields_that_the_operator_names() -> None:
    client = open_client()
    settings = client.update(**llm(body={"top_p": 0.5}, headers={"x-tenant": "a b"}))
    assert settings.llm == LlmOptions(body={"top_p": 0.5}, headers={"x-tenant": "a b"})
    settings = client.update(**llm(body={"temperature": 0}))
    assert settings.llm.body == {"top_p": 0.5, "temperature": 0}, "laid over what was there"
    settings = client.update(max_output_tokens=7)
    assert settings.llm.max_tokens == 7 and settings.llm.headers == {"x-tenant": "a b"}


def test_null_gives_the_servers_own_fields_back() -> None:
    client = open_client()
    client.update(**llm(body={"top_p": 0.5, "temperature": 1}))
    assert client.update(**llm(body={"top_p": None})).llm.body == {"temperature": 1}
    assert client.update(**llm(body=None)).llm.body == {}
    assert client.update(voice_rtc=None).llm == LlmOptions()


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"body": {"model": "x"}}, "llm_field_not_allowed", ".llm.body.model"),
        ({"body": {"messages": []}}, "llm_field_not_allowed", ".llm.body.messages"),
        (
            {"headers": {"Authorization": "x"}},
            "llm_header_not_allowed",
            ".llm.headers.authorization",
        ),
        ({"headers": {"X-Tenant": "a\r\nb: c"}}, "invalid_value", ".llm.headers.X-Tenant"),
        ({"headers": {"X-Tenant": "ä"}}, "invalid_value", ".llm.headers.X-Tenant"),
        ({"headers": {"X-Tenant": 5}}, "invalid_value", ".llm.headers.X-Tenant"),
        ({"headers": {"X-Tenant": "x" * 1001}}, "invalid_value", ".llm.headers.X-Tenant"),
        ({"url": "http://x"}, "llm_unknown_field", ".llm.url"),
        ({"body": [1]}, "invalid_type", ".llm.body"),
        ({"headers": "x"}, "invalid_type", ".llm.headers"),
    ],
)
def test_other_fields_of_the_request_are_refused(given: Any, code: str, param: str) -> None:
    error = open_client().refused(**llm(**given))
    assert (error.code, error.param) == (code, f"session.voice_rtc{param}")


def test_the_refusal_names_what_may_be_set() -> None:
    assert "temperature, top_p" in str(open_client().refused(**llm(body={"seed": 1})))
    assert "nothing" in str(Client().refused(**llm(body={"seed": 1})))


@pytest.mark.parametrize("given", [5, "x", [], {"llm": 5}, {"llm": "x"}])
def test_what_is_no_object_is_refused(given: Any) -> None:
    assert open_client().refusal(voice_rtc=given) == "invalid_type"


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
