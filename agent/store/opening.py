"""How the store's file is opened: judged first, brought to the newest schema, put aside if damaged.

Limits  : one process (lock.py).
Format  : SQLite, WAL, auto_vacuum=INCREMENTAL, set at birth. Beside it `<file>.head` (head.py).
          `<file>.back` is the whole content of a file that was removed while it was open.
Recovery: SQLite replays or discards the WAL's tail. What it would not notice is looked for before:
          a WAL that is damaged within, a header or a length that cannot be, a file that is gone or
          older than what is known of it. Going on with such a file would forget accepted records
          without a word, and give their seqs out again.
"""

import errno
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.clock import Clock
from agent.errors import StoreError, StoreFull
from agent.store import head, quarantine, schema, streams
from agent.store.bounds import Bounds
from agent.store.lock import REMEDIES, Lock

WAL_BYTES_MAX = 8 << 20  # what stays of the WAL's file after a checkpoint
SAVED_PAGES = 1024  # at once: 4 MiB
BUSY_TIMEOUT_S = 5.0  # only an outside reader (a backup, a test) can make us wait


class Damaged(Exception):
    """The file cannot be trusted: why, in words.

    `exact`: its own counters say how much was in it; else it may have had more. `foreign`: it is
    sound, but not the one that should be there.
    """

    def __init__(self, cause: str, *, exact: bool = False, foreign: bool = False) -> None:
        super().__init__(cause)
        self.exact = exact
        self.foreign = foreign


