"""A damaged store file: the store accepts again at once, and all that is whole reaches the cloud.

Each kind of damage is done to a file of realistic content; then a cloud drains what there is. What
does not come is counted as lost, record by record; what comes is what was accepted.
"""

import asyncio
import contextlib
import random
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError
from agent.records import Range, RecordType
from agent.store import quarantine
from agent.store.intake import New
from agent.store.store import Store
from tests.outside import DEADLINE_S, ROOT
from tests.store.faults import corrupt
from tests.store.faults.child import LONG, SEED

Whole = dict[tuple[str, str, int], tuple[bytes, bytes]]  # by epoch, stream, seq: body, blob
STREAMS = ("a.segments", "b.segments", "c.raw")
KINDS: dict[str, corrupt.Damage] = {
    "the header": corrupt.header,
    "the schema": corrupt.schema,
    **{f"a leaf of {table}": corrupt.leaf(table) for table in ("records", "chunks")},
    **{f"the leaf of {table}": corrupt.leaf(table) for table in ("streams", "meta", "dropped")},
    "an inner page of records": corrupt.interior("records"),
    "an inner page of chunks": corrupt.interior("chunks"),
    "a long row of records": corrupt.overflow("records"),
    "a long row of chunks": corrupt.overflow("chunks"),
    "half of the file": lambda db, _: corrupt.truncate(db, 0.5),
    "all but a third of the file": lambda db, _: corrupt.truncate(db, 0.33),
    "all of the file": lambda db, _: corrupt.truncate(db, 0),
    "garbage": corrupt.garbage,
    "the file is removed": lambda db, _: db.unlink() or "it is gone",
}


def made(folder: Path) -> Store:
    return Store(Settings(path=str(folder / "s.db")), Clock())


async def fill(store: Store, chance: random.Random, count: int) -> Whole:
    """So many records, some with a blob, some long."""
    whole: Whole = {}
    for _ in range(count // 20):
        name = chance.choice(STREAMS)
        new = [record(chance) for _ in range(20)]
        receipt = await store.intake.append(name, new)
        for seq, one in enumerate(new, receipt.first):
            whole[store.epoch, name, seq] = one.body, one.blob
    return whole


def record(chance: random.Random) -> New:
    filler = "x" * (chance.randint(5_000, 9_000) if chance.random() < 0.05 else 300)
    body = f'{{"n":{chance.getrandbits(60)},"of":"{filler}"}}'.encode()
    blob = chance.randbytes(chance.randint(1, 90_000)) if chance.random() < 0.05 else b""
    return New(RecordType.SEGMENT, body, blob)


async def used(folder: Path, chance: random.Random) -> tuple[Whole, str]:
    """A store as it lies after some use: what is held, and its epoch."""
    async with made(folder) as store:
        whole = await fill(store, chance, 2000)
        for _ in range(4):
            batch = await store.outbox.lease(60, 1 << 20)
            gone = Range(batch.span.first + 5, batch.span.last)  # out of turn
            await store.outbox.acknowledge(batch.name, [gone])
            for seq in range(gone.first, gone.last + 1):
                whole.pop((*batch.name, seq), None)
        return whole, store.epoch


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Store]:
    async with made(folder) as store:
        saving = asyncio.create_task(store.salvage.run())
        try:
            yield store
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)


async def drained(store: Store) -> Whole:
    """All that the outbox gives, acknowledged; until what was put aside is read to its end."""
    got: Whole = {}
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await taken(store, got, 500):
                continue
            if all(one.state == "done" for one in await store.salvage.reports()):
                return got
            await asyncio.sleep(0.01)


async def taken(store: Store, got: Whole, count: int) -> bool:
    """The cloud takes one batch, and acknowledges what came whole; whether there was one."""
    batch = await store.outbox.lease(count, 1 << 20)
    if batch is None:
        return False
    first = batch.span.first
    for one in batch.records:
        blob = await store.outbox.blob(one, 0, one.blob_bytes) if one.blob_bytes else b""
        if len(blob) != one.blob_bytes:  # it was damaged, or its file is gone
            await store.outbox.acknowledge(batch.name, [Range(first, one.seq - 1)])
            store.outbox.rewind(batch.name)
            return True
        got[(*batch.name, one.seq)] = one.body, blob
    await store.outbox.acknowledge(batch.name, [batch.span])
    return True


