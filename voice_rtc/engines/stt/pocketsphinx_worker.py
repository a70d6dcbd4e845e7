"""The pocketsphinx worker process: ``python -m voice_rtc.engines.stt.pocketsphinx_worker``.

pocketsphinx holds Python's interpreter lock while it decodes, so it lives here. One thread serves
several sessions in turn, at most 100 ms of audio at a time, and looks at stdin in between.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from voice_rtc.core.audio import LISTEN_RATE_HZ, Samples
from voice_rtc.engines.parent import end_with_parent
from voice_rtc.engines.process import FrameReader, frame
from voice_rtc.engines.stt import pocketsphinx_protocol as protocol
from voice_rtc.engines.stt.grammar import words_of

_PIECE_SAMPLES = LISTEN_RATE_HZ // 10
_BEHIND_SAMPLES = 60 * LISTEN_RATE_HZ
_DITHER_LSB = 20.0
_TAIL_SAMPLES = LISTEN_RATE_HZ // 5
_GRAMMAR_NAME = "spoken"
# Finals within 33 ms after the last audio for about 15 % more word errors than the slow defaults.
_FAST_SETTINGS = {"fwdflat": False, "bestpath": False, "pl_window": 5, "maxhmmpf": 3000}
# What a new caller's cepstral mean is taken to be. pocketsphinx's own first value is 40, which fits
# quiet speech; at -22 dBFS it costs 70 % word errors on the first utterance, 50 costs 50 %.
_FRESH_CMN = "50,3,-1,0,0,0,0,0,0,0,0,0,0"
_MAX_FRAME_BYTES = 1 << 22


class LoadError(Exception):
    """The model or the grammar cannot be used; the message is for the user."""


class Dither:
    """Noise of 20 LSB that repeats each second: digital silence breaks even grammars."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).standard_normal(LISTEN_RATE_HZ) * _DITHER_LSB
        self._noise = noise.astype(np.int32)

    def add(self, samples: Samples, at: int) -> Samples:
        """``samples`` with the noise that belongs at index ``at``."""
        rows = np.arange(at, at + len(samples)) % len(self._noise)
        noisy = samples.astype(np.int32) + self._noise[rows]
        dithered: Samples = np.clip(noisy, -32768, 32767).astype(np.int16)
        return dithered


class Decoders:
    """Up to ``most`` decoders, made on demand and kept for reuse."""

    def __init__(self, grammar: str, ready: int, most: int) -> None:
        self._grammar = grammar
        self._ready = ready
        self._most = most
        self._made = 0
        self._free: list[Any] = []

    def warm(self) -> bool:
        """Make one decoder if fewer than ``ready`` exist; was one made? Raises LoadError."""
        if self._made >= self._ready:
            return False
        self._free.append(self._make())
        return True

    def take(self) -> Any | None:
        """A decoder, None when all are in use."""
        if self._free:
            return self._free.pop()
        return self._make() if self._made < self._most else None

    def give(self, decoder: Any) -> None:
        """Back for reuse."""
        self._free.append(decoder)

    def lose(self) -> None:
        """One that was taken is broken and will not come back."""
        self._made -= 1

    def _make(self) -> Any:
        import pocketsphinx

        pocketsphinx.set_loglevel("FATAL")
        try:
            if not self._grammar:
                decoder = pocketsphinx.Decoder(loglevel="FATAL", **_FAST_SETTINGS)
            else:
                decoder = pocketsphinx.Decoder(loglevel="FATAL", lm=None)
                self._install_grammar(decoder)
        except (RuntimeError, ValueError) as error:
            raise LoadError(f"pocketsphinx cannot load its model: {error}") from error
        self._made += 1
        return decoder

    def _install_grammar(self, decoder: Any) -> None:
        unknown = sorted(w for w in words_of(self._grammar) if decoder.lookup_word(w) is None)
        if unknown:
            raise LoadError(
                "the grammar has words that pocketsphinx's dictionary does not know: "
                + ", ".join(unknown)
            )
        try:
            decoder.add_jsgf_string(_GRAMMAR_NAME, self._grammar)
            decoder.activate_search(_GRAMMAR_NAME)
        except (ValueError, KeyError) as error:
            raise LoadError(f"the grammar is not valid JSGF: {error}") from error


