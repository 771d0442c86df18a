"""What is held, read out without leasing it: for copies that leave by another way than the link.

Limits  : a stretch is bounded by records and bytes, blobs included, and by DROPS_MAX dropped
          ranges; it is read in one slice (slices.py), so that no commit waits for more.
Format  : reads alone: the rows of `records` and `drops` above each stream's `settled` mark, up to
          its `sendable` one. Dead letters of the link (dead.unsent) are told as dropped ranges,
          `dead`, as the link does; those that are sent again (dead.retry) are read as any other,
          and are all that is read at or below `settled`. An extent is fixed when it is taken, so
          that whoever reads it comes to an end while producers go on.
Recovery: nothing is kept here. What is acknowledged or evicted meanwhile is not found any more, and
          left out. A record that is damaged on the disk is given up (`corruption`), as by a lease.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

from msgspec import Struct

from agent.config import StreamRule
from agent.errors import EpochOver, StoreDamaged
from agent.records import Drop, Key, Range, Record
from agent.store import blobs, streams
from agent.store.bindings import Bindings
from agent.store.choice import EVENT_BYTES, UNSETTLED
from agent.store.database import Database
from agent.store.leases import Name
from agent.store.slices import Over, Slices

DROPS_MAX = 1000


class Extent(Struct, frozen=True):
    """What a stream had to give when it was asked: the seqs `after` < seq <= `through`, but up to
    `settled` only dead letters that are sent again.

    `records` and `size_bytes` (bodies and blobs) are about what is held of it. `file` is the epoch
    of the store's file, `key` the stream's row in it.
    """

    name: Name
    after: int
    settled: int
    through: int
    records: int
    size_bytes: int
    file: str
    key: int


class Stretch(Struct, frozen=True):
    """Held records of a stream in seq order, and its dropped ranges, of all seqs in `span`.

    `before` is the digest of the record right before the first, if that is held.
    """

    name: Name
    records: list[Record]
    drops: list[Drop]
    span: Range
    before: int | None = None


class _Damaged(Exception):
    """A record's row is not what was written."""

    def __init__(self, seq: int) -> None:
        super().__init__()
        self.seq = seq


