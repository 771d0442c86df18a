"""One connection in one thread, and the group commit.

Limits    : one process (flock on `<file>.lock`), one thread, one connection.
Format    : SQLite, WAL, synchronous=FULL; auto_vacuum=INCREMENTAL, set at birth.
Durability: `write` returns after the commit that holds its work, fsynced. A commit takes everything
            that arrived while the last one ran, so many producers share one fsync and one producer
            waits for nobody.
Recovery  : SQLite replays or discards the WAL's tail at open; an operation is wholly there or not.
            A connection that cannot even roll back is closed, and the file is opened anew.
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
Bulk = Callable[[sqlite3.Connection, list[Any]], list[Any]]  # items in, as many results out
GROUP_MAX = 1000  # operations in one commit: bounds the WAL and the wait of the first
BUSY_TIMEOUT_S = 5.0  # only an outside reader (a backup, a test) can make us wait


class Work(Generic[T]):
    """One operation on its way through the thread, or one item for a bulk operation."""

    __slots__ = ("alone", "bulk", "done", "error", "item", "operation", "result", "writes")

    def __init__(
        self,
        operation: Callable[[sqlite3.Connection], T] | None,
        *,
        writes: bool,
        alone: bool = False,
        bulk: Bulk | None = None,
        item: Any = None,
    ) -> None:
        self.operation = operation
        self.writes = writes
        self.alone = alone  # in a commit of its own
        self.bulk = bulk
        self.item = item
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.result: Any = None
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
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._lock_fd = self._lock()
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        try:
            await self._opened
        except Exception:
            os.close(self._lock_fd)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        os.close(self._lock_fd)

    async def run(self) -> None:
        """Wait until the thread ends; raises what ended it, if it was not told to."""
        await asyncio.shield(self._over)

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run `operation` in a transaction; return its result after the commit.

        It may run twice (again alone, when a neighbour in its group fails), so it must touch
        nothing but the connection. Raises StoreFull or StoreError; then nothing of it is kept.
        """
        return await self._ask(Work(operation, writes=True))

    async def put(self, bulk: Bulk, item: Any, *, alone: bool = False) -> Any:
        """As `write`, but one call of `bulk` does all items that share a commit; the item's result.

        `alone` gives it a commit of its own.
        """
        return await self._ask(Work(None, writes=True, alone=alone, bulk=bulk, item=item))

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run `operation`, which must not write, between two commits. Raises StoreError."""
        return await self._ask(Work(operation, writes=False))

    async def _ask(self, work: Work[T]) -> T:
        if self._over.done():
            raise StoreError(f"{self.path}: the store's thread has ended", "restart the agent")
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
        """The thread: open, then group after group until told to stop.

        A fault of our own in it ends the store, and with it the agent: nobody waits for ever.
        """
        group: list[Work[Any]] = []
        fault: Exception | None = None
        try:
            self._open()
            self._loop.call_soon_threadsafe(self._opened.set_result, None)
            running = True
            while running:
                group, running = self._gather()
                self._run(group)
                self._loop.call_soon_threadsafe(_settle, group)
            self._close()
        except sqlite3.Error as error:
            fault = _typed(self.path, error)
        except Exception as error:  # noqa: BLE001 - told to everybody who waits
            fault = error
        self._loop.call_soon_threadsafe(self._end, group, fault)

    def _end(self, group: list[Work[Any]], fault: Exception | None) -> None:
        """The thread is over: tell all who wait for it."""
        while not self._queue.empty():
            group = [*group, *filter(None, [self._queue.get()])]
        for work in group:
            work.error = work.error or fault or StoreError(f"{self.path}: the store is closed")
        _settle(group)
        for future in (self._opened, self._over):
            if future.done():
                continue
            if fault:
                future.set_exception(fault)
                future.exception()  # seen, if nobody asks
            else:
                future.set_result(None)

    def _open(self) -> sqlite3.Connection:
        """The open connection; raises sqlite3.Error, StoreError."""
        if self._connection:
            return self._connection
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        try:
            schema.check(connection)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            schema.migrate(connection, int(self._clock.wall() * 1e6))
            connection.execute("PRAGMA foreign_keys = ON")
            self.epoch = schema.epoch(connection)
        except (sqlite3.Error, StoreError):
            connection.close()
            raise
        self._connection = connection
        return connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

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

    def _run(self, group: list[Work[Any]]) -> None:
        for work in group:
            if not work.writes:
                self._attempt([work])
        writes = [work for work in group if work.writes and not work.alone]
        if writes and not self._attempt(writes) and len(writes) > 1:
            for work in writes:
                self._attempt([work])
        for work in group:
            if work.alone:
                self._attempt([work])

    def _attempt(self, group: list[Work[Any]]) -> bool:
        """Run the group in one transaction; on failure roll back and note the error on each."""
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE" if group[0].writes else "BEGIN")
            _perform(connection, group)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - handed to the caller; the thread must live
            self._roll_back()
            typed = _typed(self.path, error) if isinstance(error, sqlite3.Error) else error
            for work in group:
                work.error = typed
            return False
        return True

    def _roll_back(self) -> None:
        try:
            if self._connection and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:  # it is in no known state: the next operation opens the file anew
            self._close()


def _perform(connection: sqlite3.Connection, group: list[Work[Any]]) -> None:
    bulks: dict[Bulk, list[Work[Any]]] = {}
    for work in group:
        work.error = None
        if work.operation:
            work.result = work.operation(connection)
        elif work.bulk:
            bulks.setdefault(work.bulk, []).append(work)
    for bulk, works in bulks.items():
        results = bulk(connection, [work.item for work in works])
        for work, result in zip(works, results, strict=True):
            work.result = result


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
