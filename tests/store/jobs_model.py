"""What jobs do, in the smallest form: the store has to agree with it after each step."""

import copy
from collections import Counter

import msgspec

from agent.errors import HoldfastError, JobsFull, NotNow, NotThere, RequestError, StoreFull
from agent.store.arrivals import Limits

OPEN, ENDED = ("queued", "running"), ("done", "failed", "cancelled")
Failure = type[HoldfastError] | None


class Kept(msgspec.Struct):
    """A job; `chunks` hold its inputs, and its results as far as it is done."""

    id: str
    chunks: list[bytes]
    state: str = "queued"
    done: int = 0
    attempts: int = 0
    bytes: int = 0
    ended_s: float = 0.0


class Model:
    """Each method does what the store's of that name does, and says how that is refused."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.jobs: dict[str, Kept] = {}
        self.leaving: list[int] = []  # bytes of each
        self.counts: Counter[str] = Counter()
        self.now_s = 0.0

    def copy(self) -> "Model":
        return copy.deepcopy(self)

    @property
    def bytes(self) -> int:
        return sum(job.bytes for job in self.jobs.values()) + sum(self.leaving)

    def submit(self, name: str, chunks: list[bytes]) -> Failure:
        size = sum(map(len, chunks))
        if size > self.limits.bytes_max:
            return RequestError
        if name in self.jobs:
            return None
        if len(self.jobs) + len(self.leaving) >= self.limits.jobs_max:
            return JobsFull
        if self.bytes + size > self.limits.bytes_max:
            return JobsFull
        self.jobs[name] = Kept(name, list(chunks), bytes=size)
        self.counts["submitted"] += 1
        return None

    def _refused(self, name: str, states: tuple[str, ...]) -> Failure:
        if name not in self.jobs:
            return NotThere
        return None if self.jobs[name].state in states else NotNow

    def _end(self, name: str, state: str) -> None:
        self.jobs[name].state = state
        self.jobs[name].ended_s = self.now_s
        self.counts[state] += 1

    def begin(self, name: str) -> Failure:
        if refused := self._refused(name, OPEN):
            return refused
        job = self.jobs[name]
        if job.attempts >= self.limits.attempts_max:
            self._end(name, "failed")
        else:
            job.attempts += 1
            job.state = "running"
        return None

    def keep(self, name: str, chunk: int, content: bytes) -> Failure:
        if refused := self._refused(name, ("running",)):
            return refused
        job = self.jobs[name]
        if chunk != job.done:
            return NotNow
        more = len(content) - len(job.chunks[chunk])
        if more > 0 and self.bytes + more > self.limits.bytes_max:
            others = [one for one in self.jobs.values() if one.state in ENDED and one.bytes]
            if others or any(self.leaving):
                return StoreFull
            self._end(name, "failed")
            return None
        job.chunks[chunk] = content
        job.done, job.attempts, job.bytes = job.done + 1, 1, job.bytes + more
        if job.done == len(job.chunks):
            self._end(name, "done")
        return None

    def release(self, name: str) -> Failure:
        job = self.jobs.get(name)
        if job and job.state == "running":
            job.state, job.attempts = "queued", max(0, job.attempts - 1)
        return None

    def fail(self, name: str) -> Failure:
        return self._over(name, "failed")

    def cancel(self, name: str) -> Failure:
        return self._over(name, "cancelled")

    def _over(self, name: str, state: str) -> Failure:
        if refused := self._refused(name, OPEN):
            return refused
        self._end(name, state)
        return None

    def remove(self, name: str) -> Failure:
        if refused := self._refused(name, ENDED):
            return refused
        self._leave(name, "taken")
        return None

    def expire(self) -> Failure:
        for name, job in list(self.jobs.items()):
            if job.state in ENDED and self.now_s - job.ended_s > self.limits.result_keep_s:
                self._leave(name, "expired")
        return None

    def _leave(self, name: str, why: str) -> None:
        self.leaving.append(self.jobs.pop(name).bytes)
        self.counts[why] += 1

    def clear(self) -> Failure:
        self.leaving.clear()
        for job in self.jobs.values():
            if job.state in ("failed", "cancelled"):
                job.bytes = 0
        return None

    def restart(self) -> None:
        for job in self.jobs.values():
            if job.state == "running":
                job.state = "queued"
        self.clear()