class Opening:
    """Used in the store's thread alone, but for `lock`."""

    def __init__(self, path: Path, clock: Clock, rules: Bounds | None, synchronous: str) -> None:
        self.path = path
        self.epoch = ""  # of the file that was opened last
        self.synchronous = synchronous
        self.lock = Lock(path)
        self._clock = clock
        self._bounds = rules
        self._wal, self._back = (path.with_name(path.name + part) for part in ("-wal", ".back"))
        self._wal_seen = os.stat_result(range(10))
        self._head: head.Head | None = None
        self._head_at = 0.0

    def open(self, *, cramped: bool = False) -> sqlite3.Connection:
        """A connection to the file. Raises Damaged, sqlite3.Error, StoreError.

        `cramped`: it takes no room, for there is none. SQLite keeps the index of the WAL in memory
        (www.sqlite.org/wal.html#noshm), and what a start notes waits: nothing is to be brought.
        """
        try:
            known = self._found()
            self.lock.take_file()
            self._judge(known)
        except OSError as error:
            kind = StoreFull if error.errno == errno.ENOSPC else StoreError
            remedy = REMEDIES.get(error.errno or 0, "check the disk")
            raise kind(f"{self.path}: {error.strerror}", remedy) from error
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        connection.text_factory = streams.text
        try:
            if cramped:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._announce(connection, known)
            self._prepare(connection)
            self._begin(connection, cramped=cramped)
            if known and known.epoch != self.epoch:
                raise Damaged(f"it is the file of another epoch, {self.epoch}", foreign=True)
            if behind := head.behind(connection, known):
                raise Damaged(behind)
            self.note_head(connection)
            self._wal_seen = self._wal.stat()  # SQLite has made it by now
        except OSError as error:
            connection.close()
            raise StoreError(f"{self._wal}: {error.strerror}", "check the disk") from error
        except (sqlite3.Error, StoreError, Damaged):
            connection.close()
            raise
        return connection

    def put_aside(self, damage: Damaged) -> None:
        """The file is damaged: keep it under another name. Raises StoreError where that fails."""
        self.lock.release_file()
        wall_s = self._clock.wall()
        parts: tuple[str, ...] = quarantine.ALL
        try:
            if damage.foreign:  # what is known beside it is of the file that is gone
                parts, gone = ("", "-wal"), "another file was in its place"
                quarantine.put_aside(self.path, gone, wall_s, exact=False, parts=(".head",))
            quarantine.put_aside(self.path, str(damage), wall_s, exact=damage.exact, parts=parts)
        except OSError as error:
            kind = StoreFull if error.errno == errno.ENOSPC else StoreError
            raise kind(
                f"{self.path}: {damage}; and it cannot be put aside: {error.strerror}",
                REMEDIES.get(error.errno or 0, "check the disk"),
            ) from error
        self._head = None

    def keep_head(self, connection: sqlite3.Connection) -> None:
        """Write the head anew if a stream has begun, and every head.WRITE_S."""
        (count,) = connection.execute("SELECT count(*) FROM streams").fetchone()
        known = len(self._head.streams) if self._head else -1
        if count != known or time.monotonic() - self._head_at >= head.WRITE_S:
            self.note_head(connection)

    def note_head(self, connection: sqlite3.Connection) -> None:
        """Write `<file>.head`; without it less is told of a later damage, so that may wait."""
        self._head_at = time.monotonic()
        with suppress(OSError, sqlite3.Error):
            if self._head is None or self._head.epoch != self.epoch:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            page = os.pread(self.lock.fd, head.PAGE_BYTES, 0)
            fresh = head.of(connection, self.epoch, head.mended(page))
            if fresh != self._head:
                head.write(self.path, fresh)
                self._head = fresh

    @property
    def is_astray(self) -> bool:
        """Whether the open file, or its WAL, is no longer the one under its name."""
        try:
            return not self.lock.holds_file or not os.path.samestat(
                self._wal.stat(), self._wal_seen
            )
        except OSError:
            return True

    def save(self, connection: sqlite3.Connection, step: Callable[[], None]) -> None:
        """Write all that an astray file holds to `<file>.back`. Raises OSError, sqlite3.Error.

        `step` is called after each few pages: it may take minutes, and is no hang.
        """
        fresh = self.path.with_name(f"{self._back.name}.new")
        for part in ("", "-wal", "-journal"):
            fresh.with_name(fresh.name + part).unlink(missing_ok=True)
        copy = sqlite3.connect(fresh)
        try:
            connection.backup(copy, pages=SAVED_PAGES, progress=lambda *_: step())
        finally:
            copy.close()
        quarantine.sync(fresh)
        fresh.rename(self._back)
        quarantine.sync(self.path.parent)

    def give_name(self) -> None:
        """Bring what `save` wrote under the store's name. Raises OSError."""
        if not self._back.exists():
            return
        if self.path.exists():  # somebody put another file there: it is theirs
            self.path.rename(self._back.with_suffix(f".found-{int(self._clock.wall())}"))
        for part in ("-wal", "-shm"):
            self.path.with_name(self.path.name + part).unlink(missing_ok=True)
        self._back.rename(self.path)
        quarantine.sync(self.path.parent)
        self._head = None

    def _found(self) -> head.Head | None:
        """What is known of the file. Raises Damaged when there should be one, OSError."""
        quarantine.finish(self.path)
        self.give_name()
        known = head.read(self.path)
        if known and not self.path.exists():
            raise Damaged("the file is gone")
        return known

    def _judge(self, known: head.Head | None) -> None:
        """What SQLite would not notice. Raises Damaged, StoreError, OSError."""
        page = os.pread(self.lock.fd, head.PAGE_BYTES, 0)
        if page and known is None and page[: len(head.MAGIC)] != head.MAGIC:
            raise StoreError(
                f"{self.path}: not a SQLite file, and nothing says that it ever was a store",
                "set another store.path, or move the file away",
            )
        if not page and known:
            raise Damaged("the file is empty")
        if self.synchronous == "FULL" and self._wal.exists():  # what it takes for granted
            from agent.store import wal  # numpy: not for those who only look into a store

            if damage := wal.damage(self._wal):
                raise Damaged(damage)
        if damage := head.strange(page, known):
            raise Damaged(damage, exact=True)

    def _announce(self, connection: sqlite3.Connection, known: head.Head | None) -> None:
        """The head names a schema before the file has it: one that only the file has is damage."""
        newest = len(schema.steps())
        if schema.check(connection) < newest and known:
            with suppress(OSError):  # no room: an older Holdfast would take it for damage
                head.write(self.path, msgspec.structs.replace(known, version=newest))

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if not pages:  # at its birth; later SQLite would write it again, on a full disk too
            connection.execute(f"PRAGMA page_size = {head.PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self.synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        now_us = int(self._clock.wall() * 1e6)
        schema.migrate(connection, now_us)
        connection.execute("PRAGMA foreign_keys = ON")
        self.epoch = schema.epoch(connection)

    def _begin(self, connection: sqlite3.Connection, *, cramped: bool) -> None:
        """Note what lies aside, and the boot."""
        if cramped:
            if self._bounds:
                self._bounds.look(connection)
            return
        connection.execute("BEGIN IMMEDIATE")
        quarantine.note(connection, self.path)
        quarantine.forget(connection, self.path)
        if self._bounds:
            self._bounds.begin(connection)
        connection.execute("COMMIT")
