"""Does the caller who speaks over a reply want the floor? What is known, weighed by rules.

The first thing known is that there is a voice; the reply is lowered for that alone. Whether it ends
is decided by what the newest partial transcript says, by how long the voice lasts, and by what it
sounds like (`judge`; rows are tried from the top, under the policy ``default``):

    what came in                                 what follows
    -------------------------------------------  ------------------------------------------------
    our own echo                                 nothing
    speech far softer than the caller's usual    nothing
    a stop word ("stop", "wait", "hold on")      interrupts at once
    other words, two or for `seconds`            interrupts
    only backchannels ("mhm", "yeah", "okay")    nothing when it ends; interrupts after `patience`
    no words, none expected (see below)          interrupts after `seconds` x `wordless_factor`
    no words although they come in this call     nothing after `patience`
    ended with less than `_LEAST_SECONDS`        nothing
    ended without words                          waits for the words that are due, then nothing:
                                                 a false alarm, or unclear

"Nothing" lets the reply go on where it was lowered; the voice is listened to all the same, and new
words or another sound are weighed again. Until something follows the reply stays lowered. What ends
unclear, because no words were expected or because it was too long for a cough, is kept and answered
after the reply, and so is a "yes" to a reply that ends with a question; the rest is forgotten.

**Words come late.** A partial takes the recogniser's interval (0.4 s) and its computing time; until
then a cough and a sentence are the same. How late words come in this call is remembered
(`WordPace`): where they come, they decide; where none ever came (the first words of a call, an
engine that gives no partials, an overloaded one), the length of the voice alone does, since
somebody who cannot stop the agent is worse off than somebody who has to ask it to go on.

What follows for a true interruption, from its first sound on, with the default settings: the reply
is lowered after 0.1 s (`turns.speech_start_seconds`) and stands still after 0.4 s
(`turns.duck_seconds` more), whatever is decided; it is over when the first partial came (0.5 to 0.8
s with the default interval and a recogniser that keeps up), or after 0.75 s where none is expected.

The other policies: ``words`` lets words decide alone, never the length; ``any`` asks for `seconds`
of voice and nothing else but that it be no echo; ``never`` is for the turn machine, which then does
not ask.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples

Policy = Literal["default", "words", "any", "never"]
ConfirmedBy = Literal["stop_word", "words", "duration"]
Nothing = Literal["false_alarm", "unclear", "backchannel", "background", "echo"]
"""What a voice was that changes nothing; a false alarm is short, or has no words."""

_SLACK_SECONDS = 0.001
"""Who asks again at the time that they were told may be a rounding error early."""
_LEAST_SECONDS = 0.2
"""The shortest "no" is longer; a click, a knock or most coughs are not. What a recogniser makes of
less is not to be believed."""
_LATER_SECONDS = 0.25
"""Words may come so much later than they ever did in this call."""
_LINGER_SECONDS = 0.6
"""How long to wait for words after an end where nothing is known about their pace."""
_ECHO_HYSTERESIS = 0.1
"""An echo is one until it is less similar by so much: the two voices mix for a while."""


@dataclass(frozen=True, slots=True)
class BargeInRules:
    """What counts as an interruption."""

    policy: Policy = "default"
    seconds: float = 0.3
    """Voice that takes the floor when something is said, or, under ``any``, whatever it is."""
    words: int = 2
    """So many words that are no backchannels take the floor although they were quickly said."""
    wordless_factor: float = 2.5
    """Times `seconds`: voice that takes the floor where no words are expected."""
    patience_seconds: float = 2.0
    """The reply stands still for no longer for a voice without words; and backchannels that last
    longer are no backchannels."""
    background_db: float = 15.0
    """Speech so far below the caller's usual level is somebody else's."""
    echo_similarity: float = 0.7
    """`EchoMonitor.similarity` from which a voice is our own."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a voice over a reply sounds like, and what it meets."""

    echo: float = 0.0
    """`EchoMonitor.similarity`."""
    below_usual_db: float = 0.0
    """How much softer than the caller usually speaks; 0 when that is not known."""
    reply_asks: bool = False
    """The reply is about to end with a question: "yes" is no backchannel then."""


NOTHING_KNOWN = Surroundings()
DEFAULT_RULES = BargeInRules()


