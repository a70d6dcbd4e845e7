"""Reading CTranslate2's model.bin: what its own writer makes, every type by hand, and damage."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.engines.whisper_files import random_spec
from tests.support.audio import WHISPER_SYNTHETIC
from voice_rtc.engines.stt.ct2_weights import Ct2Weights
from voice_rtc.errors import EngineUnavailable

MODEL = WHISPER_SYNTHETIC / "model.bin"
DTYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, shape: tuple[int, ...], dtype: int, content: bytes) -> bytes:
    dimensions = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<BI", dtype, len(content)) + content


def model(*variables: bytes, aliases: dict[str, str] | None = None, version: int = 6) -> bytes:
    pairs = [text(alias) + text(name) for alias, name in (aliases or {}).items()]
    head = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<I", 3)
    counts = struct.pack("<I", len(variables)), struct.pack("<I", len(pairs))
    return head + counts[0] + b"".join(variables) + counts[1] + b"".join(pairs)


def stored(values: np.ndarray, dtype: str) -> bytes:
    return variable("w", values.shape, DTYPES.index(dtype), values.tobytes())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


@pytest.mark.parametrize("quantization", ["float32", "float16", "int8", "int16", "int8_float16"])
def test_what_ctranslate2_writes(path: Path, quantization: str) -> None:
    spec = random_spec(40)
    wanted = {
        name: np.array(getattr(spec.encoder, name).weight, dtype=np.float32)
        for name in ("conv1", "conv2")
    }
    linear = np.array(spec.encoder.layer[0].ffn.linear_0.weight)
    gamma = np.array(spec.encoder.layer_norm.gamma)
    embeddings = np.array(spec.decoder.embeddings.weight)
    spec.register_vocabulary([f"w{number}" for number in range(40)])
    spec.validate()
    spec.optimize(quantization)
    spec.save(str(path.parent))
    coarse = 0.02 if "int8" in quantization else 1e-3
    with Ct2Weights(path) as weights:
        assert (weights.version, weights.spec, weights.revision) == (6, "WhisperSpec", 3)
        assert weights.number("encoder/num_heads") == 2
        for name, values in wanted.items():
            read = weights.array(f"encoder/{name}/weight")
            assert read.dtype == np.float32
            np.testing.assert_allclose(read, values, atol=coarse)
        read = weights.array("encoder/layer_0/ffn/linear_0/weight")
        np.testing.assert_allclose(read, linear, atol=coarse)
        np.testing.assert_allclose(weights.array("encoder/layer_norm/gamma"), gamma, atol=1e-3)
        tied = weights.array("decoder/projection/weight")
        np.testing.assert_allclose(tied, embeddings, atol=coarse)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_plain_types(path: Path, dtype: str) -> None:
    values = np.array([[1, -2, 3], [40, 5, -6]], dtype)
    path.write_bytes(model(stored(values, dtype)))
    with Ct2Weights(path) as weights:
        np.testing.assert_array_equal(weights.array("w"), values.astype(np.float32))


def test_bfloat16(path: Path) -> None:
    values = np.array([1.5, -2.0, 0.15625, 1e30], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    path.write_bytes(model(variable("w", (4,), DTYPES.index("bfloat16"), upper.tobytes())))
    with Ct2Weights(path) as weights:
        np.testing.assert_allclose(weights.array("w"), values, rtol=2**-7)


@pytest.mark.parametrize("version", [4, 5, 6])
def test_scales_of_rows_and_of_all(path: Path, version: int) -> None:
    rows = variable("w_scale", (2,), 0, np.array([2, 4], np.float32).tobytes())
    content = model(stored(np.array([[2, 4], [4, 8]], np.int8), "int8"), rows, version=version)
    path.write_bytes(content)
    with Ct2Weights(path) as weights:
        np.testing.assert_array_equal(weights.array("w"), [[1, 2], [1, 2]])
    for_all = variable("w_scale", (), 0, np.float32(8).tobytes())
    path.write_bytes(model(stored(np.array([[16, -8]], np.int16), "int16"), for_all))
    with Ct2Weights(path) as weights:
        np.testing.assert_array_equal(weights.array("w"), [[2, -1]])


def test_an_alias_is_the_weight_with_its_scale(path: Path) -> None:
    scale = variable("w_scale", (1,), 0, np.array([4], np.float32).tobytes())
    weight = stored(np.array([[8]], np.int8), "int8")
    path.write_bytes(model(weight, scale, aliases={"tied": "w"}))
    with Ct2Weights(path) as weights:
        assert "tied" in weights and "other" not in weights
        np.testing.assert_array_equal(weights.array("tied"), [[2]])


def test_arrays_outlive_the_file(path: Path) -> None:
    path.write_bytes(model(stored(np.array([1.0, 2.0], np.float32), "float32")))
    weights = Ct2Weights(path)
    values = weights.array("w")
    weights.close()
    weights.close()
    values += 1
    np.testing.assert_array_equal(values, [2, 3])


WHOLE = model(stored(np.array([1.0, 2.0], np.float32), "float32"), aliases={"a": "w"})
INTEGERS = stored(np.array([[8], [2]], np.int8), "int8")
THREE_SCALES = variable("w_scale", (3,), 0, np.ones(3, np.float32).tobytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"broken", "has format"),
        (model(version=7), "has format 7"),
        (model(version=3), "has format 3"),
        (model(variable("w", (1,), 9, b"xxxx")), "unknown type 9"),
        (model(variable("w", (3,), 0, b"xxxx")), "damaged: w has 4 bytes"),
    ],
)
def test_unknown_and_damaged_files_are_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(EngineUnavailable, match=message):
        Ct2Weights(path)


@pytest.mark.parametrize("length", range(1, len(WHOLE), 3))
def test_a_file_cut_short_is_refused(path: Path, length: int) -> None:
    path.write_bytes(WHOLE[:length])
    with pytest.raises(EngineUnavailable):
        Ct2Weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(), "has no weight w"),
        (model(INTEGERS), "without its scale"),
        (model(INTEGERS, THREE_SCALES), "of another shape"),
    ],
)
def test_weights_that_are_not_as_expected(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with Ct2Weights(path) as weights, pytest.raises(EngineUnavailable, match=message):
        weights.array("w")


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"model\.bin cannot be read"):
        Ct2Weights(path)


def test_a_number_is_one_number() -> None:
    with Ct2Weights(MODEL) as weights:
        assert weights.number("encoder/num_heads") == 4
        with pytest.raises(EngineUnavailable, match="not one number"):
            weights.number("encoder/conv1/bias")
