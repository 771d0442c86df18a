"""`infer` over HTTP with real models in a real process: its forms, and what is no form of it."""

import asyncio
import io
import json
import os
import random
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import psutil
import pytest

from agent.api.routes.inference import Inference
from agent.api.server import Server
from agent.clock import Clock
from agent.config import Api
from agent.errors import RequestError, TooLarge
from agent.health.conditions import Conditions
from agent.health.status import Status
from agent.inference.oip import Bodies, tensors
from agent.inference.oip_asked import HEADER, JSON_BYTES_MAX, PLAIN_BYTES_MAX, asked_in
from tests.api.checked import whole
from tests.inference.house import DEADLINE_S, House, running, write_all

NAMES = ("tiny", "loop", "accumulator", "tiny4", "picks")
SEED = int(os.environ.get("HOLDFAST_SEED", "20261121"))
BODIES = 10_000 if os.environ.get("HOLDFAST_LONG") else 400
DECLARED = {200, 400, 404, 503, 504}


class Answer(NamedTuple):
    status: int
    said: Any
    raw: bytes
    headers: Any


class Door:
    """A client of the server."""

    def __init__(self, house: House, server: Server, session: aiohttp.ClientSession) -> None:
        self.house = house
        self.server = server
        self.session = session
        self.url = f"http://127.0.0.1:{server.port}/v2/models/"

    async def post(self, model: str, body: bytes, headers: Any = None) -> Answer:
        sent = io.BytesIO(body) if len(body) > 1 << 19 else body  # aiohttp warns of large ones
        async with (
            asyncio.timeout(DEADLINE_S),
            self.session.post(f"{self.url}{model}/infer", data=sent, headers=headers) as answer,
        ):
            content = await answer.read()
        whole().check(
            *("POST", answer.url.path, body, answer.status, answer.headers, content),
        )
        size = int(answer.headers.get(HEADER, len(content)))
        return Answer(answer.status, json.loads(content[:size]), content[size:], answer.headers)

    async def ask(self, model: str, inputs: Any, raw: bytes = b"", **more: Any) -> Answer:
        text = json.dumps({"inputs": inputs, **more}).encode()
        return await self.post(model, text + raw, {HEADER: str(len(text))} if raw else None)


@asynccontextmanager
async def opened(folder: Path, **rules: Any) -> AsyncIterator[Door]:
    async def ledger() -> dict[str, Any]:
        return {}

    async def metrics() -> bytes:
        return b""

    clock = Clock()
    status = Status(dict, Conditions(clock), clock, ledger, {}, folder / "status.json")
    where = Api(port=0, socket=str(folder / "holdfast.sock"))
    write_all(folder / "models")
    async with running(folder / "models", *NAMES, **rules) as house:
        inference = Inference(house.scheduler)
        async with (
            Server(where, status, metrics, inference=inference) as server,
            aiohttp.ClientSession() as session,
        ):
            yield Door(house, server, session)
            async with asyncio.timeout(DEADLINE_S):
                while server._guard.active_requests:
                    await asyncio.sleep(0.001)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(tmp_path) as found:
        yield found


def x(values: Any, shape: list[int], dtype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": dtype, "data": values}


def raw(size: int, shape: list[int], dtype: str = "FP32", name: str = "x") -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "shape": shape, "datatype": dtype, "parameters": parameters}


async def test_json_and_raw_in_and_out(door: Door) -> None:
    values = [0.5, 1.0, -2.0, 3.0]
    content = struct.pack("<4f", *values)
    said = await door.ask("tiny4", [x(values, [1, 4])], id="mine")
    assert said.status == 200
    assert said.said["id"] == "mine"
    assert said.said["model_name"] == "tiny4"
    assert said.said["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": values}
    ]
    binary = {"binary_data_output": True}
    for inputs, more in (([x(values, [1, 4])], b""), ([raw(16, [1, 4])], content)):
        found = await door.ask("tiny4", inputs, more, parameters=binary)
        assert found.raw == content
        assert found.said["outputs"][0]["parameters"] == {"binary_data_size": 16}
    one = [{"name": "y", "parameters": {"binary_data": True}}]
    assert (await door.ask("tiny4", [x(values, [1, 4])], outputs=one)).raw == content
    assert (await door.ask("tiny4", [x([values], [1, 4])])).said["outputs"] == said.said["outputs"]


