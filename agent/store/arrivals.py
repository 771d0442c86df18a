"""The way in for jobs.

Limits  : `jobs_max` jobs and `bytes_max` bytes, asked for before the first byte is kept, within the
          store's own bounds (bounds.py). One commit takes STEP_BYTES of an input, or one chunk.
Format  : jobrows.py. While it arrives, a job has the bytes of its whole input promised to it.
Recovery: a job that was arriving when the agent ended goes at the next start (`Jobs.recover`), or
          when its id is submitted again.
"""

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import msgspec
from msgspec import Struct

from agent.clock import Clock
from agent.errors import JobsFull, NotNow, RequestError, StoreDamaged, StoreError
from agent.records import Stamp
from agent.store import jobrows, jobsteps
from agent.store.age import boot_begin_ns
from agent.store.database import Database
from agent.store.jobrows import ARRIVING, CLASSES, Class, Job
from agent.store.tensors import Part

GROWS = ("(jobs)",)  # no stream is called so
STEP_BYTES = 1 << 20


class Limits(Struct, frozen=True):
    """How much is kept for jobs, and for how long."""

    jobs_max: int = 1000
    bytes_max: int = 256 << 20
    result_keep_s: float = 7 * 86_400.0
    attempts_max: int = 5


class New(Struct, frozen=True):
    """A job that is asked for; no `id`: it gets one. `wanted` outputs, none: all."""

    model: str
    klass: Class
    wanted: list[str]
    id: str | None = None


class Arrivals:
    """Used on the event loop."""

    def __init__(
        self, database: Database, clock: Clock, limits: Limits, token: Callable[[], str]
    ) -> None:
        """`token` gives the part of an id that nobody can guess."""
        self._database = database
        self._clock = clock
        self._limits = limits
        self._token = token
        self._coming: dict[str, asyncio.Future[None]] = {}  # the ids that arrive now

    async def submit(self, new: New, parts: Sequence[Part]) -> tuple[Job, bool]:
        """As `Jobs.submit`."""
        if new.id is None:
            return await self._take_in(new, parts)
        while coming := self._coming.get(new.id):
            await asyncio.wait([coming])
        self._coming[new.id] = asyncio.get_running_loop().create_future()
        try:
            return await self._take_in(new, parts)
        finally:
            self._coming.pop(new.id).set_result(None)

    async def _take_in(self, new: New, parts: Sequence[Part]) -> tuple[Job, bool]:
        size = sum(len(part.content) for part in parts)
        if size > self._limits.bytes_max:
            raise RequestError(
                f"the job's input takes {size} bytes; all jobs together are given "
                f"{self._limits.bytes_max}",
                "submit it in several jobs, or raise jobs.bytes_max",
            )
        steps, token, stamp = _steps(parts), self._token(), self._clock.stamp()
        digest = _digest(new, parts)

        def first(connection: sqlite3.Connection) -> tuple[Job, bool]:
            now_ns = boot_begin_ns(connection, stamp.boot) + stamp.mono_ns
            if known := _known(connection, new.id, digest, now_ns):
                return known, False
            self._fit(connection, size)
            name = _insert(connection, new, parts, (size, digest, token), stamp, now_ns)
            return _extend(connection, name, 0, steps[0], now_ns, last=len(steps) == 1), True

        job, fresh = await self._database.write(first, grows=GROWS)
        if fresh and len(steps) > 1:
            try:
                job = await self._add_rest(job, steps)
            except BaseException:  # whatever broke it off: nobody waits for the rest
                with suppress(StoreError):  # then it goes at the next start
                    await self._forget(job)
                raise
        return job, fresh

    async def _add_rest(self, job: Job, steps: Sequence[Sequence[Part]]) -> Job:
        """The steps behind the first, a commit each; with the last one it is queued."""
        at, stamp = len(steps[0]), self._clock.stamp()

        def extend(connection: sqlite3.Connection, step: Sequence[Part], last: bool) -> Job:
            now_ns = boot_begin_ns(connection, stamp.boot) + stamp.mono_ns
            return _extend(connection, job.id, at, step, now_ns, last=last)

        for step in steps[1:]:
            last = step is steps[-1]
            grown = await self._database.write(partial(extend, step=step, last=last), grows=GROWS)
            at += len(step)
        return grown

    async def _forget(self, job: Job) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            rows = connection.execute(
                "SELECT number FROM jobs WHERE id = ? AND state = ?", (job.id, ARRIVING)
            )
            jobsteps.leave(connection, [number for (number,) in rows.fetchall()])

        await self._database.write(operation)

    def _fit(self, connection: sqlite3.Connection, size: int) -> None:
        """Raises JobsFull where there is no room for another job of this size."""
        count, held_bytes = jobrows.held(connection)
        limits, hint = self._limits, "take results (DELETE), or cancel what nobody needs"
        if count >= limits.jobs_max:
            raise JobsFull(f"{count} jobs are kept, as many as jobs.jobs_max allows", hint)
        if held_bytes + size > limits.bytes_max:
            raise JobsFull(
                f"jobs hold {held_bytes} bytes; with {size} more it would be above jobs.bytes_max "
                f"({limits.bytes_max})",
                hint,
            )


