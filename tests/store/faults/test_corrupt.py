"""Each kind of damage has teeth: SQLite complains, or what it reads is another."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from agent import config
from agent.clock import Clock
from agent.records import Position, Segment
from agent.store.store import Store
from tests.store.faults import corrupt

SEEDS = range(6)
KINDS: dict[str, corrupt.Damage] = {
    "header": corrupt.header,
    "schema": corrupt.schema,
    "garbage": corrupt.garbage,
    "half": lambda db, _: corrupt.truncate(db, 0.5),
    "emptied": lambda db, _: corrupt.truncate(db, 0),
    "a leaf of the records": corrupt.leaf("records"),
    "above the records": corrupt.interior("records"),
    "the rest of a record": corrupt.overflow("records"),
    "a leaf of the chunks": corrupt.leaf("chunks"),
    "the rest of a chunk": corrupt.overflow("chunks"),
    "the streams": corrupt.leaf("streams"),
    "the identity": corrupt.leaf("meta"),
}


async def fill(folder: Path, name: str, copied: Callable[[], None] = lambda: None) -> None:
    """A store with so much in it that its tables have pages of each kind."""
    async with Store(config.Store(path=str(folder / "s.db")), Clock()) as store:
        for start in range(0, 300, 30):
            texts = [f"{'long ' * 900 if n % 10 == 0 else ''}{n}" for n in range(start, start + 30)]
            found = [
                (Segment(text, name, 1, "a", 0, 1, 0.9, 0, "m", "CPU", "00", 4), bytes(9000))
                for text in texts
            ]
            await store.spool.keep(name, found, Position(1, start + 30), "segments")
        copied()


@pytest.fixture
async def db(tmp_path: Path) -> Path:
    await fill(tmp_path / "made", "x")
    return tmp_path / "made" / "s.db"


def read(db: Path) -> object:
    """All that SQLite reads, or its complaint."""
    try:
        with closing(sqlite3.connect(db)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            names = sorted(name for (name,) in tables.fetchall())
            return {n: sorted(connection.execute(f"SELECT * FROM {n}"), key=repr) for n in names}
    except sqlite3.DatabaseError as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_sqlite_meets_it(db: Path, tmp_path: Path, kind: str) -> None:
    whole = read(db)
    assert isinstance(whole, dict)
    assert len(whole["records"]) == 300
    for seed in SEEDS:
        hurt = Path(shutil.copy(db, tmp_path / f"{seed}.db"))
        said = KINDS[kind](hurt, random.Random(seed))
        assert read(hurt) != whole, said


@pytest.mark.parametrize("table", ["records", "chunks", "streams", "meta", "drops"])
def test_the_pages_are_those_that_sqlite_counts(db: Path, table: str) -> None:
    sql = "SELECT pageno, pagetype FROM dbstat WHERE name = ?"
    with closing(sqlite3.connect(db)) as connection:
        try:
            found = connection.execute(sql, (table,)).fetchall()
        except sqlite3.OperationalError as error:
            pytest.skip(f"this SQLite does not count pages: {error}")
    names = {"internal": corrupt.INTERIOR, "leaf": corrupt.LEAF, "overflow": corrupt.OVERFLOW}
    assert sorted(corrupt.pages(db, table)) == sorted((page, names[kind]) for page, kind in found)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_frame_ends_what_sqlite_reads_of_the_wal(tmp_path: Path, seed: int) -> None:
    """Without a complaint: what lies behind it is gone."""
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    await fill(tmp_path / "made", "x", partial(shutil.copytree, tmp_path / "made", whole))
    shutil.copytree(whole, hurt)
    said = corrupt.frame(hurt / "s.db-wal", random.Random(seed))
    assert read(hurt / "s.db") != read(whole / "s.db"), said
