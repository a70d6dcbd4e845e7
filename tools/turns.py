"""Does it take turns like a human? Scripted callers, a scored table.

``python -m tools.turns`` starts servers of its own (Silero, the small test Whisper, espeak-ng, a
language model service on loopback that quotes the caller), one in the server's default setting and
one in the naive one: a fixed pause of 0.7 s ends a turn, and any speech interrupts. ``--url``
measures any server that speaks OpenAI Realtime over WebRTC in its place, with the same two settings
as far as ``session.update`` reaches. Only standard events and the sound itself are scored;
`tools.turn_eval.score` says how.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tools.bot_events import Json
from tools.llm_service import llm_service
from tools.page import write
from tools.second_ear import MODEL
from tools.server import own_server
from tools.turn_eval.partner import answer
from tools.turn_eval.scripts import scripts
from tools.turn_eval.summary import by_kind, of_noises, table
from tools.turn_eval.trial import Outcome, Target, Trial
from tools.wav import write_stereo
from voice_rtc.config import PREFIX, field_names

_WORD_SECONDS = 0.01
_SPARE_SLOTS = 2


@dataclass(frozen=True, slots=True)
class Setting:
    """How turns are taken."""

    name: str
    session: Json = field(default_factory=dict)
    """Of ``session.update``."""
    server: dict[str, str] = field(default_factory=dict)
    """Settings of a server of our own that no ``session.update`` reaches, where it knows them."""

    def known(self) -> dict[str, str]:
        """Those of ``server`` that this version of the server has."""
        names = set(field_names())
        return {name: value for name, value in self.server.items() if name in names}

    def environment(self) -> dict[str, str]:
        """The same as its environment."""
        return {
            PREFIX + name.replace(".", "__").upper(): value for name, value in self.known().items()
        }


DEFAULT = Setting("default")
NAIVE = Setting(
    "naive",
    {
        "audio": {
            "input": {
                "turn_detection": {
                    "type": "server_vad",
                    "silence_duration_ms": 700,
                    "create_response": True,
                    "interrupt_response": True,
                }
            }
        }
    },
    {
        "turns.barge_in_seconds": "0.02",
        "turns.barge_in": "any",
        "turns.reopen_seconds": "0",
    },
)
SETTINGS = {setting.name: setting for setting in (DEFAULT, NAIVE)}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen in each setting."""

    turns: int
    calls: int
    seconds: float
    seed: int
    port: int
    llm_seconds: float
    url: str = ""
    """Empty: servers of its own."""
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    record: Path | None = None


async def measure(plan: Plan, setting: Setting) -> Outcome:
    """All calls in one setting."""
    if plan.url:
        return await _calls(plan, setting, plan.url)
    async with llm_service(answer, plan.llm_seconds, _WORD_SECONDS) as llm:
        environment = {
            "OPENAI_BASE_URL": llm,
            "OPENAI_API_KEY": "none",
            "VOICE_RTC_STT__ENGINE": "faster-whisper",
            "VOICE_RTC_STT__MODEL": str(MODEL),
            "VOICE_RTC_TTS__ENGINE": "espeak-ng",
            # A call that has just ended may hold its slot when the next one comes.
            "VOICE_RTC_POOL__SLOTS": str(plan.calls + _SPARE_SLOTS),
            **setting.environment(),
        }
        async with own_server(plan.port, environment) as server:
            return await _calls(plan, setting, server.url)


async def _calls(plan: Plan, setting: Setting, url: str) -> Outcome:
    target = Target(url, setting.session, plan.headers, plan.query)
    chosen = scripts(plan.turns, plan.seed)
    trial = Trial(setting.name, target, chosen, records=plan.record is not None)
    outcome = await trial.run(plan.calls, plan.seconds)
    if plan.record is not None:
        _record(plan.record, outcome)
    return outcome


def _record(folder: Path, outcome: Outcome) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for log in outcome.logs:
        caller, agent = log.recording()
        write_stereo(folder / f"{outcome.name}-{log.number}.wav", caller, agent)
    outcome.logs.clear()


def render(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """The section of docs/benchmarks.md."""
    where = plan.url or "servers of its own, the bots on the same machine"
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs ({platform.machine()}), "
        f"{where}, {plan.calls} calls at a time, seed {plan.seed}, first word of the language "
        f"model after {1000 * plan.llm_seconds:.0f} ms."
    )
    if not plan.url:
        own = ", ".join(f"`{name}` {value}" for name, value in NAIVE.known().items())
        head += f" The naive server also had {own}."
    return "\n\n".join([head, table(outcomes), by_kind(outcomes), of_noises(outcomes)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.turns", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--url", default="", help="a running server (default: servers of its own)")
    add("--turns", type=int, default=120, help="of all callers together (default 120)")
    add("--calls", type=int, default=4, help="at the same time (default 4)")
    add("--seconds", type=float, default=900.0, help="bound for each setting (default 900)")
    add("--settings", default="default,naive", help="which ones (default %(default)s)")
    add("--seed", type=int, default=1)
    add("--port", type=int, default=18_482)
    add("--llm-seconds", type=float, default=0.25, help="first word of the own language model")
    add("--key-variable", default="", metavar="NAME", help="environment variable of an API key")
    add("--query", default="", help="of the offer's URL, e.g. model=gpt-realtime")
    add("--record", type=Path, metavar="FOLDER", help="write each call as stereo WAV")
    add("--json", type=Path, metavar="FILE", help="write every score as JSON")
    add("--write", action="store_true", help="write into docs/benchmarks.md")
    return parser


def _plan(given: argparse.Namespace) -> Plan:
    key = os.environ[given.key_variable] if given.key_variable else ""
    return Plan(
        turns=given.turns, calls=given.calls, seconds=given.seconds, seed=given.seed,
        port=given.port, llm_seconds=given.llm_seconds, url=given.url,
        headers={"Authorization": f"Bearer {key}"} if key else {}, query=given.query,
        record=given.record,
    )  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    """The command line. 1 when nothing could be measured in a setting, 2 when asked wrongly."""
    parser = _parser()
    arguments = parser.parse_args(given)
    names = arguments.settings.split(",")
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"no such setting: {', '.join(unknown)}")
    if arguments.key_variable and arguments.key_variable not in os.environ:
        parser.error(f"--key-variable: {arguments.key_variable} is not set")
    plan = _plan(arguments)
    outcomes = [asyncio.run(measure(plan, SETTINGS[name])) for name in names]
    section = render(plan, outcomes)
    print(section)
    for outcome in outcomes:
        for error in outcome.errors:
            print(f"turns: {outcome.name}: {error}", file=sys.stderr)
    if arguments.json is not None:
        scores = {
            each.name: {**asdict(each.score), "recalls": [asdict(it) for it in each.recalls]}
            for each in outcomes
        }
        arguments.json.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    if arguments.write:
        write("turns", section)
    return 0 if all(outcome.score.turns for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
