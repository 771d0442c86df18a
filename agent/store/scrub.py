"""The slow scrub: all that is held is read again and again, before somebody needs it.

Limits  : a slice takes SLICE_S of the store's thread, or one piece of a blob where that takes
          longer, in a read transaction of its own between two commits. A pass is spread over
          `every_s`, but for at least one record a second. It names SEQS_MAX records of a stream.
Format  : the CRC-32 in records and chunks, the sha256 that a segment says of its FLAC.
Recovery: where a pass is, is in memory: another start is another pass. A record that is damaged is
          given up (`corruption`) in a transaction of its own. Raw audio that waits to be heard is
          only told of: the listener passes it over, and holds it as a dead letter.
"""

import asyncio
import hashlib
import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from typing import TypedDict

import msgspec
from msgspec import Struct

from agent.clock import Clock
from agent.errors import StoreDamaged, StoreError
from agent.records import RecordType
from agent.store import blobs, schema, streams
from agent.store.blobs import CHUNK_BYTES_MAX
from agent.store.database import Database

SLICE_S = 0.004
TICK_S = 1.0
SEQS_MAX = 10
_SEGMENT = RecordType.SEGMENT


class Found(Struct):
    """Damage in one stream: of how many records, the seqs of the first of them, and what kept
    others from being read at all."""

    count: int = 0
    seqs: list[int] = msgspec.field(default_factory=list)
    error: str = ""


Tell = Callable[[dict[str, Found]], None]  # by stream


class _Look(Enum):
    """What one look at the store found."""

    SOUND = auto()  # a record, to its end
    DAMAGED = auto()
    GONE = auto()  # it was sent or dropped meanwhile
    PART = auto()  # there is more of its blob
    END = auto()  # nothing is left to look at


class At(TypedDict):
    """The record that a pass is at."""

    stream: str
    seq: int


class ScrubShown(TypedDict):
    """How far the records are looked through: whole passes, and records since the start."""

    passes: int
    checked: int
    damaged: int
    at: At | None


class _Digest(Struct):
    """What a segment's body says of its FLAC."""

    sha256: str = ""


class _Blob:
    """A record's blob that is being read, piece by piece."""

    def __init__(self, number: int, size: int, sha256: str) -> None:
        self.number = number
        self.size = size
        self.read = 0
        self._sha256 = sha256
        self._digest = hashlib.sha256()

    def look(self, connection: sqlite3.Connection) -> _Look:
        """The next piece."""
        wanted = min(CHUNK_BYTES_MAX, self.size - self.read)
        try:
            content = blobs.read(connection, self.number, self.read, wanted)
        except StoreDamaged:
            return _Look.DAMAGED
        self.read += wanted
        if len(content) != wanted:
            return _Look.DAMAGED
        if self._sha256:
            self._digest.update(content)
        if self.read < self.size:
            return _Look.PART
        wrong = self._sha256 and self._sha256 != self._digest.hexdigest()
        return _Look.DAMAGED if wrong else _Look.SOUND


class Walk:
    """One pass over all that is held, in the order of the keys; its slices run in the store's
    thread, and nobody looks at it meanwhile."""

    def __init__(self) -> None:
        self.over = False
        self.checked = 0  # records that it came to the end of
        self.damaged: list[tuple[int, str]] = []  # keys, and the epoch of the file they are of
        self.stream, self.seq = "", 0  # of the record it is at
        self._stream = 0  # the stream's row
        self._epoch = ""
        self._key = 0
        self._stuck_at, self._leap = -1, 0  # where the last reading failed, and how far it went on
        self._blob: _Blob | None = None

    def slice(self, connection: sqlite3.Connection, checked_max: int) -> None:
        """Look on for SLICE_S, or until so many records are checked in all."""
        until = time.perf_counter() + SLICE_S
        epoch = schema.epoch(connection)
        if epoch != self._epoch:  # another file took the place of one that was corrupt
            self._blob, self._stream, self._epoch = None, 0, epoch
        while not self.over and self.checked < checked_max:
            look = self._look(connection)
            if look is not _Look.PART:
                self._blob = None
            if look is _Look.DAMAGED:
                self.damaged.append((self._key, epoch))
            self.checked += look in (_Look.SOUND, _Look.DAMAGED)
            self.over = look is _Look.END
            if time.perf_counter() >= until:
                break

    def skip(self) -> None:
        """Leave out the rest of a record that cannot be read; then a stretch, longer each time."""
        self._leap = self._leap * 2 or 1 if self._key == self._stuck_at else 0
        self._key += self._leap
        self._blob, self._stuck_at = None, self._key

    def _look(self, connection: sqlite3.Connection) -> _Look:
        if self._blob is None:
            return self._look_at_next(connection)
        stream, seq = streams.parts(self._key)
        if not streams.holds(connection, stream, seq):
            return _Look.GONE  # and its blob's number may be another's
        return self._blob.look(connection)

    def _look_at_next(self, connection: sqlite3.Connection) -> _Look:
        row = connection.execute(
            "SELECT id FROM records WHERE id > ? ORDER BY id LIMIT 1", (self._key,)
        ).fetchone()
        if row is None:
            return _Look.END
        (self._key,) = row  # first: if the rest cannot be read, it goes on behind it
        self._name(connection)
        stored = connection.execute(
            f"SELECT {streams.COLUMNS} FROM records WHERE id = ?", row
        ).fetchone()
        if not streams.is_whole(stored):
            return _Look.DAMAGED
        _, kind, _, _, _, _, number, size, body = stored
        if not size:
            return _Look.SOUND
        self._blob = _Blob(number, size, _sha256(body) if kind == _SEGMENT else "")
        return _Look.PART

    def _name(self, connection: sqlite3.Connection) -> None:
        stream, self.seq = streams.parts(self._key)
        if stream != self._stream:
            row = connection.execute("SELECT name FROM streams WHERE id = ?", (stream,)).fetchone()
            self._stream, self.stream = stream, row[0] if row else f"stream {stream}"


