"""Tensors between their form on the wire and numpy, after the Open Inference Protocol v2.

Raw tensors are little-endian and row-major; BYTES are elements of any length, each behind its
length as uint32. JSON tensors are the elements in row-major order, flat or nested.

numpy knows no BF16, the upper half of an FP32: here its elements are two bytes of no other meaning
(`V2`), which is also how numpy's files keep them.
"""

import math
import re
import struct
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from agent.errors import RequestError
from agent.inference.wire import Tensor

BF16 = np.dtype("V2")
DTYPES: dict[str, DTypeLike] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": BF16,
    "BYTES": np.object_,
}
ORT_TYPES = {  # ONNX Runtime's names
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
AXES_MAX = 32
STEP_BYTES = 64 << 10  # of JSON, decoded within a millisecond or two
NO_LIST = bytes(set(range(256)) - set(b"[],"))  # all but what makes lists
UNEVEN = "its lists are not of one length"
OPENING = re.compile(rb"[\s\[]*")
_LENGTH = struct.Struct("<I")


def array(tensor: Tensor, body: memoryview) -> NDArray[Any]:
    """The tensor in `body`. Raises RequestError when it is not one of this dtype and shape."""
    if tensor.json:
        return _from_json(tensor, body)
    if tensor.dtype == "BYTES":
        return _strings(tensor, body)
    try:
        found = np.frombuffer(body, DTYPES[tensor.dtype]).reshape(tensor.shape)
        if tensor.dtype == "BOOL":  # any byte but 0 is true; numpy wants to see a 1
            return np.not_equal(found.view(np.uint8), 0)
    except ValueError as error:
        raise RequestError(
            f"input {tensor.name}: {len(body)} bytes are no {tensor.dtype} of shape {tensor.shape}",
            "send as many elements as the shape says",
        ) from error
    # ONNX Runtime takes it where it lies, and nobody says what it does with what lies askew.
    return found if found.flags.aligned else found.copy()


def content(found: NDArray[Any], *, as_json: bool) -> bytes | memoryview:
    """A tensor's bytes, raw or as a flat JSON list."""
    if as_json:
        if found.dtype == np.object_:
            return msgspec.json.encode([_text(one) for one in found.ravel()])
        plain = widened(found) if found.dtype == BF16 else found
        return msgspec.json.encode(plain.ravel().tolist())
    if found.dtype == np.object_:
        elements = [one if isinstance(one, bytes) else str(one).encode() for one in found.ravel()]
        return b"".join(_LENGTH.pack(len(one)) + one for one in elements)
    return np.ascontiguousarray(found).data.cast("B") if found.size else b""


def widened(found: NDArray[Any]) -> NDArray[np.float32]:
    """BF16 as FP32, which has a number for each of it."""
    bits = np.ascontiguousarray(found).view(np.uint16).astype(np.uint32)
    return (bits << 16).view(np.float32)


def finite(found: NDArray[Any]) -> bool:
    """Whether all that are numbers are some."""
    plain = widened(found) if found.dtype == BF16 else found
    return plain.dtype.kind != "f" or bool(np.isfinite(plain).all())


def _narrowed(found: NDArray[np.float32]) -> NDArray[Any]:
    """FP32 as the nearest BF16, of two the even one; what is finite may become infinite."""
    bits = found.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(BF16)


def _text(one: Any) -> str:
    return one.decode(errors="replace") if isinstance(one, bytes) else str(one)


def _from_json(tensor: Tensor, body: memoryview) -> NDArray[Any]:
    """Numbers for numbers, truth for truth: nothing is rounded or reinterpreted without a word."""
    try:
        found = _in_one(tensor, body) if len(body) <= STEP_BYTES else _in_steps(tensor, bytes(body))
        short = tensor.dtype == "BF16"
        if short and finite(found):
            found = _narrowed(found)
        if not finite(found):  # JSON has no infinity
            raise ValueError("a number is out of range")
        return found.reshape(tensor.shape)
    except (ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise RequestError(
            f"input {tensor.name}: its data is no {tensor.dtype} of shape {tensor.shape}: {error}",
            "send as many elements of that type as the shape says, flat or nested",
        ) from error


def _in_one(tensor: Tensor, body: memoryview) -> NDArray[Any]:
    """The elements in lists as they are nested. Raises ValueError, OverflowError, MsgspecError."""
    depth = _depth(body)
    found = _elements(tensor.dtype, _decoder(tensor.dtype, depth).decode(body))
    if found.ndim != depth:  # numpy makes such a list an element
        raise ValueError(UNEVEN)
    return found


def _in_steps(tensor: Tensor, text: bytes) -> NDArray[Any]:
    """As `_in_one`, but flat. Whoever decodes has the process to himself, and a list of lists takes
    fifty times its text: so the elements are counted first, and then decoded some at a time.
    """
    depth, wanted = _depth(text), math.prod(tensor.shape)
    lists = _without_strings(text) if tensor.dtype == "BYTES" else text
    count = lists.count(b",") + 1
    if count != wanted:
        raise ValueError(f"it has {count} elements")
    if not _even(lists.translate(None, NO_LIST), depth):
        raise ValueError(UNEVEN)
    letters = np.frombuffer(lists, np.uint8)
    brackets = (letters == ord("[")) | (letters == ord("]"))
    flat = np.where(brackets, np.uint8(ord(" ")), np.frombuffer(text, np.uint8)).tobytes()
    found = np.empty(wanted, np.float32 if tensor.dtype == "BF16" else DTYPES[tensor.dtype])
    at = begin = 0
    while begin < len(lists):
        end = lists.find(b",", begin + STEP_BYTES)
        end = end if end > 0 else len(lists)
        step = _elements(tensor.dtype, _decoder(tensor.dtype, 1).decode(b"[%b]" % flat[begin:end]))
        found[at : at + len(step)] = step
        at, begin = at + len(step), end + 1
    if at != wanted:  # nothing stood between two commas
        raise ValueError(UNEVEN)
    return found


def _depth(text: bytes | memoryview) -> int:
    """How many lists it begins with. Raises ValueError."""
    opening = OPENING.match(text)
    depth = opening[0].count(b"[") if opening else 0
    if depth > AXES_MAX:
        raise ValueError(f"it is nested {depth} deep")
    return depth


def _elements(dtype: str, elements: list[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # found by `finite`
        return np.array(elements, np.float32 if dtype == "BF16" else DTYPES[dtype])


def _without_strings(text: bytes) -> bytes:
    """JSON with something else in the place of each letter of its strings."""
    plain = text.replace(rb"\\", b"__").replace(rb"\"", b"__")
    letters = np.frombuffer(plain, np.uint8)
    inside = np.logical_xor.accumulate(letters == ord('"'))
    return np.where(inside, np.uint8(ord("_")), letters).tobytes()


def _even(lists: bytes, depth: int) -> bool:
    """Whether these brackets and commas are lists in lists, those of one depth of one length.

    They are if they are what follows from the first list of each depth, the innermost first.
    """
    one = b""
    for level in range(1, depth + 1):
        end = lists.find(b"]" * level) + level
        count, rest = divmod(end - (depth - level) - 1, len(one) + 1)
        if rest or count < 1:
            return False
        one = b"[%b]" % ((one + b",") * count)[:-1]
    return one == lists


@cache
def _decoder(dtype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Of lists in lists."""
    kind: Any = {"BOOL": bool, "BYTES": str, "BF16": float}.get(
        dtype, float if dtype[:2] == "FP" else int
    )
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _strings(tensor: Tensor, body: memoryview) -> NDArray[Any]:
    elements: list[str] = []
    at, wanted = 0, math.prod(tensor.shape)
    while at < len(body) and len(elements) <= wanted:  # one too many is enough to refuse it
        if at + _LENGTH.size > len(body):
            raise _cut(tensor)
        (size,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if at + size > len(body):
            raise _cut(tensor)
        try:
            elements.append(str(body[at : at + size], "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(f"input {tensor.name}: {error}", "send UTF-8") from error
        at += size
    try:
        return np.array(elements, np.object_).reshape(tensor.shape)
    except ValueError as error:
        raise RequestError(
            f"input {tensor.name}: its BYTES are not the {wanted} elements of shape {tensor.shape}",
            "send as many elements as the shape says",
        ) from error


def _cut(tensor: Tensor) -> RequestError:
    return RequestError(
        f"input {tensor.name}: its bytes end within an element",
        "send each element behind its length, a little-endian uint32",
    )
