"""The jobs as their doors see them: handed in, looked at, cancelled, taken."""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from agent.jobs.estimate import etas
from agent.jobs.infer import Where
from agent.jobs.runner import Runner
from agent.store.arrivals import New
from agent.store.jobrows import Class, Job, State
from agent.store.jobs import Jobs
from agent.store.tensors import Tensor, split
from agent.threads import apart

HIDDEN = ("wanted", "form", "error")  # `error` stands in refusals alone


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
    ) -> tuple[dict[str, Any], bool]:
        """Keep a job for good; it, and whether it is new.

        Raises NotThere for a model that nobody serves, RequestError for inputs that are no job,
        NotNow when the id is another job's, StoreFull at a bound.
        """
        place = self._where(model)
        parts = await apart(lambda: split(inputs, place.rows_max))
        job, fresh = await self._jobs.submit(New(model, klass, list(wanted), name), parts)
        self._runner.wake()
        return await self._told(job), fresh

    async def job(self, name: str) -> Job:
        """The job itself. Raises NotThere."""
        return await self._jobs.get(name)

    async def show(self, name: str) -> dict[str, Any]:
        """A job, how far it is, and when it will be done. Raises NotThere."""
        return await self._told(await self._jobs.get(name))

    async def page(self, first: int, count: int, states: Collection[State]) -> dict[str, Any]:
        """Up to `count` jobs from this number on, where the next begin, and how many there are."""
        found = await self._jobs.page(first, count + 1, states)
        following = found[count].number if len(found) > count else None
        ends = await self._etas() if any(one.ended_us is None for one in found) else {}
        return {
            "jobs": [self._document(one, ends) for one in found[:count]],
            "next": following,
            "counts": msgspec.to_builtins(await self._jobs.counts()),
        }

    async def chunk(self, name: str, number: int) -> bytes:
        """The result of a chunk of a job that is done. Raises as `Jobs.chunk`."""
        return await self._jobs.chunk(name, number)

    async def cancel(self, name: str) -> dict[str, Any]:
        """End a job that has not ended. Raises NotThere, NotNow."""
        return await self._told(await self._runner.cancel(name))

    async def remove(self, name: str) -> None:
        """Its result was taken: it goes. Raises NotThere, NotNow when it has not ended."""
        await self._jobs.remove(name)
        self._runner.wake()

    async def _told(self, job: Job) -> dict[str, Any]:
        return self._document(job, await self._etas() if job.ended_us is None else {})

    async def _etas(self) -> dict[str, float | None]:
        waiting, rates = await self._jobs.waiting(), await self._jobs.rates()
        return etas(waiting, rates, self._where, self._runner.spent_s())

    def _document(self, job: Job, ends: dict[str, float | None]) -> dict[str, Any]:
        told = msgspec.to_builtins(job)
        for key in HIDDEN:
            del told[key]
        return {
            **told,
            "progress": round(job.rows_done / job.rows, 4),
            "eta_s": ends.get(job.id),
            "failure": job.error,
            "held_up": self._runner.held_up(job.id),
            "answered": [{"model": one.model, "ep": one.ep} for one in job.answered],
        }
