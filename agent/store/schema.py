"""The schema: numbered SQL files, each applied in one transaction; a newer file is left alone."""

import math
import secrets
import sqlite3
import zlib
from importlib import resources

from agent.errors import StoreError
from agent.store import streams

# The oldest schema whose code can work in a file of the newest: what came since it does not need (a
# table, an index, a column with a default). It is kept in the file, so that an update of the agent
# can be taken back. A step that is not so raises this to its own number.
OPENS_FROM = 14


def check(connection: sqlite3.Connection) -> int:
    """The file's schema. Raises StoreError, and touches nothing, when a newer Holdfast wrote it,
    and did not leave it so that this one can work in it."""
    version, known = int(connection.execute("PRAGMA user_version").fetchone()[0]), len(steps())
    if version > known and _opens_from(connection) > known:
        raise StoreError(
            f"the store has schema {version}, this Holdfast knows up to {known}",
            "install the newer Holdfast again, or move the store away to begin a new one",
        )
    return version


def migrate(connection: sqlite3.Connection, created_us: int) -> None:
    """Bring the file to the newest schema this code knows; give a new file its epoch.

    Foreign keys must be off meanwhile: a step may make a table anew under its old name. Raises
    StoreError as `check` does.
    """
    version = check(connection)
    connection.create_function("crc32", 1, zlib.crc32, deterministic=True)  # the steps'
    connection.create_function("row_crc", 8, streams.row_crc, deterministic=True)
    if 0 < version < len(steps()):  # first: a power cut must not leave a newer file that says less
        _keep_opens_from(connection)
    for number, script in enumerate(steps()[version:], version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;"
        )
    if not connection.execute("SELECT 1 FROM meta WHERE key = 'epoch'").fetchone():  # it is new
        _keep_opens_from(connection)
    connection.execute(
        "INSERT OR IGNORE INTO meta VALUES ('epoch', ?), ('created_us', ?)",
        (secrets.token_hex(8), str(created_us)),
    )


def _opens_from(connection: sqlite3.Connection) -> float:
    row = connection.execute("SELECT value FROM meta WHERE key = 'opens_from'").fetchone()
    return int(row[0]) if row and row[0].isdigit() else math.inf


def _keep_opens_from(connection: sqlite3.Connection) -> None:
    """It never sinks: an older step stays in the file."""
    connection.execute(
        "INSERT INTO meta VALUES ('opens_from', ?) ON CONFLICT (key) DO UPDATE SET"
        " value = excluded.value WHERE CAST(value AS INTEGER) < CAST(excluded.value AS INTEGER)",
        (str(OPENS_FROM),),
    )


def steps() -> list[str]:
    """The SQL that makes each version of the schema of the one before, in order."""
    found = resources.files("agent.store").joinpath("sql").iterdir()
    return [script.read_text() for script in sorted(found, key=lambda script: script.name)]


def epoch(connection: sqlite3.Connection) -> str:
    """The identity born with the file: 16 hex digits."""
    return str(connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0])
