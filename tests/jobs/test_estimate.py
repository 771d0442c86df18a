"""When a job will be done: by what was measured, or nobody knows."""

from datetime import UTC, datetime
from pathlib import Path

from agent.jobs.estimate import etas
from agent.store.jobrows import Answered, Class, Made, Waiting
from tests.jobs.desk import Desk, where
from tests.sync.bent import Bent

RATES = {"double": 2.0, "apart": 1.0}


def waits(
    name: str, model: str, rows: int, *, running: bool = False, klass: Class = "batch"
) -> Waiting:
    return Waiting(1, name, model, klass, running, rows)


def test_what_goes_before_counts_in_its_domain() -> None:
    queue = [
        waits("first", "double", 5),
        waits("elsewhere", "apart", 7),
        waits("second", "double", 1),
    ]
    assert etas(queue, RATES, where, {}) == {"first": 10.0, "elsewhere": 7.0, "second": 12.0}


def test_what_runs_goes_first_and_has_run_for_a_while() -> None:
    queue = [waits("first", "double", 5), waits("runs", "double", 3, running=True)]
    assert etas(queue, RATES, where, {"runs": 1.5}) == {"runs": 4.5, "first": 14.5}
    assert etas(queue, RATES, where, {"runs": 99.0}) == {"runs": 0.0, "first": 10.0}


def test_nobody_knows_what_was_not_measured_or_waits_behind_it() -> None:
    queue = [
        waits("known", "double", 1),
        waits("unknown", "other", 1),
        waits("behind", "double", 1),
        waits("elsewhere", "apart", 1),
        waits("gone", "gone", 1),
    ]
    assert etas(queue, RATES, where, {}) == {
        "known": 2.0,
        "unknown": None,
        "behind": None,
        "elsewhere": 1.0,
        "gone": None,
    }


async def test_a_rate_outlasts_a_reboot(tmp_path: Path) -> None:
    first = Bent(datetime(2026, 5, 1, tzinfo=UTC), boot="first")
    desk = Desk(tmp_path, clock=first)

    def takes_time(x: object) -> None:
        first.pass_s(2.0)

    desk.models.before = takes_time
    desk.models.go.clear()
    async with desk:
        assert (await desk.queue.show(await desk.submit(1, 4, name="a")))["eta_s"] is None
        desk.models.go.set()
        await desk.ended("a")
    second = Desk(tmp_path, clock=Bent(datetime(1970, 1, 1, tzinfo=UTC), boot="second"))
    second.models.go.clear()
    async with second.store:
        await second.submit(2, 8, name="b")
        await second.submit(3, 6, name="c")
        assert (await second.queue.show("b"))["eta_s"] == 4.0
        page = await second.queue.page(1, 10, ["queued", "done"])
        assert [job["eta_s"] for job in page["jobs"]] == [None, 4.0, 7.0]
        await second.jobs.begin("b")
        made = Made(b"", [], Answered("double/1@0", "cpu"), 1.0)
        await second.jobs.keep("b", 0, made)
        told = await second.queue.show("c")
        assert told["eta_s"] == 10 * 0.6
