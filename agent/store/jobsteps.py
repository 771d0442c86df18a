"""Each change of a job, within one transaction.

Limits  : jobs.py has them. Room is given back in steps of REMOVE_PIECES_MAX pieces of a blob.
Format  : sql/0013.sql, jobrows.py.
Recovery: every function runs inside one transaction. Of a file that was damaged only the rows are
          carried over, not what lies in their chunks: jobs that had not failed or been cancelled
          are failed, with the reason, and whoever waits for one learns of it. Where SQLite cannot
          read them as the file lies, nothing is known of them any more.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from agent.store import blobs
from agent.store.blobs import CHUNK_BYTES_MAX as PIECE_BYTES_MAX
from agent.store.jobrows import ARRIVING, COLUMNS, LEAVING, Job, Made, State, chunk_of

ANSWERED_MAX = 8  # models that a job names as those that answered, the last of them
RATES_MAX = 256
RATE_WEIGHT = 0.2  # of the chunk measured last
REMOVE_PIECES_MAX = 64  # in one commit: 4 MiB
_LOST = "the store's file was damaged, and with it what this job held; remove it, submit it again"


def tally(connection: sqlite3.Connection, event: str, count: int = 1) -> None:
    """Count what became of jobs."""
    connection.execute(
        "INSERT INTO job_counts VALUES (?1, ?2) ON CONFLICT (event)"
        " DO UPDATE SET count = count + ?2",
        (event, count),
    )


def put(connection: sqlite3.Connection, key: tuple[int, int], rows: int, content: bytes) -> None:
    """Keep a chunk, in place of what it was."""
    before = connection.execute(
        "SELECT blob FROM job_chunks WHERE job = ? AND chunk = ?", key
    ).fetchall()
    blobs.remove(connection, (blob for (blob,) in before))
    pieces = -(-len(content) // PIECE_BYTES_MAX)
    connection.execute(
        "INSERT OR REPLACE INTO job_chunks VALUES (?, ?, ?, ?, ?, ?)",
        (*key, rows, blobs.insert(connection, content), pieces, len(content)),
    )


def keep(connection: sqlite3.Connection, job: Job, made: Made) -> None:
    """The next chunk of a job is done: its result takes the place of its input."""
    rows, _, size = chunk_of(connection, job.number, job.chunks_done)
    put(connection, (job.number, job.chunks_done), rows, made.content)
    answered = job.answered
    if not answered or answered[-1] != made.answered:
        answered = [*answered, made.answered][-ANSWERED_MAX:]
    connection.execute(
        "UPDATE jobs SET chunks_done = chunks_done + 1, rows_done = rows_done + ?,"
        " bytes = bytes + ?, attempts = 1, error = '', form = ?, answered = ? WHERE number = ?",
        (
            *(rows, len(made.content) - size),
            *(msgspec.json.encode(made.form), msgspec.json.encode(answered), job.number),
        ),
    )
    _measure(connection, job, made.row_s)


def _measure(connection: sqlite3.Connection, job: Job, row_s: float) -> None:
    connection.execute(
        "INSERT INTO job_rates VALUES (?1, ?2, ?3) ON CONFLICT (model) DO UPDATE"
        f" SET row_s = row_s + {RATE_WEIGHT} * (?2 - row_s), used = max(used, ?3)",
        (job.model, row_s, job.number),
    )
    connection.execute(
        "DELETE FROM job_rates WHERE model IN"
        " (SELECT model FROM job_rates ORDER BY used DESC LIMIT -1 OFFSET ?)",
        (RATES_MAX,),
    )


def start(
    connection: sqlite3.Connection, job: Job, now_ns: int, wall_us: int, failure: str
) -> None:
    """The chunk at hand is begun once more."""
    connection.execute(
        "UPDATE jobs SET state = 'running', attempts = attempts + 1, error = ?,"
        " started_ns = coalesce(started_ns, ?), started_us = coalesce(started_us, ?)"
        " WHERE number = ?",
        (failure, now_ns, wall_us, job.number),
    )


def end(
    connection: sqlite3.Connection, job: Job, state: State, now_ns: int, wall_us: int, why: str
) -> None:
    """A job comes to its final state."""
    connection.execute(
        "UPDATE jobs SET state = ?, ended_ns = ?, ended_us = ?, error = ? WHERE number = ?",
        (state, now_ns, wall_us, why, job.number),
    )
    tally(connection, state)


def leave(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Nobody sees these any more."""
    connection.executemany(
        "UPDATE jobs SET state = ?, id = NULL WHERE number = ?",
        [(LEAVING, number) for number in numbers],
    )


def recover(connection: sqlite3.Connection) -> None:
    """What was running is queued, what was arriving leaves."""
    connection.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
    rows = connection.execute("SELECT number FROM jobs WHERE state = ?", (ARRIVING,))
    leave(connection, [number for (number,) in rows.fetchall()])


def clear_some(connection: sqlite3.Connection) -> bool:
    """Give some bytes back that no job needs any more; False when there were none."""
    row = connection.execute(
        "SELECT job, chunk, blob, job_chunks.bytes FROM jobs CROSS JOIN job_chunks"
        " ON job = number WHERE state IN ('failed', 'cancelled', ?) LIMIT 1",
        (LEAVING,),
    ).fetchone()
    if row is None:
        gone = connection.execute("DELETE FROM jobs WHERE state = ?", (LEAVING,))
        return gone.rowcount > 0
    job, chunk, blob, size = row
    if blob and blobs.remove_some(connection, blob, REMOVE_PIECES_MAX):
        connection.execute(
            "UPDATE job_chunks SET pieces = pieces - ? WHERE job = ? AND chunk = ?",
            (REMOVE_PIECES_MAX, job, chunk),
        )
        return True
    connection.execute("DELETE FROM job_chunks WHERE job = ? AND chunk = ?", (job, chunk))
    connection.execute("UPDATE jobs SET bytes = bytes - ? WHERE number = ?", (size, job))
    return True


def carry(connection: sqlite3.Connection, wreck: Path) -> None:
    """What a damaged file knows of its jobs. Raises sqlite3.Error where it breaks off."""
    former = sqlite3.connect(wreck)
    try:
        rows = former.execute(
            f"SELECT digest, {COLUMNS} FROM jobs WHERE id IS NOT NULL AND state != ?"
            " ORDER BY number",
            (ARRIVING,),
        ).fetchall()
    finally:
        former.close()
    marks = ", ".join("?" * 22)
    for row in rows:
        added = connection.execute(
            f"INSERT OR IGNORE INTO jobs (digest, {COLUMNS}) VALUES ({marks})", row
        )
        if added.rowcount:
            tally(connection, "submitted")
            tally(connection, row[5] if row[5] in ("failed", "cancelled") else "failed")
    connection.execute(
        "UPDATE jobs SET state = 'failed', error = ? WHERE state IN ('queued', 'running', 'done')",
        (_LOST,),
    )
    connection.execute(
        "UPDATE jobs SET bytes = 0, ended_us = coalesce(ended_us, submitted_us), ended_ns ="
        " coalesce(ended_ns, (SELECT max(base_ns + seen_ns) FROM boots), submitted_ns)"
    )
