"""What a server needs, looked at one by one: what was found, what is wrong, what to do.

Nothing here raises: a check that cannot be made says so. Nothing is changed or downloaded.
"""

from __future__ import annotations

import asyncio
import ctypes.util
import importlib.util
import os
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import ifaddr
import psutil

from voice_rtc.config import Settings
from voice_rtc.engines import hub
from voice_rtc.engines.hub import local_folder
from voice_rtc.engines.stt import whisper
from voice_rtc.engines.tts import kokoro
from voice_rtc.errors import EngineError, MediaPathUnusable
from voice_rtc.media.selftest import tested_path

_REACH_SECONDS = 2.0
_LEAST_MEMORY_GB = 1.5


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    status: Literal["ok", "warn", "fail"]
    finding: str
    remedy: str = ""


def examine(settings: Settings) -> list[Check]:
    """All checks, in the order in which they are worth mending."""
    checks: list[Callable[[Settings], Iterator[Check]]] = [
        _python,
        _port,
        _addresses,
        _media_path,
        _https,
        _libraries,
        _speech_to_text,
        _text_to_speech,
        _language_model,
        _gpu,
        _machine,
    ]
    return [check for make in checks for check in make(settings)]


def _python(_settings: Settings) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 13):
        yield _python_build(version)
    else:
        yield Check("Python", "fail", version, "use Python 3.11 or 3.12")


def _python_build(version: str) -> Check:
    """Distributions optimise Python by profile, Debian without that option; pyenv does not."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    if sys.base_prefix == "/usr" or "--enable-optimizations" in options:
        return Check("Python", "ok", version)
    return Check(
        "Python",
        "warn",
        f"{version}, built without --enable-optimizations: some 25 % slower, so fewer calls",
        "use the distribution's: rm -r .venv; make run PYTHON=/usr/bin/python3",
    )


def _port(settings: Settings) -> Iterator[Check]:
    host, port = settings.server.host, settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = "end what listens there, or choose another with --port"
            yield Check("HTTP port", "fail", f"{host}:{port}: {error.strerror}", remedy)
            return
    yield Check("HTTP port", "ok", f"{host}:{port} is free")


def _addresses(_settings: Settings) -> Iterator[Check]:
    found = [
        str(ip.ip)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if ip.is_IPv4 and not str(ip.ip).startswith("127.")
    ]
    if not found:
        yield Check(
            "Media address",
            "fail",
            "this machine has no address but loopback, which WebRTC media cannot use",
            "connect a network, or in a container use --network host",
        )
        return
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((found[0], 0))
    except OSError as error:
        yield Check("Media address", "fail", f"UDP on {found[0]}: {error.strerror}", "allow UDP")
        return
    yield Check("Media address", "ok", ", ".join(found))


def _media_path(settings: Settings) -> Iterator[Check]:
    try:
        chosen = asyncio.run(tested_path(settings.media, settings.limits))
    except MediaPathUnusable as error:
        yield Check("Media path", "fail", str(error), "see Media path in docs/runbook.md")
        return
    if chosen.reason:
        finding = f"stock, slower and for half as many calls: {chosen.reason}"
        yield Check("Media path", "warn", finding, "see Media path in docs/runbook.md")
    else:
        how = "as media.path asks" if chosen.path == "stock" else "a call of this machine to itself"
        yield Check("Media path", "ok", f"{chosen.path}: {how}")


def _https(settings: Settings) -> Iterator[Check]:
    server = settings.server
    if server.tls_certificate and server.tls_key:
        missing = [p for p in (server.tls_certificate, server.tls_key) if not p.is_file()]
        if missing:
            yield Check("HTTPS", "fail", f"no such file: {missing[0]}", "mend server.tls_*")
        else:
            yield Check("HTTPS", "ok", f"certificate {server.tls_certificate}")
        return
    yield Check(
        "HTTPS",
        "warn",
        "off: browsers allow the microphone only on http://localhost",
        "for other machines set server.tls_certificate and server.tls_key, or use a TLS proxy",
    )


def _libraries(_settings: Settings) -> Iterator[Check]:
    opus = ctypes.util.find_library("opus") or _bundled_opus()
    if opus:
        yield Check("libopus", "ok", opus)
    else:
        yield Check("libopus", "warn", "not found beside PyAV", "reinstall the package av")
    for package, what in (
        ("espeakng_loader", "espeak-ng"),
        ("pocketsphinx", "pocketsphinx"),
        ("onnxruntime", "Silero VAD runtime"),
    ):
        if importlib.util.find_spec(package):
            yield Check(what, "ok", f"package {package}")
        else:
            yield Check(what, "fail", f"package {package} is missing", "pip install voice-rtc")


def _bundled_opus() -> str | None:
    spec = importlib.util.find_spec("av")
    if spec is None or spec.origin is None:
        return None
    libraries = Path(spec.origin).parent.parent / "av.libs"
    return next((str(path) for path in sorted(libraries.glob("libopus*"))), None)


def _speech_to_text(settings: Settings) -> Iterator[Check]:
    stt = settings.stt
    model = stt.model or whisper.DEFAULT_MODEL
    yield _weights(
        "Whisper",
        lambda: local_folder(model, whisper.REQUIRED_FILES),
        lambda: whisper.weights_of(model),
        may_download=stt.download,
        otherwise="pocketsphinx is used, which is good for commands and a demo, not for dictation",
        remedy="put a faster-whisper model in a folder and set VOICE_RTC_STT__MODEL to it",
    )


def _text_to_speech(settings: Settings) -> Iterator[Check]:
    tts = settings.tts
    if missing := kokoro.why_not_installed():
        remedy = "make run EXTRAS=kokoro, or pip install 'voice-rtc[kokoro]'"
        yield Check("Kokoro", "warn", f"{missing}: espeak-ng speaks, clear but robotic", remedy)
        return
    yield _weights(
        "Kokoro",
        lambda: local_folder(tts.model, ("config.json",)) if tts.model else None,
        lambda: kokoro.weights_of(tts.voice),
        may_download=tts.download,
        otherwise="espeak-ng speaks, clear but robotic",
        remedy="put config.json, the weights and voices in a folder and set VOICE_RTC_TTS__MODEL",
    )


def _weights(
    name: str,
    local: Callable[[], Path | None],
    on_hub: Callable[[], hub.Weights],
    *,
    may_download: bool,
    otherwise: str,
    remedy: str,
) -> Check:
    """Where a model's weights would come from."""
    try:
        if folder := local():
            return Check(name, "ok", str(folder))
        weights = on_hub()
    except EngineError as error:
        return Check(name, "fail", str(error), remedy)
    if folder := hub.cached(weights):
        return Check(name, "ok", str(folder))
    why = hub.probe() if may_download else "downloads are off"
    if not why:
        return Check(name, "ok", f"{weights.repository} will be fetched at the first start")
    return Check(name, "warn", f"{weights.repository} is not here, {why}: {otherwise}", remedy)


