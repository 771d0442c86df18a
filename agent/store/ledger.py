"""The loss ledger (promise 2): produced = delivered + held + dropped(reason), from the store.

Streams that rest (takes.py) hold nothing and are left out.
"""

import sqlite3

from agent.records import Balance
from agent.store.database import Database
from agent.store.slices import Slices
from agent.store.verify import Verify

ByEpoch = dict[str, dict[str, Balance]]  # by epoch, then by stream


class Ledger:
    """Reads the counters that every transaction keeps in step with the rows."""

    def __init__(self, database: Database, slices: Slices) -> None:
        self._database = database
        self._slices = slices

    async def by_epoch(self) -> ByEpoch:
        """The ledger of each stream of each epoch: this file's own, and those saved into it."""
        own = self._database.epoch
        return await self._database.read(lambda connection: _balances(connection, own))

    async def balances(self) -> dict[str, Balance]:
        """The ledger of each stream, summed over the epochs."""
        total: dict[str, Balance] = {}
        for streams in (await self.by_epoch()).values():
            for name, balance in streams.items():
                total[name] = balance.plus(total[name]) if name in total else balance
        return total

    async def faults(self) -> list[str]:
        """What does not add up, one sentence each, by counting every row; empty when all does."""
        return (await Verify(self._slices).run()).faults


def _balances(connection: sqlite3.Connection, own: str) -> ByEpoch:
    dropped: dict[int, dict[str, int]] = {}
    for stream, reason, count in connection.execute("SELECT stream, reason, count FROM dropped"):
        dropped.setdefault(stream, {})[reason] = count
    found: ByEpoch = {own: {}}
    for key, epoch, name, produced, delivered, held in connection.execute(
        "SELECT id, epoch, name, produced, delivered, held FROM streams"
        " WHERE NOT resting ORDER BY name"
    ):
        found.setdefault(epoch or own, {})[name] = Balance(
            produced, delivered, held, dropped.get(key, {})
        )
    return found
