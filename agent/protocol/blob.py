"""A piece of a record's blob: raw bytes with the place they belong to."""

from msgspec import Struct

from agent.protocol import envelope


class Header(Struct, frozen=True, kw_only=True):
    """Bytes [start, start + length of the content) of the blob of (device, epoch, stream, seq).

    `size` is the whole blob's. Pieces may come twice and in any order; the record says the digest.
    """

    device: str
    epoch: str
    stream: str
    seq: int
    start: int
    size: int
    content: str = "application/octet-stream"


def encode(header: Header, data: bytes) -> bytes:
    """One piece as a payload."""
    return envelope.seal(header, data)


def decode(payload: bytes) -> tuple[Header, bytes]:
    """A payload as header and bytes. Raises ProtocolError."""
    return envelope.unseal(payload, Header)
