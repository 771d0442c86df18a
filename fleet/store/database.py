"""The database of the cloud side: SQLite or PostgreSQL behind one narrow door.

The SQL is written once, as PostgreSQL speaks it; sqlite.py says it in SQLite's words. What is used
is small on purpose: parameters are $1, $2; a list is asked for by `= ANY($1)`; rows of integers
come in as `ROWS($1)`, a list of lists that is a table of one JSON column `value`.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import resources
from typing import Any, Protocol, Self
from urllib.parse import unquote, urlsplit

from agent.errors import ConfigError, StoreError

Row = Sequence[Any]


class Unfit(StoreError):
    """A value that the database cannot take: the transaction is undone, and so it would be again.

    `StoreError` itself says that the database cannot be used now; what was asked may be asked anew.
    """


class Transaction(Protocol):
    """What can be done between BEGIN and COMMIT. All raise StoreError."""

    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]:
        """The rows that a query answers with."""

    async def execute(self, sql: str, *values: Any) -> None:
        """One statement."""

    async def many(self, sql: str, rows: Iterable[Row]) -> None:
        """One statement, once for each row of values."""

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Add rows to a table, the fastest way there is."""


class Database(Protocol):
    """Open with `async with`: the schema is brought up to date, unless it only reads."""

    name: str
    """How it is called in messages: without a password."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    def begin(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction: committed, and on the disk, at its end; undone when it raises."""


def open(url: str, *, reads_only: bool = False) -> Database:
    """The database of a URL, `sqlite:///var/fleet.db` or `postgresql://user@host/name`.

    `reads_only` never writes, not even the schema, and stands beside a process that writes.
    Raises ConfigError.
    """
    try:
        scheme, path = urlsplit(url).scheme, urlsplit(url).path
    except ValueError as error:
        raise _unknown(url) from error
    if scheme == "sqlite" and len(path) > 1 and not urlsplit(url).netloc:
        from fleet.store.sqlite import SQLite

        named = unquote(path[1:])
        root = "/" if named.startswith("/") else ""  # POSIX leaves open what two of them mean
        return SQLite(root + named.lstrip("/"), reads_only=reads_only)
    if scheme in ("postgresql", "postgres"):
        try:
            from fleet.store.postgres import Postgres
        except ImportError as error:
            raise ConfigError(
                "PostgreSQL needs asyncpg, which is not installed", "pip install 'holdfast[fleet]'"
            ) from error
        return Postgres(url, reads_only=reads_only)
    raise _unknown(url)


def _unknown(url: str) -> ConfigError:
    scheme = url.partition(":")[0]
    return ConfigError(
        f"--database begins with {scheme!r}; expected sqlite:///PATH or postgresql://HOST/NAME",
        "sqlite:///var/fleet.db lies in the working directory, sqlite:////var/fleet.db below /var",
    )


def steps(dialect: str) -> list[str]:
    """The SQL that makes each version of the schema of the one before, in order."""
    found = resources.files("fleet.store").joinpath("sql", dialect).iterdir()
    return [script.read_text() for script in sorted(found, key=lambda script: script.name)]


def missing(version: int, dialect: str, name: str, *, reads_only: bool) -> list[str]:
    """The steps that lead on from `version`. Raises StoreError when they cannot be taken."""
    known = steps(dialect)
    if version > len(known):
        raise StoreError(
            f"{name} has schema {version}, this holdfast-fleet knows up to {len(known)}",
            "use the newer holdfast-fleet",
        )
    if reads_only and version < len(known):
        raise StoreError(
            f"{name} has schema {version}, this command reads {len(known)}",
            "start `holdfast-fleet ingest` on it: that brings the schema up to date",
        )
    return known[version:]
