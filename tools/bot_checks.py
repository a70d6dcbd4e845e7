"""What had to come true in a call of the bot, and whether it did."""

from __future__ import annotations

from tools.bot_report import BargeInReport, BotOptions, BotReport, Check, TurnReport
from tools.recognise import Recognition, word_error_rate

_SILENT_WITHIN_SECONDS = 0.3
"""A reply that is heard for longer after a confirmed barge-in was not silenced in time.

The caller may hear 0.2 s of it; about 0.1 s more was already in the bot's own jitter buffer when
the confirmation came, which is not buffered.
"""


def checks_of(options: BotOptions, report: BotReport) -> list[Check]:
    """Everything that had to come true, and whether it did."""
    checks = [Check("no errors", not report.errors, "; ".join(report.errors))]
    for number, turn in enumerate(report.turns, 1):
        may_be_cut = number == 1 and options.barge_in_seconds is not None
        checks += _turn_checks(options, turn, f"turn {number}", may_be_cut)
    if options.barge_in_seconds is not None:
        checks += _barge_in_checks(report.barge_in)
    return checks


def _turn_checks(options: BotOptions, turn: TurnReport, name: str, may_be_cut: bool) -> list[Check]:
    sound = f"{turn.reply_seconds:.1f} s at {turn.reply_dbfs:.0f} dBFS"
    checks = [Check(f"{name} answered aloud", turn.frames_received > 0, sound)]
    if not turn.typed:
        checks.append(Check(f"{name} understood", bool(turn.transcript), turn.transcript))
        if options.check_text is not None:
            rate = word_error_rate(options.check_text, turn.transcript)
            detail = f"word error rate {rate:.2f} against {options.check_text!r}"
            passed = rate <= options.most_word_errors
            checks.append(Check(f"{name} understood as expected", passed, detail))
    if turn.reply_status != "cancelled" or not may_be_cut:
        checks.append(
            Check(f"{name} reply completed", turn.reply_status == "completed", turn.reply_status)
        )
        if options.check_reply:
            checks.append(_reply_check(turn.reply_recognised, name))
    return checks


def _reply_check(found: Recognition | None, name: str) -> Check:
    if found is None:
        return Check(f"{name} reply says its text", False, "nothing to listen to")
    detail = f"word error rate {found.word_error_rate:.2f}: {found.text}"
    if found.unknown_words:
        detail += f" (left out: {', '.join(found.unknown_words)})"
    return Check(f"{name} reply says its text", found.passed, detail)


def _barge_in_checks(report: BargeInReport | None) -> list[Check]:
    if report is None:
        return [Check("barge-in happened", False, "")]
    late = report.silence_after_confirmed_seconds
    silent = late is not None and late <= _SILENT_WITHIN_SECONDS
    return [
        Check("barge-in silenced the reply", silent, silence_told(report)),
        Check("heard text told", report.heard_text is not None, report.heard_text or ""),
        Check("next turn works", report.next_turn_works, ""),
    ]


def silence_told(report: BargeInReport) -> str:
    """How long after the confirmation of the barge-in its reply was silent, in words."""
    if report.ended_before:
        return "the reply ended before"
    late = report.silence_after_confirmed_seconds
    return "never" if late is None else f"{late:.3f} s after it was confirmed"
