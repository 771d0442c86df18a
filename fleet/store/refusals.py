"""What was refused is kept, with its cause: nothing is thrown away in silence.

Limits  : REFUSED_MAX rows, PAYLOAD_BYTES_MAX of each payload; the oldest go first. The same message
          refused again is counted in its row.
"""

from collections.abc import Mapping, Sequence

from fleet.store.arrivals import Name, Refusal, plain
from fleet.store.database import Transaction

REFUSED_MAX = 10_000
PAYLOAD_BYTES_MAX = 256 << 10
CAUSE_CHARS_MAX = 1000
_KEEP = """
INSERT INTO refused
    (device, topic, cause, digest, first_us, last_us, stream, first, last, payload, conflict)
VALUES ($1, $2, $3, $4, $5, $5, $6, $7, $8, $9, $10) ON CONFLICT (topic, digest)
DO UPDATE SET times = refused.times + 1, last_us = excluded.last_us,
    last = greatest(refused.last, excluded.last)
"""
_BOUND = "DELETE FROM refused WHERE id <= (SELECT max(id) FROM refused) - $1"


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
    await transaction.many(_KEEP, [rows[key] for key in sorted(rows)])
    named = sorted({ids[one.name] for one in refused if one.name and one.name in ids})
    await transaction.many(
        "UPDATE streams SET refused = refused + 1 WHERE id = $1", [(one,) for one in named]
    )
    await transaction.execute(_BOUND, REFUSED_MAX)


def _place(one: Refusal, ids: Mapping[Name, int]) -> tuple[int | None, int | None, int | None]:
    if one.name is None or one.name not in ids:
        return None, None, None
    return ids[one.name], one.first, one.last
