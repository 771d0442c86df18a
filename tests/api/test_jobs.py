"""The doors of the jobs: what is handed in comes out computed, in JSON and binary."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from agent.api.entry.limits import LIMITS
from agent.api.entry.room import SMALL_BYTES
from agent.api.form.events import Listeners
from agent.api.routes.jobs import JobDoors
from agent.errors import RequestError
from agent.inference.oip import BODY_BYTES_MAX
from agent.inference.oip_asked import HEADER, JSON_BYTES_MAX
from agent.jobs.infer import Answer, Request
from agent.store.tensors import Tensor
from tests.api.served import Served
from tests.jobs.desk import Desk, Models, computed, rows

BASE = "http://localhost/api/v1/jobs"
X = [[7.0, 0.0], [7.0, 1.0], [7.0, 2.0], [7.0, 3.0], [7.0, 4.0], [7.0, 5.0]]


def parse(headers: Mapping[str, str], body: bytes) -> tuple[list[Tensor], list[str]]:
    """FP32 alone, in JSON or binary; the real one serves the inference route too."""
    length = int(headers.get(HEADER, len(body)))
    document, rest = json.loads(body[:length]), body[length:]
    found = []
    try:
        for one in document["inputs"]:
            size = one.get("parameters", {}).get("binary_data_size")
            data = rest[:size] if size else np.array(one["data"], "<f4").tobytes()
            rest = rest[size or 0 :]
            found.append(Tensor(one["name"], one["datatype"], one["shape"], memoryview(data)))
    except (KeyError, TypeError) as error:
        raise RequestError(f"inputs: {error}", "send name, datatype, shape and data") from error
    return found, [one["name"] for one in document.get("outputs", [])]


def order(**more: Any) -> dict[str, Any]:
    one = {"name": "x", "datatype": "FP32", "shape": [6, 2], "data": X}
    return {"model": "double", "class": "interactive", "inputs": [one], **more}


class House(Served):
    def __init__(self, folder: Path, models: Models | None = None, **more: Any) -> None:
        self.desk = Desk(folder, models, jobs_max=20)
        self.listeners = Listeners()
        self.doors = JobDoors(self.desk.queue, parse, self.listeners)
        super().__init__(folder, BASE, self.doors.routes(), listeners=self.listeners, **more)

    async def done(self, **more: Any) -> str:
        status, told = await self.ask("POST", "", order(**more))
        assert status == 202, told
        await self.desk.ended(told["id"])
        return str(told["id"])


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    found = House(tmp_path)
    async with found.desk, found:
        yield found


async def test_a_job_from_end_to_end(house: House) -> None:
    status, told = await house.ask("POST", "", order())
    assert (status, told["model"], told["class"], told["rows"]) == (202, "double", "interactive", 6)
    name = told["id"]
    await house.desk.ended(name)
    status, told = await house.ask("GET", f"/{name}")
    assert (status, told["state"], told["progress"], told["eta_s"]) == (200, "done", 1.0, None)
    status, found = await house.ask("GET", f"/{name}/result")
    y = computed(rows(7, 6))
    assert status == 200
    assert found == {
        "model_name": "double",
        "id": name,
        "parameters": {"model": "double/1@0123", "ep": "cpu"},
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [6, 2], "data": y.ravel().tolist()},
            {"name": "sum", "datatype": "FP32", "shape": [6], "data": y.sum(axis=1).tolist()},
        ],
    }
    assert await house.ask("DELETE", f"/{name}") == (200, {"id": name, "removed": True})
    for method, door in (("GET", ""), ("GET", "/result"), ("POST", "/cancel"), ("DELETE", "")):
        assert (await house.ask(method, f"/{name}{door}"))[0] == 404


async def test_it_is_told_where_a_job_is_found(house: House) -> None:
    for expected in (202, 200):
        async with house.client.post(BASE, json=order(id="mine")) as answer:
            found = answer.status, answer.headers.get("Location")
        assert found == (expected, "/api/v1/jobs/mine")


async def test_binary_in_and_out(house: House) -> None:
    data = rows(7, 6).tobytes()
    about = {"name": "x", "datatype": "FP32", "shape": [6, 2]}
    one = {**about, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"model": "double", "id": "mine", "inputs": [one]}).encode()
    for expected in (202, 200):
        headers = {HEADER: str(len(head))}
        status, told = await house.ask("POST", "", head + data, **headers)
        assert (status, told["id"], told["class"]) == (expected, "mine", "batch")
    await house.desk.ended("mine")
    for how in (
        {"params": {"binary_data_output": "true"}},
        {"headers": {"Accept": "*/*, application/octet-stream"}},
    ):
        async with house.client.get(f"{BASE}/mine/result", **how) as answer:
            assert answer.status == 200
            body, length = await answer.read(), int(answer.headers[HEADER])
        outputs = json.loads(body[:length])["outputs"]
        assert outputs[0] == {
            "name": "y",
            "datatype": "FP32",
            "shape": [6, 2],
            "parameters": {"binary_data_size": 48},
        }
        y = computed(rows(7, 6))
        assert body[length:] == y.tobytes() + y.sum(axis=1).tobytes()


class Words(Models):
    """Answers words and bits: what JSON says in its own way, or not at all."""

    def __init__(self, last: bytes) -> None:
        super().__init__()
        self.last = last

    async def infer(self, request: Request) -> Answer:
        answer = await super().infer(request)
        count = request.inputs[0].shape[0]
        words = [b"a", "né".encode(), b"", self.last][:count]
        packed = b"".join(len(word).to_bytes(4, "little") + word for word in words)
        bits = np.arange(count) % 2 == 0
        found = [
            Tensor("word", "BYTES", [count], memoryview(packed)),
            Tensor("bit", "BOOL", [count, 1], memoryview(bits.tobytes())),
            Tensor("half", "FP16", [count], memoryview(np.ones(count, "<f2").tobytes())),
            Tensor("brain", "BF16", [count], memoryview(bytes(2 * count))),
        ]
        wanted = [one for one in found if one.name in request.wanted]
        return Answer(wanted, answer.model, answer.ep)


async def test_words_and_bits(tmp_path: Path) -> None:
    house = House(tmp_path, Words(b"z"))
    async with house.desk, house:
        name = await house.done(outputs=[{"name": n} for n in ("word", "bit", "half")])
        _, found = await house.ask("GET", f"/{name}/result")
        data = {one["name"]: (one["shape"], one["data"]) for one in found["outputs"]}
        assert data == {
            "word": ([6], ["a", "né", "", "z", "a", "né"]),
            "bit": ([6, 1], [True, False, True, False, True, False]),
            "half": ([6], [1.0] * 6),
        }
        async with house.client.get(f"{BASE}/{name}/result?binary_data_output=true") as answer:
            body, length = await answer.read(), int(answer.headers[HEADER])
        sizes = [o["parameters"]["binary_data_size"] for o in json.loads(body[:length])["outputs"]]
        assert sizes == [6 * 4 + 9, 6, 12]
        assert len(body) == length + sum(sizes)
        brain = await house.done(outputs=[{"name": "brain"}])
        status, told = await house.ask("GET", f"/{brain}/result")
        assert (status, "BF16" in told["error"]) == (409, True)
        house.desk.models.last = b"\xff"
        odd = await house.done(outputs=[{"name": "word"}])
        status, told = await house.ask("GET", f"/{odd}/result")
        assert (status, "is no text" in told["error"]) == (409, True)
        assert "binary_data_output" in told["hint"]


async def test_what_has_not_ended(house: House) -> None:
    house.desk.models.go.clear()
    _, told = await house.ask("POST", "", order(id="a"))
    assert (await house.ask("GET", "/a/result"))[0] == 409
    assert (await house.ask("DELETE", "/a"))[0] == 409
    status, told = await house.ask("POST", "/a/cancel")
    assert (status, told["state"]) == (200, "cancelled")
    assert (await house.ask("POST", "/a/cancel"))[0] == 409
    status, told = await house.ask("GET", "/a/result")
    assert (status, told["error"]) == (409, "job a is cancelled")
    assert (await house.ask("DELETE", "/a"))[0] == 200


async def test_a_failed_job_says_why(house: House) -> None:
    def refuse(_: object) -> None:
        raise RequestError("it is too wide")

    house.desk.models.before = refuse
    await house.ask("POST", "", order(id="a"))
    await house.desk.ended("a", "failed")
    _, told = await house.ask("GET", "/a/result")
    assert told["error"] == "job a is failed: chunk 1 of 2: it is too wide"


async def test_pages(house: House) -> None:
    for number in range(5):
        await house.done(id=f"j{number}")
    _, page = await house.ask("GET", "?count=2")
    assert [job["id"] for job in page["jobs"]] == ["j0", "j1"]
    assert page["counts"]["now"]["done"] == 5
    _, page = await house.ask("GET", f"?count=9&from={page['next']}&state=done")
    assert [job["id"] for job in page["jobs"]] == ["j2", "j3", "j4"]
    assert page["next"] is None
    assert (await house.ask("GET", "?state=queued"))[1]["jobs"] == []


async def test_at_the_bound_nothing_is_kept(house: House) -> None:
    for number in range(20):
        await house.done(id=f"j{number}")
    status, told = await house.ask("POST", "", order())
    assert (status, "jobs_max" in told["error"]) == (507, True), "no time helps, but taking results"


@pytest.mark.parametrize(
    ("more", "status", "word"),
    [
        ({"model": "nobody"}, 404, "no model 'nobody'"),
        ({"model": 3}, 400, "$.model"),
        ({"class": "soon"}, 400, "$.class"),
        ({"id": "../etc"}, 400, "$.id"),
        ({"id": ""}, 400, "$.id"),
        ({"inputs": []}, 400, "none"),
        ({"inputs": [{"name": "x"}]}, 400, "inputs"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [6, 3], "data": X}]},
            400,
            "is 72 bytes, found 48",
        ),
    ],
)
async def test_what_is_no_job_is_told_why(
    house: House, more: dict[str, Any], status: int, word: str
) -> None:
    found, told = await house.ask("POST", "", order(**more))
    assert (found, word in told["error"]) == (status, True), told
    assert told["hint"]
    assert (await house.desk.jobs.counts()).since == {}


@pytest.mark.parametrize(
    ("method", "door", "body", "headers"),
    [
        ("POST", "", b"\xff{", {}),
        ("POST", "", b"[]", {}),
        ("POST", "", b'{"model": "m", "inputs": [], "x": ' + b"[" * 100_000, {}),
        ("POST", "", b"{}", {HEADER: "3"}),
        ("POST", "", b"{}", {HEADER: "-1"}),
        ("POST", "?now=1", b"{}", {}),
        ("GET", "?state=soon", None, {}),
        ("GET", "?count=0", None, {}),
        ("GET", "?count=1&count=1", None, {}),
        ("GET", "?from=x", None, {}),
    ],
)
async def test_a_wrong_request(
    house: House, method: str, door: str, body: bytes | None, headers: dict[str, str]
) -> None:
    status, told = await house.ask(method, door, body, **headers)
    assert status == 400
    assert told["error"]
    assert told["hint"]


@pytest.mark.parametrize("way", [{}, {HEADER: "2"}], ids=["json", "raw"])
async def test_a_body_has_a_limit(house: House, way: dict[str, str]) -> None:
    most = BODY_BYTES_MAX if way else JSON_BYTES_MAX
    for said in (io.BytesIO(b"{}" + bytes(most - 1)), chunks(most + 1)):
        status, told = await house.ask("POST", "", said, **way)
        assert (status, f"jobs is above {most} bytes" in told["error"]) == (413, True), told
        assert told["hint"]


async def chunks(size: int) -> AsyncIterator[bytes]:
    """So much, whose length is not said."""
    yield b"{}"
    for _ in range(size >> 20):
        yield bytes(1 << 20)


async def test_one_caller_has_not_all_places_and_what_comes_has_its_room(house: House) -> None:
    slow, handing_in = asyncio.Event(), house.doors.handing_in

    async def slowly() -> AsyncIterator[bytes]:
        yield bytes(SMALL_BYTES + 1)
        await slow.wait()
        yield b"{}"

    held = [asyncio.create_task(house.ask("POST", "", slowly())) for _ in range(3)]
    size = handing_in._room.size_bytes

    async def full() -> bool:
        return handing_in._room.free_bytes <= size - 3 * SMALL_BYTES

    await house.desk.until(full, "they come in")
    assert handing_in.places.taken == 3
    status, told = await house.ask("POST", "", order())
    assert (status, "of yours" in told["error"]) == (503, True)
    url = f"http://127.0.0.1:{house.server.port}/api/v1/jobs"
    async with aiohttp.ClientSession() as client, client.post(url, json=order()) as answer:
        assert answer.status == 202, "another one is let in"
    slow.set()
    assert [status for status, _ in await asyncio.gather(*held)] == [400] * 3
    assert (handing_in._room.free_bytes, handing_in.places.taken) == (size, 0)
    status, _ = await house.ask("POST", "", order())
    assert status == 202


async def test_a_body_that_does_not_come_gives_its_place_back(tmp_path: Path) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b" "
        await asyncio.Event().wait()

    house = House(tmp_path, limits=LIMITS._replace(body_s=0.05))
    async with house.desk, house:
        status, told = await house.ask("POST", "", never())
        assert (status, house.doors.handing_in.places.taken) == (408, 0)
        assert told["hint"]


async def test_a_result_that_is_damaged_on_the_disk_is_not_given_out(house: House) -> None:
    name = await house.done()
    break_it = "UPDATE chunks SET crc = crc + 1 WHERE id = (SELECT {}(id) FROM chunks)"
    await house.desk.store._database.write(lambda c: c.execute(break_it.format("max")))
    url = f"{BASE}/{name}/result"
    async with house.client.get(url) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):  # it ends before its end
            await answer.read()
    await house.desk.store._database.write(lambda c: c.execute(break_it.format("min")))
    async with house.client.get(url + "?binary_data_output=true") as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
