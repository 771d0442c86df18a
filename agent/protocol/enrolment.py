"""What a device is enrolled with: one signed file from the office, over the network or by stick.

    {"enrolment": "{\"device\": ...}", "by": "hf1pub:...", "signature": "BASE64"}

The text is carried as it was when it was signed, as with commands. It holds nothing secret: the
device's key was made on the device and stays there.

Limits: ENROLMENT_BYTES_MAX of the whole file.
"""

import base64
import binascii
import hashlib
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import ProtocolError
from agent.forms import Broker, DeviceId, Prefix, PublicKey
from agent.protocol import signing
from agent.protocol.envelope import from_json

ENROLMENT_BYTES_MAX = 256 << 10
PURPOSE = b"holdfast enrolment 1\0"  # what its signature begins with


class Enrolment(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Who the device is from now on, and whom it believes.

    `certificate` and `authority` are PEM; `fleet_keys` sign acks on sticks, `command_keys` orders;
    `tuf_root` is the first root document of updates, as it is published. `issued` is UTC. What it
    does not say stays as it is.
    """

    device: DeviceId
    certificate: str
    authority: str
    issued: Annotated[datetime, Meta(tz=True)]
    broker_url: Broker | None = None
    topic_prefix: Prefix | None = None
    fleet_keys: list[PublicKey] = []
    command_keys: list[PublicKey] = []
    tuf_root: str = ""


class Sealed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An enrolment's text with the word of who gave it: `signature` is base64, by the owner of
    `by`, of the SHA-256 of `enrolment`."""

    enrolment: str
    by: PublicKey
    signature: str


def sign(enrolment: Enrolment, key: signing.Key) -> bytes:
    """The file."""
    text = msgspec.json.encode(enrolment)
    signature = base64.b64encode(key.sign(hashlib.sha256(text).digest(), PURPOSE)).decode()
    return msgspec.json.encode(Sealed(enrolment=text.decode(), by=key.public, signature=signature))


def decode(content: bytes) -> tuple[Enrolment, str]:
    """What the file says, and whose signature it carries; whether that is believed is the caller's
    to judge. Raises ProtocolError."""
    if len(content) > ENROLMENT_BYTES_MAX:
        raise ProtocolError(f"an enrolment of more than {ENROLMENT_BYTES_MAX} bytes")
    sealed = from_json(content, Sealed)
    text = sealed.enrolment.encode()
    try:
        signature = base64.b64decode(sealed.signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"the enrolment's signature: {error}") from error
    if not signing.is_signed(sealed.by, hashlib.sha256(text).digest(), signature, PURPOSE):
        raise ProtocolError(
            f"the enrolment is not signed by {sealed.by}", "have it written again in the office"
        )
    return from_json(text, Enrolment), sealed.by
