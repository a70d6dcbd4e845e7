"""What a call is set to and how it stands (the original plan's SessionState)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from voice_rtc.call.events import TurnMeasured
from voice_rtc.config import Settings
from voice_rtc.core.barge_in import BargeInRules
from voice_rtc.core.endpointing import PACES
from voice_rtc.core.turns import TurnRules
from voice_rtc.engines.base import STT_AS_CONFIGURED, LlmOptions, SttOptions, VoiceOptions


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What a client may change while its call runs."""

    instructions: str
    """System prompt."""
    rules: TurnRules
    """When turns end and what interrupts."""
    manual_turns: bool = False
    """True: voice activity decides nothing, the client commits its turns (push-to-talk)."""
    speech_threshold: float = 0.5
    """VAD probability above which a window is speech."""
    stt: SttOptions = STT_AS_CONFIGURED
    """The caller's language, and words to expect; from the next utterance on."""
    voice: VoiceOptions = field(default_factory=VoiceOptions)
    llm: LlmOptions = field(default_factory=LlmOptions)
    spoken: bool = True
    """False: replies are text only."""

    @property
    def answers_by_itself(self) -> bool:
        """Does a turn that is over get an answer without the client asking for it?"""
        return self.rules.creates_reply and not self.manual_turns

    @classmethod
    def from_settings(cls, settings: Settings) -> CallSettings:
        """The server's defaults."""
        turns = settings.turns
        return cls(
            instructions=settings.session.instructions,
            rules=TurnRules(
                min_pause_seconds=turns.min_pause_seconds,
                max_pause_seconds=turns.max_pause_seconds,
                pace=PACES[turns.preset],
                reopen_seconds=turns.reopen_seconds,
                barge_in=BargeInRules(
                    policy=turns.barge_in,
                    seconds=turns.barge_in_seconds,
                    words=turns.barge_in_words,
                    wordless_factor=turns.barge_in_wordless_factor,
                    patience_seconds=turns.barge_in_patience_seconds,
                    background_db=turns.background_db,
                    echo_similarity=turns.echo_similarity,
                ),
                max_utterance_seconds=turns.max_utterance_seconds,
                idle_seconds=turns.idle_prompt_seconds,
                idle_prompts=turns.idle_prompts,
            ),
            speech_threshold=turns.speech_threshold,
            stt=SttOptions(prompt=settings.stt.prompt),
        )

    def with_pause(self, seconds: float) -> CallSettings:
        """The same with a fixed pause before a turn ends."""
        rules = replace(self.rules, min_pause_seconds=seconds, max_pause_seconds=seconds, pace=1.0)
        return replace(self, rules=rules)


@dataclass(frozen=True, slots=True)
class ReplyWishes:
    """What a client wants of one reply; None leaves it to the call's settings."""

    instructions: str | None = None
    """System prompt."""
    spoken: bool | None = None
    """False: text only."""
    max_tokens: int | None = None
    """Longest answer."""


@dataclass(frozen=True, slots=True)
class LineWish:
    """How a call wants to be lined up, should it have to wait."""

    head_start_seconds: float = 0.0
    """As if it had come so much earlier."""
    resume: str = ""
    """Token of a place that it had on another connection."""
    origin: str = ""
    """Address that the offer came from."""


AS_IT_COMES = LineWish()
"""No head start, no earlier place."""


@dataclass(frozen=True, slots=True)
class CallState:
    """A snapshot of one call for status pages and tests."""

    id: str
    age_seconds: float
    connected: bool
    suspended: bool
    """The caller is not heard of at the moment; see `core.liveness`."""
    phase: Literal["connecting", "waiting", "live"]
    floor: str
    lease_id: int | None
    turns: int
    replies: int
    frames_received: int
    inbound_dropped: int
    underruns: int
    last_turn: TurnMeasured | None
    """Where the time of the newest answered turn went."""
