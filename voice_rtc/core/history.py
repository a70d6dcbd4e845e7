"""What was said in a call, as the language model and the client are told it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of the conversation as the LLM sees it."""

    role: Literal["system", "user", "assistant"]
    content: str
