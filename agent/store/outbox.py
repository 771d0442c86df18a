"""The records that wait for the cloud: lease, acknowledge, purge.

Limits  : a lease is bounded by records and bytes; the caller bounds how many are out.
Format  : the held rows of the streams, up to each stream's `sendable` mark.
Recovery: leases live in memory and end with the process or the connection (`rewind`): what was not
          acknowledged is leased again, so everything is sent at least once. A row leaves only in
          the transaction that counts it as delivered.
"""

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence

from msgspec import Struct

from agent.errors import ProtocolError
from agent.records import Drop, Range, Record, Stamp
from agent.store import streams
from agent.store.database import Database

EVENT_BYTES = 512  # what a batch adds to a record's body, generously


class Batch(Struct, frozen=True):
    """Leased records of one stream in seq order, and the dropped ranges up to its last seq."""

    stream: str
    records: list[Record]
    drops: list[Drop]

    @property
    def span(self) -> Range:
        """From the first record's seq to the last's."""
        return Range(self.records[0].seq, self.records[-1].seq)


class Outbox:
    """What the uplink sees of the store; used from the event loop's thread alone."""

    def __init__(self, database: Database) -> None:
        self.more = asyncio.Event()  # set when there may be something to lease
        self._database = database
        self._leased: dict[str, int] = {}  # the last seq that went out, by stream
        self._unanswered: set[str] = set()  # streams of which something is out

    async def lease(self, records_max: int, bytes_max: int) -> Batch | None:
        """The next records that are not out, from the stream that has waited longest; else None."""
        after = dict(self._leased)

        def operation(connection: sqlite3.Connection) -> Batch | None:
            for stream, name in _ready(connection, after):
                records = _next(
                    connection, stream, name, after.get(name, 0), records_max, bytes_max
                )
                if records:
                    last = records[-1].seq
                    return Batch(
                        name, records, _drops(connection, stream, after.get(name, 0), last)
                    )
            return None

        batch = await self._database.read(operation)
        if batch:
            self._leased.pop(batch.stream, None)  # to the end of the round
            self._leased[batch.stream] = batch.span.last
            self._unanswered.add(batch.stream)
        return batch

    def rewind(self) -> None:
        """End all leases: what is still held can be leased again."""
        self._leased.clear()
        self._unanswered.clear()
        self.more.set()

    @property
    def any_out(self) -> bool:
        """Whether a lease still waits for its ack."""
        return bool(self._unanswered)

    async def blob(self, record: Record, start: int, size: int) -> bytes:
        """`size` bytes of a record's blob from byte `start`; empty once the record is purged."""

        def operation(connection: sqlite3.Connection) -> bytes:
            rows = connection.execute(
                "SELECT start, data FROM chunks"
                " WHERE stream = (SELECT id FROM streams WHERE name = ?) AND seq = ?"
                " AND start < ? AND start + length(data) > ? ORDER BY start",
                (record.stream, record.seq, start + size, start),
            ).fetchall()
            joined = b"".join(data for _, data in rows)
            return joined[start - rows[0][0] :][:size] if rows else b""

        return await self._database.read(operation)

    async def acknowledge(self, epoch: str, stream: str, spans: Iterable[Range]) -> int:
        """The far side has these seqs: purge them, count them delivered; how many were held.

        Nothing changes for another epoch (a former life of this device). Raises ProtocolError
        when a range goes beyond what was ever given out: then somebody is wrong about us.
        """
        if epoch != self._database.epoch:
            return 0
        wanted = list(spans)

        def operation(connection: sqlite3.Connection) -> tuple[int, int | None]:
            return _deliver(connection, stream, wanted)

        delivered, lowest = await self._database.write(operation)
        if lowest is None or lowest > self._leased.get(stream, 0):
            self._unanswered.discard(stream)
        return delivered


def _deliver(
    connection: sqlite3.Connection, stream: str, spans: Sequence[Range]
) -> tuple[int, int | None]:
    """Purge and count; how many, and the lowest seq that is still held."""
    row = connection.execute(
        "SELECT id, produced, coalesce(sendable, produced) FROM streams WHERE name = ?", (stream,)
    ).fetchone()
    key, produced, sendable = row or (0, 0, 0)
    beyond = max((span.last for span in spans), default=0)
    if beyond > produced:
        raise ProtocolError(
            f"an ack names {stream} up to {beyond}, but only {produced} were ever produced",
            "two devices may share one id, or the far side mixes epochs",
        )
    delivered = sum(
        streams.remove(connection, key, Range(span.first, min(span.last, sendable)))
        for span in spans
    )
    connection.execute(
        "UPDATE streams SET delivered = delivered + ? WHERE id = ?", (delivered, key)
    )
    lowest = connection.execute("SELECT min(seq) FROM records WHERE stream = ?", (key,)).fetchone()
    return delivered, lowest[0]


def _ready(connection: sqlite3.Connection, after: dict[str, int]) -> list[tuple[int, str]]:
    """Streams that hold something, the one leased longest ago first."""
    names = list(after)
    rows = connection.execute("SELECT id, name FROM streams WHERE held > 0").fetchall()
    return sorted(rows, key=lambda row: names.index(row[1]) if row[1] in after else -1)


def _next(
    connection: sqlite3.Connection,
    stream: int,
    name: str,
    after: int,
    records_max: int,
    bytes_max: int,
) -> list[Record]:
    rows = connection.execute(
        "SELECT seq, type, boot, mono_ns, wall_us, body, blob_bytes FROM records"
        " WHERE stream = ?1 AND seq > ?2"
        " AND seq <= (SELECT coalesce(sendable, produced) FROM streams WHERE id = ?1)"
        " ORDER BY seq LIMIT ?3",
        (stream, after, records_max),
    )
    records: list[Record] = []
    room = bytes_max
    for seq, kind, boot, mono_ns, wall_us, body, blob_bytes in rows:
        room -= len(body) + EVENT_BYTES
        if room < 0 and records:
            break
        records.append(Record(name, seq, kind, Stamp(boot, mono_ns, wall_us), body, blob_bytes))
    return records


def _drops(connection: sqlite3.Connection, stream: int, after: int, last: int) -> list[Drop]:
    rows = connection.execute(
        "SELECT first, last, reason FROM drops WHERE stream = ? AND last > ? AND first <= ?"
        " ORDER BY first",
        (stream, after, last),
    )
    return [Drop(*row) for row in rows]
