"""A piece of a record's blob: raw bytes with the place they belong to."""

import hashlib

from msgspec import Struct

from agent.errors import ProtocolError
from agent.protocol import envelope


class Header(Struct, frozen=True, kw_only=True):
    """Bytes [start, start + length of the content) of the blob of (device, epoch, stream, seq).

    `size` is the whole blob's; `digest` is the sha256 of this piece. Pieces may come twice, in any
    order, and cut in other places than before.
    """

    device: str
    epoch: str
    stream: str
    seq: int
    start: int
    size: int
    digest: str
    content: str = "application/octet-stream"


def encode(
    device: str, epoch: str, stream: str, seq: int, start: int, size: int, data: bytes
) -> bytes:
    """One piece as a payload."""
    digest = hashlib.sha256(data).hexdigest()
    header = Header(
        device=device,
        epoch=epoch,
        stream=stream,
        seq=seq,
        start=start,
        size=size,
        digest=digest,
    )
    return envelope.seal(header, data)


def decode(payload: bytes) -> tuple[Header, bytes]:
    """A payload as header and bytes, place and digest checked. Raises ProtocolError."""
    header, data = envelope.unseal(payload, Header)
    if header.start < 0 or not data or header.start + len(data) > header.size:
        raise ProtocolError("the piece does not lie within its blob")
    if hashlib.sha256(data).hexdigest() != header.digest:
        raise ProtocolError("the piece's content is not what its header says")
    return header, data
