"""One transaction's work: what many messages bring to many streams, each record stored once.

The rows of all streams concerned are locked first, in the order of their ids, so that two ingests
never wait for each other in a circle. From then on this transaction alone says what of them is
there: it reads the ranges near what came, stores what is new, and writes back what changed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from msgspec import Struct

from fleet.store.arrivals import Brought, Refusal
from fleet.store.blobs import Blob, Blobs
from fleet.store.coverage import DEAD, Ranges, Seqs, Span, Told, runs
from fleet.store.database import Transaction
from fleet.store.lives import Events, Lives
from fleet.store.rows import COLUMNS, Record, fit

_LOCK = """
SELECT id, mark, highest, records, size_bytes, spans, told, unsettled, tail_seq, tail
FROM streams WHERE id = ANY($1) ORDER BY id FOR UPDATE
"""
# Of disjoint ranges, those that share a seq with another: the last that begins before it, and all
# that begin within it.
_NEAR = """
SELECT DISTINCT t.stream, t.first, t.last, t.{word} FROM ROWS($1) q JOIN {table} t
ON t.stream = CAST(q.value->>0 AS bigint) AND t.last >= CAST(q.value->>1 AS bigint)
AND t.first <= CAST(q.value->>2 AS bigint) AND t.first >= coalesce((
    SELECT max(x.first) FROM {table} x
    WHERE x.stream = CAST(q.value->>0 AS bigint) AND x.first <= CAST(q.value->>1 AS bigint)), 0)
"""
_SPANS = _NEAR.format(table="spans", word="since_us")
_TOLD = _NEAR.format(table="told", word="reason")
_SAVE = """
UPDATE streams SET mark = $2, highest = $3, records = $4, size_bytes = $5, spans = spans + $6,
told = told + $7, unsettled = $8, touched_us = $9, tail_seq = $10, tail = $11
WHERE id = $1
"""


class Gone(Exception):
    """A stream's row is not there any more: its id has to be asked for again."""


class Stream(Struct):
    """A stream's row, locked. `tail` is the digest of the record `tail_seq`, which is stored."""

    id: int
    mark: int
    highest: int
    records: int
    size_bytes: int
    spans: int
    told: int
    unsettled: int
    tail_seq: int | None
    tail: int | None


