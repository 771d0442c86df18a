"""What a golden pair says of outputs, and what a hostile npz may not do."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from agent.errors import ModelError
from agent.inference.catalog import Catalog, Golden, golden
from agent.inference.catalog.golden import ARRAYS_BYTES_MAX, arrays
from agent.inference.catalog.manifest import Tolerance
from tests.inference.catalog.repository import describe, install, linear, pair


def judge(expected: object, got: object, rtol: float = 1e-3, atol: float = 1e-4) -> str:
    """What is said against an output; "" for nothing."""
    one = Golden("m/1@0: golden[0]", {}, {"y": np.asarray(expected)}, Tolerance(rtol, atol))
    try:
        one.judge({"y": np.asarray(got)})
    except ModelError as error:
        assert error.hint
        return str(error)
    return ""


def floats(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_within_the_tolerance_nothing_is_said() -> None:
    assert judge(floats(1, 1000, 0), floats(1.0009, 1000.9, 0.00009)) == ""
    assert judge(np.int8([1, 2]), np.int8([1, 3]), rtol=0, atol=1) == ""
    assert judge(np.array([True]), np.array([True])) == ""
    assert judge(np.array([b"ab"]), np.array([b"ab"], object)) == ""
    short = floats(1, 2).astype(bfloat16).view("V2")  # as numpy's files keep it
    assert judge(short, short) == ""
    assert "is 3, expected 2" in judge(short, floats(1, 3).astype(bfloat16).view("V2"))


def test_the_worst_element_is_named() -> None:
    assert judge(floats(1, 2, 1000), floats(1, 3, 1000.5)) == (
        "m/1@0: golden[0]: output 'y' element [0, 1] is 3, expected 2: off by 1, tolerance 0.0021 "
        "(atol 0.0001 + rtol 0.001 * |expected|); 1 of 3 are out"
    )


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (floats(1, 2), floats(1, float("nan")), "element [0, 1] is nan; 1 of 2 are no numbers"),
        (floats(1, 2), floats(float("-inf"), 2), "element [0, 0] is -inf"),
        (floats(float("nan")), floats(float("nan")), "are no numbers"),
        (floats(float("inf")), floats(1), "should be inf; 1 of 1 are no numbers"),
        (floats(float("nan")), floats(1), "should be nan"),
        (floats(1), floats(1).astype(np.float64), "is float64, expected float32"),
        (floats(1, 2), floats(1), "has the shape [1, 1], not [1, 2]"),
        (np.array([True, False]), np.array([True, True]), "element [1]"),
        (np.array(["a"]), np.array(["b"], object), "element [0]"),
        (np.uint8([0]), np.uint8([255]), "off by 255"),
    ],
)
def test_what_is_wrong_is_said(expected: np.ndarray, got: np.ndarray, said: str) -> None:
    with np.errstate(all="ignore"):
        assert said in judge(expected, got)


def test_an_output_that_is_missing_is_named() -> None:
    one = Golden("m", {}, {"y": floats(1)}, Tolerance())
    with pytest.raises(ModelError, match="output 'y' is not there, only a, b"):
        one.judge({"a": floats(1), "b": floats(1)})
    one.judge({"y": floats(1), "more": floats(float("nan"))})


def pairs(
    root: Path, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
) -> list[Golden]:
    folder = install(root, linear())
    describe(folder, golden=[pair(folder, inputs, outputs)])
    return golden(Catalog(root).verified("m"))


def test_a_pair_is_read_and_judges(tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    (one,) = pairs(tmp_path, {"x": x}, {"y": 2 * x})
    one.judge({"y": 2 * x})
    with pytest.raises(ModelError, match=r"m/1@[0-9a-f]{12}: golden\[0\]: output 'y' element"):
        one.judge({"y": x})


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ({"z": floats(1, 2, 3, 4)}, {"y": floats(1, 2, 3, 4)}, "has z; the model has x"),
        ({"x": floats(1, 2)}, {"y": floats(1, 2, 3, 4)}, "'x' is FP32 [1, 2]; the model has"),
        ({"x": np.int64([[1, 2, 3, 4]])}, {"y": floats(1, 2, 3, 4)}, "'x' is INT64"),
        ({"x": floats(1, 2, 3, 4)}, {}, "has nothing; the model has y"),
    ],
)
def test_a_pair_that_is_not_the_models_is_refused(
    tmp_path: Path, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        pairs(tmp_path, inputs, outputs)
    assert said in str(caught.value)


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    head = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
OBJECT = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
NEGATIVE = "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }"
CODE = "__import__('os').system('false')"


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a stranger's code was run",))


HOSTILE = {
    "a bomb": (packed({"x.npy": bytes(ARRAYS_BYTES_MAX + 1)}), "bytes when unpacked"),
    "many": (packed({f"{i}.npy": b"" for i in range(300)}), "300 arrays"),
    "huge by its header": (packed({"x.npy": npy(HUGE, bytes(64))}), "and has 64 bytes"),
    "negative": (packed({"x.npy": npy(NEGATIVE)}), ""),
    "objects": (packed({"x.npy": npy(OBJECT, pickle.dumps([Evil()]))}), "plain numbers"),
    "code as a header": (packed({"x.npy": npy(CODE)}), "not a whole npz file"),
    "a pickle": (pickle.dumps(Evil()), "not a whole npz file"),
    "cut off": (packed({"x.npy": npy(HUGE)})[:-30], "not a whole npz file"),
    "nothing": (b"", "not a whole npz file"),
    "no array": (packed({"x.npy": b"hello"}), "not a whole npz file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused(kind: str) -> None:
    content, said = HOSTILE[kind]
    with pytest.raises(ModelError) as caught:
        arrays(content, "here")
    assert said in str(caught.value)
    assert str(caught.value).startswith("here: ")


def test_a_bomb_that_says_it_is_small_stays_small() -> None:
    content = bytearray(packed({"x.npy": bytes(1 << 20)}))
    size = struct.pack("<I", 1 << 20)
    content = content.replace(size, struct.pack("<I", 100))
    with pytest.raises(ModelError):
        arrays(bytes(content), "here")


def whole() -> bytes:
    content = io.BytesIO()
    np.savez(content, x=floats(1, 2, 3), y=np.array(["a", "bc"]), z=np.zeros((2, 0), np.int64))
    return content.getvalue()


WHOLE = whole()


def test_a_whole_file_is_read() -> None:
    found = arrays(WHOLE, "here")
    assert {name: array.shape for name, array in found.items()} == {
        "x": (1, 3),
        "y": (2,),
        "z": (2, 0),
    }


@settings(max_examples=200)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.integers(0, len(WHOLE)))
def test_a_damaged_file_is_read_or_refused(at: int, byte: int, end: int) -> None:
    content = bytearray(WHOLE)
    content[at] = byte
    for spoilt in (bytes(content), bytes(content[:end])):
        try:
            arrays(spoilt, "here")
        except ModelError as error:
            assert error.hint
