"""From a stream of text to pieces worth speaking.

A speech engine speaks best by the sentence, but the caller should hear something before the first
sentence is written. So the first piece of a reply may be a clause; all later ones are sentences.
Where a sentence ends is decided from left to right with as little text ahead as possible and
never taken back: the same text gives the same pieces however it was cut into deltas.
"""

from __future__ import annotations

import re

_FIRST_CLAUSE_WORDS = 6
_LONG_CLAUSE_WORDS = 10

_CLOSERS = "\"'”’»)]}*_`」』"
_QUOTES = "\"'”’»)"
_NUMBERED = (
    r"(?:no|nos|nr|fig|figs|vol|p|pp|ch|sec|art|min|max|est|ext|tel"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)"
)
_GERMAN_MONTHS = (
    "Januar", "Jänner", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September",
    "Oktober", "November", "Dezember",
)  # fmt: skip

_BREAK = re.compile(r"\n+|(?:[.!?…。！？؟।۔]+|[,;:，、；：]|—)" + f"[{re.escape(_CLOSERS)}]*")
_TOKEN = re.compile(r"\S+$")
_WIDE_ENDS = "。！？"
_WIDE_CLAUSES = "，、；："

_NEVER_ENDS = re.compile(
    # titles, places and the like, always followed by what they belong to
    r"(?:mr|mrs|ms|mx|dr|prof|rev|hon|gen|col|capt|lt|sgt|gov|sen|rep|st|mt|ft|vs|cf|viz|approx|ca"
    r"|mme|mlle|hr|fr|bzw|ggf|evtl|sra?|vgl"
    # single letters and letters with full stops between them: J. K., U.S., e.g., z.B.
    r"|[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_])\.",
    re.IGNORECASE,
)
_MAY_END = re.compile(r"(?:etc|inc|ltd|corp|co|jr|bros|al|usw|a\.m|p\.m|ph\.d)\.", re.IGNORECASE)
_ENDS_UNLESS_NUMBER = re.compile(_NUMBERED + r"\.", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"\d{1,3}\.")
_ORDINAL = re.compile(r"\d{1,2}\.")
_WIDE = "\u2e80"
"""From here on a character is a syllable or more: Chinese, Japanese, Korean."""
_CUT_AT_CLAUSE = re.compile(r"(?:[,;:]\s|[，、；：]|—(?!\d))")
_WORD_END = re.compile(r"\S(?=\s)")