@pytest.mark.parametrize("seed", range(20 if LONG else 1))
@pytest.mark.parametrize("kind", KINDS)
async def test_damage_while_it_was_closed(tmp_path: Path, kind: str, seed: int) -> None:
    chance = random.Random(f"{SEED}:{kind}:{seed}")
    whole, epoch = await used(tmp_path, chance)
    said = KINDS[kind](tmp_path / "s.db", chance)
    async with serving(tmp_path) as store:
        receipt = await store.intake.append("a.segments", [New(RecordType.SEGMENT, b"{}")])
        fresh = (store.epoch, "a.segments", receipt.last)
        got = await drained(store)
        await store.ledger.by_epoch()  # whatever it is that is damaged: it is met by now
        got |= await drained(store)
        again = await store.intake.append("a.segments", [New(RecordType.SEGMENT, b"{}")])
        assert again.last >= 1
        assert fresh in got or store.epoch != fresh[0], said
        await judged(store, epoch, whole, got, said)
        assert await store.ledger.faults() == [], said


async def judged(store: Store, epoch: str, whole: Whole, got: Whole, said: str) -> None:
    """What came is what was accepted; what did not is lost, and counted."""
    old = {key: content for key, content in got.items() if key in whole}
    assert all(whole[key] == content for key, content in old.items()), said
    strangers = [key for key in got if key[0] == epoch and key not in whole]
    assert len(strangers) <= 1, f"{said}: {strangers[:5]} were never accepted, or were acked"
    missing = len(whole) - len(old)
    ledger = (await store.ledger.by_epoch()).get(epoch, {})
    counted = sum(balance.dropped.get("corruption", 0) for balance in ledger.values())
    reports = await store.salvage.reports()
    if missing and ledger:
        assert counted >= missing, f"{said}: {missing} did not come, {counted} are counted"
    assert missing == 0 or reports or counted, said
    for report in reports:
        assert report.state == "done"
        assert report.cause
        assert report.epoch in (epoch, "")
        assert report.lost >= missing or not report.exact, said


@pytest.mark.parametrize("kind", ["a leaf of records", "a leaf of chunks"])
async def test_a_leaf_costs_only_what_was_on_it(tmp_path: Path, kind: str) -> None:
    chance = random.Random(f"{SEED}:{kind}")
    whole, epoch = await used(tmp_path, chance)
    KINDS[kind](tmp_path / "s.db", chance)
    async with serving(tmp_path) as store:
        got = await drained(store)
        assert store.epoch != epoch, "it was met, and put aside"
        (report,) = await store.salvage.reports()
        assert (report.epoch, report.state, report.exact) == (epoch, "done", True)
        missing = len(whole) - len(set(got) & set(whole))
        assert 0 < missing <= report.lost < 40
        assert (tmp_path / "s.db.quarantine" / report.name / "s.db").exists(), "it is kept"


