"""One connection in one thread, and the group commit.

Limits    : one thread; GROUP_MAX operations in one commit.
Format    : file.py says what lies on the disk.
Durability: `write` returns after the commit that holds its work, fsynced. A commit takes everything
            that arrived while the last one ran, so many producers share one fsync and one producer
            waits for nobody.
Recovery  : a group that fails is run again one by one, so that only what is wrong fails. A fault of
            ours in the thread ends the store, and with it the agent.
"""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from agent.clock import Clock
from agent.errors import StoreError
from agent.store.bounds import Bounds
from agent.store.file import File
from agent.store.latency import Commits
from agent.store.reserve import RESERVE_BYTES

T = TypeVar("T")
Bulk = Callable[[sqlite3.Connection, list[Any]], list[Any]]  # items in, as many results out
GROUP_MAX = 1000  # operations in one commit: bounds the WAL and the wait of the first
TIDY_S = 1.0  # how often free pages are looked at


class Work(Generic[T]):
    """One operation on its way through the thread, or one item for a bulk operation."""

    __slots__ = (
        *("alone", "bulk", "done", "error", "grows", "item", "operation"),
        *("patient", "result", "writes"),
    )

    def __init__(
        self,
        operation: Callable[[sqlite3.Connection], T] | None,
        *,
        writes: bool,
        grows: Sequence[str] = (),
        alone: bool = False,
        patient: bool = False,
        bulk: Bulk | None = None,
        item: Any = None,
    ) -> None:
        self.operation = operation
        self.writes = writes
        self.grows = grows  # streams that take room: refused where there is none
        self.alone = alone  # in a commit of its own
        self.patient = patient  # after all others that are there, and after their answers
        self.bulk = bulk
        self.item = item
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.result: Any = None
        self.error: Exception | None = None


class Database:
    """The open store file; an async context manager."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        bounds: Bounds | None = None,
        synchronous: str = "FULL",
    ) -> None:
        """Without `bounds`, whatever comes is held."""
        self.path = path
        self._bounds = bounds
        self._file = File(path, clock, bounds, synchronous)
        self._queue: queue.SimpleQueue[Work[Any] | None] = queue.SimpleQueue()
        self._tidied_at = 0.0
        self.anew = asyncio.Event()  # set when a damaged file was put aside and a new one began

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._file.lock()
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        try:
            await self._opened
        except Exception:  # whatever kept it from opening: the lock goes back
            self._file.unlock()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._file.unlock()

    @property
    def epoch(self) -> str:
        """The identity born with the file."""
        return self._file.epoch

    @property
    def latency(self) -> Commits:
        """How long commits took, since the start."""
        return self._file.commits.read()

    @property
    def steps(self) -> int:
        """Commits, and slices of what takes long, since the start: the thread moves."""
        return self.latency.count + self._file.slices

    @property
    def short_of_room(self) -> bool:
        """Whether the disk was full at the last commit that wanted room; for any thread."""
        return self._file.short_of_room

    async def run(self) -> None:
        """Wait until the thread ends; raises what ended it, if it was not told to."""
        await asyncio.shield(self._over)

    async def write(
        self,
        operation: Callable[[sqlite3.Connection], T],
        *,
        grows: Sequence[str] = (),
        alone: bool = False,
    ) -> T:
        """Run `operation` in a transaction; return its result after the commit.

        `grows` names the streams that it brings more to, and is refused for at a bound. `alone`
        gives it a commit of its own. It may run twice (again by itself, when a neighbour in its
        group fails; and on a new file, of another epoch, when this one is found damaged), so it
        must touch nothing but the connection.
        Raises StoreFull: nothing of it is kept; or StoreError: neither, unless the machine dies
        before the next commit, for what a failed fsync left in the WAL may then come back.
        """
        return await self._ask(Work(operation, writes=True, grows=grows, alone=alone))

    async def put(self, bulk: Bulk, item: Any, grows: Sequence[str], *, alone: bool = False) -> Any:
        """As `write`, but one call of `bulk` does all items that share a commit.

        `alone` gives it a commit of its own. The item's result.
        """
        work: Work[Any] = Work(None, writes=True, grows=grows, alone=alone, bulk=bulk, item=item)
        self._queue_up(work)
        return await work.done

    async def read(
        self, operation: Callable[[sqlite3.Connection], T], *, patient: bool = False
    ) -> T:
        """Run `operation`, which must not write, between two commits. Raises StoreError.

        `patient`: a slice of a long read; everything else that waits comes, and is answered, first.
        """
        return await self._ask(Work(operation, writes=False, patient=patient))

    async def _ask(self, work: Work[T]) -> T:
        self._queue_up(work)
        return await work.done

    def _queue_up(self, work: Work[Any]) -> None:
        if self._over.done():
            raise StoreError(f"{self.path}: the store's thread has ended", "restart the agent")
        self._queue.put(work)

    def _serve(self) -> None:
        """The thread: open, then group after group until told to stop.

        A fault of our own in it ends the store, and with it the agent: nobody waits for ever.
        """
        group: list[Work[Any]] = []
        fault: Exception | None = None
        try:
            self._file.open()
            self._loop.call_soon_threadsafe(self._opened.set_result, None)
            epoch = self._file.epoch
            running = True
            while running:
                group, running = self._gather()
                for patient in (False, True):
                    if part := [work for work in group if work.patient is patient]:
                        self._run(part)
                        self._loop.call_soon_threadsafe(_settle, part)
                self._tidy()
                if self._file.epoch != epoch:
                    epoch = self._file.epoch
                    self._loop.call_soon_threadsafe(self.anew.set)
            self._file.end()
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
        """Run the group in one transaction; on failure note the error on each."""
        try:
            if group[0].writes:
                producing = any(work.grows for work in group)
                self._file.transact(lambda c: self._perform(c, group), producing=producing)
            else:
                self._file.read(lambda c: self._perform(c, group))
        except Exception as error:  # noqa: BLE001 - handed to the caller; the thread must live
            for work in group:
                work.error = error
            return False
        return True

    def _perform(self, connection: sqlite3.Connection, group: list[Work[Any]]) -> None:
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
        if self._bounds and group[0].writes:
            grown = {name for work in group for name in work.grows}
            self._bounds.enforce(connection, grown)

    def _tidy(self) -> None:
        """Between two groups: make room, and give free pages back to the disk, a slice each.

        Whoever needs the store next meets what is wrong with it, and is told.
        """
        with suppress(sqlite3.Error, StoreError, OSError):
            if self._bounds and self._bounds.room_is_wanted:
                self._file.transact(self._bounds.make_room)
            if self._file.short_of_room and self._file.relieve() and self._bounds:
                bounds = self._bounds
                self._file.transact(lambda c: bounds.make_free_pages(c, RESERVE_BYTES))
            more = time.monotonic() - self._tidied_at >= TIDY_S
            if more:
                self._file.look_after()
            while more and self._queue.empty():
                more = self._file.shrink()
                if not more:  # else it goes on as soon as nobody waits
                    self._tidied_at = time.monotonic()


def _settle(group: list[Work[Any]]) -> None:
    for work in group:
        if work.done.done():  # cancelled
            continue
        if work.error is not None:
            work.done.set_exception(work.error)
        else:
            work.done.set_result(work.result)
