"""The walks of a verify (verify.py): each function is one slice of one walk.

Limits  : a slice ends when its time is over, after one row at least.
Format  : temporary tables: `verify_streams` has each stream's last key at the mark, and what stood
          there then and is not counted; `verify_at` the line, one for records and one for chunks.
Recovery: none of it outlives the connection.
"""

import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

from msgspec import Struct, field

from agent.errors import StoreError
from agent.records import Range
from agent.store import streams
from agent.store.blobs import BLOB_BYTES_MAX, CHUNK_BYTES_MAX
from agent.store.slices import Over

At = Any  # where a walk stands: a key, or several
PIECES_MAX = BLOB_BYTES_MAX // CHUNK_BYTES_MAX  # of a blob: what its number is multiplied by
DAMAGED_MAX = 1000
ROW_FAULT = "its row is not what was written (CRC)"
_NOTE = (
    "UPDATE verify_streams SET gone = gone {0} 1,"
    " bytes = bytes {0} (length({1}.body) + {1}.blob_bytes),"
    " pieces = pieces {0} ({1}.blob_bytes + {2} - 1) / {2},"
    " blobs = blobs {0} ({1}.blob_bytes + {2} - 1) / {2} * {1}.blob"
    " WHERE stream = {1}.id >> 40 AND {1}.id <= top;"
)
_BEGIN = (
    "CREATE TEMP TABLE verify_streams (stream INTEGER PRIMARY KEY, top INTEGER NOT NULL,"
    " gone INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,"
    " pieces INTEGER NOT NULL DEFAULT 0, blobs INTEGER NOT NULL DEFAULT 0)",
    "INSERT INTO verify_streams (stream, top) SELECT id, id << 40 | produced FROM main.streams",
    "CREATE TEMP TABLE verify_at (record INTEGER NOT NULL, chunk INTEGER NOT NULL,"
    " top INTEGER NOT NULL, gone INTEGER NOT NULL, blobs INTEGER NOT NULL)",
    "INSERT INTO verify_at SELECT -1, -1, coalesce(max(id), -1), 0, 0 FROM main.chunks",
    "CREATE TEMP TRIGGER verify_gone AFTER DELETE ON main.records"
    " WHEN old.id > (SELECT record FROM verify_at) BEGIN "
    + _NOTE.format("+", "old", CHUNK_BYTES_MAX)
    + " END",
    "CREATE TEMP TRIGGER verify_came AFTER INSERT ON main.records"
    " WHEN new.id > (SELECT record FROM verify_at) BEGIN "
    + _NOTE.format("-", "new", CHUNK_BYTES_MAX)
    + " END",
    "CREATE TEMP TRIGGER verify_chunk_gone AFTER DELETE ON main.chunks"
    " WHEN old.id > (SELECT chunk FROM verify_at) AND old.id <= (SELECT top FROM verify_at)"
    f" BEGIN UPDATE verify_at SET gone = gone + 1, blobs = blobs + old.id / {PIECES_MAX}; END",
    # Before: one that only takes the place of another is there already.
    "CREATE TEMP TRIGGER verify_chunk_came BEFORE INSERT ON main.chunks"
    " WHEN new.id > (SELECT chunk FROM verify_at) AND new.id <= (SELECT top FROM verify_at)"
    " AND NOT EXISTS (SELECT 1 FROM main.chunks WHERE id = new.id)"
    f" BEGIN UPDATE verify_at SET gone = gone - 1, blobs = blobs - new.id / {PIECES_MAX}; END",
)


