"""The audio that waits: raw sound until it has become segments, segments until they are sent.

Limits  : a raw record's PCM is one chunk (64 KiB, 2 s); past the bounds (bounds.py) new raw audio
          is refused with StoreFull; segments, acks and the ledger still work. A long segment's
          FLAC comes in while the segment is still open (drafts.py).
Format  : raw records in `{source}.raw`, segments in `{source}.segments`; takes and positions
          beside them say how far each recording is accepted and how far it has become segments.
Recovery: sound is accepted once its raw record is committed. A crash before its segment is
          committed leaves the position where it was, and the segment is made again from there.
"""

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple

from agent.clock import Clock
from agent.errors import EpochOver, StoreDamaged
from agent.forms import Keep
from agent.records import (
    Position,
    Range,
    Raw,
    RecordType,
    Segment,
    Stamp,
    Take,
    raw_stream,
    segments_stream,
)
from agent.store import blobs, drafts, streams
from agent.store.database import Database
from agent.store.drafts import Drafted, Drafts
from agent.store.takes import POSTED

PROCESSED = "processed"  # raw audio that has become segments, or was found to hold no speech
FULL = "full"  # raw audio refused at the bound

Heard = tuple[int, Raw | None, Stamp, bytes]  # seq, what it is (None: damaged), when, 16-bit PCM
Dead = tuple[int, str]  # seq of a raw record that no worker could digest, and why


