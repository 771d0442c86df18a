"""Live before backlog, priority before turns, and nothing starves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import config
from agent.config import StreamRule
from agent.records import Drop, Range, RecordType
from agent.store import choice
from agent.store.intake import New
from agent.store.store import Store
from tests.store.test_bounds import Hands

ROW = New(RecordType.SEGMENT, b'{"n": 1}')
ROOM = 1 << 20
RULES = [StreamRule(match="alarms", priority=9), StreamRule(match="dull", priority=1)]


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
async def store(tmp_path: Path, clock: Hands) -> AsyncIterator[Store]:
    async with Store(config.Store(path=str(tmp_path / "s.db"), streams=RULES), clock) as opened:
        yield opened
        assert await opened.ledger.faults() == []


async def backlog(store: Store, clock: Hands, name: str, old: int, new: int) -> None:
    """So many records, then half an hour, then so many more."""
    if old:
        await store.intake.append(name, [ROW] * old)
    clock.at_s += 1800
    if new:
        await store.intake.append(name, [ROW] * new)


async def test_what_is_fresh_does_not_wait_behind_the_backlog(store: Store, clock: Hands) -> None:
    await backlog(store, clock, "a", 100, 10)
    live = await store.outbox.lease(50, ROOM, 30.0)
    assert (live.span, live.live) == (Range(101, 110), True)
    first = await store.outbox.lease(20, ROOM)
    (shown,) = await store.inventory.streams()
    assert (shown.leased, shown.leased_spans) == (110, 2)
    store.outbox.release(first.name, first.span)
    rest = [await store.outbox.lease(60, ROOM, 30.0) for _ in range(2)]
    assert [(one.span, one.live) for one in rest] == [
        (Range(1, 60), False),
        (Range(61, 100), False),
    ]
    assert store.outbox.out(store.epoch, "a") == [Range(1, 110)]
    assert await store.outbox.lease(60, ROOM, 30.0) is None
    await store.intake.append("a", [ROW] * 3)
    assert (await store.outbox.lease(60, ROOM, 30.0)).span == Range(111, 113)


async def test_what_was_fresh_is_backlog_later_and_in_another_boot(
    store: Store, clock: Hands
) -> None:
    await backlog(store, clock, "a", 5, 5)
    clock.at_s += 31
    assert await store.outbox.lease(50, ROOM, 30.0, live_only=True) is None
    await store.intake.append("a", [ROW])
    clock.boot = "second"
    assert await store.outbox.lease(50, ROOM, 30.0, live_only=True) is None
    batch = await store.outbox.lease(50, ROOM, 30.0)
    assert (batch.span, batch.live) == (Range(1, 11), False)


async def test_live_of_any_stream_comes_before_backlog_of_high_priority(
    store: Store, clock: Hands
) -> None:
    await backlog(store, clock, "alarms", 4, 0)
    await store.intake.append("dull", [ROW] * 2)
    await store.intake.append("a", [ROW] * 2)
    order = [(await store.outbox.lease(2, ROOM, 30.0)).stream for _ in range(4)]
    assert order == ["a", "dull", "alarms", "alarms"]


async def test_each_eighth_lease_goes_to_whoever_has_waited_longest(
    store: Store, clock: Hands
) -> None:
    await backlog(store, clock, "dull", 3, 0)
    await backlog(store, clock, "alarms", 40, 40)
    batches = [await store.outbox.lease(1, ROOM, 30.0) for _ in range(24)]
    assert [one.stream for one in batches].index("dull") == 7
    assert {one.stream for one in batches[:7] + batches[8:15]} == {"alarms"}
    seqs = [one.span.first for one in batches if one.stream == "alarms" and not one.live]
    assert seqs[:1] in ([], [1])


async def test_the_backlog_of_a_stream_is_not_starved_by_its_own_fresh_records(
    store: Store, clock: Hands
) -> None:
    await backlog(store, clock, "a", 100, 0)
    old = 0
    for _ in range(32):
        await store.intake.append("a", [ROW])
        batch = await store.outbox.lease(1, ROOM, 30.0)
        old += batch.span.first <= 100
        await store.outbox.acknowledge(batch.name, [batch.span])
    assert old == 4


async def test_no_more_than_so_many_spans_are_out(
    store: Store, clock: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "SPANS_MAX", 2)
    for _ in range(3):
        await backlog(store, clock, "a", 5, 1)
        last = await store.outbox.lease(1, ROOM, 30.0)
    out = store.outbox.out(store.epoch, "a")
    assert out == [Range(1, 1), Range(6, 6), Range(12, 12)], "not the fresh one, #18"
    assert (last.span, last.live) == (Range(1, 1), False)


async def test_dropped_ranges_are_told_by_the_batch_whose_span_covers_them(
    store: Store, clock: Hands
) -> None:
    await backlog(store, clock, "a", 20, 10)
    name = (store.epoch, "a")
    for span in (Range(3, 4), Range(18, 22)):
        await store.decisions.drop(name, span)
    live = await store.outbox.lease(50, ROOM, 30.0)
    assert (live.span, live.drops) == (Range(18, 30), [Drop(18, 22, "operator")])
    for _ in range(2):
        await store.outbox.acknowledge(name, [live.span])
    rest = await store.outbox.lease(50, ROOM, 30.0)
    assert (rest.span, rest.drops) == (Range(1, 17), [Drop(3, 4, "operator")])
    assert await store.outbox.lease(50, ROOM, 30.0) is None, "a range that is known is told once"
    store.outbox.release(name, rest.span)
    await store.decisions.drop(name, Range(1, 17))
    await store.intake.append("a", [ROW])
    alone = await store.outbox.lease(50, ROOM)
    assert (alone.span, alone.records) == (Range(1, 17), []), "no record comes in there any more"
    assert {drop.reason for drop in alone.drops} == {"operator"}
    assert (await store.outbox.acknowledge(name, [alone.span])).mark == 30
    assert not store.outbox.waits(name)


async def test_ranges_at_the_end_wait_for_a_record_but_not_for_ever(
    store: Store, clock: Hands
) -> None:
    name = (store.epoch, "a")
    for last in (3, 6):
        await store.intake.append("a", [ROW] * 3)
        await store.decisions.drop(name, Range(last - 2, last))
        assert await store.outbox.lease(50, ROOM) is None
        clock.at_s += choice.RANGES_S
        alone = await store.outbox.lease(50, ROOM)
        assert (alone.span, alone.records) == (Range(last - 2, last), [])
        await store.outbox.acknowledge(name, [alone.span])
        assert await store.outbox.lease(50, ROOM) is None


async def test_a_released_span_is_leased_again_alone(store: Store, clock: Hands) -> None:
    await store.intake.append("a", [ROW] * 9)
    spans = [(await store.outbox.lease(3, ROOM)).span for _ in range(3)]
    store.outbox.more.clear()
    store.outbox.release((store.epoch, "a"), spans[1])
    assert store.outbox.more.is_set()
    assert (await store.outbox.lease(9, ROOM)).span == spans[1]
    assert await store.outbox.lease(9, ROOM) is None


async def test_what_is_held_back_is_leased_by_its_span_alone(store: Store, clock: Hands) -> None:
    name = (store.epoch, "a")
    await store.intake.append("a", [ROW] * 9)
    store.outbox.hold_back(name, Range(4, 6))
    assert [(await store.outbox.lease(9, ROOM)).span for _ in range(2)] == [
        *(Range(1, 3), Range(7, 9))
    ]
    store.outbox.rewind()
    assert (await store.outbox.lease(9, ROOM)).span == Range(1, 3), "still held back"
    one = await store.outbox.lease_span(name, Range(4, 6), 2, ROOM)
    assert (one.span, one.live) == (Range(4, 5), False)
    assert (await store.outbox.lease_span(name, Range(4, 6), 9, ROOM)).span == Range(6, 6)
    assert await store.outbox.lease_span(name, Range(4, 6), 9, ROOM) is None
    assert await store.outbox.lease_span((store.epoch, "none"), Range(4, 6), 9, ROOM) is None
    store.outbox.release(name, Range(4, 6))
    store.outbox.let_go(name, Range(4, 6))
    assert (await store.outbox.lease(9, ROOM)).span == Range(4, 9)


async def test_what_waits_is_counted(store: Store, clock: Hands) -> None:
    await backlog(store, clock, "a", 4, 1)
    await store.intake.append("alarms", [ROW] * 2)
    await store.outbox.bury((store.epoch, "a"), 1, "poison")
    clock.at_s += 10
    a, alarms = sorted(await store.outbox.waiting(), key=lambda one: one.name)
    assert (a.name, a.priority, a.records, a.bytes) == ((store.epoch, "a"), 5, 4, 4 * 8)
    assert (alarms.name[1], alarms.priority, alarms.records) == ("alarms", 9, 2)
    assert (a.oldest_age_s, alarms.oldest_age_s) == (1810, 10)
