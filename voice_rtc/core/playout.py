"""What is being played of a reply, and how much of it the caller heard.

Synthesised speech is written here faster than real time, with the text that it speaks; the sender
reads 20 ms at a time. Because every sample passes here, this is the one place that knows what was
heard when a barge-in cuts a reply: the words whose samples were read. What was read but is still
under way to the caller (a packet or two) counts as heard.

While the caller speaks over a reply it is ducked, and after a moment it stands still: what is said
at a quarter of its loudness is only half heard. When it goes on after that, it does so where it was
ducked, at the quietest spot shortly before, so that no word is lost and none begins in its middle.
What is played a second time counts once in what was heard, and nothing is played a third time: a
caller who coughs again and again does not hold a reply up for ever.

Cuts and gaps are faded over a few milliseconds: a step to zero is a loud click.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voice_rtc.core.audio import Samples, silence
from voice_rtc.errors import StateError

_AUDIBLE = 100
"""Absolute int16 level (-50 dBFS) above which a sample can be heard."""

_FASTEST_SPEECH = 20.0
"""Characters a second. Speech still being written is taken to last at least so long."""

_BACK_SECONDS = 0.3
"""How far before the place where it was ducked a reply may go on."""

_SPOT_SECONDS = 0.01
"""The quietest spot is looked for in steps of this length."""

_REMEMBERED = 8
"""Replies that are over and whose `Heard` is kept."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The part of a reply that the caller got."""

    reply: int
    seconds: float
    """Duration of what was read."""
    text: str
    """The words that were read to their end, by their share of their segment's samples."""
    complete: bool
    """The reply was finished and all of it was read."""


@dataclass(frozen=True, slots=True)
class PlayoutRead:
    """One read's worth of sound and what it means for the reply."""

    samples: Samples | None
    """Exactly as many samples as were asked for; None when there is nothing to play."""
    reply: int | None
    """The current reply, whether or not it had samples; None without one."""
    became_audible: bool
    """The reply's first audible sample is in this read. Once per reply."""
    finished: bool
    """The reply was finished and its last sample is in this read or before it. Once per reply."""


_NOTHING = PlayoutRead(None, None, False, False)


@dataclass(slots=True)
class _Segment:
    text: str
    start: int
    """Index of its first sample in the reply."""


class _Speech:
    """The samples and the words of one reply. Counts run from the reply's first sample."""

    def __init__(self, reply: int, rate_hz: int) -> None:
        self.reply = reply
        self.finished = False
        self.audible = False
        self.read = 0
        self.written = 0
        self._reached = 0  # furthest that was ever read
        self._rate_hz = rate_hz
        self._chunks: deque[Samples] = deque()
        self._past: deque[Samples] = deque()  # newest of what was read, to be read again
        self._remembered = 0
        self._segments: list[_Segment] = []

    @property
    def left(self) -> int:
        return self.written - self.read

    @property
    def reached(self) -> int:
        """How many samples were read at least once."""
        return max(self._reached, self.read)

    def begin_segment(self, text: str) -> None:
        self._segments.append(_Segment(text, self.written))

    def append(self, samples: Samples) -> None:
        if len(samples):
            self._chunks.append(samples)
            self.written += len(samples)

    def take(self, n: int, keep: int = 0) -> Samples:
        """Up to ``n`` samples; shared with what was written, not to be changed.

        The ``keep`` samples read last can be read again.
        """
        parts: list[Samples] = []
        wanted = min(n, self.left)
        self.read += wanted
        while wanted:
            chunk = self._chunks.popleft()
            if len(chunk) > wanted:
                self._chunks.appendleft(chunk[wanted:])
                chunk = chunk[:wanted]
            parts.append(chunk)
            wanted -= len(chunk)
        self._remember(parts, keep)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else silence(0)

    def peek(self, n: int) -> Samples:
        """The next samples, up to ``n``, without reading them."""
        parts: list[Samples] = []
        for chunk in self._chunks:
            parts.append(chunk[: n - sum(map(len, parts))])
            if sum(map(len, parts)) == n:
                break
        return np.concatenate(parts) if parts else silence(0)

    def past(self) -> Samples:
        """What can be read again: it ends at the reading position."""
        return np.concatenate(self._past) if self._past else silence(0)

    def rewind(self, n: int) -> None:
        """Read the last ``n`` samples again, or as many as are kept."""
        self._reached = self.reached
        wanted = min(n, self._remembered)
        self.read -= wanted
        self._remembered -= wanted
        while wanted:
            chunk = self._past.pop()
            if len(chunk) > wanted:
                self._past.append(chunk[:-wanted])
                chunk = chunk[-wanted:]
            self._chunks.appendleft(chunk)
            wanted -= len(chunk)

    def _remember(self, parts: list[Samples], keep: int) -> None:
        self._past.extend(parts)
        self._remembered += sum(map(len, parts))
        while self._past and self._remembered - len(self._past[0]) >= keep:
            self._remembered -= len(self._past.popleft())

    def heard(self) -> Heard:
        words: list[str] = []
        for index, segment in enumerate(self._segments):
            spoken = segment.text.split()
            words += spoken[: self._words_read(segment, len(spoken), self._end_of(index))]
        complete = self.finished and self.reached == self.written
        return Heard(self.reply, self.reached / self._rate_hz, " ".join(words), complete)

    def _end_of(self, index: int) -> int:
        if index + 1 < len(self._segments):
            return self._segments[index + 1].start
        if self.finished:
            return self.written
        segment = self._segments[index]
        shortest = int(len(segment.text) / _FASTEST_SPEECH * self._rate_hz)
        return max(self.written, segment.start + shortest)

    def _words_read(self, segment: _Segment, words: int, end: int) -> int:
        duration = end - segment.start
        if duration <= 0:
            return 0  # nothing was synthesised for it
        return words * min(max(self.reached - segment.start, 0), duration) // duration


