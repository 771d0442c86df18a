"""Tensors as a job keeps them: in chunks along their first axis.

Limits  : a chunk has CHUNK_BYTES_MAX bytes, a job CHUNKS_MAX chunks.
Format  : a chunk is a MessagePack array of [name, dtype, shape, data], a tensor each; dtypes are
          the names of the Open Inference Protocol v2, data is as in its binary extension:
          little-endian, the last axis fastest, before each element of BYTES its length in 4 bytes.
Recovery: pure functions; what cannot be read back raises StoreDamaged.
"""

import math
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from agent.errors import RequestError, StoreDamaged

CHUNK_BYTES_MAX = 16 << 20
CHUNKS_MAX = 4096
WIDTHS = {  # bytes of an element
    **{"BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2},
    **{"INT32": 4, "INT64": 8, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8},
}
BYTES = "BYTES"
_LENGTH_BYTES = 4


class Tensor(Struct, frozen=True, array_like=True):
    """Named numbers, or byte strings, in a shape."""

    name: str
    dtype: str
    shape: list[int]
    data: memoryview


class Part(Struct, frozen=True):
    """So many rows of a job's input, packed."""

    rows: int
    content: bytes


def pack(tensors: Sequence[Tensor]) -> bytes:
    """Tensors as bytes."""
    return msgspec.msgpack.encode(tensors)


def unpack(content: bytes) -> list[Tensor]:
    """The tensors again. Raises StoreDamaged."""
    try:
        return msgspec.msgpack.decode(content, type=list[Tensor])
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"a chunk of a job is not what was written: {error}") from error


def split(inputs: Sequence[Tensor], rows_max: int | None) -> list[Part]:
    """Inputs as parts of at most so many rows of the first axis; None: they stay together.

    Raises RequestError where they cannot be split so.
    """
    for one in inputs:
        _check(one)
    if rows_max is None:
        return [_part(1, inputs)]
    rows = rows_of(inputs)
    _check_rows(inputs)
    if rows > rows_max * CHUNKS_MAX:
        raise RequestError(
            f"inputs: {rows} rows, {rows_max} at a time, are more than {CHUNKS_MAX} chunks",
            f"submit {rows_max * CHUNKS_MAX} rows at most in a job",
        )
    cut = [_cut(one, rows_max) for one in inputs]
    counts = [min(rows_max, rows - start) for start in range(0, rows, rows_max)]
    return [_part(count, [next(one) for one in cut]) for count in counts]


def spans(one: Tensor) -> Iterator[memoryview]:
    """The elements of a tensor of BYTES, one by one. Raises RequestError."""
    found, at, data = 0, 0, one.data
    while at < len(data):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(data[begin - _LENGTH_BYTES : begin], "little")
        if at > len(data) or begin > len(data):
            raise RequestError(
                f"input {one.name!r}: element {found} ends behind its data",
                "put the length of each element before it, in 4 bytes, little-endian",
            )
        found += 1
        yield data[begin:at]


def _check(one: Tensor) -> None:
    """Raises RequestError when data and shape do not agree."""
    if one.dtype != BYTES and one.dtype not in WIDTHS:
        raise RequestError(
            f"input {one.name!r}: unknown datatype {one.dtype!r}",
            f"known: {', '.join([*WIDTHS, BYTES])}",
        )
    if any(size < 0 for size in one.shape):
        raise RequestError(
            f"input {one.name!r}: the shape {one.shape} has an axis below 0",
            "give the shape that the data has",
        )
    count = math.prod(one.shape)
    if one.dtype == BYTES:
        found, wanted, unit = sum(1 for _ in spans(one)), count, "elements"
    else:
        found, wanted, unit = len(one.data), count * WIDTHS[one.dtype], "bytes"
    if found != wanted:
        raise RequestError(
            f"input {one.name!r}: {one.dtype} of shape {one.shape} is {wanted} {unit}, "
            f"found {found}",
            "send as much data as the shape says",
        )


def rows_of(inputs: Sequence[Tensor]) -> int:
    """The length of the first axis, of all inputs alike. Raises RequestError."""
    if not inputs:
        raise RequestError("inputs: none", "send the model's inputs, one or more")
    found = {one.name: one.shape[0] if one.shape else 0 for one in inputs}
    rows = next(iter(found.values()))
    if rows < 1 or set(found.values()) != {rows}:
        said = ", ".join(f"{name}: {count}" for name, count in found.items())
        raise RequestError(
            f"inputs: their first axes, the rows of the job, differ or are empty ({said})",
            "give all inputs the same number of rows, one at least",
        )
    return rows


def _check_rows(inputs: Sequence[Tensor]) -> None:
    """Raises RequestError for rows that hold nothing: they cost nobody a byte, and us a chunk."""
    if all(0 in one.shape for one in inputs):
        said = ", ".join(f"{one.name} {one.shape}" for one in inputs)
        raise RequestError(
            f"inputs: each has an axis of 0, so their rows hold nothing ({said})",
            "send rows that hold something",
        )


def _cut(one: Tensor, rows_max: int) -> Iterator[Tensor]:
    rows, row_shape = one.shape[0], one.shape[1:]
    ends = _row_ends(one)
    for start in range(0, rows, rows_max):
        end = min(start + rows_max, rows)
        data = one.data[ends[start] : ends[end]]
        yield Tensor(one.name, one.dtype, [end - start, *row_shape], data)


def _row_ends(one: Tensor) -> Sequence[int]:
    """Where in its data row n begins, and after the last one where that ends."""
    rows, row_elements = one.shape[0], math.prod(one.shape[1:])
    if one.dtype != BYTES:
        width = row_elements * WIDTHS[one.dtype]
        return range(0, (rows + 1) * width, width) if width else [0] * (rows + 1)
    ends, at = [0], 0
    for number, element in enumerate(spans(one), 1):
        at += _LENGTH_BYTES + len(element)
        if number % row_elements == 0:
            ends.append(at)
    return ends if row_elements else [0] * (rows + 1)


def _part(rows: int, tensors: Sequence[Tensor]) -> Part:
    content = pack(tensors)
    if len(content) > CHUNK_BYTES_MAX:
        raise RequestError(
            f"inputs: {rows} rows, which go to the model together, take {len(content)} bytes; "
            f"at most {CHUNK_BYTES_MAX} are taken",
            "send smaller rows",
        )
    return Part(rows, content)
