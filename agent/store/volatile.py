"""Volatile records: answered from memory, written behind in one commit for many of them.

Limits    : `bytes_max` of bodies and blobs in memory, of all streams together, and for `wait_s`: a
            call that finds no room waits for a commit. A stream has AHEAD seqs in reserve; once
            half of either is used, what waits is written early.
Format    : `streams.reserved`: a seq up to it may have been given out; every commit moves it on.
Durability: none. A kill or a power cut costs at most what was in memory. A stricter append to the
            stream takes along what waits before it, so the seqs stay in order; such appends come
            one after the other.
Recovery  : at open, the seqs between `produced` and `reserved` are counted as dropped (`restart`);
            a clean close writes what waits and gives the rest back. What cannot be written is tried
            again, and its stream's producers are told; after TRIES_MAX times it is counted as
            dropped (`full`, `error`).
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self, TypeVar

from agent.errors import StoreError, StoreFull
from agent.store import streams
from agent.store.database import Database
from agent.store.streams import Item
from agent.words import counted

log = logging.getLogger("store")
T = TypeVar("T")
AHEAD = 1024
TRIES_MAX = 5
RESTART, FULL, ERROR = "restart", "full", "error"


class Tail:
    """The end of a stream: what of it is in memory alone, and the seqs in reserve."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.items: list[Item] = []
        self.next_seq = 1
        self.reserved = 0
        self.stricter = 0  # appends under way that take the seqs behind what is here
        self.fault: StoreError | None = None  # why it could not be written
        self.tries = 0

    @property
    def runs_low(self) -> bool:
        """Whether half of the reserve is used."""
        return self.reserved - self.next_seq < AHEAD // 2

    def let_go(self, items: int, produced: int, reserved: int) -> int:
        """So many items are in the file now, or counted there; the bytes that they took."""
        gone, self.items = self.items[:items], self.items[items:]
        self.next_seq, self.reserved = produced + _count(self.items) + 1, reserved
        self.fault, self.tries = None, 0
        return sum(map(streams.item_bytes, gone))


