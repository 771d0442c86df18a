"""Dead letters of the link: held, told, never leased; the mark passes them; sent again if asked."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import config
from agent.clock import Clock
from agent.records import Drop, Range, RecordType
from agent.store.decisions import Dropped, Retried
from agent.store.intake import New
from agent.store.outbox import Buried, Settled
from agent.store.store import Store
from tests.outside import DEADLINE_S

ROOM = 1 << 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Stream a: 1-9, of which 5 is dead, told and acknowledged with the rest."""
    async with Store(config.Store(path=str(tmp_path / "s.db")), Clock()) as opened:
        await opened.intake.append("a", [New(RecordType.SEGMENT, b"{}", b"blob")] * 9)
        assert await opened.outbox.bury((opened.epoch, "a"), 5, "refused by the ingest")
        batch = await opened.outbox.lease(100, ROOM)
        assert [one.seq for one in batch.records] == [1, 2, 3, 4, 6, 7, 8, 9]
        assert (batch.span, batch.drops) == (Range(1, 9), [Drop(5, 5, "dead")])
        settled = await opened.outbox.acknowledge(batch.name, [Range(1, 9)])
        assert settled == Settled(8, 9, moved=True)
        yield opened
        assert await opened.ledger.faults() == []


async def test_it_stays_held_and_is_shown(store: Store) -> None:
    name = (store.epoch, "a")
    balance = (await store.ledger.balances())["a"]
    assert (balance.delivered, balance.held, balance.dropped) == (8, 1, {})
    assert await store.outbox.lease(9, ROOM) is None
    assert await store.outbox.acknowledge(name, [Range(1, 9)]) == Settled(0, 9, moved=False)
    (line,) = (await store.inventory.page(name, dead=True)).records
    assert (line.seq, line.state, line.cause) == (5, "dead", "refused by the ingest")
    assert await store.outbox.waiting() == []
    assert await store.outbox.buried() == [Buried(name, 1, 5, "refused by the ingest")]


async def test_retried_it_is_leased_alone_and_goes_with_an_ack_that_came_later(
    store: Store,
) -> None:
    name = (store.epoch, "a")
    store.outbox.more.clear()
    assert await store.decisions.retry(name) == Retried(1, [], None, sending=1)
    assert store.outbox.more.is_set()
    early = await store.outbox.acknowledge(name, [Range(1, 9)])
    assert early.delivered == 0, "it was not sent yet"
    batch = await store.outbox.lease(9, ROOM)
    assert ([one.seq for one in batch.records], batch.span) == ([5], Range(5, 5))
    assert batch.drops == []
    assert await store.outbox.buried() == []
    assert [one.records for one in await store.outbox.waiting()] == [1]
    told = await store.outbox.acknowledge(name, [Range(1, 9)], [Range(5, 5)])
    assert told.delivered == 0, "the far side has not stored it"
    assert (await store.outbox.lease(9, ROOM)).span == Range(5, 5), "told, but not sent"
    told = await store.outbox.acknowledge(name, [Range(1, 9)], [Range(5, 5)], lambda: [5])
    assert told.delivered == 0
    assert store.outbox.out(*name) == [Range(5, 5)], "no ack makes it go twice"
    store.outbox.rewind()
    await store.outbox.acknowledge(name, [Range(1, 9)], [Range(5, 5)], lambda: [5])
    assert (await store.outbox.lease(9, ROOM)).span == Range(5, 5)
    assert (await store.outbox.acknowledge(name, [Range(1, 9)])).delivered == 1
    assert (await store.ledger.balances())["a"].held == 0
    assert await store.outbox.buried() == []


async def test_what_the_far_side_takes_for_dead_is_kept_whatever_it_is_here(store: Store) -> None:
    """Its dead letter's row was lost with a damaged file: it is held as any other."""
    name = (store.epoch, "a")
    await store.intake.append("a", [New(RecordType.SEGMENT, b"{}")] * 3)  # 10-12
    batch = await store.outbox.lease(9, ROOM)
    settled = await store.outbox.acknowledge(name, [Range(1, 12)], [Range(5, 5), Range(11, 11)])
    assert (batch.span, settled) == (Range(10, 12), Settled(2, 12, moved=True))
    again = await store.outbox.lease(9, ROOM)
    assert [one.seq for one in again.records] == [11]
    assert (await store.outbox.acknowledge(name, [Range(1, 12)], [Range(5, 5)])).delivered == 1


