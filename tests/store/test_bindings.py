"""Records are dated when they are given out, by what was learnt of the time since."""

from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.protocol import batch
from agent.records import Record, RecordType, Stamp
from agent.store import bindings
from agent.store.intake import New
from agent.store.store import Store

UTC_S = 1_800_000_000.0  # when the boots here begin, in truth
HOUR_S = 3600.0


class Hands(Clock):
    """A boot `wrong_s` off, whose clock a test turns and sets right."""

    def __init__(self, boot: str = "first", wrong_s: float = -UTC_S) -> None:
        self.boot = boot
        self.at_s = 5.0
        self.wrong_s = wrong_s

    def monotonic(self) -> float:
        return self.at_s

    def wall(self) -> float:
        return UTC_S + self.at_s + self.wrong_s

    def synchronised(self) -> bool:
        return self.wrong_s == 0

    def stamp(self) -> Stamp:
        return Stamp(self.boot, int(self.at_s * 1e9), int(self.wall() * 1e6))


def made(folder: Path, clock: Clock) -> Store:
    return Store(Settings(path=str(folder / "s.db")), clock)


async def append(store: Store, clock: Hands, at_s: float, stream: str = "a") -> None:
    clock.at_s = at_s
    await store.intake.append(stream, [New(RecordType.SEGMENT, b"{}")])


async def given(store: Store) -> list[Record]:
    store.outbox.rewind()
    found = await store.outbox.lease(1000, 1 << 20)
    assert found is not None
    return found.records


async def count(store: Store) -> dict[str, int]:
    return {boot: len(found) for boot, found in (await _table(store)).items()}


async def _table(store: Store) -> dict[str, list[bindings.Binding]]:
    return await store._database.read(bindings._all)


async def test_a_boot_in_1970_is_dated_once_the_clock_is_right(tmp_path: Path) -> None:
    clock = Hands()
    async with made(tmp_path, clock) as store:
        await append(store, clock, 10)
        await append(store, clock, 20.5)
        records = await given(store)
        assert [r.stamp.wall_us for r in records] == [10_000_000, 20_500_000]
        assert [r.timebound for r in records] == [False, False]
        clock.at_s, clock.wrong_s = 1000, 0
        await store.bindings.bind()
        await append(store, clock, 2000)
        records = await given(store)
        true = [(UTC_S + s) * 1e6 for s in (10, 20.5, 2000)]
        assert [r.stamp.wall_us for r in records] == true
        assert all(r.timebound for r in records)
        assert [r.stamp.mono_ns for r in records] == [10 * 10**9, 20_500 * 10**6, 2000 * 10**9]
    _, events = batch.decode(batch.encode("d", "e", "a", records, []))
    assert [(e.time, e.timebound) for e in events][:1] == [("2027-01-15T08:00:10.000000Z", True)]


async def test_after_a_step_the_nearest_binding_counts(tmp_path: Path) -> None:
    clock = Hands(wrong_s=HOUR_S)
    async with made(tmp_path, clock) as store:
        clock.at_s = 100
        await store.bindings.bind()
        await append(store, clock, 200)
        clock.at_s, clock.wrong_s = 1000, 0  # an hour backwards
        await store.bindings.bind()
        await append(store, clock, 900)
        await append(store, clock, 1100)
        wall = [r.stamp.wall_us / 1e6 - UTC_S for r in await given(store)]
        assert wall == [200 + HOUR_S, 900, 1100]


async def test_only_the_boots_that_were_bound_are(tmp_path: Path) -> None:
    clock = Hands()
    async with made(tmp_path, clock) as store:
        await append(store, clock, 10)
    clock = Hands("second", wrong_s=0)
    async with made(tmp_path, clock) as store:
        await append(store, clock, 10)
        await store.bindings.bind()
        found = [(r.stamp.boot, r.timebound, r.stamp.wall_us) for r in await given(store)]
        assert found == [
            ("first", False, 10_000_000),
            ("second", True, (UTC_S + 10) * 1e6),
        ]


async def test_small_moves_are_not_noted_and_a_reopened_store_knows(tmp_path: Path) -> None:
    clock = Hands(wrong_s=0)
    async with made(tmp_path, clock) as store:
        await append(store, clock, 10)
        await store.bindings.bind()
        clock.wrong_s = 0.049
        await store.bindings.bind()
        clock.wrong_s = 0
    async with made(tmp_path, clock) as store:
        assert [r.timebound for r in await given(store)] == [True], "before any look"
        clock.at_s = 500
        await store.bindings.bind()
        assert await count(store) == {"first": 1}
        clock.wrong_s = -0.051
        await store.bindings.bind()
        assert await count(store) == {"first": 2}


async def test_many_bindings_of_a_boot_leave_the_first_and_the_newest(tmp_path: Path) -> None:
    clock = Hands(wrong_s=0)
    async with made(tmp_path, clock) as store:
        for i in range(bindings.PER_BOOT_MAX + 50):
            clock.at_s, clock.wrong_s = 10.0 * (i + 1), float(i)
            await store.bindings.bind()
        (bound,) = (await _table(store)).values()
        assert len(bound) == bindings.PER_BOOT_MAX
        assert bound[0].mono_ns == 10 * 10**9
        assert [b.mono_ns for b in bound[-2:]] == [1490 * 10**9, 1500 * 10**9]


async def test_bindings_go_with_the_last_record_of_their_boot(tmp_path: Path) -> None:
    for boot in ("1st", "2nd", "3rd"):
        clock = Hands(boot, wrong_s=0)
        async with made(tmp_path, clock) as store:
            await append(store, clock, 10, stream=boot)
            await store.bindings.bind()
            assert boot in await count(store)
    async with made(tmp_path, Hands("4th", wrong_s=0)) as store:
        await store.outbox.acknowledge((store.epoch, "1st"), [(await first_span(store))])
        await store.bindings.bind()
        assert await count(store) == {"2nd": 1, "3rd": 1, "4th": 1}


async def first_span(store: Store) -> object:
    found = await store.outbox.lease(1, 1 << 20)
    assert found is not None
    assert found.stream == "1st"
    return found.span


async def test_boots_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "BOOTS_MAX", 3)
    for i in range(5):
        clock = Hands(f"boot{i}", wrong_s=0)
        async with made(tmp_path, clock) as store:
            await append(store, clock, 10)
            await store.bindings.bind()
    async with made(tmp_path, clock) as store:
        assert await count(store) == {"boot2": 1, "boot3": 1, "boot4": 1}
        assert [r.timebound for r in await given(store)] == [False] * 2 + [True] * 3
