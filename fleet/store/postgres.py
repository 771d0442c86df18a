"""PostgreSQL as the cloud side's database: a pool of connections, binary COPY on the hot path.

Limits  : CONNECTIONS_MAX connections of a process; many processes write side by side.
Format  : the schema of sql/postgres; its version is in a table, `holdfast_schema` for the store.
Recovery: PostgreSQL's own. A commit waits until it is on the disk (synchronous_commit is set on).
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any, Self
from urllib.parse import urlsplit

import asyncpg

from agent.errors import ConfigError, StoreError
from fleet.store.database import STORE, Row, Schema, Unfit, missing

CONNECTIONS_MAX = 4
CONNECT_S = 10.0
COMMAND_S = 60.0  # a statement that takes longer hangs
TURN = 0x484F4C44  # the advisory lock under which one process migrates
_UNFIT = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.exceptions.UntranslatableCharacterError,
    OverflowError,
    UnicodeEncodeError,
)
# Nobody knows what state such a connection is in; or it began when the server was read-only, and
# would stay so.
_SPOILT = (asyncpg.InternalClientError, asyncpg.ReadOnlySQLTransactionError)


class Postgres:
    """A database on a server. Raises ConfigError, StoreError."""

    def __init__(self, url: str, *, reads_only: bool = False, schema: Schema = STORE) -> None:
        self._schema = schema
        try:
            at = urlsplit(url)
            self.name = (
                f"postgresql://{at.hostname or ''}{f':{at.port}' if at.port else ''}{at.path}"
            )
        except ValueError as error:
            raise ConfigError(f"--database cannot be read: {error}", "see --help") from error
        self._url = url
        self._reads_only = reads_only
        self._pool: Any = None
        self._served = False  # it has been open once: what is wrong now may pass

    async def __aenter__(self) -> Self:
        with self._typed():
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=1,
                max_size=CONNECTIONS_MAX,
                timeout=CONNECT_S,
                command_timeout=COMMAND_S,
                server_settings={"application_name": "holdfast-fleet", "synchronous_commit": "on"},
            )
        try:
            await self._migrate()
        except BaseException:  # a cancellation too: nobody would close the pool
            await self.__aexit__()
            raise
        self._served = True
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _migrate(self) -> None:
        table = self._schema.version
        asked = f"SELECT coalesce(max(version), 0) FROM {table}"
        async with self.begin() as transaction:
            (there,) = await transaction.fetch(f"SELECT to_regclass('{table}') IS NOT NULL")
            if self._reads_only:
                version = (await transaction.fetch(asked))[0][0] if there[0] else 0
                missing(version, self._schema, "postgres", self.name, reads_only=True)
                return
            await transaction.execute("SELECT pg_advisory_xact_lock($1)", TURN)
            await transaction.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (version bigint PRIMARY KEY)"
            )
            ((version,),) = await transaction.fetch(asked)
            for script in missing(
                *(version, self._schema, "postgres", self.name), reads_only=False
            ):
                version += 1
                await transaction.execute(script)
                await transaction.execute(f"INSERT INTO {table} VALUES ($1)", version)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator["_Transaction"]:
        """As Database says; as many at once as there are connections."""
        with self._typed():
            async with self._pool.acquire(timeout=CONNECT_S) as connection:
                try:
                    async with connection.transaction(readonly=self._reads_only):
                        yield _Transaction(connection)
                except _SPOILT:
                    connection.terminate()
                    raise

    @contextmanager
    def _typed(self) -> Iterator[None]:
        """Faults of the database as errors of ours; others pass."""
        try:
            yield
        except _UNFIT as error:
            raise Unfit(f"{self.name}: {error}") from error
        except (
            asyncpg.InvalidAuthorizationSpecificationError,
            asyncpg.InvalidCatalogNameError,
            asyncpg.exceptions.ClientConfigurationError,
        ) as error:
            kind = StoreError if self._served else ConfigError
            raise kind(f"{self.name}: {error}", "check --database") from error
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            raise StoreError(f"{self.name}: {error}", "look into PostgreSQL's log") from error
        except (OSError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
            raise StoreError(f"{self.name}: {reason}", "check that PostgreSQL runs") from error


class _Transaction:
    """See fleet.store.database.Transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]:
        """As Transaction says."""
        rows: list[Row] = await self._connection.fetch(_words(sql), *_given(sql, values))
        return rows

    async def execute(self, sql: str, *values: Any) -> None:
        """As Transaction says."""
        await self._connection.execute(_words(sql), *_given(sql, values))

    async def many(self, sql: str, rows: Iterable[Row]) -> None:
        """As Transaction says."""
        await self._connection.executemany(_words(sql), rows)

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """As Transaction says."""
        await self._connection.copy_records_to_table(table, columns=columns, records=rows)


@cache  # there are a few dozen
def _words(sql: str) -> str:
    return re.sub(r"ROWS\(\$(\d+)\)", r"jsonb_array_elements($\1::jsonb)", sql)


def _given(sql: str, values: Sequence[Any]) -> list[Any]:
    """Lists for ROWS as JSON; other lists are arrays."""
    if "ROWS(" not in sql:
        return list(values)
    return [
        json.dumps(value) if f"ROWS(${place})" in sql else value
        for place, value in enumerate(values, 1)
    ]
