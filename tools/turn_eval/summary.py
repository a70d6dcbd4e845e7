"""The figures of all settings side by side, as the page and the terminal show them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tools.recognise import word_error_rate, words
from tools.turn_eval.score import InterruptionScore, NoiseScore, TurnScore
from tools.turn_eval.trial import Outcome

WITHIN_SECONDS = 0.2
"""A true interruption should silence the reply within this."""

Row = tuple[str, Callable[[Outcome], str]]


def table(outcomes: Sequence[Outcome]) -> str:
    """One row a figure, one column a setting."""
    rows = [["figure", *(outcome.name for outcome in outcomes)]]
    rows += [[name, *(figure(outcome) for outcome in outcomes)] for name, figure in _ROWS]
    return _markdown(rows)


def by_kind(outcomes: Sequence[Outcome]) -> str:
    """Cut-offs and dead air of the turns of each kind of script."""
    kinds = sorted({turn.act.kind for each in outcomes for turn in each.score.turns})
    rows = [["turns of", *(f"{o.name}: cut off, dead air p50" for o in outcomes)]]
    rows += [[kind, *(_kind_cell(each.score.turns, kind) for each in outcomes)] for kind in kinds]
    return _markdown(rows)


def of_noises(outcomes: Sequence[Outcome]) -> str:
    """Which sounds cut a reply."""
    names = sorted({_noise_name(noise) for each in outcomes for noise in each.score.noises})
    rows = [["over a reply", *(f"{o.name}: replies cut" for o in outcomes)]]
    for name in names:
        cells = []
        for outcome in outcomes:
            chosen = [n for n in _real(outcome) if _noise_name(n) == name]
            cells.append(share(sum(n.false for n in chosen), len(chosen)))
        rows.append([name, *cells])
    return _markdown(rows)


def _noise_name(noise: NoiseScore) -> str:
    text = noise.act.text
    return f'"{text.strip(".")}"' if noise.act.kind == "backchannel" else text or noise.act.kind


def _kind_cell(turns: Sequence[TurnScore], kind: str) -> str:
    chosen = [turn for turn in turns if turn.act.kind == kind]
    cut = share(sum(turn.cut_off for turn in chosen), len(chosen))
    return f"{cut}, {milliseconds(_dead_air(chosen), 50)}"


# ------------------------------------------------------------------------------------ figures


def share(part: int, whole: int) -> str:
    """``3 of 20 (15 %)``."""
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "none"


def milliseconds(seconds: Sequence[float], *percentiles: int) -> str:
    """Percentiles, ``-`` of nothing."""
    if not seconds:
        return "-"
    return ", ".join(f"{1000 * np.percentile(seconds, each):.0f}" for each in percentiles) + " ms"


def _dead_air(turns: Iterable[TurnScore]) -> list[float]:
    return [turn.dead_air for turn in turns if turn.dead_air is not None]


def _real(outcome: Outcome) -> list[NoiseScore]:
    return [noise for noise in outcome.score.noises if not noise.moot]


def _interruptions(outcome: Outcome) -> list[InterruptionScore]:
    return [each for each in outcome.score.interruptions if not each.moot]


def _silences(outcome: Outcome) -> list[float]:
    found = (each.silence_seconds for each in _interruptions(outcome))
    return [seconds for seconds in found if seconds is not None]


def _how_many(outcome: Outcome) -> str:
    minutes = outcome.seconds / 60
    return f"{len(outcome.score.turns)} in {outcome.calls} calls, {minutes:.0f} min"


def _cut_offs(outcome: Outcome) -> str:
    turns = outcome.score.turns
    return share(sum(turn.cut_off for turn in turns), len(turns))


def _early(outcome: Outcome) -> str:
    turns = outcome.score.turns
    return share(sum(turn.early for turn in turns), len(turns))


def _short_answers(outcome: Outcome) -> str:
    short = [t for t in outcome.score.turns if t.act.kind == "short answer" and not t.act.keys]
    return milliseconds(_dead_air(short), 50, 95)


def _commits(outcome: Outcome) -> str:
    waits = [t.commit_seconds for t in outcome.score.turns if t.commit_seconds is not None]
    return milliseconds(waits, 50, 95)


def _after_commit(outcome: Outcome) -> str:
    known = [
        turn.dead_air - turn.commit_seconds
        for turn in outcome.score.turns
        if turn.dead_air is not None and turn.commit_seconds is not None
    ]
    return milliseconds(known, 50, 95)


def _stale(outcome: Outcome) -> str:
    told = [turn.stale for turn in outcome.score.turns if turn.stale is not None]
    return share(sum(told), len(told))


def _missed(outcome: Outcome) -> str:
    chosen = _interruptions(outcome)
    return share(sum(each.missed for each in chosen), len(chosen))


def _quick(outcome: Outcome) -> str:
    silences = _silences(outcome)
    quick = sum(seconds <= WITHIN_SECONDS for seconds in silences)
    return share(quick, len(_interruptions(outcome)))


def _false(outcome: Outcome) -> str:
    return share(sum(noise.false for noise in _real(outcome)), len(_real(outcome)))


def _resumed(outcome: Outcome) -> str:
    return share(sum(noise.resumed for noise in _real(outcome)), len(_real(outcome)))


def _answered(outcome: Outcome) -> str:
    return share(sum(noise.answered for noise in _real(outcome)), len(_real(outcome)))


def _ratio(outcome: Outcome, use: str) -> str:
    chosen = [recall for recall in outcome.recalls if recall.use == use and recall.words]
    heard = sum(recall.heard for recall in chosen)
    return share(heard, sum(recall.words for recall in chosen))


def _history(outcome: Outcome) -> str:
    told = [r for r in outcome.recalls if r.use == "cut" and r.remembered is not None]
    return share(sum(recall.is_error for recall in told), len(told))


def _excess(outcome: Outcome) -> str:
    return milliseconds([ms / 1000 for ms in outcome.excess_ms], 50, 100)


def _word_errors(outcome: Outcome) -> str:
    """Over all turns that were transcribed; weighted by their words."""
    turns = [turn for turn in outcome.score.turns if turn.transcript]
    spoken = sum(len(words(turn.act.text)) for turn in turns)
    wrong = sum(
        word_error_rate(turn.act.text, turn.transcript) * len(words(turn.act.text))
        for turn in turns
    )
    return f"{100 * wrong / spoken:.0f} %" if spoken else "-"


_ROWS: tuple[Row, ...] = (
    ("turns", _how_many),
    ("turns cut off", _cut_offs),
    ("turns committed before their end", _early),
    (
        "dead air: last word to first audible frame, p50, p95, p99",
        lambda o: milliseconds(_dead_air(o.score.turns), 50, 95, 99),
    ),
    ("the same after a short answer, p50, p95", _short_answers),
    ("last word to the turn's commit, p50, p95", _commits),
    ("commit to first audible frame, p50, p95", _after_commit),
    (
        "silent turns (committed, no reply)",
        lambda o: str(sum(turn.silent for turn in o.score.turns)),
    ),
    (
        "unheard turns (neither committed nor answered)",
        lambda o: str(sum(turn.unheard for turn in o.score.turns)),
    ),
    ("replies that miss the newest words", _stale),
    ("true interruptions missed", _missed),
    ("onset of one to silence, p50, p95", lambda o: milliseconds(_silences(o), 50, 95)),
    (f"silent within {1000 * WITHIN_SECONDS:.0f} ms", _quick),
    ("false barge-ins: replies cut by a noise", _false),
    ("replies that went on to their end", _resumed),
    ("words heard of the replies that were not cut", lambda o: _ratio(o, "noise")),
    ("noises answered as if they were turns", _answered),
    (
        "longest hole around a noise, p50, p95",
        lambda o: milliseconds([n.hole_seconds for n in _real(o)], 50, 95),
    ),
    ("cut replies remembered with unheard words", _history),
    ("`audio_end_ms` beyond what was heard, p50, worst", _excess),
    ("words the second recogniser finds in whole replies", lambda o: _ratio(o, "whole")),
    ("word errors of the transcripts", _word_errors),
    ("steps skipped (no reply to speak over)", lambda o: str(o.skipped)),
    ("errors", lambda o: str(len(o.errors))),
)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
