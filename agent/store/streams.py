"""Appending to a stream and dropping from it, with the ledger in the same transaction.

Limits : seq is gap-free from 1 in each (epoch, stream), up to SEQ_MAX.
Format : tables streams, records, drops, dropped (sql/). A record's key is stream << 40 | seq. A
         stream's counters, `bytes` among them, are those of its rows at every commit; so are
         `later` and `later_bytes`, of what it holds above `sendable`.
Recovery: every function runs inside one transaction of `Database.write`; there is nothing to mend.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from msgspec import Struct

from agent.records import SEQ_BITS, Range, RecordType, Stamp, digest
from agent.records import SEQ_MAX as SEQ_MAX
from agent.store import blobs

CORRUPTION = "corruption"  # why what the disk does not give back was dropped
COLUMNS = "records.id, type, boot, mono_ns, wall_us, crc, blob, blob_bytes, body"
# As COLUMNS, for many rows at once: SQLite calls `text` for each text, and `known_text` is faster.
RAW_COLUMNS = COLUMNS.replace("type, boot", "CAST(type AS BLOB), CAST(boot AS BLOB)")


class New(Struct, frozen=True):
    """A record on its way in: its type, its body (JSON), its blob."""

    type: RecordType
    body: bytes
    blob: bytes = b""


Item = tuple[str, Stamp, Sequence[New]]  # what one call brings: stream, when, what


def key(stream: int, seq: int) -> int:
    """The key of a record in `records`."""
    return stream << SEQ_BITS | seq


def parts(key: int) -> tuple[int, int]:
    """The stream and the seq of a record's key."""
    return key >> SEQ_BITS, key & SEQ_MAX


def keys(stream: int, span: Range) -> tuple[int, int]:
    """The first and the last key of a span; one that reaches beyond SEQ_MAX is cut there."""
    return key(stream, min(span.first, SEQ_MAX)), key(stream, min(span.last, SEQ_MAX))


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
    return hold(connection, stream, kind, stamp, body, blobs.insert(connection, blob), len(blob))


def hold(
    connection: sqlite3.Connection,
    stream: int,
    kind: RecordType,
    stamp: Stamp,
    body: bytes,
    blob: int,
    blob_bytes: int,
) -> int:
    """As `append`, with a blob that is in the store: its number and its size."""
    seq = take_seqs(connection, stream, 1, len(body) + blob_bytes)
    insert(connection, [row(stream, seq, kind, stamp, body, blob, blob_bytes)])
    return seq


def append_all(connection: sqlite3.Connection, items: list[Item]) -> list[int]:
    """Append what several calls brought, in their order; the last seq of each."""
    counts: dict[str, tuple[int, int]] = {}
    for stream, _, records in items:
        count, size = counts.get(stream, (0, 0))
        for record in records:
            size += len(record.body) + len(record.blob)
        counts[stream] = count + len(records), size
    keys = {stream: stream_id(connection, stream) for stream in counts}
    after = {
        stream: take_seqs(connection, keys[stream], *new) - 1 for stream, new in counts.items()
    }
    lasts, rows = [], []
    for stream, stamp, records in items:
        key, seq = keys[stream], after[stream]
        for record in records:
            seq += 1
            blob = record.blob
            number = blobs.insert(connection, blob) if blob else blobs.NONE
            rows.append(row(key, seq, record.type, stamp, record.body, number, len(blob)))
        after[stream] = seq
        lasts.append(seq)
    insert(connection, rows)
    return lasts


def item_bytes(item: Item) -> int:
    """Bytes of the bodies and blobs that a call brings."""
    return sum(len(record.body) + len(record.blob) for record in item[2])


def reserve(connection: sqlite3.Connection, name: str, count: int) -> tuple[int, int]:
    """Keep at least so many more seqs of a stream for volatile records; `produced`, `reserved`."""
    stream = stream_id(connection, name)
    produced, reserved = connection.execute(
        "UPDATE streams SET reserved = max(reserved, produced + ?) WHERE id = ?"
        " RETURNING produced, reserved",
        (count, stream),
    ).fetchone()
    return int(produced), int(reserved)


