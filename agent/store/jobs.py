"""Durable jobs: work that outlasts its caller, the agent and the machine.

Limits  : those of arrivals.py. The result of a chunk comes in one commit. A job whose chunk at hand
          was begun `attempts_max` times and never came back has failed. What has ended is kept
          until it is removed, or for `result_keep_s` of running time; then it goes, counted.
Format  : tables jobs, job_chunks, job_rates, job_counts (sql/0013.sql, jobrows.py, jobsteps.py); a
          chunk is a blob (blobs.py) of packed tensors (tensors.py).
Recovery: `submit` returns after the commit that queues the whole job. Each chunk's result, the
          progress and the rate are one commit, so a crash repeats the chunk at hand and no other.
          Whether a job is done or cancelled is decided by which commit came first. What was running
          when the agent ended is queued again, its attempt counted: nobody knows what ended it.
          `verify` counts the chunks with all other blobs; the scrub does not read them: a damaged
          one is found when it is needed. What becomes of the jobs of a damaged file says
          jobsteps.py.
"""

import secrets
import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from msgspec import Struct

from agent.clock import Clock
from agent.errors import NotNow, StoreDamaged, StoreFull
from agent.store import blobs, jobrows, jobsteps
from agent.store.age import boot_begin_ns
from agent.store.arrivals import GROWS, Arrivals, Limits, New
from agent.store.database import Database
from agent.store.jobrows import ENDED, OPEN, STATES, Job, Made, State, Waiting
from agent.store.tensors import Part

T = TypeVar("T")
DONE: tuple[State, ...] = ("done",)
_DOWN = "the agent or the machine went down while it ran"


class Counts(Struct, frozen=True):
    """How many jobs are in each state, the bytes of all, and how many were, since the file began,
    submitted, ended in each way, and removed (`taken`, `expired`)."""

    now: dict[str, int]
    bytes: int
    since: dict[str, int]


