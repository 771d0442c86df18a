"""The versions of the configuration: `config/` in the state folder, else beside the store.

Limits  : VERSIONS_MAX documents of DOCUMENT_BYTES_MAX each, so 6.25 MiB in all, and the book. What
          goes first is the oldest that is neither live nor what a rollback would lead to. One agent
          at a time: whoever finds `lock` held is a second one, and writes nothing.
Format  : `NNNN.yaml`, a whole document as it came, byte for byte; `versions.json`, forms.Book. Both
          are replaced as a whole and fsynced, and are for this user alone (0600).
Recovery: a document is on the disk before the book names it, and goes after the book has forgotten
          it: what the book does not name is removed at the next start. Without a book, or with one
          that cannot be read (it is said), the file of --config is a new version, and live; the
          documents that lie there are versions of which nothing else is known.
          A document that is not what was kept (its digest tells) is never used.
"""

import fcntl
import hashlib
import logging
import os
import re
from pathlib import Path

import msgspec

from agent import plain_file, whole_file
from agent.errors import HoldfastError
from agent.versions.forms import Book, Version

log = logging.getLogger("config")
VERSIONS_MAX = 50
DOCUMENT_BYTES_MAX = 128 << 10
BOOK_BYTES_MAX = 1 << 20
OWN = 0o600
_NAME = re.compile(r"(\d{4,9})\.yaml")


class Folder:
    """The files; the book is whoever's who holds it (kept.py)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None  # held as long as this process lives

    def take(self) -> bool:
        """Have it for this process; whether nobody else has it. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWN)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def leave(self) -> None:
        """Let another have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> Book:
        """The book; where it cannot be read, one of what lies there, and it is said.

        Raises OSError.
        """
        try:
            with plain_file.opened(self._book) as file:
                return msgspec.json.decode(file.read(BOOK_BYTES_MAX), type=Book)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("%s: %s; the versions begin anew", self._book, error)
        found = tuple(self._found(number) for number in sorted(self._numbers())[-VERSIONS_MAX:])
        return Book(next=max(self._numbers(), default=0) + 1, versions=found)

    def _found(self, number: int) -> Version:
        content = self._document(number).read_bytes()
        return Version(number, digest(content), len(content), "order", why="found without its book")

    def write(self, book: Book) -> None:
        """Have the book on the disk, and nothing but its documents. Raises OSError."""
        whole_file.replace(
            self._book, msgspec.json.format(msgspec.json.encode(book)) + b"\n", _own(self._book)
        )

    def put(self, number: int, document: bytes) -> None:
        """Have a document on the disk. Raises OSError."""
        path = self._document(number)
        whole_file.replace(path, document, _own(path))

    def get(self, book: Book, number: int) -> bytes:
        """A document, as it was kept. Raises HoldfastError."""
        version, path = book.version(number), self._document(number)
        try:
            with plain_file.opened(path) as file:
                document = file.read(DOCUMENT_BYTES_MAX + 1)
        except OSError as error:
            raise HoldfastError(
                f"version {number}: {path}: {error.strerror}", "use another version"
            ) from error
        if digest(document) != version.digest:
            raise HoldfastError(
                f"version {number}: {path} is not what was kept: its SHA-256 is another",
                "use another version",
            )
        return document

    def sweep(self, book: Book) -> None:
        """Remove documents that the book does not name; what cannot be removed stays."""
        known = {one.number for one in book.versions}
        for number in self._numbers():
            if number not in known:
                try:
                    self._document(number).unlink(missing_ok=True)
                except OSError as error:
                    log.warning("%s: %s", self._document(number), error.strerror)

    def _numbers(self) -> list[int]:
        if not self.path.is_dir():
            return []
        found = (_NAME.fullmatch(one.name) for one in self.path.iterdir())
        return [int(one[1]) for one in found if one]

    @property
    def _book(self) -> Path:
        return self.path / "versions.json"

    def _document(self, number: int) -> Path:
        return self.path / f"{number:04d}.yaml"


def digest(document: bytes) -> str:
    """What a document is known by."""
    return hashlib.sha256(document).hexdigest()


def _own(path: Path) -> whole_file.Rights:
    """The agent's alone; the folder is there once it is locked."""
    return whole_file.private(path)
