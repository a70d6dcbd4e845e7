"""Kokoro with random weights for tests; those who want it need its packages."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

missing = [name for name in ("torch", "kokoro", "misaki") if find_spec(name) is None]
installed = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
quiet = pytest.mark.filterwarnings("ignore")
"""torch and its friends deprecate much of their own."""


def random_weights(folder: Path) -> Path:
    """A directory for tts.model, small but with the whole decoder."""
    from tools.random_kokoro import write

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(folder, small=True)
    return folder


def stock_model(folder: Path) -> Any:
    """kokoro's own model with the weights of ``folder``."""
    from kokoro import KModel

    return KModel("hexgrad/Kokoro-82M", f"{folder}/config.json", f"{folder}/kokoro-v1_0.pth").eval()