class Spool:
    """Raw audio in, segments out, in step with each other."""

    def __init__(self, database: Database, clock: Clock, kept: Callable[[], None]) -> None:
        """`kept` is called whenever there is more to send."""
        self.drafts = Drafts(database)
        self._database = database
        self._clock = clock
        self._kept = kept
        self._epochs: dict[str, str] = {}  # by source, of the file whose position was asked for

    async def begin(self, source: str, name: str, identity: str, *, alone: bool = False) -> Take:
        """The take of this recording: the one that was begun before, else a new one.

        `alone` forgets the source's other takes, but those of the API: a live source never goes
        back to one.
        """

        def operation(connection: sqlite3.Connection) -> Take:
            key = (source, name, identity)
            if alone:
                connection.execute(
                    "DELETE FROM takes WHERE source = ? AND identity NOT GLOB ?",
                    (source, f"{POSTED}*"),
                )
            connection.execute(
                "INSERT OR IGNORE INTO takes (source, name, identity) VALUES (?, ?, ?)", key
            )
            take, samples, ended = connection.execute(
                "SELECT id, samples, ended FROM takes"
                " WHERE source = ? AND name = ? AND identity = ?",
                key,
            ).fetchone()
            return Take(take, source, name, samples, bool(ended))

        return await self._database.write(operation)

    async def forget(self, take: Take) -> None:
        """The recording is gone from where it was read: no one will ask for this take again."""
        await self._database.write(
            lambda connection: connection.execute("DELETE FROM takes WHERE id = ?", (take.id,))
        )

    async def accept(self, take: Take, pcm: bytes, *, end: bool = False) -> Take:
        """Keep the next stretch of a take, at most 64 KiB of 16-bit PCM; returns after the commit.

        The answer is the take as far as it is accepted now, as durable as a `group` append. Raises
        StoreFull at the bound; then nothing was kept.
        """
        raw = Raw(take.id, take.name, take.samples, len(pcm) // 2, end)
        stamp, begun = self._clock.stamp(), time.perf_counter()
        samples = raw.offset + raw.samples

        def operation(connection: sqlite3.Connection) -> None:
            stream = streams.stream_id(connection, raw_stream(take.source), sendable=0)
            body = msgspec.json.encode(raw)
            streams.append(connection, stream, RecordType.RAW, stamp, body, pcm)
            connection.execute(
                "INSERT INTO takes VALUES (?, ?, ?, '', ?, ?) ON CONFLICT (id)"
                " DO UPDATE SET samples = excluded.samples, ended = excluded.ended",
                (take.id, take.source, take.name, samples, end),
            )

        grows = [raw_stream(take.source)] if pcm else []  # an end needs no room
        await self._database.write(operation, grows=grows)
        took_s = time.perf_counter() - begun
        return Take(take.id, take.source, take.name, samples, end, "group", took_s)

    async def end_absent(self, source: str, present: Collection[tuple[str, str]]) -> None:
        """End and forget the takes of this source but for those of the recordings `present`.

        `present` are names and identities, as `begin` had them. Takes of the API are ended only.
        """

        def operation(connection: sqlite3.Connection) -> list[tuple[Take, bool]]:
            rows = connection.execute(
                "SELECT id, name, samples, ended, identity FROM takes WHERE source = ?",
                (source,),
            )
            return [
                (Take(key, source, name, samples, bool(ended)), identity.startswith(POSTED))
                for key, name, samples, ended, identity in rows
                if (name, identity) not in present
            ]

        for take, posted in await self._database.read(operation):
            if not take.ended:
                await self.accept(take, b"", end=True)
            if not posted:
                await self.forget(take)

    async def refuse(self, source: str, reason: str) -> None:
        """Count a stretch of live sound that cannot be kept."""

        def operation(connection: sqlite3.Connection) -> None:
            stream = streams.stream_id(connection, raw_stream(source), sendable=0)
            streams.drop_unheld(connection, stream, reason)

        await self._database.write(operation)

    async def position(self, source: str) -> Position:
        """How far this source's sound has become segments."""

        def operation(connection: sqlite3.Connection) -> Position:
            self._epochs[source] = self._database.epoch
            row = connection.execute(
                "SELECT take, floor, spoken_until, next_seq, model, memory FROM positions"
                " WHERE source = ?",
                (source,),
            ).fetchone()
            return Position(*row) if row else Position()

        return await self._database.read(operation)

    async def dead(self, source: str) -> list[Dead]:
        """The dead letters among a source's raw records, in order."""

        def operation(connection: sqlite3.Connection) -> list[Dead]:
            return connection.execute(
                "SELECT seq, cause FROM dead WHERE stream ="
                " (SELECT id FROM streams WHERE epoch = '' AND name = ?)"
                " AND NOT unsent ORDER BY seq",
                (raw_stream(source),),
            ).fetchall()

        return await self._database.read(operation)

    async def sources(self) -> dict[str, Keep]:
        """The sources of which raw audio is held that can still be heard, and what they keep."""

        def operation(connection: sqlite3.Connection) -> dict[str, Keep]:
            suffix = raw_stream("")
            rows = connection.execute(
                "SELECT name, sendable FROM streams WHERE epoch = '' AND held >"
                " (SELECT count(*) FROM dead WHERE stream = streams.id AND (unsent OR NOT retry))"
                " ORDER BY name"
            )
            return {
                name.removesuffix(suffix): "all" if sendable else "segments"
                for name, sendable in rows
                if name.endswith(suffix)
            }

        return await self._database.read(operation)

    async def retrying(self, source: str) -> Heard | None:
        """The first dead letter that somebody asked to be heard once more."""

        def operation(connection: sqlite3.Connection) -> Heard | None:
            row = connection.execute(
                f"SELECT {streams.COLUMNS} FROM dead"
                " JOIN records ON records.id = dead.stream << 40 | dead.seq WHERE dead.retry"
                " AND NOT dead.unsent"
                " AND dead.stream = (SELECT id FROM streams WHERE epoch = '' AND name = ?)"
                " ORDER BY dead.seq LIMIT 1",
                (raw_stream(source),),
            ).fetchone()
            return row and heard_of(connection, row)

        return await self._database.read(operation)

    async def redeem(
        self, source: str, seq: int, found: Sequence[tuple[Segment, bytes | Drafted]]
    ) -> None:
        """One transaction: the segments of a dead letter that could be heard; it is let go of.

        Where raw audio is sent too, it is the uplink's from now on, as its neighbours are.
        """
        stamp = self._clock.stamp()

        def operation(connection: sqlite3.Connection) -> None:
            self._same_file(source)
            stream = streams.stream_id(connection, raw_stream(source), sendable=0)
            if not streams.holds(connection, stream, seq):
                return  # somebody gave it up meanwhile
            _append(connection, source, stamp, found)
            connection.execute(
                "DELETE FROM dead WHERE stream = ? AND seq = ? AND NOT unsent", (stream, seq)
            )
            (sendable,) = connection.execute(
                "SELECT coalesce(sendable, produced) FROM streams WHERE id = ?", (stream,)
            ).fetchone()
            if seq > sendable:
                streams.drop(connection, stream, Range(seq, seq), PROCESSED)

        await self._database.write(operation)
        self._kept()

    async def bury(self, source: str, dead: Dead) -> None:
        """Note that this raw record is a dead letter, again."""

        def operation(connection: sqlite3.Connection) -> None:
            self._same_file(source)
            _bury(connection, source, dead)

        await self._database.write(operation)

    async def waiting(self, source: str, from_seq: int, count_max: int) -> list[Heard]:
        """Up to `count_max` raw records from `from_seq` on, in order, with their PCM.

        Raises EpochOver when the position that was asked for before is not this file's.
        """

        def operation(connection: sqlite3.Connection) -> list[Heard]:
            self._same_file(source)
            row = connection.execute(
                "SELECT id FROM streams WHERE epoch = '' AND name = ?", (raw_stream(source),)
            ).fetchone()
            if row is None:
                return []
            rows = connection.execute(
                f"SELECT {streams.COLUMNS} FROM records"
                " WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
                (*streams.keys(row[0], Range(from_seq, streams.SEQ_MAX)), count_max),
            )
            return [heard_of(connection, row) for row in rows.fetchall()]

        return await self._database.read(operation)

    async def keep(
        self,
        source: str,
        found: Sequence[tuple[Segment, bytes | Drafted]],
        position: Position,
        raw: Keep,
        dead: Dead | None = None,
    ) -> list[int]:
        """One transaction: the segments with their FLAC, and the position that makes them done.

        Raw records before the position are dropped as processed, or handed to the uplink, as
        `raw` says; `dead`, one of them, is held as a dead letter. The segments' seqs. Raises
        EpochOver as `waiting` does.
        """
        stamp = self._clock.stamp()

        def operation(connection: sqlite3.Connection) -> list[int]:
            self._same_file(source)
            seqs = _append(connection, source, stamp, found)
            _bury(connection, source, dead)
            _release(connection, source, position.next_seq, raw)
            connection.execute(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?, ?, ?)",
                (source, *astuple(position)),
            )
            return seqs

        seqs = await self._database.write(operation)
        if seqs or raw == "all":
            self._kept()
        return seqs

    def _same_file(self, source: str) -> None:
        if self._epochs.setdefault(source, self._database.epoch) != self._database.epoch:
            raise EpochOver(
                "the store's file was damaged, and a new one has begun",
                "nothing has to be done: what the old one still holds is being saved",
            )


