"""The records that wait for the cloud: lease, acknowledge, purge.

Limits  : a lease is bounded by records and bytes, its dropped ranges included; the caller bounds
          how many are out.
Format  : the held rows of the streams, up to each stream's `sendable` mark, and the dropped ranges
          above its `settled` mark.
Recovery: leases live in memory and end with the process or the connection (`rewind`): what is not
          settled is leased again, so everything is sent at least once. A row leaves only in the
          transaction that counts it as delivered.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Iterable

from msgspec import Struct

from agent.errors import ProtocolError
from agent.records import Drop, Range, Record, Stamp
from agent.store import streams
from agent.store.database import Database

EVENT_BYTES = 512  # what a batch adds to a record's body, generously
DROP_BYTES = 64  # a dropped range in a batch's header, at most


class Batch(Struct, frozen=True):
    """Leased records of one stream in seq order, and the dropped ranges up to the last of them.

    It speaks of every seq in `span`: one of its records, in one of its drops, or delivered before.
    A batch of dropped ranges alone has no records.
    """

    stream: str
    records: list[Record]
    drops: list[Drop]
    span: Range


class Settled(Struct, frozen=True):
    """What an ack changed: how many records left, the settled mark, and whether that moved."""

    delivered: int
    mark: int
    moved: bool


class Outbox:
    """What the uplink sees of the store; used from the event loop's thread but for `leased`."""

    def __init__(self, database: Database) -> None:
        self.more = asyncio.Event()  # set when there may be something to lease
        self._database = database
        self._out: dict[str, int] = {}  # by stream, up to where it went out; longest ago first
        self._settled: dict[str, int] = {}  # by stream, as the last ack left it
        self._rewinds = 0
        self._lock = threading.Lock()  # of the two above, for an instant each time

    async def lease(self, records_max: int, bytes_max: int) -> Batch | None:
        """The next records that are not out, from the stream that has waited longest; else None.

        None, too, when leases were ended meanwhile: then `more` is set.
        """
        rewinds = self._rewinds

        def operation(connection: sqlite3.Connection) -> Batch | None:
            ready = _ready(connection, dict(self._out))
            batches = (_batch(connection, one, records_max, bytes_max) for one in ready)
            batch = next(filter(None, batches), None)
            with self._lock:
                if batch is None or rewinds != self._rewinds:
                    return None  # who asked may be gone, and would never send it
                # Noted here, in the store's thread: what is leased is not evicted.
                self._out.pop(batch.stream, None)  # to the end of the round
                self._out[batch.stream] = batch.span.last
                return batch

        return await self._database.read(operation)

    def leased(self, stream: str) -> int:
        """The seq up to which the stream is out; 0: nothing is. For any thread."""
        return self._out.get(stream, 0)

    def rewind(self, stream: str | None = None) -> None:
        """End the leases of one stream, or all: what is not settled can be leased again."""
        with self._lock:
            self._rewinds += 1
            for name in [stream] if stream else list(self._out):
                self._out.pop(name, None)
        self.more.set()

    def waits(self, stream: str) -> bool:
        """Whether something of the stream is out and not settled."""
        return self._settled.get(stream, 0) < self._out.get(stream, 0)

    async def blob(self, record: Record, start: int, size: int) -> bytes:
        """`size` bytes of a record's blob from byte `start`; empty once the record is purged."""

        def operation(connection: sqlite3.Connection) -> bytes:
            rows = connection.execute(
                "SELECT start, data FROM chunks"
                " WHERE stream = (SELECT id FROM streams WHERE epoch = '' AND name = ?)"
                " AND seq = ?"
                " AND start < ? AND start + length(data) > ? ORDER BY start",
                (record.stream, record.seq, start + size, start),
            ).fetchall()
            joined = b"".join(data for _, data in rows)
            return joined[start - rows[0][0] :][:size] if rows else b""

        return await self._database.read(operation)

    async def acknowledge(self, epoch: str, stream: str, spans: Iterable[Range]) -> Settled:
        """The far side knows these seqs: purge what is held of them and count it delivered.

        Nothing changes for another epoch (a former life of this device). Raises ProtocolError
        when a range goes beyond what was ever produced: then somebody is wrong about us.
        """
        if epoch != self._database.epoch:
            return Settled(0, 0, moved=False)
        wanted = sorted(spans, key=lambda span: span.first)

        def operation(connection: sqlite3.Connection) -> tuple[int, int, int]:
            return _deliver(connection, stream, wanted)

        delivered, before, settled = await self._database.write(operation)
        self._settled[stream] = settled
        return Settled(delivered, settled, moved=settled > before)


class _Ready(Struct, frozen=True):
    """A stream that may have something to send: what is above `after`, up to `through`."""

    key: int
    name: str
    after: int
    through: int


