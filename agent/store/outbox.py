"""The records that wait for the cloud: lease, acknowledge, purge.

Limits  : those of choice.py for a lease; the caller bounds how many are out.
Format  : choice.py says what is leased. A dead letter of the link (dead.unsent, sql/0010.sql) is
          held, and told as dropped; the mark passes it. Only these are held at or below `settled`.
Recovery: leases live in memory and end with the process or the connection (`rewind`): what is not
          settled is leased again, so everything is sent at least once. A row leaves only in the
          transaction that counts it as delivered.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable

from msgspec import Struct

from agent.clock import Clock
from agent.config import StreamRule
from agent.errors import ProtocolError, StoreDamaged
from agent.records import Key, Range, Record, Stamp
from agent.store import blobs, streams
from agent.store.age import Ages
from agent.store.bindings import Bindings
from agent.store.choice import (
    DROP_BYTES,
    EVENT_BYTES,
    UNSETTLED,
    Batch,
    Choice,
    Damaged,
    Live,
    Sizes,
)
from agent.store.database import Database
from agent.store.leases import Leases, Name, Spans
from agent.store.settling import deliver, within

__all__ = [
    "DROP_BYTES",
    "EVENT_BYTES",
    "UNSETTLED",
    "Batch",
    "Name",
    "Outbox",
    "Settled",
    "Waiting",
]


class Settled(Struct, frozen=True):
    """What an ack changed: how many records left, the settled mark, and whether that moved."""

    delivered: int
    mark: int
    moved: bool


class Waiting(Struct, frozen=True):
    """What of a stream may be sent and is not acknowledged, dead letters aside.

    `oldest_age_s` is of the oldest of which the far side does not know, in seconds of running time.
    """

    name: Name
    priority: int
    records: int
    bytes: int
    oldest_age_s: float


class Buried(Struct, frozen=True):
    """The dead letters of the link that a stream holds, but for those that are sent again: how many
    they are, and the last of them."""

    name: Name
    records: int
    last: int
    cause: str


class Outbox:
    """What the uplink sees of the store; used from the event loop's thread but for `out`."""

    def __init__(
        self,
        database: Database,
        bindings: Bindings,
        clock: Clock,
        rule: Callable[[str], StreamRule],
    ) -> None:
        """`rule` is of a stream's name."""
        self.more = asyncio.Event()  # set when there may be something to lease
        self.more_buried = asyncio.Event()  # set when a record became a dead letter
        self._database = database
        self._clock = clock
        self._priorities: dict[str, int] = {}
        self._rule = rule
        self._leases = Leases()
        self._choice = Choice(self._leases, self._priority, bindings.dated, clock.monotonic)

    def _priority(self, stream: str) -> int:
        if stream not in self._priorities:
            self._priorities[stream] = self._rule(stream).priority
        return self._priorities[stream]

    async def lease(
        self, records_max: int, bytes_max: int, live_s: float = 0.0, *, live_only: bool = False
    ) -> Batch | None:
        """The next records that are not out; else None.

        Records younger than `live_s` come before all that are older (`live_only`: alone), and among
        them those of streams of high priority, then of the stream that was leased longest ago. Each
        eighth lease goes to that one whatever its priority and age.

        None, too, when leases were ended meanwhile: then `more` is set. A record that is damaged on
        the disk is given up (`corruption`).
        """
        sizes, live = Sizes(records_max, bytes_max), self._live(live_s)

        def choose(connection: sqlite3.Connection) -> Batch | None:
            own = self._database.epoch
            return self._choice.next(connection, own, sizes, live, live_only=live_only)

        return await self._leased(choose)

    async def lease_span(
        self, name: Name, span: Range, records_max: int, bytes_max: int
    ) -> Batch | None:
        """As `lease`, of what is not out in this span of a stream, also where it is held back."""
        sizes = Sizes(records_max, bytes_max)

        def choose(connection: sqlite3.Connection) -> Batch | None:
            return self._choice.within(connection, self._database.epoch, name, span, sizes)

        return await self._leased(choose)

    def _live(self, live_s: float) -> Live | None:
        if live_s <= 0:
            return None
        now = self._clock.stamp()
        boot, from_ns = now.boot, now.mono_ns - int(live_s * 1e9)
        return lambda made_in, mono_ns: made_in == boot and mono_ns >= from_ns

    async def _leased(self, choose: Callable[[sqlite3.Connection], Batch | None]) -> Batch | None:
        moment = self._leases.moment

        def operation(connection: sqlite3.Connection) -> Batch | None:
            batch = choose(connection)
            # Noted here, in the store's thread: what is leased is not evicted. Not noted where
            # leases were ended: who asked may be gone, and would never send it.
            taken = batch and self._leases.take(batch.name, batch.span, moment, batch.again)
            return batch if taken else None

        while True:
            try:
                return await self._database.read(operation)
            except Damaged as damaged:
                await self._give_up(damaged.key, damaged.seq)

    async def _give_up(self, key: Key, seq: int) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            if self._has(connection, key, seq):
                streams.give_up(connection, key.stream, seq)

        await self._database.write(operation)

    def out(self, epoch: str, stream: str) -> list[Range]:
        """What of the stream is leased, ascending. For any thread."""
        return self._leases.out((epoch or self._database.epoch, stream))

    def again(self, name: Name) -> set[int]:
        """The dead letters of the stream that are leased."""
        return self._leases.again(name)

    def release(self, name: Name, span: Range) -> None:
        """End the lease of this span: what of it is not settled can be leased again."""
        self._leases.release(name, span)
        self.more.set()

    def rewind(self, name: Name | None = None) -> None:
        """End the leases of one stream, or all: what is not settled can be leased again."""
        self._leases.rewind(name)
        self.more.set()

    def hold_back(self, name: Name, span: Range) -> None:
        """Lease this span no more, but by `lease_span`."""
        self._leases.hold_back(name, span)
        self.more.set()

    def let_go(self, name: Name, span: Range) -> None:
        """This span is held back no more."""
        self._leases.let_go(name, span)
        self.more.set()

    def waits(self, name: Name) -> bool:
        """Whether something of the stream is out and not settled."""
        return bool(self._leases.out(name))

    async def bury(self, name: Name, seq: int, cause: str) -> bool:
        """Hold a record as a dead letter, told to the far side as `dead`; False: it is not held.

        Its lease ends, and it is held back no more.
        """
        return bool(await self.bury_span(name, Range(seq, seq), cause))

    async def bury_span(self, name: Name, span: Range, cause: str) -> int:
        """As `bury`, all that is held of a span; how many records that is."""

        def operation(connection: sqlite3.Connection) -> int:
            row = connection.execute(
                "SELECT id FROM streams WHERE epoch = ? AND name = ?", self._row_name(name)
            ).fetchone()
            if row is None:
                return 0
            return connection.execute(
                "INSERT INTO dead (stream, seq, cause, unsent)"
                " SELECT stream, seq, ?, 1 FROM records WHERE id BETWEEN ? AND ?"
                " ON CONFLICT DO UPDATE SET cause = excluded.cause, retry = 0, unsent = 1",
                (cause, *streams.keys(row[0], span)),
            ).rowcount

        buried = await self._database.write(operation)
        self._leases.let_go(name, span)
        self.release(name, span)
        if buried:
            self.more_buried.set()
        return buried

    async def buried(self) -> list[Buried]:
        """The dead letters of the link, by stream, from the counters."""

        def operation(connection: sqlite3.Connection) -> list[Buried]:
            own = self._database.epoch
            rows = connection.execute(_BURIED).fetchall()
            return [Buried((epoch or own, name), *rest) for epoch, name, *rest in rows]

        return await self._database.read(operation)

    async def waiting(self) -> list[Waiting]:
        """What waits, by stream, from the counters."""
        now = self._clock.stamp()

        def operation(connection: sqlite3.Connection) -> list[Waiting]:
            ages = Ages()
            ages.look(connection, now)
            found = []
            for key, epoch, name, records, size, settled in connection.execute(_WAITING).fetchall():
                of = {"stream": key, "settled": settled}
                oldest = connection.execute(_OLDEST, of).fetchone() if records > 0 else None
                if oldest:
                    age_s = ages.age_s(Stamp(*oldest), now)
                    whole = (epoch or self._database.epoch, name)
                    found.append(Waiting(whole, self._priority(name), records, size, age_s))
            return found

        return await self._database.read(operation)

    async def blob(self, record: Record, start: int, size: int) -> bytes:
        """`size` bytes of a record's blob from byte `start`; empty once the record is purged.

        A record whose blob is damaged on the disk is given up (`corruption`).
        """

        def operation(connection: sqlite3.Connection) -> bytes:
            if not self._has(connection, record.key, record.seq):
                return b""  # and its blob's number may be another's
            return blobs.read(connection, record.key.blob, start, size)

        try:
            return await self._database.read(operation)
        except StoreDamaged:
            await self._give_up(record.key, record.seq)
            return b""

    def _has(self, connection: sqlite3.Connection, key: Key, seq: int) -> bool:
        """Whether what was leased is still held, and by the file it was leased from."""
        return key.epoch == self._database.epoch and streams.holds(connection, key.stream, seq)

    def _row_name(self, name: Name) -> Name:
        """A stream's name as its row has it. Raises ProtocolError: '' names no epoch out here."""
        if not name[0]:
            raise ProtocolError("an epoch without a name")
        return ("" if name[0] == self._database.epoch else name[0]), name[1]

    async def acknowledge(
        self,
        name: Name,
        spans: Iterable[Range],
        unstored: Iterable[Range] = (),
        sending: Callable[[], Iterable[int]] = tuple,
        carried: Iterable[Range] = (),
        tail: tuple[int, int] | None = None,
        *,
        sure: bool = False,
    ) -> Settled:
        """The far side knows these seqs: purge what is held of them and count it delivered.

        A dead letter of the link stays, but one that was retried and is out, or lies in what was
        `carried` there by another way than the link; `unstored` names those
        of them that the far side knows to be dead and has not stored: they are kept, whatever they
        are here. Those of them that are `sending` when all this is written are on their way: their
        lease goes on, and so does that of the dead letters of which these spans do not speak.
        `tail` is one of these seqs and the digest of what is stored as that; with `sure` that one
        has to be held here, for an earlier word was of another life (AnotherLife).

        Nothing changes for an epoch of which nothing is held (a former life of this device). Raises
        ProtocolError, and changes nothing, when a range goes beyond what was ever produced, or can
        be, or another record is held as the `tail`: then somebody is wrong about us.
        """
        wanted = sorted(spans, key=lambda span: span.first)
        known, dead = self._leases.known(name, wanted), list(unstored)
        elsewhere = list(carried)

        def operation(connection: sqlite3.Connection) -> tuple[int, int, int, int]:
            sent, row_name = Spans([*self._leases.out(name), *elsewhere]), self._row_name(name)
            return deliver(connection, row_name, wanted, known, sent, dead, tail, sure=sure)

        delivered, before, settled, sendable = await self._database.write(operation)
        stay = [Range(seq, seq) for seq in sending()]
        self._leases.settle(name, within(known, sendable), settled, stay, said=wanted)
        return Settled(delivered, settled, moved=settled > before)


