"""Weights: from a directory, from the cache, from a hub of our own, and when there is none."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.engines.hub_server import hub_server
from tests.support.audio import WHISPER_SYNTHETIC
from voice_rtc.engines.hub import DownloadCancelled, DownloadProgress, local_folder
from voice_rtc.errors import EngineUnavailable


async def fetch(cache: Path, endpoint: str, **environment: str) -> tuple[int, str, str]:
    """Run hub_client.py; its status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.engines.hub_client"),
        env={**os.environ, "HF_HOME": str(cache), "HF_ENDPOINT": endpoint, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_weights_are_downloaded_once(tmp_path: Path) -> None:
    async with hub_server(WHISPER_SYNTHETIC) as hub:
        status, out, err = await fetch(tmp_path, hub.url)
        assert status == 0, err
        *_, files, percent, cached = out.splitlines()  # the log comes before
        assert files.split(",") == [
            *("config.json", "model.bin", "preprocessor_config.json"),
            *("tokenizer.json", "vocabulary.json"),
        ]
        assert (percent, cached) == ("[100]", "True")
        downloads = len(hub.downloads)
        status, _, err = await fetch(tmp_path, hub.url)
        assert status == 0, err
        assert len(hub.downloads) == downloads
        assert "README.md" not in hub.downloads


async def test_a_repository_without_the_files_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "repository"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    async with hub_server(empty) as hub:
        status, _, err = await fetch(tmp_path / "cache", hub.url)
    assert status == 1
    assert "lacks model.bin" in err


async def test_an_unreachable_hub_is_told(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    status, _, err = await fetch(tmp_path, endpoint)
    assert status == 1
    assert f"{endpoint} cannot be reached" in err


async def test_offline_mode_is_respected(tmp_path: Path) -> None:
    async with hub_server(WHISPER_SYNTHETIC) as hub:
        status, _, err = await fetch(tmp_path, hub.url, HF_HUB_OFFLINE="1")
        assert hub.downloads == []
    assert status == 1
    assert "HF_HUB_OFFLINE" in err


def test_local_folders(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert local_folder(str(tmp_path), ["config.json"]) == tmp_path
    assert local_folder("base", ["config.json"]) is None
    with pytest.raises(EngineUnavailable, match=r"lacks model\.bin"):
        local_folder(str(tmp_path), ["config.json", "model.bin"])
    with pytest.raises(EngineUnavailable, match="no directory"):
        local_folder("./nowhere", [])


def test_progress_tells_each_tenth_and_can_be_cancelled() -> None:
    progress, told = DownloadProgress(), []
    progress.tell = told.append
    assert progress.percent is None
    for done in range(0, 1001, 7):
        progress.update(done, 1000)
    progress.update(1000, 1000)
    assert [each // 10 for each in told] == list(range(11))
    assert progress.percent == 100
    progress.cancel()
    with pytest.raises(DownloadCancelled):
        progress.update(1, 2)
