"""The schema: numbered SQL files, each applied in one transaction; a newer file is left alone."""

import secrets
import sqlite3
from importlib import resources

from agent.errors import StoreError


def migrate(connection: sqlite3.Connection, created_us: int) -> None:
    """Bring the file to the newest schema this code knows; give a new file its epoch.

    Raises StoreError, and touches nothing, when the file was written by a newer Holdfast.
    """
    scripts = sorted(
        (f for f in resources.files("agent.store").joinpath("sql").iterdir()),
        key=lambda f: f.name,
    )
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(scripts):
        raise StoreError(
            f"the store has schema {version}, this Holdfast knows up to {len(scripts)}",
            "install the newer Holdfast again, or move the store away to begin a new one",
        )
    for number, script in enumerate(scripts[version:], version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {script.read_text()}; PRAGMA user_version = {number}; COMMIT;"
        )
    connection.execute(
        "INSERT OR IGNORE INTO meta VALUES ('epoch', ?), ('created_us', ?)",
        (secrets.token_hex(8), str(created_us)),
    )


def epoch(connection: sqlite3.Connection) -> str:
    """The identity born with the file: 16 hex digits."""
    return str(connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0])
