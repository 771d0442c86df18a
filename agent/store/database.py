"""One connection in one thread, and the group commit.

Limits    : one process (flock on `<file>.lock`), one thread, one connection.
Format    : SQLite, WAL, synchronous=FULL; auto_vacuum=INCREMENTAL, set at birth.
Durability: `write` returns after the commit that holds its work, fsynced. A commit takes everything
            that arrived while the last one ran, so many producers share one fsync and one producer
            waits for nobody.
Recovery  : SQLite replays or discards the WAL's tail at open; an operation is wholly there or not.
"""

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from agent.clock import Clock
from agent.errors import StoreError, StoreFull, StoreLocked
from agent.store import schema

T = TypeVar("T")
GROUP_MAX = 1000  # operations in one commit: bounds the WAL and the wait of the first
BUSY_TIMEOUT_S = 5.0  # only an outside reader (a backup, a test) can make us wait


class Work(Generic[T]):
    """One operation on its way through the thread."""

    def __init__(self, operation: Callable[[sqlite3.Connection], T], writes: bool) -> None:
        self.operation = operation
        self.writes = writes
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.result: T | None = None
        self.error: Exception | None = None


class Database:
    """The open store file; an async context manager."""

    def __init__(self, path: Path, clock: Clock, synchronous: str = "FULL") -> None:
        self.path = path
        self.epoch = ""
        self._clock = clock
        self._synchronous = synchronous
        self._queue: queue.SimpleQueue[Work[Any] | None] = queue.SimpleQueue()
        self._lock_fd = -1

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._lock_fd = self._lock()
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        opened: asyncio.Future[None] = self._loop.create_future()
        self._opened = opened
        self._thread.start()
        try:
            await opened
        except StoreError:
            os.close(self._lock_fd)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        os.close(self._lock_fd)

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run `operation` in a transaction; return its result after the commit.

        It may run twice (again alone, when a neighbour in its group fails), so it must touch
        nothing but the connection. Raises StoreFull or StoreError; then nothing of it is kept.
        """
        return await self._ask(Work(operation, writes=True))

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run `operation`, which must not write, between two commits. Raises StoreError."""
        return await self._ask(Work(operation, writes=False))

    async def _ask(self, work: Work[T]) -> T:
        self._queue.put(work)
        return await work.done

    def _lock(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise StoreError(
                f"{self.path}: the store cannot be opened: {error.strerror}",
                f"give this user write access to {self.path.parent}, or set store.path",
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

    def _serve(self) -> None:
        """The thread: open, then group after group until told to stop."""
        try:
            connection = self._open()
        except sqlite3.Error as error:
            self._tell(self._opened, _typed(self.path, error))
            return
        except StoreError as error:
            self._tell(self._opened, error)
            return
        self._tell(self._opened, None)
        running = True
        while running:
            group, running = self._gather()
            self._run(connection, group)
            self._loop.call_soon_threadsafe(_settle, group)
        connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        schema.migrate(connection, int(self._clock.wall() * 1e6))
        self.epoch = schema.epoch(connection)
        return connection

    def _tell(self, opened: asyncio.Future[None], error: StoreError | None) -> None:
        def tell() -> None:
            if error:
                opened.set_exception(error)
            else:
                opened.set_result(None)

        self._loop.call_soon_threadsafe(tell)

    def _gather(self) -> tuple[list[Work[Any]], bool]:
        """Everything that waits now, at least one; False when the last has come."""
        group: list[Work[Any]] = []
        work = self._queue.get()
        while work is not None:
            group.append(work)
            if len(group) == GROUP_MAX or self._queue.empty():
                return group, True
            work = self._queue.get()
        return group, False

    def _run(self, connection: sqlite3.Connection, group: list[Work[Any]]) -> None:
        for work in group:
            if not work.writes:
                self._attempt(connection, [work])
        writes = [work for work in group if work.writes]
        if writes and not self._attempt(connection, writes) and len(writes) > 1:
            for work in writes:
                self._attempt(connection, [work])

    def _attempt(self, connection: sqlite3.Connection, group: list[Work[Any]]) -> bool:
        """Run the group in one transaction; on failure roll back and note the error on each."""
        try:
            connection.execute("BEGIN IMMEDIATE" if group[0].writes else "BEGIN")
            for work in group:
                work.result, work.error = work.operation(connection), None
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - handed to the caller; the thread must live
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            typed = _typed(self.path, error) if isinstance(error, sqlite3.Error) else error
            for work in group:
                work.error = typed
            return False
        return True


def _settle(group: list[Work[Any]]) -> None:
    for work in group:
        if work.done.cancelled():
            continue
        if work.error is not None:
            work.done.set_exception(work.error)
        else:
            work.done.set_result(work.result)


def _typed(path: Path, error: sqlite3.Error) -> StoreError:
    """SQLite's error as ours, with what to do."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StoreFull(f"{path}: the disk is full", "make room on the disk")
    if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreError(
            f"{path}: not a sound SQLite file: {error}", "move it away and start again; keep it"
        )
    return StoreError(f"{path}: {error}", "check the disk and the rights on the file")