def take_seqs(connection: sqlite3.Connection, stream: int, count: int, size: int) -> int:
    """Count so many more records, of `size` bytes in all, as produced and held; the first seq."""
    (produced,) = connection.execute(
        "UPDATE streams SET produced = produced + ?1, held = held + ?1, bytes = bytes + ?2,"
        " resting = 0, taken_bytes = taken_bytes + ?2,"
        " later = later + iif(sendable IS NULL, 0, ?1),"
        " later_bytes = later_bytes + iif(sendable IS NULL, 0, ?2) WHERE id = ?3"
        " RETURNING produced",
        (count, size, stream),
    ).fetchone()
    return int(produced) - count + 1


def row(
    stream: int, seq: int, kind: str, stamp: Stamp, body: bytes, blob: int, blob_bytes: int
) -> tuple[Any, ...]:
    """What `insert` takes: `blob` is a blob's number, or NONE."""
    number, boot, mono_ns, wall_us = key(stream, seq), stamp.boot, stamp.mono_ns, stamp.wall_us
    crc = row_crc(number, kind, boot, mono_ns, wall_us, blob, blob_bytes, body)
    return (number, kind, boot, mono_ns, wall_us, crc, blob, blob_bytes, body)


def row_crc(
    number: int,
    kind: str,
    boot: str,
    mono_ns: int,
    wall_us: int,
    blob: int,
    blob_bytes: int,
    body: bytes,
) -> int:
    """A record's row as one number: the CRC-32 of its body, begun with all other columns.

    The content of its blob has its own. Raises TypeError for what is no such row.
    """
    rest = number ^ mono_ns ^ wall_us ^ blob * 3 ^ blob_bytes * 5
    return zlib.crc32(body, (rest ^ rest >> 32 ^ _texts_crc(kind, boot)) & 0xFFFFFFFF)


@lru_cache(64)
def _texts_crc(kind: str, boot: str) -> int:
    return zlib.crc32(f"{kind}|{boot}".encode())


def is_whole(stored: tuple[Any, ...]) -> bool:
    """Whether a row of COLUMNS is what was written: on a damaged disk it may hold anything."""
    number, kind, boot, mono_ns, wall_us, crc, blob, blob_bytes, body = stored
    try:
        return bool(crc == row_crc(number, kind, boot, mono_ns, wall_us, blob, blob_bytes, body))
    except (TypeError, UnicodeEncodeError):
        return False


def text(raw: bytes) -> str:
    """SQLite's text as text, whatever its bytes are: a damaged one must not fail every read."""
    return raw.decode("utf-8", "replace")


@lru_cache(64)
def known_text(raw: bytes | None) -> str:
    """As `text`, of what is the same in many rows. On a damaged disk it may be missing."""
    return text(raw or b"")


def insert(connection: sqlite3.Connection, rows: Iterable[tuple[Any, ...]]) -> None:
    """Rows of `records`, as `row` makes them."""
    connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def holds(connection: sqlite3.Connection, stream: int, seq: int) -> bool:
    """Whether this record is held."""
    found = connection.execute("SELECT 1 FROM records WHERE id = ?", (key(stream, seq),))
    return found.fetchone() is not None


def digest_of(connection: sqlite3.Connection, stream: int, seq: int) -> int | None:
    """The digest of a held record; None: it is not held, or not whole on the disk."""
    found = connection.execute(
        f"SELECT {COLUMNS} FROM records WHERE id = ?", (key(stream, min(seq, SEQ_MAX)),)
    ).fetchone()
    return digest(found[-1]) if found and is_whole(found) else None


