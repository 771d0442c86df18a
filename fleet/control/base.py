"""The controller's tables: in PostgreSQL beside the store's, in SQLite a file of their own.

The file is named after the store's (`var/fleet.db`: `var/fleet.control.db`). Any number of
processes write it, so orders are given beside a running controller and a running ingest.
"""

from fleet.store import database
from fleet.store.database import Database, Schema

CONTROL = Schema(
    *("fleet.control", "holdfast_control_schema", "holdfast-fleet control"),
    infix=".control",
    shared=True,
)


def open(url: str, *, reads_only: bool = False) -> Database:
    """The controller's database of a URL. Raises ConfigError."""
    return database.open(url, reads_only=reads_only, schema=CONTROL)
