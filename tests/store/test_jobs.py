"""Jobs in the store: their ids, their bounds, and what damage and a full disk do to them."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import config
from agent.errors import NotNow, NotThere, RequestError, StoreDamaged, StoreFull
from agent.store import arrivals, jobsteps
from agent.store.arrivals import Limits, New
from agent.store.jobrows import Answered, Made, Output
from agent.store.jobs import Jobs
from agent.store.store import Store
from agent.store.tensors import Part
from tests.store.faults import corrupt
from tests.store.rig import Rig
from tests.store.test_bounds import Hands

BY = Answered("m/1@0123", "cpu")


def opened(folder: Path, clock: Hands | None = None, **limits: object) -> Store:
    settings = config.Store(path=str(folder / "s.db"))
    return Store(settings, clock or Hands(), Limits(**limits))  # type: ignore[arg-type]


def parts(*sizes: int) -> list[Part]:
    return [Part(2, bytes([number]) * size) for number, size in enumerate(sizes)]


def made(content: bytes, row_s: float = 0.5) -> Made:
    return Made(content, [Output("y", "UINT8", [2])], BY, row_s)


async def given(jobs: Jobs, name: str | None, *sizes: int) -> str:
    job, fresh = await jobs.submit(New("m", "batch", [], name), parts(*sizes))
    assert fresh
    return job.id


async def finished(jobs: Jobs, name: str, *sizes: int) -> None:
    await jobs.begin(name)
    for number, size in enumerate(sizes):
        await jobs.keep(name, number, made(bytes([100 + number]) * size))


async def test_the_same_id_is_the_same_job(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        new = New("m", "batch", [], "mine")
        both = await asyncio.gather(*(store.jobs.submit(new, parts(9, 9)) for _ in range(5)))
        assert [fresh for _, fresh in both] == [True, False, False, False, False]
        assert len({job.number for job, _ in both}) == 1
        await finished(store.jobs, "mine", 5, 5)
        again, fresh = await store.jobs.submit(new, parts(9, 9))
        assert (again.state, fresh) == ("done", False)
        assert (await store.jobs.counts()).since == {"submitted": 1, "done": 1}
        for other in (New("m", "batch", ["y"], "mine"), New("n", "batch", [], "mine")):
            with pytest.raises(NotNow, match="another job"):
                await store.jobs.submit(other, parts(9, 9))
        with pytest.raises(NotNow, match="another job"):
            await store.jobs.submit(new, parts(9, 8))


async def test_ids_that_are_given_sort_as_the_jobs_came(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        first = [await given(store.jobs, None, 1) for _ in range(12)]
        await store.jobs.cancel(first[-1])
        await store.jobs.remove(first[-1])
        await store.jobs.clear()
        ids = [*first, await given(store.jobs, None, 1)]
        assert ids == sorted(ids)
        assert len(set(ids)) == 13


async def test_what_a_job_shows(tmp_path: Path) -> None:
    clock = Hands()
    async with opened(tmp_path, clock) as store:
        await given(store.jobs, "a", 9, 9)
        clock.at_s += 3
        await store.jobs.begin("a")
        clock.at_s += 4
        job = await store.jobs.keep("a", 0, made(b"result"))
        assert (job.state, job.rows, job.rows_done, job.chunks_done) == ("running", 4, 2, 1)
        assert (job.age_s, job.started_age_s, job.ended_us) == (7.0, 4.0, None)
        assert (job.form, job.answered) == ([Output("y", "UINT8", [2])], [BY])
        clock.wall_s = 0.0
        job = await store.jobs.keep("a", 1, made(b"result", row_s=1.0))
        assert (job.state, job.ended_age_s, job.ended_us) == ("done", 0.0, 0)
        assert await store.jobs.rates() == {"m": pytest.approx(0.6)}
        assert job.bytes == 12
        assert [await store.jobs.chunk("a", n) for n in (0, 1)] == [b"result"] * 2
        with pytest.raises(NotThere):
            await store.jobs.chunk("a", 2)


async def test_pages(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(6):
            await given(store.jobs, f"j{number}", 1)
        await store.jobs.cancel("j2")
        assert [job.id for job in await store.jobs.page(2, 3)] == ["j1", "j2", "j3"]
        assert [job.id for job in await store.jobs.page(1, 9, ["cancelled"])] == ["j2"]
        assert [one.id for one in await store.jobs.waiting()] == ["j0", "j1", "j3", "j4", "j5"]


async def test_the_bounds(tmp_path: Path) -> None:
    async with opened(tmp_path, jobs_max=2, bytes_max=1000) as store:
        jobs = store.jobs
        with pytest.raises(RequestError, match="all jobs together are given 1000"):
            await jobs.submit(New("m", "batch", []), parts(600, 600))
        await given(jobs, "a", 300, 300)
        with pytest.raises(StoreFull, match="bytes_max"):
            await jobs.submit(New("m", "batch", []), parts(401))
        await given(jobs, "b", 400)
        with pytest.raises(StoreFull, match="jobs_max"):
            await jobs.submit(New("m", "batch", []), parts(1))
        await jobs.cancel("a")
        await jobs.remove("a")
        with pytest.raises(StoreFull):  # what leaves is still there
            await jobs.submit(New("m", "batch", []), parts(1))
        await jobs.clear()
        await given(jobs, "a", 600)
        assert (await jobs.counts()).bytes == 1000


async def test_a_result_takes_the_room_of_its_input(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=1000) as store:
        await given(store.jobs, "a", 500, 500)
        await finished(store.jobs, "a", 500, 400)
        assert (await store.jobs.get("a")).state == "done"
        await store.jobs.remove("a")
        await store.jobs.clear()
        await given(store.jobs, "b", 400)
        await finished(store.jobs, "b", 1000)
        assert (await store.jobs.get("b")).bytes == 1000


async def test_under_a_bound_that_was_lowered_jobs_come_to_their_end(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=1000) as store:
        await given(store.jobs, "a", 500, 500)
    async with opened(tmp_path, bytes_max=600) as store:
        await finished(store.jobs, "a", 500, 300)
        assert (await store.jobs.get("a")).state == "done"


async def test_jobs_keep_to_the_bound_of_the_store(tmp_path: Path) -> None:
    settings = config.Store(path=str(tmp_path / "s.db"), bytes_max=1 << 20)
    async with Store(settings, Hands()) as store:
        await given(store.jobs, "a", 200_000)
        with pytest.raises(StoreFull, match=r"store\.bytes_max"):
            while True:
                await store.jobs.submit(New("m", "batch", []), parts(100_000))
        assert await store.used_bytes() <= 1 << 20
        await store.jobs.begin("a")
        with pytest.raises(StoreFull, match=r"store\.bytes_max"):
            await store.jobs.keep("a", 0, made(bytes(400_000)))
        assert (await store.jobs.keep("a", 0, made(bytes(200_000)))).state == "done"


async def test_a_result_waits_for_room_that_will_come(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=1000) as store:
        jobs = store.jobs
        await given(jobs, "taken soon", 500)
        await finished(jobs, "taken soon", 500)
        await given(jobs, "a", 400)
        await jobs.begin("a")
        with pytest.raises(StoreFull, match="bytes_max"):
            await jobs.keep("a", 0, made(bytes(501)))
        assert (await jobs.get("a")).chunks_done == 0
        await jobs.remove("taken soon")
        await jobs.clear()
        assert (await jobs.keep("a", 0, made(bytes(501)))).state == "done"


async def test_a_result_that_never_finds_room_fails(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=1000) as store:
        jobs = store.jobs
        await given(jobs, "a", 500)
        await given(jobs, "b", 400)
        await jobs.begin("a")
        job = await jobs.keep("a", 0, made(bytes(601)))
        assert (job.state, job.chunks_done) == ("failed", 0)
        assert "no room for its result" in job.error
        await jobs.clear()
        assert (await jobs.counts()).bytes == 400


async def test_a_chunk_that_never_comes_back_fails_its_job(tmp_path: Path) -> None:
    async with opened(tmp_path, attempts_max=3) as store:
        jobs = store.jobs
        await given(jobs, "a", 9, 9)
        await jobs.begin("a")
        await jobs.keep("a", 0, made(b""))
        for _ in range(2):
            assert (await jobs.begin("a", "the worker died")).state == "running"
        job = await jobs.begin("a", "the worker died")
        assert (job.state, job.attempts) == ("failed", 3)
        assert job.error == "chunk 2 of 2 failed 3 times; at last: the worker died"


async def test_an_attempt_outlasts_the_agent_that_made_it(tmp_path: Path) -> None:
    for _ in range(2):
        async with opened(tmp_path, attempts_max=2) as store:
            await store.jobs.submit(New("m", "batch", [], "a"), parts(9))
            assert (await store.jobs.get("a")).state == "queued"
            await store.jobs.begin("a")
    async with opened(tmp_path, attempts_max=2) as store:
        job = await store.jobs.begin("a")
        assert (job.state, job.error) == (
            "failed",
            "chunk 1 of 1 failed 2 times; at last: the agent or the machine went down while it ran",
        )


@pytest.mark.parametrize("wins", ["keep", "cancel"])
async def test_done_or_cancelled_is_decided_by_the_first_commit(tmp_path: Path, wins: str) -> None:
    async with opened(tmp_path) as store:
        jobs = store.jobs
        await given(jobs, "a", 9)
        await jobs.begin("a")
        calls = {"keep": jobs.keep("a", 0, made(b"x")), "cancel": jobs.cancel("a")}
        order = sorted(calls, key=lambda one: one != wins)
        first, second = await asyncio.gather(*(calls[n] for n in order), return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert isinstance(second, NotNow)
        state = {"keep": "done", "cancel": "cancelled"}[wins]
        assert (await jobs.get("a")).state == state
        assert (await jobs.counts()).since == {"submitted": 1, state: 1}


async def test_results_are_kept_for_their_time_over_reboots_in_1970(tmp_path: Path) -> None:
    first = Hands("first", at_s=5000.0)
    async with opened(tmp_path, first, result_keep_s=1000.0) as store:
        await given(store.jobs, "a", 9)
        await finished(store.jobs, "a", 9)
        await given(store.jobs, "waits", 9)
        first.at_s += 600
        assert await store.jobs.expire() == 0
    second = Hands("second", at_s=10.0)
    second.wall_s = 0.0
    async with opened(tmp_path, second, result_keep_s=1000.0) as store:
        assert await store.jobs.expire() == 0
        assert (await store.jobs.get("a")).ended_age_s == pytest.approx(610.0)
        second.at_s += 500
        assert await store.jobs.expire() == 1
        await store.jobs.clear()
        with pytest.raises(NotThere):
            await store.jobs.get("a")
        counts = await store.jobs.counts()
        assert counts.since == {"submitted": 2, "done": 1, "expired": 1}
        assert (await store.jobs.get("waits")).state == "queued"


async def test_verify_counts_the_pieces_of_jobs(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await given(store.jobs, "a", 200_000, 5, 0)
        assert await store.ledger.faults() == []
        await store._database.write(lambda c: c.execute("DELETE FROM job_chunks WHERE chunk = 0"))
        assert await store.ledger.faults() == ["4 of 5 pieces of blobs belong to no record"]


async def test_room_comes_back_in_steps_that_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobsteps, "REMOVE_PIECES_MAX", 2)
    async with opened(tmp_path) as store:
        await given(store.jobs, "a", 400_000)
        await store.jobs.cancel("a")
        steps = 0
        while await store._database.write(jobsteps.clear_some):
            steps += 1
            assert await store.ledger.faults() == []
        assert steps == 4
        assert (await store.jobs.get("a")).bytes == 0


async def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await given(store.jobs, "a", 10, 100_000)
        await store._database.write(
            lambda c: c.execute("UPDATE chunks SET crc = crc + 1 WHERE id & 4095 = 1")
        )
        assert await store.jobs.chunk("a", 0, ["queued"]) == bytes(10)
        with pytest.raises(StoreDamaged):
            await store.jobs.chunk("a", 1, ["queued"])
        report = await store_verify(store)
        assert report == ["job a: piece 1 of its chunk 1 is damaged (CRC)"]


async def store_verify(store: Store) -> list[str]:
    from agent.store.verify import Verify

    return (await Verify(store.slices, deep=True).run()).faults


async def test_a_file_without_its_header_forgets_its_jobs(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        epoch = store.epoch
        for name in ("queued", "done", "cancelled"):
            await given(store.jobs, name, 50_000)
        await finished(store.jobs, "done", 9)
        await store.jobs.cancel("cancelled")
    corrupt.flip(tmp_path / "s.db", 0)
    async with opened(tmp_path) as store:
        # SQLite reads nothing of a file without its header: nobody knows of its jobs.
        assert store.epoch != epoch
        assert await store.jobs.page() == []
        assert await store.ledger.faults() == []


async def test_jobs_of_a_damaged_file_are_failed_with_the_reason(tmp_path: Path) -> None:
    clock = Hands()
    async with opened(tmp_path, clock) as store:
        for name in ("queued", "done", "cancelled"):
            await given(store.jobs, name, 50_000)
        await finished(store.jobs, "done", 9)
        await store.jobs.cancel("cancelled")
    with sqlite3.connect(tmp_path / "s.db") as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'streams'").fetchone()
    db.close()
    corrupt.flip(tmp_path / "s.db", (page - 1) * 4096)
    async with opened(tmp_path, clock) as store:
        found = {job.id: job for job in await store.jobs.page()}
        assert {name: job.state for name, job in found.items()} == {
            "queued": "failed",
            "done": "failed",
            "cancelled": "cancelled",
        }
        assert "was damaged" in found["queued"].error
        assert found["done"].bytes == 0
        assert await store.jobs.rates() == {"m": 0.5}
        counts = (await store.jobs.counts()).since
        assert counts == {"submitted": 3, "failed": 2, "cancelled": 1}
        assert await store.ledger.faults() == []
        await store.jobs.remove("done")
        await store.jobs.clear()
        assert (await given(store.jobs, "done", 50_000)) == "done"
        assert (await store.jobs.get("done")).number > found["cancelled"].number


@pytest.fixture
def rig() -> Iterator[Rig]:
    made_one = Rig(config.Store())
    made_one.open()
    yield made_one
    made_one.end()


def test_a_full_disk_refuses_and_keeps_what_there_is(rig: Rig) -> None:
    jobs = rig.store.jobs
    (a,) = rig.ask(jobs.submit(New("m", "batch", [], "a"), parts(9_000, 9_000)))
    assert a.error is None
    rig.ask(jobs.begin("a"))
    rig.allow_pages(2)
    (refused,) = rig.ask(jobs.submit(New("m", "batch", [], "b"), parts(90_000)))
    assert isinstance(refused.error, StoreFull)
    (refused,) = rig.ask(jobs.keep("a", 0, made(bytes(90_000))))
    assert isinstance(refused.error, StoreFull)
    (kept,) = rig.ask(jobs.keep("a", 0, made(bytes(9_000))))  # in the room of its input
    assert (kept.error, kept.result.chunks_done) == (None, 1)
    rig.allow_pages(None)
    (kept,) = rig.ask(jobs.keep("a", 1, made(bytes(90_000))))
    assert (kept.error, kept.result.state) == (None, "done")
    (faults,) = rig.ask(rig.store.ledger.faults())
    assert faults.result == []


@pytest.mark.parametrize("forgotten", [True, False])
def test_an_arrival_that_breaks_off_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    monkeypatch.setattr(arrivals, "STEP_BYTES", 30_000)
    new, whole = New("m", "batch", [], "a"), parts(*[20_000] * 9)
    rig.allow_pages(20)
    if not forgotten:

        async def not_now(*_: object) -> None:
            raise StoreFull("the disk is full")

        monkeypatch.setattr(arrivals.Arrivals, "_forget", not_now)
    (refused,) = rig.ask(rig.store.jobs.submit(new, whole))
    assert isinstance(refused.error, StoreFull)
    rig.allow_pages(None)
    page, known = rig.ask(rig.store.jobs.page(), rig.store.jobs.get("a"))
    assert page.result == []
    assert isinstance(known.error, NotThere)
    (again,) = rig.ask(rig.store.jobs.submit(new, whole))
    assert (again.error, again.result[1]) == (None, True)
    rig.ask(rig.store.jobs.clear())
    counts, faults = rig.ask(rig.store.jobs.counts(), rig.store.ledger.faults())
    assert (counts.result.bytes, counts.result.since) == (180_000, {"submitted": 1})
    assert faults.result == []
