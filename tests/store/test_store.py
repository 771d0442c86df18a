"""The store with real SQLite: durable, in step with its ledger, bounded, whole after any end."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent import config
from agent.clock import Clock
from agent.errors import ProtocolError, StoreError, StoreFull, StoreLocked
from agent.records import Drop, Position, Range, Segment
from agent.store import head, streams
from agent.store.database import Database
from agent.store.outbox import Settled
from agent.store.store import Store
from tests.outside import ROOT

PCM = bytes(range(256)) * 100


def made(path: Path, bytes_max: int = 1 << 30) -> Store:
    return Store(config.Store(path=str(path / "s.db"), bytes_max=bytes_max), Clock())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with made(tmp_path) as opened:
        yield opened


def segment(start: int) -> Segment:
    return Segment(f"x/1/{start}", "x", 1, "a.wav", start, 10, 0.9, 0, "m", "CPU", "00", 4)


async def fill(store: Store, count: int, blob: bytes = b"flac") -> None:
    """`count` segments of source x, without raw audio."""
    found = [(segment(i), blob) for i in range(count)]
    await store.spool.keep("x", found, Position(1, count), "segments")


async def test_raw_audio_is_given_back_as_it_was_accepted(store: Store) -> None:
    take = await store.spool.begin("x", "a.wav", "1:1")
    for _ in range(3):
        take = await store.spool.accept(take, PCM)
    take = await store.spool.accept(take, b"", end=True)
    rows = await store.spool.waiting("x", 1, 10)
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert [row[1].offset for row in rows] == [0, 12_800, 25_600, 38_400]
    assert [row[3] for row in rows] == [PCM, PCM, PCM, b""]
    assert rows[-1][1].end
    assert (take.samples, take.ended, take.durability) == (38_400, True, "group")
    assert take.commit_s > 0


async def test_a_take_goes_on_where_it_was_after_the_store_was_closed(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        epoch = store.epoch
        await store.spool.accept(await store.spool.begin("x", "a.wav", "1:1"), PCM)
    async with made(tmp_path) as store:
        assert store.epoch == epoch
        assert (await store.spool.begin("x", "a.wav", "1:1")).samples == 12_800
        assert (await store.spool.begin("x", "a.wav", "2:1")).samples == 0  # another file
        assert (await store.spool.begin("x", "live", "boot", alone=True)).samples == 0
        assert (await store.spool.begin("x", "a.wav", "1:1")).samples == 0  # was forgotten


async def test_kept_segments_free_their_raw_audio_and_both_are_counted(store: Store) -> None:
    take = await store.spool.begin("x", "a.wav", "1:1")
    for _ in range(4):
        take = await store.spool.accept(take, PCM)
    position = Position(take.id, 5, 3, 4, "m", b"memory")
    seqs = await store.spool.keep("x", [(segment(0), b"flac")], position, "segments")
    assert seqs == [1]
    assert await store.spool.position("x") == position
    ledger = await store.ledger.balances()
    assert (ledger["x.raw"].held, ledger["x.raw"].dropped) == (1, {"processed": 3})
    assert (ledger["x.segments"].produced, ledger["x.segments"].held) == (1, 1)
    assert await store.ledger.faults() == []
    batch = await store.outbox.lease(10, 10_000)
    assert batch is not None
    assert batch.stream == "x.segments"
    assert await store.outbox.lease(10, 10_000) is None, "raw audio is not for the uplink"


async def test_keep_all_sends_raw_audio_once_it_was_heard(store: Store) -> None:
    take = await store.spool.begin("x", "a.wav", "1:1")
    for _ in range(3):
        take = await store.spool.accept(take, PCM)
    assert await store.outbox.lease(10, 10_000) is None, "not heard yet"
    await store.spool.keep("x", [], Position(take.id, 5, next_seq=3), "all")
    batch = await store.outbox.lease(10, 10_000)
    assert batch is not None
    assert (batch.stream, batch.span) == ("x.raw", Range(1, 2))
    assert await store.outbox.blob(batch.records[0], 0, 1 << 20) == PCM
    assert await store.outbox.acknowledge((store.epoch, "x.raw"), [Range(1, 3)]) == Settled(
        2, 2, moved=True
    )
    assert [row[0] for row in await store.spool.waiting("x", 1, 9)] == [3], "not heard, not gone"


async def test_a_lease_is_out_until_it_is_acknowledged_or_rewound(store: Store) -> None:
    await fill(store, 5)
    first = await store.outbox.lease(2, 10_000)
    second = await store.outbox.lease(2, 10_000)
    assert first is not None
    assert second is not None
    assert (first.span, second.span) == (Range(1, 2), Range(3, 4))
    assert await store.outbox.acknowledge((store.epoch, "x.segments"), [Range(3, 3)]) == Settled(
        1, 0, moved=False
    )
    assert store.outbox.waits((store.epoch, "x.segments"))
    store.outbox.rewind()
    again = await store.outbox.lease(10, 10_000)
    assert again is not None
    assert [record.seq for record in again.records] == [1, 2, 4, 5]
    assert await store.outbox.acknowledge((store.epoch, "x.segments"), [Range(1, 5)]) == Settled(
        4, 5, moved=True
    )
    assert not store.outbox.waits((store.epoch, "x.segments"))
    assert await store.ledger.faults() == []


async def test_a_lease_is_bounded_by_bytes_but_never_empty(store: Store) -> None:
    await fill(store, 5)
    batch = await store.outbox.lease(5, 1)
    assert batch is not None
    assert len(batch.records) == 1


async def test_streams_take_turns(store: Store) -> None:
    await fill(store, 3)
    await store.spool.keep("y", [(segment(i), b"") for i in range(3)], Position(), "segments")
    order = []
    while batch := await store.outbox.lease(1, 1000):
        order.append(batch.stream)
    assert order[:4] in (["x.segments", "y.segments"] * 2, ["y.segments", "x.segments"] * 2)


async def test_an_ack_of_another_epoch_changes_nothing(store: Store) -> None:
    await fill(store, 2)
    assert await store.outbox.acknowledge(("0" * 16, "x.segments"), [Range(1, 2)]) == Settled(
        0, 0, moved=False
    )
    assert (await store.ledger.balances())["x.segments"].held == 2


async def test_an_ack_beyond_what_was_produced_is_refused_whole(store: Store) -> None:
    await fill(store, 2)
    with pytest.raises(ProtocolError, match="only 2 were ever produced"):
        await store.outbox.acknowledge((store.epoch, "x.segments"), [Range(1, 2), Range(3, 9)])
    with pytest.raises(ProtocolError):
        await store.outbox.acknowledge((store.epoch, "unknown"), [Range(1, 1)])
    with pytest.raises(ProtocolError, match="without a name"):
        await store.outbox.acknowledge(("", "x.segments"), [Range(1, 2)])
    assert (await store.ledger.balances())["x.segments"].held == 2


async def test_a_large_blob_is_read_back_from_any_byte(store: Store) -> None:
    blob = bytes(i * 7 % 251 for i in range(200_000))
    await fill(store, 1, blob)
    batch = await store.outbox.lease(1, 1000)
    assert batch is not None
    for start, size in ((0, 65_536), (65_530, 20), (131_072, 70_000), (199_999, 5), (1, 150_000)):
        assert await store.outbox.blob(batch.records[0], start, size) == blob[start : start + size]


async def test_at_the_bound_new_audio_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    async with made(tmp_path, bytes_max=200_000) as store:
        take = await store.spool.begin("x", "a.wav", "1:1")
        accepted = 0
        with pytest.raises(StoreFull, match="bytes_max"):
            for _ in range(100):
                take = await store.spool.accept(take, PCM)
                accepted += 1
        await store.spool.refuse("x", "full")
        balance = (await store.ledger.balances())["x.raw"]
        assert (balance.produced, balance.held) == (accepted + 1, accepted)
        assert balance.dropped == {"full": 1}
        assert balance.balanced
        await store.spool.keep("x", [], Position(take.id, 9, next_seq=accepted + 1), "segments")
        await store.spool.accept(take, PCM)  # there is room again
        assert await store.ledger.faults() == []


async def test_a_failing_operation_does_not_take_its_neighbours_with_it(tmp_path: Path) -> None:
    async with Database(tmp_path / "d.db", Clock()) as database:
        await database.write(lambda c: c.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)"))

        def put(x: int) -> "asyncio.Future[object]":
            return asyncio.ensure_future(
                database.write(lambda c: c.execute("INSERT INTO t VALUES (?)", (x,)).rowcount)
            )

        done = await asyncio.gather(*map(put, (1, 2, 2, 3)), return_exceptions=True)
        assert [d for d in done if d == 1] == [1, 1, 1]
        assert sum(isinstance(d, StoreError) for d in done) == 1
        rows = await database.read(lambda c: c.execute("SELECT x FROM t").fetchall())
        assert rows == [(1,), (2,), (3,)]


async def test_one_agent_holds_a_store(tmp_path: Path) -> None:
    async with made(tmp_path):
        with pytest.raises(StoreLocked, match="another agent"):
            async with made(tmp_path):
                pass


async def test_a_newer_store_is_left_alone(tmp_path: Path) -> None:
    async with made(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("UPDATE meta SET value = 99 WHERE key = 'opens_from'")
    db.close()
    newer = msgspec.structs.replace(head.read(tmp_path / "s.db"), version=99)
    head.write(tmp_path / "s.db", newer)
    with pytest.raises(StoreError, match="schema 99"):
        async with made(tmp_path):
            pass


async def test_garbage_in_place_of_the_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match="not a SQLite file"):
        async with made(tmp_path):
            pass


async def test_commits_are_fsynced(tmp_path: Path) -> None:
    async with Database(tmp_path / "d.db", Clock()) as database:
        assert await database.read(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (2,)
        assert await database.read(lambda c: c.execute("PRAGMA journal_mode").fetchone()) == (
            "wal",
        )


KILLED = """
import asyncio, os, sys
from agent import config
from agent.clock import Clock
from agent.records import Position, Range
from agent.store.store import Store
from tests.store.test_store import PCM, segment