@dataclass(frozen=True, slots=True)
class Overlap:
    """What is known of a voice over a reply."""

    spoken_seconds: float
    """Voice heard since it began."""
    age_seconds: float
    """Since it began."""
    text: str = ""
    """Newest partial transcript."""
    words_due_seconds: float | None = None
    """Age at which words have come so far in this call, at the latest; None: not known."""
    stopped: bool = False
    """The voice is over."""
    surroundings: Surroundings = NOTHING_KNOWN
    was_echo: bool = False
    """It was last judged to be an echo."""


@dataclass(frozen=True, slots=True)
class Interrupts:
    """The floor is the caller's."""

    by: ConfirmedBy


@dataclass(frozen=True, slots=True)
class IsNothing:
    """The reply may go on, as far as is known now."""

    what: Nothing


@dataclass(frozen=True, slots=True)
class Undecided:
    """Keep the reply lowered, and ask again."""

    again_seconds: float
    """When, at the latest, if nothing becomes known before."""


Verdict = Interrupts | IsNothing | Undecided


def judge(overlap: Overlap, rules: BargeInRules) -> Verdict:
    """Weigh what is known now. See the module."""
    nothing = _not_the_caller(overlap, rules)
    if nothing is not None:
        return nothing
    if rules.policy == "any":
        return _by_length(overlap, rules.seconds, "false_alarm")
    said = words_of(overlap.text)
    if said.stops:
        return Interrupts("stop_word")
    if said.others:
        enough = _LEAST_SECONDS if said.others >= rules.words else rules.seconds
        if overlap.spoken_seconds >= enough - _SLACK_SECONDS:
            return Interrupts("words")
        return _by_length(overlap, rules.seconds, "false_alarm")
    if said.backchannels:
        return _by_length(overlap, rules.patience_seconds, "backchannel")
    return _without_words(overlap, rules)


def _not_the_caller(overlap: Overlap, rules: BargeInRules) -> IsNothing | None:
    around = overlap.surroundings
    similar = rules.echo_similarity - (_ECHO_HYSTERESIS if overlap.was_echo else 0.0)
    if around.echo >= similar:
        return IsNothing("echo")
    if rules.policy != "any" and around.below_usual_db >= rules.background_db:
        return IsNothing("background")
    return None


def _by_length(overlap: Overlap, seconds: float, otherwise: Nothing) -> Verdict:
    if overlap.spoken_seconds >= seconds - _SLACK_SECONDS:
        return Interrupts("duration")
    if overlap.stopped:
        return IsNothing(otherwise)
    return Undecided(seconds - overlap.spoken_seconds)


def _without_words(overlap: Overlap, rules: BargeInRules) -> Verdict:
    due = overlap.words_due_seconds
    long = rules.seconds * rules.wordless_factor
    if overlap.stopped:
        if overlap.spoken_seconds < _LEAST_SECONDS:
            return IsNothing("false_alarm")
        last = overlap.spoken_seconds + _LINGER_SECONDS if due is None else due + _LATER_SECONDS
        is_clear = due is not None and overlap.spoken_seconds < long
        what: Nothing = "false_alarm" if is_clear else "unclear"
        return _until(min(last, rules.patience_seconds), overlap, what)
    if due is None and rules.policy == "default":
        return _by_length(overlap, long, "false_alarm")
    return _until(rules.patience_seconds, overlap, "false_alarm")


def _until(age_seconds: float, overlap: Overlap, otherwise: Nothing) -> Verdict:
    if overlap.age_seconds >= age_seconds - _SLACK_SECONDS:
        return IsNothing(otherwise)
    return Undecided(age_seconds - overlap.age_seconds)


# ---------------------------------------------------------------------------------- words


@dataclass(frozen=True, slots=True)
class Said:
    """What kinds of words there are."""

    stops: bool
    """One of them tells the agent to stop."""
    backchannels: int
    """How many mean "go on, I am listening"; a phrase counts as one."""
    others: int


def words_of(text: str) -> Said:
    """Sort the words of ``text``, whatever its case and punctuation."""
    words = words_in(text)
    stops, backchannels, others, at = False, 0, 0, 0
    while at < len(words):
        length = _known_phrase(words, at)
        phrase = tuple(words[at : at + max(length, 1)])
        stops = stops or phrase in _STOPS
        backchannels += phrase in _BACKCHANNELS
        others += not length
        at += max(length, 1)
    return Said(stops, backchannels, others)


