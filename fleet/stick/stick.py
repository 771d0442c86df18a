"""Files on a stick: read once, decrypted on the way; and written whole or not at all.

What lies there is a stranger's until it is verified: nothing is read but regular files, nothing is
copied that is no bundle, and nothing is written through what was planted there.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyrage

from agent import plain_file
from agent.errors import BundleError, ConfigError
from agent.protocol import bundle


def verified(path: Path, copy: BinaryIO, identities: Sequence[Any]) -> bundle.Sealed:
    """Copy a bundle, decrypted if it is encrypted, and say what it is. Raises BundleError."""
    try:
        with plain_file.opened(path) as file:
            encrypted = file.read(len(bundle.AGE_MAGIC)) == bundle.AGE_MAGIC
            file.seek(0)
            if encrypted and identities:
                _decrypt(_Source(file), copy, identities)
                copy.seek(0)
                sealed = bundle.verify(copy)
            else:  # copied as it is verified; without an identity, that says what is wanted
                sealed = bundle.verify(_Source(file, copy))
            copy.flush()
    except OSError as error:
        raise _uncopied(error) from error
    copy.seek(0)
    return sealed


def _uncopied(error: OSError) -> BundleError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BundleError(
            "the folder for temporary files has no room for a copy of it",
            "make room there, or name another folder in TMPDIR; nothing of it was taken",
            "no_room",
        )
    return BundleError(
        f"the file cannot be read: {error.strerror or error}",
        "check the stick; nothing of it was taken",
        "unreadable",
    )


class _Source:
    """A file as long as it was when it was opened; what is read of it goes into `copy`, if any."""

    def __init__(self, file: BinaryIO, copy: BinaryIO | None = None) -> None:
        self._file = file
        self._copy = copy
        self._left_bytes = os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        step = self._file.read(min(size, self._left_bytes) if size >= 0 else self._left_bytes)
        self._left_bytes -= len(step)
        if self._copy is not None:
            self._copy.write(step)
        return step


def _decrypt(file: _Source, copy: BinaryIO, identities: Sequence[Any]) -> None:
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
    """A file, whole on the disk before it has its name. Raises OSError.

    What lies in its place, or in that of its part, is replaced, and not followed if it is a link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as file:
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
