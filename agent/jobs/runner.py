"""Runs the jobs: of each domain one at a time, chunk by chunk.

Limits  : a task for each domain. Of a domain's jobs the higher class goes first, then the older;
          one that runs gives way to a higher class between two chunks.
Format  : none of its own (agent/store/jobs.py).
Recovery: what a chunk gave is kept before the next begins; a start goes on behind it. A chunk whose
          work is lost is begun again after a pause, `attempts_max` times in all. A busy domain and
          a store without room are waited for, and said of the job. An orderly end is no attempt.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from msgspec import Struct

from agent.changes import Changes
from agent.clock import Clock
from agent.errors import (
    HoldfastError,
    ModelError,
    NotNow,
    NotThere,
    RequestError,
    StoreDamaged,
    StoreError,
)
from agent.jobs.infer import Infer, Request, Where, made
from agent.store.jobrows import CLASSES, Class, Job, Made, State, Waiting
from agent.store.jobs import Jobs
from agent.store.tensors import Tensor, unpack

log = logging.getLogger("jobs")
T = TypeVar("T")
RUNNING: tuple[State, ...] = ("running",)


class Pauses(Struct, frozen=True):
    """Seconds between two tries, doubled from the first to the last; and how often it is looked
    for jobs that were kept long enough."""

    first_s: float = 0.5
    last_s: float = 30.0
    look_s: float = 60.0


class _Current(Struct):
    """The job that a domain is at."""

    id: str
    klass: Class
    task: asyncio.Task[None]
    gives_way: bool = False
    begun_s: float | None = None  # the chunk at hand
    held_up: str = ""  # why it does not go on


class Runner:
    """Runs until it is cancelled."""

    def __init__(
        self, jobs: Jobs, infer: Infer, where: Where, clock: Clock, pauses: Pauses | None = None
    ) -> None:
        self._jobs = jobs
        self._infer = infer
        self._where = where
        self._clock = clock
        self._pauses = pauses or Pauses()
        self._now: dict[str, _Current] = {}  # by domain
        self._wake = asyncio.Event()
        self._changes: WeakValueDictionary[str, Changes] = WeakValueDictionary()

    def wake(self) -> None:
        """There may be more to do."""
        self._wake.set()

    async def cancel(self, name: str) -> Job:
        """End a job for good, in the middle of its chunk if need be. Raises as `Jobs.cancel`."""
        job = await self._jobs.cancel(name)
        if current := self._current(name):
            current.task.cancel()
        self._tell(name)
        self.wake()
        return job

    def changes(self, name: str) -> Changes:
        """Of the job of this id, as long as somebody keeps them."""
        found = self._changes.get(name)
        if found is None:
            found = self._changes[name] = Changes()
        return found

    def held_up(self, name: str) -> str:
        """Why a running job does not go on; '' when it does."""
        current = self._current(name)
        return current.held_up if current else ""

    def spent_s(self) -> dict[str, float]:
        """How long the chunks at hand run, by job."""
        now = self._clock.monotonic()
        return {one.id: now - one.begun_s for one in self._now.values() if one.begun_s is not None}

    async def run(self) -> None:
        """Run what there is to run, for ever."""
        try:
            while True:
                self._wake.clear()
                wait_s = self._pauses.look_s
                try:
                    await self._look()
                except StoreError as error:
                    log.warning("jobs wait for the store: %s", error)
                    wait_s = self._pauses.last_s
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                self._reap()
        except asyncio.CancelledError:
            for name in await self._stop():
                with suppress(StoreError):  # then it counts as an attempt
                    await self._jobs.release(name)
            raise
        finally:
            await self._stop()

    async def _stop(self) -> list[str]:
        """End the tasks; the jobs that they were at."""
        stopped, self._now = list(self._now.values()), {}
        for one in stopped:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in stopped), return_exceptions=True)
        return [one.id for one in stopped]

    def _reap(self) -> None:
        """Forget what has ended. Raises what a task did not expect."""
        for domain, one in list(self._now.items()):
            if one.task.done():
                del self._now[domain]
                if not one.task.cancelled():
                    one.task.result()

    async def _look(self) -> None:
        """Give each domain that has none its next job."""
        await self._jobs.expire()
        await self._jobs.clear()
        for one in await self._jobs.waiting():
            try:
                domain = self._where(one.model).domain
            except HoldfastError as error:  # it left the catalog or the configuration
                with suppress(NotThere, NotNow):
                    await self._jobs.fail(one.id, str(error))
                self._tell(one.id)
                continue
            current = self._now.get(domain)
            if current is None:
                self._begin(one, domain)
            elif CLASSES.index(one.klass) < CLASSES.index(current.klass):
                current.gives_way = True

    def _begin(self, one: Waiting, domain: str) -> None:
        task = asyncio.create_task(self._work(one.id, domain), name=f"job {one.id}")
        task.add_done_callback(lambda _: self.wake())
        self._now[domain] = _Current(one.id, one.klass, task)

    def _current(self, name: str) -> _Current | None:
        return next((one for one in self._now.values() if one.id == name), None)

    async def _work(self, name: str, domain: str) -> None:
        """A job, to its end or until it gives way."""
        current = self._now[domain]
        with suppress(NotThere, NotNow):  # somebody cancelled it
            job = await self._insist(name, lambda: self._jobs.begin(name))
            while job.state == "running" and not current.gives_way:
                job = await self._chunk(job, current)
            if job.state == "running":
                await self._insist(name, lambda: self._jobs.release(name))
            else:
                log.info("job %s is %s%s", name, job.state, job.error and f": {job.error}")

    async def _chunk(self, job: Job, current: _Current) -> Job:
        """The chunk at hand, until it is done or the job is over; the job as it is then."""
        name, number = job.id, job.chunks_done
        try:
            content = await self._insist(name, lambda: self._jobs.chunk(name, number, RUNNING))
            inputs = unpack(content)
        except StoreDamaged as damage:
            return await self._fail(job, f"its input is damaged on the disk: {damage}")
        result: Made | None = None
        pause_s = self._pauses.first_s
        while True:
            try:
                result = await self._answer(job, inputs, current)
            except NotNow as busy:
                self._hold_up(current, str(busy))
            except (RequestError, ModelError) as error:
                return await self._fail(job, str(error))
            except HoldfastError as error:
                lost = str(error)
                log.warning("job %s: chunk %d of %d: %s", name, number + 1, job.chunks, lost)
                job = await self._insist(name, partial(self._jobs.begin, name, lost))
                if job.state != "running":
                    return job
            if result:
                return await self._insist(name, partial(self._jobs.keep, name, number, result))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._pauses.last_s)

    async def _answer(self, job: Job, inputs: list[Tensor], current: _Current) -> Made:
        """One call. Raises what `Infer.infer` does, and ModelError as `made` does."""
        rows = job.rows if job.chunks == 1 else inputs[0].shape[0]
        begun_s = current.begun_s = self._clock.monotonic()
        try:
            again = job.attempts > 1
            answer = await self._infer.infer(
                Request(job.model, job.klass, inputs, job.wanted, again)
            )
        finally:
            current.begun_s = None
        current.held_up = ""
        return made(job, rows, answer, self._clock.monotonic() - begun_s)

    async def _fail(self, job: Job, why: str) -> Job:
        said = f"chunk {job.chunks_done + 1} of {job.chunks}: {why}"
        return await self._insist(job.id, lambda: self._jobs.fail(job.id, said))

    async def _insist(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives once the store can. Raises StoreDamaged, no other StoreError."""
        pause_s = self._pauses.first_s
        current = self._current(name)
        while True:
            try:
                done = await attempt()
            except StoreDamaged:
                raise
            except StoreError as error:
                if pause_s == self._pauses.first_s:
                    log.warning("job %s waits for the store: %s", name, error)
                if current:
                    self._hold_up(current, str(error))
            else:
                if current:
                    current.held_up = ""
                self._tell(name)
                return done
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._pauses.last_s)

    def _hold_up(self, current: _Current, why: str) -> None:
        current.held_up = why
        self._tell(current.id)

    def _tell(self, name: str) -> None:
        """A job changed, or was looked at."""
        if changes := self._changes.get(name):
            changes.tell()