class Jobs:
    """Used on the event loop; each call raises StoreError when the store cannot."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        limits: Limits,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        """`token` gives the part of an id that nobody can guess."""
        self.limits = limits
        self._database = database
        self._clock = clock
        self._arrivals = Arrivals(database, clock, limits, token)

    async def submit(self, new: New, parts: Sequence[Part]) -> tuple[Job, bool]:
        """Keep a job; it, and whether it is new: an id that is known names the job that there is.

        Raises JobsFull at a bound, RequestError when it can never fit, NotNow when its id is that
        of another job; then nothing is kept.
        """
        return await self._arrivals.submit(new, parts)

    async def recover(self) -> None:
        """After the start: what was running is queued, what was arriving goes."""
        await self._database.write(jobsteps.recover)

    async def _read(self, operation: Callable[[sqlite3.Connection, int], T]) -> T:
        """Run `operation` with the instant of now on the store's own clock."""
        stamp = self._clock.stamp()
        return await self._database.read(
            lambda c: operation(c, boot_begin_ns(c, stamp.boot) + stamp.mono_ns)
        )

    async def _write(
        self,
        operation: Callable[[sqlite3.Connection, int, int], T],
        grows: Sequence[str] = (),
    ) -> T:
        """The same, with the wall label too."""
        stamp = self._clock.stamp()
        return await self._database.write(
            lambda c: operation(c, boot_begin_ns(c, stamp.boot) + stamp.mono_ns, stamp.wall_us),
            grows=grows,
        )

    # Looking.

    async def get(self, name: str) -> Job:
        """The job of this id. Raises NotThere."""
        return await self._read(lambda c, now_ns: jobrows.the(c, name, now_ns))

    async def page(
        self, first: int = 1, count: int = 100, states: Collection[State] = STATES
    ) -> list[Job]:
        """Up to `count` jobs in these states, from the one with this number on."""
        return await self._read(lambda c, now_ns: jobrows.page(c, first, count, states, now_ns))

    async def waiting(self) -> list[Waiting]:
        """All that has not ended, in the order in which it is to go."""
        return await self._database.read(jobrows.waiting)

    async def rates(self) -> dict[str, float]:
        """Seconds for a row, by model, where they were measured."""
        return await self._database.read(
            lambda c: dict(c.execute("SELECT model, row_s FROM job_rates").fetchall())
        )

    async def counts(self) -> Counts:
        """What there is, and what became of the others."""
        return await self._database.read(lambda c: Counts(*jobrows.counts(c)))

    async def chunk(self, name: str, number: int, states: Collection[State] = DONE) -> bytes:
        """What chunk `number` of a job in one of these states holds: its input, once it is done
        its result.

        Raises NotThere, NotNow in other states, StoreDamaged when it is not what was written.
        """

        def operation(connection: sqlite3.Connection, now_ns: int) -> bytes:
            job = jobrows.the(connection, name, now_ns, states)
            _, blob, size = jobrows.chunk_of(connection, job.number, number)
            content = blobs.read(connection, blob, 0, size) if size else b""
            if len(content) != size:
                raise StoreDamaged(
                    f"chunk {number} of job {name} has {len(content)} bytes of {size}"
                )
            return content

        return await self._read(operation)

    # Running: for the runner alone.

    async def begin(self, name: str, failure: str = "") -> Job:
        """The chunk at hand is begun, because it failed so before, or for the first time.

        The job is running then; or it has failed, if it was begun too often. Raises NotThere,
        NotNow when it has ended.
        """

        def operation(connection: sqlite3.Connection, now_ns: int, wall_us: int) -> Job:
            job = jobrows.the(connection, name, now_ns, OPEN)
            if job.attempts >= self.limits.attempts_max:
                chunk = f"chunk {job.chunks_done + 1} of {job.chunks}"
                why = f"{chunk} failed {job.attempts} times; at last: {failure or _DOWN}"
                jobsteps.end(connection, job, "failed", now_ns, wall_us, why)
            else:
                jobsteps.start(connection, job, now_ns, wall_us, failure)
            return jobrows.one(connection, job.number, now_ns)

        return await self._write(operation)

    async def keep(self, name: str, chunk: int, made: Made) -> Job:
        """The result of the chunk at hand; with the last one the job is done.

        Raises NotThere or NotNow, and keeps nothing, when the job does not run any more or chunk is
        not the one at hand; StoreFull when there is no room now. Where there can be none before
        this very job has ended, it has failed.
        """

        def operation(connection: sqlite3.Connection, now_ns: int, wall_us: int) -> Job:
            job = jobrows.the(connection, name, now_ns, ("running",))
            if job.chunks_done != chunk:
                raise NotNow(f"job {name} is at chunk {job.chunks_done}", f"not at {chunk}")
            if why := self._no_room(connection, job, made):
                jobsteps.end(connection, job, "failed", now_ns, wall_us, why)
            else:
                jobsteps.keep(connection, job, made)
                if chunk + 1 == job.chunks:
                    jobsteps.end(connection, job, "done", now_ns, wall_us, "")
            return jobrows.one(connection, job.number, now_ns)

        return await self._write(operation, grows=GROWS)

    def _no_room(self, connection: sqlite3.Connection, job: Job, made: Made) -> str:
        """Why there never will be room for a result; '' if there is. Raises StoreFull."""
        _, _, size = jobrows.chunk_of(connection, job.number, job.chunks_done)
        _, held_bytes = jobrows.held(connection)
        wanted = held_bytes - size + len(made.content)
        if len(made.content) <= size or wanted <= self.limits.bytes_max:
            return ""
        why = f"jobs would hold {wanted} bytes, above jobs.bytes_max ({self.limits.bytes_max})"
        if jobrows.frees_room(connection):
            raise StoreFull(why, "take results (DELETE)")
        return f"no room for its result: {why}"

    async def release(self, name: str) -> None:
        """A running job stops between two chunks, or with the agent: that is no attempt."""

        def operation(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE jobs SET state = 'queued', attempts = max(0, attempts - 1)"
                " WHERE id = ? AND state = 'running'",
                (name,),
            )

        await self._database.write(operation)

    async def fail(self, name: str, why: str) -> Job:
        """It cannot be done. Raises NotThere, NotNow when it has ended."""
        return await self._end(name, "failed", why)

    # Deciding.

    async def cancel(self, name: str) -> Job:
        """It is not to be done any more. Raises NotThere, NotNow when it has ended."""
        return await self._end(name, "cancelled", "")

    async def _end(self, name: str, state: State, why: str) -> Job:
        def operation(connection: sqlite3.Connection, now_ns: int, wall_us: int) -> Job:
            job = jobrows.the(connection, name, now_ns, OPEN)
            jobsteps.end(connection, job, state, now_ns, wall_us, why)
            return jobrows.one(connection, job.number, now_ns)

        return await self._write(operation)

    async def remove(self, name: str) -> None:
        """Its result was taken. Raises NotThere, NotNow when it has not ended."""

        def operation(connection: sqlite3.Connection, now_ns: int, _: int) -> None:
            job = jobrows.the(connection, name, now_ns, ENDED)
            jobsteps.leave(connection, [job.number])
            jobsteps.tally(connection, "taken")

        await self._write(operation)

    async def expire(self) -> int:
        """Remove what ended too long ago; how many that were."""
        keep_ns = int(self.limits.result_keep_s * 1e9)

        def operation(connection: sqlite3.Connection, now_ns: int, _: int) -> int:
            old = jobrows.ended_before(connection, now_ns - keep_ns)
            jobsteps.leave(connection, old)
            if old:
                jobsteps.tally(connection, "expired", len(old))
            return len(old)

        return await self._write(operation)

    async def clear(self) -> None:
        """Give the room back that ended and removed jobs do not need, in steps of a commit each."""
        while await self._database.write(jobsteps.clear_some):
            pass