async def test_what_is_wrong_is_named(door: Door) -> None:
    ones = x([1] * 4, [1, 4])
    wrong = [
        ("datatype 'FP8'", [raw(4, [1, 4], "FP8")], b"1234"),
        ("16 bytes follow", [raw(12, [1, 4])], bytes(16)),
        ("input 'x': has neither", [{"name": "x", "shape": [1, 4], "datatype": "FP32"}], b""),
        ("input 'x': its shape", [x([], [-1, 4])], b""),
        ("input 'x': its shape is too large", [x([], [1 << 40, 4])], b""),
        ("input x: expected once, found 0", [], b""),
        ("input x: expected once, found 2", [ones, ones], b""),
        ("names and shapes", [x([1], [1], name="x" * 100_000)], b""),
    ]
    for said, inputs, more in wrong:
        found = await door.ask("tiny4", inputs, more)
        assert found.status == 400, found
        assert said in found.said["error"], found.said
        assert found.said["hint"]
    parameters: list[tuple[str, Any]] = [
        *(("timeout", value) for value in (-1, 1.5, "1", 10**400, True)),
        *(("class", value) for value in ("fast", 1, [])),
        *(("sequence_id", value) for value in (1.5, [], "x" * 200)),
    ]
    for key, value in parameters:
        found = await door.ask("tiny4", [ones], parameters={key: value})
        assert found.status == 400, (key, value)
        assert key in found.said["error"] or "out of range" in found.said["error"]
    assert (await door.post("tiny4/versions/7", b'{"inputs": []}')).status == 404
    assert (await door.ask("tiny4", [ones])).status == 200


async def test_a_sequence_over_http(door: Door) -> None:
    async def step(id: Any, value: float, **more: Any) -> Answer:
        parameters = {"sequence_id": id, **more}
        return await door.ask("accumulator", [x([value] * 4, [1, 4])], parameters=parameters)

    assert (await step(1, 1)).status == 404, "it must begin with its start"
    assert (await door.ask("accumulator", [x([1] * 4, [1, 4])])).status == 400
    await asyncio.gather(step(1, 1, sequence_start=True), step("b", 10, sequence_start=True))
    first, other = await asyncio.gather(step(1, 2), step("b", 20))
    assert first.said["outputs"][0]["data"] == [3.0] * 4
    assert other.said["outputs"][0]["data"] == [30.0] * 4
    assert [one["name"] for one in first.said["outputs"]] == ["y"]
    last = await step(1, 4, sequence_end=True)
    assert last.said["outputs"][0]["data"] == [7.0] * 4
    assert (await step(1, 1)).status == 404


@pytest.mark.parametrize("way", [{}, {"Content-Encoding": "identity"}], ids=["lane", "aiohttp"])
async def test_a_client_that_leaves_ends_the_run(door: Door, way: dict[str, str]) -> None:
    pid = door.house.pid
    body = json.dumps({"inputs": [x([1 << 40], [1], "INT64", "turns")]}).encode()
    asked = asyncio.create_task(door.post("loop", body, way))
    async with asyncio.timeout(DEADLINE_S):
        while not door.house.domain.instances[0].flights:
            await asyncio.sleep(0.001)
        asked.cancel()
        while door.house.domain.instances[0].flights:  # years, if nobody ends it
            await asyncio.sleep(0.001)
        assert (await door.ask("tiny4", [x([1] * 4, [1, 4])])).status == 200
    assert door.house.pid == pid
    assert door.house.domain.restarts == 0


