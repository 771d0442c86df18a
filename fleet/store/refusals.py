"""What was refused is kept, with its cause: nothing is thrown away in silence.

Limits  : REFUSED_MAX rows, DEVICE_MAX of a device, PAYLOAD_BYTES_MAX of each payload; the oldest go
          first. The same message refused again is counted in its row. The bounds are kept now and
          then: there may be more by a tenth of REFUSED_MAX, and by one transaction.
"""

from collections.abc import Mapping, Sequence

from fleet.store.arrivals import Name, Refusal, plain
from fleet.store.database import Transaction

REFUSED_MAX = 10_000
DEVICE_MAX = 1000  # so that one costs no other its evidence; an ack of it tells so many ranges
PAYLOAD_BYTES_MAX = 256 << 10
CAUSE_CHARS_MAX = 1000
_KEEP = """
INSERT INTO refused
    (device, topic, cause, digest, first_us, last_us, stream, first, last, payload, conflict)
VALUES ($1, $2, $3, $4, $5, $5, $6, $7, $8, $9, $10) ON CONFLICT (topic, digest)
DO UPDATE SET times = refused.times + 1, last_us = excluded.last_us,
    last = greatest(refused.last, excluded.last)
"""
_NEWEST = "SELECT coalesce(max(id), 0) FROM refused"
# Rows that another transaction holds go another time: two that wait for each other would be stuck.
_BOUND_DEVICES = """
DELETE FROM refused WHERE id IN (SELECT id FROM refused WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER (PARTITION BY device ORDER BY id DESC) AS place FROM refused
    ) AS placed WHERE place > $1
) FOR UPDATE SKIP LOCKED)
"""
_BOUND_ALL = """
DELETE FROM refused WHERE id IN (SELECT id FROM refused WHERE id <= (
    SELECT id FROM refused ORDER BY id DESC LIMIT 1 OFFSET $1
) FOR UPDATE SKIP LOCKED)
"""


async def keep(
    transaction: Transaction, refused: Sequence[Refusal], ids: Mapping[Name, int], now_us: int
) -> None:
    """Keep what was refused; `ids` are those of the streams that it names."""
    if not refused:
        return
    rows = {
        (plain(one.topic), one.digest): (
            *(plain(one.device), plain(one.topic), plain(one.cause, CAUSE_CHARS_MAX)),
            *(one.digest, now_us),
            *_place(one, ids),
            one.payload[:PAYLOAD_BYTES_MAX],
            one.conflict,
        )
        for one in refused
    }
    before = await _newest(transaction)
    await transaction.many(_KEEP, [rows[key] for key in sorted(rows)])
    named = sorted({ids[one.name] for one in refused if one.name and one.name in ids})
    await transaction.many(
        "UPDATE streams SET refused = refused + 1 WHERE id = $1", [(one,) for one in named]
    )
    every = max(1, REFUSED_MAX // 10)  # ids; each new row has used up one, or more
    if before // every != await _newest(transaction) // every:
        await transaction.execute(_BOUND_DEVICES, DEVICE_MAX)
        await transaction.execute(_BOUND_ALL, REFUSED_MAX)


async def _newest(transaction: Transaction) -> int:
    ((newest,),) = await transaction.fetch(_NEWEST)
    return int(newest)


def _place(one: Refusal, ids: Mapping[Name, int]) -> tuple[int | None, int | None, int | None]:
    if one.name is None or one.name not in ids:
        return None, None, None
    return ids[one.name], one.first, one.last
