"""What is leased next: which stream, which of its seqs, and the rows themselves.

Limits  : a batch is bounded by records and bytes, its dropped ranges (DROPS_MAX) included.
          AGAIN_MAX retried dead letters are looked at. A stream that is out in SPANS_MAX separate
          spans gets no more of them by live records. Ranges at a stream's end wait RANGES_S for a
          record to go with.
Format  : the held rows of the streams, up to each stream's `sendable` mark; the dropped ranges
          above its `settled` mark; dead letters of the link (dead.unsent), as ranges too.
Recovery: reads alone.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from agent.records import Drop, Key, Range, Record, Stamp
from agent.store import streams
from agent.store.leases import Leases, Name, Spans

EVENT_BYTES = 512  # what a batch adds to a record's body, generously
DROP_BYTES = 64  # a dropped range in a batch's header, at most
DROPS_MAX = 10_000  # a header has room for these (protocol/envelope.py)
SPANS_MAX = 64
AGAIN_MAX = 1000
RANGES_S = 2.0
FAIR_EACH = 8  # each so many leases, whoever has waited longest comes first
DEAD = "dead"

Dated = Callable[
    [str, int, int], tuple[Stamp, bool]
]  # of boot, mono_ns, wall_us: with UTC, if known
Live = Callable[[str, int], bool]  # of a record's boot and mono_ns


class Batch(Struct, frozen=True):
    """Leased records of one stream in seq order, and the dropped ranges up to the last of them.

    The epoch is this file's own, or that of a former file whose records were saved into this one.

    It speaks of every seq in `span`: one of its records, in one of its drops, or known to the far
    side before. No seq of it is in another lease. A batch of dropped ranges alone has no records.
    `live`: its records are fresh, and were leased before older ones. `before` is the digest of the
    record right before the first, if that is held. `again`: those of its records that are dead
    letters.
    """

    epoch: str
    stream: str
    records: list[Record]
    drops: list[Drop]
    span: Range
    live: bool = False
    before: int | None = None
    again: Sequence[int] = ()

    @property
    def name(self) -> Name:
        """The stream's whole name."""
        return self.epoch, self.stream


class Sizes(Struct, frozen=True):
    """The bounds of a batch."""

    records_max: int
    bytes_max: int


class Damaged(Exception):
    """A record's body is not what was written."""

    def __init__(self, key: Key, seq: int) -> None:
        super().__init__()
        self.key, self.seq = key, seq


class Place(Struct, frozen=True):
    """A stream that may have something to send, in `gaps` that are not leased, up to `through`.

    `file` is the epoch of the file that holds it; a stream of another epoch does not grow.
    """

    key: int
    name: Name
    file: str
    grows: bool
    through: int
    gaps: list[Range]
    priority: int
    turn: int
    live: bool = False


