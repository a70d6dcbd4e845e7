"""How private names of aiortc, aioice and pylibsrtp are touched: looked at first, and of one object
alone."""

from __future__ import annotations

from typing import Any


class Misfit(Exception):
    """A private name is not there or is not what it was. `str(error)` says which."""


def require(owner: Any, prefix: str, names: tuple[str, ...]) -> None:
    """Raises Misfit unless ``owner`` has all of these, their names behind ``prefix``."""
    for name in names:
        if not hasattr(owner, prefix + name):
            raise Misfit(f"{type(owner).__name__} has no {name}")


def replace_method(owner: Any, name: str, method: Any) -> None:
    """Have this one object use ``method``. Raises Misfit."""
    if not callable(getattr(owner, name, None)):
        raise Misfit(f"{type(owner).__name__} has no {name}")
    setattr(owner, name, method)