class Playout:
    """The sound of one call's replies: mono int16 in, exactly timed reads out.

    One reply is current, from `begin` until it was finished and read, or cleared. Reply ids rise;
    what comes late for an older or a cleared reply is refused.
    """

    def __init__(
        self,
        rate_hz: int = 48_000,
        duck_gain: float = 0.25,
        fade_seconds: float = 0.005,
        pause_seconds: float = 0.3,
    ) -> None:
        """A ducked reply stands still when ``pause_seconds`` of it were read."""
        self._rate_hz = rate_hz
        self._duck_gain = duck_gain
        self._pause_samples = round(pause_seconds * rate_hz)
        self._back_samples = round(_BACK_SECONDS * rate_hz)
        self._fade_samples = max(round(fade_seconds * rate_hz), 1)
        self._speech: _Speech | None = None
        self._newest = 0
        self._over: dict[int, Heard] = {}
        self._gain = 1.0
        self._wanted_gain = 1.0
        self._tail = silence(0)
        self._last_sample = 0
        self._after_gap = False
        self._underruns = 0
        self._ducked_at: int | None = None  # reading position
        self._paused = False
        self._repeated_until = 0  # what lies before was played twice
        self._rewinds = 0

    # -- the writer ---------------------------------------------------------------------------

    def begin(self, reply: int) -> None:
        """Make ``reply`` current, dropping what an older one had left.

        A reply that was cleared before it began, or is older than one that did, stays silent.
        Raises StateError when it has begun already.
        """
        if self._speech is not None and self._speech.reply == reply:
            raise StateError(f"reply {reply} has begun already")
        if reply <= self._newest:
            return
        if self._speech is not None:
            self.clear(self._speech.reply)
        self._newest = reply
        self._speech = _Speech(reply, self._rate_hz)
        self._after_gap = False
        self._ducked_at, self._paused, self._repeated_until = None, False, 0

    def segment(self, reply: int, text: str) -> None:
        """The samples written from now on speak ``text``. Ignored when not current."""
        speech = self._current(reply)
        if speech is not None:
            speech.begin_segment(text)

    def write(self, reply: int, samples: Samples) -> bool:
        """Append int16 samples, shape ``(n,)``, which must not be changed afterwards.

        False when the reply is not current: the writer should stop. Raises StateError after
        `finish`, and ValueError for anything but int16.
        """
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise ValueError(f"expected mono int16, got {samples.dtype} of shape {samples.shape}")
        speech = self._current(reply)
        if speech is None:
            return False
        if speech.finished:
            raise StateError(f"reply {reply} was finished; nothing more can be written")
        speech.append(samples)
        return True

    def finish(self, reply: int) -> None:
        """Nothing more will be written. Ignored when not current."""
        speech = self._current(reply)
        if speech is not None:
            speech.finished = True

    @property
    def buffered_seconds(self) -> float:
        """What is written and not yet read."""
        return self._speech.left / self._rate_hz if self._speech is not None else 0.0

    def left_seconds(self, reply: int) -> float | None:
        """What is left to be read of a current reply that is written; None of any other."""
        speech = self._current(reply)
        if speech is None or not speech.finished:
            return None
        return speech.left / self._rate_hz

    # -- the sender ---------------------------------------------------------------------------

    @property
    def underruns(self) -> int:
        """Reads that found nothing although the reply was audible and not finished."""
        return self._underruns

    @property
    def rewinds(self) -> int:
        """How often a reply went on after it had stood still."""
        return self._rewinds

    def read(self, n: int) -> PlayoutRead:
        """The next ``n`` samples. Call it at the pace of the clock."""
        speech = self._speech
        if speech is None:
            self._gain = self._wanted_gain
            if not len(self._tail) and not self._last_sample:
                return _NOTHING
            return PlayoutRead(self._sound(silence(0), n), None, False, False)
        if self._stands_still(speech):
            fades = len(self._tail) or self._last_sample
            sound = self._sound(silence(0), n) if fades else None
            return PlayoutRead(sound, speech.reply, False, False)
        raw = speech.take(n, self._pause_samples + self._back_samples + n)
        became_audible = not speech.audible and _is_audible(raw)
        speech.audible = speech.audible or became_audible
        finished = speech.finished and speech.left == 0
        gap = len(raw) < n and not finished and speech.audible
        if gap and not len(raw):
            self._underruns += 1
        samples = self._sound(self._shaped(raw), n)
        self._after_gap = gap
        if finished:
            self._end(speech)
        return PlayoutRead(samples, speech.reply, became_audible, finished)

    # -- control --------------------------------------------------------------------------------

    def clear(self, reply: int) -> Heard:
        """Drop what was not read, except for a short fade; the reply is over, without a report.

        Returns what was heard: nothing for a reply that has not begun, which will then stay
        silent. A reply that is over already is left as it was.
        """
        speech = self._current(reply)
        if speech is None:
            if reply > self._newest:
                self._newest = reply
                self._remember(Heard(reply, 0.0, "", False))
            return self.heard(reply)
        heard = speech.heard()
        if speech.read and not self._paused:
            self._tail = self._fade_out(speech.take(self._fade_samples))
        self._remember(heard)
        self._speech = None
        return heard

    def heard(self, reply: int) -> Heard:
        """What was heard so far of the current reply or of one of the last that are over.

        Nothing of a reply that has not begun. Raises StateError for one long forgotten.
        """
        speech = self._current(reply)
        if speech is not None:
            return speech.heard()
        if reply in self._over:
            return self._over[reply]
        if reply > self._newest:
            return Heard(reply, 0.0, "", False)
        raise StateError(f"what was heard of reply {reply} is forgotten or was never known")

    def duck(self, on: bool) -> None:
        """Lower or raise the sound, over the length of the next read.

        A reply that stood still meanwhile goes on where it was lowered.
        """
        self._wanted_gain = self._duck_gain if on else 1.0
        if not on:
            if self._paused and self._speech is not None:
                self._go_back(self._speech)
            self._ducked_at, self._paused = None, False

    # -- inside ---------------------------------------------------------------------------------

    def _current(self, reply: int) -> _Speech | None:
        speech = self._speech
        return speech if speech is not None and speech.reply == reply else None

    def _stands_still(self, speech: _Speech) -> bool:
        """Is it ducked for so long that nothing more of it is to be read? Begins the pause."""
        if self._wanted_gain == 1.0:
            return False
        if self._ducked_at is None:
            self._ducked_at = speech.read
        if not self._paused and speech.read - self._ducked_at >= self._pause_samples:
            self._paused = True
            if speech.read:
                self._tail = self._fade_out(speech.peek(self._fade_samples))
        return self._paused

    def _go_back(self, speech: _Speech) -> None:
        """To the quietest spot before the place where the reply was ducked."""
        assert self._ducked_at is not None  # it stood still
        position = speech.read
        since_ducked = position - self._ducked_at
        past = speech.past()
        before = past[: len(past) - since_ducked][-self._back_samples :]
        spot = self._ducked_at - _back_to_quiet(before, round(_SPOT_SECONDS * self._rate_hz))
        spot = max(spot, min(self._repeated_until, position))
        self._repeated_until = max(self._repeated_until, position)
        speech.rewind(position - spot)
        self._rewinds += 1
        self._gain, self._after_gap = 1.0, True

    def _end(self, speech: _Speech) -> None:
        self._remember(speech.heard())
        self._speech = None

    def _remember(self, heard: Heard) -> None:
        self._over[heard.reply] = heard
        while len(self._over) > _REMEMBERED:
            del self._over[next(iter(self._over))]

    def _shaped(self, raw: Samples) -> Samples:
        """``raw`` with the gain, ramped when it changes, and faded in after a gap."""
        before, self._gain = self._gain, self._wanted_gain
        if not len(raw) or (before == 1.0 == self._gain and not self._after_gap):
            return raw
        gains = np.linspace(before, self._gain, len(raw) + 1, dtype=np.float32)[1:]
        if self._after_gap:
            fade = min(self._fade_samples, len(raw))
            gains[:fade] *= self._ramp()[:fade]
        return _scaled(raw, gains)

    def _sound(self, shaped: Samples, n: int) -> Samples | None:
        """``shaped`` made ``n`` long: with what is left of a fade, and a fade where it ends early.

        None when all of it would be silence for want of anything to play.
        """
        if len(shaped) == n and not len(self._tail):
            self._last_sample = int(shaped[-1]) if n else self._last_sample
            return shaped
        tail, self._tail = self._tail, silence(0)
        if len(shaped) < n and len(tail) <= len(shaped):
            held = int(shaped[-1]) if len(shaped) else self._last_sample
            tail = _mixed(tail, np.concatenate((silence(len(shaped)), self._decay(held))))
        if not len(shaped) and not np.any(tail):
            self._last_sample = 0
            return None
        mixed = _mixed(np.concatenate((shaped, silence(n - len(shaped)))), tail)
        self._tail = mixed[n:]
        self._last_sample = int(mixed[n - 1]) if n and not len(self._tail) else 0
        return mixed[:n]

    def _fade_out(self, rest: Samples) -> Samples:
        """The next samples of a reply that is cut, going down to zero."""
        rest = _scaled(rest, np.full(len(rest), self._gain, dtype=np.float32))
        held = int(rest[-1]) if len(rest) else self._last_sample
        padding = np.full(self._fade_samples - len(rest), held, dtype=np.int16)
        return _scaled(np.concatenate((rest, padding)), 1.0 - self._ramp())

    def _decay(self, held: int) -> Samples:
        """From the last sample played down to zero."""
        if held == 0:
            return silence(0)
        return _scaled(np.full(self._fade_samples, held, dtype=np.int16), 1.0 - self._ramp())

    def _ramp(self) -> NDArray[np.float32]:
        return np.linspace(0.0, 1.0, self._fade_samples + 1, dtype=np.float32)[1:]


def _back_to_quiet(samples: Samples, block: int) -> int:
    """How many samples before the end the quietest block has its middle; the last of several."""
    count = len(samples) // max(block, 1)
    if not count:
        return 0
    blocks = samples[len(samples) - count * block :].reshape(count, block).astype(np.float32)
    quietest = int(np.argmin((blocks[::-1] ** 2).sum(axis=1)))
    return quietest * block + block // 2


def _is_audible(samples: Samples) -> bool:
    return bool(len(samples)) and (int(samples.max()) > _AUDIBLE or int(samples.min()) < -_AUDIBLE)


def _scaled(samples: Samples, gains: NDArray[np.float32]) -> Samples:
    scaled: Samples = np.rint(samples * gains).astype(np.int16)
    return scaled


def _mixed(first: Samples, second: Samples) -> Samples:
    """Both at once, as long as the longer one, clipped."""
    if not len(second):
        return first
    total = np.zeros(max(len(first), len(second)), dtype=np.int32)
    total[: len(first)] += first
    total[: len(second)] += second
    return np.clip(total, -32768, 32767).astype(np.int16)
