"""Jobs run: in order, one at a time in each domain, from where they were, and never twice."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.errors import DomainError, ModelError, NotNow, RequestError, StoreFull
from agent.jobs.infer import Answer, Request
from agent.store.arrivals import New
from agent.store.jobs import Jobs
from agent.store.tensors import Part
from tests.jobs.desk import Desk, Models, computed, rows, tensor
from tests.store.faults.disk import small
from tests.store.faults.test_disk_full import fill


async def test_a_job_is_cut_run_and_put_together(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        name = await desk.submit(7, 10)
        told = await desk.ended(name)
        assert (told["rows_done"], told["chunks_done"], told["progress"]) == (10, 3, 1.0)
        assert told["answered"] == [{"model": "double/1@0123", "ep": "cpu"}]
        assert [one.inputs[0].shape for one in desk.models.calls] == [[4, 2], [4, 2], [2, 2]]
        assert np.array_equal(await desk.result(name), computed(rows(7, 10)))
        assert np.array_equal(await desk.result(name, 1), computed(rows(7, 10)).sum(axis=1))


async def test_a_model_without_rows_gets_it_whole(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        name = await desk.submit(7, 10, "whole", wanted=["sum"])
        told = await desk.ended(name)
        assert (told["rows"], told["chunks"]) == (1, 1)
        assert [one.inputs[0].shape for one in desk.models.calls] == [[10, 2]]
        assert np.array_equal(await desk.result(name), computed(rows(7, 10)).sum(axis=1))


async def test_each_domain_does_one_at_a_time_by_class_and_age(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.models.go.clear()
    async with desk:
        for job, model, klass in (
            (1, "double", "batch"),
            (2, "other", "batch"),
            (3, "double", "interactive"),
            (4, "apart", "batch"),
            (5, "other", "realtime"),
        ):
            await desk.submit(job, 9, model, klass=klass, name=str(job))
            await desk.until(lambda: _begun(desk), "one is begun")
        desk.models.go.set()
        for job in range(1, 6):
            await desk.ended(str(job))
        began = [key for key in desk.models.seen if key[0] != 4]
        # The first gives way after the chunk that it was at.
        assert began == [
            *[(1, 0), (5, 0), (5, 4), (5, 8), (3, 0), (3, 4), (3, 8)],
            *[(1, 4), (1, 8), (2, 0), (2, 4), (2, 8)],
        ]
        assert set(desk.models.seen.values()) == {1}
        assert desk.models.most_at_once == {"cpu": 1, "gpu": 1}
        assert (await desk.queue.show("1"))["attempts"] == 1


async def _begun(desk: Desk) -> bool:
    return bool(desk.models.calls)


async def test_five_hundred_jobs_over_restarts(tmp_path: Path) -> None:
    models, count = Models(), 500
    folder = tmp_path
    done = 0
    for life in range(4):
        desk = Desk(folder, models)
        async with desk:
            given = [
                desk.submit(job, 5 + job % 9, ["double", "apart"][job % 2], name=f"j{job}")
                for job in range(count)
            ]
            await asyncio.gather(*given)
            goal = count if life == 3 else done + 120

            async def so_many(desk: Desk = desk, goal: int = goal) -> bool:
                return (await desk.jobs.counts()).since.get("done", 0) >= goal

            await desk.until(so_many, f"{goal} are done")
            await desk.stop()
            done = (await desk.jobs.counts()).now["done"]
            if life == 3:
                for job in range(count):
                    found = await desk.result(f"j{job}")
                    assert np.array_equal(found, computed(rows(job, 5 + job % 9)))
                assert (await desk.jobs.counts()).since == {"submitted": count, "done": count}
                assert await desk.store.ledger.faults() == []
    assert desk.models.most_at_once == {"cpu": 1, "gpu": 1}
    chunks = sum(-(-(5 + job % 9) // 4) for job in range(count))
    assert len(models.seen) == chunks
    assert sum(models.seen.values()) <= chunks + 2 * 3  # what was at hand at an end


async def test_lost_work_is_tried_again(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        left = 2

        def lose(_: object) -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                raise DomainError("the worker died")

        desk.models.before = lose
        told = await desk.ended(await desk.submit(1, 6))
        assert (told["attempts"], told["failure"]) == (1, "")


async def test_a_chunk_that_kills_its_domain_fails_its_job_alone(tmp_path: Path) -> None:
    async with Desk(tmp_path, attempts_max=3) as desk:

        def lose(x: Any) -> None:
            if tuple(x[0]) == (1, 4):
                raise DomainError("the worker died")

        desk.models.before = lose
        poison, good = await desk.submit(1, 9), await desk.submit(2, 9)
        told = await desk.ended(poison, "failed")
        assert told["failure"] == "chunk 2 of 3 failed 3 times; at last: the worker died"
        assert (told["rows_done"], told["attempts"]) == (4, 3)
        await desk.ended(good)
        calls = [int(np.frombuffer(r.inputs[0].data, "<f4")[0]) for r in desk.models.calls]
        assert calls.count(1) == 4
        again = [r.again for r in desk.models.calls]
        assert again.count(True) == 2, "the second and third time of one chunk"


@pytest.mark.parametrize("error", [RequestError("it is too wide"), ModelError("it is NaN")])
async def test_what_the_model_does_not_take_fails_at_once(tmp_path: Path, error: Exception) -> None:
    async with Desk(tmp_path) as desk:

        def refuse(_: object) -> None:
            raise error

        desk.models.before = refuse
        told = await desk.ended(await desk.submit(1, 9), "failed")
        assert told["failure"] == f"chunk 1 of 3: {error}"
        assert len(desk.models.calls) == 1


async def test_a_busy_domain_is_waited_for(tmp_path: Path) -> None:
    async with Desk(tmp_path, attempts_max=1) as desk:
        busy = True

        def refuse(_: object) -> None:
            if busy:
                raise NotNow("its queue is full", "try again")

        desk.models.before = refuse
        name = await desk.submit(1, 3)

        async def held_up() -> bool:
            return len(desk.models.calls) > 3 and bool((await desk.queue.show(name))["held_up"])

        await desk.until(held_up, "it is held up")
        told = await desk.queue.show(name)
        assert (told["held_up"], told["attempts"]) == ("its queue is full", 1)
        busy = False
        assert (await desk.ended(name))["held_up"] == ""


async def test_a_full_store_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Desk(tmp_path) as desk:
        keep, full = Jobs.keep, True

        async def refuse(*arguments: Any) -> Any:
            if full:
                raise StoreFull("the disk is full", "make room")
            return await keep(*arguments)

        monkeypatch.setattr(Jobs, "keep", refuse)
        name = await desk.submit(1, 3)

        async def held_up() -> bool:
            return (await desk.queue.show(name))["held_up"] == "the disk is full"

        await desk.until(held_up, "it is held up")
        full = False
        await desk.ended(name)
        assert set(desk.models.seen.values()) == {1}, "what was computed is not computed again"


async def test_on_a_full_disk_jobs_stand_still_and_go_on(tmp_path: Path) -> None:
    with small("tmpfs", tmp_path) as place:
        desk = Desk(place)
        desk.models.go.clear()
        async with desk:
            for job in range(30):
                await desk.submit(job, 9, name=str(job))
            await desk.until(lambda: _begun(desk), "one is begun")
            fill(place / "ballast")
            with pytest.raises(StoreFull):  # by the time its WAL is to grow
                while True:
                    await desk.submit(9, 9_000)
            desk.models.go.set()

            async def held_up() -> bool:
                page = await desk.queue.page(1, 100, ["running"])
                return any("the disk is full" in told["held_up"] for told in page["jobs"])

            await desk.until(held_up, "it is held up")
            (place / "ballast").unlink()
            for job in range(30):
                await desk.ended(str(job))
            assert await desk.store.ledger.faults() == []


class Odd(Models):
    """Answers in another form from row 4 on."""

    async def infer(self, request: Request) -> Answer:
        answer = await super().infer(request)
        y = computed(rows(1, request.inputs[0].shape[0]))
        odd = {"rows": y[:1], "width": np.hstack([y, y]), "kind": y.astype(np.float64)}
        if len(self.calls) == 2:
            return Answer([tensor("y", odd[request.wanted[0]])], answer.model, answer.ep)
        return Answer([tensor("y", y)], answer.model, answer.ep)


@pytest.mark.parametrize(
    ("how", "word"),
    [("rows", r"shape \[1, 2\] for 4 rows"), ("width", "another form"), ("kind", "FP64")],
)
async def test_chunks_that_do_not_fit_together_fail(tmp_path: Path, how: str, word: str) -> None:
    async with Desk(tmp_path, Odd()) as desk:
        told = await desk.ended(await desk.submit(1, 9, wanted=[how]), "failed")
        with pytest.raises(AssertionError, match=word):
            raise AssertionError(told["failure"])


async def test_a_model_that_left_fails_its_jobs(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    async with desk.store:
        await desk.jobs.submit(New("gone", "batch", [], "a"), [Part(1, b"\x90")])
        desk.start()
        told = await desk.until(lambda: _failed(desk, "a"), "it fails")
        assert told.error == "no model 'gone'"
        await desk.stop()


async def _failed(desk: Desk, name: str) -> Any:
    job = await desk.jobs.get(name)
    return job if job.state == "failed" else None


async def test_a_damaged_input_fails_its_job(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    async with desk.store:
        await desk.submit(1, 9, name="a")
        await desk.store._database.write(
            lambda c: c.execute(
                "UPDATE chunks SET crc = crc + 1 WHERE id >> 12 ="
                " (SELECT blob FROM job_chunks WHERE chunk = 1)"
            )
        )
        desk.start()
        told = await desk.ended("a", "failed")
        assert told["failure"].startswith("chunk 2 of 3: its input is damaged on the disk")
        await desk.stop()


async def test_a_fault_of_our_own_ends_the_runner_and_counts(tmp_path: Path) -> None:
    for _ in range(2):
        desk = Desk(tmp_path, attempts_max=2)
        async with desk.store:

            def break_down(_: object) -> None:
                raise ZeroDivisionError

            desk.models.before = break_down
            await desk.submit(1, 9, name="a")
            desk.start()
            with pytest.raises(ZeroDivisionError):
                await desk.running
    desk = Desk(tmp_path, attempts_max=2)
    async with desk:
        told = await desk.ended("a", "failed")
        assert "went down while it ran" in told["failure"]


async def test_an_orderly_end_is_no_attempt(tmp_path: Path) -> None:
    for _ in range(5):
        desk = Desk(tmp_path, attempts_max=2)
        desk.models.go.clear()
        async with desk:
            await desk.submit(1, 9, name="a")
            await desk.until(partial(_begun, desk), "it runs")
        assert desk.models.seen == {}
    async with Desk(tmp_path, attempts_max=2) as desk:
        assert (await desk.ended("a"))["attempts"] == 1


async def test_what_was_kept_long_enough_goes_by_itself(tmp_path: Path) -> None:
    async with Desk(tmp_path, result_keep_s=0.2) as desk:
        await desk.ended(await desk.submit(1, 9))

        async def gone() -> bool:
            counts = await desk.jobs.counts()
            return counts.since.get("expired") == 1 and counts.bytes == 0

        await desk.until(gone, "it expires")
