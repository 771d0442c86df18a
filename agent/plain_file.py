"""Opening what a stranger's stick calls a file: no pipe that hangs, no device, no link."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def opened(path: Path) -> BinaryIO:
    """A regular file, for reading. Raises OSError, which says so where it is another thing."""
    _check_kind(os.lstat(path).st_mode)  # first: opening a device may already do something
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(handle, "rb")
    try:
        _check_kind(os.fstat(handle).st_mode)
    except OSError:
        file.close()
        raise
    return file


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "another thing")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")
