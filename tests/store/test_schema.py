"""Stores of every earlier schema: all that was in them is there after the update."""

import sqlite3
import zlib
from pathlib import Path

import msgspec
import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError
from agent.records import Balance, Drop, Raw, Segment
from agent.store import schema, streams
from agent.store.arrivals import New
from agent.store.intake import New as Added
from agent.store.outbox import Buried
from agent.store.store import Store
from agent.store.tensors import Part

SEGMENT = Segment("x/1/0", "x", 1, "a.wav", 0, 16_000, 0.9, 1, "m", "CPU", "0" * 64, 4)
FIRST = """
INSERT INTO meta VALUES ('epoch', '0123456789abcdef'), ('created_us', '1');
INSERT INTO streams (id, name, produced, delivered, held, sendable) VALUES
    (1, 'x.raw', 5, 0, 2, 0), (2, 'x.segments', 6, 2, 2, NULL);
INSERT INTO drops VALUES (1, 1, 2, 'processed'), (1, 3, 3, 'full'), (2, 4, 5, 'full');
INSERT INTO chunks (stream, seq, start, data) VALUES
    (1, 4, 0, x'01000200'), (1, 5, 0, x'0300'), (2, 3, 0, x'66'), (2, 6, 0, x'77');
INSERT INTO takes (source, name, identity, samples) VALUES ('x', 'a.wav', '1:1', 9);
INSERT INTO positions VALUES ('x', 1, 2, -1, 4, 'm', x'');
"""


def old_store(path: Path, version: int) -> None:
    """A file as Holdfast of that schema left it."""
    with sqlite3.connect(path, isolation_level=None) as db:
        db.executescript("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;")
        db.create_function("crc32", 1, zlib.crc32, deterministic=True)
        db.create_function("row_crc", 8, streams.row_crc, deterministic=True)
        for number, script in enumerate(schema.steps()[:version], 1):
            db.executescript(f"{script}; PRAGMA user_version = {number};")
            if number == 1:
                db.executescript(FIRST)
                _records(db)
    db.close()


def _records(db: sqlite3.Connection) -> None:
    for seq, samples in ((4, 2), (5, 1)):
        body = msgspec.json.encode(Raw(1, "a.wav", seq - 4, samples))
        row = (1, seq, "holdfast.raw.v1", "b", 1, 1, body, 2 * samples)
        db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    for seq in (3, 6):
        row = (2, seq, "holdfast.segment.v1", "b", 1, 1, msgspec.json.encode(SEGMENT), 1)
        db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)


@pytest.mark.parametrize("version", range(1, len(schema.steps())))
async def test_a_store_of_an_earlier_schema_is_brought_up(tmp_path: Path, version: int) -> None:
    path = tmp_path / "s.db"
    old_store(path, version)
    async with Store(Settings(path=str(path)), Clock()) as store:
        assert store.epoch == "0123456789abcdef"
        assert await store.ledger.faults() == []
        assert await store.ledger.balances() == {
            "x.raw": Balance(5, 0, 2, {"processed": 2, "full": 1}),
            "x.segments": Balance(6, 2, 2, {"full": 2}),
        }
        batch = await store.outbox.lease(10, 100_000)
        assert batch is not None
        assert [record.seq for record in batch.records] == [3, 6]
        assert batch.drops == [Drop(4, 5, "full")]
        assert await store.outbox.blob(batch.records[0], 0, 9) == b"f"
        assert (await store.spool.position("x")).next_seq == 4
        assert [row[0] for row in await store.spool.waiting("x", 4, 9)] == [4, 5]
        take = await store.spool.begin("x", "a.wav", "1:1")
        assert (take.id, take.samples) == (1, 9)
        await store.outbox.acknowledge((store.epoch, "x.segments"), [batch.span])
        assert (await store.ledger.balances())["x.segments"].delivered == 4
        job, _ = await store.jobs.submit(New("m", "batch", []), [Part(1, b"x")])
        assert await store.jobs.chunk(job.id, 0, ["queued"]) == b"x"
        assert await store.ledger.faults() == []
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("SELECT bytes FROM streams WHERE name = 'x.segments'").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("version", [10, 11])
async def test_dead_letters_of_an_earlier_schema_are_counted(tmp_path: Path, version: int) -> None:
    path = tmp_path / "s.db"
    old_store(path, version)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE streams SET sendable = 4 WHERE name = 'x.raw'")
        rows = [(1, 4, "audio", 0, 0), (2, 3, "poison", 0, 1), (2, 6, "retried", 1, 1)]
        insert = "INSERT INTO dead (stream, seq, cause, retry, unsent) VALUES (?, ?, ?, ?, ?)"
        db.executemany(insert, rows)
    db.close()
    async with Store(Settings(path=str(path)), Clock()) as store:
        assert await store.ledger.faults() == []
        name = (store.epoch, "x.segments")
        assert await store.outbox.buried() == [Buried(name, 1, 3, "poison")]
        found = {one.name[1]: (one.records, one.bytes) for one in await store.outbox.waiting()}
        raw = len(msgspec.json.encode(Raw(1, "a.wav", 0, 2))) + 4
        segment = len(msgspec.json.encode(SEGMENT)) + 1
        assert found == {"x.raw": (1, raw), "x.segments": (1, segment)}


