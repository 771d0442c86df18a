"""The histogram of commits: each commit once, in its bucket, and nothing else."""

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError
from agent.records import RecordType
from agent.store.intake import Durability, New
from agent.store.latency import BOUNDS_S, Latency
from agent.store.store import Store

SOME = [New(RecordType.SEGMENT, b"{}")]


@pytest.mark.parametrize(
    ("took_s", "bucket"),
    [
        (0.0, 0),
        (0.0001, 0),
        (0.000101, 1),
        (0.003, BOUNDS_S.index(0.005)),
        (10.0, len(BOUNDS_S) - 1),
        (11.0, len(BOUNDS_S)),
    ],
)
def test_a_commit_falls_into_the_first_bucket_that_holds_it(took_s: float, bucket: int) -> None:
    latency = Latency()
    latency.add(took_s)
    found = latency.read()
    assert found.counts.index(1) == bucket
    assert (found.count, found.sum_s) == (1, took_s)
    assert found.cumulative == [int(i >= bucket) for i in range(len(BOUNDS_S) + 1)]


def test_the_bounds_are_log_spaced_from_100_us_to_10_s() -> None:
    assert (BOUNDS_S[0], BOUNDS_S[-1]) == (0.0001, 10.0)
    steps = [b / a for a, b in pairwise(BOUNDS_S)]
    assert all(2 <= round(step, 6) <= 2.5 for step in steps)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("hasty_threads")
def test_a_reading_is_of_one_moment_while_another_thread_adds() -> None:
    latency, stop = Latency(), threading.Event()

    def add() -> None:
        while not stop.is_set():
            latency.add(0.25)  # a sum without rounding

    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(200_000):  # without the lock, one in 20,000 is torn
            found = latency.read()
            assert found.sum_s == found.count * 0.25
        assert found.count > 0
    finally:
        stop.set()
        thread.join()


async def test_each_commit_that_changed_something_counts_once(tmp_path: Path) -> None:
    async with Store(Settings(path=str(tmp_path / "s.db")), Clock()) as store:
        await store.intake.append("s", SOME)
        begun = store.commits.count
        calls = [store.intake.append("s", SOME, Durability.SYNC) for _ in range(5)]
        await asyncio.gather(*calls)
        assert store.commits.count == begun + 5
        assert store.commits.sum_s > 0


async def test_reading_failing_and_changing_nothing_do_not_count(tmp_path: Path) -> None:
    def fails(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO meta VALUES ('x', 'y')")
        connection.execute("INSERT INTO nowhere VALUES (1)")

    async with Store(Settings(path=str(tmp_path / "s.db")), Clock()) as store:
        await store.intake.append("s", SOME)
        begun = store.commits
        await store.ledger.balances()
        with pytest.raises(StoreError, match="nowhere"):
            await store._database.write(fails)
        assert store.commits == begun
        for _ in range(2):  # the first one notes the boot again, as the failed one had
            begun = store.commits
            await store._database.write(lambda c: c.execute("DELETE FROM takes WHERE id = -1"))
        assert store.commits == begun
