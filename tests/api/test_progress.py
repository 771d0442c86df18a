"""A job's progress as it happens, and jobs at their bounds: when to come again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.api.routes.handing_in import BODIES_MAX
from agent.errors import DomainError, NotNow, RequestError
from tests.api.listening import Listener
from tests.api.test_events import DEADLINE_S
from tests.api.test_jobs import BASE, House, order


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    found = House(tmp_path)
    async with found.desk, found:
        yield found


async def told(house: House, name: str) -> list[dict[str, Any]]:
    async with house.client.get(f"{BASE}/{name}/events") as answer:
        events = await Listener(answer, house.checker).rest()
    assert {one.name for one in events} == {"progress"}
    return [one.content for one in events]


async def test_progress_in_order_to_the_end(house: House) -> None:
    models = house.desk.models
    models.go.clear()
    await house.desk.submit(1, 40, name="a")
    async with house.client.get(f"{BASE}/a/events") as answer:
        listener = Listener(answer, house.checker)
        first = await listener.next()
        assert first is not None
        assert (first.name, first.content["id"], first.content["rows_done"]) == ("progress", "a", 0)
        models.go.set()
        rest = [one.content for one in await listener.rest()]
    assert rest[-1]["state"] == "done"
    assert rest[-1].keys() == (await house.ask("GET", "/a"))[1].keys()
    done = [one["rows_done"] for one in rest]
    assert done == sorted(done)
    assert [one["ended_us"] is None for one in rest] == [True] * (len(rest) - 1) + [False]


async def test_it_is_told_of_a_change_and_does_not_look_for_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.api.routes.jobs.REFRESH_S", 3600.0)
    models, jobs, looks = house.desk.models, house.desk.jobs, 0
    get = jobs.get

    async def counted(name: str) -> Any:
        nonlocal looks
        looks += 1
        return await get(name)

    monkeypatch.setattr(jobs, "get", counted)
    models.go.clear()
    await house.desk.submit(1, 8, name="a")
    async with AsyncExitStack() as held:
        listeners = []
        for _ in range(5):
            answer = await held.enter_async_context(house.client.get(f"{BASE}/a/events"))
            listeners.append(Listener(answer, house.checker))
            state = ""
            while state != "running":
                state = (await listeners[-1].next()).content["state"]
        before = -1
        async with asyncio.timeout(DEADLINE_S):
            while looks != before:  # until nobody looks any more
                before = looks
                await asyncio.sleep(0.6)  # in which ten a second would have looked six times
        models.go.set()
        ends = [await one.rest() for one in listeners]
        assert {end[-1].content["state"] for end in ends} == {"done"}
        assert looks - before <= 4, "one look for all who listen"


async def test_of_an_ended_job_one_event_and_of_none_a_404(house: House) -> None:
    await house.done(id="a")
    (only,) = await told(house, "a")
    assert only["state"] == "done"
    assert (await house.ask("GET", "/none/events"))[0] == 404


async def test_what_holds_it_up_and_how_else_it_ends(house: House) -> None:
    failing: list[Exception] = [NotNow("the domain is busy", "wait"), DomainError("it died", "x")]

    def befall(_: object) -> None:
        if failing:
            raise failing.pop(0)
        raise RequestError("it is too wide")

    house.desk.models.before = befall
    house.desk.models.go.clear()
    await house.desk.submit(1, 4, name="a")
    follow = asyncio.create_task(told(house, "a"))
    await asyncio.sleep(0)
    house.desk.models.go.set()
    assert (await follow)[-1]["failure"].endswith("it is too wide")
    house.desk.models.go.clear()
    await house.desk.submit(2, 4, name="b")
    follow = asyncio.create_task(told(house, "b"))
    while not len(house.listeners):
        await asyncio.sleep(0.001)
    assert (await house.ask("POST", "/b/cancel"))[0] == 200
    assert (await follow)[-1]["state"] == "cancelled"


async def test_a_full_queue_says_when_by_what_was_measured(house: House) -> None:
    clock = house.desk.clock
    begun = clock.monotonic()
    monotonic = clock.monotonic

    def took(x: Any) -> None:  # each row of job 1 takes ten seconds, by the clock of the runner
        nonlocal begun
        begun += 10.0 * len(x)

    clock.monotonic = lambda: begun  # type: ignore[method-assign]
    house.desk.models.before = took
    await house.desk.submit(1, 4, name="measured")
    await house.desk.ended("measured")
    house.desk.models.go.clear()
    for number in range(19):
        await house.desk.submit(number, 4, name=f"j{number}")
    async with house.client.post(BASE, json=order(id="late")) as answer:
        said = await answer.json()
        assert (answer.status, "jobs_max" in said["error"]) == (503, True)
        assert answer.headers["Retry-After"] == "40", "four rows of ten seconds"
    clock.monotonic = monotonic  # type: ignore[method-assign]
    house.desk.models.before = lambda _: None
    house.desk.models.go.set()


async def test_bodies_at_once_say_when_by_how_long_they_take(house: House) -> None:
    house.doors.handing_in._took_s = 6.5
    with ExitStack() as others:
        for number in range(BODIES_MAX):
            others.enter_context(house.doors.handing_in.places.place(f"caller {number}", 0.0))
        async with house.client.post(BASE, json=order()) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
    assert (await house.ask("POST", "", order()))[0] == 202
    assert house.doors.handing_in._took_s < 6.5