class Seen(Struct):
    """What a walk saw: up to where, rows, their bytes, the pieces of their blobs, faults.

    `blobs` is the sum of the blobs' numbers over these pieces, by which they are told apart.
    `damaged` pieces by their key, with their blob; `dropped` seqs by stream and reason.
    """

    at: At
    ended: bool = False
    rows: int = 0
    bytes: int = 0
    pieces: int = 0
    blobs: int = 0
    faults: list[str] = field(default_factory=list)
    damaged: dict[int, int] = field(default_factory=dict)
    dropped: Counter[tuple[int, str]] = field(default_factory=Counter)

    def add(self, part: "Seen") -> None:
        """What the next slice saw; its faults are told already."""
        self.at, self.ended = part.at, part.ended
        self.rows += part.rows
        self.bytes += part.bytes
        self.pieces += part.pieces
        self.blobs += part.blobs
        self.damaged.update(part.damaged)
        self.dropped.update(part.dropped)


def begin(connection: sqlite3.Connection) -> None:
    """From here on what leaves and comes is noted."""
    forget(connection)
    for statement in _BEGIN:
        connection.execute(statement)


def forget(connection: sqlite3.Connection) -> None:
    """Note nothing any more."""
    for kind, name in connection.execute(
        "SELECT type, name FROM temp.sqlite_master WHERE name LIKE 'verify%'"
        " AND type IN ('trigger', 'table') ORDER BY type DESC"
    ).fetchall():
        connection.execute(f"DROP {kind} temp.{name}")


def _move(connection: sqlite3.Connection, line: str, at: int) -> None:
    """The line is at this key now."""
    _noted(connection)
    connection.execute(f"UPDATE temp.verify_at SET {line} = ?", (at,))


def _noted(connection: sqlite3.Connection) -> None:
    """Raises StoreError when there are no notes any more."""
    if not connection.execute(
        "SELECT 1 FROM temp.sqlite_master WHERE name = 'verify_at'"
    ).fetchone():
        raise StoreError(
            "the store's file had to be opened anew while it was verified", "verify it again"
        )


def gone(connection: sqlite3.Connection) -> tuple[dict[int, Seen], Seen]:
    """What stood there at the mark and was not counted: records by stream, and pieces."""
    _noted(connection)
    rows = connection.execute("SELECT stream, gone, bytes, pieces, blobs FROM temp.verify_streams")
    by_stream = {stream: Seen(None, True, *counts) for stream, *counts in rows.fetchall()}
    pieces, blobs = connection.execute("SELECT gone, blobs FROM temp.verify_at").fetchone()
    return by_stream, Seen(None, True, pieces=pieces, blobs=blobs)


def records(
    connection: sqlite3.Connection, over: Over, at: int, stream: int, top: int, who: str
) -> Seen:
    """A stream's records behind `at`, up to the mark's last, `top`."""
    seen = Seen(at)
    rows = connection.execute(
        f"SELECT {streams.COLUMNS} FROM records WHERE id > ? AND id <= ? ORDER BY id",
        (at, top),
    )
    with closing(rows):
        for row in rows:
            seen.at, *_, blob, blob_bytes, body = row
            seen.rows += 1
            if not streams.is_whole(row):
                seen.faults.append(f"{who} #{streams.parts(seen.at)[1]}: {ROW_FAULT}")
                if not all(isinstance(one, int) for one in (blob, blob_bytes)):
                    continue  # nothing of it can be counted
            seen.bytes += len(body) + blob_bytes
            said = None
            if blob or blob_bytes:
                pieces, fault = _blob_fault(connection, blob, blob_bytes)
                seen.pieces += pieces
                seen.blobs += pieces * blob
                said = fault
            if said:
                seen.faults.append(f"{who} #{seen.at - streams.key(stream, 0)}: {said}")
            if over():
                break
        else:
            _noted(connection)  # behind the rows: what is damaged there is met first
            seen.at, seen.ended = top, True
            seen.faults += _edges(connection, stream, who)
    _move(connection, "record", seen.at)
    return seen


