"""A store that no agent holds, read in place.

Limits  : one process, under the agent's own lock.
Format  : of this schema alone; another one is told, and left as it is.
Recovery: the file is opened for reading only. What is in the WAL is read from there.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote

from agent.errors import NotThere, StoreError
from agent.store import schema, streams
from agent.store.lock import Lock

T = TypeVar("T")


class Still:
    """Open with `with`: raises StoreLocked when an agent runs, NotThere, StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch = ""
        self._lock = Lock(path)
        self._connection: sqlite3.Connection

    def __enter__(self) -> Self:
        if not self.path.exists():
            raise NotThere(f"{self.path}: there is no store", "`holdfast run` begins one")
        self._lock.take_name()
        try:
            self._connection = self._opened()
        except BaseException:  # whatever kept it from opening: the lock goes back
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._lock.release()

    def _opened(self) -> sqlite3.Connection:
        where = f"file:{quote(str(self.path.absolute()))}?mode=ro"
        try:
            connection = sqlite3.connect(where, uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise self._typed(error) from error
        connection.text_factory = streams.text
        try:
            version, known = schema.check(connection), len(schema.steps())
            if version < known:
                raise StoreError(
                    f"{self.path}: the store has schema {version}, this command reads {known}",
                    "start the agent: it brings the store to its own schema",
                )
            self.epoch = schema.epoch(connection)
        except BaseException as error:  # whatever it was, no connection stays open
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._typed(error) from error
            raise
        return connection

    async def read(
        self, operation: Callable[[sqlite3.Connection], T], *, patient: bool = False
    ) -> T:
        """As `Database.read`; nobody else is there to wait for."""
        try:
            self._connection.execute("BEGIN")
            try:
                return operation(self._connection)
            finally:
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._typed(error) from error

    def _typed(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"{self.path}: {error}", "check the disk and the rights on the file")