async def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    async with opened(tmp_path, queue_max=1) as door:
        body = json.dumps({"inputs": [x([1 << 40], [1], "INT64", "turns")]}).encode()
        async with asyncio.timeout(DEADLINE_S):
            asked = list[asyncio.Task[Answer]]()
            domain = door.house.domain
            while not domain.waiting:  # one or two go to the process at once
                asked.append(asyncio.create_task(door.post("loop", body)))
                while domain.waiting + domain.instances[0].calls < len(asked):
                    await asyncio.sleep(0.001)
            found = await door.post("loop", body)
        assert found.status == 503
        assert int(found.headers["Retry-After"]) >= 1
        for task in asked:
            task.cancel()


BOMBS = {
    "nested": b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": '
    + b"[" * 3_000_000,
    "nested and closed": b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": '
    + b"[" * 900
    + b"]" * 900
    + b"}]}",
    "nested parameters": b'{"inputs": [], "parameters": {"a": ' + b'{"a":' * 100_000 + b"1",
    "too much JSON": b'{"inputs": [' + b" " * JSON_BYTES_MAX + b"]}",
    "strings among numbers": b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", '
    b'"data": ["' + b"a" * 1_000_000 + b'"' + b",1" * 1_000_000 + b"]}]}",
    "NaN": b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [NaN]}]}',
    "Infinity": b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [-Infinity]'
    b"}]}",
    "huge number": b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": ['
    + b"9" * 1_000_000
    + b"]}]}",
    "huge size": b'{"inputs": [{"name": "x", "shape": ['
    + b"9" * 5000
    + b'], "datatype": "FP32"}]}',
    "huge exponent": b'{"inputs": [], "parameters": {"timeout": 1e999999}}',
    "no UTF-8": b'{"inputs": [{"name": "\xff\xfe", "shape": [1], "datatype": "FP32"}]}',
    "half a pair": b'{"inputs": [{"name": "\\ud800", "shape": [1], "datatype": "FP32"}]}',
    "many inputs": b'{"inputs": ['
    + b",".join([b'{"name":"x","shape":[1],"datatype":"FP32","data":[1]}'] * 300)
    + b"]}",
    "many small inputs": b'{"inputs": [' + b'{"name":"x","shape":[],"datatype":"FP32"},' * 50_000,
    "many outputs": b'{"inputs": [], "outputs": [' + b'{"name":"y"},' * 200_000 + b"1]}",
    "many axes": b'{"inputs": [{"name": "x", "shape": [' + b"1," * 1_000_000 + b"1]}]}",
    "33 axes": b'{"inputs": [{"name": "x", "shape": [' + b"1," * 32 + b'1], "datatype": "FP32"}]}',
    "long id": b'{"inputs": [], "id": "' + b"x" * 1_000_000 + b'"}',
    "257 letters": b'{"inputs": [], "id": "' + b"x" * 257 + b'"}',
    "brackets": b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ['
    + b"[]," * 1_000_000
    + b"[]]}]}",
}


SMALL_THINGS = {
    "parameters": b'{"inputs": [], "parameters": {"a": [' + b"{}," * 100_000 + b"1]}}",
    "class": b'{"inputs": [], "parameters": {"class": [' + b"{}," * 100_000 + b"1]}}",
    "of an input": b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {'
    b'"a": [' + b"{}," * 100_000 + b"1]}}]}",
    "inputs": b'{"inputs": [' + b'{"name":"x","shape":[1],"datatype":"FP32"},' * 20_000 + b"1]}",
    "outputs": b'{"inputs": [], "outputs": [' + b'{"name":"y"},' * 50_000 + b"1]}",
    "axes": b'{"inputs": [{"name": "x", "shape": ['
    + b"1," * 300_000
    + b'1], "datatype": "FP32"}]}',
    "inputs again": b"{"
    + b'"inputs": [%b],' % b",".join([b'{"name":"x","shape":[1],"datatype":"FP32"}'] * 200) * 50
    + b'"inputs": []}',
}


@pytest.mark.parametrize("name", SMALL_THINGS)
def test_what_nobody_knows_in_a_request_is_not_made(name: str) -> None:
    """Millions of small things take seconds, in which the agent would do nothing else."""
    body = SMALL_THINGS[name]
    tracemalloc.start()
    try:
        with suppress(RequestError):
            Bodies().parsed("m", None, None, body)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


def test_the_largest_json_and_one_byte_more() -> None:
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}], "id": "i"'
    body += b" " * (JSON_BYTES_MAX - len(body) - 1) + b"}"
    assert Bodies().parsed("m", None, None, body).id == "i"
    assert tensors(None, body)[0][0][1] == struct.pack("<f", 1)
    for refused in (body + b" ", body + bytes(100)):
        for length in (None, str(JSON_BYTES_MAX + 1)):
            with pytest.raises(TooLarge, match=str(JSON_BYTES_MAX)) as error:
                Bodies().parsed("m", None, length, refused)
            assert "binary_data_size" in error.value.hint


