"""kill -9 at a named point: a connection that counts what it is asked to do.

Installed by the producer's process in place of sqlite3's own; the product knows nothing of it.
rig.py copies the store at such a point instead.
Points inside SQLite's own work (a checkpoint, a write of the WAL) are rules of disk.py instead.
"""

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

POINTS = [
    "open",  # before a file is opened
    "pragma",  # between the settings of a new connection
    "migrate-statement",  # inside a migration's transaction
    "migrate-commit",  # a migration is about to be committed
    "migrated",  # it is, and the file may not have its epoch yet
    "begin",  # before BEGIN IMMEDIATE
    "begun",  # after it
    "statement",  # inside a transaction that writes
    "commit",  # before COMMIT
    "committed",  # after it, before the answer
]


def install(point: str, times: int) -> None:
    """End this process when `point` is met for this time."""
    left = times

    def met(here: str) -> None:
        nonlocal left
        left -= here == point
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlite3.connect = connector(met)  # type: ignore[assignment]


def connector(met: Callable[[str], None]) -> Callable[..., sqlite3.Connection]:
    """What takes the place of sqlite3.connect: its connections tell `met` each point they meet."""
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        writes = False

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            met(_before(sql, self.writes))
            done = super().execute(sql, *arguments)
            if sql == "BEGIN IMMEDIATE":
                self.writes = True
                met("begun")
            elif sql == "COMMIT" and self.writes:
                self.writes = False
                met("committed")
            return done

        def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
            met("statement")
            return super().executemany(sql, rows)

        def executescript(self, script: str) -> sqlite3.Cursor:
            for statement in _statements(script):
                met("migrate-commit" if statement == "COMMIT;" else "migrate-statement")
                done = super().execute(statement)
            met("migrated")
            return done

    def opened(*arguments: Any, **named: Any) -> sqlite3.Connection:
        met("open")
        return connect(*arguments, factory=Connection, **named)

    return opened


def _before(sql: str, writes: bool) -> str:
    if sql == "BEGIN IMMEDIATE":
        return "begin"
    if sql.startswith("PRAGMA"):
        return "pragma"
    return {True: "commit" if sql == "COMMIT" else "statement", False: ""}[writes]


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for piece in script.split(";")[:-1]:
        statement += piece + ";"
        if sqlite3.complete_statement(statement) and statement.strip() != ";":
            yield statement.strip()
            statement = ""
        elif statement.strip() == ";":
            statement = ""
