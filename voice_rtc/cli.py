"""The command line: ``voice-rtc serve | config | doctor | capacity``."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from voice_rtc import __version__, config, logs
from voice_rtc.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from voice_rtc.capacity_report import CapacityReport

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="A WebRTC media server for spoken conversation with an AI.",
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with settings.", dir_okay=False)
]


class Format(StrEnum):
    """How settings are printed."""

    table = "table"
    toml = "toml"
    markdown = "markdown"


def main() -> None:
    """Run the command line; a wrong setting is one line on stderr and exit status 2."""
    try:
        app()
    except ConfigError as error:
        code = "" if error.code == ConfigError.code else f"{error.code}: "
        print(f"voice-rtc: {code}{error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


# typer wants each command to exit before it wants a subcommand for --version.
app.info.invoke_without_command = True


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    fake: Annotated[bool, typer.Option("--fake", help="Scripted engines.")] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Engines that need no weights and no network.")
    ] = False,
    config_file: ConfigFile = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve calls until SIGINT or SIGTERM."""
    if fake and embedded:
        raise ConfigError("--fake and --embedded exclude each other")
    wanted = {
        "server.host": host,
        "server.port": port,
        "engines": "fake" if fake else "embedded" if embedded else None,
        "log.level": log_level,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    loaded = config.load(config_file, given)
    logs.configure(loaded.settings.log)
    # Imported late: `voice-rtc config` needs none of what a server does.
    from signaling.main import serve as run

    run(loaded)


@app.command("config")
def show_config(
    config_file: ConfigFile = None,
    style: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
) -> None:
    """Print the effective settings and where each came from."""
    if style is Format.markdown:
        print(reference(), end="")
        return
    loaded = config.load(config_file)
    if style is Format.toml:
        print(_toml(loaded.settings), end="")
        return
    table = Table("setting", "value", "origin")
    for name, value in config.walk(loaded.settings):
        table.add_row(name, escape(_shown(value)), escape(loaded.origins.get(name, "default")))
    Console().print(table)


@app.command()
def doctor(
    config_file: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check what a server needs: what is wrong and the remedy."""
    from voice_rtc.doctor import examine

    checks = examine(config.load(config_file).settings)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}
        table = Table("check", "", "finding", "remedy")
        for check in checks:
            table.add_row(
                check.name, marks[check.status], escape(check.finding), escape(check.remedy)
            )
        Console().print(table)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


@app.command()
def capacity(
    callers: Annotated[
        int | None, typer.Option(min=1, help="Plan for so many callers at the same time.")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Time the speech recognition, unless that was done before.")
    ] = True,
    config_file: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many callers this machine carries, what limits it and what would carry more."""
    settings = config.load(config_file).settings
    quiet = {"level": "warning"} if settings.log.level == "info" else {}
    logs.configure(settings.log.model_copy(update=quiet))
    from voice_rtc.capacity_report import examine

    def report(line: str) -> None:
        print(line, file=sys.stderr)

    try:
        found = asyncio.run(
            examine(settings, callers, measure=measure, try_media=measure, report=report)
        )
    except EngineError as error:
        print(f"voice-rtc: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print_capacity(found)


def _print_capacity(found: CapacityReport) -> None:
    console = Console()
    gpus = [f"{gpu.name}, {gpu.free_mb} of {gpu.total_mb} MB free" for gpu in found.gpus.gpus]
    facts = {
        "speech recognition": f"{found.engine} {found.model}".strip(),
        "": found.reason,
        "measured": "yes" if found.measured else "no",
        "processor": f"{found.cores} cores",
        "memory": f"{found.memory.available_mb:.0f} of {found.memory.limit_mb:.0f} MB free",
        "GPU": "; ".join(gpus) or "none",
        "media path": f"{found.media_path.path} {found.media_path.reason}".strip(),
    }
    if found.gpus.problem:
        facts["GPU problem"] = found.gpus.problem
    for name, value in facts.items():
        console.print(f"{name:20}{escape(value)}", highlight=False)
    table = Table("mode", "callers", "limited by", "why")
    for each in found.modes:
        name = f"[bold]{each.mode}[/] (set)" if each.mode == found.mode else each.mode
        table.add_row(name, str(each.callers), each.limited_by, escape(each.why))
    console.print(table)
    mine = next(each for each in found.modes if each.mode == found.mode)
    console.print(f"A server with these settings takes {found.slots} callers.", highlight=False)
    if found.callers is None:
        _print_list(console, "What would carry more:", mine.more)
    else:
        _print_list(console, f"For {found.callers} callers:", mine.plan)
    _print_list(console, "Advice:", [each for each in found.advice if each not in mine.more])


def _print_list(console: Console, title: str, lines: list[str]) -> None:
    if lines:
        console.print(title, *(f"  - {escape(line)}" for line in lines), sep="\n", highlight=False)


def reference() -> str:
    """All settings as a Markdown document; docs/configuration.md is this."""
    lines = [
        "# Configuration",
        "",
        "Later wins: defaults, a TOML file (`--config FILE` or `VOICE_RTC_CONFIG`), environment",
        "variables, command-line flags. `OPENAI_BASE_URL` and `OPENAI_API_KEY` stand in for",
        "`llm.base_url` and `llm.api_key`. An unknown name is an error. `voice-rtc config` prints",
        "the effective values and where each came from. This page is made by `make docs`.",
        "",
    ]
    top = [n for n in config.Settings.model_fields if "." not in n]
    for name in top:
        field = config.Settings.model_fields[name]
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
            section = field.annotation
            about = (section.__doc__ or "").strip()
            lines += [f"## {name}", "", about, "", *_HEAD]
            lines += [_row(f"{name}.{n}", f) for n, f in section.model_fields.items()]
        else:
            lines += [*_HEAD, _row(name, field)]
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


_HEAD = ["| setting | environment | type | default | meaning |", "|---|---|---|---|---|"]


def _row(name: str, field: FieldInfo) -> str:
    variable = config.PREFIX + name.replace(".", "__").upper()
    cells = [
        f"`{name}`",
        f"`{variable}`",
        _type_of(field),
        f"`{_shown(field.default)}`",
        " ".join((field.description or "").replace("``", "`").split()),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type_of(field: FieldInfo) -> str:
    annotation = field.annotation
    choices = [arg for arg in get_args(annotation) if isinstance(arg, str)]
    name = " or ".join(f"`{c}`" for c in choices) or str(
        getattr(annotation, "__name__", annotation)
    ).replace("pathlib.", "").replace("pydantic.types.", "")
    bounds = [
        f"{sign} {getattr(rule, attribute)}"
        for rule in field.metadata
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(rule, attribute, None) is not None
    ]
    return f"{name}, {', '.join(bounds)}" if bounds else name


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if isinstance(value, dict):
        return json.dumps(dict.fromkeys(value, "********"))
    if isinstance(value, tuple):
        return json.dumps(value)
    return "" if value is None else str(value)


def _toml(settings: config.Settings) -> str:
    lines: list[str] = []
    section = ""
    for name, value in config.walk(settings):
        head, _, inner = name.rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{head}]"]
        if value is None:
            continue
        plain = _shown(value) if isinstance(value, SecretStr | Path) else value
        body = json.dumps(plain) if not isinstance(plain, dict) else _inline(plain)
        lines.append(f"{inner} = {body}")
    return "\n".join(lines).lstrip() + "\n"


def _inline(value: dict[str, Any]) -> str:
    pairs = ", ".join(f"{json.dumps(k)} = {json.dumps('********')}" for k in value)
    return f"{{ {pairs} }}" if pairs else "{}"
