"""An archive of a command: one record, however often it is kept; none where there is no room."""

from pathlib import Path

import msgspec
import pytest

from agent import config
from agent.clock import Clock
from agent.errors import StoreDamaged, StoreFull
from agent.records import RecordType, Upload
from agent.store.journal import New
from agent.store.store import Store
from agent.store.uploads import STREAM, kept

UPLOAD = Upload("log", "log-one.tar.gz", "00", 100_000, "one")


async def ordered(store: Store) -> None:
    new = New(id="one", digest=b"d", name="log.upload", args=b"{}", door="http")
    await store.journal.accept(new)


async def test_it_is_one_record_with_the_archive_as_its_blob(tmp_path: Path) -> None:
    content = b"x" * 100_000
    async with Store(config.Store(path=str(tmp_path / "s.db")), Clock()) as store:
        await ordered(store)
        first = await store.uploads.keep(UPLOAD, content)
        again = await store.uploads.keep(UPLOAD, b"another one, made after a crash")
        assert (first.stream, first.seq) == (STREAM, 1)
        assert again == first
        entry = await store.journal.get("one")
        assert entry
        assert kept(entry.step) == first
        lease = await store.outbox.lease(10, 1 << 20)
        assert lease
        (record,) = lease.records
        assert (record.type, record.blob_bytes) == (RecordType.SUPPORT, len(content))
        assert msgspec.json.decode(record.body, type=Upload) == UPLOAD
        assert await store.outbox.blob(record, 0, len(content)) == content
        balance = (await store.ledger.balances())[STREAM]
        assert (balance.produced, balance.held) == (1, 1)


async def test_where_there_is_no_room_nothing_is_kept(tmp_path: Path) -> None:
    settings = config.Store(path=str(tmp_path / "s.db"), bytes_max=1 << 20)
    async with Store(settings, Clock()) as store:
        await ordered(store)
        with pytest.raises(StoreFull):
            await store.uploads.keep(UPLOAD, bytes(2 << 20))
        assert STREAM not in await store.ledger.balances()
        entry = await store.journal.get("one")
        assert entry
        assert not entry.step


async def test_a_command_that_nobody_knows_keeps_nothing(tmp_path: Path) -> None:
    async with Store(config.Store(path=str(tmp_path / "s.db")), Clock()) as store:
        with pytest.raises(StoreDamaged):
            await store.uploads.keep(UPLOAD, b"x")
        assert STREAM not in await store.ledger.balances()