async def test_a_header_costs_nothing(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    whole, _ = await used(tmp_path, chance)
    corrupt.header(tmp_path / "s.db", chance)
    damaged = (tmp_path / "s.db").read_bytes()[:64]
    async with serving(tmp_path) as store:
        got = await drained(store)
        assert {key: got.get(key) for key in whole} == whole
        (report,) = await store.salvage.reports()
        assert (report.saved, report.lost, report.exact) == (len(whole), 0, True)
        aside = tmp_path / "s.db.quarantine" / report.name
        replaced = aside / "s.db.page1"  # unless SQLite reads it as it is
        kept = replaced if replaced.exists() else aside / "s.db"
        assert kept.read_bytes()[:64] == damaged


async def test_a_flipped_bit_in_the_wal_is_not_a_silent_end(tmp_path: Path) -> None:
    """SQLite would end its recovery there, forget what was accepted, and give its seqs again."""
    chance = random.Random(SEED)
    copy = tmp_path / "copy"
    copy.mkdir()
    async with made(tmp_path) as store:
        await store.intake.append("a.segments", [record(chance)])
        await store._database.read(lambda c: c.execute("SELECT 1").fetchall())
        whole = await fill(store, chance, 400)
        epoch = store.epoch
        for part in ("", "-wal", ".head"):  # as a kill leaves it
            (copy / f"s.db{part}").write_bytes((tmp_path / f"s.db{part}").read_bytes())
    said = corrupt.frame(copy / "s.db-wal", chance)
    async with serving(copy) as store:
        assert store.epoch != epoch, said
        got = await drained(store)
        assert set(got) & set(whole), "what the WAL holds before that is saved"
        (report,) = await store.salvage.reports()
        assert not report.exact, "nobody knows how much came behind it"
        for name in {key[1] for key in whole}:
            receipt = await store.intake.append(name, [record(chance)])
            assert (store.epoch, name, receipt.first) not in whole
        assert await store.ledger.faults() == []


async def test_it_is_gone_on_with_after_a_kill_in_the_middle(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    whole, _ = await used(tmp_path, chance)
    corrupt.leaf("records")(tmp_path / "s.db", chance)
    got: Whole = {}
    rounds = 0
    while rounds < 50:
        rounds += 1
        async with made(tmp_path) as store:
            saving = asyncio.create_task(store.salvage.run())
            while not saving.done():
                more = await taken(store, got, 40)
                with contextlib.suppress(StoreError):  # it was just put aside
                    assert await store.ledger.faults() == []
                reports = await store.salvage.reports()
                if chance.random() < 0.1 or (reports and not more):
                    break
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            if reports and reports[0].state == "done":
                break
    async with serving(tmp_path) as store:
        got |= await drained(store)
        (report,) = await store.salvage.reports()
        assert await store.ledger.faults() == []
    missing = len(whole) - len(set(got) & set(whole))
    assert missing <= report.lost < 40
    assert rounds > 1


async def test_a_cloud_that_has_more_than_the_damaged_file_settles_it(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    _, epoch = await used(tmp_path, chance)
    corrupt.truncate(tmp_path / "s.db", 0)
    async with serving(tmp_path) as store:
        await drained(store)
        (report,) = await store.salvage.reports()
        assert not report.exact
        before = (await store.ledger.by_epoch())[epoch]["a.segments"]
        mark = before.produced + 7
        await store.outbox.acknowledge((epoch, "a.segments"), [Range(1, mark)])
        after = (await store.ledger.by_epoch())[epoch]["a.segments"]
        assert (after.produced, after.balanced) == (mark, True)


async def test_damage_that_is_met_while_it_runs(tmp_path: Path) -> None:
    """Reads fail; what is appended meanwhile is accepted, before and after."""
    chance = random.Random(SEED)
    async with serving(tmp_path) as store:
        whole = await fill(store, chance, 3000)
        with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            for _ in range(3):
                said = corrupt.leaf("records")(tmp_path / "s.db", chance)
        calls = [store.intake.append("d.segments", [record(chance)]) for _ in range(50)]
        receipts, got = await asyncio.gather(asyncio.gather(*calls), drained(store))
        assert sorted(one.first for one in receipts) == sorted({one.first for one in receipts})
        got |= await drained(store)
        missing = len(whole) - len(set(got) & set(whole))
        assert missing < 200, said
        assert await store.ledger.faults() == []


KILLED = """
import asyncio, os, sys
from pathlib import Path
from agent.clock import Clock
from agent.config import Store as Settings
from agent.store import quarantine
from agent.store.store import Store

renamed, left = Path.rename, int(sys.argv[2])
STEPS = 4  # the file, its WAL, its head, and the folder that holds them

def rename(path, target):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    return renamed(path, target)

Path.rename = rename
if left == STEPS:
    quarantine.note = lambda *_: os._exit(9)

async def main():
    async with Store(Settings(path=sys.argv[1]), Clock()):
        pass

asyncio.run(main())
"""


@pytest.mark.parametrize("moves", range(5))
async def test_killed_while_it_is_put_aside(tmp_path: Path, moves: int) -> None:
    """After so many of its files were moved; the last time before the new file knows of it."""
    whole, epoch = await used(tmp_path, random.Random(SEED))
    corrupt.header(tmp_path / "s.db", random.Random(SEED))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "s.db"), str(moves)]
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    assert await child.wait() == 9
    async with serving(tmp_path) as store:
        got = await drained(store)
        assert {key: got.get(key) for key in whole} == whole
        (report,) = await store.salvage.reports()
        assert (report.epoch, report.saved) == (epoch, len(whole))
        assert await store.ledger.faults() == []


async def test_the_backup_of_a_former_epoch_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its seqs were given out once already; what of them is whole goes out under them again."""
    chance, backup = random.Random(SEED), tmp_path / "backup"
    whole, first = await used(tmp_path, chance)
    backup.write_bytes((tmp_path / "s.db").read_bytes())
    (tmp_path / "s.db").unlink()
    async with serving(tmp_path) as store:
        later = await fill(store, chance, 40)
        second = store.epoch
    backup.rename(tmp_path / "s.db")
    async with serving(tmp_path) as store:
        assert store.epoch not in (first, second)
        got = await drained(store)
        assert {key: got.get(key) for key in whole} == whole
        reports = {one.epoch: one for one in await store.salvage.reports()}
        assert reports[second].lost >= len(later), "it is said that they are gone"
        assert await store.ledger.faults() == []


async def test_what_is_saved_into_may_be_damaged_itself(tmp_path: Path) -> None:
    """All that was held in the first file is saved into the third, once it is accepted there."""
    chance = random.Random(SEED)
    whole, _ = await used(tmp_path, chance)
    corrupt.header(tmp_path / "s.db", chance)
    async with serving(tmp_path) as store:
        later = await fill(store, chance, 40)
        async with asyncio.timeout(DEADLINE_S):
            while (await store.salvage.reports())[0].saved == 0:
                await asyncio.sleep(0.001)
    corrupt.header(tmp_path / "s.db", chance)
    async with serving(tmp_path) as store:
        got = await drained(store)
        assert {key: got.get(key) for key in whole | later} == whole | later
        assert await store.ledger.faults() == []


async def test_what_was_saved_is_not_read_again(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    whole, first = await used(tmp_path, chance)
    corrupt.header(tmp_path / "s.db", chance)
    async with serving(tmp_path) as store:
        await drained(store)
    corrupt.header(tmp_path / "s.db", chance)
    async with serving(tmp_path) as store:
        got = await drained(store)
        assert not {key for key in got if key in whole}, "the cloud has them"
        reports = await store.salvage.reports()
        assert [(one.epoch == first, one.state) for one in reports] == [
            (True, "done"),
            (False, "done"),
        ]


async def test_a_wal_goes_with_its_own_file(tmp_path: Path) -> None:
    """One file lies aside already when the next is gone, and has left its WAL behind."""
    chance, copy = random.Random(SEED), tmp_path / "copy"
    whole, _ = await used(tmp_path, chance)
    corrupt.header(tmp_path / "s.db", chance)
    async with made(tmp_path) as store:
        await fill(store, chance, 400)
        shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("copy"))  # as by a kill
    (copy / "s.db").unlink()
    async with serving(copy) as store:
        got = await drained(store)
        assert {key: got.get(key) for key in whole} == whole
        assert await store.ledger.faults() == []


def bend(db: Path, count: int, how: Callable[[Path, int], str]) -> None:
    """Do it to so many rows of records, at the first column of each in the file."""
    content, at = db.read_bytes(), 0
    for _ in range(count):
        at = content.index(b"holdfast.segment.v1", at + 1)
    how(db, at)


ROWS = {
    "its body is text": lambda db, at: corrupt.xor(db, at - 1, 1),  # the last type in its header
    "its type is no text": lambda db, at: corrupt.xor(db, at, 0x80),
    "its boot is another": lambda db, at: corrupt.xor(db, at + 22, 1),
}


@pytest.mark.parametrize("kind", ROWS)
async def test_a_bit_in_a_row_costs_that_row(tmp_path: Path, kind: str) -> None:
    whole, epoch = await used(tmp_path, random.Random(SEED))
    bend(tmp_path / "s.db", 30, ROWS[kind])
    async with serving(tmp_path) as store:
        assert [one for one in await store.ledger.faults() if "CRC" in one], "verify names it"
        got = await drained(store)
        assert store.epoch == epoch
        assert len(set(whole) - set(got)) == 1
        ledger = await store.ledger.balances()
        assert sum(one.dropped.get("corruption", 0) for one in ledger.values()) == 1


async def test_a_verify_that_meets_damage_has_the_file_put_aside(tmp_path: Path) -> None:
    _, epoch = await used(tmp_path, random.Random(SEED))
    corrupt.leaf("records")(tmp_path / "s.db", random.Random(SEED))
    async with serving(tmp_path) as store:
        while store.epoch == epoch:  # a file that was only opened anew is verified again
            with pytest.raises(StoreError, match="opened anew"):
                await store.ledger.faults()
        await drained(store)
        assert await store.ledger.faults() == []


async def test_an_older_copy_of_the_file_is_not_gone_on_with(tmp_path: Path) -> None:
    chance, backup = random.Random(SEED), tmp_path / "backup"
    whole, epoch = await used(tmp_path, chance)
    backup.write_bytes((tmp_path / "s.db").read_bytes())
    async with made(tmp_path) as store:
        later = await fill(store, chance, 100)
    backup.rename(tmp_path / "s.db")
    async with serving(tmp_path) as store:
        assert store.epoch != epoch
        got = await drained(store)
        assert {key: got.get(key) for key in whole} == whole
        (report,) = await store.salvage.reports()
        assert (report.lost, report.exact) == (len(later), False), report
        assert await store.ledger.faults() == []


async def test_what_a_cloud_knows_beyond_is_counted_as_it_names_it(tmp_path: Path) -> None:
    _, epoch = await used(tmp_path, random.Random(SEED))
    corrupt.header(tmp_path / "s.db", random.Random(SEED))
    async with serving(tmp_path) as store:
        await drained(store)
        before = (await store.ledger.by_epoch())[epoch]["a.segments"]
        end = before.produced
        await store.outbox.acknowledge((epoch, "a.segments"), [Range(end + 5, end + 9)])
        after = (await store.ledger.by_epoch())[epoch]["a.segments"]
        assert after.delivered == before.delivered + 5
        assert after.dropped["corruption"] == before.dropped.get("corruption", 0) + 4
        assert after.balanced


async def test_only_so_many_damaged_files_are_kept(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    await used(tmp_path, chance)
    for _ in range(quarantine.KEPT_MAX + 2):
        corrupt.header(tmp_path / "s.db", chance)
        async with serving(tmp_path) as store:
            await store.intake.append("a.segments", [record(chance)])
            await drained(store)
    async with serving(tmp_path) as store:
        kept = [folder.name[:4] for folder in quarantine.kept(tmp_path / "s.db")]
        assert kept == ["0003", "0004", "0005"]
        assert len(await store.salvage.reports()) == quarantine.KEPT_MAX


async def test_two_leaves_are_damaged(tmp_path: Path) -> None:
    """Counters that are damaged themselves never make a ledger that cannot be."""
    for seed in range(20 if LONG else 4):
        chance, folder = random.Random(f"{SEED}.{seed}"), tmp_path / str(seed)
        whole, epoch = await used(folder, chance)
        said = [
            corrupt.leaf(table)(folder / "s.db", chance)
            for table in chance.sample(["records", "drops", "dropped", "streams", "chunks"], 2)
        ]
        async with serving(folder) as store:
            got = await drained(store)
            for _ in range(2):
                with contextlib.suppress(StoreError):
                    await store.ledger.by_epoch()
                got |= await drained(store)
            for balance in (await store.ledger.by_epoch()).get(epoch, {}).values():
                counts = (balance.produced, balance.delivered, balance.held)
                assert min(counts) >= 0, f"{said}: {balance}"
                assert balance.balanced, f"{said}: {balance}"
            assert {key for key in got if key in whole}


async def test_what_is_removed_while_it_is_read_ends_nothing(tmp_path: Path) -> None:
    await used(tmp_path, random.Random(SEED))
    corrupt.header(tmp_path / "s.db", random.Random(SEED))
    async with made(tmp_path) as store:
        shutil.rmtree(tmp_path / "s.db.quarantine")
        saving = asyncio.create_task(store.salvage.run())
        await drained(store)
        await store.intake.append("a.segments", [record(random.Random(SEED))])
        assert not saving.done()
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
