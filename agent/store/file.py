"""The store's file: one connection to it, transactions on it, and a reserve for a full disk.

Limits  : one process (flock on `<file>.lock`). The reserve takes RESERVE_BYTES beside the file.
Format  : SQLite, WAL, synchronous=FULL; auto_vacuum=INCREMENTAL, set at birth.
Recovery: SQLite replays or discards the WAL's tail at open; a transaction is wholly there or not.
          A connection that cannot even roll back is closed, and the file is opened anew. On a full
          disk even a DELETE needs room in the WAL: the reserve is given up for it, and taken again
          once there is room; until then nothing new is accepted.
"""

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from agent.clock import Clock
from agent.errors import StoreError, StoreFull, StoreLocked
from agent.store import bounds, schema
from agent.store.bounds import Bounds

T = TypeVar("T")
WAL_BYTES_MAX = 8 << 20  # what stays of the WAL's file after a checkpoint
FREE_PAGES = 256  # so many are kept for what comes next, and a quarter of the file
SHRINK_PAGES = 64  # given back in one slice, of a millisecond or two
BUSY_TIMEOUT_S = 5.0  # only an outside reader (a backup, a test) can make us wait
RESERVE_BYTES = 8 << 20  # twice what the WAL may hold that is not in the file yet
RELIEVE_S = 0.1
RELIEVE_PAGES = 64
RESERVE_S = 1.0  # how often it is tried to take the reserve again


