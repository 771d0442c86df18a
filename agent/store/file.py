"""The store's file: one connection to it, transactions on it, and what becomes of it in a fault.

Limits  : one process (lock.py), one thread. A reserve lies beside it for a full disk (reserve.py).
Format  : SQLite, WAL, synchronous=FULL; auto_vacuum=INCREMENTAL, set at birth. Its first page and
          how far its streams are lie in `<file>.head` too (head.py).
Recovery: SQLite replays or discards the WAL's tail at open; a transaction is wholly there or not.

    what is met                     what is done
    the disk is full                the reserve is given up; nothing new until there is room again
    a ROLLBACK fails                the connection is closed, and the file opened anew
    SQLite says: corrupt            the file is opened anew; said again, it is put aside, a new
                                    epoch begins, and salvage.py reads what it still gives back
    the WAL is damaged within, the  the same: SQLite would forget accepted records without a word,
    file is gone, empty, too old    and give their seqs out again
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

import msgspec

from agent.clock import Clock
from agent.errors import StoreError, StoreFull
from agent.store import bounds, head, quarantine, schema
from agent.store.bounds import Bounds
from agent.store.latency import Latency
from agent.store.lock import REMEDIES, Lock
from agent.store.reserve import RESERVE_BYTES, Reserve

T = TypeVar("T")
WAL_BYTES_MAX = 8 << 20  # what stays of the WAL's file after a checkpoint
# So many are kept for what comes next, and half of the file: while records drain, pages that are
# moved to shorten it are soon free themselves (at a quarter 1.25 times the bytes were written).
FREE_PAGES = 256
SHRINK_PAGES = 64  # given back in one slice, of a millisecond or two
BUSY_TIMEOUT_S = 5.0  # only an outside reader (a backup, a test) can make us wait
RELIEVE_S = 0.1
RELIEVE_PAGES = 64
CORRUPT = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


class Damaged(Exception):
    """The file cannot be trusted: why, in words."""


class File:
    """Used in the store's thread alone, but for `lock` and `unlock`."""

    def __init__(self, path: Path, clock: Clock, rules: Bounds | None, synchronous: str) -> None:
        self.path = path
        self.epoch = ""
        self.commits = Latency()  # of the transactions that changed something
        self._clock = clock
        self._bounds = rules
        self._synchronous = synchronous
        self._connection: sqlite3.Connection | None = None
        self._lock = Lock(path)
        self._reserve = Reserve(path)
        self._relieved_at = 0.0
        self._disk_is_full = False
        self._wal = path.with_name(f"{path.name}-wal")
        self._wal_seen = os.stat_result(range(10))
        self._head: head.Head | None = None
        self._head_at = 0.0
        self._causes: dict[str, str] = {}  # of what was put aside in this life
        self._astray: StoreError | None = None  # the open file has no name, and gets none

    def lock(self) -> None:
        """Keep other agents away. Raises StoreLocked, StoreError."""
        self._lock.take_name()

    def unlock(self) -> None:
        """Let others in again."""
        self._lock.release()

    def open(self) -> sqlite3.Connection:
        """The open connection; a damaged file is put aside first. Raises StoreError."""
        if self._connection is None:
            try:
                self._connection = self._opened()
            except Damaged as damage:
                self._put_aside(str(damage))
            except sqlite3.Error as error:
                if _corrupt(error):
                    self._put_aside_if_still(error)
                elif not self._no_room(error) or not self._reserve.give_up():
                    raise self._typed(error) from error
            if self._connection is None:
                self._connection = self._second()
        return self._connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def end(self) -> None:
        """Close for good: how far the streams are is noted."""
        if self._connection:
            with suppress(sqlite3.Error):  # as old as it was
                self._note_head(self._connection)
        self.close()

    def transact(self, step: Callable[[sqlite3.Connection], T], *, producing: bool = False) -> T:
        """Run `step` in a transaction of its own; its result after the commit.

        `producing`: it brings what takes room, and gets none of the reserve. Raises StoreFull and
        StoreError, and what `step` raises; then nothing of it is kept, but see
        `Database.write`.
        """
        if producing and self._astray:
            raise self._astray
        if producing and not self._reserve.taken():
            raise StoreFull(f"{self.path}: the disk is full", "make room on the disk")
        try:
            done = self._committed(step)
            self._disk_is_full &= not producing
            return done
        except sqlite3.Error as error:
            self._disk_is_full |= self._no_room(error)
            if _corrupt(error):
                self.close()
            elif producing or not self._no_room(error) or not self._reserve.give_up():
                raise self._typed(error) from error
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
            self._put_aside(str(error))
        try:
            return self._committed(step, begin)
        except sqlite3.Error as error:
            raise self._typed(error) from error

    def shrink(self) -> bool:
        """Give some free pages back to the disk, if there are many; whether there are more."""
        connection = self.open()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free > max(FREE_PAGES, pages // 2):
            _give_back(connection, SHRINK_PAGES)
            return True
        size = os.fstat(self._lock.fd).st_size
        if size > pages * bounds.PAGE_BYTES:  # that it is shorter lies in the WAL
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return False

    @property
    def short_of_room(self) -> bool:
        """Whether a commit found no room, and no producer's has found some since."""
        return self._disk_is_full or self._reserve.given_up

    def relieve(self) -> bool:
        """While the disk is full, every RELIEVE_S: give back what there is, WAL and free pages.

        Moving pages takes room itself, so only while there is some. Whether that was tried, and was
        not enough for the reserve.
        """
        now = time.monotonic()
        if now - self._relieved_at < RELIEVE_S:
            return False
        self._relieved_at = now
        connection = self.open()
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:  # the file itself may have to grow for it
            if not self._no_room(error) or not self._reserve.give_up():
                raise
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if self._room() >= 4 * RELIEVE_PAGES * bounds.PAGE_BYTES:
            _give_back(connection, RELIEVE_PAGES)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return self._room() < RESERVE_BYTES

    def look_after(self) -> None:
        """Now and then: notice what was removed, and note the head. Raises StoreError."""
        if self._connection is None:
            return
        self._lock.renew_name()
        if not self._lock.holds_file or self._wal_is_gone():
            self._write_back(self._connection)
        count = self._connection.execute("SELECT count(*) FROM streams").fetchone()[0]
        known = len(self._head.streams) if self._head else -1
        if count != known or time.monotonic() - self._head_at >= head.WRITE_S:
            self._note_head(self.open())

    def _wal_is_gone(self) -> bool:
        try:
            return not os.path.samestat(self._wal.stat(), self._wal_seen)
        except OSError:
            return True

    def _write_back(self, connection: sqlite3.Connection) -> None:
        """Everything that is in the open file, under its name again."""
        fresh = self.path.with_name(f"{self.path.name}.back")
        fresh.unlink(missing_ok=True)
        try:
            copy = sqlite3.connect(fresh)
            try:
                connection.backup(copy)
            finally:
                copy.close()
            self.close()
            self._lock.release_file()
            if self.path.exists():  # somebody put another file there: it is theirs
                self.path.rename(fresh.with_suffix(f".found-{int(self._clock.wall())}"))
            self._wal.unlink(missing_ok=True)
            fresh.rename(self.path)
            quarantine.sync(self.path.parent)
        except (OSError, sqlite3.Error) as error:
            self._astray = StoreError(
                f"{self.path}: it was removed while it was open, and cannot be written back: "
                f"{error}",
                "do not stop the agent; make room and give it write access to the folder",
            )
            raise self._astray from error
        self._astray = self._head = None
        self.open()

    def _room(self) -> int:
        """Bytes that are free on the disk for this user."""
        try:
            space = os.statvfs(self.path.parent)
        except OSError:  # a dead disk does not even say how full it is
            return 0
        return space.f_bavail * space.f_frsize

    def _second(self) -> sqlite3.Connection:
        """Open after what kept it from opening was put right."""
        try:
            return self._opened()
        except Damaged as damage:
            raise StoreError(f"{self.path}: {damage}", "look at the disk") from damage
        except sqlite3.Error as error:
            raise self._typed(error) from error

    def _opened(self) -> sqlite3.Connection:
        known = head.read(self.path)
        if not self.path.exists():
            quarantine.finish(self.path)
            known = head.read(self.path)
            if known:
                raise Damaged("the file is gone")
        self._lock.take_file()
        self._judge(known)
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        try:
            self._announce(connection, known)
            self._prepare(connection)
            if behind := head.behind(connection, self.epoch, known):
                raise Damaged(behind)
            self._note_head(connection)
            self._wal_seen = self._wal.stat()  # SQLite has made it by now
        except OSError as error:
            connection.close()
            raise StoreError(f"{self._wal}: {error.strerror}", "check the disk") from error
        except (sqlite3.Error, StoreError, Damaged):
            connection.close()
            raise
        return connection

    def _judge(self, known: head.Head | None) -> None:
        """What SQLite would not notice. Raises Damaged, StoreError."""
        try:
            page = os.pread(self._lock.fd, head.PAGE_BYTES, 0)
            damage = head.strange(page, known)
            if self._synchronous == "FULL" and self._wal.exists():  # what it takes for granted
                from agent.store import wal  # numpy: not for those who only look into a store

                damage = damage or wal.damage(self._wal)
        except OSError as error:
            kind = StoreFull if error.errno == errno.ENOSPC else StoreError
            remedy = REMEDIES.get(error.errno or 0, "check the disk")
            raise kind(f"{self.path}: {error.strerror}", remedy) from error
        if page and known is None and page[: len(head.MAGIC)] != head.MAGIC:
            raise StoreError(
                f"{self.path}: not a SQLite file, and nothing says that it ever was a store",
                "set another store.path, or move the file away",
            )
        if not page and known:
            damage = "the file is empty"
        if damage:
            raise Damaged(damage)

    def _announce(self, connection: sqlite3.Connection, known: head.Head | None) -> None:
        """The head says a schema before the file has it: so one that only the file has is damage."""
        newest = len(schema.steps())
        if schema.check(connection) < newest and known:
            with suppress(OSError):  # no room: an older Holdfast would take it for damage
                head.write(self.path, msgspec.structs.replace(known, version=newest))

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        now_us = int(self._clock.wall() * 1e6)
        schema.migrate(connection, now_us)
        connection.execute("PRAGMA foreign_keys = ON")
        self.epoch = schema.epoch(connection)
        connection.execute("BEGIN IMMEDIATE")
        quarantine.note(connection, self.path, self._causes, now_us)
        quarantine.forget(connection, self.path)
        if self._bounds:
            self._bounds.begin(connection)
        connection.execute("COMMIT")

    def _note_head(self, connection: sqlite3.Connection) -> None:
        """Write `<file>.head`; without it less is told of a later damage, so that may wait."""
        self._head_at = time.monotonic()
        with suppress(OSError, sqlite3.Error):
            if self._head is None or self._head.epoch != self.epoch:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            page = os.pread(self._lock.fd, head.PAGE_BYTES, 0)
            fresh = head.of(connection, self.epoch, head.mended(page))
            if fresh != self._head:
                head.write(self.path, fresh)
                self._head = fresh

    def _put_aside_if_still(self, error: sqlite3.Error) -> None:
        """A first look said corrupt; so must a second."""
        try:
            self._connection = self._opened()
        except Damaged as damage:
            self._put_aside(str(damage))
        except sqlite3.Error as again:
            if not _corrupt(again):
                raise self._typed(again) from again
            self._put_aside(str(error))

    def _put_aside(self, cause: str) -> None:
        """The file is damaged: keep it under another name. Raises StoreError where that fails."""
        self.close()
        self._lock.release_file()
        try:
            aside = quarantine.put_aside(self.path, self._clock.wall())
        except OSError as error:
            raise StoreError(
                f"{self.path}: {cause}; and it cannot be put aside: {error.strerror}",
                REMEDIES.get(error.errno or 0, "check the disk"),
            ) from error
        self._causes[aside.name] = cause
        self._head = None

    def _committed(
        self, step: Callable[[sqlite3.Connection], T], begin: str = "BEGIN IMMEDIATE"
    ) -> T:
        connection = self.open()
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

    def _no_room(self, error: sqlite3.Error) -> bool:
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_FULL:
            return True
        if code & 0xFF != sqlite3.SQLITE_IOERR:  # its WAL index could not grow, for one
            return False
        with suppress(OSError):  # a dead disk does not even say how much room it has
            return self._room() < RESERVE_BYTES // 16
        return False

    def _typed(self, error: sqlite3.Error) -> StoreError:
        """SQLite's error as ours, with what to do."""
        if self._no_room(error):
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


def _give_back(connection: sqlite3.Connection, pages: int) -> None:
    """So many free pages, in one transaction."""
    # `execute` would step once, which is one page: sqlite3 sees no columns, so it fetches no rows.
    connection.executescript(f"PRAGMA incremental_vacuum({pages});")
