"""The database of the cloud side: SQLite or PostgreSQL behind one narrow door.

The SQL is written once, as PostgreSQL speaks it; sqlite.py says it in SQLite's words. What is used
is small on purpose: parameters are $1, $2; a list is asked for by `= ANY($1)`; rows of integers
come in as `ROWS($1)`, a list of lists that is a table of one JSON column `value`.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import resources
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import unquote, urlsplit

from agent.errors import ConfigError, StoreError

Row = Sequence[Any]


class Unfit(StoreError):
    """A value that the database cannot take: the transaction is undone, and so it would be again.

    `StoreError` itself says that the database cannot be used now; what was asked may be asked anew.
    """


class Absent(StoreError):
    """Nobody has made this database yet."""


class Schema(NamedTuple):
    """What a database holds: `package` has the steps of its schema, in sql/DIALECT.

    In PostgreSQL they share a database, each with a table `version` of its own. SQLite has a file
    for each, named with `infix`: one process writes it, or, where it is `shared`, any number.
    `made_by` is the command that brings it up to date.
    """

    package: str
    version: str
    made_by: str
    infix: str = ""
    shared: bool = False


STORE = Schema("fleet.store", "holdfast_schema", "holdfast-fleet ingest")


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


def open(url: str, *, reads_only: bool = False, schema: Schema = STORE) -> Database:
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
        return SQLite(root + named.lstrip("/"), reads_only=reads_only, schema=schema)
    if scheme in ("postgresql", "postgres"):
        try:
            from fleet.store.postgres import Postgres
        except ImportError as error:
            raise ConfigError(
                "PostgreSQL needs asyncpg, which is not installed", "pip install 'holdfast[fleet]'"
            ) from error
        return Postgres(url, reads_only=reads_only, schema=schema)
    raise _unknown(url)


def _unknown(url: str) -> ConfigError:
    scheme = url.partition(":")[0]
    return ConfigError(
        f"--database begins with {scheme!r}; expected sqlite:///PATH or postgresql://HOST/NAME",
        "sqlite:///var/fleet.db lies in the working directory, sqlite:////var/fleet.db below /var",
    )


def steps(schema: Schema, dialect: str) -> list[str]:
    """The SQL that makes each version of the schema of the one before, in order."""
    found = resources.files(schema.package).joinpath("sql", dialect).iterdir()
    return [script.read_text() for script in sorted(found, key=lambda script: script.name)]


def missing(
    version: int, schema: Schema, dialect: str, name: str, *, reads_only: bool
) -> list[str]:
    """The steps that lead on from `version`. Raises StoreError when they cannot be taken."""
    known = steps(schema, dialect)
    if version > len(known):
        raise StoreError(
            f"{name} has schema {version}, this holdfast-fleet knows up to {len(known)}",
            "use the newer holdfast-fleet",
        )
    if reads_only and version < len(known):
        kind = StoreError if version else Absent
        raise kind(
            f"{name} has schema {version}, this command reads {len(known)}",
            f"start `{schema.made_by}` on it: that brings the schema up to date",
        )
    return known[version:]
