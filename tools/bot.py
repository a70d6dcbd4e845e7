"""A headless caller: stock aiortc, a WAV file as its voice, a report of what it got.

``python -m tools.bot WAV`` calls a running server by its OpenAI Realtime endpoint, waits while all
slots are taken, speaks, listens to the reply, may interrupt it, hangs up and says whether all that
was asked for came true. `call` is the same for programs. Times are the bot's own: what it hears
passed aiortc's jitter buffer, which holds audio for about 80 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.bot_audio import recorded
from tools.bot_caller import Bot, CallFailed
from tools.bot_checks import checks_of, silence_told
from tools.bot_report import (
    BargeInReport,
    BotOptions,
    BotReport,
    LineReport,
    TurnReport,
    report_barge_in,
    report_line,
    report_turns,
)
from tools.recognise import recognise
from tools.wav import UnusableWav, read_wav, resample, write_wav
from voice_rtc.core.audio import LISTEN_RATE_HZ, SEND_RATE_HZ, Samples

_HTTP_SECONDS = 10.0


async def call(options: BotOptions) -> BotReport:
    """Make one call and report it. Raises CallFailed when no call came about.

    What goes wrong within the call is in the report's ``errors``.
    """
    bot = Bot(options)
    refused: CallFailed | None = None
    timeout = aiohttp.ClientTimeout(total=_HTTP_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as tasks:
        try:
            async with asyncio.timeout(options.max_seconds) as limit:
                await bot.dial(http, tasks)
                async with paused(limit):
                    await bot.wait_in_line()
                await bot.converse()
        except TimeoutError:
            bot.report.errors.append(
                f"not over after {options.max_seconds:g} s, while waiting for {bot.waits_for}"
            )
        except CallFailed as error:
            # Kept for later: raised here it would leave the group as an ExceptionGroup.
            refused = error if not bot.report.call_id else None
            bot.report.errors.append(str(error))
        finally:
            await bot.hang_up(http)
            await bot.close()
    if refused is not None:
        raise refused
    return await _complete(bot)


@asynccontextmanager
async def paused(limit: asyncio.Timeout) -> AsyncIterator[None]:
    """The time limit, which must be running, does not run inside the block."""
    loop = asyncio.get_running_loop()
    due = limit.when()
    assert due is not None
    left = due - loop.time()
    limit.reschedule(None)
    try:
        yield
    finally:
        limit.reschedule(loop.time() + left)


async def _complete(bot: Bot) -> BotReport:
    report, frames = bot.report, bot.ear.frames
    report.events = dict(Counter(event.type for event in bot.events))
    report.line = report_line(bot.events)
    reported = report_turns(bot.turns, bot.events, frames)
    report.turns = [turn for turn, _ in reported]
    if bot.options.barge_in_seconds is not None and len(bot.turns) > 1:
        report.barge_in = report_barge_in(bot.turns, bot.events, frames)
    if bot.options.check_reply:
        await _recognise_replies(reported)
    report.recording = recorded(frames)
    report.checks = checks_of(bot.options, report)
    return report


async def _recognise_replies(reported: Sequence[tuple[TurnReport, Samples]]) -> None:
    """In a process of its own: the recogniser holds the GIL, and a test's server may run here."""
    context = multiprocessing.get_context("spawn")
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for turn, samples in reported:
            if len(samples) and turn.reply_text and turn.reply_status != "cancelled":
                sound = resample(samples, SEND_RATE_HZ, LISTEN_RATE_HZ)
                turn.reply_recognised = await loop.run_in_executor(
                    pool, recognise, sound, turn.reply_text
                )


# ------------------------------------------------------------------------------- command line


