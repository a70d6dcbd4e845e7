"""How long to wait, once the caller paused, before the turn counts as over.

An `Endpointing` object belongs to one call. It is told what the caller's turn sounds like so far,
what the agent said last, which pauses the caller went on after and how long recognition takes;
`Endpointing.pause` makes one figure of it, between the shortest and the longest pause that the
rules allow:

1. **How the newest partial ends** gives a doubt, 0 to 1: the place of the pause between the two.

       ends with                            doubt    0.5 to 2.0 s
       a full stop, "!", "?"                0.0      0.5
       nothing, or nothing was understood   0.125    0.69
       a full stop behind "and", "um"       0.3      0.95
       ",", ":", "-"; dictated digits       0.5      1.25
       a word that goes on: "the", "with"   0.7      1.55
       an ellipsis; "um", "and"             1.0      2.0

   Punctuation is what counts, and it is the same in most languages: Whisper writes unfinished
   speech with an ellipsis or without a full stop. The lists of words are an extra, for recognisers
   that write none. The order and the proportions are RealtimeVoiceChat's (its fast end: "." 0.39 s,
   "?" 0.33 s, none 1.25 s, "..." 2.3 s), except that no punctuation says nothing where the
   recogniser never writes any, so that it costs little more than a full stop. 0.5 s is the shortest
   pause of LiveKit Agents, 2.0 s what HF speech-to-speech waits for an incomplete sentence.
2. **Stable partials**: while partials repeat the same words, the doubt is the mean over them
   (RealtimeVoiceChat does so): one full stop among three ellipses ends nothing.
3. **Short answers** end after the shortest pause, however they are written: "yes", "okay", and,
   when the agent asked something, any one or two words. Two seconds of dead air after "Yeah." are
   what callers of others complain about most.
4. **Dictation** (digits or letters one by one, or any number where the agent asked for one) has
   pauses between its groups, full stop or not: the doubt is 0.5 at least.
5. **A turn model** (`judged`), where there is one, has heard the voice: its doubt counts 0.35, that
   of the words 0.65 (RealtimeVoiceChat's weights). Short answers are exempt: such models take
   "Yeah." for a beginning.
6. **The caller's own pauses**: a slow speaker gets more time, a fast one less. See `went_on`.
7. **The floor**: a pause is never shorter than this call's recognition takes, and 0.1 s
   (RealtimeVoiceChat's margin). Until then the last words may be missing from the partial, and a
   turn would be ended by what the sentence looked like before them. See `took`.

The rules come last: no pause is longer than the longest, and where both are equal, as with a
client's own ``silence_duration_ms``, none of this changes it.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable
from statistics import median

PACES = {"relaxed": 2.0, "default": 1.0, "eager": 0.6}
"""Preset -> factor on both pauses. OpenAI's eagerness low, medium, high waits 8, 4 and 2 s at most;
RealtimeVoiceChat's slider makes a pause up to 2.4 times as long."""

_SURE = 0.0
_NO_IDEA = 0.125
_HESITANT = 0.3
_COMMA = 0.5
_DICTATED = 0.5
_GOES_ON = 0.7
_UNFINISHED = 1.0

_SAME_WORDS = 8
"""So many partials with the same words are averaged: the newest."""
_PAUSES = 16
"""So many of the caller's pauses count: the newest."""
_PRIOR_PAUSES = 4
"""What nothing is known of yet counts as much as so many pauses."""
_PATIENT_SHARE = 0.9
"""Share of the caller's pauses that must not end a turn."""
_MARGIN_SECONDS = 0.1
_LATENCIES = 8
_SHORT_WORDS = 2
_SHORT_CHARACTERS = 4  # of a script without spaces
_DICTATED_TOKENS = 3
_DICTATED_DIGITS = 5
_VOICE_WEIGHT = 0.35

