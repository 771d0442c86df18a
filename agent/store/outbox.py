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
from collections.abc import Callable, Iterable

from msgspec import Struct

from agent.errors import ProtocolError, StoreDamaged
from agent.records import Drop, Key, Range, Record, Stamp
from agent.store import blobs, streams
from agent.store.bindings import Bindings
from agent.store.database import Database

EVENT_BYTES = 512  # what a batch adds to a record's body, generously
DROP_BYTES = 64  # a dropped range in a batch's header, at most


Name = tuple[str, str]  # a stream's whole name: its epoch and what it is called
Dated = Callable[[Stamp], tuple[Stamp, bool]]  # with UTC, if it is known by now


class Batch(Struct, frozen=True):
    """Leased records of one stream in seq order, and the dropped ranges up to the last of them.

    The epoch is this file's own, or that of a former file whose records were saved into this one.

    It speaks of every seq in `span`: one of its records, in one of its drops, or delivered before.
    A batch of dropped ranges alone has no records.
    """

    epoch: str
    stream: str
    records: list[Record]
    drops: list[Drop]
    span: Range

    @property
    def name(self) -> Name:
        """The stream's whole name."""
        return self.epoch, self.stream


class _Damaged(Exception):
    """A record's body is not what was written."""

    def __init__(self, key: Key, seq: int) -> None:
        super().__init__()
        self.key, self.seq = key, seq


class Settled(Struct, frozen=True):
    """What an ack changed: how many records left, the settled mark, and whether that moved."""

    delivered: int
    mark: int
    moved: bool


class Waiting(Struct, frozen=True):
    """What of a stream is held and may be sent; `bytes` of bodies and blobs."""

    name: Name
    priority: int
    records: int
    bytes: int
    oldest_age_s: float | None