@pytest.mark.parametrize("spaces", [0, PLAIN_BYTES_MAX])
def test_what_is_asked_in_a_long_text_is_what_is_asked_in_a_short_one(spaces: int) -> None:
    said = {
        "inputs": [x([1, 2], [1, 2], "INT64", f"x{n}") for n in range(3)],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}],
        "id": "é" * 256,
        "parameters": {"class": "batch", "timeout": 7},
    }
    found = asked_in(json.dumps(said).encode() + b" " * spaces)
    assert [(one.name, one.shape, one.datatype) for one in found.inputs] == [
        (f"x{n}", [1, 2], "INT64") for n in range(3)
    ]
    assert [bytes(one.data) for one in found.inputs] == [b"[1, 2]"] * 3
    assert [(one.name, one.parameters.binary_data) for one in found.outputs] == [
        ("y", True),
        ("z", None),
    ]
    assert (found.id, found.parameters.klass, found.parameters.timeout) == ("é" * 256, "batch", 7)


@pytest.mark.parametrize("name", BOMBS)
def test_a_job_with_such_inputs_is_refused(name: str) -> None:
    with pytest.raises(RequestError):
        tensors(None, BOMBS[name])


async def test_an_error_does_not_repeat_all_that_was_sent(door: Door) -> None:
    long = "x" * 100_000
    for wrong in (
        {"inputs": [x([1] * 4, [1, 4])], "parameters": {"class": long}},
        {"inputs": [x([1] * 4, [1, 4])], "parameters": {"timeout": long}},
        {"inputs": [x([1] * 4, [1, 4], long)]},
        {"inputs": [x([1] * 4, [-1, 4], name=long)]},
    ):
        found = await door.post("tiny4", json.dumps(wrong).encode())
        assert (found.status, len(found.raw)) == (400, 0)
        assert len(found.said["error"]) < 500


