"""Measure calls as a caller has them and write the figures to docs/benchmarks.md.

``python -m tools.bench_call`` starts servers of its own with the embedded engines and calls them
with the bot: set-up, response time and barge-in one call at a time with real speech; CPU and memory
with eight callers at once. The page says how; figures are of the machine that ran it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tools.bot import call
from tools.bot_report import BotOptions, BotReport
from tools.load import LoadReport, run_load
from tools.server import own_server
from tools.wav import read_wav
from voice_rtc.core.audio import SEND_RATE_HZ

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
CLIPS = ROOT / "tests" / "data" / "speech"
BEGIN, END = "<!-- bench_call begins -->", "<!-- bench_call ends -->"


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured."""

    singles: list[BotReport]
    """One call at a time, each with a barge-in."""
    load: LoadReport


async def measure(rounds: int, turns: int, port: int) -> Figures:
    """Run everything. Raises RuntimeError when a call did not do what it had to."""
    singles = []
    async with own_server(port, {}, "--embedded") as server:
        for _ in range(rounds):
            for clip in sorted(CLIPS.glob("*.wav")):
                speech = read_wav(clip, SEND_RATE_HZ)
                singles.append(await call(BotOptions(speech, server.url, barge_in_seconds=1.0)))
    load = await run_load(8, turns, port + 1)
    failed = [f"{c.name}: {c.detail}" for r in singles for c in r.checks if not c.passed]
    if problems := [*failed, *load.problems()]:
        raise RuntimeError("; ".join(problems))
    return Figures(singles, load)


def render(figures: Figures) -> str:
    """The section of the page between its marks."""
    turns = [turn for report in figures.singles for turn in report.turns]
    cuts = [report.barge_in for report in figures.singles if report.barge_in]
    load = figures.load
    rows = [
        _row("call set-up: offer sent to media connected",
             [report.setup_seconds for report in figures.singles]),
        _row("response: last speech frame sent to first audible frame received",
             [turn.response_seconds for turn in turns]),
        _row("barge-in: first speech frame sent to the reply's last audible frame received",
             [cut.silence_seconds for cut in cuts]),
        _row("barge-in: confirmed (event received) to the reply's last audible frame",
             [cut.silence_after_confirmed_seconds for cut in cuts]),
        _row("response with 8 callers at once (grammar)", load.responses()),
    ]  # fmt: skip  # one figure each
    frames = sum(t.frames_received for t in turns), sum(t.frames_expected for t in turns)
    return "\n".join(
        [
            BEGIN,
            f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} CPUs "
            f"({platform.machine()}), Python {platform.python_version()}, server and bots on the "
            "same machine, engines: Silero, pocketsphinx, ELIZA, espeak-ng.",
            "",
            "| figure | n | p50 | p95 | worst |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Frames received of those expected: {frames[0]} of {frames[1]}.",
            "",
            f"Eight callers, {len(load.responses())} turns, every turn transcribed as its own "
            f"caller's words: {load.during_cpu_share:.2f} cores for the server and its "
            f"recognisers; memory {load.before.memory_mb:.0f} MB before, "
            f"{load.after.memory_mb:.0f} MB after; threads {load.before.threads} before, "
            f"{load.after.threads} after; tasks {load.before.tasks:g} before, "
            f"{load.after.tasks:g} after; leases {load.after.leases:g} after.",
            END,
        ]
    )


def _row(name: str, seconds: Sequence[float | None]) -> str:
    known = sorted(value for value in seconds if value is not None)
    p95 = known[min(len(known) - 1, round(0.95 * (len(known) - 1)))]
    cells = [f"{1000 * value:.0f} ms" for value in (statistics.median(known), p95, known[-1])]
    return f"| {name} | {len(known)} | " + " | ".join(cells) + " |"


def write(section: str) -> None:
    """Put the section into the page in place of the one before."""
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{section}{tail}", encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="calls with each of five clips")
    parser.add_argument("--turns", type=int, default=9, help="turns of each of eight callers")
    parser.add_argument("--port", type=int, default=18_490)
    parser.add_argument("--dry-run", action="store_true", help="print, do not write the page")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.rounds, arguments.turns, arguments.port))
    section = render(figures)
    print(section)
    if not arguments.dry_run:
        write(section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
