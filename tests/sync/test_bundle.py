"""Exports and ack bundles, on a real store."""

import io
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent import config
from agent.errors import BundleError, EpochOver, NotNow, NotThere
from agent.protocol import ack, batch, bundle
from agent.records import Drop, Range, RecordType, digest
from agent.store.intake import New
from agent.store.slices import Slices
from tests.store.shop import LARGE, RAW, made, stocked
from tests.sync.bundles import (
    FLEET,
    PART_BYTES,
    STRANGER,
    Cargo,
    ack_bundle,
    all_parts,
    desk,
    fetched,
)


async def test_an_export_has_all_that_waits_and_changes_nothing(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        before = await store.ledger.by_epoch()
        export = await desk(store, tmp_path).begin(PART_BYTES)
        cargo = Cargo(*await all_parts(export))
        assert sorted(seq for _, seq in cargo.records) == [5, *range(7, 21)]
        assert cargo.drops["a"] == [Drop(6, 6, "operator")]
        assert cargo.blobs[("a", 20)] == LARGE.blob
        assert cargo.blobs[("a", 5)] == RAW.blob
        (sealed,) = cargo.sealed
        assert sealed.header.by == (await desk(store, tmp_path).key()).public
        assert sealed.footer.covers == {store.epoch: {"a": Range(5, 20)}}
        assert (sealed.footer.records, sealed.footer.more) == (15, False)
        assert await store.ledger.by_epoch() == before
        leased = await store.outbox.lease(1000, 1 << 24)
        assert leased is not None
        assert len(leased.records) == 15, "nothing of it was leased"
        again = Cargo(*await all_parts(await desk(store, tmp_path).begin(PART_BYTES)))
        assert (again.records, again.blobs) == (cargo.records, cargo.blobs)


@pytest.mark.parametrize("part_bytes", [1, 15_000, 100_000])
async def test_parts_follow_each_other_and_stay_below_their_size(
    tmp_path: Path, part_bytes: int
) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        store.held._slices = Slices(store._database, clock_s=iter(range(10**6)).__next__)
        whole = Cargo(*await all_parts(await desk(store, tmp_path).begin(PART_BYTES)))
        parts = await all_parts(await desk(store, tmp_path).begin(part_bytes))
        cargo = Cargo(*parts)
        assert (cargo.records, cargo.blobs, cargo.drops) == (
            whole.records,
            whole.blobs,
            whole.drops,
        )
        follows = ["", *(sealed.digest for sealed in cargo.sealed)]
        assert [one.header.follows for one in cargo.sealed] == follows[:-1]
        assert [one.header.part for one in cargo.sealed] == list(range(1, len(parts) + 1))
        assert [one.footer.more for one in cargo.sealed] == [True] * (len(parts) - 1) + [False]
        for part, sealed in zip(parts, cargo.sealed, strict=True):
            assert len(part) <= part_bytes or sealed.footer.records <= 1
        assert len(parts) > 1


async def test_it_ends_although_producers_go_on(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        export = await desk(store, tmp_path).begin(15_000)
        parts = []
        while number := export.state()["part_next"]:
            await store.intake.append("a", [RAW] * 30)
            await store.intake.append("new", [RAW])
            parts.append(await fetched(export, number))
            export.keep(number)
        cargo = Cargo(*parts)
        assert max(seq for _, seq in cargo.records) == 20
        assert cargo.order == ["a"]
        state = export.state()
        assert (state["records"], state["records_done"]) == (15, 15)
        assert state["size_bytes"] == state["size_bytes_done"]


async def test_a_part_that_was_broken_off_is_asked_for_again(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        export = await desk(store, tmp_path).begin(15_000)
        first = await fetched(export, 1)
        assert export.state()["part_next"] == 1, "it may not have been kept"
        with pytest.raises(NotThere, match="no part 2 now"):
            await fetched(export, 2)
        export.keep(1)
        broken = export.part(2)
        begun = await anext(broken) + await anext(broken)
        assert export.state()["part_next"] == 2
        whole = await fetched(export, 2)
        assert whole.startswith(begun)
        with pytest.raises(NotNow, match="not the last"):
            export.keep(1)
        with pytest.raises(NotNow, match="another asked"):
            await anext(broken)
        again = await fetched(export, 1)
        assert again == first
        export.keep(1)
        rest = await all_parts(export)
        whole = Cargo(*await all_parts(await desk(store, tmp_path).begin(PART_BYTES)))
        assert Cargo(first, *rest).records == whole.records


async def test_parts_come_in_their_order_and_of_the_last_export(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        bundles = desk(store, tmp_path)
        with pytest.raises(NotThere, match="there is no export"):
            bundles.export()
        empty = await bundles.begin(PART_BYTES)
        assert empty.state()["part_next"] is None
        await stocked(store)
        export = await bundles.begin(15_000)
        with pytest.raises(NotThere, match="no part 2 now"):
            await fetched(export, 2)
        with pytest.raises(NotThere, match="no part 0 now"):
            await fetched(export, 0)
        assert bundles.export(export.id) is export
        with pytest.raises(NotThere, match=empty.id):
            bundles.export(empty.id)


async def test_the_most_important_streams_go_first(tmp_path: Path) -> None:
    rules = [config.StreamRule(match="z", priority=9), config.StreamRule(match="b", priority=1)]
    async with made(tmp_path, streams=rules) as store:
        for name in ("b", "a", "z"):
            await store.intake.append(name, [RAW])
        cargo = Cargo(*await all_parts(await desk(store, tmp_path).begin(PART_BYTES)))
        assert cargo.order == ["z", "a", "b"]


async def test_dropped_ranges_are_told_to_the_last_however_many(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await store.intake.append("a", [RAW] * 2100)
        for seq in range(1, 2100, 2):
            await store.decisions.drop((store.epoch, "a"), Range(seq, seq))
        await store.decisions.drop((store.epoch, "a"), Range(2000, 2100))
        parts = await all_parts(await desk(store, tmp_path).begin(100_000))
        cargo = Cargo(*parts)
        held = {seq for _, seq in cargo.records}
        told = {seq for drop in cargo.drops["a"] for seq in range(drop.first, drop.last + 1)}
        assert held | told == set(range(1, 2101))
        assert not held & told


async def test_dead_letters_of_the_link_are_told_and_not_carried(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        for seq, retry in ((8, 0), (9, 1), (20, 0)):
            await store._database.write(
                spoil(
                    "INSERT INTO dead (stream, seq, cause, unsent, retry)"
                    f" VALUES (1, {seq}, 'refused', 1, {retry})"
                )
            )
        cargo = Cargo(*await all_parts(await desk(store, tmp_path).begin(PART_BYTES)))
        assert {seq for _, seq in cargo.records} == {5, 7, *range(9, 20)}
        assert cargo.drops["a"] == [
            Drop(6, 6, "operator"),
            Drop(8, 8, "dead"),
            Drop(20, 20, "dead"),
        ]


@pytest.mark.parametrize("part_bytes", [1, PART_BYTES])
async def test_dead_letters_below_the_mark_that_are_sent_again_leave_by_stick(
    tmp_path: Path, part_bytes: int
) -> None:
    """Each once, before what lies above the mark; the ack bundle that knows them purges them."""
    async with made(tmp_path) as store:
        await stocked(store)
        name, bundles = (store.epoch, "a"), desk(store, tmp_path)
        for seq in (8, 9, 10, 15):
            await store.outbox.bury(name, seq, "refused by the ingest")
        word = [Range(1, 14)], [Range(8, 10)]
        assert (await store.outbox.acknowledge(name, *word)).mark == 14
        assert (await store.decisions.retry(name, [8, 10, 15])).sending == 3
        export = await bundles.begin(part_bytes)
        (waiting,) = await store.outbox.waiting()
        assert export.state()["records"] == waiting.records == 8
        parts = await all_parts(export)
        cargo, sealed = Cargo(*parts), [Cargo(part).records for part in parts]
        assert {seq for _, seq in cargo.records} == {8, 10, *range(15, 21)}
        assert sum(map(len, sealed)) == 8, "each once"
        assert cargo.drops["a"] == []

        stale = ack.Ack({store.epoch: {"a": ack.StreamAck(14, dead=[Range(8, 10)])}})
        assert (await bundles.take(ack_bundle(stale)))["delivered"] == 0, "it came before these"
        word_of_all = ack.Ack({store.epoch: {"a": ack.StreamAck(20, dead=[Range(9, 9)])}})
        assert (await bundles.take(ack_bundle(word_of_all)))["delivered"] == 8
        assert (await store.ledger.balances())["a"].held == 1
        assert await store.ledger.faults() == []
        assert (await bundles.begin(part_bytes)).state()["part_next"] is None


async def test_a_retried_dead_letter_alone_is_an_export(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        name, bundles = (store.epoch, "a"), desk(store, tmp_path)
        await store.outbox.bury(name, 8, "refused by the ingest")
        await store.outbox.acknowledge(name, [Range(1, 20)], [Range(8, 8)])
        assert await all_parts(await bundles.begin(PART_BYTES)) == []
        await store.decisions.retry(name)
        cargo = Cargo(*await all_parts(await bundles.begin(PART_BYTES)))
        assert list(cargo.records) == [("a", 8)]
        (sealed,) = cargo.sealed
        assert sealed.footer.covers == {store.epoch: {"a": Range(8, 8)}}


def spoil(sql: str) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute(sql).rowcount


async def test_what_the_disk_damaged_is_given_up_and_told(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        await store._database.write(
            spoil("UPDATE records SET body = zeroblob(8) WHERE id = (1 << 40 | 7)")
        )
        await store._database.write(
            spoil(
                "UPDATE chunks SET data = zeroblob(9) WHERE id >> 12 ="
                " (SELECT blob FROM records WHERE id = (1 << 40 | 9))"
            )
        )
        cargo = Cargo(*await all_parts(await desk(store, tmp_path).begin(PART_BYTES)))
        assert {seq for _, seq in cargo.records} == {5, 8, *range(10, 21)}
        assert Drop(6, 6, "operator") in cargo.drops["a"]
        balance = (await store.ledger.balances())["a"]
        assert balance.dropped == {"operator": 1, "corruption": 2}
        assert balance.balanced


async def test_what_was_acknowledged_meanwhile_is_left_out(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        export = await desk(store, tmp_path).begin(15_000)
        await fetched(export, 1)
        export.keep(1)
        await store.outbox.acknowledge((store.epoch, "a"), [Range(1, 19)])
        cargo = Cargo(*await all_parts(export))
        assert set(cargo.records) == {("a", 20)}


async def test_a_file_that_was_put_aside_ends_the_export(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        export = await desk(store, tmp_path).begin(15_000)
        extents = [msgspec.structs.replace(one, file="former") for one in export._extents]
        export._extents = extents
        with pytest.raises(EpochOver):
            await fetched(export)


# Acks


async def test_an_ack_bundle_purges_what_it_says_and_no_more(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        bundles = desk(store, tmp_path)
        word = ack.Ack(
            {
                store.epoch: {"a": ack.StreamAck(10, [Range(20, 20)]), "x": ack.StreamAck(9)},
                "former life": {"a": ack.StreamAck(100)},
            }
        )
        with pytest.raises(BundleError):
            await bundles.take(ack_bundle(word)[:-1])
        assert (await store.ledger.balances())["a"].delivered == 4, "all or nothing"
        word.epochs[store.epoch].pop("x")
        taken = await bundles.take(ack_bundle(word))
        assert (taken["verdict"], taken["delivered"]) == ("taken", 6)
        balance = (await store.ledger.balances())["a"]
        assert (balance.delivered, balance.held, balance.balanced) == (10, 9, True)
        taken = await bundles.take(ack_bundle(word))
        assert (taken["verdict"], taken["delivered"]) == ("nothing_new", 0)
        older = ack.Ack({store.epoch: {"a": ack.StreamAck(2)}})
        assert (await bundles.take(ack_bundle(older)))["verdict"] == "nothing_new"
        assert (await store.ledger.balances())["a"] == balance
        cargo = Cargo(*await all_parts(await bundles.begin(PART_BYTES)))
        assert {seq for _, seq in cargo.records} == set(range(11, 20))
        assert await store.ledger.faults() == []


async def test_an_ack_beyond_what_was_produced_is_contradicted(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        word = ack.Ack({store.epoch: {"a": ack.StreamAck(21)}})
        taken = await desk(store, tmp_path).take(ack_bundle(word))
        assert (taken["verdict"], taken["delivered"]) == ("contradiction", 0)
        assert "only 20 were ever produced" in taken["refused"][0]


async def test_an_ack_of_another_life_of_this_epoch_is_contradicted(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        held = await store.outbox.lease(100, 1 << 20)
        assert held is not None
        (body,) = (record.body for record in held.records if record.seq == 10)
        other = ack.StreamAck(10, refused=[Range(20, 20)], tail=(10, digest(b"another")))
        before = await store.ledger.by_epoch()
        taken = await desk(store, tmp_path).take(ack_bundle(ack.Ack({store.epoch: {"a": other}})))
        assert (taken["verdict"], taken["delivered"]) == ("contradiction", 0)
        assert "another record is stored" in taken["refused"][0]
        assert await store.ledger.by_epoch() == before
        assert await store.outbox.buried() == []
        right = ack.StreamAck(10, tail=(10, digest(body)))
        taken = await desk(store, tmp_path).take(ack_bundle(ack.Ack({store.epoch: {"a": right}})))
        assert (taken["verdict"], taken["delivered"]) == ("taken", 5)


async def test_an_export_names_the_record_before_each_batch(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        made_of = [b'{"n":%d,"x":"%s"}' % (n, b"x" * 4000) for n in range(12)]
        await store.intake.append("a", [New(RecordType.SEGMENT, body) for body in made_of])
        befores = {}
        bodies = {}
        for part in await all_parts(await desk(store, tmp_path).begin(15_000)):
            for kind, payload in bundle.frames(io.BytesIO(part)):
                if kind == bundle.BATCH:
                    header, events = batch.decode(payload)
                    befores[header.first] = header.before
                    bodies |= {event.sequence: bytes(event.data) for event in events}
        told = {first: digest(bodies[first - 1]) for first in befores if first - 1 in bodies}
        assert told, "more than one batch"
        assert {first: before for first, before in befores.items() if before is not None} == told


async def test_an_ack_bundle_that_is_not_for_us_changes_nothing(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await stocked(store)
        before = await store.ledger.by_epoch()
        word = ack.Ack({store.epoch: {"a": ack.StreamAck(20)}})
        (data,) = await all_parts(await desk(store, tmp_path).begin(PART_BYTES))
        right = ack_bundle(word)
        for content, settings, verdict in (
            (ack_bundle(word, device="e"), {}, "wrong_device"),
            (ack_bundle(word, key=STRANGER), {}, "stranger"),
            (ack_bundle(word, key=await desk(store, tmp_path).key()), {}, "stranger"),
            (right, {"fleet_keys": []}, "no_fleet_key"),
            (right, {"fleet_keys": [STRANGER.public]}, "stranger"),
            (data, {}, "not_an_ack"),
            (data[:2000], {}, "not_an_ack"),
            (right[:-1], {}, "cut_off"),
            (right.replace(FLEET.public.encode(), STRANGER.public.encode()), {}, "damaged"),
            (b"nothing of the kind", {}, "not_a_bundle"),
        ):
            with pytest.raises(BundleError) as caught:
                await desk(store, tmp_path, **settings).take(content)
            assert (caught.value.verdict, bool(caught.value.hint)) == (verdict, True)
        assert await store.ledger.by_epoch() == before
        taken = await desk(store, tmp_path).take(right)
        assert taken["delivered"] == 15