async def test_a_body_that_is_not_encoded_as_it_says_is_refused(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    found = await door.post("tiny4", b'{"inputs": []}', {"Content-Encoding": "gzip"})
    assert found.status == 400
    assert "gzip" in found.said["error"]
    assert "Traceback" not in caplog.text


async def test_bombs_are_refused_and_nothing_breaks(door: Door) -> None:
    pid = door.house.pid
    for name, body in BOMBS.items():
        for way in ({}, {"Content-Encoding": "identity"}):
            found = await door.post("tiny4", body, way)
            assert found.status == (413 if name == "too much JSON" else 400), (name, found)
            assert len(found.said["error"]) < 500
    much = BOMBS["too much JSON"]
    found = await door.post("tiny4", much + b"raw", {HEADER: str(len(much))})
    assert (found.status, "binary_data_size" in found.said["hint"]) == (413, True)
    content = bytes(15 << 20)
    large = await door.ask("tiny4", [raw(len(content), [len(content) // 16, 4])], content)
    assert large.status == 200
    assert door.house.pid == pid
    assert door.house.domain.restarts == 0


def proper(chance: random.Random) -> tuple[str, dict[str, Any], bytes]:
    """A request that is right."""
    rows = chance.choice([0, 1, 1, 2, 7])
    model, dtype, width = chance.choice(
        [("tiny", "FP32", 64), ("tiny4", "FP32", 4), ("picks", "INT64", 1)]
    )
    size = rows * width
    if dtype == "FP32":
        values: Any = np.array([chance.random() for _ in range(size)], np.float32)
    else:
        values = np.array([chance.randrange(4) for _ in range(size)], np.int64)
    document: dict[str, Any] = {"inputs": [], "parameters": {}}
    content = b""
    if chance.random() < 0.5:
        content = values.tobytes()
        document["inputs"].append(raw(len(content), [rows, width], dtype))
    else:
        document["inputs"].append(x(values.tolist(), [rows, width], dtype))
    if chance.random() < 0.5:
        document["parameters"]["binary_data_output"] = True
    return model, document, content


ODD: list[Any] = [
    *(None, True, -1, 0, 1, 1.5, 2**31, 2**63, 2**64, 10**30, "", "x", "FP64", "BYTES", "y" * 300),
    *([], [1], [[]], {}, {"a": 1}, [1] * 1000, "\u0000", "\N{SNOWMAN}", float("nan"), [None], -0.0),
    *("realtime", "sequence", 1e308, ["a"], [[1, 2], [3]], {"binary_data_size": 3}),
]


def bent(chance: random.Random, document: Any) -> Any:
    """The same with one thing changed, added or left out, at any depth."""
    if isinstance(document, dict) and document and chance.random() < 0.85:
        key = chance.choice(list(document))
        match chance.random():
            case value if value < 0.7:
                return {**document, key: bent(chance, document[key])}
            case value if value < 0.8:
                return {k: v for k, v in document.items() if k != key}
        names = ["name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id"]
        names += ["timeout", "class", "sequence_id", "sequence_start", "binary_data_size"]
        return {**document, chance.choice(names): chance.choice(ODD)}
    if isinstance(document, list) and document and chance.random() < 0.8:
        i = chance.randrange(len(document))
        match chance.random():
            case value if value < 0.7:
                return [*document[:i], bent(chance, document[i]), *document[i + 1 :]]
            case value if value < 0.85:
                return document + document[i : i + 1]
        return document[:i] + document[i + 1 :]
    return chance.choice(ODD)


def mutated(chance: random.Random) -> tuple[str, bytes, dict[str, str]]:
    model, document, content = proper(chance)
    for _ in range(chance.randrange(4)):
        document = bent(chance, document)
    text = json.dumps(document).encode()
    body, headers = text + content, {}
    if content or chance.random() < 0.1:
        length = len(text) + chance.choice([0] * 8 + [-1, 1, 1000])
        headers[HEADER] = str(length)
    if chance.random() < 0.3 and body:  # bytes
        at = chance.randrange(len(body))
        body = body[:at] + bytes([chance.randrange(256)]) + body[at + chance.randrange(3) :]
    if chance.random() < 0.3:
        headers["Content-Encoding"] = "identity"  # the other way
    return model, body, headers


async def test_no_body_breaks_anything(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    pid, chance = door.house.pid, random.Random(SEED)
    seen: dict[int, int] = {}
    rss: list[int] = []
    for _ in range(BODIES // 10):
        asked = [mutated(chance) for _ in range(10)]
        for one, found in zip(
            asked, await asyncio.gather(*(door.post(*one) for one in asked)), strict=True
        ):
            seen[found.status] = seen.get(found.status, 0) + 1
            assert found.status in DECLARED or "ONNX Runtime" in found.said["error"], (one, found)
        rss.append(psutil.Process(pid).memory_info().rss)
        assert door.house.pid == pid, asked
    assert seen[200] > BODIES // 20, seen
    assert seen[400] > BODIES // 20, seen
    assert door.house.domain.restarts == 0
    assert rss[-1] < rss[len(rss) // 4] + (32 << 20), "the memory of the process comes back"
    assert not [one for one in caplog.records if one.levelname == "ERROR"]