_WRAPPING = " \t\r\n\"'”’»)]}*_"
_QUESTIONS = ("?", "？", "؟", "\u037e")  # the last is the Greek one, which looks like ";"
_STRONG_ENDS = (".", "!", "。", "！", "।", "．", "۔", *_QUESTIONS)
_ELLIPSES = ("...", "…", "..")
_WEAK_ENDS = (",", ";", ":", "-", "–", "—", "、", "，", "；", "：", "،")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GO_ON = _words(
    # English
    "a an and as at because but for from if in into like my of or our so than that the their then "
    "to um uh er erm hmm well when where which while who whose with without your "
    # German
    "aber ähm äh das dass der ein eine einen mit oder und weil wenn "
    # French
    "avec dans des donc et euh la le les mais ou parce pour que qui un une "
    # Spanish
    "con de el en los las o para pero porque por y"
)
"""Last words after which a sentence goes on."""

_FILLERS = _words("um uh erm hmm euh äh ähm and und et y")
"""Last words that say that more comes, in so many words."""

_HESITATIONS = _words("a an and because but er erm the uh um euh äh ähm und")
"""Last words that prove even a full stop wrong."""

_ANSWERS = _words(
    "yes yeah yep yup no nope okay ok sure right correct thanks "
    "ja nein doch genau danke oui non merci sí si claro gracias sì da net да нет "
    "はい いいえ 是 不是 对 好 好的 네 아니요 نعم لا हाँ नहीं"
)
"""Whole turns of one word."""

_NUMBERS = _words(
    "zero oh one two three four five six seven eight nine double triple "
    "null eins zwei zwo drei vier fünf sechs sieben acht neun "
    "zéro un deux trois quatre cinq sept huit neuf "
    "cero uno dos tres cuatro cinco seis siete ocho nueve"
)
"""What digits are called where a recogniser does not write them as digits."""

_ASKS_FOR_DIGITS = _words(
    "number digits code phone zip pin postcode spell "
    "nummer telefonnummer ziffern postleitzahl buchstabieren numéro chiffres épeler número dígitos"
)

