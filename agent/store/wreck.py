"""A damaged store file, read for what it still gives back.

SQLite follows the b-trees that are whole; where a page of them is not, the rows behind it are found
by leaping over keys, further and further, and then back to the first that can be read.

Limits  : one reader; a slice holds SLICE_BYTES of bodies and blobs, or one record.
Format  : that of the store (sql/). The file is opened as it lies, with its WAL; a damaged first
          page is replaced by the one in `<file>.head`, and kept in `<file>.page1`.
Recovery: reading it again gives the same.
"""

import errno
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from agent.errors import StoreDamaged, StoreError, StoreFull
from agent.records import Drop, Range
from agent.store import blobs, head, schema, streams

SLICE_BYTES = 1 << 20
SLICE_ROWS = 256
PROGRESS_STEPS = 10_000  # of SQLite's virtual machine, under a millisecond
LEAPS_MIN = 4096  # so many keys are tried one by one: about an inner page of small records


class Former(Struct, frozen=True):
    """A stream as the damaged file, or its head, counted it."""

    id: int
    epoch: str
    name: str
    produced: int
    delivered: int
    held: int
    settled: int
    reserved: int
    dropped: dict[str, int]


class Saved(Struct, frozen=True):
    """A record that is whole: its row as `streams.insert` takes it but for key and blob."""

    seq: int
    values: tuple[Any, ...]  # type, boot, mono_ns, wall_us
    body: bytes
    blob: bytes


class Slice(Struct, frozen=True):
    """What a stream gave back of the seqs up to `through`; `holes` could not be read."""

    through: int
    saved: list[Saved]
    holes: list[Range]


