"""Many calls in one request: each is answered for itself, and all are made at once."""

import asyncio
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from agent.api.entry.room import Room, Share
from agent.api.routes.batch import REQUESTS_MAX, TURN_BYTES, Batch, BatchDoors, _batch_of
from agent.api.routes.inference import Inference
from agent.errors import BusyError, RequestError
from agent.inference.domains.work import Result
from agent.inference.scheduler import Request
from tests.api.served import Served
from tests.inference.house import DEADLINE_S, House, running, write_all

BATCH = "http://localhost/api/v1/infer/batch"
NAMES = ("tiny4", "loop", "picks", "accumulator")


class Site(Served):
    def __init__(self, folder: Path, house: House, room: Room) -> None:
        self.house = house
        self.room = room
        doors = BatchDoors(Inference(house.scheduler, room)).routes()
        super().__init__(folder, BATCH, doors)

    async def batch(self, *requests: Any, **more: Any) -> list[dict[str, Any]]:
        async with asyncio.timeout(DEADLINE_S):
            status, told = await self.ask("POST", "", {"requests": requests, **more})
        assert status == 200, told
        found: list[dict[str, Any]] = told["answers"]
        return found


@asynccontextmanager
async def opened(folder: Path, room: Room | None = None, **rules: Any) -> AsyncIterator[Site]:
    write_all(folder / "models")
    async with (
        running(folder / "models", *NAMES, **rules) as house,
        Site(folder, house, room or Room()) as site,
    ):
        yield site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with opened(tmp_path) as found:
        yield found


def ask(model: str, data: list[Any], dtype: str = "FP32", **more: Any) -> dict[str, Any]:
    one = {"name": "x", "shape": [1, len(data)], "datatype": dtype, "data": data}
    return {"model": model, "inputs": [one], **more}


def endless(**more: Any) -> dict[str, Any]:
    """Years, if nobody ends it."""
    one = {"name": "turns", "shape": [1], "datatype": "INT64", "data": [1 << 40]}
    return {"model": "loop", "inputs": [one], **more}


