"""A store without an agent: read in place, under its lock, and left as it was."""

import hashlib
import itertools
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import StreamRule
from agent.errors import NotThere, StoreError, StoreLocked
from agent.store import schema
from agent.store.inventory import Inventory
from agent.store.slices import Slices
from agent.store.still import Still
from agent.store.verify import Verify
from tests.outside import ROOT
from tests.store.shop import made, stocked


def content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def inventory(still: Still) -> Inventory:
    slices = Slices(still, itertools.count().__next__)
    return Inventory(slices, Clock(), lambda _: StreamRule(match="*"), lambda *_: [])


async def test_a_closed_store_is_read_as_an_agent_reads_it_and_not_changed(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        epoch, wanted = store.epoch, await store.ledger.by_epoch()
    before = content(store.path)
    with Still(store.path) as still:
        assert still.epoch == epoch
        ledger = await inventory(still).ledger()
        assert {n: a.balance for n, a in ledger[epoch].items()} == wanted[epoch]
        assert (await Verify(Slices(still), deep=True).run()).faults == []
    assert content(store.path) == before


KILLED = """
import asyncio, os, signal
from pathlib import Path
from tests.store.shop import made, stocked

async def main():
    async with made(Path({folder!r})) as store:
        await stocked(store)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_a_killed_agent_left_in_the_wal_is_seen(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path))], cwd=ROOT)
    assert child.returncode == -signal.SIGKILL
    path = tmp_path / "s.db"
    before = content(path)
    assert path.with_name("s.db-wal").stat().st_size > 0
    with Still(path) as still:
        streams = {one.name: one for one in await inventory(still).streams()}
        assert (streams["a"].held, streams["x.raw"].dead) == (15, 1)
        assert (await Verify(Slices(still)).run()).faults == []
    assert content(path) == before
    async with made(tmp_path) as store:
        assert await store.ledger.faults() == []


async def test_ages_are_carried_into_a_boot_that_the_file_has_not_seen(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE boots SET boot = 'before', seen_ns = seen_ns + 7200 * 1000000000")
        db.execute("UPDATE records SET boot = 'before'")
        boots = db.execute("SELECT * FROM boots").fetchall()
    db.close()
    with Still(store.path) as still:
        (oldest,) = [s.oldest_age_s for s in await inventory(still).streams() if s.name == "a"]
    assert oldest is not None
    assert oldest > 3600
    with sqlite3.connect(store.path) as db:
        assert db.execute("SELECT * FROM boots").fetchall() == boots
    db.close()


async def test_a_store_that_is_held_is_not_read(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        with pytest.raises(StoreLocked):
            Still(store.path).__enter__()
    with Still(store.path), pytest.raises(StoreLocked):
        await made(tmp_path).__aenter__()
    async with made(tmp_path):
        pass


@pytest.mark.parametrize("version", [len(schema.steps()) - 1, len(schema.steps()) + 1])
async def test_another_schema_is_told_and_left_as_it_is(tmp_path: Path, version: int) -> None:
    async with made(tmp_path) as store:
        pass
    with sqlite3.connect(store.path) as db:
        db.execute(f"PRAGMA user_version = {version}")
        db.execute(f"UPDATE meta SET value = {version} WHERE key = 'opens_from'")
    db.close()
    before = content(store.path)
    with pytest.raises(StoreError, match=f"schema {version}"):
        Still(store.path).__enter__()
    assert content(store.path) == before
    with sqlite3.connect(store.path) as db:
        db.execute(f"PRAGMA user_version = {len(schema.steps())}")
    db.close()
    with Still(store.path):
        pass


def test_no_store_is_told_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="there is no store"):
        Still(tmp_path / "s.db").__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("said", [b"", b"no store at all, but long enough to be one" * 100])
def test_what_is_no_store_is_told(tmp_path: Path, said: bytes) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(said)
    with pytest.raises(StoreError):
        Still(path).__enter__()
    assert path.read_bytes() == said
