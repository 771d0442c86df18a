"""Ready: while every domain takes calls, and the store records."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError, StoreFull
from agent.health.checks import ready
from agent.health.checks.ready import Ready
from agent.records import RecordType
from agent.store.database import Database
from agent.store.intake import New
from agent.store.store import ROOM_BYTES, Store


class Place:
    """A domain, as far as it is looked at."""

    def __init__(self, *, up: bool) -> None:
        self.ready = asyncio.Event()
        if up:
            self.ready.set()


def asked(store: Any, *domains: Place) -> Ready:
    return Ready(lambda: cast(Any, list(domains)), store)


async def fill(store: Store) -> None:
    with pytest.raises(StoreFull):
        while True:
            await store.intake.append("a", [New(RecordType.SEGMENT, b"{}", bytes(20_000))])


async def test_ready_is_every_domain_and_the_store(tmp_path: Path) -> None:
    async with Store(Settings(path=str(tmp_path / "s.db")), Clock()) as store:
        assert await asked(store, Place(up=True), Place(up=True)).now()
        assert not await asked(store, Place(up=True), Place(up=False)).now()
    assert not await asked(store, Place(up=True)).now(), "the store is closed"


async def test_a_store_that_refuses_records_is_not_ready(tmp_path: Path) -> None:
    settings = Settings(path=str(tmp_path / "s.db"), bytes_max=1 << 20)
    async with Store(settings, Clock()) as store:
        await store.takes_records()
        await fill(store)
        with pytest.raises(StoreFull, match=r"store\.bytes_max"):
            await store.takes_records()
        assert not await asked(store, Place(up=True)).now()


async def test_a_store_that_gives_up_the_old_takes_records_when_it_is_full(tmp_path: Path) -> None:
    settings = Settings(
        path=str(tmp_path / "s.db"), bytes_max=1 << 20, when_full="evict", evict_at=1.0
    )
    async with Store(settings, Clock()) as store:
        for _ in range(80):
            await store.intake.append("a", [New(RecordType.SEGMENT, b"{}", bytes(20_000))])
        assert await store.used_bytes() > (1 << 20) - ROOM_BYTES
        await store.takes_records()


async def test_a_disk_that_was_full_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(Settings(path=str(tmp_path / "s.db")), Clock()) as store:
        monkeypatch.setattr(Database, "short_of_room", property(lambda _: True))
        with pytest.raises(StoreFull, match="the disk is full"):
            await store.takes_records()


async def test_it_writes_nothing(tmp_path: Path) -> None:
    async with Store(Settings(path=str(tmp_path / "s.db")), Clock()) as store:
        before = store.commits.count
        for _ in range(20):
            await store.takes_records()
        assert store.commits.count == before


async def test_a_store_that_does_not_answer_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hung:
        async def takes_records(self) -> None:
            await asyncio.Event().wait()

    class Torn:
        async def takes_records(self) -> None:
            raise StoreError("torn", "mend it")

    monkeypatch.setattr(ready, "PATIENCE_S", 0.01)
    assert not await asked(Hung(), Place(up=True)).now()
    assert not await asked(Torn(), Place(up=True)).now()
