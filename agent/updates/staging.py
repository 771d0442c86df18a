"""What is being fetched, and what was: files in one folder, named by the digest they must have.

Limits  : `bytes_max` of all of them, and `free_bytes_min` stays free on the disk. What others left
          there makes room for what is fetched now, the oldest first.
Format  : DIGEST.part while it grows, from its first byte on; DIGEST once it is whole and is what
          was signed for, read-only. DIGEST is the SHA-256, hexadecimal.
Recovery: a part goes on where it ends. It is synced each SYNC_BYTES, so that a power cut takes no
          more than that; if it left other bytes in their place, the digest says so at the end, and
          the file is fetched once more from its beginning. What is in no such form is removed.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO, Self

from agent import whole_file
from agent.host.disk import disk
from agent.updates.fetched import NotFetched, disk_fault
from agent.words import counted

SYNC_BYTES = 4 << 20
READ_BYTES = 1 << 20
_OURS = re.compile(r"[0-9a-f]{64}(\.part)?")


class Staging:
    """The folder; every call blocks."""

    def __init__(self, folder: Path, bytes_max: int, free_bytes_min: int) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._free_bytes_min = free_bytes_min

    def whole(self, digest: str) -> Path | None:
        """The file, if it is there and is what its name says."""
        path = self._folder / digest
        try:
            with path.open("rb") as file:
                right = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except FileNotFoundError:
            return None
        if right:
            return path
        self.drop(digest)
        return None

    def begin(self, digest: str, size_bytes: int, beside_bytes: int) -> "Part":
        """The file, so far as it is there, once there is room for all of it and `beside_bytes`.

        Raises NotFetched, OSError.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if size_bytes > self._bytes_max:
            raise NotFetched(
                "too_large",
                f"{counted(size_bytes, 'byte')}, and {self._bytes_max:,} may lie here",
                "raise updates.staging_bytes_max",
            )
        path = self._folder / f"{digest}.part"
        have = path.stat().st_size if path.exists() else 0
        if have > size_bytes:
            path.unlink()
            have = 0
        self._make_room(digest, size_bytes, size_bytes - have, beside_bytes)
        return Part(path, size_bytes)

    def _make_room(self, digest: str, size_bytes: int, more_bytes: int, beside_bytes: int) -> None:
        others = []
        for path in self._folder.iterdir():
            if not _OURS.fullmatch(path.name):
                path.unlink()
            elif path.name[:64] != digest:
                found = path.stat()
                others.append((found.st_mtime_ns, found.st_size, path))
        others.sort()
        held = sum(size for _, size, _ in others)
        needed = more_bytes + max(beside_bytes, self._free_bytes_min)
        while others and (
            held + size_bytes > self._bytes_max or disk(self._folder).free_bytes < needed
        ):
            _, size, path = others.pop(0)
            path.unlink()
            held -= size
        free = disk(self._folder).free_bytes
        if free < needed:
            raise NotFetched(
                "no_space",
                f"{counted(more_bytes, 'byte')} more would come, {needed - more_bytes:,} must stay "
                f"free beside them, and {free:,} are free",
                "make room on the disk that the store lies on, or lower updates.free_bytes_min",
            )

    def drop(self, digest: str) -> None:
        """It is of no use any more."""
        for name in (digest, f"{digest}.part"):
            (self._folder / name).unlink(missing_ok=True)


class Part:
    """A file that grows; use it with `with`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.have = 0
        self._path = path
        self._size_bytes = size_bytes
        self._synced = 0
        self._digest = hashlib.sha256()
        self._open = contextlib.ExitStack()
        self._file: BinaryIO

    def __enter__(self) -> Self:
        """What is there is read, for its digest."""
        self._file = self._open.enter_context(self._path.open("a+b"))
        self._file.seek(0)
        while data := self._file.read(READ_BYTES):
            self._digest.update(data)
            self.have += len(data)
        self._synced = self.have
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def append(self, data: bytes) -> None:
        """The next bytes. Raises NotFetched for more than there may be, or than the disk takes."""
        if self.have + len(data) > self._size_bytes:
            self.anew()
            raise NotFetched(
                "too_long",
                f"more than the {self._size_bytes:,} bytes that were signed for came",
                "the source sends what it should not; look at it, or name another one",
            )
        try:
            self._file.write(data)
            self._file.flush()
            if self.have + len(data) - self._synced >= SYNC_BYTES:
                os.fdatasync(self._file.fileno())
                self._synced = self.have + len(data)
        except OSError as error:
            raise disk_fault(error, self._path) from error
        self._digest.update(data)
        self.have += len(data)

    def anew(self) -> None:
        """All of it again: what is there is not what it should be."""
        self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.have = self._synced = 0

    def finish(self, digest: str) -> Path | None:
        """The whole file under its own name, on the disk; None: these are not the bytes."""
        if self._digest.hexdigest() != digest:
            return None
        os.fchmod(self._file.fileno(), 0o440)
        os.fsync(self._file.fileno())
        path = self._path.with_name(digest)
        whole_file.settle(self._path, path)
        return path