async def test_a_newer_store_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    old_store(path, 3)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(schema.steps()) + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="this Holdfast knows up to") as error:
        async with Store(Settings(path=str(path)), Clock()):
            pass
    assert "newer Holdfast" in error.value.hint
    assert path.read_bytes() == before


def newer(steps: list[str]) -> list[str]:
    """A schema to come, which adds what older code does not need."""
    return [*steps, "CREATE TABLE to_come (id INTEGER PRIMARY KEY) STRICT;"]


async def test_a_newer_store_serves_where_it_was_left_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's own update is taken back: what both versions took in is there for both."""
    path, old = tmp_path / "s.db", schema.steps()
    settings = Settings(path=str(path))
    async with Store(settings, Clock()) as store:
        await store.intake.append("x", [Added("t", b"old")])
        epoch = store.epoch
    with monkeypatch.context() as patched:
        patched.setattr(schema, "steps", lambda: newer(old))
        async with Store(settings, Clock()) as store:
            await store.intake.append("x", [Added("t", b"new")])
    async with Store(settings, Clock()) as store:
        assert store.epoch == epoch
        await store.intake.append("x", [Added("t", b"back")])
        batch = await store.outbox.lease(10, 100_000)
        assert batch and [one.body for one in batch.records] == [b"old", b"new", b"back"]
        assert await store.ledger.faults() == []
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(old) + 1,)
        assert db.execute("SELECT count(*) FROM to_come").fetchone() == (0,)
    db.close()
    monkeypatch.setattr(schema, "steps", lambda: newer(old))
    async with Store(settings, Clock()) as store:
        assert (await store.ledger.balances())["x"].produced == 3


async def test_a_step_that_older_code_cannot_live_with_shuts_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is said before the step is made: a power cut between them lets nobody in."""
    path, old = tmp_path / "s.db", schema.steps()
    settings = Settings(path=str(path))
    async with Store(settings, Clock()):
        pass
    with monkeypatch.context() as patched:
        patched.setattr(schema, "steps", lambda: [*newer(old), "broken;"])
        patched.setattr(schema, "OPENS_FROM", len(old) + 1)
        with pytest.raises(StoreError):
            async with Store(settings, Clock()):
                pass
    with pytest.raises(StoreError, match="this Holdfast knows up to"):
        async with Store(settings, Clock()):
            pass
    with monkeypatch.context() as patched:
        patched.setattr(schema, "steps", lambda: newer(old))
        async with Store(settings, Clock()):
            pass  # of lesser demands, and it does not take back what stands there
    with pytest.raises(StoreError, match="this Holdfast knows up to"):
        async with Store(settings, Clock()):
            pass


@pytest.mark.parametrize("version", range(len(schema.steps())))
async def test_a_step_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.db"
    if version:
        old_store(path, version)
    steps = schema.steps()
    broken = [*steps[:version], steps[version] + "; INSERT INTO nowhere VALUES (1);"]
    with monkeypatch.context() as patched:
        patched.setattr(schema, "steps", lambda: broken)
        with pytest.raises(StoreError, match="nowhere"):
            async with Store(Settings(path=str(path)), Clock()):
                pass
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
    db.close()
    async with Store(Settings(path=str(path)), Clock()) as store:
        assert await store.ledger.faults() == []
