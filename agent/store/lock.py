"""One agent at a store: a lock on its name, and one on the file itself.

Limits  : one process; flock, so a local filesystem.
Format  : `<file>.lock`, empty, and a flock on the store's own inode.
Recovery: the kernel lets both go when the process ends. A lock file that somebody removed is made
          anew; meanwhile the lock on the inode keeps others out.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from agent.errors import StoreError, StoreFull, StoreLocked

REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EROFS: "mount it for writing, and look at its health: a failing disk is made read-only",
}


class Lock:
    """The two locks of one store. `fd` reads the store's file.

    SQLite's own locks on a file are lost when its process closes any descriptor of it, so `fd` is
    opened before the connection and closed after it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1
        self._name_fd = -1

    def take_name(self) -> None:
        """Keep other agents away from the name. Raises StoreLocked, StoreError."""
        self._name_fd = self._taken(Path(f"{self.path}.lock"))

    def take_file(self) -> None:
        """Open the store's file, made if there is none, and lock it. As `take_name`."""
        if self.fd < 0:
            self.fd = self._taken(self.path)

    def release_file(self) -> None:
        """Let the file go; its connection is closed."""
        fd, self.fd = self.fd, -1
        _close(fd)

    def release(self) -> None:
        """Let others in again."""
        self.release_file()
        fd, self._name_fd = self._name_fd, -1
        _close(fd)

    def renew_name(self) -> None:
        """Make the lock file anew if somebody has removed it."""
        if not _is(self._name_fd, Path(f"{self.path}.lock")):
            before = self._name_fd
            self.take_name()
            _close(before)

    @property
    def holds_file(self) -> bool:
        """Whether the file under the store's name is still the one that is locked."""
        return _is(self.fd, self.path)

    def _taken(self, path: Path) -> int:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            kind = StoreFull if error.errno == errno.ENOSPC else StoreError
            access = f"give this user write access to {self.path.parent}"
            raise kind(
                f"{self.path}: the store cannot be opened: {error.strerror}",
                f"{REMEDIES.get(error.errno or 0, access)}, or set store.path",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise StoreLocked(
                f"{self.path}: another agent holds this store",
                "stop it first (`holdfast status` shows it), or set another store.path",
            ) from error
        return fd


def _is(fd: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _close(fd: int) -> None:
    if fd >= 0:
        with suppress(OSError):  # a dead disk says so here too
            os.close(fd)
