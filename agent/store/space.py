"""Room on the disk: what is given back to it, and what becomes of a store that finds none.

Limits  : the reserve (reserve.py); slices of SHRINK_PAGES or RELIEVE_PAGES.
Format  : free pages at the end of the store's file, the length of its WAL.
Recovery: each slice is a transaction of its own.
"""

import os
import sqlite3
import time
from pathlib import Path

from agent.store.bounds import PAGE_BYTES
from agent.store.reserve import RESERVE_BYTES, Reserve

# So many are kept for what comes next, and half of the file: while records drain, pages that are
# moved to shorten it are soon free themselves (at a quarter 1.25 times the bytes were written).
FREE_PAGES = 256
SHRINK_PAGES = 64  # given back in one slice, of a millisecond or two
RELIEVE_S = 0.1
RELIEVE_PAGES = 64


class Space:
    """Used in the store's thread alone."""

    def __init__(self, store: Path) -> None:
        self.reserve = Reserve(store)
        self._folder = store.parent
        self._full = False
        self._relieved_at = 0.0

    @property
    def short(self) -> bool:
        """Whether a commit found no room, and no producer's has found some since."""
        return self._full or self.reserve.given_up

    def found(self) -> None:
        """A producer's commit found room."""
        self._full = False

    def missed(self, error: sqlite3.Error) -> bool:
        """Whether it was for want of room that something failed."""
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_FULL:
            full = True
        else:  # its WAL index could not grow, for one
            full = code & 0xFF == sqlite3.SQLITE_IOERR and self._below(RESERVE_BYTES // 16)
        self._full |= full
        return full

    def relieve(self, connection: sqlite3.Connection) -> bool:
        """While the disk is full, every RELIEVE_S: give back what there is, WAL and free pages.

        Moving pages takes room itself, so only while there is some. Whether that was tried, and was
        not enough for the reserve. Raises sqlite3.Error.
        """
        now = time.monotonic()
        if now - self._relieved_at < RELIEVE_S:
            return False
        self._relieved_at = now
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:  # the file itself may have to grow for it
            if not self.missed(error) or not self.reserve.give_up():
                raise
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if not self._below(4 * RELIEVE_PAGES * PAGE_BYTES):
            _give_back(connection, RELIEVE_PAGES)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return self._below(RESERVE_BYTES)

    def _below(self, size: int) -> bool:
        """Whether this user has less than so many bytes left on the disk."""
        try:
            space = os.statvfs(self._folder)
        except OSError:  # a dead disk does not even say how full it is
            return False
        return space.f_bavail * space.f_frsize < size


def shrink(connection: sqlite3.Connection, size_bytes: int) -> bool:
    """Give some free pages back to the disk, if there are many; whether there are more.

    `size_bytes` is how long the file is.
    """
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free > max(FREE_PAGES, pages // 2):
        _give_back(connection, SHRINK_PAGES)
        (left,) = connection.execute("PRAGMA freelist_count").fetchone()
        return bool(left < free)  # a file that was not born for it gives nothing back
    if size_bytes > pages * PAGE_BYTES:  # that it is shorter lies in the WAL
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return False


def _give_back(connection: sqlite3.Connection, pages: int) -> None:
    """So many free pages, in one transaction."""
    # `execute` would step once, which is one page: sqlite3 sees no columns, so it fetches no rows.
    connection.executescript(f"PRAGMA incremental_vacuum({pages});")
