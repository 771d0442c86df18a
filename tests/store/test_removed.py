"""Somebody removes or replaces the store's files while it is open: what was accepted stays."""

import errno
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError, StoreLocked
from agent.records import RecordType
from agent.store import database
from agent.store.intake import New
from agent.store.store import Store
from tests.store.faults.disk import Disk, needs_fuse

ONE = [New(RecordType.SEGMENT, b"{}", bytes(70_000))]


def made(folder: Path) -> Store:
    return Store(Settings(path=str(folder / "s.db")), Clock())


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr(database, "TIDY_S", 0.0)  # it looks after each commit
    async with made(tmp_path) as opened:
        await opened.intake.append("a", ONE)
        yield opened


async def looked(store: Store) -> None:
    """It has looked at its files: one commit later it has looked after the one before."""
    for _ in range(2):
        await store._database.write(lambda c: None)


def there(folder: Path) -> int:
    """How many records a reader from outside finds."""
    with sqlite3.connect(folder / "s.db") as db:
        (count,) = db.execute("SELECT count(*) FROM records").fetchone()
    db.close()
    return count


@pytest.mark.parametrize(
    "names", [["s.db"], ["s.db-wal"], ["s.db", "s.db-wal", "s.db-shm"]], ids=" ".join
)
async def test_a_removed_file_is_written_back(
    store: Store, tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).unlink()
    await store.intake.append("a", ONE)
    await looked(store)
    await store.intake.append("a", ONE)
    assert there(tmp_path) == 3
    batch = await store.outbox.lease(9, 100_000)
    assert [one.seq for one in batch.records] == [1, 2, 3]
    assert len(await store.outbox.blob(batch.records[1], 65_536, 65_536)) == 70_000 - 65_536
    assert await store.ledger.faults() == []
    assert await store.salvage.reports() == []


async def test_another_file_in_its_place_is_kept_and_not_used(store: Store, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "theirs").rename(tmp_path / "s.db")
    await looked(store)
    assert there(tmp_path) == 1
    (found,) = tmp_path.glob("s.db.found-*")
    assert found.read_bytes() == b"theirs"


async def test_a_removed_lock_file_lets_nobody_in(store: Store, tmp_path: Path) -> None:
    (tmp_path / "s.db.lock").unlink()
    with pytest.raises(StoreLocked):
        async with made(tmp_path):
            pass
    await looked(store)
    (tmp_path / "s.db.lock").unlink()
    await looked(store)
    assert (tmp_path / "s.db.lock").exists()
    await store.intake.append("a", ONE)


async def test_what_cannot_be_written_back_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_fuse()
    monkeypatch.setattr(database, "TIDY_S", 0.0)
    with Disk(tmp_path / "disk") as disk:
        async with made(disk.mount) as store:
            await store.intake.append("a", ONE)
            disk.rule("s.db.back*", ["write"], errno=errno.EIO)
            (disk.mount / "s.db").unlink()
            await looked(store)
            with pytest.raises(StoreError, match="removed while it was open") as error:
                await store.intake.append("a", ONE)
            assert "do not stop the agent" in error.value.hint
            disk.clear()
            await looked(store)
            await store.intake.append("a", ONE)
            assert (await store.ledger.balances())["a"].held == 2


@pytest.mark.parametrize("theirs", [False, True], ids=["no file", "another file"])
async def test_a_writing_back_that_a_crash_cut_off_is_finished(
    tmp_path: Path, theirs: bool
) -> None:
    async with made(tmp_path) as store:
        await store.intake.append("a", ONE)
        epoch = store.epoch
    (tmp_path / "s.db").rename(tmp_path / "s.db.back")
    if theirs:
        (tmp_path / "s.db").write_bytes(b"theirs")
    async with made(tmp_path) as store:
        assert store.epoch == epoch
        assert (await store.ledger.balances())["a"].held == 1
        assert await store.salvage.reports() == []
    assert len(list(tmp_path.glob("s.db.found-*"))) == theirs