def words_in(text: str) -> list[str]:
    """The words of ``text`` in lower case, without punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def _known_phrase(words: list[str], at: int) -> int:
    """Length in words of the longest known phrase at ``at``; 0: none."""
    for length in range(_LONGEST_PHRASE, 0, -1):
        phrase = tuple(words[at : at + length])
        if len(phrase) == length and (phrase in _STOPS or phrase in _BACKCHANNELS):
            return length
    return 0


def _phrases(text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(phrase.split()) for phrase in text.split(",") if phrase.strip())


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

# Only what is hardly ever the beginning of something else; a word that is in neither list takes the
# floor as well, a moment later.
_STOPS = _phrases(
    # English
    "stop, wait, hold on, hang on, no no, shut up, be quiet, enough, excuse me, wait wait, stop it,"
    # German, Dutch
    "stopp, halt, warte, warten, moment, nein nein, sei still, genug, wacht, nee nee, hou op,"
    # French, Spanish, Portuguese, Italian
    "arrête, arrêtez, attends, attendez, non non, para, espera, espere, un momento, no no no, pare,"
    "espere aí, não não, basta, aspetta, aspetti, fermati, fermo, un attimo,"
    # Polish, Russian, Turkish, Japanese, Chinese
    "czekaj, stój, стоп, подожди, подождите, dur, bekle, 待って, ストップ, 等一下, 停"
)
_BACKCHANNELS = _phrases(
    # Any language
    "mhm, mm, mmm, hm, hmm, hmhm, mm-hmm, mm-hm, mhm-mhm, uh-huh, uh, huh, ah, aha, a-ha, oh, eh,"
    # English
    "um, yeah, yes, yep, yup, ok, okay, right, sure, i see, got it, alright, all right, of course,"
    "exactly, true, cool, nice, great, good, wow, really, indeed, i know, go on, fine, thanks,"
    # ... of which the first and the last are also what Whisper makes of noise
    "thank you, you,"
    # German, Dutch
    "ja, jaja, jo, genau, gut, ach so, achso, stimmt, klar, verstehe, richtig, alles klar, na klar,"
    "echt, jawel, precies, goed, prima,"
    # French, Spanish, Portuguese, Italian
    "oui, ouais, d'accord, bien, bien sûr, voilà, je vois, sí, si, claro, vale, ya, bueno, ya veo,"
    "sim, certo, tá, tá bom, entendi, va bene, giusto, capito, esatto, già,"
    # Polish, Russian, Turkish, Japanese, Chinese
    "tak, no tak, jasne, dobrze, да, ага, угу, понятно, хорошо, evet, tamam, はい, うん, ええ,"
    "そうです, そうですね, 嗯, 对, 好, 好的, 是"
)
_LONGEST_PHRASE = max(len(phrase) for phrase in _STOPS | _BACKCHANNELS)


# ------------------------------------------------------------------------- known of the call

_REMEMBERED = 8
"""Utterances."""


class WordPace:
    """How long after the beginning of their speech callers' first words came, in one call."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def due_seconds(self) -> float | None:
        """The latest of the newest; None when nothing is known."""
        return max(self._seconds, default=None)

    def words_came(self, after_seconds: float) -> None:
        """The first partial transcript of an utterance came so long after its speech began."""
        self._seconds.append(after_seconds)

    def no_words(self, until_seconds: float) -> None:
        """An utterance that was the caller's turn had none until then: are there any more?"""
        due = self.due_seconds
        if due is not None and until_seconds > due + _LATER_SECONDS:
            self._seconds.clear()


class UsualLevel:
    """How loud the caller speaks in their own turns."""

    def __init__(self) -> None:
        self._levels: deque[float] = deque(maxlen=_REMEMBERED)

    def add(self, speech: Samples) -> None:
        """One utterance, or the end of it."""
        level = speech_level_dbfs(speech)
        if level is not None:
            self._levels.append(level)

    def excess_of(self, speech: Samples) -> float:
        """By how many dB it is above ``speech``; 0 when there is nothing to compare."""
        level = speech_level_dbfs(speech)
        if level is None or not self._levels:
            return 0.0
        return median(self._levels) - level


_BLOCK = LISTEN_RATE_HZ // 50
_LEAST_BLOCKS = 10


def speech_level_dbfs(speech: Samples) -> float | None:
    """Level of the louder half of ``speech`` (16 kHz), so that pauses do not count.

    None for less than 200 ms: the first consonant says nothing yet.
    """
    blocks = speech[: len(speech) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).astype(np.float32)
    if len(blocks) < _LEAST_BLOCKS:
        return None
    powers = np.sort((blocks**2).mean(axis=1))
    return float(10 * np.log10(powers[len(powers) // 2 :].mean() / 32767.0**2 + 1e-10))