class SentenceSplitter:
    """Cuts one reply's text into speakable pieces; make a new one for each reply.

    Pieces come stripped; joined with spaces they are the text again, up to white space. They may
    hold markup and emoji: pass each through `speakable`.
    """

    def __init__(
        self, first_clause_min_characters: int = 12, maximum_characters: int = 240
    ) -> None:
        self._first_minimum = first_clause_min_characters
        self._maximum = maximum_characters
        self._text = ""
        self._first = True

    def feed(self, delta: str) -> list[str]:
        """Take more text; return the pieces that it completed, often none."""
        self._text = (self._text + delta).lstrip() if not self._text else self._text + delta
        pieces = []
        while (end := self._next_cut()) is not None:
            pieces.append(self._text[:end].rstrip())
            self._text = self._text[end:].lstrip()
            self._first = False
        return pieces

    def flush(self) -> list[str]:
        """The text is over: return what is left, at most a few pieces."""
        # A line end lets everything be decided that waited for more.
        pieces = self.feed("\n") if self._text else []
        rest = self._text.strip()
        self._text = ""
        return [*pieces, rest] if rest else pieces

    def _next_cut(self) -> int | None:
        for match in _BREAK.finditer(self._text):
            if match.end() > self._maximum:
                break
            if self._is_long_first_clause(match.start()):
                break
            verdict = self._judge(match)
            if verdict is None:
                return None
            if verdict:
                return match.end()
        return self._early_cut() or self._forced_cut()

    def _judge(self, match: re.Match[str]) -> bool | None:
        """Does a piece end here? None: more text is needed to know."""
        piece = self._text[: match.end()]
        if not any(character.isalnum() for character in piece):
            return False
        mark = match.group()[0]
        if mark == "\n":
            return not _is_list_number(piece.rstrip())
        after = self._text[match.end() :]
        if not after:
            return None
        if mark in _WIDE_ENDS:
            return True
        if mark in ",;:—" + _WIDE_CLAUSES:
            return self._first and self._is_enough(piece) and _ends_clause(mark, after)
        if not after[0].isspace():
            return False
        bare, following = piece.rstrip(_CLOSERS), after.lstrip()
        if _is_quoted(piece, bare):
            if not following:
                return None
            if following[0].islower():  # "Stop!" he said
                return False
        return _ends_sentence(bare, following)

    def _is_enough(self, piece: str) -> bool:
        """Is it long enough to be spoken alone?"""
        return sum(2 if each >= _WIDE else 1 for each in piece) >= self._first_minimum

    def _early_cut(self) -> int | None:
        """After six words of a first clause that turns out to be long."""
        if not self._is_long_first_clause(self._maximum):
            return None
        for count, match in enumerate(_WORD_END.finditer(self._text), start=1):
            if count >= _FIRST_CLAUSE_WORDS and match.end() >= self._first_minimum:
                return match.end()
        return None

    def _is_long_first_clause(self, end: int) -> bool:
        if not self._first:
            return False
        words = sum(1 for _ in _WORD_END.finditer(self._text, 0, end))
        return words >= _LONG_CLAUSE_WORDS and end > self._first_minimum

    def _forced_cut(self) -> int | None:
        """A piece must not grow for ever: the last clause, else the last word that fits."""
        if len(self._text) <= self._maximum:
            return None
        ends = [m.end() for m in _CUT_AT_CLAUSE.finditer(self._text, 0, self._maximum)]
        if ends:
            return ends[-1]
        words = [m.end() for m in _WORD_END.finditer(self._text, 0, self._maximum + 1)]
        if words:
            return words[-1]
        following = _WORD_END.search(self._text, self._maximum)
        return following.end() if following else None


def _ends_clause(mark: str, after: str) -> bool:
    if mark in _WIDE_CLAUSES:
        return True
    return after[0].isspace() or (mark == "—" and not after[0].isdigit())


def _is_quoted(piece: str, bare: str) -> bool:
    return any(mark in _QUOTES for mark in piece[len(bare) :])


def _ends_sentence(piece: str, following: str) -> bool | None:
    """``piece`` ends with a full stop or the like and white space; ``following`` comes then."""
    if piece[-1] in "!?؟।۔":
        return True
    token_match = _TOKEN.search(piece)
    token = token_match.group().lstrip("\"'“‘«([{*_`") if token_match else ""
    if piece.endswith(("..", "…")) or _MAY_END.fullmatch(token):
        return following[0].isupper() if following else None
    if _is_list_number(piece) or _NEVER_ENDS.fullmatch(token):
        return False
    if _ENDS_UNLESS_NUMBER.fullmatch(token):
        return not following[0].isdigit() if following else None
    if _ORDINAL.fullmatch(token):
        return _ends_after_number(following)
    return True


def _ends_after_number(following: str) -> bool | None:
    """``am 5. Mai`` and ``the 3. of five`` go on."""
    if not following:
        return None
    word = re.split(r"\W", following)[0]
    if word == following and any(month.startswith(word) for month in _GERMAN_MONTHS):
        return None
    return not following[0].islower() and word not in _GERMAN_MONTHS


def _is_list_number(piece: str) -> bool:
    """Is all of it ``1.``, the head of a list entry?"""
    line = piece.rsplit("\n", 1)[-1].strip(_CLOSERS + " ")
    return _LIST_NUMBER.fullmatch(line) is not None


# ---------------------------------------------------------------------------------- speakable

