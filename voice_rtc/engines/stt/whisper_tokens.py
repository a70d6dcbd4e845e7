"""Whisper's prompt tokens, and text from the tokens it answers with.

Source: openai/whisper ``tokenizer.py`` and ``decoding.py``. English-only models have the language
tokens in their vocabulary too, but were not trained with them: whether a model is multilingual
must be told.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Tokenizer

from voice_rtc.errors import EngineUnavailable

MOST_PREVIOUS = 200
"""Newest tokens of a prompt that are used; the model has room for 223."""
_TIMESTAMPS = 1501
"""0.00 s to 30.00 s, behind all other tokens."""
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


class WhisperTokens:
    """The tokenizer of one model; used by several threads at once."""

    def __init__(self, folder: str, *, multilingual: bool) -> None:
        """Read ``tokenizer.json``. Raises EngineUnavailable when it is damaged or not Whisper's."""
        path = Path(folder) / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            # The library raises plain Exception for a missing and for a damaged file.
            raise EngineUnavailable(f"{path} cannot be read: {error}") from error
        self.multilingual = multilingual
        self._path = path
        self._start = self._special("<|startoftranscript|>")
        self._end = self._special("<|endoftext|>")
        self._no_timestamps = self._special("<|notimestamps|>")
        self._previous = self._tokenizer.token_to_id("<|startofprev|>")
        self._transcribe = self._special("<|transcribe|>") if multilingual else None
        self._languages = self._language_tokens() if multilingual else {}
        # Files of before timestamps were tokens of their own end with the last special token.
        self.count: int = max(
            self._tokenizer.get_vocab_size(with_added_tokens=True),
            self._no_timestamps + 1 + _TIMESTAMPS,
        )
        """Ids from here on do not exist."""

    @property
    def languages(self) -> frozenset[str]:
        """Codes that a request may ask for; of an English-only model only ``en``."""
        return frozenset(self._languages) or frozenset({"en"})

    @property
    def never_said(self) -> list[int]:
        """Special tokens that must not be generated, as in upstream."""
        names = ("transcribe", "translate", "startoftranscript", "startofprev", "startoflm")
        no_speech = ("nospeech", "nocaptions")
        found = (self._tokenizer.token_to_id(f"<|{name}|>") for name in (*names, *no_speech))
        return sorted(token for token in found if token is not None)

    def start(self, language: str) -> list[int]:
        """What the transcript begins with. ``language`` is one of `languages`."""
        if not self.multilingual:
            return [self._start, self._no_timestamps]
        assert self._transcribe is not None
        return [self._start, self._languages[language], self._transcribe, self._no_timestamps]

    def previous(self, text: str) -> list[int]:
        """``text`` as if it had been said just before; empty for none."""
        words = text.strip()
        if not words or self._previous is None:
            return []
        ids = self._tokenizer.encode(" " + words, add_special_tokens=False).ids
        # Special tokens spelt out in a prompt would derail the decoder.
        plain = [token for token in ids if token < self._end]
        return [self._previous, *plain[-MOST_PREVIOUS:]] if plain else []

    def text(self, tokens: list[int]) -> str:
        """What ``tokens`` say, without special and timestamp tokens, stripped."""
        said = [token for token in tokens if token < self._end]
        text: str = self._tokenizer.decode(said)
        return text.strip()

    def _special(self, name: str) -> int:
        token: int | None = self._tokenizer.token_to_id(name)
        if token is None:
            raise EngineUnavailable(f"{self._path} is no Whisper tokenizer: it lacks {name}")
        return token

    def _language_tokens(self) -> dict[str, int]:
        # Between start and tasks: 99 languages, 100 since large-v3.
        return {
            match[1]: token
            for name, token in self._tokenizer.get_vocab(with_added_tokens=True).items()
            if self._start < token < self._no_timestamps and (match := _LANGUAGE.fullmatch(name))
        }
