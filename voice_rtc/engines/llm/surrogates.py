"""Characters that a service cut in two: UTF-16 surrogates in separate pieces of its JSON."""

from __future__ import annotations


class SurrogateJoiner:
    """Joins pairs over pieces; a half that stays alone becomes U+FFFD, so that text is Unicode."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """``text`` with whole characters only; a first half at its end is held back."""
        text = self._held + text
        self._held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return _whole(text[: len(text) - len(self._held)])

    def flush(self) -> str:
        """What is still held back."""
        held, self._held = self._held, ""
        return _whole(held)


def _whole(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
