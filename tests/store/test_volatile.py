"""Volatile records: answered at once, in order with the others, lost at most and always counted."""

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import config
from agent.clock import Clock
from agent.errors import StoreError, StoreFull
from agent.records import Balance, RecordType
from agent.store import volatile
from agent.store.intake import Durability, New, Receipt
from agent.store.store import Store
from tests.outside import DEADLINE_S

LONG_S = 3600.0
SYNC, GROUP, VOLATILE = Durability.SYNC, Durability.GROUP, Durability.VOLATILE
Rows = dict[int, int]  # by seq: the number in the body


def made(folder: Path, volatile_s: float = LONG_S, **more: Any) -> Store:
    rules = more.pop("streams", [{"match": "v*", "durability": "volatile"}])
    whole = {"path": str(folder / "s.db"), "volatile_s": volatile_s, "streams": rules, **more}
    return Store(msgspec.convert(whole, config.Store), Clock())


def record(number: int, size: int = 0) -> New:
    return New(RecordType.SEGMENT, b'{"n":%d,"x":"%s"}' % (number, b"x" * size))


async def append(store: Store, stream: str, *numbers: int, to: Durability | None = None) -> Receipt:
    return await store.intake.append(stream, [record(n) for n in numbers], to)


async def rows(store: Store, stream: str = "v") -> Rows:
    found = await store._database.read(
        lambda c: c.execute(
            "SELECT seq, body FROM records JOIN streams ON streams.id = stream WHERE name = ?",
            (stream,),
        ).fetchall()
    )
    return {seq: msgspec.json.decode(body)["n"] for seq, body in found}


async def balance(store: Store, stream: str = "v") -> Balance:
    return (await store.ledger.balances())[stream]


async def power_cut(store: Store, to: Path) -> Path:
    """The files as they are between two commits, in another folder."""
    to.mkdir()

    def copy(_: sqlite3.Connection) -> None:
        for name in ("s.db", "s.db-wal"):
            shutil.copy(store.path.with_name(name), to)

    await store._database.read(copy)
    return to


