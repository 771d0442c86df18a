"""What the device remembers of its twin.

Limits  : one row for each key; their content is bounded by protocol/twin.py.
Format  : table twin (sql/0015.sql): JSON by key.
Recovery: `put` returns after the commit. Of a file that was damaged nothing is carried over: the
          cloud's document is retained, and comes again; versions that are reported begin anew.
"""

import sqlite3

from agent.store.database import Database


class TwinRows:
    """Used on the event loop; each call raises StoreError when the store cannot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, key: str) -> bytes | None:
        """What was put under this key last."""

        def operation(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute("SELECT body FROM twin WHERE key = ?", (key,)).fetchone()
            return bytes(row[0]) if row else None

        return await self._database.read(operation)

    async def put(self, key: str, body: bytes) -> None:
        """Keep it in place of what was there."""
        await self._database.write(
            lambda c: c.execute("INSERT OR REPLACE INTO twin VALUES (?, ?)", (key, body))
        )
