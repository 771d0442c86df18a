"""Tensors in parts: put together again they are what was split."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import RequestError, StoreDamaged
from agent.store import tensors
from agent.store.tensors import Tensor, pack, spans, split, unpack

KINDS = {"FP32": "<f4", "INT64": "<i8", "UINT8": "<u1", "FP16": "<f2", "BOOL": "?"}


def texts(name: str, shape: list[int], found: list[bytes]) -> Tensor:
    data = b"".join(len(one).to_bytes(4, "little") + one for one in found)
    return Tensor(name, "BYTES", shape, memoryview(data))


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 20), st.integers(1, 25))
def test_the_parts_are_the_whole(data: st.DataObject, rows: int, rows_max: int) -> None:
    row_shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    kind = data.draw(st.sampled_from(list(KINDS)))
    numbers = np.arange(rows * int(np.prod(row_shape))).astype(KINDS[kind])
    words = [bytes([65 + n % 26]) * (n % 5) for n in range(rows * 2)]
    inputs = [
        Tensor("x", kind, [rows, *row_shape], memoryview(numbers.tobytes())),
        texts("t", [rows, 2], words),
    ]
    parts = split(inputs, rows_max)
    assert [part.rows for part in parts] == [
        min(rows_max, rows - start) for start in range(0, rows, rows_max)
    ]
    found = [unpack(part.content) for part in parts]
    assert b"".join(one[0].data for one in found) == numbers.tobytes()
    assert [bytes(e) for one in found for e in spans(one[1])] == words
    assert all(
        one[0].shape == [part.rows, *row_shape] for one, part in zip(found, parts, strict=True)
    )


def test_what_belongs_together_stays_together() -> None:
    one = Tensor("x", "FP32", [], memoryview(bytes(4)))
    (part,) = split([one], None)
    assert (part.rows, unpack(part.content)) == (1, [one])


def numbers(shape: list[int], size: int, dtype: str = "FP32", name: str = "x") -> Tensor:
    return Tensor(name, dtype, shape, memoryview(bytes(size)))


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ([], "none"),
        ([numbers([2, 2], 15)], "is 16 bytes, found 15"),
        ([numbers([2], 8, "FP8")], "unknown datatype 'FP8'"),
        ([numbers([-1, 2], 8)], "below 0"),
        ([numbers([2], 8), numbers([3], 12, name="y")], "x: 2, y: 3"),
        ([numbers([0], 0)], "differ or are empty"),
        ([numbers([4096, 0], 0)], r"hold nothing \(x \[4096, 0\]\)"),
        ([texts("t", [40, 3, 0], []), numbers([40, 0], 0)], "hold nothing"),
        ([numbers([], 4)], "differ or are empty"),
        ([texts("t", [2], [b"a"])], "2 elements, found 1"),
        ([Tensor("t", "BYTES", [1], memoryview(b"\x05\0\0\0ab"))], "ends behind its data"),
        ([Tensor("t", "BYTES", [1], memoryview(b"\x05\0"))], "ends behind its data"),
        ([numbers([2, 5_000_000], 40_000_000)], "at most 16777216"),
        ([numbers([100_000], 400_000)], "more than 4096 chunks"),
    ],
)
def test_what_is_no_job_is_told_why(inputs: list[Tensor], word: str) -> None:
    with pytest.raises(RequestError, match=word) as error:
        split(inputs, 20)
    assert error.value.hint


def test_a_chunk_that_is_no_chunk() -> None:
    with pytest.raises(StoreDamaged):
        unpack(pack([numbers([1], 4)])[:-1])
    assert tensors.CHUNKS_MAX == 4096


def test_strings_are_counted_without_being_taken_apart() -> None:
    """One of them takes four bytes, and what stands for one fifty times that."""
    many = Tensor("t", "BYTES", [100_000], memoryview(bytes(400_000)))
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="100000 rows"):
            split([many], 1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
