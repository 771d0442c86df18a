"""What the disk took for the store's sake, kept over restarts, and what producers brought.

Limits  : a row a source; the caller notes so seldom that measuring wear causes none.
Format  : table wear, and streams.taken_bytes, which each append counts in its own transaction.
Recovery: a crash loses what was not noted yet, bytes and their seconds alike, so that the rates
          stay right; taken_bytes is exact.
"""

import sqlite3

from msgspec import Struct
from msgspec.structs import astuple

from agent.store.database import Database


class Written(Struct, frozen=True):
    """Bytes, and the seconds of running time in which they were written."""

    bytes: int = 0
    running_s: float = 0.0


class Payload(Struct, frozen=True):
    """Bytes of a stream's records, blobs included: those held now, and all that were taken in."""

    held_bytes: int
    taken_bytes: int


class Wear:
    """Reads and writes the totals; every call raises StoreError when the store cannot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def noted(self) -> dict[str, Written]:
        """The totals as they were noted last, by source."""

        def operation(connection: sqlite3.Connection) -> dict[str, Written]:
            rows = connection.execute("SELECT source, bytes, running_s FROM wear")
            return {source: Written(size, running_s) for source, size, running_s in rows}

        return await self._database.read(operation)

    async def note(self, totals: dict[str, Written]) -> None:
        """Keep these totals in place of the former."""
        rows = [(source, *astuple(total)) for source, total in totals.items()]
        await self._database.write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO wear VALUES (?, ?, ?)", rows
            )
        )

    async def payload(self) -> dict[str, Payload]:
        """What producers brought since the file counts it, by stream."""

        def operation(connection: sqlite3.Connection) -> dict[str, Payload]:
            rows = connection.execute(
                "SELECT name, sum(bytes), sum(taken_bytes) FROM streams GROUP BY name"
            )
            return {name: Payload(held, taken) for name, held, taken in rows}

        return await self._database.read(operation)
