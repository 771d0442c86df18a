"""The envelope of a batch or a piece of a blob: a header that explains itself, then the content.

    4 bytes   magic and version, "HF1\\n"
    4 bytes   length of the header, big endian
    header    JSON
    content   as the header says

All that a receiver needs is inside, so that an MQTT 3.1.1 broker, a file or a stick carry it alike.
"""

import struct
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent.errors import ProtocolError

MAGIC = b"HF1\n"
HEADER_BYTES_MAX = 1 << 20
_LENGTH = struct.Struct("!I")

T = TypeVar("T")


def seal(header: Struct, content: bytes) -> bytes:
    """Header and content as one payload."""
    encoded = msgspec.json.encode(header)
    return b"".join([MAGIC, _LENGTH.pack(len(encoded)), encoded, content])


def unseal(payload: bytes, kind: type[T]) -> tuple[T, bytes]:
    """The header, as a `kind`, and the content. Raises ProtocolError."""
    start = len(MAGIC) + _LENGTH.size
    if len(payload) < start or payload[: len(MAGIC)] != MAGIC:
        raise ProtocolError("not an envelope: it does not begin with HF1", "check the sender")
    (size,) = _LENGTH.unpack_from(payload, len(MAGIC))
    if size > HEADER_BYTES_MAX or len(payload) < start + size:
        raise ProtocolError(f"the envelope's header of {size} bytes is not all there")
    try:
        header = msgspec.json.decode(payload[start : start + size], type=kind)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the envelope's header is wrong: {error}") from error
    return header, payload[start + size :]