async def seen(question: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await question():
            await asyncio.sleep(0.01)


async def test_the_answer_comes_before_any_commit(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        first = await append(store, "v", 1)  # reserves the stream's seqs
        commits: list[int] = []
        attempt = store._database._attempt
        store._database._attempt = lambda group: commits.append(1) or attempt(group)
        second = await append(store, "v", 2, 3)
        assert commits == []
        assert (first.first, second.first, second.last) == (1, 2, 3)
        assert (second.durability, second.commit_s > 0) == (VOLATILE, True)
        assert await rows(store) == {}
        assert await balance(store) == Balance(0, 0, 0, {})


async def test_a_clean_close_keeps_everything_and_drops_no_seq(tmp_path: Path) -> None:
    for life in range(3):
        async with made(tmp_path) as store:
            for i in range(10):
                receipt = await append(store, "v", 10 * life + i)
                assert receipt.first == 10 * life + i + 1
    async with made(tmp_path) as store:
        assert await rows(store) == {n + 1: n for n in range(30)}
        assert await balance(store) == Balance(30, 0, 30, {})
        assert await store.ledger.faults() == []


async def test_a_kill_costs_what_was_in_memory_and_it_is_counted(tmp_path: Path) -> None:
    async with made(tmp_path / "a") as store:
        await append(store, "v", 0, 1)
        await append(store, "v", 2, to=GROUP)
        await append(store, "v", 3, 4)
        left = await power_cut(store, tmp_path / "b")
    async with made(left) as store:
        assert await rows(store) == {1: 0, 2: 1, 3: 2}
        assert await balance(store) == Balance(
            3 + volatile.AHEAD, 0, 3, {"restart": volatile.AHEAD}
        )
        assert (await append(store, "v", 5)).first == 4 + volatile.AHEAD, "none is given out twice"
        batch = await store.outbox.lease(10, 10_000)
        assert batch is not None
        assert [r.seq for r in batch.records] == [1, 2, 3]
        assert await store.ledger.faults() == []
    async with made(left) as store:
        assert (await balance(store)).dropped == {"restart": volatile.AHEAD}, "counted once"


async def test_a_stricter_append_takes_along_what_waits_before_it(tmp_path: Path) -> None:
    for i, stricter in enumerate((GROUP, SYNC)):
        async with made(tmp_path / f"{i}a") as store:
            await append(store, "v", 0, 1)
            receipt = await append(store, "v", 2, to=stricter)
            assert (receipt.first, receipt.durability) == (3, stricter)
            left = await power_cut(store, tmp_path / f"{i}b")
        async with made(left) as store:
            assert await rows(store) == {1: 0, 2: 1, 3: 2}


async def test_a_weaker_class_than_the_rules_is_not_given(tmp_path: Path) -> None:
    rules = [{"match": "s", "durability": "sync"}, {"match": "v", "durability": "volatile"}]
    async with made(tmp_path, streams=rules) as store:
        for stream, asked, counts in (
            ("s", VOLATILE, SYNC),
            ("s", None, SYNC),
            ("g", VOLATILE, GROUP),
            ("g", None, GROUP),
            ("g", SYNC, SYNC),
            ("v", None, VOLATILE),
            ("v", GROUP, GROUP),
        ):
            assert (await append(store, stream, 1, to=asked)).durability is counts


async def test_it_is_written_behind_and_wakes_the_uplink(tmp_path: Path) -> None:
    async with made(tmp_path, volatile_s=0.05) as store:
        await append(store, "v1", 1)
        await append(store, "v2", 2)
        store.outbox.more.clear()
        async with asyncio.timeout(DEADLINE_S):
            await store.outbox.more.wait()

        async def both() -> bool:
            return [await rows(store, "v1"), await rows(store, "v2")] == [{1: 1}, {1: 2}]

        await seen(both)
        await append(store, "v1", 3)

        async def again() -> bool:
            return await rows(store, "v1") == {1: 1, 2: 3}

        await seen(again)


async def test_memory_is_bounded_and_a_call_without_room_waits_for_a_commit(tmp_path: Path) -> None:
    async with made(tmp_path, volatile_bytes_max=65_536) as store:
        for i in range(300):
            await store.intake.append("v", [record(i, 1000)])
            assert store._volatile._bytes <= 65_536
        big = await store.intake.append("v", [record(300, 70_000)])
        assert big.durability is GROUP
        assert await rows(store) == {n + 1: n for n in range(301)}
        assert store._volatile._bytes == 0


async def test_more_seqs_than_are_in_reserve(tmp_path: Path) -> None:
    count = 3 * volatile.AHEAD
    async with made(tmp_path) as store:
        whole = await append(store, "v", *range(count))
        assert (whole.first, whole.last) == (1, count)
        ones = [await append(store, "v", count + i) for i in range(count)]
        assert [one.first for one in ones] == list(range(count + 1, 2 * count + 1))
    async with made(tmp_path) as store:
        assert await rows(store) == {n + 1: n for n in range(2 * count)}


async def test_no_seq_is_given_out_before_it_is_reserved(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        for _ in range(8):
            last = (await append(store, "v", *range(volatile.AHEAD // 4))).last
            with sqlite3.connect(store.path) as other:
                (known,) = other.execute("SELECT max(produced, reserved) FROM streams").fetchone()
            other.close()
            assert last <= known


async def test_a_cancelled_call_costs_no_seq_and_nothing_is_written_twice(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await append(store, "v", 0)
        for _ in range(3):
            call = asyncio.create_task(append(store, "v", 1, to=GROUP))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await append(store, "v", 2)
    async with made(tmp_path) as store:
        assert list((await rows(store)).values()) == [0, 1, 2, 1, 2, 1, 2]
        assert await balance(store) == Balance(7, 0, 7, {})


async def test_a_stream_that_is_full_tells_its_producers_and_counts_in_the_end(
    tmp_path: Path,
) -> None:
    """Its neighbours are written meanwhile."""
    rules = [
        {"match": "v1", "durability": "volatile", "bytes_max": 65_536},
        {"match": "v2", "durability": "volatile"},
    ]
    async with made(tmp_path, volatile_s=0.05, streams=rules) as store:
        await append(store, "v1", 1, 2, 3)
        await append(store, "v2", 1)
        await store.intake.append("v1", [record(4, 70_000)])  # too much for the stream

        async def told() -> bool:
            try:
                await append(store, "v1", 5)
            except StoreFull as error:
                return "bytes_max" in str(error)
            return False

        await seen(told)

        async def counted() -> bool:
            return "full" in (await balance(store, "v1")).dropped

        await seen(counted)
        lost = (await balance(store, "v1")).dropped["full"]
        await append(store, "v1", 6)

        async def goes_on() -> bool:
            return 6 in (await rows(store, "v1")).values()

        await seen(goes_on)
        found = await balance(store, "v1")
        assert found.produced == found.held + lost
        assert await rows(store, "v2") == {1: 1}
        assert await store.ledger.faults() == []


async def test_while_nothing_can_be_written_it_is_kept(tmp_path: Path) -> None:
    async with made(tmp_path, volatile_s=0.05) as store:
        await append(store, "v", 1)
        work = store._database._file.transact

        def broken(*_: object, **__: object) -> None:
            raise StoreError("the disk is gone")

        store._database._file.transact = broken

        async def told() -> bool:
            try:
                await append(store, "v", 9)
            except StoreError:
                return store._volatile._tails["v"].tries > volatile.TRIES_MAX
            return False

        await seen(told)
        store._database._file.transact = work

        async def there() -> bool:
            return len(await rows(store)) > 0

        await seen(there)
        assert (await rows(store))[1] == 1
        await append(store, "v", 2)
    async with made(tmp_path) as store:
        assert list((await rows(store)).values())[-1] == 2
        assert (await balance(store)).dropped == {}


CALLS = st.tuples(
    st.sampled_from(["v1", "v2", "g"]), st.sampled_from(Durability), st.integers(1, 400)
)


@settings(max_examples=25)
@given(
    calls=st.lists(CALLS, max_size=25),
    cut_at=st.integers(0, 25),
    together=st.integers(1, 6),
    volatile_s=st.sampled_from([0.01, LONG_S]),
)
def test_any_mix_and_a_cut_at_any_moment(
    tmp_path_factory: pytest.TempPathFactory,
    calls: list[tuple[str, Durability, int]],
    cut_at: int,
    together: int,
    volatile_s: float,
) -> None:
    """What was answered firmly is there, what was volatile is there or counted; none twice."""
    folder = tmp_path_factory.mktemp("mix")
    firm: dict[str, Rows] = {"v1": {}, "v2": {}, "g": {}}
    loose: dict[str, Rows] = {"v1": {}, "v2": {}, "g": {}}

    async def call(store: Store, number: int) -> None:
        stream, durability, count = calls[number]
        numbers = [1000 * number + i for i in range(count)]
        receipt = await append(store, stream, *numbers, to=durability)
        seqs = dict(zip(range(receipt.first, receipt.last + 1), numbers, strict=True))
        assert len(seqs) == count
        assert not seqs.keys() & (firm[stream].keys() | loose[stream].keys()), "given out twice"
        if receipt.durability is VOLATILE:
            loose[stream] |= seqs
        else:
            before = {s for s in loose[stream] if s < receipt.first}
            firm[stream] |= seqs | {s: loose[stream].pop(s) for s in before}

    async def live() -> Path | None:
        left = None
        async with made(folder / "a", volatile_s, volatile_bytes_max=65_536) as store:
            for first in range(0, len(calls), together):
                if first >= cut_at and left is None:
                    left = await power_cut(store, folder / "b")
                    promised.update({s: (dict(firm[s]), dict(loose[s])) for s in firm})
                some = range(first, min(first + together, len(calls)))
                await asyncio.gather(*(call(store, number) for number in some))
        return left

    async def judge(at: Path, expected: dict[str, tuple[Rows, Rows]], *, lossy: bool) -> None:
        async with made(at) as store:
            assert await store.ledger.faults() == []
            for stream, (surely, perhaps) in expected.items():
                held = await rows(store, stream)
                lost = perhaps.keys() - held.keys()
                assert {s: n for s, n in held.items() if s in surely} == surely
                assert held.items() <= (surely | perhaps).items(), "and nothing else"
                assert lossy or not lost
                assert all(seq > max(held, default=0) for seq in lost), "the end alone is lost"
                one = (await store.ledger.balances()).get(stream, Balance(0, 0, 0, {}))
                assert one.dropped.get("restart", 0) >= len(lost)
                assert lossy or one.dropped == {}

    promised: dict[str, tuple[Rows, Rows]] = {}
    left = asyncio.run(live())
    asyncio.run(judge(folder / "a", {s: (firm[s], loose[s]) for s in firm}, lossy=False))
    if left:
        asyncio.run(judge(left, promised, lossy=True))
