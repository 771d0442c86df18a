"""The segments that are held, for those who want to listen to them.

Limits  : COUNT_MAX segments in one answer; PIECE_BYTES of sound in one read.
Format  : reads alone, of this file's own epoch; spool.py says what lies there.
Recovery: a segment is held until the far side has it. One that is purged while it is read on ends
          there, and says so.
"""

import sqlite3
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import msgspec

from agent.errors import NotThere, StoreDamaged
from agent.records import Range, RecordType, Segment, segments_stream
from agent.store import blobs, streams
from agent.store.slices import Over, Slices

COUNT_MAX = 1000
PIECE_BYTES = 4 * blobs.CHUNK_BYTES_MAX
_ROWS = f"SELECT {streams.COLUMNS} FROM records WHERE id BETWEEN ? AND ? ORDER BY id DESC"


class Standing(NamedTuple):
    """A segment that is held, and where: its stream, its seq, the record's key and its blob."""

    stream: str
    seq: int
    segment: Segment
    key: int
    blob: int


class Shelf:
    """Looks for segments."""

    def __init__(self, slices: Slices) -> None:
        self._slices = slices

    async def newest(self, count: int) -> list[Standing]:
        """The `count` newest segments of all sources, the newest first, by when they were heard."""
        found: list[Standing] = []
        for key, name in await self._slices.read(_streams):
            found += await self._last(key, name, count)
        found.sort(key=lambda one: (one.segment.heard_us, one.key), reverse=True)
        return found[:count]

    async def of_take(self, source: str, take: int) -> list[Standing]:
        """The segments of a take that are held, in order; the newest COUNT_MAX at most."""
        found: list[Standing] = []
        for key, name in await self._slices.read(_streams):
            if name == segments_stream(source):
                found = await self._last(key, name, COUNT_MAX, take)
        return found[::-1]

    async def find(self, stream: str, seq: int) -> Standing:
        """One of them. Raises NotThere."""

        def operation(connection: sqlite3.Connection, _: Over) -> Standing | None:
            for key, name in _streams(connection, _):
                if name == stream:
                    number = streams.key(key, min(seq, streams.SEQ_MAX))
                    row = connection.execute(_ROWS, (number, number)).fetchone()
                    return row and _standing(name, row)
            return None

        found = await self._slices.read(operation)
        if found is None:
            raise NotThere(
                f"{stream} #{seq}: no such segment is held",
                "what the far side has is purged here; /api/v1/audio/segments lists what is held",
            )
        return found

    async def sound(self, standing: Standing, start: int, size: int) -> bytes:
        """Up to `size` bytes of its FLAC from byte `start`. Raises NotThere once it is purged."""

        def operation(connection: sqlite3.Connection, _: Over) -> bytes | None:
            row = connection.execute("SELECT blob FROM records WHERE id = ?", (standing.key,))
            if row.fetchone() != (standing.blob,):
                return None
            return blobs.read(connection, standing.blob, start, min(size, PIECE_BYTES))

        found = await self._slices.read(operation)
        if found is None:
            raise NotThere(
                f"{standing.stream} #{standing.seq} was purged while it was read",
                "the far side has it now",
            )
        if not found:
            raise StoreDamaged(
                f"{standing.stream} #{standing.seq}: its sound ends at byte {start}",
                "the disk has damaged it: `holdfast outbox verify --deep` counts what else",
            )
        return found

    async def _last(
        self, key: int, name: str, count: int, take: int | None = None
    ) -> list[Standing]:
        """Of one stream, backwards; only those of `take`, if one is named."""
        found: list[Standing] = []
        upto: int | None = streams.SEQ_MAX
        while upto is not None and len(found) < count:
            more, upto = await self._slices.read(
                partial(
                    _backwards, key=key, name=name, upto=upto, room=count - len(found), take=take
                )
            )
            found += more
        return found


def _streams(connection: sqlite3.Connection, _: Over) -> list[tuple[int, str]]:
    """This file's own, that carry segments; their number is that of the sources."""
    rows = connection.execute("SELECT id, name FROM streams WHERE epoch = '' AND held > 0")
    suffix = segments_stream("")
    return [(key, name) for key, name in rows.fetchall() if name.endswith(suffix)]


def _backwards(
    connection: sqlite3.Connection,
    over: Over,
    *,
    key: int,
    name: str,
    upto: int,
    room: int,
    take: int | None,
) -> tuple[list[Standing], int | None]:
    """Segments from seq `upto` down, and where those before them begin, if there may be more."""
    found: list[Standing] = []
    with closing(connection.execute(_ROWS, streams.keys(key, Range(1, upto)))) as rows:
        for row in rows:
            seq = streams.parts(row[0])[1]
            if len(found) == room or (seq < upto and over()):
                return found, seq
            one = _standing(name, row)
            if one and take in (None, one.segment.take):
                found.append(one)
    return found, None


def _standing(name: str, row: tuple[Any, ...]) -> Standing | None:
    """What a row is; None: no segment, or damaged on the disk."""
    try:
        if not streams.is_whole(row) or row[1] != RecordType.SEGMENT:
            return None
        segment = msgspec.json.decode(row[-1], type=Segment)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Standing(name, streams.parts(row[0])[1], segment, row[0], row[6])