class Outbox:
    """What the uplink sees of the store; used from the event loop's thread but for `leased`."""

    def __init__(self, database: Database, bindings: Bindings) -> None:
        self.more = asyncio.Event()  # set when there may be something to lease
        self._database = database
        self._bindings = bindings
        self._out: dict[Name, int] = {}  # up to where a stream went out; longest ago first
        self._settled: dict[Name, int] = {}  # as the last ack left it
        self._rewinds = 0
        self._lock = threading.Lock()  # of the two above, for an instant each time

    async def lease(self, records_max: int, bytes_max: int) -> Batch | None:
        """The next records that are not out, from the stream that has waited longest; else None.

        None, too, when leases were ended meanwhile: then `more` is set. A record that is damaged on
        the disk is given up (`corruption`).
        """
        while True:
            try:
                return await self._lease(records_max, bytes_max)
            except _Damaged as damaged:
                await self._give_up(damaged.key, damaged.seq)

    async def _lease(self, records_max: int, bytes_max: int) -> Batch | None:
        rewinds = self._rewinds

        def operation(connection: sqlite3.Connection) -> Batch | None:
            ready = _ready(connection, self._database.epoch, dict(self._out))
            sizes, dated = (records_max, bytes_max), self._bindings.dated
            batches = (_batch(connection, one, *sizes, dated) for one in ready)
            batch = next(filter(None, batches), None)
            with self._lock:
                if batch is None or rewinds != self._rewinds:
                    return None  # who asked may be gone, and would never send it
                # Noted here, in the store's thread: what is leased is not evicted.
                self._out.pop(batch.name, None)  # to the end of the round
                self._out[batch.name] = batch.span.last
                return batch

        return await self._database.read(operation)

    async def _give_up(self, key: Key, seq: int) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            if self._has(connection, key, seq):
                streams.give_up(connection, key.stream, seq)

        await self._database.write(operation)

    def leased(self, epoch: str, stream: str) -> int:
        """The seq up to which the stream is out; 0: nothing is. For any thread."""
        return self._out.get((epoch or self._database.epoch, stream), 0)

    def rewind(self, name: Name | None = None) -> None:
        """End the leases of one stream, or all: what is not settled can be leased again."""
        with self._lock:
            self._rewinds += 1
            for one in [name] if name else list(self._out):
                self._out.pop(one, None)
        self.more.set()

    async def waiting(self) -> list[Waiting]:
        """What waits, by stream."""

        def operation(connection: sqlite3.Connection) -> list[Waiting]:
            rows = connection.execute(
                "SELECT epoch, name, held - (SELECT count(*) FROM dead WHERE stream = id), bytes"
                " FROM streams WHERE sendable IS NULL OR sendable > 0"
            )
            own = self._database.epoch
            return [
                Waiting((epoch or own, name), 5, n, size, None) for epoch, name, n, size in rows
            ]

        return await self._database.read(operation)

    def waits(self, name: Name) -> bool:
        """Whether something of the stream is out and not settled."""
        return self._settled.get(name, 0) < self._out.get(name, 0)

    async def blob(self, record: Record, start: int, size: int) -> bytes:
        """`size` bytes of a record's blob from byte `start`; empty once the record is purged.

        A record whose blob is damaged on the disk is given up (`corruption`).
        """

        def operation(connection: sqlite3.Connection) -> bytes:
            if not self._has(connection, record.key, record.seq):
                return b""  # and its blob's number may be another's
            return blobs.read(connection, record.key.blob, start, size)

        try:
            return await self._database.read(operation)
        except StoreDamaged:
            await self._give_up(record.key, record.seq)
            return b""

    def _has(self, connection: sqlite3.Connection, key: Key, seq: int) -> bool:
        """Whether what was leased is still held, and by the file it was leased from."""
        return key.epoch == self._database.epoch and streams.holds(connection, key.stream, seq)

    async def acknowledge(self, name: Name, spans: Iterable[Range]) -> Settled:
        """The far side knows these seqs: purge what is held of them and count it delivered.

        Nothing changes for an epoch of which nothing is held (a former life of this device). Raises
        ProtocolError when a range goes beyond what was ever produced: then somebody is wrong
        about us.
        """
        wanted = sorted(spans, key=lambda span: span.first)

        def operation(connection: sqlite3.Connection) -> tuple[int, int, int]:
            epoch, stream = name
            row_name = ("" if epoch == self._database.epoch else epoch, stream)
            return _deliver(connection, row_name, wanted)

        delivered, before, settled = await self._database.write(operation)
        if name in self._out:  # else nobody waits for it, and its name may be anything
            self._settled[name] = settled
        return Settled(delivered, settled, moved=settled > before)


class _Ready(Struct, frozen=True):
    """A stream that may have something to send: what is above `after`, up to `through`.

    `file` is the epoch of the file that holds it; a stream of another epoch does not grow.
    """

    key: int
    name: Name
    after: int
    through: int
    file: str
    grows: bool


def _ready(connection: sqlite3.Connection, own: str, out: dict[Name, int]) -> list[_Ready]:
    """Streams that hold something, the one leased longest ago first; `own` is the file's epoch."""
    names = list(out)
    rows = connection.execute(
        "SELECT id, epoch, name, settled, coalesce(sendable, produced) FROM streams"
        " WHERE held > 0 OR (epoch != '' AND settled < produced)"
    )
    ready = []
    for key, epoch, called, settled, through in rows:
        name = (epoch or own, called)
        after = max(settled, out.get(name, 0))
        ready.append(_Ready(key, name, after, through, own, grows=not epoch))
    ready.sort(key=lambda one: names.index(one.name) if one.name in out else -1)
    return [one for one in ready if one.after < one.through]


