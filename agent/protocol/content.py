"""Content of the fleet, for devices: what is signed with a target, and its way over MQTT.

A repository is a folder of files (docs/updates.md). A device that reaches no HTTP server asks for
stretches of a file at `content-ask`, and the controller answers with pieces at `content`, an
envelope each. An ask is a question about the present: neither side remembers one, a piece that was
lost is asked for again, and one that comes twice is one. Nothing here is trusted: signatures and
digests are judged on the device, whatever way the bytes came.

Limits  : ASK_BYTES_MAX of an ask; a piece has as many bytes as the ask allows, and the broker.
"""

import hashlib
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import ProtocolError
from agent.forms import BYTES_MAX, PAYLOAD_BYTES_MAX, Tag
from agent.protocol import envelope
from agent.protocol.envelope import from_json

ASK_BYTES_MAX = 4 << 10
SPAN_BYTES_MAX = 64 << 20  # of one ask
PIECE_BYTES_MIN, PIECE_BYTES_MAX = 1024, PAYLOAD_BYTES_MAX
REFUSED_CHARS_MAX = 500
METADATA, TARGETS = "metadata", "targets"  # the folders of a repository
_NAME = r"[A-Za-z0-9_%+=~,-][A-Za-z0-9._%+=~,-]{0,199}"
_PATH = re.compile(rf"({METADATA}|{TARGETS})(/{_NAME}){{1,8}}")
TARGET = re.compile(rf"{_NAME}(/{_NAME}){{0,6}}")  # the path of a target in the signed metadata

Kind = Literal["model", "agent", "file"]
Path = Annotated[str, Meta(pattern=rf"^{_PATH.pattern}$", max_length=1000)]


class About(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is signed with a target beside its length and digests, as TUF's `custom`.

    `version` is a whole number for a model, as its folder has it. `min_free_bytes` is what must be
    free on the device's disk beside the file itself, to install it. With `tags` it is for those
    devices alone that have one of them, or one of them as their id.
    """

    kind: Kind
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
    version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+!-]{0,63}$")]
    min_free_bytes: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 0
    tags: Annotated[list[Tag], Meta(max_length=64)] = []


class Ask(Struct, frozen=True, kw_only=True):
    """Bytes [start, start + span_bytes) of a file of the repository, in pieces of that many at
    most."""

    path: Path
    start: Annotated[int, Meta(ge=0, le=BYTES_MAX)]
    span_bytes: Annotated[int, Meta(ge=1, le=SPAN_BYTES_MAX)]
    piece_bytes_max: Annotated[int, Meta(ge=PIECE_BYTES_MIN, le=PIECE_BYTES_MAX)]


class Header(Struct, frozen=True, kw_only=True):
    """Bytes [start, start + length of the content) of a file that has `size` of them; `digest` is
    the piece's own SHA-256, against damage on the way. `absent`: there is no such file; `refused`:
    why nothing comes. Of these two there is no content."""

    path: Path
    start: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 0
    size: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 0
    digest: str
    absent: bool = False
    refused: Annotated[str, Meta(max_length=REFUSED_CHARS_MAX)] = ""
    content: str = "application/octet-stream"


def encode_ask(ask: Ask) -> bytes:
    """An ask as JSON."""
    return msgspec.json.encode(ask)


def decode_ask(payload: bytes) -> Ask:
    """JSON as an ask, whose path leads to no place but a repository's. Raises ProtocolError."""
    if len(payload) > ASK_BYTES_MAX:
        raise ProtocolError(f"an ask of {len(payload)} bytes; expected {ASK_BYTES_MAX} at most")
    return from_json(payload, Ask)


def encode(path: str, start: int, size: int, data: bytes) -> bytes:
    """One piece as a payload."""
    digest = hashlib.sha256(data).hexdigest()
    return envelope.seal(Header(path=path, start=start, size=size, digest=digest), data)


def encode_none(path: str, refused: str = "") -> bytes:
    """That nothing comes: there is no such file, or why not."""
    header = Header(
        path=path,
        digest=hashlib.sha256(b"").hexdigest(),
        absent=not refused,
        refused=refused[:REFUSED_CHARS_MAX],
    )
    return envelope.seal(header, b"")


def decode(payload: bytes) -> tuple[Header, bytes]:
    """A payload as header and bytes, place and digest checked. Raises ProtocolError."""
    header, data = envelope.unseal(payload, Header)
    if header.absent or header.refused:
        return header, b""
    if header.start + len(data) > header.size:
        raise ProtocolError("the piece does not lie within its file")
    if hashlib.sha256(data).hexdigest() != header.digest:
        raise ProtocolError("the piece's content is not what its header says")
    return header, data
