"""Answering before the caller's turn is over: when to begin, and whether the answer still fits.

While the caller pauses, the server waits to be sure that the turn is over. A generation that began
meanwhile, on the newest partial transcript, makes that time count. Nothing of it is heard before
the turn is committed, and it is thrown away when the final transcript says something else.

**When to begin** (RealtimeVoiceChat, ``turndetect.py`` and ``transcribe.py``): with the pause ``W``
that will end the turn and the time ``L`` from a request to the first sound, silence of
``max(20 ms, W - L - 20 ms)`` is the moment from which the sound is there just when the turn ends.
Earlier where the ending of the partials is stable and reads like the end of a sentence. There that
took "3 partials in 200 ms", which never happens on a GPU that many callers share: here it is
``stable_partials`` equal endings over ``stable_seconds`` of *audio*, however long they took. At
most ``most_starts`` generations a turn (LiveKit: 3).

**Whether it fits**: the last five words are at least 0.95 alike (RealtimeVoiceChat), and not one
negation or number differs anywhere: "I do want" and "I do not want" are nearly the same letters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from voice_rtc.core.similarity import TextSimilarity, words_of

_MARGIN_SECONDS = 0.02
"""One packet: the sound is to be there just before it is wanted, and silence is at least this."""
_COMPLETE = 0.9
"""`core.endpointing.completeness` from which a partial reads like the end of a sentence."""

_NEGATIONS = frozenset(
    words_of(
        # English
        "aint neither never no nobody none nor not nothing nowhere without "
        # German
        "kein keine keinem keinen keiner keines nein nicht nichts nie niemals niemand ohne weder "
        # French
        "aucun aucune jamais ne ni non pas personne rien sans "
        # Spanish
        "jamás nada nadie ningún ninguna ninguno nunca sin tampoco "
        # Italian, Portuguese, Dutch
        "mai nessuno niente senza não nem ninguém sem geen niet nooit"
    )
)

_NUMBERS = frozenset(
    words_of(
        # English
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy "
        "eighty ninety hundred thousand million billion half quarter double first second third "
        "fourth fifth "
        # German
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn "
        "fünfzehn sechzehn siebzehn achtzehn neunzehn zwanzig dreißig vierzig fünfzig sechzig "
        "siebzig achtzig neunzig hundert tausend halb "
        # French
        "zéro deux trois quatre cinq sept huit neuf dix onze douze treize quatorze quinze seize "
        "vingt trente quarante cinquante soixante cent mille demi "
        # Spanish
        "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
        "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa cien ciento mil medio"
    )
)
"""Numbers written as one word; none is ever taken for another. Longer ones of German are single
words too ("dreiundvierzig"): they are told apart by their letters."""


class Verdict(StrEnum):
    """What becomes of a generation once the caller's words are known."""

    KEEP = "kept"
    MEANING = "meaning"
    """Re-issue: a negation or a number differs."""
    WORDING = "wording"
    """Re-issue: the words are not alike enough, or there are none."""


class Trigger(StrEnum):
    """Why a generation begins."""

    STABLE = "stable"
    """The partials end alike and read like the end of a sentence."""
    SILENCE = "silence"
    """The turn will be over when its first sound is there."""


@dataclass(frozen=True, slots=True)
class SpeculationRules:
    """What to go by."""

    similarity: TextSimilarity = field(default_factory=TextSimilarity)
    threshold: float = 0.95
    """Similarity, 0 to 1, from which two texts are the same."""
    tail_words: int = 5
    """Words that the endings of partials are compared by."""
    stable_partials: int = 2
    """Partials with the same ending, at least 1."""
    stable_seconds: float = 0.3
    """Of audio between the first and the last of them."""
    most_starts: int = 3
    """Generations a turn."""


DEFAULT_RULES = SpeculationRules()


def judge(started_on: str, final: str, rules: SpeculationRules = DEFAULT_RULES) -> Verdict:
    """Does what was generated for ``started_on`` answer ``final`` as well?"""
    before, now = words_of(started_on), words_of(final)
    if not before or not now:
        return Verdict.WORDING
    if _decisive(before) != _decisive(now):
        return Verdict.MEANING
    alike = rules.similarity.ratio_of_words(before, now)
    return Verdict.KEEP if alike >= rules.threshold else Verdict.WORDING


