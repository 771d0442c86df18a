"""A job that is cancelled, whenever that is: it ends once, and what it held comes back."""

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest

from agent.errors import NotNow, NotThere
from tests.jobs.desk import Desk, computed, rows
from tests.store.faults.child import LONG, SEED

RACES = 500 if LONG else 60


async def test_a_queued_job(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.models.go.clear()
    async with desk:
        await desk.submit(1, 9, name="a")
        await desk.submit(2, 9, name="b")
        assert (await desk.queue.cancel("b"))["state"] == "cancelled"
        desk.models.go.set()
        await desk.ended("a")
        assert {job for job, _ in desk.models.seen} == {1}
        for name, error in (("b", NotNow), ("a", NotNow), ("c", NotThere)):
            with pytest.raises(error):
                await desk.queue.cancel(name)


async def test_a_running_job_is_ended_in_the_middle_of_its_chunk(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    async with desk:
        desk.models.go.clear()
        await desk.submit(1, 9, name="a")
        await desk.submit(2, 9, name="b")

        async def begun() -> bool:
            return len(desk.models.calls) == 1

        await desk.until(begun, "it is begun")
        assert (await desk.queue.cancel("a"))["state"] == "cancelled"

        async def next_begun() -> bool:
            return len(desk.models.calls) == 2

        await desk.until(next_begun, "the next one begins")
        assert desk.models.most_at_once == {"cpu": 1}
        desk.models.go.set()
        await desk.ended("b")
        await desk.queue.remove("a")

        async def empty() -> bool:
            return (await desk.jobs.counts()).now["cancelled"] == 0

        await desk.until(empty, "it is gone")
        assert await desk.store.ledger.faults() == []


async def test_races_with_the_commits_of_its_chunks(tmp_path: Path) -> None:
    """Cancelled at any moment: cancelled for good, or done whole."""
    chance = random.Random(SEED)
    ends = {"done": 0, "cancelled": 0}
    async with Desk(tmp_path, jobs_max=RACES) as desk:
        for race in range(RACES):
            name = await desk.submit(race, 9)
            for _ in range(chance.randint(0, 40)):
                await asyncio.sleep(chance.choice([0, 0, 0.0005]))
            try:
                told = await desk.queue.cancel(name)
            except NotNow:
                told = await desk.ended(name)
                assert np.array_equal(await desk.result(name), computed(rows(race, 9)))
            ends[told["state"]] += 1
            assert (await desk.queue.show(name))["state"] == told["state"]
        since = (await desk.jobs.counts()).since
        assert {state: since[state] for state in ends} == ends
        assert min(ends.values()) > 0, ends
        for job in await desk.jobs.page(1, RACES):
            await desk.queue.remove(job.id)

        async def empty() -> bool:
            return (await desk.jobs.counts()).bytes == 0

        await desk.until(empty, "the room is given back")
        assert await desk.store.ledger.faults() == []
        assert set(desk.models.seen.values()) == {1}