@dataclass(slots=True, eq=False)
class _Utterance:
    key: int
    pending: deque[bytes] = field(default_factory=deque)
    pending_samples: int = 0
    finished: bool = False
    decoder: Any = None
    decoded: int = 0
    next_partial: int = 0
    heard: str = ""


@dataclass(slots=True, eq=False)
class _Session:
    utterances: deque[_Utterance] = field(default_factory=deque)
    cmn: str = _FRESH_CMN
    """Cepstral means learnt from this caller, so that decoders can change hands."""


class Recognizer:
    """All sessions of one process: requests in by `handle`, one piece of work per `step`."""

    def __init__(self, send: Callable[[protocol.Response], None]) -> None:
        self._send = send
        self._dither = Dither()
        self._decoders: Decoders | None = None
        self._partial_samples = 0
        self._sessions: dict[int, _Session] = {}
        self._by_key: dict[int, tuple[_Session, _Utterance]] = {}
        self._turns: deque[int] = deque()

    def handle(self, request: protocol.Request) -> None:
        """Take one request in; the decoding is left to `step`. Raises LoadError (Setup only)."""
        match request:
            case protocol.Setup():
                self._set_up(request)
            case protocol.Begin(session=session, key=key):
                self._begin(session, key)
            case protocol.Audio(key=key, pcm=pcm):
                self._audio(key, pcm)
            case protocol.Finish(key=key):
                if key in self._by_key:
                    self._by_key[key][1].finished = True
            case protocol.Discard(key=key):
                self._drop(key)
            case protocol.CloseSession(session=session):
                self._close(session)

    def step(self) -> bool:
        """Do one piece of work for the session whose turn it is. False when there was none."""
        for _ in range(len(self._turns)):
            number = self._turns[0]
            self._turns.rotate(-1)
            if self._step_session(self._sessions[number]):
                return True
        return self._decoders is not None and self._decoders.warm()

    def _set_up(self, setup: protocol.Setup) -> None:
        self._decoders = Decoders(setup.grammar, setup.ready_decoders, setup.most_decoders)
        self._partial_samples = setup.partial_samples
        self._decoders.warm()
        self._send(protocol.Ready())

    def _begin(self, number: int, key: int) -> None:
        if number not in self._sessions:
            self._sessions[number] = _Session()
            self._turns.append(number)
        utterance = _Utterance(key, next_partial=self._partial_samples)
        self._sessions[number].utterances.append(utterance)
        self._by_key[key] = (self._sessions[number], utterance)

    def _audio(self, key: int, pcm: bytes) -> None:
        if key not in self._by_key:
            return
        _, utterance = self._by_key[key]
        utterance.pending.append(pcm)
        utterance.pending_samples += len(pcm) // 2
        if utterance.pending_samples > _BEHIND_SAMPLES:
            self._drop(key)
            self._send(protocol.Failed(key, "speech recognition fell a minute behind"))

    def _drop(self, key: int) -> None:
        if key in self._by_key:
            session, utterance = self._by_key.pop(key)
            session.utterances.remove(utterance)
            self._release(utterance)

    def _release(self, utterance: _Utterance) -> None:
        decoder, utterance.decoder = utterance.decoder, None
        if decoder is not None and self._decoders is not None:
            decoder.end_utt()
            self._decoders.give(decoder)

    def _close(self, number: int) -> None:
        session = self._sessions.pop(number, None)
        if session is None:
            return
        for utterance in list(session.utterances):
            self._drop(utterance.key)
        self._turns.remove(number)

    def _step_session(self, session: _Session) -> bool:
        if not session.utterances:
            return False
        utterance = session.utterances[0]
        if not utterance.pending and not utterance.finished:
            return False
        if utterance.decoder is None and not self._start(session, utterance):
            return False
        try:
            self._decode(session, utterance)
        except RuntimeError as error:
            self._fail(utterance, error)
        return True

    def _start(self, session: _Session, utterance: _Utterance) -> bool:
        decoder = self._decoders.take() if self._decoders is not None else None
        if decoder is None:
            return False
        decoder.set_cmn(session.cmn)
        decoder.start_utt()
        utterance.decoder = decoder
        return True

    def _decode(self, session: _Session, utterance: _Utterance) -> None:
        if utterance.pending:
            self._feed(utterance, _take_piece(utterance))
            if utterance.decoded >= utterance.next_partial:
                utterance.next_partial = utterance.decoded + self._partial_samples
                self._partial(utterance)
        elif utterance.finished:
            self._finish(session, utterance)

    def _feed(self, utterance: _Utterance, samples: Samples) -> None:
        noisy = self._dither.add(samples, utterance.decoded)
        utterance.decoder.process_raw(noisy.tobytes())
        utterance.decoded += len(samples)

    def _partial(self, utterance: _Utterance) -> None:
        text = _hypothesis(utterance.decoder)
        if text and text != utterance.heard:
            utterance.heard = text
            self._send(protocol.PartialText(utterance.key, text))

    def _finish(self, session: _Session, utterance: _Utterance) -> None:
        samples = utterance.decoded
        self._feed(utterance, np.zeros(_TAIL_SAMPLES, np.int16))
        decoder = utterance.decoder
        # A grammar that was not spoken to its end gives no final hypothesis, but had this one.
        unfinished = _hypothesis(decoder)
        decoder.end_utt()
        text = _hypothesis(decoder) or unfinished
        session.cmn = decoder.get_cmn(False)
        utterance.decoder = None
        if self._decoders is not None:
            self._decoders.give(decoder)
        self._drop(utterance.key)
        self._send(protocol.FinalText(utterance.key, text, samples))

    def _fail(self, utterance: _Utterance, error: RuntimeError) -> None:
        utterance.decoder = None
        if self._decoders is not None:
            self._decoders.lose()
        self._drop(utterance.key)
        self._send(protocol.Failed(utterance.key, f"pocketsphinx failed: {error}"))


