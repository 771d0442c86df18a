"""What is shown of the outbox, and what an operator decides about it."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import StreamRule
from agent.errors import NotNow, NotThere
from agent.records import Drop, Range
from agent.store import decisions
from agent.store.decisions import Dropped, Retried
from agent.store.inventory import DAMAGED, Inventory
from agent.store.slices import Slices
from agent.store.store import Store
from tests.store.shop import RAW, made, stocked


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    rules = [StreamRule(match="a", priority=7, bytes_max=1 << 20, age_s_max=1e6)]
    async with made(tmp_path, streams=rules) as opened:
        await stocked(opened)
        yield opened
        assert await opened.ledger.faults() == []


def hasty(store: Store) -> Inventory:
    """One that reads a single row in each slice."""
    slices = Slices(store._database, itertools.count().__next__)
    return Inventory(slices, Clock(), lambda _: StreamRule(match="*"), store.outbox.out)


async def test_a_stream_is_shown_with_its_ledger_its_rule_and_how_it_stands(store: Store) -> None:
    await store.outbox.lease(3, 1 << 20)
    a, raw, empty = await store.inventory.streams()
    assert (a.epoch, a.name, a.produced, a.delivered, a.held) == (store.epoch, "a", 20, 4, 15)
    assert (a.dropped, a.settled, a.leased, a.state) == ({"operator": 1}, 4, 8, "leased")
    assert (a.priority, a.bytes_max, a.age_s_max) == (7, 1 << 20, 1e6)
    assert (a.oldest_seq, raw.oldest_seq) == (5, 4)
    assert a.oldest_age_s is not None
    assert 0 <= a.oldest_age_s < 3600
    assert (raw.name, raw.dead, raw.sendable, raw.state) == ("x.raw", 1, 0, "not to be sent")
    assert (empty.name, empty.state, empty.oldest_age_s) == ("x.segments", "empty", None)
    assert [s.name for s in await hasty(store).streams()] == ["a", "x.raw", "x.segments"]


async def test_streams_of_a_former_epoch_come_last_and_can_be_reached(store: Store) -> None:
    await store._database.write(
        lambda c: c.execute(
            "INSERT INTO streams (epoch, name, produced, delivered) VALUES ('0ld', 'a', 9, 9)"
        )
    )
    assert [(s.epoch, s.name) for s in await store.inventory.streams()] == [
        *((store.epoch, "a"), (store.epoch, "x.raw"), (store.epoch, "x.segments")),
        ("0ld", "a"),
    ]
    page = await store.inventory.page(("0ld", "a"))
    assert (page.epoch, page.records, page.next) == ("0ld", [], None)
    ledger = await store.inventory.ledger()
    assert ledger["0ld"]["a"].balance.delivered == 9
    with pytest.raises(NotThere, match=r"no stream 'x\.raw' of epoch 0ld"):
        await store.inventory.page(("0ld", "x.raw"))


async def test_a_page_has_the_records_and_the_dropped_ranges_among_them(store: Store) -> None:
    await store.outbox.lease(3, 1 << 20)
    for inventory in (store.inventory, hasty(store)):
        page = await inventory.page((store.epoch, "a"), 1, 4)
        assert [(r.seq, r.state) for r in page.records] == [
            *((5, "leased"), (7, "leased"), (8, "leased"), (9, "waiting"))
        ]
        assert (page.dropped, page.next) == ([Drop(6, 6, "operator")], 10)
        assert (page.records[0].body_bytes, page.records[0].blob_bytes) == (8, 1000)
        rest = await inventory.page((store.epoch, "a"), 10, 1000)
        assert [r.seq for r in rest.records] == list(range(10, 21))
        assert (rest.dropped, rest.next) == ([], None)


async def test_pages_are_bounded_by_their_ranges_too(store: Store) -> None:
    for seq in (8, 10, 12, 14):
        await store.decisions.drop((store.epoch, "a"), Range(seq, seq))
    seen, drops, first = [], [], 1
    while first is not None:
        page = await store.inventory.page((store.epoch, "a"), first, 2)
        assert len(page.records) <= 2
        assert len(page.dropped) <= 2
        seen += [r.seq for r in page.records]
        drops += [d.first for d in page.dropped]
        first = page.next
    assert seen == [5, 7, 9, 11, 13, 15, 16, 17, 18, 19, 20]
    assert drops == [6, 8, 10, 12, 14]
    account = (await store.inventory.ledger(3))[store.epoch]["a"]
    assert ([d.first for d in account.ranges], account.ranges_next) == ([6, 8, 10], 12)


async def test_dead_letters_are_shown_with_their_cause(store: Store) -> None:
    page = await store.inventory.page((store.epoch, "x.raw"), dead=True)
    assert [(r.seq, r.state, r.cause) for r in page.records] == [(4, "dead", "it was too loud")]
    assert page.dropped == []
    states = [r.state for r in (await store.inventory.page((store.epoch, "x.raw"))).records]
    assert states == ["dead", "not to be sent"]


async def test_one_record_comes_with_its_body(store: Store) -> None:
    whole = await store.inventory.record((store.epoch, "a"), 9)
    assert (whole.body, whole.fault, whole.record.seq) == ({"n": 1}, None, 9)
    await store._database.write(
        lambda c: (
            c.execute(
                "UPDATE records SET body = x'7b226e223a20377d' WHERE id = 1 << 40 | 9"
            ).rowcount
        )
    )
    damaged = await store.inventory.record((store.epoch, "a"), 9)
    assert (damaged.body, damaged.fault) == (None, DAMAGED)
    await store.decisions.drop((store.epoch, "a"), Range(9, 9))


@pytest.mark.parametrize(
    ("seq", "why"),
    [
        (2, "the far side has it, or knows"),
        (6, r"it was dropped \(operator\)"),
        (21, "its seqs are 1 to 20"),
        (1 << 60, "its seqs are 1 to 20"),
    ],
)
async def test_what_became_of_a_record_that_is_not_held_is_said(
    store: Store, seq: int, why: str
) -> None:
    with pytest.raises(NotThere, match=why):
        await store.inventory.record((store.epoch, "a"), seq)


async def test_drop_gives_up_what_is_held_of_a_range_in_steps(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "STEP_RECORDS", 3)
    assert await store.decisions.drop((store.epoch, "a"), Range(1, 15)) == Dropped(10, None)
    monkeypatch.setattr(decisions, "CALL_S", 0)
    assert await store.decisions.drop((store.epoch, "a"), Range(1, 20)) == Dropped(3, 19)
    assert await store.decisions.drop((store.epoch, "a"), Range(19, 20)) == Dropped(2, None)
    assert await store.decisions.drop((store.epoch, "a"), Range(1, 20)) == Dropped(0, None)
    assert (await store.ledger.balances())["a"].dropped == {"operator": 16}


async def test_what_is_leased_is_not_dropped(store: Store) -> None:
    name = (store.epoch, "a")
    batch = await store.outbox.lease(3, 1 << 20)
    assert batch is not None
    with pytest.raises(NotNow, match="#5 to #8 is out to the far side"):
        await store.decisions.drop(name, Range(8, 10))
    assert await store.decisions.drop(name, Range(9, 10)) == Dropped(2, None)
    store.outbox.rewind(name)
    assert await store.decisions.drop(name, Range(8, 8)) == Dropped(1, None)


@pytest.mark.parametrize(("first", "last"), [(0, 3), (5, 4), (19, 21), (21, 21)])
async def test_seqs_that_never_were_are_refused(store: Store, first: int, last: int) -> None:
    with pytest.raises(NotThere, match="has the seqs 1 to 20, not all of"):
        await store.decisions.drop((store.epoch, "a"), Range(first, last))


async def test_retry_marks_dead_letters(store: Store) -> None:
    name = (store.epoch, "x.raw")
    assert await store.spool.retrying("x") is None
    assert await store.decisions.retry(name, [4]) == Retried(1, [], None)
    (line,) = (await store.inventory.page(name, dead=True)).records
    assert (line.state, line.cause) == ("retrying", "it was too loud")
    heard = await store.spool.retrying("x")
    assert heard is not None
    assert heard[0] == 4
    await store.spool.bury("x", (4, "too loud again"))
    (line,) = (await store.inventory.page(name, dead=True)).records
    assert (line.state, line.cause) == ("dead", "too loud again")


async def test_retry_refuses_what_is_no_dead_letter_and_what_cannot_be_heard(store: Store) -> None:
    name = (store.epoch, "x.raw")
    with pytest.raises(NotThere, match=r"x\.raw #5, #9: no dead letter"):
        await store.decisions.retry(name, [4, 5, 9])
    assert await store.decisions.retry((store.epoch, "a")) == Retried(0, [], None)
    with pytest.raises(NotThere, match="no stream"):
        await store.decisions.retry(("0ld", "x.raw"))
    await store._database.write(
        lambda c: c.execute("UPDATE records SET crc = crc + 1 WHERE id = 2 << 40 | 4").rowcount
    )
    with pytest.raises(NotNow, match="#4: damaged on the disk"):
        await store.decisions.retry(name, [4])
    assert await store.decisions.retry(name) == Retried(0, [4], None)
    assert await store.spool.retrying("x") is None
    await store.decisions.drop(name, Range(4, 4))


async def test_retry_of_all_goes_in_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "STEP_DEAD", 1)
    monkeypatch.setattr(decisions, "CALL_S", 0)
    await store.spool.bury("x", (5, "it too"))
    name = (store.epoch, "x.raw")
    assert await store.decisions.retry(name) == Retried(1, [], 5)
    assert await store.decisions.retry(name, first=5) == Retried(1, [], None)


async def test_a_source_with_nothing_but_dead_letters_is_heard_again_if_one_is_retried(
    store: Store,
) -> None:
    await store.decisions.drop((store.epoch, "x.raw"), Range(5, 5))
    assert await store.spool.sources() == {}
    await store.decisions.retry((store.epoch, "x.raw"))
    assert await store.spool.sources() == {"x": "segments"}


async def test_a_record_that_was_given_up_meanwhile_is_neither_buried_nor_redeemed(
    store: Store,
) -> None:
    await store.decisions.drop((store.epoch, "x.raw"), Range(4, 4))
    await store.spool.bury("x", (4, "late"))
    await store.spool.redeem("x", 4, [])
    assert await store.spool.dead("x") == []


async def test_nothing_is_produced_yet(tmp_path: Path) -> None:
    async with made(tmp_path / "new") as store:
        assert await store.inventory.streams() == []
        assert await store.inventory.ledger() == {store.epoch: {}}
        await store.intake.append("a", [RAW])
        assert len((await store.inventory.page((store.epoch, "a"))).records) == 1