async def main(path, seed):
    async with Store(config.Store(path=path), Clock()) as store:
        take = await store.spool.begin("x", "a.wav", "1:1")
        for i in range(10**6):
            take = await store.spool.accept(take, PCM)
            print("accepted", take.samples, flush=True)
            if i % 3 == 2:
                row = (await store.spool.waiting("x", 1, 1))[0]
                await store.spool.keep("x", [(segment(i), b"f" * 100_000)],
                    Position(take.id, i, next_seq=row[0] + 2), "segments")
                print("kept", flush=True)
            if i % 7 == 6:
                batch = await store.outbox.lease(1, 1000)
                await store.outbox.acknowledge((store.epoch, batch.stream), [batch.span])
                print("acked", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("lines", [1, 5, 17, 40, 111])
async def test_killed_anywhere_nothing_accepted_is_missing(tmp_path: Path, lines: int) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "s.db"), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        said = [child.stdout.readline().split() for _ in range(lines)]
        child.kill()
        said += [line.split() for line in child.stdout.read().splitlines()]
    accepted = max(int(words[1]) for words in said if words[0] == "accepted" and len(words) == 2)
    async with made(tmp_path) as store:
        take = await store.spool.begin("x", "a.wav", "1:1")
        assert take.samples in (accepted, accepted + len(PCM) // 2)  # one may be kept, not said
        rows = await store.spool.waiting("x", 1, 10_000)
        held = [row[0] for row in rows]
        assert held == list(range(held[0], take.samples * 2 // len(PCM) + 1))
        assert all(row[3] == PCM for row in rows)
        assert await store.ledger.faults() == []
        kept = sum(words == ["kept"] for words in said)
        acked = sum(words == ["acked"] for words in said)
        segments = (await store.ledger.balances()).get("x.segments")
        assert (segments.produced if segments else 0) in (kept, kept + 1)
        assert (segments.delivered if segments else 0) in (acked, acked + 1)
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


async def test_what_was_the_uplinks_stays_so_when_raw_audio_is_no_longer_sent(
    store: Store,
) -> None:
    take = await store.spool.begin("x", "a.wav", "1:1")
    for _ in range(4):
        take = await store.spool.accept(take, PCM)
    await store.spool.keep("x", [], Position(take.id, 5, next_seq=3), "all")
    await store.spool.keep("x", [], Position(take.id, 9, next_seq=5), "segments")
    balance = (await store.ledger.balances())["x.raw"]
    assert (balance.held, balance.dropped) == (2, {"processed": 2})
    batch = await store.outbox.lease(10, 10_000)
    assert batch is not None
    assert [record.seq for record in batch.records] == [1, 2]
    await store.outbox.acknowledge((store.epoch, "x.raw"), [batch.span])
    assert (await store.ledger.balances())["x.raw"].delivered == 2


async def test_a_rewind_while_a_lease_is_read_is_not_undone(store: Store) -> None:
    await fill(store, 4)
    assert (await store.outbox.lease(2, 10_000)).span == Range(1, 2)
    leasing = asyncio.create_task(store.outbox.lease(2, 10_000))
    await asyncio.sleep(0)  # it waits for the store's thread now
    store.outbox.rewind()
    assert await leasing is None, "not 3-4: whoever asked may be gone with the connection"
    assert store.outbox.more.is_set()
    assert (await store.outbox.lease(2, 10_000)).span == Range(1, 2)
    leasing = asyncio.create_task(store.outbox.lease(2, 10_000))
    await asyncio.sleep(0)
    leasing.cancel()
    store.outbox.rewind()
    await store.ledger.balances()  # behind the lease that nobody waits for
    assert (await store.outbox.lease(2, 10_000)).span == Range(1, 2)


async def test_a_lost_batch_of_dropped_ranges_is_told_again(store: Store) -> None:
    """The mark passes only what the far side knows: delivered records and told drops."""

    def operation(connection: sqlite3.Connection) -> None:
        key = streams.stream_id(connection, "x.segments")
        for _ in range(3):
            streams.drop_unheld(connection, key, "full")

    await fill(store, 2)  # 1 2
    await store._database.write(operation)  # 3-5
    await fill(store, 1)  # 6
    first = await store.outbox.lease(10, 10_000)
    assert first.drops == [Drop(3, 5, "full")]
    await store.outbox.acknowledge((store.epoch, "x.segments"), [Range(1, 2)])
    store.outbox.rewind()
    again = await store.outbox.lease(10, 10_000)
    assert (again.span, again.drops) == (Range(3, 6), [Drop(3, 5, "full")])
    # A far side that began anew knows nothing of 1-2: delivered, so nobody waits for them.
    await store.outbox.acknowledge((store.epoch, "x.segments"), [Range(3, 6)])
    await fill(store, 1)
    assert (await store.outbox.lease(10, 10_000)).span == Range(7, 7)


async def test_an_operation_that_spoils_the_connection_costs_only_itself(store: Store) -> None:
    await fill(store, 1)
    with pytest.raises(StoreError):
        await store._database.write(lambda connection: connection.close())
    await fill(store, 1)
    assert (await store.ledger.balances())["x.segments"].held == 2


async def test_a_fault_in_the_stores_thread_reaches_everybody(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        database = store._database
        watching = asyncio.create_task(store.run())
        database._run = None  # type: ignore[assignment]  # as a bug of ours would
        with pytest.raises(TypeError):
            await fill(store, 1)
        with pytest.raises(TypeError):
            await watching
        with pytest.raises(StoreError, match="thread has ended"):
            await fill(store, 1)


async def test_at_the_bound_a_take_can_still_end(tmp_path: Path) -> None:
    async with made(tmp_path, bytes_max=200_000) as store:
        take = await store.spool.begin("x", "a.wav", "1:1")
        with pytest.raises(StoreFull):
            while True:
                take = await store.spool.accept(take, PCM)
        take = await store.spool.accept(take, b"", end=True)
        assert take.ended
