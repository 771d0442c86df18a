"""Keys that sign the repository's metadata: Ed25519, each in a file of its own.

Limits  : one key in a file; a folder may hold the keys of several roles, and the keys of one may
          lie in several folders: those of root and targets belong on a stick that is put away.
Format  : NAME.pem, PKCS #8 without a passphrase, mode 0600. A public key is the JSON that the root
          holds of it. Which key is whose says the root alone.
Recovery: a key is on the disk before anybody sees its public half; a file that is there is never
          replaced. No private key is ever printed.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key

from agent.errors import ConfigError, NotNow, RequestError

SUFFIX = ".pem"
Signers = dict[str, CryptoSigner]  # by key id


def make(folder: Path, name: str) -> CryptoSigner:
    """A new key, in NAME.pem of that folder. Raises NotNow where there is one, ConfigError."""
    path = folder / f"{name}{SUFFIX}"
    private = Ed25519PrivateKey.generate()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        inside = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(inside)
        finally:
            os.close(inside)
    except FileExistsError as error:
        raise NotNow(
            f"{path}: there is a key already", "give another name; a key is never overwritten"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: the key cannot be kept there: {error.strerror}",
            "name a folder that this user may write to with --keys",
        ) from error
    return CryptoSigner(private)


def kept(folder: Path, name: str) -> CryptoSigner:
    """The key in NAME.pem, made if there is none: what a broken-off beginning left is used."""
    path = folder / f"{name}{SUFFIX}"
    return _read(path) if path.exists() else make(folder, name)


def found(folders: Iterable[Path]) -> Signers:
    """All keys in these folders. Raises ConfigError for a file that is none, or that others read.

    A folder that is not there has none: the stick is not plugged in.
    """
    signers = [_read(path) for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}"))]
    return {signer.public_key.keyid: signer for signer in signers}


def _read(path: Path) -> CryptoSigner:
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "check the folder of --keys") from error
    if mode & 0o077:
        raise ConfigError(
            f"{path}: others may read the private key (mode {mode & 0o777:o})",
            f"chmod 600 {path}; if somebody may have read it, rotate the role that it signs",
        )
    try:
        private = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path}: no private key in PEM without a passphrase", "restore it, or take it away"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{path}: no Ed25519 key", "take it out of the folder of --keys")
    return CryptoSigner(private)


def shown(key: Key) -> dict[str, Any]:
    """A public key as people hand it on."""
    return {"keyid": key.keyid, **key.to_dict()}


def public(path: Path) -> Key:
    """A public key that `holdfast-fleet updates key` has printed, from a file. Raises RequestError.

    Its id is computed, not believed.
    """
    hint = "have it written there: holdfast-fleet updates key NAME --json > FILE"
    try:
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        told.pop("keyid", None)
        raw = bytes.fromhex(told["keyval"]["public"])
        if told.get("scheme") != "ed25519" or len(raw) != 32:
            raise RequestError(f"{path}: no Ed25519 key", hint)
    except (OSError, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        raise RequestError(f"{path}: holds no public key: {error}", hint) from error
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from securesystemslib.signer import SSlibKey

    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw))
