"""Records on their way in: in order, without a gap, and as durable as the answer says."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError
from agent.records import RecordType
from agent.store.intake import Durability, New
from agent.store.store import Store

FIRM = (Durability.SYNC, Durability.GROUP)


def record(number: int, blob: bytes = b"") -> New:
    return New(RecordType.SEGMENT, b'{"n":%d}' % number, blob)


async def rows(store: Store, stream: str) -> list[tuple[int, bytes]]:
    return await store._database.read(
        lambda c: c.execute(
            "SELECT seq, body FROM records JOIN streams ON streams.id = stream"
            " WHERE name = ? ORDER BY seq",
            (stream,),
        ).fetchall()
    )


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    async with Store(Settings(path=str(tmp_path / "s.db")), Clock()) as found:
        yield found


@pytest.mark.parametrize("durability", FIRM)
async def test_many_producers_leave_no_gap_and_each_keeps_its_order(
    store: Store, durability: Durability
) -> None:
    async def produce(number: int) -> list[int]:
        seqs = []
        for i in range(20):
            some = [record(1000 * number + 10 * i + k) for k in range(3)]
            receipt = await store.intake.append(f"s{number % 2}", some, durability)
            assert (receipt.durability, receipt.last - receipt.first) == (durability, 2)
            assert receipt.commit_s > 0
            seqs += range(receipt.first, receipt.last + 1)
        return seqs

    seqs = await asyncio.gather(*(produce(n) for n in range(8)))
    for stream in (0, 1):
        held = await rows(store, f"s{stream}")
        assert [seq for seq, _ in held] == list(range(1, 4 * 60 + 1))
        bodies = dict(held)
        for number in range(stream, 8, 2):
            numbers = [int(bodies[seq][5:-1]) for seq in seqs[number]]
            assert numbers == sorted(numbers)
            assert {n // 1000 for n in numbers} == {number}
    assert await store.ledger.faults() == []


async def test_what_was_answered_is_in_the_file(store: Store) -> None:
    """Seen by another connection, so it was committed before the answer."""
    for durability in FIRM:
        receipt = await store.intake.append("s", [record(1)], durability)
        with sqlite3.connect(store.path) as other:
            found = other.execute("SELECT max(seq) FROM records").fetchone()
        other.close()
        assert found == (receipt.last,)


async def test_sync_has_a_commit_of_its_own(store: Store) -> None:
    commits: list[int] = []
    attempt = store._database._attempt
    store._database._attempt = lambda group: commits.append(len(group)) or attempt(group)
    calls = [store.intake.append("s", [record(i)], Durability.SYNC) for i in range(6)]
    calls += [store.intake.append("s", [record(i)]) for i in range(6)]
    await asyncio.gather(*calls)
    assert commits.count(1) >= 6
    assert max(commits) > 1, "the others share theirs"


async def test_a_failure_in_a_group_costs_only_its_own(store: Store) -> None:
    wrong = [New(None, b"{}")]  # type: ignore[arg-type]
    calls = [store.intake.append("s", wrong if i == 3 else [record(i)]) for i in range(6)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(one, StoreError) for one in done] == [i == 3 for i in range(6)]
    assert [seq for seq, _ in await rows(store, "s")] == [1, 2, 3, 4, 5]
    assert await store.ledger.faults() == []


async def test_a_blob_comes_with_its_record(store: Store) -> None:
    blob = bytes(range(256)) * 600
    await store.intake.append("s", [record(1), record(2, blob)])
    batch = await store.outbox.lease(10, 10_000)
    assert batch is not None
    assert [r.blob_bytes for r in batch.records] == [0, len(blob)]
    assert await store.outbox.blob(batch.records[1], 0, len(blob)) == blob