def _append(
    connection: sqlite3.Connection,
    source: str,
    stamp: Stamp,
    found: Sequence[tuple[Segment, bytes | Drafted]],
) -> list[int]:
    """Hold segments with their FLAC; their seqs."""
    stream = streams.stream_id(connection, segments_stream(source))
    return [_hold(connection, stream, stamp, *segment) for segment in found]


def heard_of(connection: sqlite3.Connection, row: Sequence[Any]) -> Heard:
    """A raw record of its row (streams.COLUMNS)."""
    number, _, boot, mono_ns, wall_us, _, blob, size, body = row
    seq, stamp = streams.parts(number)[1], Stamp(boot, mono_ns, wall_us)
    try:
        if not streams.is_whole(tuple(row)):
            return seq, None, stamp, b""
        pcm = blobs.read(connection, blob, 0, size) if size else b""
        raw = msgspec.json.decode(body, type=Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, StoreDamaged):
        return seq, None, stamp, b""
    return (seq, raw, stamp, pcm) if len(pcm) == size else (seq, None, stamp, b"")


def _hold(
    connection: sqlite3.Connection,
    stream: int,
    stamp: Stamp,
    segment: Segment,
    flac: bytes | Drafted,
) -> int:
    body = msgspec.json.encode(segment)
    if isinstance(flac, bytes):
        return streams.append(connection, stream, RecordType.SEGMENT, stamp, body, flac)
    blob, size = drafts.adopt(connection, flac), flac.size_bytes
    return streams.hold(connection, stream, RecordType.SEGMENT, stamp, body, blob, size)


def _bury(connection: sqlite3.Connection, source: str, dead: Dead | None) -> None:
    if dead:
        stream = streams.stream_id(connection, raw_stream(source), sendable=0)
        if streams.holds(connection, stream, dead[0]):  # else it was given up meanwhile
            connection.execute(
                "INSERT INTO dead (stream, seq, cause) VALUES (?, ?, ?) ON CONFLICT"
                " DO UPDATE SET cause = excluded.cause, retry = 0 WHERE NOT unsent",
                (stream, *dead),
            )


def _release(connection: sqlite3.Connection, source: str, next_seq: int, raw: Keep) -> None:
    """Let go of the raw records before `next_seq`; what is the uplink's already stays so."""
    stream = streams.stream_id(connection, raw_stream(source), sendable=0)
    if raw == "all":
        streams.no_longer_later(connection, stream, next_seq - 1)
        connection.execute("UPDATE streams SET sendable = ? WHERE id = ?", (next_seq - 1, stream))
        return
    held = connection.execute(
        "SELECT seq FROM records WHERE id < :next"
        " AND id > (SELECT id << 40 | sendable FROM streams WHERE id = :stream)"
        " AND seq NOT IN (SELECT seq FROM dead WHERE stream = :stream) ORDER BY id",
        {"stream": stream, "next": streams.key(stream, next_seq)},
    )
    for span in spans(seq for (seq,) in held.fetchall()):
        streams.drop(connection, stream, span, PROCESSED)


def spans(seqs: Iterable[int]) -> list[Range]:
    """Ascending numbers as ranges."""
    found: list[Range] = []
    for seq in seqs:
        if found and found[-1].last == seq - 1:
            found[-1] = Range(found[-1].first, seq)
        else:
            found.append(Range(seq, seq))
    return found
