"""Acks: computed from the database alone, so that it does not matter who computes them.

Limits  : ACK_BYTES_MAX, so that it fits into the devices' `link.payload_bytes_max`. Where a stream
          has more ranges than there is room for, the lowest are told; where a device has more
          streams, those that were touched last.
Format  : a dead letter that is not told as such would count as stored. Of more than DEAD_MAX ranges
          of them an ack lists the newest half, above which all that is new lies, and a page of the
          others that is drawn anew for each ack; it speaks of what lies among these alone.
"""

import random
from collections.abc import Sequence

from agent.protocol import ack
from agent.protocol.ack import PARTS_MAX, RANGES_MAX, STREAMS_MAX, Ack, StreamAck
from agent.records import SEQ_MAX, Range
from fleet.store.coverage import Seqs
from fleet.store.database import Row, Transaction

ACK_BYTES_MAX = 120_000
RANGE_BYTES_MIN = len("[1,2],")
DEAD_MAX = RANGES_MAX
_STREAMS = """
SELECT s.id, s.epoch, s.name, s.mark, s.spans, s.unsettled, s.refused, s.tail_seq, s.tail, d.name
FROM streams s JOIN devices d ON d.id = s.device WHERE d.name = ANY($1) ORDER BY s.touched_us DESC
"""
_LOWEST = """
SELECT stream, a, b FROM (
    SELECT stream, {a} AS a, {b} AS b, row_number() OVER (PARTITION BY stream ORDER BY {a}) AS n
    FROM {table} WHERE stream = ANY($1) {where}
) AS numbered WHERE n <= $2 ORDER BY stream, a
"""
_RANGES = _LOWEST.format(a="first", b="last", table="spans", where="")
_REFUSED = _LOWEST.format(a="first", b="last", table="refused", where="AND NOT conflict")
# Of blobs that are begun, first those that are missing; then those whose seq is covered, for a dead
# letter may come after all.
_PARTS = """
SELECT stream, seq, ready FROM (
    SELECT b.stream, b.seq, b.ready, row_number() OVER (PARTITION BY b.stream ORDER BY
        b.seq <= s.mark OR b.seq <= coalesce((SELECT p.last FROM spans p
            WHERE p.stream = b.stream AND p.first <= b.seq ORDER BY p.first DESC LIMIT 1), 0),
        b.seq) AS n
    FROM blobs b JOIN streams s ON s.id = b.stream
    WHERE b.stream = ANY($1) AND NOT b.settled AND b.ready > 0
) AS numbered WHERE n <= $2 ORDER BY stream, n
"""
# Each range of dead letters with the seq that follows the one before: between them there is none.
# Of more than two pages of them, the highest page and one of the others, which $3 draws.
_DEAD = """
SELECT stream, a, b, below FROM (
    SELECT stream, first AS a, last AS b, coalesce(lag(last) OVER upwards, 0) + 1 AS below,
        row_number() OVER upwards AS n, count(*) OVER (PARTITION BY stream) AS many
    FROM told WHERE stream = ANY($1) AND reason = 'dead'
    WINDOW upwards AS (PARTITION BY stream ORDER BY first)
) AS numbered
WHERE many - $2 <= $2 OR n > many - $2 OR (n - 1) / $2 = $3 % greatest(1, (many - 1) / $2)
ORDER BY stream, a
"""
Pairs = dict[int, list[tuple[int, int]]]
Dead = list[tuple[int, int, int]]  # first, last, and the first seq of the stretch that it ends


class _Found:
    """Of the streams, by their numbers."""

    def __init__(self) -> None:
        self.spans: Pairs = {}
        self.parts: Pairs = {}
        self.refused: Pairs = {}
        self.dead: dict[int, Dead] = {}