class Volatile:
    """The records in memory; an async context manager, used from the event loop's thread alone."""

    def __init__(
        self, database: Database, bytes_max: int, wait_s: float, kept: Callable[[], None]
    ) -> None:
        """`kept` is called whenever there is more to send."""
        self.bytes_max = bytes_max
        self._wait_s = wait_s
        self._database = database
        self._kept = kept
        self._tails: dict[str, Tail] = {}
        self._bytes = 0
        self._some = asyncio.Event()  # there are records in memory
        self._much = asyncio.Event()  # there are many
        self._turn = asyncio.Lock()  # one commit of ours at a time
        self._under_way: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        if await self._database.read(_unaccounted):
            await self._database.write(_account)
        self._task = asyncio.create_task(self._write_behind())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, *self._under_way, return_exceptions=True)  # `run` tells
        try:
            await self._close()
        except StoreError as error:
            left = sum(_count(tail.items) for tail in self._tails.values())
            what = counted(left, "volatile record is", "volatile records are")
            log.warning("%s dropped, counted at the next start: %s", what, error)

    async def run(self) -> None:
        """Wait until writing behind ends; raises what ended it."""
        await asyncio.shield(self._task)

    async def append(self, item: Item) -> int:
        """Take records into memory, no more than `bytes_max`; the last seq.

        Raises StoreFull or StoreError, and takes nothing, while the stream cannot be written.
        """
        tail = self._tail(item)
        if tail.fault:
            raise _again(tail.fault)
        if tail.stricter or not self._fits(tail, item):
            return await self._whole(self._in_turn(tail, item))
        return self._take(tail, item)

    async def append_stricter(self, item: Item, *, alone: bool) -> int:
        """Commit these records, behind what waits of their stream; the last seq.

        Raises as `append` does.
        """
        tail = self._tail(item)
        tail.stricter += 1
        return await self._whole(self._behind(tail, item, alone=alone))

    def _tail(self, item: Item) -> Tail:
        return self._tails.setdefault(item[0], Tail(item[0]))

    def _fits(self, tail: Tail, item: Item) -> bool:
        return self._has_room(item) and tail.next_seq + _count([item]) - 1 <= tail.reserved

    def _has_room(self, item: Item) -> bool:
        return self._bytes + streams.item_bytes(item) <= self.bytes_max

    def _take(self, tail: Tail, item: Item) -> int:
        tail.items.append(item)
        tail.next_seq += _count([item])
        self._bytes += streams.item_bytes(item)
        self._some.set()
        if tail.runs_low or self._bytes > self.bytes_max // 2:
            self._much.set()
        return tail.next_seq - 1

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to its end, even if the caller is cancelled: what was committed has to be noted."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _in_turn(self, tail: Tail, item: Item) -> int:
        async with self._turn:
            while not self._has_room(item):
                await self._flush()
                for other in (tail, *self._tails.values()):  # what cannot be written fills memory
                    if other.fault:
                        raise _again(other.fault)
            if not self._fits(tail, item):
                await self._commit([tail], ahead=_count([item]) + AHEAD)
            return self._take(tail, item)

    async def _behind(self, tail: Tail, item: Item, *, alone: bool) -> int:
        try:
            async with self._turn:
                return await self._commit([tail], [item], alone=alone)
        finally:
            tail.stricter -= 1

    async def _write_behind(self) -> None:
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s):
                    await self._much.wait()
            self._some.clear()
            self._much.clear()
            await self._whole(self._flush_in_turn())
            if any(tail.fault for tail in self._tails.values()):
                self._some.set()

    async def _flush_in_turn(self) -> None:
        async with self._turn:
            await self._flush()

    async def _flush(self) -> None:
        """Write all that waits; if that fails, each stream by itself."""
        waiting = [tail for tail in self._tails.values() if tail.items]
        if not waiting:
            return
        try:
            await self._commit(waiting)
        except StoreError:
            for tail in waiting:
                try:
                    await self._commit([tail])
                except StoreError as error:
                    await self._failed(tail, error)

    async def _commit(
        self,
        tails: list[Tail],
        new: list[Item] | None = None,
        *,
        alone: bool = False,
        ahead: int = AHEAD,
    ) -> int:
        """Write what waits of these streams, and `new` behind it; the last seq of that.

        In the same transaction each gets its next seqs reserved.
        """
        counts = [len(tail.items) for tail in tails]
        items = [item for tail in tails for item in tail.items] + (new or [])

        def operation(connection: sqlite3.Connection) -> tuple[list[int], list[tuple[int, int]]]:
            lasts = streams.append_all(connection, items)
            return lasts, [streams.reserve(connection, tail.stream, ahead) for tail in tails]

        grown = [tail.stream for tail in tails] if items else []
        lasts, marks = await self._database.write(operation, grows=grown, alone=alone)
        for tail, count, (produced, reserved) in zip(tails, counts, marks, strict=True):
            self._bytes -= tail.let_go(count, produced, reserved)
        if items:
            self._kept()
        return lasts[-1] if new else 0

    async def _failed(self, tail: Tail, error: StoreError) -> None:
        tail.fault = error
        tail.tries += 1
        if tail.tries >= TRIES_MAX:
            with suppress(StoreError):  # not even that: it is tried again with the records
                await self._give_up(tail, error)

    async def _give_up(self, tail: Tail, error: StoreError) -> None:
        """Count what waits of a stream as dropped."""
        count, reason = len(tail.items), FULL if isinstance(error, StoreFull) else ERROR
        lost = _count(tail.items)

        def operation(connection: sqlite3.Connection) -> tuple[int, int]:
            key = streams.stream_id(connection, tail.stream)
            streams.drop_unheld(connection, key, reason, lost)
            return streams.reserve(connection, tail.stream, AHEAD)

        self._bytes -= tail.let_go(count, *await self._database.write(operation))
        what = counted(lost, "volatile record was", "volatile records were")
        log.warning("%s: %s dropped: %s", tail.stream, what, error)

    async def _close(self) -> None:
        async with self._turn:
            await self._flush()
            for tail in self._tails.values():
                if tail.fault and tail.items:
                    await self._give_up(tail, tail.fault)
            if self._tails:
                await self._database.write(_give_back)


def _again(error: StoreError) -> StoreError:
    """The same for another caller, with a traceback of its own."""
    return type(error)(str(error), error.hint)


def _count(items: list[Item]) -> int:
    return sum(len(records) for _, _, records in items)


def _unaccounted(connection: sqlite3.Connection) -> list[tuple[int, int]]:
    """Streams with seqs of which nobody knows whether they were given out, and how many."""
    return connection.execute(
        "SELECT id, reserved - produced FROM streams WHERE reserved > produced"
    ).fetchall()


def _account(connection: sqlite3.Connection) -> None:
    for key, count in _unaccounted(connection):
        streams.drop_unheld(connection, key, RESTART, count)


def _give_back(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE streams SET reserved = produced WHERE reserved > produced")