def _blob_fault(
    connection: sqlite3.Connection, blob: int, blob_bytes: int
) -> tuple[int, str | None]:
    """How many pieces a blob has, and what is wrong with them."""
    first = blob * PIECES_MAX
    pieces, size, last = connection.execute(
        "SELECT count(*), coalesce(sum(length(data)), 0), max(id) FROM chunks"
        " WHERE id BETWEEN ? AND ?",
        (first, first + PIECES_MAX - 1),
    ).fetchone()
    if blob and not pieces:
        return 0, f"its blob of {blob_bytes} bytes is not there"
    if size != blob_bytes:
        return pieces, f"its blob has {size} bytes in place of {blob_bytes}"
    if last != first + pieces - 1:
        return pieces, "a piece of its blob is missing"
    return pieces, None


def _edges(connection: sqlite3.Connection, stream: int, who: str) -> list[str]:
    """What must not be held: seqs beyond the last, seq 0, and what the far side knows."""
    produced, settled, sendable = connection.execute(
        "SELECT produced, settled, sendable FROM streams WHERE id = ?", (stream,)
    ).fetchone()
    found = []
    if settled > produced:
        found.append(f"{who}: settled up to #{settled}, but only {produced} were produced")
    if sendable is not None and sendable > produced:
        found.append(f"{who}: sendable up to #{sendable}, but only {produced} were produced")
    for span, what in (
        (Range(produced + 1, streams.SEQ_MAX), f"is held, but only {produced} were produced"),
        (Range(0, 0), "is held, and seqs begin with 1"),
        (Range(1, settled), f"is held, but the far side is known to have all up to #{settled}"),
    ):
        row = connection.execute(
            "SELECT seq FROM records WHERE id BETWEEN ? AND ? AND NOT (seq <= ? AND EXISTS"
            " (SELECT 1 FROM dead WHERE dead.stream = records.id >> 40"
            "  AND dead.seq = records.id & 0xFFFFFFFFFF AND unsent))"
            " ORDER BY id LIMIT 1",
            (*streams.keys(stream, span), settled),
        ).fetchone()
        if row and span.first <= span.last:
            found.append(f"{who} #{row[0]} {what}")
    return found


def strangers(connection: sqlite3.Connection, over: Over, at: int) -> Seen:
    """Records of a stream that has no row."""
    seen = Seen(at)
    while True:
        row = connection.execute(
            "SELECT stream, EXISTS (SELECT 1 FROM streams WHERE streams.id = records.id >> 40)"
            " FROM records WHERE id > ? ORDER BY id LIMIT 1",
            (seen.at,),
        ).fetchone()
        if row is None:
            seen.ended = True
            return seen
        stream, known = row
        if not known:
            seen.faults.append(f"records are held of a stream that is not there (row {stream})")
        seen.at = streams.key(stream, streams.SEQ_MAX)
        if over():
            return seen


def chunks(connection: sqlite3.Connection, over: Over, at: int, *, deep: bool) -> Seen:
    """The pieces behind `at`, up to the mark's last."""
    seen = Seen(at)
    _noted(connection)
    (top,) = connection.execute("SELECT top FROM temp.verify_at").fetchone()
    rows = connection.execute(
        f"SELECT id, {'crc, data' if deep else '0, NULL'} FROM chunks"
        " WHERE id > ? AND id <= ? ORDER BY id",
        (at, top),
    )
    with closing(rows):
        for seen.at, crc, piece in rows:
            seen.rows += 1
            seen.pieces += 1
            seen.blobs += seen.at // PIECES_MAX
            if deep and zlib.crc32(piece) != crc and len(seen.damaged) < DAMAGED_MAX:
                seen.damaged[seen.at] = seen.at // PIECES_MAX
            if over():
                break
        else:
            seen.at, seen.ended = top, True
    _move(connection, "chunk", seen.at)
    return seen