def _ready(connection: sqlite3.Connection, out: dict[str, int]) -> list[_Ready]:
    """Streams that hold something, the one leased longest ago first."""
    names = list(out)
    rows = connection.execute(
        "SELECT id, name, settled, coalesce(sendable, produced) FROM streams"
        " WHERE epoch = '' AND held > 0"
    )
    ready = [
        _Ready(key, name, max(settled, out.get(name, 0)), through)
        for key, name, settled, through in rows
    ]
    ready.sort(key=lambda one: names.index(one.name) if one.name in out else -1)
    return [one for one in ready if one.after < one.through]


def _batch(
    connection: sqlite3.Connection, of: _Ready, records_max: int, bytes_max: int
) -> Batch | None:
    """The stream's next batch. Dropped ranges fill at most half of it; more end it before them."""
    drops_max = max(1, bytes_max // 2 // DROP_BYTES)
    drops = _drops(connection, of, drops_max + 1)
    last = of.through
    if len(drops) > drops_max:
        last = drops.pop().first - 1
    room = bytes_max - DROP_BYTES * len(drops)
    records = _records(connection, of, last, records_max, room)
    if records:
        last = records[-1].seq
    elif last == of.through:
        return None  # ranges alone wait for the next record, unless there are too many of them
    told = [drop for drop in drops if drop.first <= last]
    return Batch(of.name, records, told, Range(of.after + 1, last))


def _records(
    connection: sqlite3.Connection, of: _Ready, last: int, records_max: int, room: int
) -> list[Record]:
    rows = connection.execute(
        "SELECT seq, type, boot, mono_ns, wall_us, body, blob_bytes FROM records"
        " WHERE stream = ? AND seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
        (of.key, of.after + 1, last, records_max),
    )
    records: list[Record] = []
    for seq, kind, boot, mono_ns, wall_us, body, blob_bytes in rows:
        room -= len(body) + EVENT_BYTES
        if room < 0 and records:
            break
        records.append(Record(of.name, seq, kind, Stamp(boot, mono_ns, wall_us), body, blob_bytes))
    return records


def _drops(connection: sqlite3.Connection, of: _Ready, limit: int) -> list[Drop]:
    rows = connection.execute(
        f"SELECT first, last, reason FROM drops WHERE {_NOT_SETTLED} AND first <= :through"
        " ORDER BY first LIMIT :limit",
        {"stream": of.key, "mark": of.after, "through": of.through, "limit": limit},
    )
    return [Drop(*row) for row in rows]


# Ranges of a stream that reach beyond a mark. They are disjoint and in order, so that the search
# can begin at the last one that begins at or before it.
_NOT_SETTLED = (
    "stream = :stream AND last > :mark AND first >= coalesce("
    "(SELECT max(first) FROM drops WHERE stream = :stream AND first <= :mark + 1), 0)"
)


def _deliver(
    connection: sqlite3.Connection, stream: str, spans: list[Range]
) -> tuple[int, int, int]:
    """Purge and count: how many left, and the settled mark before and after."""
    row = connection.execute(
        "SELECT id, produced, coalesce(sendable, produced), settled FROM streams"
        " WHERE epoch = '' AND name = ?",
        (stream,),
    ).fetchone()
    key, produced, sendable, before = row or (0, 0, 0, 0)
    beyond = max((span.last for span in spans), default=0)
    if beyond > produced:
        raise ProtocolError(
            f"an ack names {stream} up to {beyond}, but only {produced} were ever produced",
            "two devices may share one id, or the far side mixes epochs",
        )
    known = [Range(s.first, min(s.last, sendable)) for s in spans if s.first <= sendable]
    delivered = sum(streams.remove(connection, key, span) for span in known)
    settled = _settled(connection, key, before, known, sendable)
    if delivered or settled > before:
        connection.execute(
            "UPDATE streams SET delivered = delivered + ?, settled = ? WHERE id = ?",
            (delivered, settled, key),
        )
        streams.forget_settled(connection, key, settled)
    return delivered, before, settled


def _settled(
    connection: sqlite3.Connection, key: int, mark: int, known: list[Range], sendable: int
) -> int:
    """The settled mark after the far side said what it knows, in ascending order."""
    for span in known:
        if span.first > mark + 1:
            mark = _delivered_through(connection, key, mark, sendable)
        if span.first > mark + 1:
            return mark
        mark = max(mark, span.last)
    return _delivered_through(connection, key, mark, sendable)


def _delivered_through(connection: sqlite3.Connection, key: int, mark: int, sendable: int) -> int:
    """How far from `mark` on every seq was delivered: up to the next that is held or dropped."""
    held, dropped = connection.execute(
        "SELECT (SELECT min(seq) FROM records WHERE stream = :stream AND seq > :mark),"
        f" (SELECT max(first, :mark + 1) FROM drops WHERE {_NOT_SETTLED} ORDER BY first LIMIT 1)",
        {"stream": key, "mark": mark},
    ).fetchone()
    nearest: list[int] = [seq - 1 for seq in (held, dropped) if seq is not None]
    return min([*nearest, max(mark, sendable)])