def remove(
    connection: sqlite3.Connection, stream: int, span: Range, *, blobs_too: bool = True
) -> int:
    """Take the held records of `span` out, and their blobs; how many there were."""
    between = keys(stream, span)
    count, size, with_blob = connection.execute(
        "SELECT count(*), coalesce(sum(length(body) + blob_bytes), 0), sum(blob > 0) FROM records"
        " WHERE id BETWEEN ? AND ?",
        between,
    ).fetchone()
    if not count:
        return 0
    if with_blob and blobs_too:
        found = connection.execute(
            "SELECT blob FROM records WHERE id BETWEEN ? AND ? AND blob > 0", between
        )
        blobs.remove(connection, [blob for (blob,) in found.fetchall()])
    connection.execute(
        "DELETE FROM dead WHERE stream = ? AND seq BETWEEN ? AND ?",
        (stream, span.first, span.last),
    )
    no_longer_later(connection, stream, span.last, span.first)
    connection.execute("DELETE FROM records WHERE id BETWEEN ? AND ?", between)
    connection.execute(
        "UPDATE streams SET held = held - ?, bytes = bytes - ? WHERE id = ?", (count, size, stream)
    )
    return int(count)


def no_longer_later(connection: sqlite3.Connection, stream: int, last: int, first: int = 1) -> None:
    """What is held of these seqs will leave, or may be sent: not counted as `later` any more."""
    (later, sendable) = connection.execute(
        "SELECT later, sendable FROM streams WHERE id = ?", (stream,)
    ).fetchone()
    if not later:
        return
    count, size = connection.execute(
        "SELECT count(*), coalesce(sum(length(body) + blob_bytes), 0) FROM records"
        " WHERE id BETWEEN ? AND ?",
        keys(stream, Range(max(first, sendable + 1), last)),
    ).fetchone()
    connection.execute(
        "UPDATE streams SET later = later - ?, later_bytes = later_bytes - ? WHERE id = ?",
        (count, size, stream),
    )


def drop(connection: sqlite3.Connection, stream: int, span: Range, reason: str) -> None:
    """Give up every record of `span`, all of them held, and count them under `reason`."""
    remove(connection, stream, span)
    note_drop(connection, stream, span, reason)


def give_up(connection: sqlite3.Connection, stream: int, seq: int) -> bool:
    """Drop a record that is damaged on the disk, if it is still held; whether it was."""
    number = key(stream, seq)
    stored = connection.execute(f"SELECT {COLUMNS} FROM records WHERE id = ?", (number,)).fetchone()
    if stored is None:
        return False
    span = Range(seq, seq)
    remove(connection, stream, span, blobs_too=is_whole(stored))  # else it may name another's
    note_drop(connection, stream, span, CORRUPTION)
    return True


def drop_unheld(connection: sqlite3.Connection, stream: int, reason: str, count: int = 1) -> int:
    """Count records that could not even be held: they get seqs and are dropped; the last seq."""
    last = int(
        connection.execute(
            "UPDATE streams SET produced = produced + ?, resting = 0 WHERE id = ?"
            " RETURNING produced",
            (count, stream),
        ).fetchone()[0]
    )
    note_drop(connection, stream, Range(last - count + 1, last), reason)
    return last


def forget_settled(connection: sqlite3.Connection, stream: int, mark: int) -> None:
    """The far side knows everything up to `mark`: the dropped ranges there need no row any more."""
    connection.execute("DELETE FROM drops WHERE stream = ? AND last <= ?", (stream, mark))


def note_drop(connection: sqlite3.Connection, stream: int, span: Range, reason: str) -> None:
    """Count what is not held any more as dropped, and keep its range for the far side."""
    count_drop(connection, stream, span.last - span.first + 1, reason)
    grown = connection.execute(
        "UPDATE drops SET last = ? WHERE stream = ? AND last = ? AND reason = ?",
        (span.last, stream, span.first - 1, reason),
    ).rowcount
    if not grown:
        connection.execute(
            "INSERT INTO drops VALUES (?, ?, ?, ?)", (stream, span.first, span.last, reason)
        )


def count_drop(connection: sqlite3.Connection, stream: int, count: int, reason: str) -> None:
    """Count records as dropped of which nobody knows the seqs."""
    connection.execute(
        "INSERT INTO dropped VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET count = count + excluded.count",
        (stream, reason, count),
    )
