"""Which files a Whisper model is made of, and where they are found."""

from __future__ import annotations

from voice_rtc.engines.hub import (
    DownloadProgress,
    Weights,
    cache_folder,
    cached,
    fetch,
    local_folder,
)
from voice_rtc.engines.worker import EngineWorker
from voice_rtc.errors import EngineUnavailable

DEFAULT_MODEL = "base"
REQUIRED_FILES = ("config.json", "model.bin", "tokenizer.json")
_PATTERNS = (*REQUIRED_FILES, "preprocessor_config.json", "vocabulary.*")
_WHAT_TO_DO = (
    "Let the server reach the Hugging Face hub once, or set stt.model (VOICE_RTC_STT__MODEL) to a "
    "directory with a faster-whisper model (model.bin, config.json, tokenizer.json)"
)


def weights_of(model: str) -> Weights:
    """The hub repository behind a model name. Raises EngineUnavailable for an unknown name."""
    if "/" in model:
        return Weights(model, _PATTERNS, REQUIRED_FILES)
    from faster_whisper.utils import _MODELS  # the table has no public accessor with repositories

    repository = _MODELS.get(model)
    if repository is None:
        raise EngineUnavailable(
            f"there is no Whisper model {model!r}; known are {', '.join(sorted(_MODELS))}, a "
            "hub repository owner/name, or a local directory"
        )
    return Weights(repository, _PATTERNS, REQUIRED_FILES)


async def find(
    model: str, worker: EngineWorker, progress: DownloadProgress, *, download: bool
) -> str:
    """The folder of ``model``: local, in the hub cache, or fetched into it if it may be.

    ``worker`` does what blocks. Raises EngineUnavailable, with what the user can do.
    """
    if (folder := local_folder(model, REQUIRED_FILES)) is not None:
        return str(folder)
    weights = weights_of(model)
    if not download:
        if (found := await worker.run(cached, weights)) is not None:
            return str(found)
        raise EngineUnavailable(
            f"Whisper {model} is not in the hub cache {cache_folder()} and "
            f"stt.download is off. {_WHAT_TO_DO}"
        )
    try:
        return str(await fetch(weights, worker, progress))
    except EngineUnavailable as error:
        raise EngineUnavailable(f"Whisper: {error}. {_WHAT_TO_DO}") from error