_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\([\\`*_{}\[\]()#+.!|~>-])"), r"\1"),
    (re.compile(r"<!--.*?-->", re.DOTALL), " "),
    (re.compile(r"```[\w+-]*"), " "),
    (
        re.compile(r"!?\[([^\]]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+\"[^\"]*\")?\)"),
        r"\1",
    ),
    # sources: [text][1], [^1], [1] behind a word, and what some services put in brackets like these
    (re.compile(r"\[((?!\^?\d+\])[^\]\[]+)\]\[[^\]\[]*\]"), r"\1"),
    (re.compile(r"(?<![\w\]])(?:\s*\[\^?\d{1,3}\])+(?=[\s.,;:!?]|$)|\[\^\d+\]|【[^】]*】"), ""),
    (re.compile(r"<(https?://[^>\s]+)>"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>]*>"), " "),
    (re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.MULTILINE), ""),
    # A separator between the cells of a table row is a must: without it a run of dashes could be
    # cut up in more ways than there is time to try.
    (
        re.compile(
            r"^[ \t]*\|?[ \t]*:?-{3,}:?[ \t]*(?:\|[ \t]*:?-{3,}:?[ \t]*)*\|?[ \t]*$", re.MULTILINE
        ),
        "",
    ),
    (re.compile(r"^[ \t]*=+[ \t]*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:[-*+•‣◦][ \t]+)+(?:\[[ xX]\][ \t]+)?", re.MULTILINE), ""),
    # a pause between the cells of a table's row
    (re.compile(r"^[ \t]*\|[ \t]*|[ \t]*\|[ \t]*$", re.MULTILINE), ""),
    (re.compile(r"(?<=\w)[ \t]*\|[ \t]*(?=\w)"), ", "),
    (re.compile(r"(\*\*|__|~~|==)(?=\S)(.+?)(?<=\S)\1", re.DOTALL), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)_(?=\S)([^_]+?)(?<=\S)_(?!\w)"), r"\1"),
    # markup that was opened or closed in another piece
    (re.compile(r"(?<!\w)(?:\*\*|__|~~)|(?:\*\*|__|~~)(?!\w)"), ""),
    (re.compile(r"(?<![\w*])\*(?=\w)|(?<=[\w.,!?])\*(?=\s|$)"), ""),
    (re.compile(r"[`|]"), " "),
    (re.compile(r"(?<!\S)(?:[:;]['’]?-?[)(DPp]|<3)(?=[\s.,!?]|$)"), ""),
    (re.compile(r"\s+(?:[←-⇿]|[-=]>)\s+"), ", "),
    (re.compile(r"[™®©─-╿]"), ""),
)

_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "#39": "'", "nbsp": " "}
_ENTITY = re.compile("&(" + "|".join(_ENTITIES) + ");")
_PICTURES = re.compile(
    "["
    "\U0001f000-\U0001faff"  # emoji, pictographs, flags
    "\u2600-\u27bf"  # miscellaneous symbols and dingbats
    "\u2b00-\u2bff"  # more arrows and stars
    "\u231a-\u231b\u23e9-\u23fa"  # clocks and player buttons
    "\u20e3\ufe00-\ufe0f\u200d\U000e0020-\U000e007f"  # what joins and varies them
    "]+"
)
_INVISIBLE = re.compile(
    "[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffc\ufffd\ud800-\udfff]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def speakable(text: str) -> str:
    """``text`` without markdown, emoji and control characters, in one line.

    Empty when nothing is left that has a sound.
    """
    text = _CONTROL.sub(" ", text.replace("\r\n", "\n"))
    text = _ENTITY.sub(lambda found: _ENTITIES[found[1]], text)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    text = _INVISIBLE.sub("", _PICTURES.sub(" ", text))
    text = re.sub(r"\s+([,.!?;:])(?=\s|$)", r"\1", " ".join(text.split()))
    return text if any(character.isalnum() for character in text) else ""