async def test_retried_it_may_be_buried_again(store: Store) -> None:
    name = (store.epoch, "a")
    await store.decisions.retry(name, [5])
    assert (await store.outbox.lease(9, ROOM)).span == Range(5, 5)
    assert await store.outbox.bury(name, 5, "again")
    assert not store.outbox.waits(name)
    assert await store.outbox.lease(9, ROOM) is None
    assert (await store.outbox.acknowledge(name, [Range(1, 9)])).delivered == 0


async def test_an_operator_gives_it_up(store: Store) -> None:
    name = (store.epoch, "a")
    assert await store.decisions.drop(name, Range(5, 5)) == Dropped(1, None)
    assert (await store.ledger.balances())["a"].dropped == {"operator": 1}
    assert await store.outbox.bury(name, 5, "late") is False
    assert await store.outbox.bury((store.epoch, "none"), 5, "late") is False


async def test_a_dead_letter_that_was_told_in_a_range_is_not_told_again_and_again(
    store: Store,
) -> None:
    name = (store.epoch, "a")
    await store.intake.append("a", [New(RecordType.SEGMENT, b"{}")] * 6)  # 10-15
    await store.outbox.bury(name, 13, "poison")
    first = await store.outbox.lease(2, ROOM)
    second = await store.outbox.lease(9, ROOM)
    assert (first.span, second.span) == (Range(10, 11), Range(12, 15))
    assert second.drops == [Drop(13, 13, "dead")]
    above = await store.outbox.acknowledge(name, [Range(1, 9), second.span])
    assert above == Settled(3, 9, moved=False)
    assert await store.outbox.lease(9, ROOM) is None
    assert await store.outbox.acknowledge(name, [first.span]) == Settled(2, 15, moved=True)


async def test_one_of_a_former_epoch_is_sent_again_too(store: Store) -> None:
    await store._database.write(lambda c: c.execute("UPDATE streams SET epoch = '0ld'").rowcount)
    name = ("0ld", "a")
    assert (await store.decisions.retry(name)).sending == 1
    batch = await store.outbox.lease(9, ROOM)
    assert (batch.name, batch.span) == (name, Range(5, 5))


async def test_a_damaged_one_is_not_sent_again(store: Store) -> None:
    await store._database.write(lambda c: c.execute("UPDATE chunks SET crc = crc + 1").rowcount)
    assert await store.decisions.retry((store.epoch, "a")) == Retried(0, [5], None)


async def test_a_damaged_file_gives_it_back_as_what_it_was(tmp_path: Path) -> None:
    settings = config.Store(path=str(tmp_path / "s.db"))
    async with Store(settings, Clock()) as store:
        name = (store.epoch, "a")
        await store.intake.append("a", [New(RecordType.SEGMENT, b"{}", b"blob")] * 9)
        for seq in (2, 7):
            await store.outbox.bury(name, seq, "poison")
        batch = await store.outbox.lease(4, ROOM)
        await store.outbox.acknowledge(name, [batch.span])
    with (tmp_path / "s.db").open("r+b") as file:
        file.seek(16)
        file.write(b"\0\0")  # no page size
    async with Store(settings, Clock()) as store:
        saving = asyncio.create_task(store.salvage.run())
        try:
            async with asyncio.timeout(DEADLINE_S):
                while [one.state for one in await store.salvage.reports()] != ["done"]:
                    await asyncio.sleep(0.01)
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
        (report,) = await store.salvage.reports()
        assert (report.saved, report.lost) == (5, 0)
        assert await store.ledger.faults() == []
        found = (await store.inventory.page(name, dead=True)).records
        assert [(line.seq, line.state, line.cause) for line in found] == [
            *((2, "dead", "poison"), (7, "dead", "poison"))
        ]
        rest = await store.outbox.lease(9, ROOM)
        assert ([one.seq for one in rest.records], rest.drops) == ([6, 8, 9], [Drop(7, 7, "dead")])
        await store.decisions.retry(name, [2])
        assert (await store.outbox.lease(9, ROOM)).span == Range(2, 2)
