"""The store's file: one connection to it, transactions on it, and what is done in a fault.

Limits  : one thread, one process. Room: space.py, reserve.py.
Format  : opening.py; synchronous=FULL.
Recovery: a transaction is wholly there or not.

    what is met                     what is done
    the disk is full                the reserve is given up; nothing new until there is room again
    it is, at the start, and no     the file is opened cramped (opening.py): what it holds is sent;
    reserve is left                 it is opened anew once there is room for the reserve
    a ROLLBACK fails                the connection is closed, and the file opened anew
    SQLite says: corrupt            the file is opened anew; said again, it is put aside, a new
    or what opening.py finds        epoch begins, and salvage.py reads what it still gives back
    the file or its WAL is removed  it is still open: its content is written back under its name
    while it is open
    any other error                 told to whoever asked; the next call tries again
"""

import errno
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from agent.clock import Clock
from agent.errors import StoreError, StoreFull
from agent.store import quarantine, space
from agent.store.bounds import Bounds
from agent.store.latency import Latency
from agent.store.lock import REMEDIES
from agent.store.opening import Damaged, Opening
from agent.store.space import Space

T = TypeVar("T")
CORRUPT = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


class File:
    """Used in the store's thread alone, but for `lock` and `unlock`."""

    def __init__(self, path: Path, clock: Clock, rules: Bounds | None, synchronous: str) -> None:
        self.path = path
        self.commits = Latency()  # of the transactions that changed something
        self.slices = 0  # of what takes long beside them, done so far
        self._bounds = rules
        self._opening = Opening(path, clock, rules, synchronous)
        self._space = Space(path)
        self._connection: sqlite3.Connection | None = None
        self._cramped = False  # how it is open
        self._astray: StoreError | None = None  # the open file has no name, and gets none

    @property
    def epoch(self) -> str:
        """The identity born with the file."""
        return self._opening.epoch

    def lock(self) -> None:
        """Keep other agents away. Raises StoreLocked, StoreError."""
        self._opening.lock.take_name()

    def unlock(self) -> None:
        """Let others in again."""
        self._opening.lock.release()

    def open(self) -> sqlite3.Connection:
        """The open connection; a damaged file is put aside first. Raises StoreError."""
        was_put_aside = cramped = False
        while self._connection is None:
            try:
                self._connection = self._opened(cramped=cramped)
                self._astray, self._cramped = None, cramped
            except Damaged as damage:
                if was_put_aside:
                    raise StoreError(f"{self.path}: {damage}", "look at the disk") from damage
                self._put_aside(damage)
                was_put_aside = True
            except sqlite3.Error as error:
                if not self._space.missed(error):
                    raise self._typed(error) from error
                if not self._space.reserve.give_up():
                    if cramped:
                        raise self._typed(error) from error
                    cramped = True
        return self._connection

    def _put_aside(self, damage: Damaged) -> None:
        """Raises StoreError. On a full disk the reserve goes for it."""
        self.close()
        try:
            self._opening.put_aside(damage)
        except StoreFull:
            if not self._space.reserve.give_up():
                raise
            self._opening.put_aside(damage)

    def _opened(self, *, cramped: bool) -> sqlite3.Connection:
        """Raises Damaged when SQLite says corrupt twice, or as Opening.open does."""
        try:
            return self._opening.open(cramped=cramped)
        except sqlite3.Error as error:
            if not _corrupt(error):
                raise
        try:
            return self._opening.open(cramped=cramped)
        except sqlite3.Error as error:
            if not _corrupt(error):
                raise
            raise Damaged(str(error), exact=True) from error

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        self._cramped = False
        if connection:
            connection.close()

    def end(self) -> None:
        """Close for good: how far the streams are is noted."""
        if self._connection:
            self._opening.note_head(self._connection)
        self.close()

    def transact(self, step: Callable[[sqlite3.Connection], T], *, producing: bool = False) -> T:
        """Run `step` in a transaction of its own; its result after the commit.

        `producing`: it brings what takes room, and gets none of the reserve. Raises StoreFull and
        StoreError, and what `step` raises; then nothing of it is kept, but see `Database.write`.
        """
        if producing and self._astray:
            raise self._astray
        if producing and not self._has_room():
            raise StoreFull(f"{self.path}: the disk is full", "make room on the disk")
        try:
            done = self._committed(step)
        except sqlite3.Error as error:
            if _corrupt(error):
                self.close()
            elif not self._space.missed(error) or producing or not self._space.reserve.give_up():
                raise self._typed(error) from error
        else:
            if producing:
                self._space.found()
            return done
        return self._committed_at_last(step, "BEGIN IMMEDIATE")

    def read(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """Run `step`, which only reads. Raises StoreError, and what `step` raises."""
        try:
            return self._committed(step, "BEGIN")
        except sqlite3.Error as error:
            if not _corrupt(error):
                raise self._typed(error) from error
            self.close()
        return self._committed_at_last(step, "BEGIN")

    def _committed_at_last(self, step: Callable[[sqlite3.Connection], T], begin: str) -> T:
        """The second try. What is corrupt then too is put aside, and it is done in a new file."""
        try:
            return self._committed(step, begin)
        except sqlite3.Error as error:
            if not _corrupt(error):
                raise self._typed(error) from error
            self._put_aside(Damaged(str(error), exact=True))
        try:
            return self._committed(step, begin)
        except sqlite3.Error as error:
            raise self._typed(error) from error

    @property
    def short_of_room(self) -> bool:
        """Whether a commit found no room, and no producer's has found some since."""
        return self._space.short

    def relieve(self) -> bool:
        """While the disk is full: give back what there is (`Space.relieve`).

        First the oldest of what was put aside and is read to its end.
        """
        quarantine.make_room(self.path)
        return self._space.relieve(self.open())

    def shrink(self) -> bool:
        """Give some free pages back to the disk, if there are many; whether there are more."""
        connection = self.open()
        return space.shrink(connection, os.fstat(self._opening.lock.fd).st_size)

    def look_after(self) -> None:
        """Now and then: notice what was removed, and note the head. Raises StoreError."""
        if self._connection is None:
            return
        if self._cramped:
            if not self._has_room():
                return
            self.open()
        self._opening.lock.renew_name()
        if self._opening.is_astray:
            self._write_back(self.open())
        self._opening.keep_head(self.open())

    def _has_room(self) -> bool:
        """Whether the reserve is whole. A file that was opened cramped is opened anew then."""
        if not self._space.reserve.taken():
            return False
        if self._cramped:
            self.close()
        return True

    def _write_back(self, connection: sqlite3.Connection) -> None:
        """Everything that is in the open file, under its name again."""
        try:
            self._opening.save(connection, self._done_slice)
            self.close()
            self._opening.lock.release_file()
            self._opening.give_name()
        except (OSError, sqlite3.Error) as error:
            self._astray = StoreError(
                f"{self.path}: it was removed while it was open, and cannot be written back: "
                f"{error}",
                "do not stop the agent; make room and give it write access to the folder",
            )
            raise self._astray from error
        self.open()

    def _done_slice(self) -> None:
        self.slices += 1

    def _committed(
        self, step: Callable[[sqlite3.Connection], T], begin: str = "BEGIN IMMEDIATE"
    ) -> T:
        try:
            connection = self.open()
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}", "check the disk") from error
        begun, changes = time.perf_counter(), connection.total_changes
        try:
            connection.execute(begin)
            outcome = step(connection)
            connection.execute("COMMIT")
        except BaseException:  # whatever ended the step: no transaction stays open
            self._roll_back(connection)
            raise
        if connection.total_changes != changes:
            self.commits.add(time.perf_counter() - begun)
        return outcome

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        if self._bounds:
            self._bounds.forget()
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:  # it is in no known state: the next transaction opens the file anew
            with suppress(sqlite3.Error):
                self.close()

    def _typed(self, error: sqlite3.Error) -> StoreError:
        """SQLite's error as ours, with what to do."""
        if self._space.missed(error):
            return StoreFull(f"{self.path}: the disk is full", "make room on the disk")
        if self._read_only():
            return StoreError(f"{self.path}: the disk is read-only", REMEDIES[errno.EROFS])
        return StoreError(f"{self.path}: {error}", "check the disk and the rights on the file")

    def _read_only(self) -> bool:
        """Whether nothing can be made beside the file: SQLite calls that an I/O error."""
        probe = self.path.with_name(f"{self.path.name}.probe")
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
            probe.unlink()
        except OSError as error:
            return error.errno == errno.EROFS
        return False


def _corrupt(error: sqlite3.Error) -> bool:
    """Whether SQLite says that what it reads is no sound file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in CORRUPT
