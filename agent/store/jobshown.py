"""What the doors show of a job: forms of documents, which agent/jobs/queue.py makes."""

from typing import TypedDict

from agent.store.jobrows import Class, State
from agent.store.jobs import Counts


class AnsweredShown(TypedDict):
    """A model that answered (its label), and the execution provider that it ran on."""

    model: str
    ep: str


_Classed = TypedDict("_Classed", {"class": Class})


class JobShown(_Classed):
    """A durable job.

    `rows` of the first axis go to the model in `chunks`; `attempts` is how often the chunk at hand
    was begun. Ages are seconds of running time, `_us` wall labels in microseconds. `eta_s` is null
    where it is not known, `failure` "" unless it failed, `held_up` "" unless it waits for
    something.
    """

    number: int
    id: str
    model: str
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
    progress: float
    eta_s: float | None
    failure: str
    held_up: str
    answered: list[AnsweredShown]


class JobsShown(TypedDict):
    """A page of jobs, the number at which the next begins (null: there is no more)."""

    jobs: list[JobShown]
    next: int | None
    counts: Counts