def _known(
    connection: sqlite3.Connection, name: str | None, digest: str, now_ns: int
) -> Job | None:
    """The job of this id, if there is one. Raises NotNow when its input is another."""
    row = connection.execute(
        "SELECT number, state, digest FROM jobs WHERE id = ?", (name,)
    ).fetchone()
    if row is None:
        return None
    number, state, known_digest = row
    if state == ARRIVING:  # it was broken off
        jobsteps.leave(connection, [number])
        return None
    if known_digest != digest:
        raise NotNow(f"{name!r} is the id of another job", "submit this one under an id of its own")
    return jobrows.find(connection, str(name), now_ns)


def _insert(
    connection: sqlite3.Connection,
    new: New,
    parts: Sequence[Part],
    about: tuple[int, str, str],
    stamp: Stamp,
    now_ns: int,
) -> str:
    """The row of a job that arrives; its id. `about` is size, digest and token."""
    size, digest, token = about
    number = connection.execute(
        "INSERT INTO jobs (digest, model, class, state, rows, chunks, bytes, submitted_ns,"
        " submitted_us, wanted) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(digest, new.model, CLASSES.index(new.klass), ARRIVING),
            *(sum(part.rows for part in parts), len(parts), size, now_ns, stamp.wall_us),
            msgspec.json.encode(new.wanted),
        ),
    ).lastrowid
    name = new.id or f"{number:010}-{token}"
    connection.execute("UPDATE jobs SET id = ? WHERE number = ?", (name, number))
    return name


def _extend(
    connection: sqlite3.Connection,
    name: str,
    at: int,
    step: Sequence[Part],
    now_ns: int,
    *,
    last: bool,
) -> Job:
    """Chunks from `at` on of a job that arrives; with the last of them it is queued.

    Raises StoreDamaged when the job is gone: another file took the place of the one it was in.
    """
    row = connection.execute(
        "SELECT number FROM jobs WHERE id = ? AND state = ?", (name, ARRIVING)
    ).fetchone()
    if row is None:
        raise StoreDamaged(f"the job {name} is no longer in the store", "submit it again")
    for chunk, part in enumerate(step, at):
        jobsteps.put(connection, (row[0], chunk), part.rows, part.content)
    if last:
        connection.execute("UPDATE jobs SET state = 'queued' WHERE number = ?", row)
        jobsteps.tally(connection, "submitted")
    return jobrows.one(connection, row[0], now_ns)


def _steps(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts as they share a commit, each at least one."""
    steps: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        size += len(part.content)
        if size > STEP_BYTES and steps[-1]:
            steps.append([])
            size = len(part.content)
        steps[-1].append(part)
    return steps


def _digest(new: New, parts: Sequence[Part]) -> str:
    """What tells two jobs of one id apart."""
    whole = hashlib.sha256(msgspec.json.encode([new.model, new.klass, new.wanted]))
    for part in parts:
        whole.update(part.content)
    return whole.hexdigest()