class File:
    """Used in the store's thread alone, but for `lock` and `unlock`."""

    def __init__(self, path: Path, clock: Clock, rules: Bounds | None, synchronous: str) -> None:
        self.path = path
        self.epoch = ""
        self._clock = clock
        self._bounds = rules
        self._synchronous = synchronous
        self._connection: sqlite3.Connection | None = None
        self._reserve = path.with_name(f"{path.name}.reserve")
        self._reserve_is_whole = False
        self._reserve_tried_at = -RESERVE_S
        self._relieved_at = 0.0
        self._lock_fd = -1

    def lock(self) -> None:
        """Keep other agents away. Raises StoreLocked, StoreError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            kind, remedy = StoreError, f"give this user write access to {self.path.parent}"
            if error.errno == errno.ENOSPC:
                kind, remedy = StoreFull, "make room on the disk"
            raise kind(
                f"{self.path}: the store cannot be opened: {error.strerror}",
                f"{remedy}, or set store.path",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise StoreLocked(
                f"{self.path}: another agent holds this store",
                "stop it first (`holdfast status` shows it), or set another store.path",
            ) from error
        self._lock_fd = fd

    def unlock(self) -> None:
        """Let others in again."""
        with suppress(OSError):  # a dead disk says so here too
            os.close(self._lock_fd)

    def open(self) -> sqlite3.Connection:
        """The open connection. Raises StoreError."""
        if self._connection is None:
            try:
                self._connection = self._opened()
            except sqlite3.Error as error:
                if not self._spend_reserve(error):
                    raise self._typed(error) from error
                self._connection = self._opened()
        return self._connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def transact(self, step: Callable[[sqlite3.Connection], T], *, producing: bool = False) -> T:
        """Run `step` in a transaction of its own; its result after the commit.

        `producing`: it brings what takes room, and gets none of the reserve. Raises StoreFull and
        StoreError, and what `step` raises; then nothing of it is kept, but see `Database.write`.
        """
        if producing and not self._reserve_taken():
            raise StoreFull(f"{self.path}: the disk is full", "make room on the disk")
        try:
            return self._committed(step)
        except sqlite3.Error as error:
            if producing or not self._spend_reserve(error):
                raise self._typed(error) from error
        try:
            return self._committed(step)
        except sqlite3.Error as error:
            raise self._typed(error) from error

    def read(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """Run `step`, which only reads. Raises StoreError, and what `step` raises."""
        try:
            return self._committed(step, "BEGIN")
        except sqlite3.Error as error:
            raise self._typed(error) from error

    def shrink(self) -> bool:
        """Give some free pages back to the disk, if there are many; whether there are more."""
        connection = self.open()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free <= max(FREE_PAGES, pages // 4):
            return False
        connection.execute(f"PRAGMA incremental_vacuum({SHRINK_PAGES})").fetchall()
        return True

    @property
    def short_of_room(self) -> bool:
        """Whether the reserve had to be given up, and could not be taken again yet."""
        return self._reserve_tried_at >= 0 and not self._reserve_is_whole

    def relieve(self) -> None:
        """While the disk is full, every RELIEVE_S: give back what there is, WAL and free pages.

        Moving pages takes room itself, so only while there is some.
        """
        now = time.monotonic()
        if now - self._relieved_at < RELIEVE_S:
            return
        self._relieved_at = now
        connection = self.open()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if self._room() >= 4 * RELIEVE_PAGES * bounds.PAGE_BYTES:
            connection.execute(f"PRAGMA incremental_vacuum({RELIEVE_PAGES})").fetchall()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _room(self) -> int:
        """Bytes that are free on the disk for this user."""
        space = os.statvfs(self.path.parent)
        return space.f_bavail * space.f_frsize

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        try:
            schema.check(connection)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
            schema.migrate(connection, int(self._clock.wall() * 1e6))
            connection.execute("PRAGMA foreign_keys = ON")
            self.epoch = schema.epoch(connection)
            if self._bounds:
                self._bounds.begin(connection)
        except (sqlite3.Error, StoreError):
            connection.close()
            raise
        return connection

    def _committed(
        self, step: Callable[[sqlite3.Connection], T], begin: str = "BEGIN IMMEDIATE"
    ) -> T:
        connection = self.open()
        try:
            connection.execute(begin)
            outcome = step(connection)
            connection.execute("COMMIT")
        except BaseException:  # whatever ended the step: no transaction stays open
            self._roll_back(connection)
            raise
        return outcome

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:  # it is in no known state: the next transaction opens the file anew
            with suppress(sqlite3.Error):
                self.close()

    def _reserve_taken(self) -> bool:
        """Whether the reserve is whole; tried again every RESERVE_S."""
        now = time.monotonic()
        if not self._reserve_is_whole and now - self._reserve_tried_at >= RESERVE_S:
            self._reserve_tried_at = now
            try:
                fd = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
                try:
                    os.posix_fallocate(fd, 0, RESERVE_BYTES)
                finally:
                    os.close(fd)
                self._reserve_is_whole = True
            except OSError:  # no room yet: what is told is that the disk is full
                self._free_reserve()
        return self._reserve_is_whole

    def _spend_reserve(self, error: sqlite3.Error) -> bool:
        """After an error: whether it was for want of room, and there is some now."""
        if not self._no_room(error) or not self._reserve.exists():
            return False
        return self._free_reserve()

    def _free_reserve(self) -> bool:
        self._reserve_is_whole = False
        self._reserve_tried_at = time.monotonic()
        try:
            freed = self._reserve.stat().st_blocks > 0
            self._reserve.unlink()
        except OSError:
            return False
        return freed

    def _no_room(self, error: sqlite3.Error) -> bool:
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_FULL:
            return True
        if code & 0xFF != sqlite3.SQLITE_IOERR:  # its WAL index could not grow, for one
            return False
        return self._room() < RESERVE_BYTES // 16

    def _typed(self, error: sqlite3.Error) -> StoreError:
        """SQLite's error as ours, with what to do."""
        if self._no_room(error):
            return StoreFull(f"{self.path}: the disk is full", "make room on the disk")
        if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return StoreError(
                f"{self.path}: not a sound SQLite file: {error}",
                "move it away and start again; keep it",
            )
        return StoreError(f"{self.path}: {error}", "check the disk and the rights on the file")
