"""The bounds: kept at each commit; what gives way is the least valuable, never what is leased."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import config
from agent.clock import Clock
from agent.errors import StoreFull
from agent.records import Position, Range, RecordType, Segment, Stamp
from agent.store.intake import New
from agent.store.store import Store
from tests.outside import DEADLINE_S

BODY = b'{"x":"' + b"y" * 900 + b'"}'
SEGMENT = Segment("x/1/0", "x", 1, "a.wav", 0, 16_000, 0.9, 1, "m", "CPU", "0" * 64, 4)
SOME = [New(RecordType.SEGMENT, BODY)]
WITH_BLOB = [New(RecordType.SEGMENT, b"{}", bytes(8000))]


class Hands(Clock):
    """A clock that a test turns; a restart of the machine is another boot."""

    def __init__(self, boot: str = "first", at_s: float = 100.0) -> None:
        self.boot = boot
        self.at_s = at_s
        self.wall_s = 1e9

    def monotonic(self) -> float:
        return self.at_s

    def wall(self) -> float:
        return self.wall_s

    def stamp(self) -> Stamp:
        return Stamp(self.boot, int(self.at_s * 1e9), int(self.wall_s * 1e6))


def made(folder: Path, clock: Clock | None = None, **settings: Any) -> Store:
    whole = {"path": str(folder / "s.db"), "bytes_max": 1024**2, "when_full": "evict", **settings}
    return Store(msgspec.convert(whole, config.Store), clock or Clock())


async def seqs(store: Store, stream: str) -> list[int]:
    rows = await store._database.read(
        lambda c: c.execute(
            "SELECT seq FROM records JOIN streams ON streams.id = stream"
            " WHERE name = ? ORDER BY seq",
            (stream,),
        ).fetchall()
    )
    return [seq for (seq,) in rows]


async def fill(store: Store, stream: str, count: int) -> None:
    for _ in range(count):
        await store.intake.append(stream, SOME)


async def test_in_all_the_store_never_takes_more_than_its_bound(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        for i in range(1500):
            await store.intake.append("abc"[i % 3], SOME)
            if i % 50 == 0:
                assert await store.used_bytes() <= store.bytes_max
        ledger = await store.ledger.balances()
        assert sum(b.dropped["evicted"] for b in ledger.values()) > 500
        assert sum(b.produced for b in ledger.values()) == 1500
        for name in "abc":
            held = await seqs(store, name)
            assert held == list(range(500 - len(held) + 1, 501)), "the oldest went"
        assert await store.ledger.faults() == []


async def test_by_default_the_new_is_refused_and_the_old_stays(tmp_path: Path) -> None:
    async with made(tmp_path, when_full="refuse") as store:
        with pytest.raises(StoreFull, match="bytes_max") as error:
            await fill(store, "a", 1500)
        assert "evict" in error.value.hint
        held = await seqs(store, "a")
        assert held == list(range(1, len(held) + 1))
        assert await store.used_bytes() <= store.bytes_max
        batch = await store.outbox.lease(100, 1 << 20)
        await store.outbox.acknowledge((store.epoch, "a"), [batch.span])
        await fill(store, "a", 50)
        assert await store.ledger.faults() == []


async def test_the_stream_of_low_priority_goes_first_whole(tmp_path: Path) -> None:
    rules = [{"match": "dull.*", "priority": 1}, {"match": "*", "priority": 7}]
    async with made(tmp_path, streams=rules) as store:
        await fill(store, "dull.a", 300)
        await fill(store, "alarms", 700)
        ledger = await store.ledger.balances()
        assert ledger["alarms"].dropped == {}
        assert ledger["dull.a"].dropped["evicted"] > 150


async def test_every_nth_goes_before_the_oldest(tmp_path: Path) -> None:
    async with made(tmp_path, streams=[{"match": "*", "thin_every": 3}]) as store:
        for _ in range(120):
            await store.intake.append("a", WITH_BLOB)
        gone = sorted(set(range(1, 121)) - set(await seqs(store, "a")))
        assert gone
        assert gone == list(range(3, 3 * len(gone) + 1, 3)), "spread over the time, none twice"
        for _ in range(200):
            await store.intake.append("a", WITH_BLOB)
        assert (await seqs(store, "a"))[0] > 3, "then the oldest"
        assert await store.ledger.faults() == []


async def test_what_is_leased_is_never_evicted(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await fill(store, "a", 100)
        batch = await store.outbox.lease(60, 1 << 20)
        assert batch.span == Range(1, 60)
        await fill(store, "a", 1500)
        assert (await seqs(store, "a"))[:60] == list(range(1, 61))
        assert (await seqs(store, "a"))[60] > 500
        store.outbox.rewind()
        await fill(store, "a", 200)
        assert (await seqs(store, "a"))[0] > 60
        assert await store.ledger.faults() == []


async def test_a_stream_has_a_bound_of_its_own(tmp_path: Path) -> None:
    rules = [{"match": "small", "bytes_max": 65_536}]
    async with made(tmp_path, streams=rules) as store:
        await fill(store, "small", 200)
        await fill(store, "other", 200)
        assert len(await seqs(store, "small")) == 65_536 // len(BODY)
        assert len(await seqs(store, "other")) == 200
    async with made(tmp_path, streams=rules, when_full="refuse") as store:
        with pytest.raises(StoreFull, match="small has reached its bytes_max"):
            await fill(store, "small", 200)
        await fill(store, "other", 1)


async def test_a_stream_whose_first_records_were_refused_is_bounded_all_the_same(
    tmp_path: Path,
) -> None:
    rules = [{"match": "small", "bytes_max": 65_536}]
    async with made(tmp_path, streams=rules, when_full="refuse") as store:
        with pytest.raises(StoreFull, match="small has reached"):
            await store.intake.append("small", SOME * 100)
        await store.intake.append("small", SOME * 10)
        with pytest.raises(StoreFull, match="small has reached"):
            await store.intake.append("small", SOME * 100)
        assert len(await seqs(store, "small")) == 10


async def test_a_refused_producer_does_not_keep_what_is_too_old(tmp_path: Path) -> None:
    """Whoever is refused takes back what expired in the same commit; the next one lets it go."""
    rules = [{"match": "old", "age_s_max": 10}, {"match": "small", "bytes_max": 65_536}]
    clock = Hands()
    async with made(tmp_path, clock, streams=rules, when_full="refuse") as store:
        await fill(store, "old", 1)
        clock.at_s += 11
        with pytest.raises(StoreFull):
            await store.intake.append("small", SOME * 100)
        await fill(store, "small", 1)
        assert await seqs(store, "old") == []


async def test_what_fits_no_bound_of_its_own_does_not_keep_the_rest_above_theirs(
    tmp_path: Path,
) -> None:
    """A leased stream above its bound cannot give way, but others can for the bound in all."""
    rules = [{"match": "x.segments", "bytes_max": 65_536}]
    async with made(tmp_path, streams=rules) as store:
        found = [(SEGMENT, bytes(100_000))] * 3  # segments are taken whatever the bounds are
        await store.spool.keep("x", found, Position(), "segments")
        batch = await store.outbox.lease(100, 1 << 20)
        assert batch.span.last == 3
        for _ in range(40):
            await store.intake.append("b", SOME * 50)
        assert await store.used_bytes() <= store.bytes_max
        assert (await store.ledger.balances())["b"].dropped["evicted"] > 0
        assert (await seqs(store, "x.segments")) == [1, 2, 3]


async def test_a_stream_above_its_bound_costs_the_others_nothing(tmp_path: Path) -> None:
    rules = [{"match": "small", "bytes_max": 65_536}]
    async with made(tmp_path) as store:
        await store.intake.append("small", SOME * 100)
    async with made(tmp_path, streams=rules, when_full="refuse") as store:
        with pytest.raises(StoreFull, match="small has reached"):
            await fill(store, "small", 1)
        await fill(store, "other", 1)


async def test_a_smaller_bound_at_the_next_start_is_reached_and_records_are_taken(
    tmp_path: Path,
) -> None:
    async with made(tmp_path, bytes_max=16 * 1024**2) as store:
        await store.intake.append("a", SOME * 6000)
    async with made(tmp_path) as store:
        for _ in range(40):
            try:
                await store.intake.append("a", SOME)
            except StoreFull:
                continue
            break
        assert await store.used_bytes() <= store.bytes_max
        assert await store.ledger.faults() == []


async def test_age_runs_on_through_reboots_and_never_by_the_wall_clock(tmp_path: Path) -> None:
    rules = [{"match": "*", "age_s_max": 1000}]
    clock = Hands()
    async with made(tmp_path, clock, streams=rules) as store:
        await store.intake.append("a", SOME)  # 1, at 100 s of the first boot
        clock.at_s, clock.wall_s = 700, 5e9
        await store.intake.append("a", SOME)  # 2
        assert await seqs(store, "a") == [1, 2]
    clock = Hands("second", 50)  # 700 s of the first boot are known
    clock.wall_s = 0.0  # 1970
    async with made(tmp_path, clock, streams=rules) as store:
        clock.at_s = 380
        await store.intake.append("a", SOME)  # 3; the first is now 600 + 380 s old
        assert await seqs(store, "a") == [1, 2, 3]
        clock.at_s = 420
        await store.intake.append("a", SOME)
        assert await seqs(store, "a") == [2, 3, 4]
        assert (await store.ledger.balances())["a"].dropped == {"expired": 1}
        assert await store.ledger.faults() == []


async def test_pages_return_to_the_disk(tmp_path: Path) -> None:
    async with made(tmp_path, bytes_max=1 << 30) as store:
        await store.intake.append("a", SOME * 20_000)
        await store._database.read(lambda c: c.execute("PRAGMA wal_checkpoint").fetchall())
        full = store.path.stat().st_size
        assert full > 20_000_000
        while batch := await store.outbox.lease(2000, 1 << 30):
            await store.outbox.acknowledge((store.epoch, "a"), [batch.span])
        async with asyncio.timeout(DEADLINE_S):
            while store.path.stat().st_size > full / 4:
                await store.ledger.balances()
                await asyncio.sleep(0.05)
    with sqlite3.connect(store.path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
