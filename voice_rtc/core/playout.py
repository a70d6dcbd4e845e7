"""What is being played of a reply, and how much of it the caller heard.

Synthesised speech is written here faster than real time, with the text that it speaks; the sender
reads 20 ms at a time. Because every sample passes here, this is the one place that knows what was
heard when a barge-in cuts a reply: the words whose samples were read. What was read but is still
under way to the caller (a packet or two) counts as heard.

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
        self._rate_hz = rate_hz
        self._chunks: deque[Samples] = deque()
        self._segments: list[_Segment] = []

    @property
    def left(self) -> int:
        return self.written - self.read

    def begin_segment(self, text: str) -> None:
        self._segments.append(_Segment(text, self.written))

    def append(self, samples: Samples) -> None:
        if len(samples):
            self._chunks.append(samples)
            self.written += len(samples)

    def take(self, n: int) -> Samples:
        """Up to ``n`` samples; shared with what was written, not to be changed."""
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
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else silence(0)

    def heard(self) -> Heard:
        words: list[str] = []
        for index, segment in enumerate(self._segments):
            spoken = segment.text.split()
            words += spoken[: self._words_read(segment, len(spoken), self._end_of(index))]
        complete = self.finished and self.left == 0
        return Heard(self.reply, self.read / self._rate_hz, " ".join(words), complete)

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
        return words * min(max(self.read - segment.start, 0), duration) // duration


class Playout:
    """The sound of one call's replies: mono int16 in, exactly timed reads out.

    One reply is current, from `begin` until it was finished and read, or cleared. Reply ids rise;
    what comes late for an older or a cleared reply is refused.
    """

    def __init__(
        self, rate_hz: int = 48_000, duck_gain: float = 0.25, fade_seconds: float = 0.005
    ) -> None:
        self._rate_hz = rate_hz
        self._duck_gain = duck_gain
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

    # -- the sender ---------------------------------------------------------------------------

    @property
    def underruns(self) -> int:
        """Reads that found nothing although the reply was audible and not finished."""
        return self._underruns

    def read(self, n: int) -> PlayoutRead:
        """The next ``n`` samples. Call it at the pace of the clock."""
        speech = self._speech
        if speech is None:
            self._gain = self._wanted_gain
            if not len(self._tail) and not self._last_sample:
                return _NOTHING
            return PlayoutRead(self._sound(silence(0), n), None, False, False)
        raw = speech.take(n)
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
        if speech.read:
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
        """Lower or raise the sound, over the length of the next read."""
        self._wanted_gain = self._duck_gain if on else 1.0

    # -- inside ---------------------------------------------------------------------------------

    def _current(self, reply: int) -> _Speech | None:
        speech = self._speech
        return speech if speech is not None and speech.reply == reply else None

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