class Wreck:
    """Open from the start; close it with `with`, which ends a call that runs in another thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head = head.read(path)
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()  # SQLite does not survive being closed while it is asked
        self._over = False
        self.guessed = False  # what a stream had is not known for sure
        with suppress(sqlite3.Error):
            self._connection = self._opened()
        if self._connection is None and self.head and self.path.exists():
            self._mend(self.head.page)
            with suppress(sqlite3.Error):
                self._connection = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        with self._lock:
            connection, self._connection = self._connection, None
            if connection:
                connection.close()

    @property
    def readable(self) -> bool:
        """Whether anything can be asked of it."""
        return self._connection is not None

    def epoch(self) -> str:
        """The epoch it was born with; '' if nobody knows. The head of another one is set aside."""
        with self._lock:
            rows = self._some("SELECT value FROM meta WHERE key = 'epoch'")
        if rows and self.head and self.head.epoch != rows[0][0]:
            self.head = None
        return str(rows[0][0]) if rows else self.head.epoch if self.head else ""

    def streams(self) -> list[Former]:
        """Its streams: by its own counters, else by what the head knew, which is less."""
        with self._lock:
            return self._streams()

    def _streams(self) -> list[Former]:
        dropped: dict[int, dict[str, int]] = {}
        for stream, reason, count in self._some("SELECT stream, reason, count FROM dropped"):
            dropped.setdefault(stream, {})[reason] = count
        rows = self._some(
            "SELECT id, epoch, name, produced, delivered, held, settled, reserved FROM streams"
            " ORDER BY id"
        )
        found = {row[0]: Former(*(*row, dropped.get(row[0], {}))) for row in rows}
        for mark in self.head.streams if self.head else []:
            known = found.get(mark.id)
            if known is None:
                found[mark.id] = self._guessed(mark, dropped.get(mark.id, {}))
            elif known.produced < mark.produced:  # the file ends too early
                more = mark.produced - known.produced
                found[mark.id] = replace(known, produced=mark.produced, held=known.held + more)
        return list(found.values())

    def drops(self, stream: int) -> list[Drop]:
        """The dropped ranges of a stream that the far side did not know yet."""
        with self._lock:
            rows = self._some(
                "SELECT first, last, reason FROM drops WHERE stream = ? ORDER BY first", (stream,)
            )
        return [Drop(*row) for row in rows]

    def letters(self, stream: int, span: Range) -> dict[int, tuple[str, int]]:
        """The link's dead letters of a stream: by seq, the cause, and whether it is sent again."""
        with self._lock:
            rows = self._some(
                "SELECT seq, cause, retry FROM dead"
                " WHERE stream = ? AND unsent AND seq BETWEEN ? AND ? ORDER BY seq",
                (stream, span.first, span.last),
            )
        return {seq: (cause, retry) for seq, cause, retry in rows}

    def slice(self, stream: int, after: int, last: int, rows_max: int = SLICE_ROWS) -> Slice:
        """The next records of a stream above `after`, up to `last`.

        Raises StoreDamaged where the wreck was closed meanwhile.
        """
        with self._lock:
            found = self._slice(stream, after, last, rows_max)
        if self._over:  # what was asked last was broken off, and looks like a hole
            raise StoreDamaged(f"{self.path} was closed")
        return found

    def _slice(self, stream: int, after: int, last: int, rows_max: int) -> Slice:
        saved: list[Saved] = []
        holes: list[Range] = []
        size, at = 0, after
        for seq, one in self._rows(stream, after, last):
            if isinstance(one, Range):
                holes.append(one)
            elif one is None:
                holes.append(Range(seq, seq))
            else:
                saved.append(one)
                size += len(one.body) + len(one.blob)
            at = seq
            if size >= SLICE_BYTES or len(saved) + len(holes) >= rows_max:
                return Slice(at, saved, holes)
        return Slice(last, saved, holes)

    def _rows(
        self, stream: int, after: int, last: int
    ) -> Iterator[tuple[int, Saved | Range | None]]:
        """Each record in order (None: damaged), and each hole at its last seq."""
        at = after
        while at < last:
            try:
                rows = self._ask(stream, at, last, SLICE_ROWS)
            except sqlite3.Error:
                rows = self._one_by_one(stream, at, last)
                if not rows:
                    there = self._leap(stream, at, last)
                    yield there - 1, Range(at + 1, there - 1)
                    at = there - 1
                    continue
            if not rows:
                return
            for row in rows:
                at = streams.parts(row[0])[1]
                yield at, self._whole(row)

    def _ask(self, stream: int, after: int, last: int, limit: int) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        rows = self._connection.execute(
            f"SELECT {streams.COLUMNS} FROM records WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
            (*streams.keys(stream, Range(after + 1, last)), limit),
        ).fetchall()
        low, high = streams.keys(stream, Range(after + 1, last))
        if any(not low <= row[0] <= high for row in rows):
            raise sqlite3.DatabaseError("a page has keys that are not its own")
        return rows

    def _one_by_one(self, stream: int, after: int, last: int) -> list[tuple[Any, ...]]:
        """What comes before the place that cannot be read."""
        found: list[tuple[Any, ...]] = []
        with suppress(sqlite3.Error):
            while len(found) < SLICE_ROWS and (rows := self._ask(stream, after, last, 1)):
                found += rows
                after = streams.parts(rows[0][0])[1]
        return found

    def _leap(self, stream: int, after: int, last: int) -> int:
        """The first seq behind the place that cannot be read; `last` + 1: there is none."""
        step, near = 1, after
        while near + step < last and not self._reads(stream, near + step, last):
            near += step
            step = step * 2 if near - after > LEAPS_MIN else 1
        far = min(near + step, last)
        if not self._reads(stream, far, last):
            return last + 1
        while far - near > 1:  # near cannot be read from, far can
            middle = (near + far) // 2
            if self._reads(stream, middle, last):
                far = middle
            else:
                near = middle
        return far + 1

    def _reads(self, stream: int, after: int, last: int) -> bool:
        try:
            self._ask(stream, after, last, 1)
        except sqlite3.Error:
            return False
        return True

    def _whole(self, row: tuple[Any, ...]) -> Saved | None:
        """A row with its blob, if both are what was written."""
        number, *values, _, blob, blob_bytes, body = row
        assert self._connection is not None
        if not streams.is_whole(row):
            return None
        try:
            content = blobs.read(self._connection, blob, 0, blob_bytes) if blob_bytes else b""
        except (sqlite3.Error, StoreDamaged):
            return None
        if len(content) != blob_bytes:
            return None
        return Saved(streams.parts(number)[1], tuple(values), body, content)

    def _guessed(self, mark: head.StreamMark, dropped: dict[str, int]) -> Former:
        """A stream of which only the head knows; how far it really was, its records say."""
        self.guessed = True
        newest = 0
        with suppress(sqlite3.Error, AssertionError):
            assert self._connection is not None
            (newest,) = self._connection.execute(
                "SELECT coalesce(max(seq), 0) FROM records WHERE id BETWEEN ? AND ?",
                streams.keys(mark.id, Range(1, streams.SEQ_MAX)),
            ).fetchone()
        produced = max(mark.produced, newest)
        held = max(0, produced - mark.delivered - sum(dropped.values()))
        delivered = produced - held - sum(dropped.values())
        return Former(mark.id, mark.epoch, mark.name, produced, delivered, held, 0, 0, dropped)

    def _some(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """As many rows as can be read."""
        found: list[tuple[Any, ...]] = []
        if self._connection:
            with suppress(sqlite3.Error):
                found.extend(self._connection.execute(sql, values))
        return found

    def _opened(self) -> sqlite3.Connection | None:
        """The file, if its schema can be read."""
        if not self.path.exists():
            return None
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.text_factory = streams.text
        try:
            connection.set_progress_handler(lambda: self._over, PROGRESS_STEPS)
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("SELECT key FROM meta LIMIT 0")  # a file that was emptied has none
            with suppress(sqlite3.Error):  # then it is of the newest schema, or cannot be read
                schema.migrate(connection, 0)
            connection.execute("SELECT id FROM records LIMIT 0")
            connection.execute("SELECT id FROM chunks LIMIT 0")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _mend(self, page: bytes) -> None:
        """Raises StoreError."""
        try:
            self._put_first_page(page)
        except OSError as error:
            kind = StoreFull if error.errno == errno.ENOSPC else StoreError
            raise kind(f"{self.path}: {error.strerror}", "make room on the disk") from error

    def _put_first_page(self, page: bytes) -> None:
        with self.path.open("r+b") as file:
            kept = self.path.with_name(f"{self.path.name}.page1")
            if not kept.exists():
                kept.write_bytes(file.read(len(page)))
                file.seek(0)
            file.write(page)
