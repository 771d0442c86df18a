"""Files on a stick: read once, decrypted on the way; and written whole or not at all."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyrage

from agent.errors import BundleError, ConfigError
from agent.protocol import bundle

COPY_BYTES = 1 << 20


def copied(path: Path, copy: BinaryIO, identities: Sequence[Any]) -> None:
    """Copy a file, decrypted if it is encrypted. Raises BundleError."""
    try:
        with path.open("rb") as file:
            encrypted = file.read(len(bundle.AGE_MAGIC)) == bundle.AGE_MAGIC
            file.seek(0)
            if encrypted and identities:
                _decrypt(file, copy, identities)
            else:  # without an identity, `verify` says what is wanted
                while step := file.read(COPY_BYTES):
                    copy.write(step)
    except OSError as error:
        raise BundleError(
            f"the file cannot be read: {error.strerror or error}",
            "check the stick; nothing of it was taken",
            "unreadable",
        ) from error
    copy.seek(0)


def _decrypt(file: BinaryIO, copy: BinaryIO, identities: Sequence[Any]) -> None:
    try:
        pyrage.decrypt_io(file, copy, identities)
    except pyrage.DecryptError as error:
        raise BundleError(
            f"the bundle is encrypted, and cannot be opened: {error}",
            "give the identity of one of its recipients (--identity FILE); if that is right, the "
            "file is damaged: copy it again",
            "not_decrypted",
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise BundleError(
            f"the encrypted bundle is damaged or cut off: {error}",
            "nothing of it was taken; copy it again, or export again",
            "damaged",
        ) from error


def write(path: Path, content: bytes) -> None:
    """A file, whole on the disk before it has its name. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def identities(path: Path | None) -> list[Any]:
    """age's identities in a file, one in a line, as age-keygen writes it. Raises ConfigError."""
    if path is None:
        return []
    try:
        text = path.read_text()
        if "BEGIN OPENSSH PRIVATE KEY" in text:
            return [pyrage.ssh.Identity.from_buffer(text.encode())]
        lines = [line.strip() for line in text.splitlines()]
        found = [
            pyrage.x25519.Identity.from_str(line)
            for line in lines
            if line and not line.startswith("#")
        ]
    except (OSError, ValueError, pyrage.IdentityError) as error:
        raise ConfigError(
            f"--identity {path}: {error}", "give the file that age-keygen wrote"
        ) from error
    if not found:
        raise ConfigError(f"--identity {path}: it is empty", "give the file that age-keygen wrote")
    return found
