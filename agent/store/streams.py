"""Appending to a stream and dropping from it, with the ledger in the same transaction.

Limits : seq is gap-free from 1 in each (epoch, stream); a blob lies in chunks of CHUNK_BYTES_MAX.
Format : tables streams, records, chunks, drops, dropped (sql/). A stream's counters, `bytes` among
         them, are those of its rows at every commit.
Recovery: every function runs inside one transaction of `Database.write`; there is nothing to mend.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

from msgspec.structs import astuple

from agent.records import Range, RecordType, Stamp

CHUNK_BYTES_MAX = 64 * 1024


def stream_id(connection: sqlite3.Connection, name: str, sendable: int | None = None) -> int:
    """The row of stream `name`; a new one begins with this `sendable` mark (None: send all)."""
    row = connection.execute(
        "SELECT id FROM streams WHERE epoch = '' AND name = ?", (name,)
    ).fetchone()
    if row is None:
        row = connection.execute(
            "INSERT INTO streams (name, sendable) VALUES (?, ?) RETURNING id", (name, sendable)
        ).fetchone()
    return int(row[0])


def append(
    connection: sqlite3.Connection,
    stream: int,
    kind: RecordType,
    stamp: Stamp,
    body: bytes,
    blob: bytes = b"",
) -> int:
    """Hold one more record with its blob; its seq."""
    seq = take_seqs(connection, stream, 1, len(body) + len(blob))
    insert(connection, [(stream, seq, kind, *astuple(stamp), body, len(blob))])
    insert_blob(connection, stream, seq, blob)
    return seq


def take_seqs(connection: sqlite3.Connection, stream: int, count: int, size: int) -> int:
    """Count so many more records, of `size` bytes in all, as produced and held; the first seq."""
    (produced,) = connection.execute(
        "UPDATE streams SET produced = produced + ?, held = held + ?, bytes = bytes + ?"
        " WHERE id = ? RETURNING produced",
        (count, count, size, stream),
    ).fetchone()
    return int(produced) - count + 1


def insert(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows of `records`, their columns in the table's order."""
    connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def insert_blob(connection: sqlite3.Connection, stream: int, seq: int, blob: bytes) -> None:
    """A record's blob, in chunks."""
    connection.executemany(
        "INSERT INTO chunks (stream, seq, start, data) VALUES (?, ?, ?, ?)",
        (
            (stream, seq, start, blob[start : start + CHUNK_BYTES_MAX])
            for start in range(0, len(blob), CHUNK_BYTES_MAX)
        ),
    )


def remove(connection: sqlite3.Connection, stream: int, span: Range) -> int:
    """Take the held records of `span` out, blobs too; how many there were."""
    between = (stream, span.first, span.last)
    count, size = connection.execute(
        "SELECT count(*), coalesce(sum(length(body) + blob_bytes), 0) FROM records"
        " WHERE stream = ? AND seq BETWEEN ? AND ?",
        between,
    ).fetchone()
    if not count:
        return 0
    connection.execute("DELETE FROM chunks WHERE stream = ? AND seq BETWEEN ? AND ?", between)
    connection.execute("DELETE FROM dead WHERE stream = ? AND seq BETWEEN ? AND ?", between)
    connection.execute("DELETE FROM records WHERE stream = ? AND seq BETWEEN ? AND ?", between)
    connection.execute(
        "UPDATE streams SET held = held - ?, bytes = bytes - ? WHERE id = ?", (count, size, stream)
    )
    return int(count)


def drop(connection: sqlite3.Connection, stream: int, span: Range, reason: str) -> None:
    """Give up every record of `span`, all of them held, and count them under `reason`."""
    remove(connection, stream, span)
    _note(connection, stream, span, reason)


def drop_unheld(connection: sqlite3.Connection, stream: int, reason: str) -> int:
    """Count one record that could not even be held: it gets a seq and is dropped; the seq."""
    seq = int(
        connection.execute(
            "UPDATE streams SET produced = produced + 1 WHERE id = ? RETURNING produced", (stream,)
        ).fetchone()[0]
    )
    _note(connection, stream, Range(seq, seq), reason)
    return seq


def forget_settled(connection: sqlite3.Connection, stream: int, mark: int) -> None:
    """The far side knows everything up to `mark`: the dropped ranges there need no row any more."""
    connection.execute("DELETE FROM drops WHERE stream = ? AND last <= ?", (stream, mark))


def _note(connection: sqlite3.Connection, stream: int, span: Range, reason: str) -> None:
    connection.execute(
        "INSERT INTO dropped VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET count = count + excluded.count",
        (stream, reason, span.last - span.first + 1),
    )
    grown = connection.execute(
        "UPDATE drops SET last = ? WHERE stream = ? AND last = ? AND reason = ?",
        (span.last, stream, span.first - 1, reason),
    ).rowcount
    if not grown:
        connection.execute(
            "INSERT INTO drops VALUES (?, ?, ?, ?)", (stream, span.first, span.last, reason)
        )
