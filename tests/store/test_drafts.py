"""Drafts: a blob that comes in before its record, and is nobody's until then."""

import hashlib
import sqlite3
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreDamaged
from agent.records import Position, Segment
from agent.store import blobs
from agent.store.blobs import CHUNK_BYTES_MAX as PIECE
from agent.store.drafts import REMOVE_MAX, Draft, Drafted
from agent.store.drafts import _removed_some as removed_some
from agent.store.store import Store
from tests.store.test_scrub import content

HERE = Position(1, 1)


def made(folder: Path) -> Store:
    return Store(Settings(path=str(folder / "s.db")), Clock())


def segment(flac: bytes) -> Segment:
    sha = hashlib.sha256(flac).hexdigest()
    return Segment("x/1/0", "x", 1, "a.wav", 0, 1, 0.5, 0, "m", "CPU", sha, len(flac))


async def pieces(store: Store) -> int:
    count = "SELECT count(*) FROM chunks"
    return int(await store._database.read(lambda c: c.execute(count).fetchone()[0]))


@pytest.mark.parametrize("rest", [0, 1, PIECE, 3 * PIECE + 5])
async def test_a_draft_becomes_its_records_blob_and_is_not_copied(
    tmp_path: Path, rest: int
) -> None:
    flac = content("f", 4 * PIECE) + content("r", 4 * PIECE)[:rest]
    async with made(tmp_path) as store:
        await store.spool.keep("x", [(segment(b"before"), b"before")], HERE, "segments")
        draft = await store.spool.drafts.extend(Draft("x"), flac[PIECE : 2 * PIECE])
        await store.spool.keep("x", [(segment(b"between"), b"between")], HERE, "segments")
        draft = await store.spool.drafts.extend(draft, flac[2 * PIECE : 4 * PIECE])
        assert await store.spool.drafts.piece(draft, 3) == flac[3 * PIECE : 4 * PIECE]
        drafted = Drafted(draft, flac[:PIECE], flac[4 * PIECE :])
        await store.spool.keep("x", [(segment(flac), drafted)], HERE, "segments")
        batch = await store.outbox.lease(9, 9999)
        sizes = [record.blob_bytes for record in batch.records]
        assert sizes == [len(b"before"), len(b"between"), len(flac)]
        assert batch.records[2].key.blob == draft.blob
        assert await store.outbox.blob(batch.records[2], 0, 2 * len(flac)) == flac
        held = "SELECT bytes, (SELECT sum(length(body) + blob_bytes) FROM records) FROM streams"
        counted, there = await store._database.read(lambda c: c.execute(held).fetchone())
        assert counted == there
        await store.outbox.acknowledge((store.epoch, "x.segments"), [batch.span])
        assert await pieces(store) == 0
    async with made(tmp_path) as store:
        assert await store.ledger.faults() == []


async def test_a_draft_of_another_file_or_life_is_not_gone_on_with(tmp_path: Path) -> None:
    async with made(tmp_path) as store:
        drafts = store.spool.drafts
        first = await drafts.extend(Draft("x"), bytes(PIECE))
        await drafts.extend(first, bytes(PIECE))
        drafted = Drafted(first, b"first", b"rest")
        for gone in (first, Draft("y", first.blob, 3), Draft("x", 99, 3)):
            with pytest.raises(StoreDamaged, match="no longer in the store"):
                await drafts.extend(gone, bytes(PIECE))
        with pytest.raises(StoreDamaged, match="no longer in the store"):
            await store.spool.keep("x", [(segment(b"f"), drafted)], HERE, "segments")
        assert await pieces(store) == 2
        assert "x.segments" not in await store.ledger.balances(), "nothing of it was kept"
        with pytest.raises(StoreDamaged, match="is missing"):
            await drafts.piece(first, 3)


async def test_a_draft_is_removed_in_steps_and_keeps_its_number_until_the_last(
    tmp_path: Path,
) -> None:
    """Else its number would be another blob's, and that would go with it."""
    async with made(tmp_path) as store:
        count = 2 * REMOVE_MAX + 2
        draft = await store.spool.drafts.extend(Draft("x"), bytes(count * PIECE))
        left = []
        while await store._database.write(lambda c: removed_some(c, "x")):
            left.append(await pieces(store))
            unused = await store._database.read(blobs.unused)
            assert unused == (draft.blob + 1 if left[-1] else draft.blob)
        assert left == [REMOVE_MAX + 2, 2, 0]


async def test_only_the_drafts_of_the_source_are_removed_and_all_at_the_next_start(
    tmp_path: Path,
) -> None:
    async with made(tmp_path) as store:
        for source in "xyz":
            await store.spool.drafts.extend(Draft(source), bytes(2 * PIECE))
        await store.spool.drafts.forget("y")
        assert await pieces(store) == 4
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("INSERT INTO drafts VALUES (7, 'without pieces', 2)")
    db.close()
    async with made(tmp_path) as store:
        assert await pieces(store) == 0
        rows = await store._database.read(lambda c: c.execute("SELECT * FROM drafts").fetchall())
        assert rows == []
