"""The ids of devices and streams, given once and remembered.

Limits  : STREAMS_MAX streams of one device, over all its epochs; IDS_MAX ids are remembered.
"""

from collections.abc import Collection

from agent.protocol.ack import STREAMS_MAX
from fleet.store.arrivals import Name
from fleet.store.database import Database, Transaction

IDS_MAX = 200_000
_DEVICE = "INSERT INTO devices (name, first_us) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
_STREAM = """
INSERT INTO streams (device, epoch, name) VALUES ($1, $2, $3)
ON CONFLICT (device, epoch, name) DO NOTHING
"""
_STREAMS = "SELECT id, device, epoch, name FROM streams WHERE device = ANY($1)"


class Registry:
    """Of one database; any number of processes give ids side by side."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids: dict[Name, int] = {}

    def forget(self) -> None:
        """Somebody removed rows: ask again."""
        self._ids.clear()

    async def streams(self, names: Collection[Name], now_us: int) -> dict[Name, int]:
        """The ids of these streams; without those that are one too many of their device."""
        unknown = sorted({name for name in names if name not in self._ids})
        if unknown:
            if len(self._ids) + len(unknown) > IDS_MAX:
                self._ids.clear()
                unknown = sorted(set(names))
            async with self._database.begin() as transaction:
                self._ids |= await _entered(transaction, unknown, now_us)
        return {name: self._ids[name] for name in names if name in self._ids}


async def devices(transaction: Transaction, names: Collection[str], now_us: int) -> dict[str, int]:
    """The ids of these devices. In the order of their names: two ingests wait in no circle."""
    await transaction.many(_DEVICE, [(name, now_us) for name in sorted(names)])
    rows = await transaction.fetch(
        "SELECT name, id FROM devices WHERE name = ANY($1)", sorted(names)
    )
    return {str(name): int(number) for name, number in rows}


async def _entered(transaction: Transaction, names: list[Name], now_us: int) -> dict[Name, int]:
    """The ids of streams, entered if need be."""
    ids = await devices(transaction, {device for device, _, _ in names}, now_us)
    called = {number: device for device, number in ids.items()}
    there = await _of(transaction, called)
    counts: dict[str, int] = {}
    for device, _, _ in there:
        counts[device] = counts.get(device, 0) + 1
    new = []
    for device, epoch, stream in names:
        if (device, epoch, stream) not in there and counts.get(device, 0) < STREAMS_MAX:
            counts[device] = counts.get(device, 0) + 1
            new.append((ids[device], epoch, stream))
    if new:
        await transaction.many(_STREAM, sorted(new))
        there = await _of(transaction, called)
    return {name: there[name] for name in names if name in there}


async def _of(transaction: Transaction, called: dict[int, str]) -> dict[Name, int]:
    rows = await transaction.fetch(_STREAMS, sorted(called))
    return {(called[device], epoch, name): number for number, device, epoch, name in rows}
