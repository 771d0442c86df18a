"""Verify: exact while the store works on, in slices between the commits, blind to nothing."""

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import config
from agent.clock import Clock
from agent.errors import StoreError
from agent.records import Range
from agent.store import count
from agent.store.intake import New
from agent.store.slices import Slices
from agent.store.store import Store
from agent.store.verify import Report, Verify
from tests.store.shop import LARGE, RAW, made, stocked


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with made(tmp_path) as opened:
        await stocked(opened)
        yield opened


def hasty(store: Store) -> Slices:
    """Slices of a single row each."""
    return Slices(store._database, itertools.count().__next__)


async def verified(store: Store, *, deep: bool = False) -> Report:
    return await Verify(store.slices, deep=deep).run()


async def damage(store: Store, *statements: str) -> None:
    """By a connection of its own, which knows no foreign keys."""
    with sqlite3.connect(store.path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


async def test_a_sound_store_adds_up_and_the_report_says_what_was_counted(store: Store) -> None:
    report = await verified(store, deep=True)
    assert (report.balanced, report.faults) == (True, [])
    counted = {one.name: one for one in report.streams}
    assert counted["a"].held_counted == counted["a"].ledger.held == 15
    assert counted["a"].bytes_counted == counted["a"].bytes > 0
    assert counted["x.raw"].in_ranges == {"processed": 3}
    assert report.pieces == 13 + 2 * 2 + 2  # of a, and of x.raw


SECOND_PIECE = "(SELECT blob FROM records WHERE id = 1 << 40 | 20) << 12 | 1"
# What is done to the file behind the store's back, and what has to be said of it.
DAMAGE = {
    "held": ("UPDATE streams SET held = 16 WHERE name = 'a'", "the ledger says 16 held, 15"),
    "produced": ("UPDATE streams SET produced = 30 WHERE name = 'a'", "does not balance: 30 pro"),
    "delivered": ("UPDATE streams SET delivered = 3 WHERE name = 'a'", "does not balance: 20 pro"),
    "dropped": ("UPDATE dropped SET count = 2 WHERE stream = 1", "does not balance"),
    "bytes": ("UPDATE streams SET bytes = 0 WHERE name = 'a'", "a: the ledger says 0 bytes held"),
    "a row gone": ("DELETE FROM records WHERE id = 1 << 40 | 9", "says 15 held, 14 records are"),
    "a row again": (
        "INSERT INTO records SELECT id - 5, type, boot, mono_ns, wall_us, crc, 0, 0, body"
        " FROM records WHERE id = 1 << 40 | 8",
        "a #3 is held, but the far side is known to have all up to #4",
    ),
    "a row beyond": (
        "INSERT INTO records SELECT id + 50, type, boot, mono_ns, wall_us, crc, 0, 0, body"
        " FROM records WHERE id = 1 << 40 | 8",
        "a #58 is held, but only 20 were produced",
    ),
    "a row of nobody": (
        "INSERT INTO records SELECT id + (7 << 40), type, boot, mono_ns, wall_us, crc, 0, 0, body"
        " FROM records WHERE id = 1 << 40 | 8",
        "of a stream that is not there (row 8)",
    ),
    "body": ("UPDATE records SET body = x'00' WHERE id = 1 << 40 | 9", "a #9: its row is not"),
    "crc": ("UPDATE records SET crc = 1 WHERE id = 1 << 40 | 9", "a #9: its row is not"),
    "no blob": (
        "DELETE FROM chunks WHERE id >> 12 = (SELECT blob FROM records WHERE id = 1 << 40 | 9)",
        "a #9: its blob of 1000 bytes is not there",
    ),
    "a short blob": (
        "UPDATE chunks SET data = x'00' WHERE id >> 12 ="
        " (SELECT blob FROM records WHERE id = 1 << 40 | 9)",
        "a #9: its blob has 1 bytes in place of 1000",
    ),
    "half a blob": (
        f"DELETE FROM chunks WHERE id = {SECOND_PIECE}",
        "a #20: its blob has 65536 bytes in place of 70000",
    ),
    "a moved piece": (
        f"UPDATE chunks SET id = id + 1 WHERE id = {SECOND_PIECE}",
        "a #20: a piece of its blob is missing",
    ),
    "an orphan": (
        "INSERT INTO chunks VALUES (1 << 40, 0, x'00')",
        "1 of 20 pieces of blobs belong",
    ),
    "a shared blob": (
        "UPDATE records SET blob = (SELECT blob FROM records WHERE id = 1 << 40 | 9)"
        " WHERE id = 1 << 40 | 10",
        "records share pieces of blobs, and others belong to none",
    ),
    "a drop over a row": (
        "UPDATE drops SET last = 7 WHERE stream = 1",
        "a: the dropped range 6-7 (operator) has records that are held",
    ),
    "a drop too many": (
        "UPDATE drops SET last = 7 WHERE stream = 1",
        "a: dropped ranges name 2 seqs as operator, the ledger says 1",
    ),
    "a drop beyond": ("UPDATE drops SET last = 70 WHERE stream = 1", "is not within 1-20"),
    "a drop gone": (
        "DELETE FROM drops WHERE stream = 2",
        "x.raw: the ledger says 3 dropped as processed, ranges name 0",
    ),
    "a drop twice": (
        "INSERT INTO drops VALUES (2, 2, 2, 'processed')",
        "x.raw: the dropped range 2-2 (processed) overlaps the one before it",
    ),
    "a drop of nobody": ("INSERT INTO drops VALUES (9, 1, 1, 'x')", "not there (row 9)"),
    "a dead letter gone": (
        "INSERT INTO dead (stream, seq, cause) VALUES (2, 1, 'x')",
        "x.raw #1 is noted as a dead letter, but not held",
    ),
    "settled": ("UPDATE streams SET settled = 99 WHERE name = 'a'", "a: settled up to #99, but"),
    "sendable": ("UPDATE streams SET sendable = 99 WHERE id = 2", "x.raw: sendable up to #99, but"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("small", [False, True], ids=["", "a row a slice"])
async def test_damage_is_found_and_named(store: Store, name: str, small: bool) -> None:
    statement, wanted = DAMAGE[name]
    await damage(store, statement)
    report = await Verify(hasty(store) if small else store.slices).run()
    assert not report.balanced
    assert any(wanted in fault for fault in report.faults), report.faults


async def test_damaged_sound_is_found_by_a_deep_verify_alone(store: Store) -> None:
    await damage(
        store,
        f"UPDATE chunks SET data = CAST(zeroblob(4463) || x'01' AS BLOB) WHERE id = {SECOND_PIECE}",
    )
    assert (await verified(store)).balanced
    report = await verified(store, deep=True)
    assert report.faults == ["a #20: piece 1 of its blob is damaged (CRC)"]


async def test_what_a_former_epoch_left_is_named_with_its_epoch(store: Store) -> None:
    await damage(
        store,
        "INSERT INTO streams (epoch, name, produced, held) VALUES ('0ld', 'a', 9, 9)",
    )
    report = await verified(store)
    assert report.faults == ["a of epoch 0ld: the ledger says 9 held, 0 records are there"]


async def test_no_more_faults_are_told_than_fit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.store.verify.FAULTS_MAX", 4)
    await damage(store, "UPDATE records SET crc = 1")
    report = await verified(store)
    assert (len(report.faults), report.faults_more) == (4, 13)


async def busy(store: Store, over: Callable[[], bool]) -> None:
    """Appends, acks out of order, processed and refused sound, and what eviction does of it."""
    take = await store.spool.begin("x", "b.wav", "2")
    heard = (await store.spool.position("x")).next_seq
    for turn in itertools.count():
        if over():
            return
        await store.intake.append("a", [RAW, LARGE])
        await store.intake.append(f"s{turn % 7}", [New(RAW.type, b"{}"), LARGE])
        batch = await store.outbox.lease(3, 1 << 20)
        if batch and turn % 3:
            span = Range(batch.span.first + turn % 2, batch.span.last)
            if span.first <= span.last:
                await store.outbox.acknowledge(batch.name, [span])
        if turn % 10 == 0:
            store.outbox.rewind()
        take = await store.spool.accept(take, bytes(2000))
        await store.spool.refuse("x", "full")
        if turn % 4 == 0:
            heard += 3
            position = (await store.spool.position("x")).__class__(take.id, 0, next_seq=heard)
            await store.spool.keep("x", [], position, "segments")


@pytest.mark.parametrize("small", [False, True], ids=["", "a row a slice"])
async def test_no_false_alarm_while_everything_moves(tmp_path: Path, small: bool) -> None:
    """Bounds so narrow that eviction, which thins, goes on all the time."""
    rules = [{"match": "a", "bytes_max": 1_500_000, "thin_every": 3}, {"match": "s*"}]
    settings = {"bytes_max": 8 << 20, "evict_at": 0.5, "streams": rules}
    async with made_to_evict(tmp_path, settings) as store:
        await stocked(store)
        ended = False
        moving = [asyncio.create_task(busy(store, lambda: ended)) for _ in range(3)]
        try:
            for _ in range(2 if small else 40):
                verify = Verify(hasty(store) if small else store.slices, deep=True)
                assert (await verify.run()).faults == []
        finally:
            ended = True
            await asyncio.gather(*moving)
        balance = (await store.ledger.balances())["a"]
        assert balance.dropped.get("evicted", 0) > 0, "nothing was evicted meanwhile"
        assert balance.delivered > 4, "nothing was acknowledged meanwhile"
        assert (await verified(store)).balanced


class Between(Slices):
    """A row a slice, and before slice `at` something is done."""

    def __init__(self, store: Store, at: int, step: Callable[[], Awaitable[object]]) -> None:
        super().__init__(store._database, itertools.count().__next__)
        self._left = at
        self._step = step

    async def read(self, operation: Callable[..., Any]) -> Any:
        self._left -= 1
        if self._left == 0:
            await self._step()
        return await super().read(operation)


@pytest.mark.parametrize("at", range(2, 45))
async def test_blobs_whose_numbers_are_used_again_are_counted_as_they_were(
    tmp_path: Path, at: int
) -> None:
    async with made(tmp_path) as store:
        await store.intake.append("a", [LARGE] * 9)

        async def step() -> None:
            await store.decisions.drop((store.epoch, "a"), Range(7, 9))
            await store.intake.append("a", [RAW, LARGE, LARGE])

        report = await Verify(Between(store, at, step)).run()
        assert report.faults == []
        assert (report.streams[0].held_counted, report.pieces) == (9, 18)


@pytest.mark.parametrize("at", range(2, 30))
async def test_records_that_come_back_at_old_seqs_are_no_part_of_the_mark(
    store: Store, at: int
) -> None:
    """As those of a damaged file do, under their old epoch."""
    statements = (
        "INSERT INTO records SELECT 9 << 40 | (id & 0xFF), type, boot, mono_ns, wall_us,"
        " row_crc(9 << 40 | (id & 0xFF), type, boot, mono_ns, wall_us, 0, 0, body), 0, 0,"
        " body FROM records WHERE id BETWEEN 1 << 40 | 10 AND 1 << 40 | 15",
        "UPDATE streams SET held = held + 6, delivered = delivered - 6, bytes = bytes + 6 * 8"
        " WHERE id = 9",
    )

    def salvage(connection: sqlite3.Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    begin = (
        "INSERT INTO streams (id, epoch, name, produced, delivered) VALUES (9, '0ld', 'a', 20, 20)"
    )
    await store._database.write(lambda c: c.execute(begin).rowcount)
    verify = Verify(Between(store, at, lambda: store._database.write(salvage)))
    assert (await verify.run()).faults == []
    assert (await verified(store)).faults == []


def made_to_evict(folder: Path, settings: dict[str, object]) -> Store:
    rules = {"path": str(folder / "s.db"), "when_full": "evict", **settings}
    return Store(msgspec.convert(rules, config.Store), Clock())


async def test_a_commit_waits_for_no_more_than_one_slice(store: Store) -> None:
    """During each slice a producer comes; its commit is there before the next slice begins."""
    loop = asyncio.get_running_loop()
    said: list[str] = []
    coming: list[asyncio.Future[object]] = []
    ticks = itertools.count()

    def clock_s() -> float:
        """Asked first when a slice begins, then after each row; in the store's thread."""
        if said[-1] == "BEGIN":
            append = store.intake.append("p", [RAW])
            coming.append(asyncio.run_coroutine_threadsafe(append, loop))  # type: ignore[arg-type]
            said.append("a producer came")
        return float(next(ticks))

    await store._database.read(
        lambda c: c.set_trace_callback(
            lambda sql: said.append(sql) if sql.startswith("BEGIN") else None
        )
    )
    report = await Verify(Slices(store._database, clock_s)).run()
    await asyncio.gather(*map(asyncio.wrap_future, coming))
    assert report.balanced
    assert len(coming) > 40, "so many slices"
    said = said[said.index("BEGIN") :]
    one = ["BEGIN", "a producer came", "BEGIN IMMEDIATE"]
    assert [one] * len(coming) == [said[i : i + 3] for i in range(0, 3 * len(coming), 3)]


async def test_two_verifies_wait_for_each_other(store: Store) -> None:
    slices = hasty(store)
    reports = await asyncio.gather(*(Verify(slices).run() for _ in range(3)))
    assert [report.faults for report in reports] == [[], [], []]


async def test_a_file_opened_anew_meanwhile_is_said_and_the_next_verify_is_sound(
    store: Store,
) -> None:
    verify = asyncio.create_task(Verify(hasty(store)).run())
    while not verify.done():
        await store._database.read(count.forget)
        await asyncio.sleep(0)
    with pytest.raises(StoreError, match="opened anew"):
        verify.result()
    assert (await verified(store)).balanced


async def test_nothing_of_a_verify_is_left_behind(store: Store) -> None:
    await verified(store)
    left = "SELECT name FROM temp.sqlite_master WHERE name LIKE 'verify%'"
    assert await store._database.read(lambda c: c.execute(left).fetchall()) == []
    verify = Verify(hasty(store))
    task = asyncio.create_task(verify.run())
    while not verify.counted and not task.done():
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (await verified(store)).balanced
