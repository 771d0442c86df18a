"""Who of those that come by the API has a place in the ledger."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import config
from agent.audio import places
from agent.audio.places import Places
from agent.clock import Clock
from agent.errors import BusyError, NotNow
from agent.store.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store(config.Store(path=str(tmp_path / "s.db")), Clock()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SOURCES_MAX", 2)
    monkeypatch.setattr(places, "NAMES_MAX", 3)


async def placed(found: Places, source: str) -> str | None:
    gone = await found.make(source)
    found.use(source)
    return gone


async def test_the_longest_unused_that_is_idle_gives_its_place(store: Store) -> None:
    busy = {"a"}
    found = Places(store.takes, lambda: {"mic"}, lambda source: source in busy)
    await found.begin()
    found.use("mic")
    assert [await placed(found, one) for one in "aba"] == [None] * 3
    assert await placed(found, "c") == "b", "a is in use, and mic is the configuration's"
    busy.add("c")
    with pytest.raises(BusyError, match="something of each is held or comes in"):
        await found.make("b")
    assert await found.make("a") is None, "it has one"


async def test_no_more_names_than_a_file_may_know(store: Store) -> None:
    found = Places(store.takes, set, lambda _: False)
    await found.begin()
    assert [await placed(found, one) for one in "abcab"] == [None, None, "a", "b", "c"]
    with pytest.raises(NotNow, match="3 sources came by the API") as refused:
        await found.make("d")
    assert "`name`" in refused.value.hint


async def test_one_that_may_lose_its_place_takes_no_sound_meanwhile(store: Store) -> None:
    found = Places(store.takes, set, lambda _: False)
    await found.begin()
    for one in "ab":
        await placed(found, one)
    making = asyncio.create_task(found.make("c"))
    await asyncio.sleep(0)
    with pytest.raises(BusyError, match="makes room"):
        found.check("b")
    assert await making == "a"
    found.check("b")