# Of each stream, what may be sent. With `sendable` at 0 it is raw audio that is never sent, or what
# a damaged file gives back, before the first of it is read.
_WAITING = (
    "SELECT id, epoch, name, held - quarantined - later - buried,"
    " bytes - later_bytes - buried_bytes, settled FROM streams"
    " WHERE held > 0 AND (sendable IS NULL OR sendable > 0)"
)
# Of a stream: the first above the mark, or below it one that is sent again.
_OLDEST = (
    "SELECT boot, mono_ns, wall_us FROM records WHERE id = min("
    " coalesce((SELECT stream << 40 | seq FROM dead INDEXED BY dead_again"
    "  WHERE stream = :stream AND unsent AND retry ORDER BY seq LIMIT 1), :stream + 1 << 40),"
    " coalesce((SELECT id FROM records WHERE id > :stream << 40 | :settled"
    "  AND id < :stream + 1 << 40 ORDER BY id LIMIT 1), :stream + 1 << 40))"
)
_BURIED = (
    "SELECT epoch, name, buried, dead.seq, dead.cause FROM streams CROSS JOIN dead"
    " ON dead.stream = streams.id AND dead.seq = (SELECT max(seq) FROM dead"
    "  WHERE dead.stream = streams.id AND unsent AND NOT retry) WHERE buried > 0"
)
