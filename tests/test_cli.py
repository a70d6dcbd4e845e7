"""The command line, as a new user and as an operator types it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import aiohttp
import pytest

from signaling import event_loop
from tests.support.audio import tone
from tests.support.caller import calling
from voice_rtc import __version__, doctor
from voice_rtc.cli import reference
from voice_rtc.config import Settings
from voice_rtc.core.audio import rms_dbfs
from voice_rtc.doctor import examine
from voice_rtc.errors import ConfigError

ROOT = Path(__file__).parent.parent


def voice_rtc(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voice_rtc", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_version() -> None:
    assert voice_rtc("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["config"], {"VOICE_RTC_LLM__MODLE": "x"}, "did you mean VOICE_RTC_LLM__MODEL?"),
        (["serve"], {"VOICE_RTC_SERVER__PORT": "many"}, "server.port"),
        (["serve", "--config", "/no/such/file.toml"], {}, "/no/such/file.toml"),
        (["serve", "--fake", "--embedded"], {}, "exclude each other"),
        (["serve", "--log-level", "loud"], {}, "log.level"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_status_two(
    arguments: list[str], environment: dict[str, str], words: str
) -> None:
    done = voice_rtc(*arguments, **environment)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_taken_port_is_one_line_too() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = voice_rtc("serve", "--fake", "--host", "127.0.0.1", "--port", port)
    assert done.returncode == 2
    assert "choose another with --port" in done.stderr and "Traceback" not in done.stderr


def test_a_server_that_must_be_fast_says_why_it_does_not_start() -> None:
    """Reports come after half a second at the soonest: no self-test passes in less."""
    done = voice_rtc(
        "serve", "--fake", "--host", "127.0.0.1", "--port", str(free_port()),
        VOICE_RTC_MEDIA__PATH="fast", VOICE_RTC_MEDIA__SELF_TEST_SECONDS="0.5",
    )  # fmt: skip  # reads as the command line that it is
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("voice-rtc: media_path_unusable: media.path is fast, but the self-test")
    assert "within 0.5 s" in last and "media.path = auto" in last


def test_config_tells_values_and_origins_and_hides_secrets(tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text('[llm]\nmodel = "mine"\n')
    done = voice_rtc("config", "--config", str(file), OPENAI_API_KEY="sk-secret", COLUMNS="320")
    assert "sk-secret" not in done.stdout
    assert "environment OPENAI_API_KEY" in done.stdout
    assert f"file {file}" in done.stdout
    toml = tomllib.loads(voice_rtc("config", "--format", "toml", "--config", str(file)).stdout)
    assert toml["llm"]["model"] == "mine"
    assert toml["server"]["port"] == 8080


def test_the_reference_of_settings_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == reference(), "run `make docs`"


def test_the_doctor_finds_a_taken_port_and_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(server={"host": "127.0.0.1", "port": port}, media={"path": "stock"})
        check = next(c for c in examine(settings) if c.name == "HTTP port")
    assert check.status == "fail" and "--port" in check.remedy


def test_the_doctor_names_what_is_missing(tmp_path: Path) -> None:
    settings = Settings(
        server={"tls_certificate": tmp_path / "none.pem", "tls_key": tmp_path / "none.key"},
        stt={"model": str(tmp_path)},
        llm={"base_url": f"http://127.0.0.1:{free_port()}/v1"},
        media={"path": "fast", "self_test_seconds": 0.5},
    )
    failed = {check.name: check for check in examine(settings) if check.status == "fail"}
    assert {"HTTPS", "Media path", "Whisper", "Language model"} <= set(failed)
    assert all(check.remedy for check in failed.values())


@pytest.mark.parametrize(
    ("prefix", "options", "status"),
    [
        ("/usr", "'--enable-shared'", "ok"),
        ("/opt/python", "'--enable-shared' '--enable-optimizations'", "ok"),
        ("/opt/python", "'--enable-shared'", "warn"),
    ],
)
def test_the_doctor_knows_a_slow_python(
    monkeypatch: pytest.MonkeyPatch, prefix: str, options: str, status: str
) -> None:
    monkeypatch.setattr(sys, "base_prefix", prefix)
    asked = sysconfig.get_config_var
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda name: options if name == "CONFIG_ARGS" else asked(name)
    )
    check = next(doctor._python(Settings()))
    assert check.status == status
    assert ("--enable-optimizations" in check.finding) == (status == "warn")


def test_doctor_as_json() -> None:
    done = voice_rtc("doctor", "--json", VOICE_RTC_SERVER__PORT=str(free_port()))
    checks = json.loads(done.stdout)
    assert {"name", "status", "finding", "remedy"} == set(checks[0])
    assert done.returncode == (1 if any(c["status"] == "fail" for c in checks) else 0)


@asynccontextmanager
async def served(
    *arguments: str, **environment: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`voice-rtc serve` in a process of its own, ready."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "voice_rtc", "serve", "--host", "127.0.0.1", "--port", str(port),
        *arguments, stderr=asyncio.subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip  # reads as the command line that it is
    assert process.stderr is not None
    try:
        async with asyncio.timeout(40):
            while b"ready" not in (line := await process.stderr.readline()):
                assert line, "the server ended before it was ready"
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_sigterm_tells_callers_and_waits_for_them() -> None:
    async with asyncio.timeout(55), served("--fake") as (process, url):
        async with calling(url) as caller:
            process.send_signal(signal.SIGTERM)
            going = await caller.event("voice_rtc.going_away")
            assert going["deadline_seconds"] == 20.0
            await caller.hang_up()
            await caller.event("voice_rtc.call.ended")
        assert await process.wait() == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_second_signal_ends_the_calls_at_once(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    async with (
        asyncio.timeout(55),
        served("--fake", VOICE_RTC_SERVER__EVENT_LOOP=loop) as (process, url),
        calling(url) as caller,
    ):
        await caller.say(tone(1.0))
        await caller.event("response.done")
        assert rms_dbfs(caller.audio()) > -40
        process.send_signal(signal.SIGTERM)
        await caller.event("voice_rtc.going_away")
        process.send_signal(signal.SIGTERM)
        ended = await caller.event("voice_rtc.call.ended")
        assert ended["reason"] == "server_shutdown"
        assert await process.wait() == 0


async def metrics_of(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(f"{url}/metrics") as exposed:
        return await exposed.text()


async def test_embedded_engines_serve_from_the_command_line() -> None:
    async with asyncio.timeout(55), served("--embedded") as (process, url):
        async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz") as response:
            names = {e["kind"]: e["name"] for e in (await response.json())["engines"]}
            frozen = 'gc_full_collections_total{reason="start"} 1.0'
            while frozen not in await metrics_of(http, url):
                pass  # a moment after it is ready; bounded by the time-out
        assert names == {
            "vad": "silero",
            "stt": "pocketsphinx",
            "llm": "eliza",
            "tts": "espeak-ng",
        }
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0


def test_the_event_loop_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(wanted: Literal["auto", "uvloop", "asyncio"]) -> str:
        with asyncio.Runner(loop_factory=event_loop.loop_factory(wanted)) as runner:
            return type(runner.get_loop()).__module__.partition(".")[0]

    assert made("asyncio") == "asyncio"
    monkeypatch.setattr(event_loop, "_has_uvloop", lambda: False)
    assert made("auto") == "asyncio"
    with pytest.raises(ConfigError, match="pip install uvloop"):
        made("uvloop")
    monkeypatch.undo()
    pytest.importorskip("uvloop")
    assert made("auto") == made("uvloop") == "uvloop"


def test_headers_may_be_secrets_and_are_masked() -> None:
    headers = '{"Authorization": "Bearer sk-secret"}'
    for style in ("table", "toml"):
        done = voice_rtc("config", "--format", style, VOICE_RTC_LLM__HEADERS=headers, COLUMNS="320")
        assert "Authorization" in done.stdout
        assert "sk-secret" not in done.stdout


def logged(level: str = "info", transcripts: bool = False, json_lines: bool = True) -> list[str]:
    """What a program of its own writes: logging is set up once per process."""
    program = (
        "import logging, structlog\n"
        "from voice_rtc import logs\n"
        "from voice_rtc.config import LogSettings\n"
        f"settings = LogSettings(level={level!r}, transcripts={transcripts}, "
        f"json_lines={json_lines})\n"
        "logs.configure(settings)\n"
        "log = structlog.get_logger('voice_rtc')\n"
        "log.debug('detail')\n"
        "log.info('turn', text='my words', transcript='my words', reply=1)\n"
        "logging.getLogger('aiortc').info('chatter')\n"
        "logging.getLogger('aiortc').warning('trouble')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True)
    return done.stderr.splitlines()


@pytest.mark.parametrize("json_lines", [True, False])
def test_spoken_words_stay_out_of_the_log(json_lines: bool) -> None:
    lines = logged(json_lines=json_lines)
    assert any("turn" in line for line in lines)
    assert not any("my words" in line for line in lines)


def test_spoken_words_are_logged_when_asked_for() -> None:
    assert json.loads(logged(transcripts=True)[0])["text"] == "my words"


@pytest.mark.parametrize(
    ("level", "events"),
    [("debug", ["detail", "turn", "trouble"]), ("info", ["turn", "trouble"]), ("error", [])],
)
def test_the_log_level_counts_for_libraries_too(level: str, events: list[str]) -> None:
    assert [json.loads(line)["event"] for line in logged(level)] == events


def test_text_lines_have_no_colour_codes_in_a_file() -> None:
    lines = logged(json_lines=False)
    assert len(lines) == 2
    assert "\x1b" not in "".join(lines)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=40, check=False
    )


def test_make_passes_arguments_to_the_server() -> None:
    assert "serve --fake --port 0" in make("--dry-run", "run", "ARGS=--fake --port 0").stdout


def test_make_without_a_python_says_which_it_needs(tmp_path: Path) -> None:
    done = make("run", "PYTHON=", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "Python 3.11 or 3.12" in done.stderr


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if "==" not in pin or "@" in pin or "/" in pin] == []
    pinned = {plain_name(pin) for pin in pins}
    assert {plain_name(each) for each in wanted} - pinned == set()


def plain_name(requirement: str) -> str:
    """The package's name as indexes compare it."""
    return re.split(r"[<>=!\[; ]", requirement)[0].lower().replace("_", "-")
