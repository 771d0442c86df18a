"""The payload of Sparkplug B: as many fields of Tahu's `Payload` and `Metric` as are used here.

Limits  : of what comes, PAYLOAD_BYTES_MAX and METRICS_MAX. Data sets, templates and extensions are
          values that nobody reads here; groups, which proto2 has, are refused.
Format  : Protocol Buffers (https://protobuf.dev/programming-guides/encoding); the numbers of the
          fields are those of sparkplug_b.proto (Eclipse Tahu), its types those of Sparkplug 3.0.
          Signed integers are two's complement, in 32 or 64 bits, in unsigned fields.
"""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from msgspec import Struct

from agent.errors import ProtocolError

PAYLOAD_BYTES_MAX = 8192  # taken apart in the event loop: in 20 ms at worst
METRICS_MAX = 100
VARINT_BYTES_MAX, KEY_BYTES_MAX = 10, 5
Value = bool | int | float | str | bytes


class Kind(IntEnum):
    """How a field is laid down."""

    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5


WIDTHS: dict[int, int] = {Kind.FIXED64: 8, Kind.FIXED32: 4}


class DataType(IntEnum):
    """What a metric's value is; those that are used here."""

    INT32 = 3
    INT64 = 4
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12


class Metric(Struct, frozen=True):
    """What came of a metric. `value` is bytes where it is of a kind that is not read here."""

    name: str | None = None
    alias: int | None = None
    value: Value | None = None


class Payload(Struct, frozen=True):
    """What came; `timestamp_ms` since 1970, UTC."""

    timestamp_ms: int | None = None
    seq: int | None = None
    metrics: tuple[Metric, ...] = ()


def metric(
    datatype: DataType,
    value: Value | None,
    timestamp_ms: int,
    *,
    name: str | None = None,
    alias: int | None = None,
) -> bytes:
    """A metric to be sent: with a `name` as it is born, with its type; else as data, by its alias.

    Without a value it is null.
    """
    made = b""
    if name is not None:
        made += _field(1, name.encode())
    if alias is not None:
        made += _field(2, alias)
    made += _field(3, timestamp_ms)
    if name is not None:
        made += _field(4, datatype)
    return made + (_field(7, 1) if value is None else _value(datatype, value))


def payload(timestamp_ms: int, metrics: Iterable[bytes], seq: int | None = None) -> bytes:
    """Metrics as one message."""
    made = _field(1, timestamp_ms) + b"".join(_field(2, one) for one in metrics)
    return made if seq is None else made + _field(3, seq)


def decode(content: bytes) -> Payload:
    """What was received. Raises ProtocolError."""
    if len(content) > PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            f"a payload of {len(content)} bytes; expected {PAYLOAD_BYTES_MAX} at most"
        )
    timestamp_ms = seq = None
    metrics = list[Metric]()
    for one in _fields(content):
        match one.number, one.kind:
            case 1, Kind.VARINT:
                timestamp_ms = one.varint
            case 2, Kind.LENGTH:
                if len(metrics) == METRICS_MAX:
                    raise ProtocolError(f"a payload of more than {METRICS_MAX} metrics")
                metrics.append(_metric(one.content))
            case 3, Kind.VARINT:
                seq = one.varint
    return Payload(timestamp_ms, seq, tuple(metrics))


def _metric(content: bytes) -> Metric:
    name: str | None = None
    alias: int | None = None
    value: Value | None = None
    null = False
    for one in _fields(content):
        match one.number, one.kind:
            case 1, Kind.LENGTH:
                name = _text(one.content)
            case 2, Kind.VARINT:
                alias = one.varint
            case 7, Kind.VARINT:
                null = bool(one.varint)
            case _ if (read := _read(one)) is not None:
                value = read  # of several the last one counts
    return Metric(name, alias, None if null else value)


def _read(one: "Field") -> Value | None:
    """A metric's value; None: the field is another one."""
    match one.number, one.kind:
        case 10, Kind.VARINT:
            return one.varint & 0xFFFFFFFF
        case 11, Kind.VARINT:
            return one.varint
        case 12, Kind.FIXED32:
            return float(struct.unpack("<f", one.content)[0])
        case 13, Kind.FIXED64:
            return float(struct.unpack("<d", one.content)[0])
        case 14, Kind.VARINT:
            return bool(one.varint)
        case 15, Kind.LENGTH:
            return _text(one.content)
        case 16 | 17 | 18 | 19, Kind.LENGTH:
            return one.content
    return None


def _value(datatype: DataType, value: Value) -> bytes:
    if isinstance(value, str):
        return _field(15, value.encode())
    if isinstance(value, bytes):
        return _field(16, value)
    if datatype is DataType.BOOLEAN:
        return _field(14, int(value))
    if datatype is DataType.DOUBLE:
        return _varint(13 << 3 | Kind.FIXED64) + struct.pack("<d", value)
    if datatype is DataType.INT32:
        return _field(10, int(value) & 0xFFFFFFFF)
    return _field(11, int(value) & 0xFFFFFFFFFFFFFFFF)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | Kind.VARINT) + _varint(value)
    return _varint(number << 3 | Kind.LENGTH) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


class Field(NamedTuple):
    """One field as it lies there: a varint's value, or its bytes."""

    number: int
    kind: int
    varint: int = 0
    content: bytes = b""


def _fields(content: bytes) -> Iterator[Field]:
    at, end = 0, len(content)
    while at < end:
        key, at = _read_varint(content, at, KEY_BYTES_MAX)
        number, kind = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise ProtocolError(f"byte {at}: no field has the number {number}")
        if kind == Kind.VARINT:
            value, at = _read_varint(content, at, VARINT_BYTES_MAX)
            yield Field(number, kind, value & 0xFFFFFFFFFFFFFFFF)
            continue
        if kind == Kind.LENGTH:
            width, at = _read_varint(content, at, KEY_BYTES_MAX)
        elif kind in WIDTHS:
            width = WIDTHS[kind]
        else:
            raise ProtocolError(f"byte {at}: a field of kind {kind}, which is not read here")
        if width > end - at:
            raise ProtocolError(f"byte {at}: {width} bytes are to follow, there are {end - at}")
        yield Field(number, kind, content=content[at : at + width])
        at += width


def _read_varint(content: bytes, at: int, bytes_max: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = 0
    for index, byte in enumerate(content[at : at + bytes_max]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise ProtocolError(f"byte {at}: a number that does not end")


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a text that is not UTF-8: {error.reason}") from error
