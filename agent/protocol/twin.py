"""The twin: what the cloud wants of a device, and what the device says it is.

    twin/desired   retained, from the cloud    {"version": 7, "state": {"models": {"denoise": 3}}}
    twin/reported  retained, from the device   {"version": 41, "desired_version": 7, "state": {...}}

`state` is by aspect; docs/twin.md says which there are. What the cloud says nothing of, it leaves
to the device. A desired document may be signed as a command is, with a purpose of its own.

Limits: TWIN_BYTES_MAX of a document.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import ProtocolError
from agent.forms import DeviceId
from agent.protocol import signed, signing
from agent.protocol.envelope import from_json
from agent.protocol.signed import Signed

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
    return signed.sign(msgspec.json.encode(desired), key, TWIN)


def decode(payload: bytes) -> Wanted:
    """JSON as a desired document, its signature checked if it has one. Raises ProtocolError."""
    if len(payload) > TWIN_BYTES_MAX:
        raise ProtocolError(f"a twin of {len(payload)} bytes; expected {TWIN_BYTES_MAX} at most")
    shallow = from_json(payload, dict)
    if "signed" not in shallow:
        return Wanted(from_json(payload, Desired))
    given = from_json(payload, Signed)
    signed.check(given, TWIN)
    return Wanted(from_json(given.signed.encode(), Desired), given.by)