def start_after(pause: float, latency: float) -> float:
    """Silence, in seconds, after which to begin, for a turn that ends after ``pause`` of it.

    ``latency`` is the measured time from a request to the first sound.
    """
    return max(_MARGIN_SECONDS, pause - latency - _MARGIN_SECONDS)


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to generate an answer to ``text``."""

    text: str
    trigger: Trigger


class Speculation:
    """Of one turn of the caller. Times are seconds on the sample clock."""

    def __init__(self, rules: SpeculationRules = DEFAULT_RULES) -> None:
        self._rules = rules
        self._text = ""
        self._is_complete = False
        self._ending: list[str] = []
        self._repeats = 0
        """Partials in a row with this ending."""
        self._since = 0.0
        """End of the audio of the first of them."""
        self._at = 0.0
        """And of the newest."""
        self.started_on: str | None = None
        """Text of the generation that runs; None without one."""
        self.starts = 0
        """Generations so far."""

    def hear(self, text: str, at: float, completeness: float) -> None:
        """The newest partial of the turn, of the audio until ``at``."""
        ending = words_of(text)[-self._rules.tail_words :]
        if ending != self._ending:
            self._ending, self._repeats, self._since = ending, 0, at
        self._repeats += 1
        self._at = at
        self._text = text
        self._is_complete = completeness >= _COMPLETE

    def next_start(
        self, now: float, silent_since: float | None, pause: float, latency: float
    ) -> Start | None:
        """What to generate an answer to at ``now``; counts as begun.

        A generation that runs and still fits is left alone; one that does not is replaced by the
        new one, and the caller must end it. ``silent_since`` None: the caller speaks. ``pause`` is
        how long a silence ends the turn, ``latency`` as in `start_after`.
        """
        trigger = self._trigger(now, silent_since, pause, latency)
        if trigger is None or not self._may_start:
            return None
        self.starts += 1
        self.started_on = self._text
        return Start(self._text, trigger)

    def next_deadline(
        self, silent_since: float | None, pause: float, latency: float
    ) -> float | None:
        """When `next_start` is to be asked again; None: at the next partial or silence."""
        if silent_since is None or not self._may_start:
            return None
        return silent_since + start_after(pause, latency)

    def settle(self, final: str) -> Verdict:
        """The turn is committed, its text known: keep the generation, or begin one for it.

        Without a generation that runs the verdict is never KEEP: no turn is left unanswered.
        """
        if self.started_on is None:
            return Verdict.WORDING
        return judge(self.started_on, final, self._rules)

    def failed(self) -> None:
        """The generation ended by an error or was withdrawn: there is none."""
        self.started_on = None

    @property
    def _may_start(self) -> bool:
        if self.starts >= self._rules.most_starts or not words_of(self._text):
            return False
        if self.started_on is None:
            return True
        return judge(self.started_on, self._text, self._rules) is not Verdict.KEEP

    def _trigger(
        self, now: float, silent_since: float | None, pause: float, latency: float
    ) -> Trigger | None:
        if self._is_complete and self._is_stable:
            return Trigger.STABLE
        if silent_since is not None and now >= silent_since + start_after(pause, latency):
            return Trigger.SILENCE
        return None

    @property
    def _is_stable(self) -> bool:
        rules = self._rules
        return (
            self._repeats >= rules.stable_partials
            and self._at - self._since >= rules.stable_seconds
        )


def _decisive(words: list[str]) -> list[str]:
    """The negations, numbers and units, in order: texts in which they differ ask for two things.

    Numbers are whatever has a digit, and number words; "two" is not taken for "2".
    """
    return [word for word in words if word in _NEGATIONS or word in _NUMBERS or _is_figure(word)]


def _is_figure(word: str) -> bool:
    """A number in digits, or a sign that gives one its meaning ("%", "€", "+")."""
    return any(map(str.isnumeric, word)) or (len(word) == 1 and not word.isalpha())
