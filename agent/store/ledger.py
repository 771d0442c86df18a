"""The loss ledger (promise 2): produced = delivered + held + dropped(reason), from the store."""

import sqlite3

from agent.records import Balance
from agent.store.database import Database


class Ledger:
    """Reads the counters that every transaction keeps in step with the rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def balances(self) -> dict[str, Balance]:
        """The ledger of each stream of this epoch, by name."""
        return await self._database.read(_balances)

    async def faults(self) -> list[str]:
        """What does not add up, one sentence each, by counting every row; empty when all does."""

        def operation(connection: sqlite3.Connection) -> list[str]:
            counted = dict(
                connection.execute(
                    "SELECT name, (SELECT count(*) FROM records WHERE stream = streams.id)"
                    " FROM streams WHERE epoch = ''"
                ).fetchall()
            )
            found = []
            for name, balance in _balances(connection).items():
                if not balance.balanced:
                    found.append(f"{name}: {balance} does not balance")
                if counted[name] != balance.held:
                    found.append(
                        f"{name}: ledger says {balance.held} held, rows are {counted[name]}"
                    )
            return found

        return await self._database.read(operation)


def _balances(connection: sqlite3.Connection) -> dict[str, Balance]:
    dropped: dict[str, dict[str, int]] = {}
    for name, reason, count in connection.execute(
        "SELECT name, reason, count FROM dropped"
        " JOIN streams ON streams.id = stream WHERE epoch = ''"
    ):
        dropped.setdefault(name, {})[reason] = count
    rows = connection.execute(
        "SELECT name, produced, delivered, held FROM streams WHERE epoch = '' ORDER BY name"
    )
    return {name: Balance(p, d, h, dropped.get(name, {})) for name, p, d, h in rows}
