"""The twin: what the cloud wants of a device, and what the device says it is.

    twin/desired   retained, from the cloud    {"version": 7, "state": {"models": {"denoise": 3}}}
    twin/reported  retained, from the device   {"version": 41, "desired_version": 7, "state": {...}}

`state` is by aspect; docs/twin.md says which there are. What the cloud says nothing of, it leaves
to the device. A desired document may be signed as a command is, with a purpose of its own.

Limits: TWIN_BYTES_MAX of a document.
"""

import base64
import binascii
import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import ProtocolError
from agent.forms import DeviceId
from agent.protocol import signing
from agent.protocol.commands import Signed
from agent.protocol.envelope import from_json

TWIN_BYTES_MAX = 256 << 10
TWIN = b"holdfast twin 1\0"  # what a desired document's signature begins with
Version = Annotated[int, Meta(ge=0, le=2**53)]
Standing = Literal["converged", "converging", "failed", "conflict", "unknown"]


class Desired(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wanted; a higher `version` takes the place of a lower one, whatever comes first.

    `device` binds it to one device; a signed one must say so. `enforce` are the aspects in which a
    change made on the device itself is undone.
    """

    version: Version
    state: dict[str, Any] = {}
    device: DeviceId | None = None
    enforce: list[str] = []


class AspectShown(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an aspect is, and how that stands to what is wanted.

    `converging`: a command is under way (`command`). `failed`: it ended otherwise, and `cause` says
    how. `conflict`: it was as wanted, and was changed on the device since. `unknown`: this device
    has no such aspect. Without `standing` nothing is wanted of it.
    """

    actual: Any = None
    standing: Standing | None = None
    command: str = ""
    cause: str = ""


class Reported(Struct, frozen=True, kw_only=True):
    """What the device says; `version` grows with each change, over restarts too."""

    device: str
    version: int
    desired_version: int
    holdfast: str
    state: dict[str, AspectShown]


class Wanted(Struct, frozen=True):
    """A desired document as it was read; `by` is whose signature it carries."""

    desired: Desired
    by: str = ""


def sign(desired: Desired, key: signing.Key) -> bytes:
    """The document as signed JSON."""
    text = msgspec.json.encode(desired)
    signature = base64.b64encode(key.sign(hashlib.sha256(text).digest(), TWIN)).decode()
    made = Signed(signed=text.decode(), by=key.public, signature=signature)
    return msgspec.json.encode(made)


def decode(payload: bytes) -> Wanted:
    """JSON as a desired document, its signature checked if it has one. Raises ProtocolError."""
    if len(payload) > TWIN_BYTES_MAX:
        raise ProtocolError(f"a twin of {len(payload)} bytes; expected {TWIN_BYTES_MAX} at most")
    shallow = from_json(payload, dict)
    if "signed" not in shallow:
        return Wanted(from_json(payload, Desired))
    signed = from_json(payload, Signed)
    text = signed.signed.encode()
    try:
        signature = base64.b64decode(signed.signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"the signature: {error}") from error
    if not signing.is_signed(signed.by, hashlib.sha256(text).digest(), signature, TWIN):
        raise ProtocolError(f"the signature is not of this document by {signed.by}")
    return Wanted(from_json(text, Desired), signed.by)
