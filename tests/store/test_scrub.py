"""The scrub: what the disk has damaged is found and given up, and nothing else."""

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError
from agent.records import Position, Range, RecordType, Segment
from agent.store import scrub, streams
from agent.store.intake import New
from agent.store.scrub import Found, Walk
from agent.store.store import Store
from tests.audio.bed import soon

OTHER = RecordType.RAW


def content(name: str, size: int) -> bytes:
    """The same for whoever asks, and like nothing else."""
    return b"".join(hashlib.sha256(f"{name}:{i}".encode()).digest() for i in range(size // 32))


def made(folder: Path, scrub_s: float = 0.01) -> Store:
    return Store(Settings(path=str(folder / "s.db"), scrub_s=scrub_s), Clock())


def segment(name: str, flac: bytes) -> tuple[Segment, bytes]:
    sha = hashlib.sha256(flac).hexdigest()
    return Segment(name, "x", 1, name, 0, 1, 0.5, 0, "m", "CPU", sha, len(flac)), flac


def flip(folder: Path, what: bytes) -> None:
    """One bit of it, where it lies in the file."""
    path = folder / "s.db"
    file = bytearray(path.read_bytes())
    assert file.count(what) == 1, "it is in the file, once"
    file[file.index(what) + len(what) // 2] ^= 1
    path.write_bytes(file)


class Told:
    """What the scrub told, the latest."""

    def __init__(self) -> None:
        self.times = 0
        self.found: dict[str, Found] = {}

    def __call__(self, found: dict[str, Found]) -> None:
        self.times += 1
        self.found = msgspec.convert(msgspec.to_builtins(found), dict[str, Found])


@asynccontextmanager
async def scrubbing(store: Store) -> AsyncIterator[Told]:
    told = Told()
    task = asyncio.create_task(store.scrub.run(told))
    yield told
    if task.done():
        await task
    task.cancel()
    await asyncio.wait([task])


async def a_pass_more(store: Store) -> None:
    """Wait until one whole pass was made that began after now."""
    passes = store.scrub.state()["passes"]
    await soon(lambda: store.scrub.state()["passes"] >= passes + 2, "a whole pass")


async def seqs(store: Store, stream: str) -> list[int]:
    rows = await store._database.read(
        lambda c: c.execute(
            "SELECT seq FROM records JOIN streams ON streams.id = stream WHERE name = ?"
            " ORDER BY records.id",
            (stream,),
        ).fetchall()
    )
    return [seq for (seq,) in rows]


async def fill(store: Store) -> None:
    """Ten records with a body alone, five segments of which the third is long, in this order."""
    for i in range(10):
        await store.intake.append("a", [New(OTHER, b'"' + content(f"a{i}", 320).hex().encode())])
    for i in range(5):
        flac = content(f"x{i}", 300_000 if i == 2 else 3_200)
        await store.spool.keep("x", [segment(f"x{i}", flac)], Position(1, i), "segments")


async def test_what_is_sound_stays(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await fill(store)
        await store.intake.append("a", [New(RecordType.SEGMENT, b"no JSON", b"x" * 99)])
        async with scrubbing(store) as told:
            await a_pass_more(store)
        assert told.found == {}
        assert (await seqs(store, "a"), await seqs(store, "x.segments")) == (
            list(range(1, 12)),
            list(range(1, 6)),
        )
        state = store.scrub.state()
        assert state["damaged"] == 0
        assert state["checked"] >= state["passes"] * 16


async def test_what_is_damaged_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        await fill(store)
    flip(tmp_path, content("a6", 320).hex().encode()[:64])  # a body
    flip(tmp_path, content("x1", 3_200)[-64:])  # a blob of one piece
    flip(tmp_path, content("x2", 300_000)[200_000:200_064])  # the fourth piece of one
    async with made(tmp_path) as store:
        async with scrubbing(store) as told:
            await soon(lambda: store.scrub.state()["damaged"] == 3, "all damage is found")
            assert told.found == {"a": Found(1, [7]), "x.segments": Found(2, [2, 3])}
            await soon(lambda: told.found == {}, "two whole passes found no more")
        assert await seqs(store, "a") == [1, 2, 3, 4, 5, 6, 8, 9, 10]
        assert await seqs(store, "x.segments") == [1, 4, 5]
        ledger = await store.ledger.balances()
        assert ledger["a"].dropped == {"corruption": 1}
        assert ledger["x.segments"].dropped == {"corruption": 2}
        assert await store.ledger.faults() == []
        orphans = "SELECT id >> 12 FROM chunks EXCEPT SELECT blob FROM records"
        assert await store._database.read(lambda c: c.execute(orphans).fetchall()) == []


DAMAGE = {
    "another digest": "UPDATE records SET crc = crc + 1 WHERE seq = 3",
    "a body that is text": "UPDATE records SET body = CAST('{}' AS BLOB) WHERE seq = 3",
    "a piece that is missing": "DELETE FROM chunks WHERE id & 4095 = 2",
    "the last piece missing": "DELETE FROM chunks WHERE id & 4095 = 4",
    "a blob cut short": "UPDATE records SET blob_bytes = blob_bytes - 32 WHERE seq = 3",
    "a blob grown": "UPDATE records SET blob_bytes = blob_bytes + 32 WHERE seq = 3",
    "a blob that is nowhere": "UPDATE records SET blob = 99 WHERE seq = 3",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_whatever_is_wrong_with_a_record(tmp_path: Path, damage: str) -> None:
    async with made(tmp_path) as store:
        for i in range(5):
            flac = content(f"x{i}", 300_000 if i == 2 else 3_200)
            await store.spool.keep("x", [segment(f"x{i}", flac)], Position(1, i), "segments")
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert db.execute(DAMAGE[damage]).rowcount == 1
    db.close()
    async with made(tmp_path) as store:
        async with scrubbing(store):
            await soon(lambda: store.scrub.state()["damaged"] == 1, "it is found")
            await a_pass_more(store)
        assert 3 not in await seqs(store, "x.segments")
        assert len(await seqs(store, "x.segments")) == 4
        assert (await store.ledger.balances())["x.segments"].dropped == {"corruption": 1}


async def test_raw_audio_that_waits_to_be_heard_is_the_listeners_to_give_up(
    tmp_path: Path,
) -> None:
    async with made(tmp_path) as store:
        take = await store.spool.begin("x", "a.wav", "1:1")
        for i in range(4):
            take = await store.spool.accept(take, content(f"r{i}", 32_000))
        await store.spool.keep("x", [], Position(take.id, 0, next_seq=3), "all")
    for i in (1, 2):
        flip(tmp_path, content(f"r{i}", 32_000)[640:704])
    async with made(tmp_path) as store:
        async with scrubbing(store) as told:
            await soon(lambda: store.scrub.state()["passes"] >= 1, "a pass")
            assert told.found["x.raw"].seqs[-1] == 3
            assert await seqs(store, "x.raw") == [1, 3, 4], "the second is the uplink's"
            assert (await store.spool.waiting("x", 3, 1))[0][1] is None
            dead = (3, "its row in the store is damaged")
            await store.spool.keep("x", [], Position(take.id, 0, next_seq=3), "all", dead)
            await soon(lambda: told.found == {}, "a dead letter is told of by the listener")
        assert await seqs(store, "x.raw") == [1, 3, 4]
        assert (await store.ledger.balances())["x.raw"].dropped == {"corruption": 1}
        assert await store.ledger.faults() == []


async def test_a_record_that_is_sent_while_its_blob_is_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its blob's number becomes another's."""
    monkeypatch.setattr(scrub, "SLICE_S", 0.0)  # one look a slice
    async with made(tmp_path) as store:
        await store.spool.keep(
            "x", [segment("x0", content("x0", 300_000))], Position(1, 0), "segments"
        )
        walk, read = Walk(), store._database.read
        for _ in range(3):
            await read(lambda c: walk.slice(c, 99))
        assert not walk.checked
        await store.outbox.lease(9, 9999)
        await store.outbox.acknowledge((store.epoch, "x.segments"), [Range(1, 1)])
        await store.intake.append("a", [New(OTHER, b"{}", content("y", 200_000))])
        while not walk.over:
            await read(lambda c: walk.slice(c, 99))
        assert (walk.checked, walk.damaged) == (1, [])


async def test_what_was_found_in_another_file_is_not_dropped_from_this_one(
    tmp_path: Path,
) -> None:
    """A corrupt file was put aside meanwhile, and the keys are used again."""
    async with made(tmp_path) as store:
        await fill(store)
        for epoch, left in (("0" * 16, 10), (store.epoch, 9)):
            await store._database.write(lambda c, e=epoch: scrub._give_up(c, streams.key(1, 5), e))
            assert len(await seqs(store, "a")) == left


async def test_a_slice_ends_with_its_time_and_the_next_goes_on(tmp_path: Path) -> None:
    """A clock in the store's thread that a test cannot turn: so only that it ends, and goes on."""
    async with made(tmp_path) as store:
        flac = content("x0", 32 << 20)
        await store.spool.keep("x", [segment("x0", flac)], Position(1, 0), "segments")
        walk, slices = Walk(), 0
        while not walk.over:
            await store._database.read(lambda c: walk.slice(c, 99))
            slices += 1
        assert (walk.checked, walk.damaged) == (1, [])
        assert slices > 2, "32 MiB are more than one slice"


async def test_what_cannot_be_read_is_told_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "TICK_S", 0.01)
    look, bad = scrub._Blob.look, StoreError("disk I/O error", "check the disk")

    def sick(blob: Any, connection: sqlite3.Connection) -> Any:
        if blob.size == 300_000 and blob.read > 0:
            raise bad
        return look(blob, connection)

    async with made(tmp_path) as store:
        await fill(store)
        monkeypatch.setattr(scrub._Blob, "look", sick)
        async with scrubbing(store) as told:
            await soon(lambda: store.scrub.state()["passes"] >= 1, "the pass comes to its end")
            assert told.found == {"x.segments": Found(0, [], "disk I/O error")}
            assert store.scrub.state()["checked"] >= 14
            monkeypatch.setattr(scrub._Blob, "look", look)
            await soon(lambda: told.found == {}, "it is over")
        assert len(await seqs(store, "x.segments")) == 5, "nothing is given up for that"


async def test_a_pass_is_spread_over_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many records a tick that the pass ends in time, and at least one."""
    ticks = []

    async def tick(seconds: float) -> None:
        ticks.append((seconds, store.scrub.state()["checked"]))
        if len(ticks) == 8:
            raise asyncio.CancelledError

    monkeypatch.setattr(scrub.asyncio, "sleep", tick)
    async with made(tmp_path, scrub_s=5.0) as store:
        await fill(store)  # 15 records, so 3 a second
        with pytest.raises(asyncio.CancelledError):
            await store.scrub.run(Told())
    assert [checked for _, checked in ticks] == [3, 6, 9, 12, 15, 15, 18, 21]
    assert [round(seconds) for seconds, _ in ticks] == [1, 1, 1, 1, 1, 5, 1, 1]