_LAST_WORD = re.compile(r"([^\W\d_]+)[\W_]*$")
# No \w: it splits words of scripts whose vowels are combining marks.
_TOKEN = re.compile(r"[^\s!-/:-@\[-`{-~¡¿«»„“”‘’…–—、。，．！？：；·।۔،؛؟]+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Letters of Thai, Lao, Khmer, Japanese and Chinese, which write no spaces between words."""


def doubt(text: str) -> float:
    """Whether what reads ``text`` goes on: 0.0 surely not, 1.0 surely; the module has the table."""
    stripped = text.rstrip(_WRAPPING)
    if not stripped:
        return _NO_IDEA
    if stripped.endswith(_ELLIPSES):
        return _UNFINISHED
    match = _LAST_WORD.search(stripped)
    word = match.group(1).casefold() if match else ""
    if stripped.endswith(_QUESTIONS):
        return _SURE
    if stripped.endswith(_STRONG_ENDS):
        return _HESITANT if word in _HESITATIONS else _SURE
    if word in _FILLERS:
        return _UNFINISHED
    if stripped.endswith(_WEAK_ENDS):
        return _COMMA
    return _GOES_ON if word in _GO_ON else _NO_IDEA


class Endpointing:
    """Decides, for one call, which pause ends the caller's turn; the module's docstring tells how.

    What it is told holds from the next `pause` on. It keeps a bounded number of figures.
    """

    def __init__(self) -> None:
        self._text = ""
        self._tokens: list[str] = []
        self._doubts: deque[float] = deque(maxlen=_SAME_WORDS)
        self._pauses: deque[float] = deque(maxlen=_PAUSES)
        self._unproved: float | None = None
        self._voice: float | None = None
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._was_asked = False
        self._asked_for_digits = False

    # ----------------------------------------------------------------- what it is told

    def begin(self) -> None:
        """A new turn: nothing of it was understood yet."""
        self._text, self._tokens, self._unproved, self._voice = "", [], None, None
        self._doubts.clear()

    def partial(self, text: str) -> None:
        """The whole turn reads ``text`` so far."""
        tokens = _TOKEN.findall(text.casefold())
        if tokens != self._tokens:
            self._doubts.clear()
            self._learn_pause()
        self._text, self._tokens = text, tokens
        self._doubts.append(doubt(text))

    def replied(self, text: str) -> None:
        """The agent said ``text`` last, as far as it was heard."""
        self._was_asked = text.rstrip(_WRAPPING).endswith(_QUESTIONS)
        words = _TOKEN.findall(text.casefold())
        self._asked_for_digits = not _ASKS_FOR_DIGITS.isdisjoint(words)

    def went_on(self, seconds: float) -> None:
        """The caller paused for ``seconds`` and speaks again, in the same turn.

        It counts once words follow: a cough in a pause says nothing about the caller. The pause of
        a turn that was ended too early is told too, else only pauses that were waited for would
        ever be known, and the more hastily turns were ended, the shorter they would seem.
        """
        self._unproved = max(0.0, seconds)
        self._voice = None

    def judged(self, completeness: float) -> None:
        """In this pause the caller sounds finished with this probability."""
        self._voice = 1.0 - completeness

    def took(self, seconds: float) -> None:
        """The transcript of a turn came ``seconds`` after its end."""
        self._latencies.append(max(0.0, seconds))

    # -------------------------------------------------------------------- what follows

    def pause(self, shortest: float, longest: float) -> float:
        """Seconds of silence, from the last sample of speech, that end the turn as it stands."""
        longest = max(shortest, longest)
        if self._is_short_answer():
            wanted = shortest
        else:
            wanted = (shortest + (longest - shortest) * self._doubt()) * self._slowness(
                shortest, longest
            )
        return min(longest, max(shortest, wanted, self.floor_seconds))

    @property
    def floor_seconds(self) -> float:
        """No pause that depends on words is shorter: median time of the newest transcripts + 0.1 s.

        0.0 before the first.
        """
        return median(self._latencies) + _MARGIN_SECONDS if self._latencies else 0.0

    def _doubt(self) -> float:
        found = sum(self._doubts) / len(self._doubts) if self._doubts else _NO_IDEA
        if self._voice is not None:
            found += (self._voice - found) * _VOICE_WEIGHT
        return max(found, _DICTATED) if self._is_dictation() else found

    def _slowness(self, shortest: float, longest: float) -> float:
        """Factor by which this caller's pauses are longer than what is taken for usual.

        Usual is the pause after words without punctuation; the caller's is what 90 % of their own
        stay below, and 0.1 s. Every pause heard moves it from the first to the second.
        """
        usual = shortest + (longest - shortest) * _NO_IDEA
        if not self._pauses:
            return 1.0
        own = _quantile(self._pauses, _PATIENT_SHARE) + _MARGIN_SECONDS
        own = min(longest, max(shortest, own))
        heard = len(self._pauses)
        patience = (own * heard + usual * _PRIOR_PAUSES) / (heard + _PRIOR_PAUSES)
        return patience / usual

    def _is_short_answer(self) -> bool:
        tokens = self._tokens
        if not tokens or max(self._doubts) > _NO_IDEA or self._is_dictation():
            return False
        if len(tokens) == 1 and tokens[0] in _ANSWERS:
            return True
        if not self._was_asked or len(tokens) > _SHORT_WORDS:
            return False
        return not _UNSPACED.search(self._text) or sum(map(len, tokens)) <= _SHORT_CHARACTERS

    def _is_dictation(self) -> bool:
        tokens = self._tokens
        if not tokens or not all(_is_dictated(token) for token in tokens):
            return False
        digits = sum(character.isdigit() for token in tokens for character in token)
        many = len(tokens) >= _DICTATED_TOKENS or digits >= _DICTATED_DIGITS
        return many or self._asked_for_digits

    def _learn_pause(self) -> None:
        if self._unproved is not None:
            self._pauses.append(self._unproved)
            self._unproved = None


def _is_dictated(token: str) -> bool:
    """A number, the name of a digit, or a letter for itself."""
    if token.isdigit() or token in _NUMBERS:
        return True
    return len(token) == 1 and token.isalpha() and not _UNSPACED.match(token)


def _quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * share) - 1]