def _batch(
    connection: sqlite3.Connection, of: _Ready, records_max: int, bytes_max: int, dated: Dated
) -> Batch | None:
    """The stream's next batch. Dropped ranges fill at most half of it; more end it before them."""
    drops_max = max(1, bytes_max // 2 // DROP_BYTES)
    drops = _drops(connection, of, drops_max + 1)
    last = of.through
    if len(drops) > drops_max:
        last = drops.pop().first - 1
    room = bytes_max - DROP_BYTES * len(drops)
    records = _records(connection, of, last, records_max, room, dated)
    if records:
        last = records[-1].seq
    elif last == of.through and (of.grows or not drops):
        return None  # ranges alone wait for the next record, unless there are too many of them
    told = [drop for drop in drops if drop.first <= last]
    return Batch(*of.name, records, told, Range(of.after + 1, last))


def _records(
    connection: sqlite3.Connection,
    of: _Ready,
    last: int,
    records_max: int,
    room: int,
    dated: Dated,
) -> list[Record]:
    rows = connection.execute(
        f"SELECT {streams.COLUMNS} FROM records WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
        (*streams.keys(of.key, Range(of.after + 1, last)), records_max),
    )
    records: list[Record] = []
    for row in rows:
        number, kind, boot, mono_ns, wall_us, _, blob, blob_bytes, body = row
        seq = streams.parts(number)[1]
        if not streams.is_whole(row):
            raise _Damaged(Key(of.file, of.key, blob), seq)
        room -= len(body) + EVENT_BYTES
        if room < 0 and records:
            break
        (stamp, bound), key = dated(Stamp(boot, mono_ns, wall_us)), Key(of.file, of.key, blob)
        records.append(Record(of.name[1], seq, kind, stamp, body, blob_bytes, key, bound))
    return records


def _drops(connection: sqlite3.Connection, of: _Ready, limit: int) -> list[Drop]:
    rows = connection.execute(
        f"SELECT first, last, reason FROM drops WHERE {UNSETTLED} AND first <= :through"
        " ORDER BY first LIMIT :limit",
        {"stream": of.key, "mark": of.after, "through": of.through, "limit": limit},
    )
    return [Drop(*row) for row in rows]


# Ranges of a stream that reach beyond a mark. They are disjoint and in order, so that the search
# can begin at the last one that begins at or before it.
UNSETTLED = (
    "stream = :stream AND last > :mark AND first >= coalesce("
    "(SELECT max(first) FROM drops WHERE stream = :stream AND first <= :mark + 1), 0)"
)


def _deliver(
    connection: sqlite3.Connection, name: Name, spans: list[Range]
) -> tuple[int, int, int]:
    """Purge and count: how many left, and the settled mark before and after."""
    row = connection.execute(
        "SELECT id, produced, coalesce(sendable, produced), settled FROM streams"
        " WHERE epoch = ? AND name = ?",
        name,
    ).fetchone()
    if row is None and name[0]:
        return 0, 0, 0
    key, produced, sendable, before = row or (0, 0, 0, 0)
    beyond = max((span.last for span in spans), default=0)
    if beyond > produced and name[0]:  # the far side knows more of it than the damaged file did
        _learn(connection, key, produced, spans)
        sendable = beyond if sendable == produced else sendable
    elif beyond > produced:
        raise ProtocolError(
            f"an ack names {name[1]} up to {beyond}, but only {produced} were ever produced",
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


def _learn(connection: sqlite3.Connection, key: int, produced: int, spans: list[Range]) -> None:
    """Seqs that the damaged file knew nothing of: delivered as named, the rest lost with it."""
    for span in spans:
        if span.last <= produced:
            continue
        first = max(span.first, produced + 1)
        if first > produced + 1:
            streams.note_drop(connection, key, Range(produced + 1, first - 1), streams.CORRUPTION)
        connection.execute(
            "UPDATE streams SET produced = ?, delivered = delivered + ? WHERE id = ?",
            (span.last, span.last - first + 1, key),
        )
        produced = span.last


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
        "SELECT (SELECT seq FROM records WHERE id > :above AND id <= :last ORDER BY id LIMIT 1),"
        f" (SELECT max(first, :mark + 1) FROM drops WHERE {UNSETTLED} ORDER BY first LIMIT 1)",
        {
            "stream": key,
            "mark": mark,
            "above": streams.key(key, mark),
            "last": streams.key(key, streams.SEQ_MAX),
        },
    ).fetchone()
    nearest: list[int] = [seq - 1 for seq in (held, dropped) if seq is not None]
    return min([*nearest, max(mark, sendable)])
