"""Blobs in pieces: sound lies beside its rows, in the same file and the same transaction.

Limits  : a piece has CHUNK_BYTES_MAX bytes, all but the last exactly; a blob BLOB_BYTES_MAX.
Format  : table chunks (sql/0004.sql): piece n of blob b is row b << 12 | n, with its CRC-32. A
          blob's number is one above the greatest in the table when it comes.
Recovery: every function runs inside one transaction; a piece whose CRC is wrong is damaged on the
          disk, for SQLite checks no content.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator

from agent.errors import StoreDamaged

CHUNK_BYTES_MAX = 64 * 1024
_NUMBER_BITS = 12
BLOB_BYTES_MAX = CHUNK_BYTES_MAX << _NUMBER_BITS
NONE = 0  # what a record without a blob has in place of a blob's number


def insert(connection: sqlite3.Connection, content: bytes) -> int:
    """Keep a blob; its number, NONE for an empty one. Raises ValueError above BLOB_BYTES_MAX."""
    if not content:
        return NONE
    if len(content) > BLOB_BYTES_MAX:
        raise ValueError(f"a blob of {len(content)} bytes; at most {BLOB_BYTES_MAX} are kept")
    blob = unused(connection)
    put(connection, blob, 0, pieces(content))
    return blob


def pieces(content: bytes) -> Iterator[bytes]:
    """Content as pieces, all but the last of CHUNK_BYTES_MAX."""
    for start in range(0, len(content), CHUNK_BYTES_MAX):
        yield content[start : start + CHUNK_BYTES_MAX]


def unused(connection: sqlite3.Connection) -> int:
    """A number that no piece has; it is taken once a piece has it."""
    row = connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
    return (int(row[0]) >> _NUMBER_BITS) + 1


def put(connection: sqlite3.Connection, blob: int, number: int, pieces: Iterable[bytes]) -> None:
    """Keep pieces of a blob, from piece `number` on; those that were there are replaced."""
    first = blob << _NUMBER_BITS | number
    connection.executemany(
        "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)",
        ((first + i, zlib.crc32(piece), piece) for i, piece in enumerate(pieces)),
    )


def read(connection: sqlite3.Connection, blob: int, start: int, size: int) -> bytes:
    """`size` bytes from byte `start`; fewer where the blob ends. Raises StoreDamaged."""
    first = start // CHUNK_BYTES_MAX
    last = (start + size - 1) // CHUNK_BYTES_MAX
    key = blob << _NUMBER_BITS
    rows = connection.execute(
        "SELECT id, crc, data FROM chunks WHERE id BETWEEN ? AND ? ORDER BY id",
        (key | first, key | last),
    ).fetchall()
    for number, (piece, crc, data) in enumerate(rows, first):
        whole = piece == key | number and isinstance(data, bytes)
        if not whole or zlib.crc32(data) != crc:
            raise StoreDamaged(f"piece {number} of a blob is damaged on the disk")
    skip = start - first * CHUNK_BYTES_MAX
    return b"".join(data for _, _, data in rows)[skip : skip + size]


def remove(connection: sqlite3.Connection, blobs: Iterable[int]) -> None:
    """Take these blobs out."""
    connection.executemany(
        "DELETE FROM chunks WHERE id BETWEEN ? AND ?",
        ((blob << _NUMBER_BITS, ((blob + 1) << _NUMBER_BITS) - 1) for blob in blobs),
    )


def remove_some(connection: sqlite3.Connection, blob: int, count_max: int) -> bool:
    """Take so many pieces of a blob out; whether there are more."""
    first, last = blob << _NUMBER_BITS, ((blob + 1) << _NUMBER_BITS) - 1
    connection.execute(
        "DELETE FROM chunks WHERE id IN (SELECT id FROM chunks WHERE id BETWEEN ? AND ? LIMIT ?)",
        (first, last, count_max),
    )
    left = connection.execute("SELECT 1 FROM chunks WHERE id BETWEEN ? AND ?", (first, last))
    return left.fetchone() is not None
