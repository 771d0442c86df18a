"""The way in for records: as durable as their class says, and the answer says so too.

Limits  : a record's body and blob are the caller's to bound; a group holds 1,000 calls.
Format  : rows of `records` and `chunks` (streams.py).
Recovery: `sync` and `group` are answered after the commit that holds them, fsynced; a crash before
          leaves nothing of them, after it leaves all.
"""

import sqlite3
import time
from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from agent.clock import Clock
from agent.records import RecordType, Stamp
from agent.store import blobs, streams
from agent.store.database import Database


class Durability(StrEnum):
    """How safe a record is when the call returns.

    `sync`: in a commit of its own; `group`: in a commit shared with what came meanwhile.
    """

    SYNC = "sync"
    GROUP = "group"


class New(Struct, frozen=True):
    """A record on its way in: its type, its body (JSON), its blob."""

    type: RecordType
    body: bytes
    blob: bytes = b""


class Receipt(Struct, frozen=True):
    """What became of an append: its seqs first..last, how safe they are, and what that took.

    `commit_s` is from the call to the end of the commit, in seconds.
    """

    first: int
    last: int
    durability: Durability
    commit_s: float


Item = tuple[str, Stamp, Sequence[New]]  # stream, when, what


class Intake:
    """Appends to streams; used from the event loop's thread alone."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def append(
        self, stream: str, records: Sequence[New], durability: Durability = Durability.GROUP
    ) -> Receipt:
        """Keep records, at least one, in this order and without a gap between their seqs.

        Raises StoreFull or StoreError; then nothing of them was kept.
        """
        begun = time.perf_counter()
        item = (stream, self._clock.stamp(), records)
        last = await self._database.put(
            append_all, item, stream, alone=durability is Durability.SYNC
        )
        took_s = time.perf_counter() - begun
        return Receipt(last - len(records) + 1, last, durability, took_s)


def append_all(connection: sqlite3.Connection, items: list[Item]) -> list[int]:
    """Append what several calls brought, in their order; the last seq of each."""
    counts: dict[str, tuple[int, int]] = {}
    for stream, _, records in items:
        count, size = counts.get(stream, (0, 0))
        size += sum(len(record.body) + len(record.blob) for record in records)
        counts[stream] = count + len(records), size
    keys = {stream: streams.stream_id(connection, stream) for stream in counts}
    after = {
        stream: streams.take_seqs(connection, keys[stream], *new) - 1
        for stream, new in counts.items()
    }
    lasts, rows = [], []
    for stream, stamp, records in items:
        key, seq = keys[stream], after[stream]
        for record in records:
            seq += 1
            body, blob = record.body, record.blob
            number = blobs.insert(connection, blob)
            rows.append(streams.row(key, seq, record.type, stamp, body, number, len(blob)))
        after[stream] = seq
        lasts.append(seq)
    streams.insert(connection, rows)
    return lasts
