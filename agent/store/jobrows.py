"""The rows of the jobs, and what they say.

Limits  : jobs.py has them.
Format  : sql/0013.sql. A job arrives (its input comes in several commits), is queued, runs, and
          ends as done, failed or cancelled; at last it leaves (its chunks go in several commits).
Recovery: reads alone; jobsteps.py changes them.
"""

import sqlite3
from collections.abc import Collection
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct, field

from agent.errors import NotNow, NotThere

Class = Literal["realtime", "interactive", "batch"]
CLASSES: tuple[Class, ...] = get_args(Class)  # what goes first stands first
State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
OPEN, ENDED = ("queued", "running"), ("done", "failed", "cancelled")
ARRIVING, LEAVING = "arriving", "leaving"  # seen by nobody


class Answered(Struct, frozen=True, array_like=True):
    """A model that answered (its label), and the execution provider that it ran on."""

    model: str
    ep: str


class Output(Struct, frozen=True, array_like=True):
    """An output of a job: its name, its dtype, the shape of a row."""

    name: str
    dtype: str
    row_shape: list[int]


class Job(Struct, frozen=True):
    """A job as it stands.

    `rows` of the first axis go to the model in `chunks`; `attempts` is how often the chunk at hand
    was begun. Ages are seconds of running time, `_us` wall labels. `wanted` are the outputs that
    were asked for (none: all), `form` is what they look like once the first chunk is done.
    """

    number: int
    id: str
    model: str
    klass: Class = field(name="class")
    state: State
    rows: int
    rows_done: int
    chunks: int
    chunks_done: int
    attempts: int
    bytes: int
    age_s: float
    submitted_us: int
    started_age_s: float | None
    started_us: int | None
    ended_age_s: float | None
    ended_us: int | None
    error: str
    wanted: list[str]
    form: list[Output]
    answered: list[Answered]


class Waiting(Struct, frozen=True):
    """What of a job has not ended counts for those behind it."""

    number: int
    id: str
    model: str
    klass: Class
    running: bool
    rows_left: int


class Made(Struct, frozen=True):
    """What a chunk gave: its outputs packed, their form, who made them, and seconds for a row."""

    content: bytes
    form: list[Output]
    answered: Answered
    row_s: float


COLUMNS = (
    "number, id, model, class, state, rows, rows_done, chunks, chunks_done, attempts, bytes,"
    " submitted_ns, submitted_us, started_ns, started_us, ended_ns, ended_us, error, wanted, form,"
    " answered"
)


def _job(row: tuple[Any, ...], now_ns: int) -> Job:
    *about, submitted_ns, submitted_us, started_ns, started_us = row[:15]
    ended_ns, ended_us, error, wanted, form, answered = row[15:]
    number, name, model, klass, *counts = about

    def age_s(at_ns: int | None) -> float | None:
        return None if at_ns is None else round(max(0, now_ns - at_ns) / 1e9, 3)

    told: list[Any] = [number, name, model, CLASSES[klass], *counts]
    told += [age_s(submitted_ns), submitted_us, age_s(started_ns), started_us]
    told += [age_s(ended_ns), ended_us, error, msgspec.json.decode(wanted, type=list[str])]
    told += [msgspec.json.decode(form, type=list[Output])]
    told += [msgspec.json.decode(answered, type=list[Answered])]
    return Job(*told)


def one(connection: sqlite3.Connection, number: int, now_ns: int) -> Job:
    """The job of this number, which is there."""
    row = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE number = ?", (number,)).fetchone()
    return _job(row, now_ns)


def find(connection: sqlite3.Connection, name: str, now_ns: int) -> Job | None:
    """The job of this id that anybody may see."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM jobs WHERE id = ? AND state != ?", (name, ARRIVING)
    ).fetchone()
    return _job(row, now_ns) if row else None


def the(
    connection: sqlite3.Connection, name: str, now_ns: int, states: Collection[str] = STATES
) -> Job:
    """The job of this id in one of these states. Raises NotThere, NotNow when it is in another."""
    found = find(connection, name, now_ns)
    if found is None:
        raise NotThere(f"no job {name!r}", "`holdfast jobs ls` lists those there are")
    if found.state not in states:
        raise NotNow(f"job {name} is {found.state}", f"it would have to be {' or '.join(states)}")
    return found


def page(
    connection: sqlite3.Connection, first: int, count: int, states: Collection[str], now_ns: int
) -> list[Job]:
    """Up to `count` jobs in these states, from number `first` on."""
    marks = ", ".join("?" * len(states))
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM jobs WHERE number >= ? AND id IS NOT NULL AND state IN ({marks})"
        " ORDER BY number LIMIT ?",
        (first, *states, count),
    )
    return [_job(row, now_ns) for row in rows.fetchall()]


def waiting(connection: sqlite3.Connection) -> list[Waiting]:
    """All that has not ended, in the order in which it is to go."""
    rows = connection.execute(
        "SELECT number, id, model, class, state, rows - rows_done FROM jobs"
        " WHERE state IN ('queued', 'running') ORDER BY class, number"
    )
    return [Waiting(n, i, m, CLASSES[c], s == "running", left) for n, i, m, c, s, left in rows]


def held(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many jobs there are, and the bytes that are taken or promised; leaving ones too."""
    row = connection.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM jobs").fetchone()
    return int(row[0]), int(row[1])


def frees_room(connection: sqlite3.Connection) -> bool:
    """Whether there are bytes that will be given back without any job going on."""
    row = connection.execute(
        "SELECT 1 FROM jobs WHERE bytes > 0 AND state IN ('done', 'failed', 'cancelled', ?)",
        (LEAVING,),
    )
    return row.fetchone() is not None


def chunk_of(connection: sqlite3.Connection, number: int, chunk: int) -> tuple[int, int, int]:
    """A chunk's rows, blob and bytes. Raises NotThere."""
    row = connection.execute(
        "SELECT rows, blob, bytes FROM job_chunks WHERE job = ? AND chunk = ?", (number, chunk)
    ).fetchone()
    if row is None:
        raise NotThere(f"job number {number} has no chunk {chunk}", "it has been removed, perhaps")
    return int(row[0]), int(row[1]), int(row[2])


def ended_before(connection: sqlite3.Connection, at_ns: int) -> list[int]:
    """The numbers of what ended before this instant and is still kept."""
    rows = connection.execute(
        "SELECT number FROM jobs WHERE state IN ('done', 'failed', 'cancelled') AND ended_ns < ?",
        (at_ns,),
    )
    return [number for (number,) in rows.fetchall()]


def counts(connection: sqlite3.Connection) -> tuple[dict[str, int], int, dict[str, int]]:
    """Jobs by state, their bytes, and how often what became of jobs."""
    now = dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
    since = dict(connection.execute("SELECT event, count FROM job_counts").fetchall())
    return {state: now.get(state, 0) for state in STATES}, held(connection)[1], since
