"""Small files that are replaced as a whole: a crash leaves the former content, or the new one."""

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Rights(NamedTuple):
    """Who may get at a file, and whose it is, where root writes it for others."""

    mode: int
    uid: int
    gid: int


def private(path: Path) -> Rights:
    """Its owner's alone, who is that of its folder."""
    folder = path.parent.stat()
    return Rights(0o600, folder.st_uid, folder.st_gid)


def as_it_is(path: Path) -> Rights:
    """What the file has now."""
    found = path.stat()
    return Rights(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def replace(path: Path, content: bytes, rights: Rights | None = None) -> None:
    """Have this content in the file, on the disk when this returns. Raises OSError.

    It is never open to others than `rights` say; without them, the umask decides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    if rights:
        fresh.unlink(missing_ok=True)  # one that a crash left may be another's
    with os.fdopen(_opened(fresh, rights), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    settle(fresh, path)


def settle(fresh: Path, path: Path) -> None:
    """Have a file that is on the disk under this name, for good. Raises OSError."""
    fresh.replace(path)
    _settle(path.parent)


def remove(path: Path) -> None:
    """Have it gone, if it is there, also after a power cut. Raises OSError."""
    path.unlink(missing_ok=True)
    _settle(path.parent)


def _opened(path: Path, rights: Rights | None) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    if rights is None:
        return os.open(path, flags | os.O_TRUNC, 0o666)
    handle = os.open(path, flags | os.O_EXCL, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(handle, rights.uid, rights.gid)
        os.fchmod(handle, rights.mode)
    except OSError:
        os.close(handle)
        raise
    return handle


def _settle(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
