"""ELIZA: the embedded conversation partner, with the rules that nltk carries.

Rules: `nltk.chat.eliza` (Joseph Weizenbaum, 1966; Strout, Epler, Higgins). nltk's own player draws
from the global random generator and stumbles over a per cent sign, so the rules are played here.
"""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from voice_rtc.core.history import Message
from voice_rtc.engines.base import EngineInfo, LlmEvent, LlmOptions, TextDelta
from voice_rtc.engines.llm.openai import AS_CONFIGURED
from voice_rtc.errors import EngineUnavailable

_FEW_WORDS = 9
_INVITATIONS = (
    "Would you tell me more about that?",
    "What else comes to your mind?",
    "How long have you thought about it?",
)
_LONGEST_INPUT = 300
_OPENING = "Hello. How are you feeling today?"
_NOTHING_HEARD = "I did not hear anything. Please go on."
_PLACE = re.compile(r"%(\d)")
_DASHES = re.compile(r"\s+--\s+")


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    answers: tuple[str, ...]


class ElizaRules:
    """The rules, compiled. Answers are a function of the words and the random generator."""

    def __init__(self) -> None:
        from nltk.chat.eliza import pairs
        from nltk.chat.util import reflections

        self._rules = [
            _Rule(re.compile(pattern, re.IGNORECASE), tuple(answers)) for pattern, answers in pairs
        ]
        self._reflections: dict[str, str] = reflections
        longest_first = sorted(reflections, key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first))
        self._reflected = re.compile(rf"\b({words})\b")

    def answer(self, said: str, chance: random.Random, last: str = "") -> str:
        """An answer to ``said``; not the same as ``last`` where there is a choice."""
        said = _normalized(said)
        if not said:
            return _NOTHING_HEARD
        for rule in self._rules:
            if found := rule.pattern.match(said):
                answers = [self._fill(answer, found) for answer in rule.answers]
                fresh = [each for each in answers if not last.startswith(each)]
                return _inviting(chance.choice(fresh or answers), chance)
        return _NOTHING_HEARD

    def _fill(self, answer: str, found: re.Match[str]) -> str:
        filled = _PLACE.sub(lambda place: self._reflect(found.group(int(place[1]))), answer)
        filled = _DASHES.sub(", ", filled).replace("...", ".")
        return re.sub(r"\s*[?.!]*([?.!])$", r"\1", filled)

    def _reflect(self, words: str) -> str:
        lowered = words.lower().strip(" .!?,")
        return self._reflected.sub(lambda found: self._reflections[found[0]], lowered)


class ElizaLlm:
    """A conversation without model, network or key. It understands nothing, and shows it."""

    def __init__(self, seed: int = 0, *, reason: str = "") -> None:
        """``seed``: conversations with equal words and seeds are equal."""
        self._seed = seed
        self._rules: ElizaRules | None = None
        self.info = EngineInfo(
            "llm",
            "eliza",
            reason=reason,
            notes=(
                "ELIZA repeats your words as questions; it is no language model. For a real "
                "conversation set OPENAI_API_KEY, or llm.base_url to any OpenAI-compatible "
                "service (Ollama, vLLM, llama.cpp).",
            ),
        )

    async def start(self) -> None:
        """Compile the rules. Raises EngineUnavailable when nltk is not installed."""
        try:
            self._rules = ElizaRules()
        except ImportError as error:
            raise EngineUnavailable(f"nltk cannot be imported: {error}") from error

    async def aclose(self) -> None:
        """Nothing to free."""

    async def stream(
        self, messages: Sequence[Message], options: LlmOptions = AS_CONFIGURED
    ) -> AsyncGenerator[LlmEvent, None]:
        """Answer the newest message of the caller word by word; open when there is none."""
        if self._rules is None:
            raise EngineUnavailable("ELIZA is not started")
        for word in re.findall(r"\S+\s*", self._answer(self._rules, messages)):
            yield TextDelta(word)
            await asyncio.sleep(0)  # as a service would: other tasks run between two pieces

    def _answer(self, rules: ElizaRules, messages: Sequence[Message]) -> str:
        said = [message.content for message in messages if message.role == "user"]
        if not said:
            return _OPENING
        answered = [message.content for message in messages if message.role == "assistant"]
        digest = zlib.crc32("\n".join(said).encode("utf-8", "replace"), self._seed & 0xFFFFFFFF)
        return rules.answer(said[-1], random.Random(digest), answered[-1] if answered else "")


def _inviting(answer: str, chance: random.Random) -> str:
    """``answer``; a short one gets a question after it: the talk goes on, and there is
    something to interrupt."""
    if len(answer.split()) > _FEW_WORDS:
        return answer
    return f"{answer} {chance.choice(_INVITATIONS)}"


def _normalized(said: str) -> str:
    """One line, straight quotes, no end punctuation, at most 300 characters."""
    words = " ".join(said[: 4 * _LONGEST_INPUT].replace("’", "'").split())
    cut = words[:_LONGEST_INPUT]
    return cut.strip(" .!,;:") if any(each.isalnum() for each in cut) else ""
