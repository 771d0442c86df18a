"""What PostgreSQL does to those who work with it: connections cut, roles locked, for a while."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from agent.errors import ConfigError, StoreError
from fleet.store import database
from fleet.store.cloud import Cloud
from fleet.store.postgres import CONNECTIONS_MAX
from tests.fleet.cluster import Cluster
from tests.fleet.look import rows, seqs
from tests.fleet.sender import Sender
from tests.outside import DEADLINE_S

SENDER = Sender()
PIDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'holdfast-fleet'"


class Admin:
    """Somebody else's connection to the same database."""

    def __init__(self, url: str, connection: Any) -> None:
        self.url = url
        self.name = urlsplit(url).path[1:]
        self.execute = connection.execute
        self.fetch = connection.fetch

    async def cut(self) -> None:
        """End the fleet's connections to this database; returns when they are gone."""
        asked = f"{PIDS} AND datname = '{self.name}'"
        there = {pid for (pid,) in await self.fetch(asked)}
        await self.fetch("SELECT pg_terminate_backend(p) FROM unnest($1::int[]) p", list(there))
        async with asyncio.timeout(DEADLINE_S):
            while there & {pid for (pid,) in await self.fetch(asked)}:
                await asyncio.sleep(0.01)


@pytest.fixture
async def admin(cluster: Cluster) -> AsyncIterator[Admin]:
    url = cluster.new()
    connection = await asyncpg.connect(url)
    yield Admin(url, connection)
    await connection.close()


async def stored(cloud: Cloud, seq: int) -> None:
    """Stored, at the latest when each connection that was there before has failed."""
    for _ in range(CONNECTIONS_MAX):
        with suppress(StoreError):
            await cloud.store([SENDER.batch([seq])])
    assert seq in await seqs(cloud, SENDER.device)


async def pid(cloud: Cloud) -> int:
    (((found,),)) = await rows(cloud, "SELECT pg_backend_pid()")
    return int(found)


async def test_a_connection_in_an_unknown_state_is_thrown_away(admin: Admin) -> None:
    async with Cloud(database.open(admin.url)) as cloud:
        before = await pid(cloud)
        with pytest.raises(StoreError, match="state 15"):
            async with cloud.database.begin():
                raise asyncpg.InternalClientError("cannot switch to state 15")
        assert await pid(cloud) != before
        await stored(cloud, 1)


async def test_connections_that_the_server_ends_are_made_anew(admin: Admin) -> None:
    async with Cloud(database.open(admin.url)) as cloud:
        for seq in range(1, 6):
            await stored(cloud, seq)
            await admin.cut()
        await stored(cloud, 6)


async def test_a_server_that_was_read_only_is_written_again(admin: Admin) -> None:
    async with Cloud(database.open(admin.url)) as cloud:
        await stored(cloud, 1)
        await admin.execute(f"ALTER DATABASE {admin.name} SET default_transaction_read_only = on")
        await admin.cut()
        for _ in range(CONNECTIONS_MAX):  # each is a new one, and read-only
            with pytest.raises(StoreError):
                await cloud.store([SENDER.batch([2])])
        await admin.execute(f"ALTER DATABASE {admin.name} SET default_transaction_read_only = off")
        await stored(cloud, 2)


async def test_a_role_that_may_not_log_in_is_wrong_only_at_the_start(admin: Admin) -> None:
    role = f"ingest_{admin.name}"
    await admin.execute(f"CREATE ROLE {role} SUPERUSER NOLOGIN")
    ours = admin.url.replace("postgres@", f"{role}@")
    with pytest.raises(ConfigError, match="not permitted to log in"):
        async with Cloud(database.open(ours)):
            pass
    await admin.execute(f"ALTER ROLE {role} LOGIN")
    async with Cloud(database.open(ours)) as cloud:
        await stored(cloud, 1)
        await admin.execute(f"ALTER ROLE {role} NOLOGIN")
        await admin.cut()
        for _ in range(2):  # the first may meet a connection that was cut
            with pytest.raises(StoreError) as failed:
                await cloud.store([SENDER.batch([2])])
        assert "not permitted to log in" in str(failed.value)
        await admin.execute(f"ALTER ROLE {role} LOGIN")
        await stored(cloud, 2)