async def test_each_has_its_own_answer_in_order(site: Site) -> None:
    numbers = [0.5, 1.0, -2.0, 3.0]
    sequence = {"sequence_id": 7, "sequence_start": True}
    found = await site.batch(
        ask("tiny4", numbers, id="first"),
        ask("nobody", [1]),
        ask("picks", [9], "INT64"),
        ask("picks", [3], "INT64", version=1),
        ask("picks", [3], "INT64", version=2),
        ask("picks", [3], "INT64", version="new"),
        {"inputs": []},
        ask("m" * 1000, numbers),
        ask("picks", [3], "INT64", version="9" * 1000),
        [],
        ask("tiny4", numbers, parameters={"binary_data_output": True}),
        {**ask("tiny4", numbers), "inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]},
        ask("accumulator", [1.0] * 4, parameters=sequence),
        ask("accumulator", [2.0] * 4, parameters={"sequence_id": 7}),
    )
    statuses = [200, 404, 500, 200, 404, 400, 400, 400, 400, 400, 400, 400, 200, 200]
    assert [one["status"] for one in found] == statuses, found
    first = found[0]["answer"]
    assert (first["id"], first["model_name"]) == ("first", "tiny4")
    assert first["outputs"][0]["data"] == numbers
    assert found[3]["answer"]["outputs"][0]["data"] == [3.0]
    assert found[13]["answer"]["outputs"][0]["data"] == [3.0] * 4, "after the step before"
    for one in found:
        wrong = one["status"] != 200
        assert ("error" in one, "hint" in one, "answer" in one) == (wrong, wrong, not wrong), one
        assert len(one.get("error", "")) < 500


async def test_one_that_is_no_text_is_refused_alone(site: Site) -> None:
    good = json.dumps(ask("tiny4", [1.0] * 4)).encode()
    body = b'{"requests": [{"model": "\xff"}, %b, {"\xff": 1, "model": "tiny4"}]}' % good
    async with asyncio.timeout(DEADLINE_S):
        async with site.client.post(BATCH, data=body) as answer:
            told = await answer.json()
    assert [one["status"] for one in told["answers"]] == [400, 200, 400], told


async def test_the_time_of_the_whole_ends_what_is_left_and_nothing_else(site: Site) -> None:
    found = await site.batch(endless(), ask("tiny4", [1.0] * 4), timeout_s=2.0)
    assert found[0]["status"] == 504
    assert found[1]["status"] in (200, 504), "one process: it may have stood behind the other"
    async with asyncio.timeout(DEADLINE_S):
        while site.house.domain.instances[0].flights:
            await asyncio.sleep(0.001)
    assert (await site.batch(ask("tiny4", [1.0] * 4)))[0]["status"] == 200
    own = endless(parameters={"timeout": 100_000})
    assert (await site.batch(own))[0]["status"] == 504, "a request has its own deadline too"


async def test_a_client_that_leaves_ends_all(site: Site) -> None:
    asked = asyncio.create_task(site.ask("POST", "", {"requests": [endless(), endless()]}))
    async with asyncio.timeout(DEADLINE_S):
        while not site.house.domain.instances[0].flights:
            await asyncio.sleep(0.001)
        asked.cancel()
        while site.house.domain.instances[0].flights or site.house.domain.waiting:
            await asyncio.sleep(0.001)
    assert site.room.free_bytes == site.room.size_bytes


async def test_what_the_queue_does_not_take_says_when_to_come_again(tmp_path: Path) -> None:
    async with opened(tmp_path, queue_max=1) as site:
        requests = [endless(parameters={"timeout": 1_000_000}) for _ in range(8)]
        found = await site.batch(*requests)
        assert {one["status"] for one in found} == {503, 504}
        assert all(one["retry_s"] >= 1 for one in found if one["status"] == 503)


async def test_bounds(tmp_path: Path) -> None:
    room = Room(1 << 20)
    async with opened(tmp_path, room) as site:
        for requests in ([], [{}] * (REQUESTS_MAX + 1)):
            status, told = await site.ask("POST", "", {"requests": requests})
            assert (status, "requests" in told["error"]) == (400, True), told
        for body in (b"", b"[]", b"\xff", b'{"requests": [' + b"[" * 100_000):
            assert (await site.ask("POST", "", body))[0] == 400
        large = json.dumps({"requests": [{"x": "y" * (2 << 20)}]}).encode()
        status, told = await site.ask("POST", "", io.BytesIO(large))
        assert (status, "no room" in told["error"]) == (503, True), told
        more = io.BytesIO(large + b" " * (4 << 20))
        status, told = await site.ask("POST", "", more)
        assert (status, "by `infer`" in told["hint"]) == (413, True), told
        rows = [[1.5] * 4] * 30_000
        one = {"name": "x", "shape": [30_000, 4], "datatype": "FP32", "data": rows}
        found = await site.batch({"model": "tiny4", "inputs": [one]}, ask("tiny4", [1.0] * 4))
        assert [one["status"] for one in found] == [503, 200], "its answer found no room"
        assert room.free_bytes == room.size_bytes


async def test_others_have_their_turn_while_a_large_one_is_read() -> None:
    turns, seen = 0, []

    class Watched:
        def start(self, _: Request) -> asyncio.Future[Result]:
            seen.append(turns)
            answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            answer.set_exception(BusyError("full", "later", 1.0))
            return answer

        async def infer(self, request: Request) -> Result:
            return await self.start(request)

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    doors = BatchDoors(inference := Inference(Watched()))
    large = Raw(json.dumps(ask("tiny4", [1.0] * (TURN_BYTES // 8))).encode())
    beside = asyncio.create_task(others())
    found = await doors._answers(Batch([large] * 8), Share(inference.room))
    beside.cancel()
    assert [one.status for one in found] == [503] * 8
    assert len(set(seen)) >= 3, seen


def test_one_of_far_too_many_is_refused_before_it_is_all_taken_apart() -> None:
    many = b'{"requests": [' + b"1," * 1_000_000 + b"1]}"
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=str(REQUESTS_MAX)):
            _batch_of(many)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
