"""A long outage with few records: all are drained exactly once, and the disk gets its room back.

HOLDFAST_LONG=1 takes 5 million.
"""

import sqlite3
from pathlib import Path

from agent.clock import Clock
from agent.records import Balance
from agent.store.bounds import PAGE_BYTES
from agent.store.file import File
from agent.store.space import FREE_PAGES, SHRINK_PAGES
from bench import outage
from tests.store.faults.child import LONG

HELD = 5_000_000 if LONG else 50_000


async def test_what_piled_up_is_drained_once_and_the_file_shrinks(tmp_path: Path) -> None:
    async with outage.made(tmp_path / "s.db") as store:
        await outage.produce(store, HELD, 16, lambda _: None)
        held = await outage.produced(store)
        assert held >= HELD
        full_bytes = store.path.stat().st_size
        assert full_bytes > HELD * 400, "what the WAL holds is not in it yet"

        link = outage.Link(store)  # raises at the first record that is missing or comes twice
        done, awaits_s = await outage.drained(store, link, lambda _: None)
        assert sum(done.leases) >= held
        assert len(done.acks) < len(done.leases), "several leases were out at once"
        assert awaits_s, "records came in meanwhile"

        last = await outage.produced(store)
        assert last == held + len(awaits_s)
        assert await store.ledger.balances() == {"bench": Balance(last, last, 0, {})}
        assert await store.ledger.faults() == []
        await outage.shrunk(store)
        assert store.path.stat().st_size < full_bytes / 5
    with sqlite3.connect(store.path) as db:
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        assert free <= FREE_PAGES
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_each_step_gives_back_a_whole_slice_and_the_last_one_reaches_the_disk(
    tmp_path: Path,
) -> None:
    file = File(tmp_path / "s.db", Clock(), None, "FULL")
    connection = file.open()
    slices = 10
    pages_filled = FREE_PAGES + slices * SHRINK_PAGES
    connection.execute(
        "INSERT INTO chunks VALUES (1, 0, zeroblob(?))",
        (pages_filled * PAGE_BYTES,),
    )
    connection.execute("PRAGMA wal_checkpoint").fetchall()
    connection.execute("DELETE FROM chunks")
    steps = 0
    while file.shrink():
        steps += 1
    assert slices <= steps <= slices + 1
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    assert file.path.stat().st_size == pages * PAGE_BYTES
    file.close()
