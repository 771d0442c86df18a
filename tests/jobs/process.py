"""A process that hands in jobs and runs them, and says what it does, until it is killed.

    python -m tests.jobs.process FOLDER JOBS [--kill POINT:TIMES]

One line a fact:

    given JOB          its submit was answered
    cancelled JOB      so was its cancel (each seventh job's, at once)
    run JOB ROW        the model begins with the chunk of this row
    over               every job has ended
"""

import argparse
import asyncio
import contextlib
import ctypes
import signal
from pathlib import Path
from typing import Any

from agent.errors import NotNow
from tests.jobs.desk import Desk
from tests.store.faults import tripwire

CANCELLED_EVERY = 7


def size(job: int) -> int:
    return 3 + job % 11


def cancelled(job: int) -> bool:
    return job % CANCELLED_EVERY == 0


def say(*words: object) -> None:
    print(*words, flush=True)


def _run(x: Any) -> None:
    say("run", int(x[0, 0]), int(x[0, 1]))


async def main(folder: Path, jobs: int) -> None:
    desk = Desk(folder, jobs_max=jobs, attempts_max=1000)
    desk.models.before = _run
    async with desk:
        for job in range(jobs):
            await desk.submit(job, size(job), ["double", "apart"][job % 2], name=str(job))
            say("given", job)
            if cancelled(job):
                with contextlib.suppress(NotNow):  # it has ended
                    await desk.queue.cancel(str(job))
                    say("cancelled", job)

        async def over() -> bool:
            now = (await desk.jobs.counts()).now
            return now["queued"] + now["running"] == 0

        await desk.until(over, "all have ended")
        await desk.jobs.clear()
        say("over")


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it dies with the test
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", type=int)
    parser.add_argument("--kill", default="")
    given = parser.parse_args()
    if given.kill:
        point, _, times = given.kill.partition(":")
        tripwire.install(point, int(times))
    asyncio.run(main(given.folder, given.jobs))
