"""What Kokoro consists of, and where it comes from. Imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from voice_rtc.engines.hub import Weights

DEFAULT_VOICE = "af_heart"
REPOSITORY = "hexgrad/Kokoro-82M"
CONFIG, MODEL, VOICES = "config.json", "kokoro-v1_0.pth", "voices"


def required_files(voices: tuple[str, ...]) -> tuple[str, ...]:
    """Without them it cannot speak with ``voices``."""
    return (CONFIG, MODEL, *(f"{VOICES}/{voice}.pt" for voice in voices))


def weights_for(voices: tuple[str, ...]) -> Weights:
    """What is needed from the hub to speak with ``voices``; all English voices come along."""
    return Weights(REPOSITORY, (CONFIG, MODEL, f"{VOICES}/[ab]*.pt"), required_files(voices))


def voices_in(folder: Path) -> frozenset[str]:
    """The voices whose files are there."""
    return frozenset(path.stem for path in (folder / VOICES).glob("*.pt"))


def why_not_installed() -> str:
    """What keeps Kokoro's packages from being imported; "" when nothing does. Does not import."""
    missing = [name for name in ("torch", "kokoro", "misaki") if find_spec(name) is None]
    if not missing:
        return ""
    return f"{', '.join(missing)} not installed: pip install 'voice-rtc[kokoro]'"
