"""The envelope of a batch or a piece of a blob: a header that explains itself, then the content.

    4 bytes   magic and version, "HF1\\n"
    4 bytes   length of the header, big endian
    4 bytes   CRC-32 of the header, big endian
    header    JSON
    content   as the header says; what guards it is in the header, or in the record

All that a receiver needs is inside, so that an MQTT 3.1.1 broker, a file or a stick carry it alike.
"""

import struct
import zlib
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent.errors import ProtocolError

MAGIC = b"HF1\n"
HEADER_BYTES_MAX = 1 << 20
_PREFIX = struct.Struct("!4sII")

T = TypeVar("T")


def seal(header: Struct, content: bytes) -> bytes:
    """Header and content as one payload."""
    encoded = msgspec.json.encode(header)
    return _PREFIX.pack(MAGIC, len(encoded), zlib.crc32(encoded)) + encoded + content


def unseal(payload: bytes, kind: type[T]) -> tuple[T, bytes]:
    """The header, as a `kind`, and the content. Raises ProtocolError."""
    if len(payload) < _PREFIX.size or payload[: len(MAGIC)] != MAGIC:
        raise ProtocolError("not an envelope: it does not begin with HF1", "check the sender")
    _, size, crc = _PREFIX.unpack_from(payload)
    end = _PREFIX.size + size
    if size > HEADER_BYTES_MAX or len(payload) < end:
        raise ProtocolError(f"the envelope's header of {size} bytes is not all there")
    encoded = payload[_PREFIX.size : end]
    if zlib.crc32(encoded) != crc:
        raise ProtocolError("the envelope's header is damaged")
    return from_json(encoded, kind), payload[end:]


def from_json(encoded: bytes, kind: type[T]) -> T:
    """JSON from the other side as a `kind`. Raises ProtocolError."""
    try:
        return msgspec.json.decode(encoded, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from error
