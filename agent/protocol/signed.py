"""JSON with the word of who gave it. Its text is carried as it was when it was signed, for nobody
writes JSON in the same way twice.

    {"signed": "{\"id\": ...}", "by": "hf1pub:...", "signature": "BASE64"}
    signature = Ed25519(key of `by`, purpose + SHA-256(signed))

The purpose says what it is, so that no signature is taken for another's.
"""

import base64
import binascii
import hashlib

import msgspec
from msgspec import Struct

from agent.errors import ProtocolError
from agent.forms import PublicKey
from agent.protocol import signing


class Signed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text with a signature (base64), by the owner of `by`, of its SHA-256."""

    signed: str
    by: PublicKey
    signature: str


def sign(text: bytes, key: signing.Key, purpose: bytes) -> bytes:
    """The text as signed JSON."""
    signature = base64.b64encode(key.sign(hashlib.sha256(text).digest(), purpose)).decode()
    return msgspec.json.encode(Signed(signed=text.decode(), by=key.public, signature=signature))


def check(signed: Signed, purpose: bytes) -> None:
    """The signature is right; whether its key is believed is the caller's to judge.

    Raises ProtocolError.
    """
    digest = hashlib.sha256(signed.signed.encode()).digest()
    try:
        signature = base64.b64decode(signed.signature, validate=True)
        right = signing.is_signed(signed.by, digest, signature, purpose)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"the signature: {error}") from error
    if not right:
        raise ProtocolError(f"the signature is not of this text by {signed.by}")
