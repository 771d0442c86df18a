"""kill -9 at every named commit point and at random moments: what was promised is there.

HOLDFAST_LONG=1 takes 500 random moments, HOLDFAST_SEED=N those of a failure that was printed.
"""

import random
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from agent.store import streams
from tests.outside import until
from tests.store.faults import tripwire
from tests.store.faults.child import LONG, SEED, Producer
from tests.store.faults.disk import Disk, needs_fuse
from tests.store.faults.judge import Promises
from tests.store.faults.producer import Body, digest

MOMENTS = 500 if LONG else 8
SKIPPED_MAX = 24
LIVES = 10  # on one store, before the next begins empty
OPENING = [p for p in tripwire.POINTS if p.startswith(("open", "pragma", "migrat"))]
VERSIONS = len(list(resources.files("agent.store").joinpath("sql").iterdir()))
WORKING = [p for p in tripwire.POINTS if p not in OPENING]


@pytest.mark.parametrize("point", WORKING)
def test_killed_at_a_commit_point(tmp_path: Path, point: str) -> None:
    chance = random.Random(f"{SEED}:{point}")
    promises = Promises()
    for life in range(20 if LONG else 2):
        times = chance.randint(1, 10) if life == 0 else chance.randint(10, 400)
        seed = f"{SEED}.{point}.{life}"
        with Producer(
            tmp_path, tmp_path / "said", seed, "--evict", "--kill", f"{point}:{times}"
        ) as child:
            child.killed_itself()
        promises.learn(child.lines())
        assert promises.faults(tmp_path) == [], f"seed {SEED}, life {life}, {point}:{times}"


@pytest.mark.parametrize("point", OPENING)
def test_killed_while_a_new_store_is_opened(tmp_path: Path, point: str) -> None:
    """At the times that the point is met, until opening no longer meets it."""
    for times in _times(point):
        folder = tmp_path / str(times)
        with Producer(folder, tmp_path / "said", "1", "--kill", f"{point}:{times}") as child:
            until(lambda c=child: c.dead() or c.lines(), "it opens or is killed")
            opened = bool(child.lines())
            if not opened:
                child.killed_itself()
        folder.mkdir(exist_ok=True)
        promises = Promises()
        promises.learn(child.lines())
        assert promises.faults(folder) == [], f"{point}:{times}"
        if opened:
            break
    assert times > 1, "the point was never met"


@pytest.mark.parametrize("version", range(1, VERSIONS))
@pytest.mark.parametrize("point", [p for p in OPENING if p.startswith("migrat")])
def test_killed_while_an_older_store_is_migrated(tmp_path: Path, point: str, version: int) -> None:
    """A store of that version keeps its epoch and its record."""
    body = msgspec.json.encode(Body("x", 0, 1, digest(b"", b"")))
    old = _old_store(tmp_path / "old", version, body)
    for times in _times(f"{point}.{version}"):
        folder = tmp_path / str(times)
        shutil.copytree(old, folder)
        with Producer(folder, tmp_path / "said", "1", "--kill", f"{point}:{times}") as child:
            until(lambda c=child: c.dead() or c.lines(), "it opens or is killed")
            opened = bool(child.lines())
        promises = Promises()
        promises.learn(["epoch e", f"appended old 1 {digest(body, b'')}", *child.lines()])
        assert promises.faults(folder) == [], f"{point}:{times}"
        if opened:
            break
    assert times > 1, "the point was never met"


def _times(what: str) -> Iterator[int]:
    """The first time that a point is met and some of the later ones; all of them in the long form.

    There are hundreds, and each is a process.
    """
    chance, times = random.Random(f"{SEED}:{what}"), 1
    while True:
        yield times
        times += 1 if LONG else chance.randint(1, SKIPPED_MAX)


def _old_store(folder: Path, version: int, body: bytes) -> Path:
    """A store as the first `version` migrations made it, with one record."""
    folder.mkdir()
    sql = resources.files("agent.store").joinpath("sql")
    scripts = sorted(sql.iterdir(), key=lambda one: one.name)
    with sqlite3.connect(folder / "s.db") as db:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.create_function("crc32", 1, zlib.crc32, deterministic=True)
        db.create_function("row_crc", 8, streams.row_crc, deterministic=True)
        db.executescript(scripts[0].read_text())
        db.execute("INSERT INTO meta VALUES ('epoch', 'e'), ('created_us', '1')")
        db.execute("INSERT INTO streams (name, produced, held) VALUES ('old', 1, 1)")
        db.execute("INSERT INTO records VALUES (1, 1, 't', 'b', 1, 1, ?, 0)", (body,))
        for script in scripts[1:version]:
            db.executescript(script.read_text())
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    return folder


FILE_POINTS = {
    "a write of the WAL": ("s.db-wal", "write"),
    "the fsync of the WAL": ("s.db-wal", "fsync"),
    "a write of a checkpoint": ("s.db", "write"),
    "the fsync of a checkpoint": ("s.db", "fsync"),
}


@pytest.mark.parametrize("point", FILE_POINTS)
def test_killed_inside_a_commit(tmp_path: Path, point: str) -> None:
    """In the middle of SQLite's own work; and the power fails with the process."""
    needs_fuse()
    name, operation = FILE_POINTS[point]
    chance = random.Random(f"{SEED}:{point}")
    promises, content = Promises(), None
    for life in range(20 if LONG else 2):
        folder, seed = tmp_path / str(life), f"{SEED}.{point}.{life}".replace(" ", "-")
        with (
            Disk(folder, content) as disk,
            Producer(disk.mount, tmp_path / "said", seed, "--evict") as child,
        ):
            child.heard(5, "appended")
            spare = chance.randint(0, 30) if operation == "write" else chance.randint(0, 2)
            disk.rule(name, [operation], skip=spare, kill=True)
            child.killed_itself()
            content = disk.cut(chance.getrandbits(32), chance.choice([0.0, 0.5, 1.0]))
        promises.learn(child.lines())
        assert promises.faults(content) == [], f"seed {SEED}, life {life}"


def test_killed_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    for moment in range(MOMENTS):
        if moment % LIVES == 0:
            promises, folder = Promises(), tmp_path / f"from-{moment}"
        with Producer(folder, tmp_path / "said", f"{SEED}.{moment}", "--evict") as child:
            if chance.random() < 0.8:
                child.heard(chance.randint(1, 150))
            time.sleep(chance.uniform(0, 0.05))  # a moment of its own, nothing is waited for
            child.kill()
        promises.learn(child.lines())
        folder.mkdir(exist_ok=True)
        assert promises.faults(folder) == [], f"HOLDFAST_SEED={SEED}, moment {moment}"
