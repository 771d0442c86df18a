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
    opening = OPENING.match(body)
    depth = opening[0].count(b"[") if opening else 0
    short = tensor.dtype == "BF16"
    try:
        if depth > AXES_MAX:
            raise ValueError(f"it is nested {depth} deep")
        elements = _decoder(tensor.dtype, depth).decode(body)
        with np.errstate(over="ignore"):  # found below
            found = np.array(elements, np.float32 if short else DTYPES[tensor.dtype])
        if found.ndim != depth:  # numpy makes such a list an element
            raise ValueError("its lists are not of one length")
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
