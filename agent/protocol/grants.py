"""Blobs by HTTP PUT: the device asks, the cloud grants a URL that takes this one blob, or refuses.

An ask is a question about the present: "is it there, and if not, where does it go?" So it is asked
before the PUT and again after it, as often as anybody likes, and the answer `stored` says that the
cloud itself has seen the object in its store, whole. Neither side has to remember an ask. No
answer holds a time of day: `expires_s` counts from when it comes.
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import ProtocolError
from agent.protocol.envelope import from_json
from agent.records import SEQ_MAX
from agent.words import quoted

BYTES_MAX = 16 << 10  # of an ask or a grant; a URL with a session token takes some 2 KiB
HEADERS_MAX = 20
SIZE_BYTES_MAX = 5 << 30  # what an S3 store takes in one PUT
_OURS = {"host", "content-length", "transfer-encoding", "connection", "expect"}
_LEVEL = re.compile(r"[^/+#\x00-\x1f\x7f]{1,200}")  # one level of a topic, and of a key

Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits")]


class Ask(Struct, frozen=True, kw_only=True):
    """The device holds the blob of (epoch, stream, seq), of `size` bytes with this digest."""

    epoch: str
    stream: str
    seq: Seq
    size: Annotated[int, Meta(ge=1, le=SIZE_BYTES_MAX)]
    sha256: Sha256


class Grant(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to an ask, which it names by (epoch, stream, seq, sha256). One of three:

    `stored`: the object is there, with its size; nothing has to be sent. `url`: PUT it there with
    exactly these `headers`, beginning within `expires_s`. `refused`: why not; send it in pieces.
    """

    epoch: str
    stream: str
    seq: Seq
    sha256: Sha256
    stored: bool = False
    url: str = ""
    headers: dict[str, str] = {}
    expires_s: Annotated[float, Meta(ge=0, le=604_800)] = 0.0
    refused: str = ""


def encode(message: Ask | Grant) -> bytes:
    """An ask or a grant as JSON."""
    return msgspec.json.encode(message)


def decode_ask(payload: bytes) -> Ask:
    """JSON as an ask, its names fit for a key. Raises ProtocolError."""
    ask = from_json(_bounded(payload, "an ask"), Ask)
    for name in (ask.epoch, ask.stream):
        if not fits_key(name):
            raise ProtocolError(f"an ask for a blob of {name!r}, which is no name", "see Topics")
    return ask


def answers(grant: Grant, ask: Ask) -> bool:
    """Whether it is this ask's."""
    asked = (ask.epoch, ask.stream, ask.seq, ask.sha256)
    return (grant.epoch, grant.stream, grant.seq, grant.sha256) == asked


def fits_key(name: str) -> bool:
    """Whether a name can be one part of an object's key: no `/`, and no step up a path."""
    return bool(_LEVEL.fullmatch(name)) and name not in (".", "..")


def decode_grant(payload: bytes) -> Grant:
    """JSON as a grant; it sets few headers, and none that is HTTP's own. Raises ProtocolError."""
    grant = from_json(_bounded(payload, "a grant"), Grant)
    if [grant.stored, bool(grant.url), bool(grant.refused)].count(True) != 1:
        raise ProtocolError("a grant says one of stored, url and refused; this one does not")
    wrong = [name for name in grant.headers if name.lower() in _OURS or not name.isascii()]
    if wrong or len(grant.headers) > HEADERS_MAX:
        named = quoted(", ".join(wrong)) or "so many"
        raise ProtocolError(f"a grant must not set these headers: {named}")
    return grant


def _bounded(payload: bytes, what: str) -> bytes:
    if len(payload) > BYTES_MAX:
        raise ProtocolError(f"{what} of {len(payload)} bytes; expected {BYTES_MAX} at most")
    return payload
