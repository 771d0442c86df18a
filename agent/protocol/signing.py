"""Ed25519 keys: who wrote a bundle, who vouches for a model.

Limits  : one key in a file; the public key is a line of 51 characters that may be read out.
Format  : the key file holds one line, `hf1key:` and the 32 bytes of the key in Base64, mode 0600. A
          public key is `hf1pub:` and its 32 bytes.
Recovery: a new key is in the file, and the file in its folder, before anybody sees the key; one
          that is not whole is told and never replaced.

`cryptography` is loaded by whoever signs or checks (6 MiB): most agents never do.
"""

import base64
import binascii
import os
import secrets
from pathlib import Path
from typing import Self

from agent.errors import ConfigError, ProtocolError

PRIVATE, PUBLIC = "hf1key:", "hf1pub:"
KEY_BYTES = 32
# What is signed begins with what it is, so that no signature is taken for another's.
BUNDLE, MODEL = b"holdfast bundle 1\0", b"holdfast model 1\0"


class Key:
    """A private key; `public` is what others know it by."""

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = PUBLIC + _text(self._key.public_key().public_bytes_raw())

    @classmethod
    def kept(cls, path: Path) -> Self:
        """The key in a file, which is made if it is not there. Raises ConfigError."""
        try:
            if not path.exists():
                _make(path)
            mode, line = path.stat().st_mode, path.read_text("ascii", "replace").strip()
        except OSError as error:
            raise ConfigError(
                f"{path}: the key cannot be kept there: {error.strerror or error}",
                "name a place this user may write to",
            ) from error
        if mode & 0o077:
            raise ConfigError(
                f"{path}: others may read the private key (mode {mode & 0o777:o})",
                f"chmod 600 {path}; if somebody may have read it, remove it: a new one is made",
            )
        secret = _bytes(line, PRIVATE)
        if secret is None:
            raise ConfigError(
                f"{path}: expected one line, {PRIVATE} and {KEY_BYTES} bytes in Base64",
                "restore it; or remove it, and make the new public key known",
            )
        return cls(secret)

    def sign(self, digest: bytes, purpose: bytes = BUNDLE) -> bytes:
        """The signature of a digest."""
        return self._key.sign(purpose + digest)


def is_signed(public: str, digest: bytes, signature: bytes, purpose: bytes = BUNDLE) -> bool:
    """Whether the owner of `public` signed a digest. Raises ProtocolError for what is no key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(_public(public)).verify(signature, purpose + digest)
    except InvalidSignature:
        return False
    return True


def public_key(text: str) -> str:
    """A public key as somebody typed it, in its one form. Raises ProtocolError."""
    return PUBLIC + _text(_public(text.strip()))


def _public(text: str) -> bytes:
    raw = _bytes(text, PUBLIC)
    if raw is None:
        raise ProtocolError(
            f"{text[:80]!r} is no public key; expected {PUBLIC} and {KEY_BYTES} bytes in Base64",
            "copy it from `holdfast bundle key` or `holdfast-fleet bundle key`",
        )
    return raw


def _make(path: Path) -> None:
    """A new key, whole or not at all; of two that are made at once the first one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{PRIVATE}{_text(secrets.token_bytes(KEY_BYTES))}\n")
            file.flush()
            os.fsync(file.fileno())
        _link(partial, path)
    finally:
        partial.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _link(partial: Path, path: Path) -> None:
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return  # somebody else was first


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: str, prefix: str) -> bytes | None:
    """The bytes behind a prefix; None for what is not in that form."""
    try:
        raw = base64.b64decode(text.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if text.startswith(prefix) and len(raw) == KEY_BYTES else None
