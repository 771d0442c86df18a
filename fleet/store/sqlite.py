"""SQLite as the cloud side's database: one file, one connection, one thread.

Limits  : one process writes (a lock beside the file says so); others may read. A `shared` file
          any number of processes write, in turn.
Format  : the schema of sql/sqlite; its version is PRAGMA user_version.
Recovery: WAL with synchronous=FULL, so what was committed survives a power cut. A shared file has a
          rollback journal in its place: two connections that both write a WAL can damage it
          (SQLite before 3.51.3).
"""

import asyncio
import fcntl
import json
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

from agent.errors import StoreError, StoreLocked
from fleet.store.database import STORE, Absent, Row, Schema, Unfit, missing

T = TypeVar("T")
CACHE_KIB = 64 << 10
CHECKPOINT_PAGES = 8192  # 32 MiB of WAL: a page that changes often is copied back once
ROWS_AT_ONCE = 25  # in one statement: each lets the other thread run, and waits for its turn again
BUSY_S = 5.0  # a reader waits so long for a checkpoint
TURN_S, TURN_LOOK_S = 30.0, 0.002  # and a process for its turn with a shared file
_UNFIT = (sqlite3.DataError, sqlite3.InterfaceError, sqlite3.IntegrityError)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN)


class SQLite:
    """A file. Raises StoreError, StoreLocked when another process writes it."""

    def __init__(self, path: str, *, reads_only: bool = False, schema: Schema = STORE) -> None:
        self.name, self._path, self._schema = path, Path(path), schema
        if schema.infix:
            whole = f"{self._path.stem}{schema.infix}{self._path.suffix}"
            self._path = self._path.with_name(whole)
            self.name = str(self._path)
        self._reads_only = reads_only
        self._thread = ThreadPoolExecutor(1, "sqlite")
        self._turn = asyncio.Lock()
        self._lock = -1
        self._connection: sqlite3.Connection

    async def __aenter__(self) -> Self:
        try:
            await self._run(self._open)
        except BaseException:  # a cancellation too: the lock goes back
            self._release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._run(lambda: self._connection.close())
        self._release()

    def _release(self) -> None:
        self._thread.shutdown()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @asynccontextmanager
    async def begin(self) -> AsyncIterator["_Transaction"]:
        """As Database says; one at a time."""
        async with self._turn:
            try:
                await self._run(self._begin)
                yield _Transaction(self._run, lambda: self._connection)
                await self._run(self._end)
            except BaseException:  # a cancelled call still runs in the thread; this comes after it
                await asyncio.shield(self._run(self._undo))
                raise

    def _begin(self) -> None:
        if self._schema.shared:
            self._wait_for_turn()
        self._connection.execute("BEGIN" if self._reads_only else "BEGIN IMMEDIATE")

    def _end(self) -> None:
        self._connection.execute("COMMIT")
        self._leave_turn()

    def _undo(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        finally:
            self._leave_turn()

    def _wait_for_turn(self) -> None:
        """SQLite itself would look ten times a second, and starve who writes little."""
        end = time.monotonic() + TURN_S
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(TURN_LOOK_S)
        raise StoreLocked(f"{self.name}: no turn within {TURN_S:g} s", "see who has it open")

    def _leave_turn(self) -> None:
        if self._schema.shared:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _open(self) -> None:
        if self._reads_only and not self._path.exists():
            raise Absent(f"{self.name}: there is no such database", "see --database")
        if not self._reads_only:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        where = f"file:{quote(str(self._path.absolute()))}"
        if self._schema.shared:
            self._open_shared(where)
        elif self._reads_only:
            self._connection = sqlite3.connect(
                f"{where}?mode=ro", BUSY_S, uri=True, isolation_level=None
            )
            self._migrate()
        else:
            self._take_lock(fcntl.LOCK_NB)
            self._connection = sqlite3.connect(where, BUSY_S, uri=True, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._migrate()

    def _open_shared(self, where: str) -> None:
        """Readers open it for writing, too: they may have to roll back what a crash left."""
        self._take_lock()  # two that migrate it at once would both begin
        self._connection = sqlite3.connect(where, TURN_S, uri=True, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = PERSIST")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._migrate()
        self._leave_turn()

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        for script in missing(
            *(version, self._schema, "sqlite", self.name), reads_only=self._reads_only
        ):
            version += 1
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {version}; COMMIT;"
            )

    def _take_lock(self, wait: int = 0) -> None:
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | wait)
        except BlockingIOError as error:
            raise StoreLocked(
                f"{self.name}: another process writes this database",
                "stop it first, or use PostgreSQL, into which many may write",
            ) from error

    async def _run(self, call: Callable[[], T]) -> T:
        """What `call` returns, from the connection's thread. Raises StoreError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except sqlite3.Error as error:
            if isinstance(error, _UNFIT):
                raise Unfit(f"{self.name}: {error}") from error
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            hint = "check that no other program has it open" if code in _BUSY else "check the disk"
            raise StoreError(f"{self.name}: {error}", hint) from error
        except (OverflowError, UnicodeEncodeError) as error:
            raise Unfit(f"{self.name}: {error}") from error
        except OSError as error:
            raise StoreError(f"{self.name}: {error}", "check the folder and its rights") from error


class _Transaction:
    """See fleet.store.database.Transaction."""

    def __init__(self, run: Callable[..., Any], connection: Callable[[], Any]) -> None:
        self._run = run
        self._connection = connection

    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]:
        """As Transaction says."""
        words, given = _words(sql), _given(values)
        rows: list[Row] = await self._run(
            lambda: self._connection().execute(words, given).fetchall()
        )
        return rows

    async def execute(self, sql: str, *values: Any) -> None:
        """As Transaction says."""
        await self.fetch(sql, *values)

    async def many(self, sql: str, rows: Iterable[Row]) -> None:
        """As Transaction says."""
        words = _words(sql)
        await self._run(lambda: self._connection().executemany(words, rows))

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """As Transaction says."""
        into = f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
        place = f"({', '.join('?' * len(columns))})"

        def insert() -> None:
            for first in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[first : first + ROWS_AT_ONCE]
                values = list(chain.from_iterable(some))
                self._connection().execute(into + ", ".join([place] * len(some)), values)

        await self._run(insert)


@cache  # there are a few dozen
def _words(sql: str) -> str:
    """The same in SQLite's words."""
    sql = re.sub(r"= ANY\(\$(\d+)\)", r"IN (SELECT value FROM json_each(?\1))", sql)
    sql = re.sub(r"ROWS\(\$(\d+)\)", r"json_each(?\1)", sql)
    sql = re.sub("FOR (UPDATE|SHARE)( OF [a-z]+)?( SKIP LOCKED)?", "", sql)
    sql = sql.replace("greatest(", "max(").replace("least(", "min(")
    return re.sub(r"\$(\d+)", r"?\1", sql)


def _given(values: Sequence[Any]) -> list[Any]:
    return [json.dumps(value) if isinstance(value, list) else value for value in values]