def _sha256(body: bytes) -> str:
    with suppress(msgspec.DecodeError):  # as it was written: it is another kind of segment
        return msgspec.json.decode(body, type=_Digest).sha256
    return ""


class Scrub:
    """Runs on the event loop; what it looks at, it looks at in the store's thread."""

    def __init__(self, database: Database, every_s: float, clock: Clock) -> None:
        """A pass begins every `every_s`."""
        self._database = database
        self._every_s = every_s
        self._clock = clock
        self._walk = Walk()
        self._passes = 0
        self._checked = 0  # in the passes before
        self._damaged = 0
        self._found: dict[str, Found] = {}  # in this pass
        self._found_before: dict[str, Found] = {}  # in the last one

    def state(self) -> ScrubShown:
        """Since the start: whole passes, records checked and found damaged; and where it is."""
        walk = self._walk
        at: At | None = None
        if walk.stream and not walk.over:
            at = {"stream": walk.stream, "seq": walk.seq}
        return {
            "passes": self._passes,
            "checked": self._checked + walk.checked,
            "damaged": self._damaged,
            "at": at,
        }

    async def run(self, tell: Tell) -> None:
        """One pass after the other, for ever.

        `tell` is called with what this pass and the last one found: when there is more of it, and
        at the end of each pass.
        """
        while True:
            begun = self._clock.monotonic()
            await self._pass(tell)
            left_s = begun + self._every_s - self._clock.monotonic()
            await asyncio.sleep(max(left_s, min(TICK_S, self._every_s)))

    async def _pass(self, tell: Tell) -> None:
        self._checked += self._walk.checked
        self._walk, self._found = Walk(), {}
        while not self._walk.over:
            try:
                await self._give_up_damaged(tell)  # where the last slice was broken off
                held = await self._database.read(_held)
                await self._check(math.ceil(max(1.0, held / self._every_s) * TICK_S), tell)
            except StoreError as error:
                self._stumble(error, tell)
            if not self._walk.over:
                await asyncio.sleep(TICK_S)
        self._passes += 1
        self._found_before, self._found = self._found, {}
        tell(dict(self._found_before))

    async def _check(self, count: int, tell: Tell) -> None:
        """The next `count` records, in as many slices as it takes."""
        walk, checked_max = self._walk, self._walk.checked + count
        while walk.checked < checked_max and not walk.over:
            await self._database.read(partial(walk.slice, checked_max=checked_max))
            await self._give_up_damaged(tell)

    async def _give_up_damaged(self, tell: Tell) -> None:
        while self._walk.damaged:
            key, epoch = self._walk.damaged.pop(0)
            stream = await self._database.write(partial(_give_up, key=key, epoch=epoch))
            if stream is not None:
                self._note(stream, streams.parts(key)[1])
                tell(self._found_before | self._found)

    def _stumble(self, error: StoreError, tell: Tell) -> None:
        """The disk did not give back what was asked for: say so, and go on behind it."""
        self._walk.skip()
        self._found.setdefault(self._walk.stream or "store", Found()).error = str(error)
        tell(self._found_before | self._found)

    def _note(self, stream: str, seq: int) -> None:
        self._damaged += 1
        found = self._found.setdefault(stream, Found())
        found.count += 1
        if len(found.seqs) < SEQS_MAX:
            found.seqs.append(seq)


def _held(connection: sqlite3.Connection) -> int:
    (held,) = connection.execute("SELECT coalesce(sum(held), 0) FROM streams").fetchone()
    return int(held)


def _give_up(connection: sqlite3.Connection, key: int, epoch: str) -> str | None:
    """Drop a damaged record, if that is ours to do; its stream, None when there is nothing to tell:
    it went meanwhile, with its whole file perhaps, or is a dead letter."""
    stream, seq = streams.parts(key)
    row = connection.execute(
        "SELECT name, coalesce(sendable, produced) FROM streams WHERE id = ?", (stream,)
    ).fetchone()
    if row is None or schema.epoch(connection) != epoch:
        return None
    name, sendable = row
    if seq <= sendable:
        return name if streams.give_up(connection, stream, seq) else None
    dead = connection.execute("SELECT 1 FROM dead WHERE stream = ? AND seq = ?", (stream, seq))
    return name if streams.holds(connection, stream, seq) and not dead.fetchone() else None