def print_report(report: BotReport, console: Console) -> None:
    """The report as tables."""
    setup = "never set up" if report.setup_seconds is None else f"{report.setup_seconds:.2f} s"
    console.print(
        f"call {report.call_id} to {report.url}: setup {setup}, "
        f"{sum(report.events.values())} events",
        markup=False,
    )
    if report.line is not None:
        _print_line(report.line, console)
    table = Table("turn", "understood", "reply", "response", "audio", "frames")
    for number, turn in enumerate(report.turns, 1):
        response = "-" if turn.response_seconds is None else f"{turn.response_seconds:.2f} s"
        table.add_row(
            f"{number}{' typed' if turn.typed else ''}",
            escape(turn.transcript),
            escape(turn.reply_text),
            response,
            f"{turn.reply_seconds:.1f} s, {turn.reply_dbfs:.0f} dBFS",
            f"{turn.frames_received}/{turn.frames_expected}",
        )
    console.print(table)
    if report.barge_in is not None:
        _print_barge_in(report.barge_in, console)
    checks = Table("check", "", "detail")
    for check in report.checks:
        mark = "[green]ok[/]" if check.passed else "[red]FAILED[/]"
        checks.add_row(check.name, mark, escape(check.detail))
    console.print(checks)


def _print_line(report: LineReport, console: Console) -> None:
    places = ", ".join(str(place) for place in report.positions)
    how = "" if report.granted else " in vain"
    waited = f"waited {report.waited_seconds:.1f} s in line{how}: place {places}"
    console.print(waited, markup=False)


def _print_barge_in(report: BargeInReport, console: Console) -> None:
    silence = report.silence_seconds
    sent = "never" if silence is None else f"{silence:.3f} s after the first speech sent"
    console.print(
        f"barge-in: silent {sent}, {silence_told(report)}; "
        f"heard {report.audio_end_ms} ms: {report.heard_text!r}",
        markup=False,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bot", description="Call a voice_rtc server and report what came."
    )
    add = parser.add_argument
    add("wav", nargs="?", type=Path, help="what the bot says: 16 bit PCM WAV")
    add("--url", default="http://localhost:8080", help="the server (default %(default)s)")
    add("--turns", type=int, default=1, help="how often it says it (default 1)")
    add("--barge-in", type=float, metavar="SECONDS", help="say it again so long into the reply")
    add("--text", help="a typed message, after everything spoken")
    add("--seconds", type=float, default=60.0, metavar="MAX", help="give up after (default 60)")
    add(
        "--wait",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="longest wait in the line, apart from --seconds (default 300)",
    )
    add("--save", type=Path, metavar="WAV", help="write everything received")
    add("--check-reply", action="store_true", help="a second recogniser must understand replies")
    add("--check-text", metavar="TEXT", help="what the server must understand")
    add(
        "--most-word-errors",
        type=float,
        default=0.0,
        metavar="RATE",
        help="word error rate that still passes --check-text (default 0)",
    )
    add("--json", type=Path, metavar="FILE", help="write the report as JSON")
    add("--quiet", action="store_true", help="print only what went wrong")
    return parser


def _options(arguments: argparse.Namespace) -> BotOptions:
    return BotOptions(
        speech=read_wav(arguments.wav) if arguments.wav is not None else None,
        url=arguments.url,
        turns=arguments.turns,
        barge_in_seconds=arguments.barge_in,
        text=arguments.text,
        max_seconds=arguments.seconds,
        wait_seconds=arguments.wait,
        check_text=arguments.check_text,
        most_word_errors=arguments.most_word_errors,
        check_reply=arguments.check_reply,
    )


def main(given: Sequence[str] | None = None) -> int:
    """The command line. 0 when all checks passed, 1 when not, 2 when it cannot be tried."""
    parser = _parser()
    arguments = parser.parse_args(given)
    if arguments.wav is None and arguments.text is None:
        parser.error("nothing to say: give a WAV file, --text, or both")
    if arguments.wav is None and arguments.barge_in is not None:
        parser.error("--barge-in needs a WAV file")
    try:
        report = asyncio.run(call(_options(arguments)))
        _write(report, arguments)
    except CallFailed as error:
        print(f"bot: {error}", file=sys.stderr)
        return 1
    except (UnusableWav, OSError) as error:
        print(f"bot: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if not arguments.quiet:
        print_report(report, Console())
    for check in report.checks:
        if not check.passed:
            print(f"bot: FAILED {check.name}: {check.detail}", file=sys.stderr)
    return 0 if report.passed else 1


def _write(report: BotReport, arguments: argparse.Namespace) -> None:
    if arguments.save is not None:
        write_wav(arguments.save, report.recording)
    if arguments.json is not None:
        arguments.json.write_text(report.to_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
