"""How long to wait, once the caller paused, before the turn counts as over.

What was said so far tells whether the caller is likely to go on. Speech models with punctuation
say it best: Whisper writes unfinished speech with an ellipsis or without a full stop. Models
without punctuation (pocketsphinx) leave the last word: nobody ends on "and" or "the".
"""

from __future__ import annotations

import re

_COMPLETE = 1.0
_NEUTRAL = 0.5
_DOUBTFUL = 0.4
_UNFINISHED = 0.1

_WRAPPING = " \t\r\n\"'”’»)]}*_"
_STRONG_ENDS = (".", "!", "?", "。", "！", "？", "؟", "।", "．")
_ELLIPSES = ("...", "…", "..")
_WEAK_ENDS = (",", ";", ":", "-", "–", "—", "、", "，", "；", "：")

_GOES_ON = frozenset(
    # English
    "a an and as at because but for from if in into like my of or our so than that the their then "
    "to um uh er erm hmm well when where which while who whose with without your "
    # German
    "aber ähm äh das dass der ein eine einen mit oder und weil wenn "
    # French
    "avec dans des donc et euh la le les mais ou parce pour que qui un une "
    # Spanish
    "con de el en los las o para pero porque por y".split()
)
"""Last words after which a sentence goes on."""

_HESITATIONS = frozenset("a an and because but er erm the uh um euh äh ähm und".split())
"""Last words that prove even a full stop wrong."""

_LAST_WORD = re.compile(r"([^\W\d_]+)[\W_]*$")


def completeness(text: str) -> float:
    """How finished ``text`` (a partial transcript) reads: 0.0 not at all, 0.5 no idea, 1.0 quite.

    Empty text is 0.0: when nothing was understood, waiting costs least.
    """
    stripped = text.rstrip(_WRAPPING)
    if not stripped:
        return 0.0
    if stripped.endswith(_ELLIPSES) or stripped.endswith(_WEAK_ENDS):
        return _UNFINISHED
    match = _LAST_WORD.search(stripped)
    word = match.group(1).lower() if match else ""
    if stripped.endswith(_STRONG_ENDS):
        doubtful = word in _HESITATIONS and not stripped.endswith(("?", "？", "؟"))
        return _DOUBTFUL if doubtful else _COMPLETE
    return _UNFINISHED if word in _GOES_ON else _NEUTRAL


def pause_seconds(text: str, minimum: float, maximum: float) -> float:
    """Pause that ends the turn whose newest partial is ``text``.

    ``minimum`` seconds when it reads complete, ``maximum`` when not at all, between them else.
    """
    return maximum - (maximum - minimum) * completeness(text)