def _take_piece(utterance: _Utterance) -> Samples:
    pieces: list[bytes] = []
    room = _PIECE_SAMPLES * 2
    while utterance.pending and room > 0:
        piece = utterance.pending.popleft()
        if len(piece) > room:
            utterance.pending.appendleft(piece[room:])
            piece = piece[:room]
        pieces.append(piece)
        room -= len(piece)
    samples: Samples = np.frombuffer(b"".join(pieces), np.int16)
    utterance.pending_samples -= len(samples)
    return samples


def _hypothesis(decoder: Any) -> str:
    found = decoder.hyp()
    return str(found.hypstr) if found is not None and found.hypstr else ""


def serve(stdin: int, stdout: int) -> None:
    """Work until ``stdin`` (a file descriptor) closes, or the model cannot be loaded."""
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(protocol.Request)
    frames = FrameReader(_MAX_FRAME_BYTES)

    def send(response: protocol.Response) -> None:
        data = memoryview(frame(encoder.encode(response)))
        while data:
            data = data[os.write(stdout, data) :]

    recognizer = Recognizer(send)
    busy = False
    while True:
        if select.select([stdin], [], [], 0 if busy else None)[0]:
            data = os.read(stdin, 1 << 16)
            if not data:
                return
            try:
                for request in frames.feed(data):
                    recognizer.handle(decoder.decode(request))
            except LoadError as error:
                send(protocol.Unavailable(str(error)))
                return
        busy = recognizer.step()


def main() -> None:
    """Entry point of the process."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; stdin ends us
    # Whatever C code prints must not get between the frames.
    stdout = os.dup(1)
    os.dup2(2, 1)
    serve(0, stdout)


if __name__ == "__main__":
    main()
