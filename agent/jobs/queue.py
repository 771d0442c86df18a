"""The jobs as their doors see them: handed in, looked at, cancelled, taken."""

from collections.abc import Collection, Sequence

from agent.changes import Changes
from agent.errors import BusyError, JobsFull
from agent.jobs.estimate import etas, first_s
from agent.jobs.infer import Where
from agent.jobs.runner import Runner
from agent.store.arrivals import New
from agent.store.jobrows import Class, Job, State
from agent.store.jobs import Jobs
from agent.store.jobshown import JobShown, JobsShown
from agent.store.tensors import Tensor, split
from agent.threads import apart


class Queue:
    """Used on the event loop. Every call raises StoreError when the store cannot."""

    def __init__(self, jobs: Jobs, runner: Runner, where: Where) -> None:
        self._jobs = jobs
        self._runner = runner
        self._where = where

    async def submit(
        self,
        model: str,
        klass: Class,
        name: str | None,
        inputs: Sequence[Tensor],
        wanted: Sequence[str],
    ) -> tuple[JobShown, bool]:
        """Keep a job for good; it, and whether it is new.

        Raises NotThere for a model that nobody serves, RequestError for inputs that are no job,
        NotNow when the id is another job's; at a bound of the jobs BusyError with the time until
        one is done, or JobsFull where nobody knows it.
        """
        place = self._where(model)
        parts = await apart(lambda: split(inputs, place.rows_max))
        try:
            job, fresh = await self._jobs.submit(New(model, klass, list(wanted), name), parts)
        except JobsFull as full:
            retry_s = first_s(await self._etas())
            if retry_s is None:  # it takes somebody who takes results, and not time
                raise
            raise BusyError(str(full), full.hint, retry_s) from full
        self._runner.wake()
        return await self._told(job), fresh

    async def job(self, name: str) -> Job:
        """The job itself. Raises NotThere."""
        return await self._jobs.get(name)

    async def show(self, name: str) -> JobShown:
        """A job, how far it is, and when it will be done. Raises NotThere."""
        return await self._told(await self._jobs.get(name))

    async def page(self, first: int, count: int, states: Collection[State]) -> JobsShown:
        """Up to `count` jobs from this number on, where the next begin, and how many there are."""
        found = await self._jobs.page(first, count + 1, states)
        following = found[count].number if len(found) > count else None
        ends = await self._etas() if any(one.ended_us is None for one in found) else {}
        return {
            "jobs": [self._document(one, ends) for one in found[:count]],
            "next": following,
            "counts": await self._jobs.counts(),
        }

    async def chunk(self, name: str, number: int) -> bytes:
        """The result of a chunk of a job that is done. Raises as `Jobs.chunk`."""
        return await self._jobs.chunk(name, number)

    def changes(self, name: str) -> Changes:
        """Told of whatever happens to a job, as long as somebody keeps them."""
        return self._runner.changes(name)

    async def cancel(self, name: str) -> JobShown:
        """End a job that has not ended. Raises NotThere, NotNow."""
        return await self._told(await self._runner.cancel(name))

    async def remove(self, name: str) -> None:
        """Its result was taken: it goes. Raises NotThere, NotNow when it has not ended."""
        await self._jobs.remove(name)
        self._runner.wake()

    async def _told(self, job: Job) -> JobShown:
        return self._document(job, await self._etas() if job.ended_us is None else {})

    async def _etas(self) -> dict[str, float | None]:
        waiting, rates = await self._jobs.waiting(), await self._jobs.rates()
        return etas(waiting, rates, self._where, self._runner.spent_s())

    def _document(self, job: Job, ends: dict[str, float | None]) -> JobShown:
        return {
            "number": job.number,
            "id": job.id,
            "model": job.model,
            "class": job.klass,
            "state": job.state,
            "rows": job.rows,
            "rows_done": job.rows_done,
            "chunks": job.chunks,
            "chunks_done": job.chunks_done,
            "attempts": job.attempts,
            "bytes": job.bytes,
            "age_s": job.age_s,
            "submitted_us": job.submitted_us,
            "started_age_s": job.started_age_s,
            "started_us": job.started_us,
            "ended_age_s": job.ended_age_s,
            "ended_us": job.ended_us,
            "progress": round(job.rows_done / job.rows, 4),
            "eta_s": ends.get(job.id),
            "failure": job.error,
            "held_up": self._runner.held_up(job.id),
            "answered": [{"model": one.model, "ep": one.ep} for one in job.answered],
        }