def owners(
    connection: sqlite3.Connection,
    over: Over,
    at: int,
    damaged: dict[int, int],
    who: Callable[[int], str],
) -> Seen:
    """Whose these damaged pieces are: said as faults, and left in `damaged`."""
    seen, blobs = Seen(at), set(damaged.values())
    rows = connection.execute("SELECT id, blob FROM records WHERE id > ? ORDER BY id", (at,))
    with closing(rows):
        for seen.at, blob in rows:
            for piece in [key for key, one in damaged.items() if blob in blobs and one == blob]:
                row = connection.execute("SELECT crc, data FROM chunks WHERE id = ?", (piece,))
                crc, content = row.fetchone() or (0, b"")
                if zlib.crc32(content) != crc:  # else the blob's number was used again
                    stream, seq = divmod(seen.at, streams.SEQ_MAX + 1)
                    number = piece % PIECES_MAX
                    seen.faults.append(
                        f"{who(stream)} #{seq}: piece {number} of its blob is damaged (CRC)"
                    )
                    seen.damaged[piece] = blob
            if over():
                return seen
    seen.ended = True
    return seen


def job_of(connection: sqlite3.Connection, _: Over, piece: int, blob: int) -> str:
    """The job that a damaged piece belongs to, said as a fault; '' if it is none's."""
    row = connection.execute(
        "SELECT coalesce(jobs.id, 'that is being removed'), chunk, crc, data FROM job_chunks"
        " JOIN jobs ON job = number JOIN chunks ON chunks.id = ? WHERE blob = ?",
        (piece, blob),
    ).fetchone()
    if row is None or zlib.crc32(row[3]) == row[2]:
        return ""
    return f"job {row[0]}: piece {piece % PIECES_MAX} of its chunk {row[1]} is damaged (CRC)"


def drops(connection: sqlite3.Connection, over: Over, at: tuple[int, int, int]) -> Seen:
    """The dropped ranges behind `at`: a stream, a first and a last seq."""
    seen = Seen(at)
    rows = connection.execute(
        "SELECT drops.stream, first, last, reason, name, produced, EXISTS (SELECT 1 FROM records"
        "  WHERE records.id BETWEEN drops.stream << 40 | first AND drops.stream << 40 | last)"
        " FROM drops LEFT JOIN streams ON streams.id = drops.stream"
        " WHERE (drops.stream, first) > (?, ?) ORDER BY drops.stream, first",
        at[:2],
    )
    with closing(rows):
        for stream, first, last, reason, name, produced, held in rows:
            what = f"{name}: the dropped range {first}-{last} ({reason})"
            if name is None:
                seen.faults.append(f"seqs are dropped of a stream that is not there (row {stream})")
            elif not 1 <= first <= last <= produced:
                seen.faults.append(f"{what} is not within 1-{produced}")
            elif held:
                seen.faults.append(f"{what} has records that are held")
            if seen.at[0] == stream and seen.at[2] >= first:
                seen.faults.append(f"{what} overlaps the one before it")
            seen.dropped[stream, reason] += last - first + 1
            seen.at = (stream, first, last)
            if over():
                return seen
    seen.ended = True
    return seen


def dead(connection: sqlite3.Connection, over: Over, at: tuple[int, int]) -> Seen:
    """The dead letters behind `at`: a stream and a seq."""
    seen = Seen(at)
    rows = connection.execute(
        "SELECT dead.stream, dead.seq, name, records.id FROM dead"
        " LEFT JOIN streams ON streams.id = dead.stream"
        " LEFT JOIN records ON records.id = dead.stream << 40 | dead.seq"
        " WHERE (dead.stream, dead.seq) > (?, ?) ORDER BY dead.stream, dead.seq",
        at,
    )
    with closing(rows):
        for stream, seq, name, key in rows:
            if key is None:
                said = name or f"row {stream}"
                seen.faults.append(f"{said} #{seq} is noted as a dead letter, but not held")
            seen.at = (stream, seq)
            if over():
                return seen
    seen.ended = True
    return seen


def dropped(connection: sqlite3.Connection, stream: int) -> dict[str, int]:
    """How many a stream has dropped, by reason."""
    rows = connection.execute(
        "SELECT reason, count FROM dropped WHERE stream = ? ORDER BY reason", (stream,)
    )
    return dict(rows.fetchall())
