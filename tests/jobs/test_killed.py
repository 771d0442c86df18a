"""kill -9 at every commit point, and respawned: each job ends once, no chunk that was committed is
run again, and none is lost.

HOLDFAST_LONG=1 takes many more lives, HOLDFAST_SEED=N those of a failure that was printed.
"""

import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.jobs.desk import Desk, computed, rows
from tests.jobs.process import cancelled, size
from tests.outside import DEADLINE_S, ROOT
from tests.store.faults.child import LONG, SEED
from tests.store.test_model import WORKING

JOBS = 40 if LONG else 7
LIVES = 40 if LONG else 2  # that are killed, then one that is not

Done = dict[int, tuple[str, int]]  # by job, its state and how many rows are committed


def life(folder: Path, kill: str = "") -> list[list[str]]:
    """Run the process to its end; what it said."""
    command = [sys.executable, "-m", "tests.jobs.process", str(folder), str(JOBS)]
    ended = subprocess.run(
        [*command, *(["--kill", kill] if kill else [])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    fine = {0, -9} if kill and "over" in ended.stdout else {-9 if kill else 0}
    assert ended.returncode in fine, ended.stderr
    whole = ended.stdout[: ended.stdout.rfind("\n") + 1]
    return [line.split() for line in whole.splitlines()]


def done(folder: Path, scratch: Path) -> Done:
    """What is committed, read from a copy: the store's own files stay as the kill left them."""
    if not (folder / "s.db").exists():
        return {}
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch)
    with closing(sqlite3.connect(scratch / "s.db")) as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'jobs'").fetchone():
            return {}
        found = db.execute("SELECT id, state, rows_done FROM jobs WHERE id IS NOT NULL")
        return {int(name): (state, count) for name, state, count in found}


def judge(before: Done, after: Done, said: list[list[str]]) -> None:
    """One life: it runs only what was not committed, and keeps what it said."""
    for word, job, *row in (line for line in said if line[0] != "over"):
        state, count = before.get(int(job), ("queued", 0))
        if word == "run":
            assert state in ("queued", "running"), f"{job} was {state}"
            assert int(row[0]) >= count, f"row {row[0]} of {job} was committed up to {count}"
        elif word == "given":
            assert int(job) in after
        else:
            assert after[int(job)][0] == "cancelled"
    for job, (state, count) in before.items():
        assert after[job][1] >= count
        if state in ("done", "cancelled", "failed"):
            assert after[job] == (state, count), "one final state"
    ran = [tuple(line[1:]) for line in said if line[0] == "run"]
    assert len(ran) == len(set(ran)), "a chunk was run twice in one life"


@pytest.mark.parametrize("point", WORKING)
async def test_killed_at_a_commit_point(tmp_path: Path, point: str) -> None:
    chance = random.Random(f"{SEED}:{point}")
    folder = tmp_path / "var"
    folder.mkdir()
    before: Done = {}
    killed = 0
    for number in range(LIVES + 1):
        times = chance.randint(5, 45) * (5 if point == "statement" else 1)
        said = life(folder, f"{point}:{times}" if number < LIVES else "")
        after = done(folder, tmp_path / "copy")
        judge(before, after, said)
        before = after
        killed += said[-1:] != [["over"]]
    assert killed, "the point was never met"
    assert said[-1] == ["over"]
    async with Desk(folder, jobs_max=JOBS) as desk:
        assert await desk.store.ledger.faults() == []
        states = {job.id: job.state for job in await desk.jobs.page(1, JOBS)}
        assert set(states) == set(map(str, range(JOBS)))
        since = (await desk.jobs.counts()).since
        assert since["submitted"] == JOBS
        assert since["done"] + since["cancelled"] == JOBS
        for job in range(JOBS):
            assert states[str(job)] in (("cancelled", "done") if cancelled(job) else ("done",))
            if states[str(job)] == "done":
                found = await desk.result(str(job))
                assert np.array_equal(found, computed(rows(job, size(job))))
