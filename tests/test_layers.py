"""Who may import whom, and which names are banned, read from the source by ast.

The architecture in one table: the core is pure, the edges do not know each other, and concrete
engines are chosen in one place. The checker is itself tested against planted violations.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("voice_rtc", "signaling", "tools", "web")

CORE, BASE = "voice_rtc.core", "voice_rtc.engines.base"
ENGINES, MEDIA = "voice_rtc.engines", "voice_rtc.media"
POOL, CALL, ERRORS = "voice_rtc.pool", "voice_rtc.call", "voice_rtc.errors"
LEAVES = (
    ERRORS, "voice_rtc.config", "voice_rtc.logs", "voice_rtc.metrics", "voice_rtc.inbox",
)  # fmt: skip
EVERYTHING = ("voice_rtc", "signaling", "web")

RULES: dict[str, tuple[str, ...]] = {
    "voice_rtc.core": (CORE, ERRORS),
    "voice_rtc.engines": (ENGINES, CORE, *LEAVES),
    "voice_rtc.media": (MEDIA, CORE, *LEAVES),
    "voice_rtc.pool": (POOL, CORE, BASE, *LEAVES),
    "voice_rtc.call": (CALL, CORE, MEDIA, BASE, POOL, *LEAVES),
    "voice_rtc.errors": (),
    "voice_rtc.config": (ERRORS,),
    "voice_rtc.logs": LEAVES,
    "voice_rtc.metrics": ("voice_rtc.tallies", *LEAVES),
    "voice_rtc.tallies": (),
    "voice_rtc.inbox": (CORE, *LEAVES),
    "voice_rtc.cli": ("signaling", "voice_rtc.doctor", "voice_rtc.capacity_report", *LEAVES),
    "voice_rtc.doctor": (ENGINES, MEDIA, *LEAVES),
    "voice_rtc.capacity_report": ("voice_rtc.engines.catalog", BASE, MEDIA, POOL, CORE, *LEAVES),
    "voice_rtc.__main__": ("voice_rtc.cli",),
    "voice_rtc": (),
    "signaling.main": EVERYTHING,
    "signaling": ("signaling", "web", CORE, MEDIA, BASE, POOL, CALL, *LEAVES),
    "tools.load": ("tools", CORE, ERRORS, "voice_rtc.engines.tts.espeak"),
    **dict.fromkeys(
        (
            "tools.bench_faults",
            "tools.bench_pool",
            "tools.bench_stt",
            "tools.bench_windows",
            "tools.isolation",
            "tools.listen",
            "tools.second_ear",
            "tools.turn_eval",
            "tools.turns",
        ),
        (
            "tools",
            CORE,
            BASE,
            POOL,
            "voice_rtc.engines.stt.whisper",
            "voice_rtc.engines.tts.espeak",
            *LEAVES,
        ),
    ),
    "tools.bench_tts": ("tools", CORE, BASE, "voice_rtc.engines.tts.kokoro", *LEAVES),
    "tools.bench_opus": ("tools", CORE, "voice_rtc.media.opus", *LEAVES),
    **dict.fromkeys(
        ("tools.bench_chromium", "tools.bench_media", "tools.media_bench"),
        (
            "tools",
            CORE,
            BASE,
            MEDIA,
            "signaling.collector",
            "voice_rtc.call.listener",
            "voice_rtc.engines.catalog",
            "voice_rtc.engines.fakes",
            "voice_rtc.engines.stt.whisper",
            *LEAVES,
        ),
    ),
    "tools": ("tools", CORE, ERRORS, "voice_rtc.engines.fakes"),
    "web": ("web",),
}
"""Module or package -> what it may import of this project. The longest name that fits counts."""

BARE = ("voice_rtc", "voice_rtc.__version__")
"""The package without anything of it: its version and its path. For all but the core."""

PURE = frozenset(
    "__future__ abc bisect collections dataclasses difflib enum fractions functools heapq "
    "itertools math numpy operator re statistics string struct types typing unicodedata".split()
)
"""All that the core may import from outside: data, no clock, no I/O, no threads, no chance."""

BANNED_CALLS = {
    "asyncio.create_task": "no task without an owner",
    "asyncio.ensure_future": "no task without an owner",
    "asyncio.to_thread": "the default executor belongs to aiortc",
    "time.time": "wall time jumps",
}
ENVIRONMENT = frozenset({"os.environ", "os.environb", "os.getenv", "os.getenvb"})


def violations(root: Path) -> list[str]:
    """Every breach in the source below ``root``, as ``path:line: what``."""
    found = []
    for package in CHECKED:
        for path in sorted((root / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            module = _module_name(path.relative_to(root))
            breaches = [*_imports(module, path, tree), *_names(module, tree)]
            found += [f"{path.relative_to(root)}:{line}: {what}" for line, what in breaches]
    return found


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _imported(module: str, path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every imported name, absolute: for ``from a import b`` that is ``a.b``."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                kept = parents[: len(parents) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def _imports(module: str, path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    rule = max((name for name in RULES if _is_within(module, name)), key=len)
    if rule == "voice_rtc" and module != "voice_rtc":
        yield 1, f"{module} has no rule in tests/test_layers.py"
        return
    is_core = rule == CORE
    for line, name in _imported(module, path, tree):
        if name.split(".")[0] in CHECKED:
            allowed = any(_is_within(name, package) for package in RULES[rule])
            if not allowed and (is_core or name not in BARE):
                yield line, f"{module} must not import {name}"
        elif is_core and name.split(".")[0] not in PURE:
            yield line, f"{module} must not import {name}: the core is pure"


def _names(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = _dotted(node, aliases)
            if name in BANNED_CALLS:
                yield node.lineno, f"{name} is banned: {BANNED_CALLS[name]}"
            if name in ENVIRONMENT and not _may_read_environment(module):
                yield node.lineno, f"only voice_rtc.config reads the environment, not {module}"
        elif isinstance(node, ast.Call):
            yield from _loop_calls(node)


def _may_read_environment(module: str) -> bool:
    return module == "voice_rtc.config" or _is_within(module, "tools")


def _loop_calls(node: ast.Call) -> Iterator[tuple[int, str]]:
    if not isinstance(node.func, ast.Attribute):
        return
    if node.func.attr == "create_task" and "loop" in _last_name(node.func.value):
        yield node.lineno, "loop.create_task is banned: no task without an owner"
    if node.func.attr == "run_in_executor" and node.args:
        first = node.args[0]
        if isinstance(first, ast.Constant) and first.value is None:
            yield node.lineno, "run_in_executor(None) is banned: it belongs to aiortc"


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr.lower()
    return node.id.lower() if isinstance(node, ast.Name) else ""


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it stands for, from all imports."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    aliases[alias.asname] = alias.name
                else:
                    top = alias.name.split(".")[0]
                    aliases[top] = top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return aliases


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, "")
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, aliases)
        return f"{base}.{node.attr}" if base else ""
    return ""


# ------------------------------------------------------------------------------- the project


def test_the_project_keeps_the_rules():
    assert violations(ROOT) == []


def test_there_is_something_to_check():
    assert len(list((ROOT / "voice_rtc").rglob("*.py"))) > 10


# ---------------------------------------------------------------------- the checker itself


@pytest.mark.parametrize(
    ("path", "source"),
    [
        # the core is pure
        ("voice_rtc/core/a.py", "import asyncio"),
        ("voice_rtc/core/a.py", "import time"),
        ("voice_rtc/core/a.py", "from os import path"),
        ("voice_rtc/core/a.py", "def f():\n    import random"),
        ("voice_rtc/core/a.py", "import structlog"),
        ("voice_rtc/core/a.py", "from voice_rtc import config"),
        ("voice_rtc/core/a.py", "from voice_rtc import __version__"),
        ("voice_rtc/core/a.py", "import voice_rtc"),
        ("voice_rtc/core/a.py", "from voice_rtc.metrics import Metrics"),
        ("voice_rtc/core/a.py", "import voice_rtc.inbox"),
        ("voice_rtc/core/a.py", "from ..engines import base"),
        ("voice_rtc/core/a.py", "from .. import logs"),
        ("voice_rtc/core/__init__.py", "from ..call import call"),
        # the edges do not know each other, nor what is above them
        ("voice_rtc/media/a.py", "from voice_rtc.engines.base import VadEngine"),
        ("voice_rtc/engines/a.py", "from voice_rtc.media.peer import Peer"),
        ("voice_rtc/engines/stt/a.py", "from voice_rtc.pool.pool import SttPool"),
        ("voice_rtc/pool/a.py", "from voice_rtc.engines.stt.whisper import Whisper"),
        ("voice_rtc/pool/a.py", "from voice_rtc.call.state import CallState"),
        ("voice_rtc/call/a.py", "from voice_rtc.engines import fakes"),
        ("voice_rtc/call/a.py", "if True:\n    from signaling import app"),
        ("voice_rtc/media/a.py", "import tools.bot"),
        ("signaling/app.py", "from voice_rtc.engines.tts import espeak"),
        ("signaling/app.py", "import voice_rtc.engines"),
        ("voice_rtc/config.py", "from voice_rtc.core.vad import VadGate"),
        ("voice_rtc/errors.py", "from voice_rtc.core.audio import Pcm"),
        ("voice_rtc/surprise.py", ""),
        ("tools/a.py", "from voice_rtc.engines.base import TtsEngine"),
        ("tools/a.py", "from voice_rtc.media.peer import Peer"),
        ("tools/a.py", "from signaling import main"),
        # banned names
        ("voice_rtc/call/a.py", "import asyncio\nasyncio.create_task(f())"),
        ("voice_rtc/call/a.py", "import asyncio as aio\naio.ensure_future(f())"),
        ("voice_rtc/call/a.py", "from asyncio import to_thread\nto_thread(f)"),
        ("voice_rtc/call/a.py", "loop.create_task(f())"),
        ("voice_rtc/call/a.py", "self._loop.create_task(f())"),
        ("tools/a.py", "import asyncio\nasyncio.get_running_loop().create_task(f())"),
        ("signaling/a.py", "loop.run_in_executor(None, f)"),
        ("voice_rtc/pool/a.py", "import time\ntime.time()"),
        # the environment
        ("voice_rtc/call/a.py", "import os\nos.environ['X']"),
        ("signaling/main.py", "from os import getenv\ngetenv('X')"),
        ("voice_rtc/cli.py", "import os as o\no.environ.get('X')"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, path, source):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source)
    found = violations(tmp_path)
    assert len(found) >= 1 and found[0].startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("voice_rtc/core/a.py", "from __future__ import annotations\nimport numpy as np"),
        ("voice_rtc/core/a.py", "from collections.abc import Callable\nfrom . import audio"),
        ("voice_rtc/core/a.py", "from voice_rtc.errors import StateError"),
        ("voice_rtc/engines/llm/a.py", "from ..base import LlmEngine\nimport time"),
        ("voice_rtc/engines/llm/a.py", "from voice_rtc import __version__\nimport asyncio"),
        ("voice_rtc/engines/llm/a.py", "import voice_rtc\nvoice_rtc.__file__"),
        ("voice_rtc/call/a.py", "from voice_rtc.engines.base import EngineSet"),
        ("voice_rtc/call/a.py", "from voice_rtc.engines import base"),
        ("voice_rtc/call/a.py", "with TaskGroup() as group:\n    group.create_task(f())"),
        ("voice_rtc/engines/a.py", "loop.run_in_executor(self._executor, f)"),
        ("voice_rtc/config.py", "import os\nos.environ"),
        ("tools/a.py", "from voice_rtc.engines.fakes import ToneTts\nimport tools.bot"),
        ("signaling/main.py", "from voice_rtc.engines.stt.whisper import Whisper"),
        ("signaling/app.py", "from voice_rtc.call.registry import CallRegistry\nimport web"),
    ],
)  # fmt: skip
def test_what_is_allowed_is_not_a_violation(tmp_path, path, source):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source)
    assert violations(tmp_path) == []