async def of(
    transaction: Transaction,
    devices: Sequence[str],
    chance: random.Random,
    bytes_max: int = ACK_BYTES_MAX,
) -> dict[str, Ack]:
    """What is stored of each device; of one that never came, nothing.

    `chance` draws which dead letters are listed, where not all can be. Each ack has `bytes_max` at
    most, and never more than ACK_BYTES_MAX.
    """
    bytes_max = min(bytes_max, ACK_BYTES_MAX)
    of: dict[str, list[Row]] = {device: [] for device in devices}
    for row in await transaction.fetch(_STREAMS, list(devices)):
        if len(of[row[-1]]) < STREAMS_MAX:
            of[row[-1]].append(row)
    rows = [row for some in of.values() for row in some]
    rooms: dict[int, list[Row]] = {}  # nearly always all in one
    for some in of.values():
        rooms.setdefault(_room(len(some), bytes_max), []).extend(some)
    found = _Found()
    for many, some in rooms.items():
        found.spans |= await _pairs(transaction, _RANGES, [r[0] for r in some if r[4]], many)
        found.refused |= await _pairs(transaction, _REFUSED, [r[0] for r in some if r[6]], many)
    found.parts = await _pairs(transaction, _PARTS, [r[0] for r in rows if r[5]], PARTS_MAX)
    # Each query sees what was committed before it (READ COMMITTED), so this one comes last, and for
    # all streams: what the marks and spans read above cover is by now dead, and listed, or stored.
    # Read before them, it could lack a letter that they cover. In one statement, since two would
    # see different pages.
    if rows:
        streams, page = [r[0] for r in rows], max(1, DEAD_MAX // 2)
        for stream, *one in await transaction.fetch(_DEAD, streams, page, chance.getrandbits(31)):
            a, b, below = one
            found.dead.setdefault(stream, []).append((a, b, below))
    return {device: _bounded(some, found, chance, bytes_max) for device, some in of.items()}


def _room(streams: int, bytes_max: int) -> int:
    """How many ranges of each of so many streams there can be room for; more are not looked up."""
    return min(RANGES_MAX, 1 + bytes_max // (RANGE_BYTES_MIN * max(1, streams)))


def _bounded(rows: Sequence[Row], found: _Found, chance: random.Random, bytes_max: int) -> Ack:
    """With as much as there is room for: fewer ranges and dead letters, then fewer streams."""
    many = _room(len(rows), bytes_max)
    while True:
        word = _ack(rows, found, many, chance)
        if len(ack.encode(word)) <= bytes_max or not rows:
            return word
        if many > 1:  # with none listed, what lies among dead letters would never be told
            many //= 2
        else:
            rows = rows[: len(rows) * 3 // 4]


async def _pairs(transaction: Transaction, sql: str, streams: list[int], count: int) -> Pairs:
    found: Pairs = {}
    if streams:
        for stream, a, b in await transaction.fetch(sql, streams, count):
            found.setdefault(stream, []).append((a, b))
    return found


def _ack(rows: Sequence[Row], found: _Found, many: int, chance: random.Random) -> Ack:
    epochs: dict[str, dict[str, StreamAck]] = {}
    for number, epoch, name, stored, *_, tail_seq, tail, _ in rows:
        above = found.spans.get(number, [])
        there = [(1, stored), *above] if stored else above
        dead, listed = _drawn(found.dead.get(number, []), min(many, DEAD_MAX), chance)
        told = _common(there[: many + bool(stored)], listed)
        mark = told.pop(0)[1] if told and told[0][0] == 1 else 0
        epochs.setdefault(epoch, {})[name] = StreamAck(
            mark,
            _ranges(told[:RANGES_MAX]),
            dict(found.parts.get(number, [])[: min(many, PARTS_MAX)]),
            _ranges(
                [
                    (a, b)
                    for a, b in found.refused.get(number, [])
                    if not any(first <= a and b <= last for first, last in there)
                ][:many]
            ),
            _ranges([(a, b) for a, b, _ in dead]),
            None if tail_seq is None else (tail_seq, tail),
            _ranges(listed) if listed != [(1, SEQ_MAX)] else [],
        )
    return Ack(epochs)


def _drawn(dead: Dead, many: int, chance: random.Random) -> tuple[Dead, Seqs]:
    """So many of the dead letters' ranges, the newest and a page of the others; and the stretches
    of which an ack that lists them can speak."""
    end = dead[-1][1] + 1 if dead else 1
    if len(dead) > many:
        newest = many // 2
        page, rest = many - newest, dead[: len(dead) - newest]
        at = page * chance.randrange(-(-len(rest) // page))
        dead = [*rest[at : at + page], *dead[len(rest) :]]
    listed: Seqs = []
    for first, last in [*((below, b) for _, b, below in dead), (end, SEQ_MAX)]:
        if listed and listed[-1][1] + 1 == first:
            listed[-1] = (listed[-1][0], last)
        else:
            listed.append((first, last))
    return dead, listed


def _common(ranges: Seqs, others: Seqs) -> Seqs:
    """What is in both, ascending."""
    return sorted(
        (max(a, first), min(b, last))
        for first, last in others
        for a, b in ranges
        if a <= last and first <= b
    )


def _ranges(pairs: Seqs) -> list[Range]:
    return [Range(a, b) for a, b in pairs]