class Choice:
    """Used in the store's thread."""

    def __init__(
        self,
        leases: Leases,
        priority: Callable[[str], int],
        dated: Dated,
        now: Callable[[], float],
    ) -> None:
        """`now` gives monotonic seconds."""
        self._leases = leases
        self._priority = priority
        self._dated = dated
        self._now = now
        self._ranges_since: dict[int, float] = {}  # by stream: ranges alone are at its end

    def next(
        self,
        connection: sqlite3.Connection,
        own: str,
        sizes: Sizes,
        live: Live | None,
        *,
        live_only: bool,
    ) -> Batch | None:
        """The next batch of all; `own` is the file's epoch."""
        places = self._places(connection, own)
        fresh = [p for one in places if live and (p := self._live(connection, one, live))]
        if live_only:
            places = []
        if (self._leases.count + 1) % FAIR_EACH == 0:
            order = sorted(places or fresh, key=lambda one: one.turn)
        else:
            order = [*_ranked(fresh), *_ranked(places)]
        batches = (self._batch(connection, place, sizes) for place in order)
        return next(filter(None, batches), None)

    def within(
        self, connection: sqlite3.Connection, own: str, name: Name, span: Range, sizes: Sizes
    ) -> Batch | None:
        """The first batch of what is not leased in `span`, also where that is held back."""
        for place in self._places(connection, own, name, held_back=True):
            gaps = [
                Range(max(gap.first, span.first), min(gap.last, span.last)) for gap in place.gaps
            ]
            inside = [gap for gap in gaps if gap.first <= gap.last]
            bounded = Place(
                *(place.key, name, own, False, place.through, inside),
                *(place.priority, place.turn),
            )
            return self._batch(connection, bounded, sizes)
        return None

    def _places(
        self,
        connection: sqlite3.Connection,
        own: str,
        only: Name | None = None,
        *,
        held_back: bool = False,
    ) -> list[Place]:
        again: dict[int, list[Range]] = {}
        for key, seq in connection.execute(
            f"SELECT stream, seq FROM dead WHERE unsent AND retry LIMIT {AGAIN_MAX}"
        ):
            again.setdefault(key, []).append(Range(seq, seq))
        rows = connection.execute(
            "SELECT id, epoch, name, settled, coalesce(sendable, produced) FROM streams"
            " WHERE held > 0 OR settled < produced"
        )
        found = []
        for key, epoch, called, settled, through in rows.fetchall():
            name = (epoch or own, called)
            if only not in (None, name):
                continue
            unsettled, letters = Range(settled + 1, through), again.get(key, ())
            gaps = self._leases.free(name, unsettled, letters, held_back=held_back)
            if gaps:
                rank = (self._priority(called), self._leases.turn(name))
                found.append(Place(key, name, own, not epoch, through, list(gaps), *rank))
        return found

    def _live(self, connection: sqlite3.Connection, of: Place, live: Live) -> Place | None:
        """The live part of a stream, if it has one and may be leased there."""
        begin = _first_live(connection, of.key, Range(of.gaps[0].first, of.gaps[-1].last), live)
        if begin is None:
            return None
        gaps = Spans(of.gaps).from_on(begin)
        apart = all(gap.first != gaps[0].first for gap in of.gaps)
        if apart and len(self._leases.out(of.name)) >= SPANS_MAX:
            return None
        return Place(
            *(of.key, of.name, of.file, of.grows, of.through, gaps, of.priority, of.turn),
            live=True,
        )

    def _batch(self, connection: sqlite3.Connection, of: Place, sizes: Sizes) -> Batch | None:
        batches = (self._in_gap(connection, of, gap, sizes) for gap in of.gaps)
        return next(filter(None, batches), None)

    def _in_gap(
        self, connection: sqlite3.Connection, of: Place, gap: Range, sizes: Sizes
    ) -> Batch | None:
        """Its next batch. Dropped ranges fill at most half of it; more end it before them."""
        drops_max = max(1, min(DROPS_MAX, sizes.bytes_max // 2 // DROP_BYTES))
        dead = _dead(connection, of.key, gap, drops_max + 1)
        drops = sorted(
            [*_drops(connection, of.key, gap, drops_max + 1), *dead], key=lambda drop: drop.first
        )
        last = gap.last
        if len(drops) > drops_max:
            last = drops[drops_max].first - 1
            drops = drops[:drops_max]
        room = Sizes(sizes.records_max, sizes.bytes_max - DROP_BYTES * len(drops))
        span = Range(gap.first, last)
        records = self._records(connection, of, span, room, but_dead=bool(dead))
        if records:
            last = records[-1].seq
        elif not drops or (of.grows and last == of.through and not self._waited(of.key)):
            return None  # ranges alone wait for the next record, unless there are too many of them
        told = [drop for drop in drops if drop.first <= last]
        if not records:
            return Batch(*of.name, records, told, Range(gap.first, last), of.live)
        span, before = Range(gap.first, last), records[0].seq - 1
        return Batch(
            *(*of.name, records, told, span, of.live),
            before=streams.digest_of(connection, of.key, before),
            again=_again(connection, of.key, span),
        )

    def _waited(self, key: int) -> bool:
        """Whether ranges at the end of a stream have waited long enough."""
        now = self._now()
        waited = now - self._ranges_since.setdefault(key, now) >= RANGES_S
        if waited:
            del self._ranges_since[key]
        return waited

    def _records(
        self,
        connection: sqlite3.Connection,
        of: Place,
        span: Range,
        sizes: Sizes,
        *,
        but_dead: bool,
    ) -> list[Record]:
        sql = f"SELECT {streams.RAW_COLUMNS} FROM records WHERE id BETWEEN ? AND ?"
        sql += _BUT_DEAD if but_dead else ""
        keys = streams.keys(of.key, span)
        rows = connection.execute(f"{sql} ORDER BY id LIMIT ?", (*keys, sizes.records_max))
        room, name, dated = sizes.bytes_max, of.name[1], self._dated
        no_blob, text = Key(of.file, of.key, 0), streams.known_text
        records: list[Record] = []
        for number, raw_kind, raw_boot, mono_ns, wall_us, crc, blob, blob_bytes, body in rows:
            kind, boot, seq = text(raw_kind), text(raw_boot), number & streams.SEQ_MAX
            key = Key(of.file, of.key, blob) if blob else no_blob
            row = number, kind, boot, mono_ns, wall_us, crc, blob, blob_bytes, body
            if not streams.is_whole(row):
                raise Damaged(key, seq)
            room -= len(body) + EVENT_BYTES
            if room < 0 and records:
                break
            stamp, bound = dated(boot, mono_ns, wall_us)
            records.append(Record(name, seq, kind, stamp, body, blob_bytes, key, bound))
        return records


# Of a stream's keys, given by the first of a span: not those of the link's dead letters.
_BUT_DEAD = (
    " AND seq NOT IN (SELECT seq FROM dead WHERE dead.stream = ?1 >> 40 AND unsent AND NOT retry)"
)

# Ranges of a stream that reach beyond a mark. They are disjoint and in order, so that the search
# can begin at the last one that begins at or before it.
UNSETTLED = (
    "stream = :stream AND last > :mark AND first >= coalesce("
    "(SELECT max(first) FROM drops WHERE stream = :stream AND first <= :mark + 1), 0)"
)


def _ranked(places: Iterable[Place]) -> list[Place]:
    return sorted(places, key=lambda one: (-one.priority, one.turn))


def _first_live(connection: sqlite3.Connection, key: int, span: Range, live: Live) -> int | None:
    """The seq from which on what is held of a span is live; None: nothing is.

    Stamps rise with the seqs, but for a moment where producers overtake each other.
    """
    newest = _stamped(connection, key, span, "DESC")
    if newest is None or not live(*newest[1:]):
        return None
    low, high, probe = span.first, newest[0], span.first
    while low < high:  # what is held from `high` on is live
        found = _stamped(connection, key, Range(probe, high), "ASC")
        if found is None or live(*found[1:]):
            high = probe
        else:
            low = found[0] + 1
        probe = (low + high) // 2
    return high


def _stamped(
    connection: sqlite3.Connection, key: int, span: Range, order: str
) -> tuple[int, str, int] | None:
    """The first or the last held record of a span: its seq, boot, and mono_ns."""
    row: tuple[int, str, int] | None = connection.execute(
        "SELECT seq, boot, mono_ns FROM records WHERE id BETWEEN ? AND ?"
        f" ORDER BY id {order} LIMIT 1",
        streams.keys(key, span),
    ).fetchone()
    return row


def _drops(connection: sqlite3.Connection, key: int, gap: Range, limit: int) -> Iterator[Drop]:
    rows = connection.execute(
        f"SELECT first, last, reason FROM drops WHERE {UNSETTLED} AND first <= :through"
        " ORDER BY first LIMIT :limit",
        {"stream": key, "mark": gap.first - 1, "through": gap.last, "limit": limit},
    )
    for first, last, reason in rows.fetchall():
        yield Drop(max(first, gap.first), min(last, gap.last), reason)


def _dead(connection: sqlite3.Connection, key: int, gap: Range, limit: int) -> list[Drop]:
    """Dead letters of the link as ranges."""
    rows = connection.execute(
        "SELECT seq FROM dead WHERE stream = ? AND seq BETWEEN ? AND ? AND unsent AND NOT retry"
        " ORDER BY seq LIMIT ?",
        (key, gap.first, gap.last, limit),
    )
    spans = Spans(Range(seq, seq) for (seq,) in rows.fetchall())
    return [Drop(span.first, span.last, DEAD) for span in spans]


def _again(connection: sqlite3.Connection, key: int, span: Range) -> list[int]:
    """Dead letters of the link that are sent again."""
    rows = connection.execute(
        "SELECT seq FROM dead INDEXED BY dead_again WHERE stream = ? AND seq BETWEEN ? AND ?"
        " AND unsent AND retry",
        (key, span.first, span.last),
    )
    return [seq for (seq,) in rows.fetchall()]
