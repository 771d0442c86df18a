"""Appending to a stream and dropping from it, with the ledger in the same transaction.

Limits : seq is gap-free from 1 in each (epoch, stream); a blob lies in chunks of CHUNK_BYTES_MAX.
Format : tables streams, records, chunks, drops (sql/0001.sql).
Recovery: every function runs inside one transaction of `Database.write`; there is nothing to mend.
"""

import sqlite3

from agent.records import Range, RecordType, Stamp

CHUNK_BYTES_MAX = 64 * 1024


def stream_id(connection: sqlite3.Connection, name: str, sendable: int | None = None) -> int:
    """The row of stream `name`; a new one begins with this `sendable` mark (None: send all)."""
    row = connection.execute("SELECT id FROM streams WHERE name = ?", (name,)).fetchone()
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
    seq = int(
        connection.execute(
            "UPDATE streams SET produced = produced + 1, held = held + 1 WHERE id = ?"
            " RETURNING produced",
            (stream,),
        ).fetchone()[0]
    )
    connection.execute(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (stream, seq, kind, stamp.boot, stamp.mono_ns, stamp.wall_us, body, len(blob)),
    )
    connection.executemany(
        "INSERT INTO chunks (stream, seq, start, data) VALUES (?, ?, ?, ?)",
        (
            (stream, seq, start, blob[start : start + CHUNK_BYTES_MAX])
            for start in range(0, len(blob), CHUNK_BYTES_MAX)
        ),
    )
    return seq


def remove(connection: sqlite3.Connection, stream: int, span: Range) -> int:
    """Take the held records of `span` out, blobs too; how many there were."""
    between = (stream, span.first, span.last)
    connection.execute("DELETE FROM chunks WHERE stream = ? AND seq BETWEEN ? AND ?", between)
    connection.execute("DELETE FROM dead WHERE stream = ? AND seq BETWEEN ? AND ?", between)
    count = connection.execute(
        "DELETE FROM records WHERE stream = ? AND seq BETWEEN ? AND ?", between
    ).rowcount
    connection.execute("UPDATE streams SET held = held - ? WHERE id = ?", (count, stream))
    return count


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


def _note(connection: sqlite3.Connection, stream: int, span: Range, reason: str) -> None:
    grown = connection.execute(
        "UPDATE drops SET last = ? WHERE stream = ? AND last = ? AND reason = ?",
        (span.last, stream, span.first - 1, reason),
    ).rowcount
    if not grown:
        connection.execute(
            "INSERT INTO drops VALUES (?, ?, ?, ?)", (stream, span.first, span.last, reason)
        )
