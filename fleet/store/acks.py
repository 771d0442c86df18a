"""Acks: computed from the database alone, so that it is the same whoever computes it.

Limits  : ACK_BYTES_MAX, so that it fits into the devices' `link.payload_bytes_max`. Where a stream
          has more ranges than there is room for, the lowest are told; where a device has more
          streams, those that were touched last.
"""

from collections.abc import Sequence

from agent.protocol import ack
from agent.protocol.ack import PARTS_MAX, RANGES_MAX, STREAMS_MAX, Ack, StreamAck
from agent.records import Range
from fleet.store.database import Row, Transaction

ACK_BYTES_MAX = 120_000
_STREAMS = """
SELECT s.id, s.epoch, s.name, s.mark, s.spans, s.unsettled, s.refused, s.tail, d.name
FROM streams s JOIN devices d ON d.id = s.device WHERE d.name = ANY($1) ORDER BY s.touched_us DESC
"""
_LOWEST = """
SELECT stream, a, b FROM (
    SELECT stream, {a} AS a, {b} AS b, row_number() OVER (PARTITION BY stream ORDER BY {a}) AS n
    FROM {table} WHERE stream = ANY($1) {where}
) AS numbered WHERE n <= $2 ORDER BY stream, a
"""
_RANGES = _LOWEST.format(a="first", b="last", table="spans", where="")
_PARTS = _LOWEST.format(a="seq", b="ready", table="blobs", where="AND NOT settled AND ready > 0")
_DEAD = _LOWEST.format(a="first", b="last", table="told", where="AND reason = 'dead'")
_REFUSED = _LOWEST.format(a="first", b="last", table="refused", where="AND NOT conflict")
Pairs = dict[int, list[tuple[int, int]]]


async def of(transaction: Transaction, devices: Sequence[str]) -> dict[str, Ack]:
    """What is stored of each device; of one that never came, nothing."""
    rows = await transaction.fetch(_STREAMS, list(devices))
    spans = await _pairs(transaction, _RANGES, [r[0] for r in rows if r[4]], RANGES_MAX)
    parts = await _pairs(transaction, _PARTS, [r[0] for r in rows if r[5]], PARTS_MAX)
    refused = await _pairs(transaction, _REFUSED, [r[0] for r in rows if r[6]], RANGES_MAX)
    dead = await _pairs(transaction, _DEAD, [r[0] for r in rows], RANGES_MAX + 1)
    of: dict[str, list[Row]] = {device: [] for device in devices}
    for row in rows:
        of[row[-1]].append(row)
    return {
        device: _bounded(some[:STREAMS_MAX], spans, parts, refused, dead)
        for device, some in of.items()
    }


def _bounded(rows: Sequence[Row], spans: Pairs, parts: Pairs, refused: Pairs, dead: Pairs) -> Ack:
    many = RANGES_MAX
    while True:
        word = _ack(rows, spans, parts, refused, dead, many)
        if len(ack.encode(word)) <= ACK_BYTES_MAX:
            return word
        if many:
            many //= 2
        else:
            rows = rows[: len(rows) * 3 // 4]


async def _pairs(transaction: Transaction, sql: str, streams: list[int], count: int) -> Pairs:
    found: Pairs = {}
    if streams:
        for stream, a, b in await transaction.fetch(sql, streams, count):
            found.setdefault(stream, []).append((a, b))
    return found


def _ack(
    rows: Sequence[Row], spans: Pairs, parts: Pairs, refused: Pairs, dead: Pairs, many: int
) -> Ack:
    epochs: dict[str, dict[str, StreamAck]] = {}
    for number, epoch, name, stored, *_, tail, _ in rows:
        mark = stored
        above = spans.get(number, [])
        told = dead.get(number, [])
        if len(told) > many:  # a dead letter that is not told as such would count as stored
            through = told[many][0] - 1
            mark, above = min(mark, through), [span for span in above if span[1] <= through]
        there = [(1, mark), *above]
        epochs.setdefault(epoch, {})[name] = StreamAck(
            mark,
            [Range(a, b) for a, b in above[:many]],
            dict(parts.get(number, [])[: min(many, PARTS_MAX)]),
            [
                Range(a, b)
                for a, b in refused.get(number, [])
                if not any(first <= a and b <= last for first, last in there)
            ][:many],
            [Range(a, b) for a, b in told[:many]],
            tail if mark == stored else None,
        )
    return Ack(epochs)
