"""docs/benchmarks.md: each benchmark writes its own section, between two comments."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def write(name: str, section: str, page: Path = PAGE) -> None:
    """Replace the section ``name``. Raises LookupError when the page has no place for it."""
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    head, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _old, closed, tail = rest.partition(end)
    if not (found and closed):
        raise LookupError(f"{page.name} has no section {begin} ... {end}")
    page.write_text(f"{head}{begin}\n{section}\n{end}{tail}", encoding="utf-8")
