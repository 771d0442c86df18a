"""What devices say of themselves: presence, and the heartbeat's status and ledger.

Limits  : CONDITIONS_MAX conditions of a device; counts up to SEQ_MAX, and sums of them, too:
          a stream has no more records. What is beyond is left out.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from agent.protocol.presence import Heartbeat, Presence
from agent.records import SEQ_MAX, Balance
from fleet.store.arrivals import Name, is_name, plain
from fleet.store.database import Transaction

CONDITIONS_MAX = 100
FRESH_US = 120_000_000  # a heartbeat that comes so long after "offline" was sent after it, too

_PRESENCE = """
INSERT INTO devices (name, first_us, online, presence_us, epoch, version, ack_from)
VALUES ($1, $2, $3, $2, $4, $5, $6) ON CONFLICT (name) DO UPDATE
SET online = excluded.online, presence_us = excluded.presence_us, epoch = excluded.epoch,
version = excluded.version, ack_from = excluded.ack_from
"""
_HEARTBEAT = """
INSERT INTO devices (name, first_us, online, heartbeat_us, epoch, uptime_s, status, conditions)
VALUES ($1, $2, $3, $2, $4, $5, $6, $7) ON CONFLICT (name) DO UPDATE
SET heartbeat_us = excluded.heartbeat_us,
online = CASE WHEN devices.presence_us >= $8 THEN devices.online ELSE excluded.online END,
epoch = excluded.epoch, uptime_s = excluded.uptime_s,
status = excluded.status, conditions = excluded.conditions
"""
_LEDGER = """
UPDATE streams SET said_produced = $2, said_delivered = $3, said_held = $4, said_dropped = $5
WHERE id = $1 AND (said_produced IS DISTINCT FROM $2 OR said_delivered IS DISTINCT FROM $3
OR said_held IS DISTINCT FROM $4 OR said_dropped IS DISTINCT FROM $5)
"""


def balances(said: Mapping[str, Heartbeat]) -> Iterator[tuple[Name, Balance]]:
    """The ledgers, stream by stream; without what no database could hold."""
    for device, beat in said.items():
        for epoch, streams in beat.ledger.items():
            for stream, of in streams.items():
                if is_name(epoch) and is_name(stream) and _may_be(of):
                    yield (device, epoch, stream), of


def _may_be(of: Balance) -> bool:
    """Whether these can be the counts of a stream; they need not add up."""
    dropped = of.dropped.values()
    counts = (of.produced, of.delivered, of.held, *dropped, sum(dropped))
    return all(0 <= count <= SEQ_MAX for count in counts)


async def presences(transaction: Transaction, said: Sequence[Presence], now_us: int) -> None:
    """The last word of each device counts."""
    last = {one.device: one for one in said}
    rows = [
        (device, now_us, one.online, plain(one.epoch), plain(one.version), plain(one.ack_from))
        for device, one in sorted(last.items())
    ]
    if rows:
        await transaction.many(_PRESENCE, rows)


async def heartbeats(
    transaction: Transaction, said: Mapping[str, Heartbeat], ids: Mapping[Name, int], now_us: int
) -> None:
    """Of each device, and of each of its streams. `ids` are those of the streams."""
    rows = [
        (
            *(device, now_us, True, plain(beat.epoch), beat.uptime_s, plain(beat.status)),
            msgspec.json.encode(beat.conditions[:CONDITIONS_MAX]).decode(),
            now_us - FRESH_US,
        )
        for device, beat in sorted(said.items())
    ]
    if rows:
        await transaction.many(_HEARTBEAT, rows)
    ledger = [
        (ids[name], of.produced, of.delivered, of.held, sum(of.dropped.values()))
        for name, of in balances(said)
        if name in ids
    ]
    if ledger:
        await transaction.many(_LEDGER, sorted(ledger))
