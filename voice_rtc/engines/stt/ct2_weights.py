"""The weights in a CTranslate2 ``model.bin``, as float32 arrays.

Format: ``ModelSpec._serialize`` in CTranslate2's ``python/ctranslate2/specs/model_spec.py`` and
``Model::load`` in its ``src/models/model.cc``. Little-endian: version u32, name of the spec,
revision u32, variables, aliases. A string is its length with a closing zero as u16, then its
bytes; a variable is name, rank u8, dimensions u32, type u8, bytes u32, content. Integer weights
have a companion ``NAME_scale``: one factor per row, or one for all, by which they were multiplied.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voice_rtc.errors import EngineUnavailable

Dtype = Literal["float32", "int8", "int16", "int32", "float16", "bfloat16"]
_DTYPES: tuple[Dtype, ...] = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_SIZES = {"float32": 4, "int8": 1, "int16": 2, "int32": 4, "float16": 2, "bfloat16": 2}
_VERSIONS = range(4, 7)
"""Before 4 a variable did not tell its type."""
_SCALE = "_scale"


@dataclass(frozen=True, slots=True)
class Variable:
    """Where one variable lies in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    offset: int
    """Of its first byte in the file."""
    size: int
    """In bytes."""


class Ct2Weights:
    """A model file, opened: the variables' places at once, their contents on demand.

    Close it, or use it as a context manager; arrays already read stay valid.
    """

    def __init__(self, path: Path) -> None:
        """Read the directory of ``path``. Raises EngineUnavailable for what is not known here."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise EngineUnavailable(f"{path} cannot be read: {error}") from error
        try:
            self._read_directory()
        except (struct.error, UnicodeDecodeError) as error:
            self.close()
            raise EngineUnavailable(f"{path} is damaged: {error}") from error
        except EngineUnavailable:
            self.close()
            raise

    def __enter__(self) -> Ct2Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go. Idempotent."""
        self._bytes.close()

    def __contains__(self, name: str) -> bool:
        return self._resolve(name) in self.variables

    def array(self, name: str) -> NDArray[np.float32]:
        """A copy of the weight ``name``, dequantised to float32. Raises EngineUnavailable."""
        variable = self._variable(name)
        values = self._raw(variable)
        if variable.dtype not in ("int8", "int16"):
            return values.astype(np.float32)
        scaled = f"{variable.name}{_SCALE}"
        if scaled not in self:
            raise EngineUnavailable(f"{self.path}: the weight {name} is without its scale")
        scale = self._raw(self._variable(scaled)).astype(np.float32)
        if scale.ndim:
            if scale.shape != variable.shape[:1]:
                raise EngineUnavailable(f"{self.path}: the scale of {name} is of another shape")
            scale = scale.reshape(-1, *(1 for _ in variable.shape[1:]))
        result: NDArray[np.float32] = values.astype(np.float32) / scale
        return result

    def number(self, name: str) -> int:
        """The integer ``name``, a constant of the model. Raises EngineUnavailable."""
        variable = self._variable(name)
        if variable.shape:
            raise EngineUnavailable(f"{self.path}: {name} is not one number")
        return int(self._raw(variable))

    def _variable(self, name: str) -> Variable:
        variable = self.variables.get(self._resolve(name))
        if variable is None:
            raise EngineUnavailable(f"{self.path} has no weight {name}")
        return variable

    def _resolve(self, name: str) -> str:
        return self.aliases.get(name, name)

    def _raw(self, variable: Variable) -> NDArray[Any]:
        content = self._bytes[variable.offset : variable.offset + variable.size]
        if variable.dtype == "bfloat16":
            # The upper half of a float32.
            wide = np.frombuffer(content, dtype="<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(variable.shape)
        return np.frombuffer(content, np.dtype(variable.dtype)).reshape(variable.shape)

    def _read_directory(self) -> None:
        self._at = 0
        version = self._number("I")
        if version not in _VERSIONS:
            raise EngineUnavailable(f"{self.path} has format {version}, known here are 4 to 6")
        self.version = version
        self.spec = self._string()
        self.revision = self._number("I")
        variables = [self._read_variable() for _ in range(self._number("I"))]
        self.variables = {variable.name: variable for variable in variables}
        names = [(self._string(), self._string()) for _ in range(self._number("I"))]
        self.aliases = dict(names)

    def _read_variable(self) -> Variable:
        name = self._string()
        shape = tuple(self._number("I") for _ in range(self._number("B")))
        kind, size = self._number("B"), self._number("I")
        if kind >= len(_DTYPES):
            raise EngineUnavailable(f"{self.path}: {name} is of an unknown type {kind}")
        dtype = _DTYPES[kind]
        if size != math.prod(shape) * _SIZES[dtype] or self._at + size > len(self._bytes):
            raise EngineUnavailable(f"{self.path} is damaged: {name} has {size} bytes")
        variable = Variable(name, shape, dtype, self._at, size)
        self._at += size
        return variable

    def _number(self, kind: str) -> int:
        value: int
        (value,) = struct.unpack_from("<" + kind, self._bytes, self._at)
        self._at += struct.calcsize("<" + kind)
        return value

    def _string(self) -> str:
        length = self._number("H")
        (content,) = struct.unpack_from(f"<{length}s", self._bytes, self._at)
        self._at += length
        text: str = content.rstrip(b"\0").decode()
        return text
