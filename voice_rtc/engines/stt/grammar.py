"""JSGF grammars from settings, and the words they use.

Format: the JSpeech Grammar Format, https://www.w3.org/TR/jsgf/, as far as pocketsphinx reads it.
"""

from __future__ import annotations

import re
from pathlib import Path

from voice_rtc.errors import EngineUnavailable

_FILE_ENDINGS = (".gram", ".jsgf")
_NOT_WORDS = re.compile(
    r"""/\*.*?\*/        # block comment
      | //[^\n]*         # line comment
      | ^\s*\#JSGF[^;]*; # header
      | \b(?:grammar|import)\s+[^;]+;
      | <[^>]*>          # rule names
      | \{[^}]*\}        # tags
      | /\s*[\d.]+\s*/   # weights
      | \bpublic\b
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_WORD = re.compile(r"[^\s=|;()\[\]*+\"]+")
_SPOKEN = re.compile(r"[a-z0-9'.-]+")


def load_grammar(setting: str) -> str:
    """JSGF text for ``stt.grammar``: a path, or sentences separated by ``|``; "" stays "".

    Raises:
        EngineUnavailable: the file cannot be read or the list has no words.
    """
    setting = setting.strip()
    if not setting:
        return ""
    if setting.endswith(_FILE_ENDINGS):
        try:
            return Path(setting).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EngineUnavailable(f"the grammar {setting} cannot be read: {error}") from error
    return sentences_grammar(setting.split("|"))


def sentences_grammar(sentences: list[str]) -> str:
    """A grammar of exactly these sentences, compared without case and punctuation."""
    spoken = [" ".join(_words(sentence)) for sentence in sentences]
    choices = [sentence for sentence in dict.fromkeys(spoken) if sentence]
    if not choices:
        raise EngineUnavailable("the grammar has no sentence with words")
    return f"#JSGF V1.0;\ngrammar sentences;\npublic <sentence> = {' | '.join(choices)} ;\n"


def words_of(jsgf: str) -> set[str]:
    """The words that a grammar lets through."""
    return set(_WORD.findall(_NOT_WORDS.sub(" ", jsgf)))


def _words(sentence: str) -> list[str]:
    found = _SPOKEN.findall(sentence.lower().replace("’", "'"))
    return [word for word in (part.strip(".'-") for part in found) if word]