def _language_model(settings: Settings) -> Iterator[Check]:
    llm = settings.llm
    if not llm.base_url and not llm.api_key.get_secret_value():
        yield Check(
            "Language model",
            "warn",
            "no key and no base URL: ELIZA answers",
            "set OPENAI_API_KEY, or OPENAI_BASE_URL for any compatible service",
        )
        return
    url = urlsplit(llm.base_url or "https://api.openai.com")
    port = url.port or (443 if url.scheme == "https" else 80)
    if _connects(url.hostname or "", port):
        yield Check("Language model", "ok", f"{llm.model} at {url.hostname}:{port}")
    else:
        yield Check(
            "Language model",
            "fail",
            f"{url.hostname}:{port} cannot be reached",
            "check llm.base_url and the network",
        )


def _gpu(_settings: Settings) -> Iterator[Check]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield Check("GPU", "ok", "none: models run on the CPU")
        return
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            yield Check("GPU", "ok", f"{name}, {memory.free / 2**30:.1f} GiB free")
    except pynvml.NVMLError as error:
        yield Check("GPU", "warn", f"found, but not readable: {error}", "check the driver")
    finally:
        pynvml.nvmlShutdown()


def _machine(_settings: Settings) -> Iterator[Check]:
    free = psutil.virtual_memory().available / 2**30
    finding = f"{os.cpu_count()} CPUs, {free:.1f} GiB of memory available"
    if free < _LEAST_MEMORY_GB:
        yield Check("Machine", "warn", finding, "free some memory")
    else:
        yield Check("Machine", "ok", finding)
    disk = shutil.disk_usage(Path.home()).free / 2**30
    if disk < 1.0:
        yield Check("Disk", "warn", f"{disk:.1f} GiB free at home", "weights need about 1 GiB")


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_REACH_SECONDS):
            return True
    except OSError:
        return False