class Intake:
    """Use it once, within a transaction: `take` all that came, then `save`."""

    def __init__(self, transaction: Transaction, now_us: int) -> None:
        self.new = 0
        self.known = 0
        self.refusals: list[Refusal] = []
        self._transaction = transaction
        self._now_us = now_us
        self._streams: dict[int, Stream] = {}
        self._ranges: dict[int, Ranges] = {}
        self._rows: list[Record] = []
        self._lives = Lives(transaction, self._rows)
        self._dropped: list[tuple[int, int, int]] = []
        self.blobs = Blobs(transaction)

    async def take(self, brought: Sequence[tuple[int, Brought]]) -> None:
        """Lock the streams, by id, and take in what came for each. Raises Gone."""
        await self._lock({stream for stream, _ in brought})
        await self._read_ranges(brought)
        await self.blobs.read(_blob_keys(brought))
        await self._read_bodies(brought)
        for stream, one in brought:
            if one.piece or one.put:
                await self._blob(self._streams[stream], one)
            if one.events and not await self._events(self._streams[stream], one):
                continue
            for drop in one.drops:
                coverage = self._ranges[stream].now
                coverage.tell(drop.first, drop.last, drop.reason, self._now_us)
                self._reached(stream, drop.last)
                if drop.reason != DEAD:  # a dead letter may come after all
                    self._dropped.append((stream, drop.first, drop.last))

    async def save(self) -> None:
        """Write what is new and what changed."""
        if self._rows:
            await self._transaction.copy("records", COLUMNS, self._rows)
        await self.blobs.save()
        await self._abandon()
        await self._save_ranges()

    async def _lock(self, ids: set[int]) -> None:
        rows = await self._transaction.fetch(_LOCK, sorted(ids))
        self._streams = {row[0]: Stream(*row) for row in rows}
        if len(self._streams) < len(ids):
            raise Gone

    async def _read_ranges(self, brought: Sequence[tuple[int, Brought]]) -> None:
        """Those that touch what came."""
        touched: dict[int, set[tuple[int, int]]] = {}
        for stream, one in brought:
            touched.setdefault(stream, set()).update(_touched(one))
        spans: dict[int, list[Span]] = {}
        told: dict[int, list[Told]] = {}
        if asked := [
            [stream, first - 1, last + 1]
            for stream, ranges in touched.items()
            if self._streams[stream].spans
            for first, last in ranges
        ]:
            for stream, *span in await self._transaction.fetch(_SPANS, asked):
                spans.setdefault(stream, []).append(Span(*span))
        if asked := [
            [stream, first - 1, last + 1]
            for stream, ranges in touched.items()
            if self._streams[stream].told
            for first, last in ranges
        ]:
            for stream, *words in await self._transaction.fetch(_TOLD, asked):
                told.setdefault(stream, []).append(Told(*words))
        for stream in touched:
            mark = self._streams[stream].mark
            self._ranges[stream] = Ranges(mark, spans.get(stream, []), told.get(stream, []))

    async def _read_bodies(self, brought: Sequence[tuple[int, Brought]]) -> None:
        """Of the records that come again, and of those right before what comes."""
        asked = []
        for stream, one in brought:
            if one.events:
                known = runs(event.sequence for event in self._parted(stream, one)[1])
                asked += [[stream, first, last] for first, last in known]
            if one.events and one.before is not None:
                row, before = self._streams[stream], one.events[0].sequence - 1
                if before <= row.highest and before != row.tail_seq:
                    asked.append([stream, before, before])
        await self._lives.read(asked)

    def _parted(self, stream: int, one: Brought) -> tuple[Events, Events]:
        """A batch's records that are not there yet, and those that are."""
        first, last = one.events[0].sequence, one.events[-1].sequence
        stored = self._ranges[stream].now.stored(first, last)
        begun = self.blobs.with_record(stream, first, last)
        if not stored and not begun:
            return one.events, ()
        new = [e for e in one.events if e.sequence not in begun and not _within(stored, e.sequence)]
        there = set(map(id, new))
        return new, [event for event in one.events if id(event) not in there]

    async def _events(self, stream: Stream, one: Brought) -> bool:
        """Store the records that are not there yet. False: the batch is of another life."""
        coverage = self._ranges[stream.id].now
        events, known = self._parted(stream.id, one)
        self.known += len(known)
        tail = stream.tail_seq, stream.tail
        if conflict := self._lives.conflict(stream.id, one, known, tail):
            self.refusals.append(conflict)
            return False
        last = one.events[-1].sequence
        rows, events, refused = fit(stream.id, one, events, self._now_us)
        self.refusals += refused
        self._rows += rows
        self._lives.note(rows[-1:])
        self.new += len(rows)
        stream.records += len(rows)
        stream.size_bytes += sum(len(row[-1]) for row in rows)
        self._reached(stream.id, last)
        for a, b in runs(event.sequence for event in events if not event.blobsize):
            coverage.store(a, b, self._now_us)
        for event in events:
            if event.blobsize:
                blob = await self.blobs.expect(stream.id, event)
                await self._settle(stream, blob, one)
        return True

    async def _blob(self, stream: Stream, one: Brought) -> None:
        """Keep what is new of a piece of a blob; or that the object store has all of it."""
        (seq,) = _blob_seqs(one)
        if self._ranges[stream.id].now.stored(seq, seq):
            return  # it is there, whole
        cause = ""
        if one.piece:
            cause = await self.blobs.add(stream.id, stream.unsettled, *one.piece)
        elif one.put:
            cause = await self.blobs.put(stream.id, stream.unsettled, one.put)
        if cause:
            self.refusals.append(
                Refusal(one.arrival.topic, cause, one.arrival.payload, one.name[0])
            )
        elif blob := self.blobs.of(stream.id, seq):
            self._reached(stream.id, seq)
            await self._settle(stream, blob, one)

    async def _settle(self, stream: Stream, blob: Blob, one: Brought) -> None:
        """A record whose blob is whole is stored whole."""
        if not blob.record or blob.ready < blob.size_bytes:
            return
        if cause := await self.blobs.settle(blob):
            word = f"{one.name[1]} {one.name[2]} #{blob.seq}: {cause}"
            self.refusals.append(Refusal(one.arrival.topic, word, b"", one.name[0]))
        else:
            stream.size_bytes += blob.size_bytes
            self._ranges[stream.id].now.store(blob.seq, blob.seq, self._now_us)

    def _reached(self, stream: int, seq: int) -> None:
        self._streams[stream].highest = max(self._streams[stream].highest, seq)

    async def _save_tails(self) -> None:
        """Of each stream whose mark moved, the highest record up to it that is known here."""
        marks = {
            stream: mark
            for stream, row in self._streams.items()
            if (mark := self._ranges[stream].now.mark) and row.tail_seq != mark
        }
        for stream, found in (await self._lives.highest(marks)).items():
            self._streams[stream].tail_seq, self._streams[stream].tail = found

    async def _abandon(self) -> None:
        """Of what was dropped, the blobs that are begun will not go on."""
        unsettled = {
            stream: row.unsettled + self.blobs.opened(stream)
            for stream, row in self._streams.items()
        }
        dropped = [span for span in self._dropped if unsettled[span[0]]]
        for stream, count in (await self.blobs.abandon(dropped)).items():
            self._streams[stream].unsettled -= count

    async def _save_ranges(self) -> None:
        spans_gone, spans_new, told_gone, told_new, saved = [], [], [], [], []
        await self._save_tails()
        for stream, row in self._streams.items():
            ranges = self._ranges[stream]
            gone, new = ranges.spans()
            spans_gone += [(stream, span.first) for span in gone]
            spans_new += [(stream, span.first, span.last, span.since_us) for span in new]
            fewer, more = ranges.told()
            told_gone += [(stream, told.first) for told in fewer]
            told_new += [(stream, told.first, told.last, told.reason) for told in more]
            told = _count(more) - _count(fewer)
            unsettled = row.unsettled + self.blobs.opened(stream)
            saved.append(
                (
                    *(stream, ranges.now.mark, row.highest, row.records, row.size_bytes),
                    *(len(new) - len(gone), told, unsettled, self._now_us),
                    *(row.tail_seq, row.tail),
                )
            )
        many = self._transaction.many
        if spans_gone:
            await many("DELETE FROM spans WHERE stream = $1 AND first = $2", spans_gone)
        if spans_new:
            await many("INSERT INTO spans VALUES ($1, $2, $3, $4)", spans_new)
        if told_gone:
            await many("DELETE FROM told WHERE stream = $1 AND first = $2", told_gone)
        if told_new:
            await many("INSERT INTO told VALUES ($1, $2, $3, $4)", told_new)
        await many(_SAVE, saved)


def _touched(one: Brought) -> Iterable[tuple[int, int]]:
    if one.events:
        yield one.events[0].sequence, one.events[-1].sequence
    for drop in one.drops:
        yield drop.first, drop.last
    for seq in _blob_seqs(one):
        yield seq, seq


def _blob_seqs(one: Brought) -> Iterable[int]:
    """Of what is no record: the blob that it brings, or a piece of it."""
    if one.piece:
        yield one.piece[0].seq
    if one.put:
        yield one.put.ask.seq


def _blob_keys(brought: Sequence[tuple[int, Brought]]) -> set[tuple[int, int]]:
    keys = {(stream, seq) for stream, one in brought for seq in _blob_seqs(one)}
    return keys | {
        (stream, event.sequence)
        for stream, one in brought
        for event in one.events
        if event.blobsize
    }


def _within(ranges: Seqs, seq: int) -> bool:
    """Whether a seq lies in one of these ranges, which are in order."""
    at = bisect_left(ranges, seq, key=lambda one: one[1])
    return at < len(ranges) and ranges[at][0] <= seq


def _count(told: Iterable[Told]) -> int:
    return sum(one.last - one.first + 1 for one in told)