class Held:
    """Reads a store out, stretch by stretch."""

    def __init__(
        self,
        database: Database,
        slices: Slices,
        bindings: Bindings,
        rule: Callable[[str], StreamRule],
    ) -> None:
        """`rule` is of a stream's name."""
        self._database = database
        self._slices = slices
        self._bindings = bindings
        self._rule = rule

    async def extents(self) -> list[Extent]:
        """Each stream that has something to give, those of the highest priority first."""
        found = await self._slices.read(lambda connection, _: self._extents(connection))
        return sorted(found, key=lambda one: (-self._rule(one.name[1]).priority, one.name[1]))

    def _extents(self, connection: sqlite3.Connection) -> list[Extent]:
        own = self._database.epoch
        rows = connection.execute(_EXTENTS).fetchall()
        return [
            Extent((epoch or own, name), after, settled, through, records, size, own, key)
            for key, epoch, name, after, settled, through, records, size in rows
        ]

    async def next(
        self, extent: Extent, after: int, records_max: int, bytes_max: int
    ) -> Stretch | None:
        """The next stretch above `after`; None: there is no more.

        Raises EpochOver when the file the extent is of has been put aside, and StoreError.
        """

        def operation(connection: sqlite3.Connection, over: Over) -> Stretch | None:
            if extent.file != self._database.epoch:
                raise EpochOver("the store's file was damaged, and a new one has begun")
            return self._stretch(connection, over, extent, after, records_max, bytes_max)

        while True:
            try:
                return await self._slices.read(operation)
            except _Damaged as damaged:
                await self._give_up(Key(extent.file, extent.key, blobs.NONE), damaged.seq)

    def _stretch(
        self,
        connection: sqlite3.Connection,
        over: Over,
        extent: Extent,
        after: int,
        records_max: int,
        bytes_max: int,
    ) -> Stretch | None:
        if after < extent.settled:
            if again := self._again(connection, over, extent, after, records_max, bytes_max):
                return Stretch(extent.name, again, [], Range(again[0].seq, again[-1].seq))
            after = extent.settled
        drops = _drops(connection, extent, after)
        last = extent.through
        if len(drops) > DROPS_MAX:
            last = drops.pop().first - 1
        span = Range(after + 1, last)
        records, cut = self._records(connection, over, extent, span, records_max, bytes_max)
        if cut:
            last = records[-1].seq
        told = [drop for drop in drops if drop.first <= last]
        if not records and not told:
            return None
        before = streams.digest_of(connection, extent.key, records[0].seq - 1) if records else None
        return Stretch(extent.name, records, told, Range(after + 1, last), before)

    def _records(
        self,
        connection: sqlite3.Connection,
        over: Over,
        extent: Extent,
        span: Range,
        records_max: int,
        bytes_max: int,
    ) -> tuple[list[Record], bool]:
        """The first records of a span, and whether there may be more of them."""
        rows = connection.execute(
            f"SELECT {streams.COLUMNS} FROM records WHERE id BETWEEN :first AND :last"
            f" AND id NOT IN (SELECT :stream << 40 | seq FROM dead WHERE {_DEAD}) ORDER BY id",
            {
                **dict(zip(("first", "last"), streams.keys(extent.key, span), strict=True)),
                **{"stream": extent.key, "mark": span.first - 1, "through": span.last},
            },
        )
        return self._first(over, extent, rows, records_max, bytes_max)

    def _again(
        self,
        connection: sqlite3.Connection,
        over: Over,
        extent: Extent,
        after: int,
        records_max: int,
        bytes_max: int,
    ) -> list[Record]:
        """The first dead letters up to the settled mark that are sent again."""
        rows = connection.execute(
            f"SELECT {streams.COLUMNS} FROM records WHERE id IN (SELECT :stream << 40 | seq"
            " FROM dead INDEXED BY dead_again WHERE stream = :stream AND unsent AND retry"
            " AND seq > :after AND seq <= :settled) ORDER BY id",
            {"stream": extent.key, "after": after, "settled": extent.settled},
        )
        return self._first(over, extent, rows, records_max, bytes_max)[0]

    def _first(
        self,
        over: Over,
        extent: Extent,
        rows: sqlite3.Cursor,
        records_max: int,
        bytes_max: int,
    ) -> tuple[list[Record], bool]:
        """As many of these rows as there is room for, one at least; whether it was not enough."""
        records: list[Record] = []
        with closing(rows):
            for row in rows:
                bytes_max -= len(row[-1]) + EVENT_BYTES + row[-2]
                full = bytes_max < 0 or len(records) == records_max or over()
                if records and full:
                    return records, True
                records.append(self._record(extent, row))
        return records, False

    def _record(self, extent: Extent, row: tuple[Any, ...]) -> Record:
        number, kind, boot, mono_ns, wall_us, _, blob, blob_bytes, body = row
        seq = streams.parts(number)[1]
        if not streams.is_whole(row):
            raise _Damaged(seq)
        stamp, bound = self._bindings.dated(boot, mono_ns, wall_us)
        key = Key(extent.file, extent.key, blob)
        return Record(extent.name[1], seq, kind, stamp, body, blob_bytes, key, bound)

    async def blob(self, record: Record, start: int, size: int) -> bytes:
        """`size` bytes of a record's blob from byte `start`; empty once the record is gone."""

        def operation(connection: sqlite3.Connection, _: Over) -> bytes:
            if not self._holds(connection, record.key, record.seq):
                return b""  # and its blob's number may be another's
            return blobs.read(connection, record.key.blob, start, size)

        try:
            return await self._slices.read(operation)
        except StoreDamaged:
            await self._give_up(record.key, record.seq)
            return b""

    def _holds(self, connection: sqlite3.Connection, key: Key, seq: int) -> bool:
        return key.epoch == self._database.epoch and streams.holds(connection, key.stream, seq)

    async def _give_up(self, key: Key, seq: int) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            if self._holds(connection, key, seq):
                streams.give_up(connection, key.stream, seq)

        await self._database.write(operation)


# Of each stream that has something to give. What is held of it may be sent, but for `later`.
_EXTENTS = (
    "SELECT * FROM (SELECT id, epoch, name, coalesce((SELECT seq - 1 FROM dead INDEXED BY"
    " dead_again WHERE stream = streams.id AND unsent AND retry AND seq <= settled"
    " ORDER BY seq LIMIT 1), settled) AS after, settled, coalesce(sendable, produced) AS through,"
    " held - quarantined - later - buried, bytes - later_bytes - buried_bytes FROM streams)"
    " WHERE after < through"
)
_DEAD = "stream = :stream AND seq > :mark AND seq <= :through AND unsent AND NOT retry"


def _drops(connection: sqlite3.Connection, extent: Extent, after: int) -> list[Drop]:
    """The dropped ranges above `after` that begin within the extent, one more than DROPS_MAX."""
    rows = connection.execute(
        f"SELECT first, last, reason FROM drops WHERE {UNSETTLED} AND first <= :through UNION ALL"
        f" SELECT seq, seq, 'dead' FROM dead WHERE {_DEAD} ORDER BY 1 LIMIT :limit",
        {
            **{"stream": extent.key, "mark": after},
            **{"through": extent.through, "limit": DROPS_MAX + 1},
        },
    )
    return [Drop(*row) for row in rows]
