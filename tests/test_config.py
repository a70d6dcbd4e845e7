"""Settings: which source wins, what is refused, and what is never printed."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from voice_rtc.config import PREFIX, Settings, field_names, load, walk
from voice_rtc.errors import ConfigError


@pytest.fixture
def toml(tmp_path):
    """Write a configuration file and get its path."""

    def write(text: str):
        path = tmp_path / "voice.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(**arguments: object) -> str:
    """The message with which `load` refuses."""
    with pytest.raises(ConfigError) as caught:
        load(**{"environment": {}, **arguments})  # type: ignore[arg-type]  # a test's shorthand
    return str(caught.value)


def test_without_any_source_everything_is_a_default():
    loaded = load(environment={})
    assert loaded.settings == Settings() and loaded.origins == {}


def test_later_sources_win(toml):
    path = toml("[server]\nport = 1001\nhost = 'file'\n[llm]\nmodel = 'file'\n[stt]\nmodel = 'f'\n")
    environment = {"VOICE_RTC_SERVER__PORT": "1002", "VOICE_RTC_LLM__MODEL": "environment"}
    loaded = load(path, {"server.port": 1003}, environment)
    settings = loaded.settings
    assert settings.server.port == 1003
    assert settings.llm.model == "environment"
    assert (settings.server.host, settings.stt.model) == ("file", "f")
    assert loaded.origins == {
        "server.port": "command line",
        "server.host": f"file {path}",
        "llm.model": "environment VOICE_RTC_LLM__MODEL",
        "stt.model": f"file {path}",
    }


def test_the_file_may_be_named_by_the_environment(toml):
    path = toml("engines = 'fake'\n")
    loaded = load(environment={"VOICE_RTC_CONFIG": str(path)})
    assert loaded.settings.engines == "fake" and loaded.origins == {"engines": f"file {path}"}


def test_a_file_that_is_named_beats_the_environments(toml, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("engines = 'embedded'\n")
    loaded = load(toml("engines = 'fake'\n"), environment={"VOICE_RTC_CONFIG": str(other)})
    assert loaded.settings.engines == "fake"


def test_the_environment_is_read_by_type():
    environment = {
        "VOICE_RTC_LOG__JSON_LINES": "true",
        "VOICE_RTC_TURNS__MIN_PAUSE_SECONDS": "0.7",
        "VOICE_RTC_SERVER__CORS_ORIGINS": '["https://a.b"]',
        "VOICE_RTC_LLM__MAX_TOKENS": "none",
        "VOICE_RTC_LLM__HEADERS": '{"X-A": "1"}',
    }
    settings = load(environment=environment).settings
    assert settings.log.json_lines is True
    assert settings.turns.min_pause_seconds == 0.7
    assert settings.server.cors_origins == ("https://a.b",)
    assert settings.llm.max_tokens is None
    assert settings.llm.headers == {"X-A": "1"}


def test_other_programs_variables_are_none_of_our_business():
    assert load(environment={"HOME": "/x", "VOICE": "y", "SERVER__PORT": "1"}).origins == {}


# ------------------------------------------------------------------------------ refusals


def test_an_unknown_variable_is_refused_with_a_suggestion():
    message = refused(environment={"VOICE_RTC_SERVER__PROT": "1"})
    assert "VOICE_RTC_SERVER__PROT" in message
    assert "did you mean VOICE_RTC_SERVER__PORT?" in message


def test_an_unknown_name_in_the_file_is_refused_with_a_suggestion(toml):
    message = refused(file=toml("[server]\nprot = 1\n"))
    assert "unknown setting server.prot" in message and "did you mean server.port?" in message


def test_an_unknown_name_on_the_command_line_is_refused():
    assert "unknown setting nonsense" in refused(overrides={"nonsense.at_all": 1})


def test_a_value_of_the_wrong_kind_or_range_names_the_setting():
    assert "server.port" in refused(environment={"VOICE_RTC_SERVER__PORT": "many"})
    assert "server.port" in refused(overrides={"server.port": 70_000})
    assert "(got 70000)" in refused(overrides={"server.port": 70_000})
    assert "engines" in refused(overrides={"engines": "best"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("body", {"messages": []}),
        ("body", {"stream": False}),
        ("client_fields", ["top_p", "tools"]),
        ("headers", {"Host": "x"}),
        ("client_headers", ["Content-Length"]),
    ],
)
def test_what_the_server_sets_of_a_request_nobody_else_does(name, value):
    message = refused(overrides={f"llm.{name}": value})
    assert f"llm.{name}" in message and "itself" in message


def test_all_mistakes_are_told_at_once():
    message = refused(overrides={"server.port": -1, "limits.max_calls": 0})
    assert "server.port" in message and "limits.max_calls" in message


def test_a_file_that_cannot_be_read_is_refused(tmp_path, toml):
    assert "cannot read" in refused(file=tmp_path / "missing.toml")
    assert "not valid TOML" in refused(file=toml("port = = 1"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "not valid TOML" in refused(file=binary)


def test_a_section_given_as_a_value_is_refused(toml):
    assert "server" in refused(file=toml("server = 5\n"))
    assert "server" in refused(file=toml("server = 5\n"), overrides={"server.port": 1})


# ---------------------------------------------------------------------------------- secrets

SECRET = "sk-very-secret-1234"


def test_the_openai_variables_stand_in():
    environment = {"OPENAI_API_KEY": SECRET, "OPENAI_BASE_URL": "http://x/v1"}
    loaded = load(environment=environment)
    assert loaded.settings.llm.api_key.get_secret_value() == SECRET
    assert loaded.settings.llm.base_url == "http://x/v1"
    assert loaded.origins == {
        "llm.base_url": "environment OPENAI_BASE_URL",
        "llm.api_key": "environment OPENAI_API_KEY",
    }


def test_our_own_variables_beat_openais():
    environment = {
        "OPENAI_API_KEY": "other", "VOICE_RTC_LLM__API_KEY": SECRET,
        "OPENAI_BASE_URL": "http://other", "VOICE_RTC_LLM__BASE_URL": "http://ours",
    }  # fmt: skip
    settings = load(environment=environment).settings
    assert settings.llm.api_key.get_secret_value() == SECRET
    assert settings.llm.base_url == "http://ours"


def test_a_secret_is_not_shown():
    settings = load(environment={"OPENAI_API_KEY": SECRET}).settings
    assert SECRET not in repr(settings) + str(dict(walk(settings))) + settings.model_dump_json()


def test_a_secret_is_not_in_the_error_about_another_setting(toml):
    path = toml(f"[llm]\napi_key = '{SECRET}'\ntemperature = 9\n[server]\nport = -1\n")
    assert SECRET not in refused(file=path)


@pytest.mark.parametrize("value", [json.dumps([SECRET]), json.dumps({"a": SECRET})])
def test_a_secret_of_the_wrong_kind_is_not_in_the_error(toml, value):
    path = toml(f"[llm]\napi_key = {value.replace(':', ' =')}\n".replace('"a" =', "a ="))
    assert SECRET not in refused(file=path)


def test_a_secret_under_a_misspelt_name_is_not_in_the_error(toml):
    assert SECRET not in refused(file=toml(f"[llm]\napikey = '{SECRET}'\n"))
    assert SECRET not in refused(environment={"VOICE_RTC_LLM__APIKEY": SECRET})


def test_a_secret_in_a_section_of_the_wrong_kind_is_not_in_the_error():
    assert SECRET not in refused(environment={"VOICE_RTC_LLM": json.dumps([SECRET])})
    assert SECRET not in refused(environment={"VOICE_RTC_LLM": f'{{"api_key": "{SECRET}"'})


@pytest.mark.parametrize("name", ["llm.api_key", "admin.token", "admin.webhook_secret"])
def test_a_secret_that_is_a_number_is_not_in_the_error(name):
    message = refused(overrides={name: 31_415_926})
    assert name in message and "31415926" not in message


def test_a_webhook_is_not_shown():
    url = f"https://user:{SECRET}@host/hook"
    settings = load(environment={"VOICE_RTC_ADMIN__ALERT_WEBHOOK": url}).settings
    assert settings.admin.alert_webhook.get_secret_value() == url
    assert SECRET not in repr(settings) + str(dict(walk(settings))) + settings.model_dump_json()


def test_a_secret_header_is_not_in_the_error(toml):
    path = toml(f"[llm.headers]\nAuthorization = ['{SECRET}']\n")
    assert SECRET not in refused(file=path)


# ------------------------------------------------------------------------------------ names


def test_every_field_has_a_name_and_can_be_set_by_its_variable():
    names = field_names()
    assert "server.port" in names and "engines" in names and len(names) == len(set(names))
    for name, value in walk(Settings()):
        if isinstance(value, int | float) and not isinstance(value, bool):
            variable = PREFIX + name.replace(".", "__").upper()
            assert load(environment={variable: str(value)}).origins == {
                name: f"environment {variable}"
            }


def test_every_setting_is_documented():
    undocumented = [
        f"{section}.{name}"
        for section, group in Settings.model_fields.items()
        for name, field in getattr(group.annotation, "model_fields", {section: group}).items()
        if not field.description and section != name
    ]
    assert undocumented == []


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().server.port = 1


@pytest.mark.parametrize("ports", ["50000", "50010-50000", "0-10", "60000-70000", "a-b", "-"])
def test_a_range_of_ports_that_is_none_is_refused(ports: str):
    assert "media.udp_ports" in refused(overrides={"media.udp_ports": ports})


def test_a_range_of_ports_is_read():
    settings = load(None, {"media.udp_ports": "50000-50003"}, {}).settings
    assert settings.media.udp_port_range == range(50000, 50004)
    assert Settings().media.udp_port_range is None


def test_a_call_is_not_ended_before_it_is_suspended():
    assert "end_seconds" in refused(overrides={"media.suspend_seconds": 8.0})
