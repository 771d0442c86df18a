"""What is counted of the doors: every request once, under its route, and nothing a caller says."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Metric

from agent.api.entry.limits import Limits
from agent.api.entry.traffic import WINDOW_S, Traffic
from agent.api.form.answers import document
from agent.api.form.route import BYTES, Media, Route, get, post
from agent.api.metrics.doors import DoorMetrics
from agent.api.routes.inference import Inference
from agent.api.server import Server
from agent.clock import Clock
from agent.config import Api
from agent.errors import RequestError
from agent.health.conditions import Conditions
from agent.health.status import Status
from tests.api.test_express import Scheduler
from tests.outside import DEADLINE_S

BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'


class Hand(Clock):
    """A clock that a test sets."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Doors:
    """Some doors, one for each way in which a request may end."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.entered = asyncio.Event()

    def routes(self) -> list[Route]:
        return [
            get("/things/{thing}", self._thing, "One.", dict[str, Any]),
            post("/things/{thing}", self._thing, "Do.", dict[str, Any]),
            get("/wait", self._wait, "Wait.", dict[str, Any]),
            get("/events", self._events, "For ever.", Media("text/event-stream")),
            get("/socket", self._socket, "For ever.", BYTES),
        ]

    async def _thing(self, request: web.Request) -> web.Response:
        if request.match_info["thing"] == "bad":
            raise RequestError("a bad thing", "ask for another")
        return document({})

    async def _wait(self, _: web.Request) -> web.Response:
        self.entered.set()
        await self.go_on.wait()
        return document({})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        self.entered.set()
        await self.go_on.wait()
        return answer

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        self.entered.set()
        async for _ in answer:
            pass
        return answer


class House(NamedTuple):
    doors: Doors
    traffic: Traffic
    clock: Hand
    tcp: aiohttp.ClientSession
    unix: aiohttp.ClientSession
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def families(self) -> dict[str, Metric]:
        found = DoorMetrics(self.traffic, lambda: self.server.active_requests).collect()
        return {one.name: one for one in found}

    def value(self, sample: str, **labels: str) -> float:
        """The sum of the samples of this name; labels not named may be any."""
        return sum(
            one.value
            for family in self.families().values()
            for one in family.samples
            if one.name == sample and labels.items() <= one.labels.items()
        )

    def requests(self, **labels: str) -> float:
        return self.value("holdfast_http_requests_total", **labels)

    def lines(self) -> int:
        return sum(len(one.samples) for one in self.families().values())


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async def nothing() -> dict[str, Any]:
        return {}

    async def no_metrics(_: str) -> tuple[bytes, str]:
        return b"", "text/plain"

    doors, clock, path = Doors(), Hand(), str(tmp_path / "holdfast.sock")
    status = Status(dict, Conditions(clock), clock, nothing, {}, tmp_path / "status.json")
    traffic = Traffic(clock.monotonic)
    server = Server(
        Api(port=0, socket=path),
        status,
        no_metrics,
        Limits(tcp_places=4, socket_places=8),
        doors.routes(),
        Inference(Scheduler()),
        traffic=traffic,
    )
    async with (
        server,
        aiohttp.ClientSession() as tcp,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as unix,
    ):
        yield House(doors, traffic, clock, tcp, unix, server)


async def ask(session: aiohttp.ClientSession, method: str, url: str, **more: Any) -> int:
    async with session.request(method, url, **more) as answer:
        await answer.read()
        return answer.status


async def until(question: Any, what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not question():
            await asyncio.sleep(0.005)
    assert question(), what


async def test_a_request_is_counted_under_its_route_with_its_status(house: House) -> None:
    for thing in ("a", "b", "bad"):
        await ask(house.tcp, "GET", f"{house.url}/things/{thing}")
    await ask(house.tcp, "HEAD", f"{house.url}/things/a")
    await ask(house.unix, "POST", "http://localhost/things/a")
    route = "/things/{thing}"
    assert house.requests(route=route, method="GET", code="200") == 2
    assert house.requests(route=route, method="GET", code="400") == 1
    assert house.requests(route=route, method="HEAD", code="200") == 1
    assert house.requests(route=route, method="POST", code="200") == 1
    count = "holdfast_http_request_duration_seconds_count"
    assert house.value(count, route=route, method="GET") == 3
    assert house.requests() == 5


async def test_the_short_way_counts_as_the_long_one(house: House) -> None:
    url = f"{house.url}/v2/models/tiny"
    assert await ask(house.tcp, "POST", f"{url}/infer", data=BODY) == 200
    assert await ask(house.tcp, "POST", f"{url}/versions/1/infer", data=BODY) == 200
    assert await ask(house.tcp, "POST", f"{url}/infer", data=b"nonsense") == 400
    long = {"Expect": "100-continue"}
    assert await ask(house.tcp, "POST", f"{url}/infer", data=BODY, headers=long) == 200
    route = "/v2/models/{model}/infer"
    assert house.requests(route=route, method="POST", code="200") == 2
    assert house.requests(route=route, method="POST", code="400") == 1
    route = "/v2/models/{model}/versions/{version}/infer"
    assert house.requests(route=route, method="POST", code="200") == 1
    assert house.requests() == 4


@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}])
async def test_who_leaves_before_the_answer_is_counted_too(
    house: House, expect: dict[str, str]
) -> None:
    url = f"{house.url}/v2/models/never/infer"
    asked = asyncio.create_task(ask(house.tcp, "POST", url, data=BODY, headers=expect))
    await until(lambda: house.server.active_requests == 1, "it is under way")
    asked.cancel()
    await until(lambda: house.requests(code="499") == 1, "it was counted")
    assert house.requests() == 1
    assert house.value("holdfast_http_active_requests") == 0


async def test_how_long_it_took_is_seconds_by_the_clock(house: House) -> None:
    asked = asyncio.create_task(ask(house.tcp, "GET", f"{house.url}/wait"))
    await house.doors.entered.wait()
    assert house.value("holdfast_http_active_requests") == 1
    house.clock.now_s += 3
    house.doors.go_on.set()
    assert await asked == 200
    took = "holdfast_http_request_duration_seconds"
    assert house.value(f"{took}_sum", route="/wait") == 3
    assert house.value(f"{took}_bucket", route="/wait", le="2.5") == 0
    assert house.value(f"{took}_bucket", route="/wait", le="5.0") == 1
    assert house.value("holdfast_http_active_requests") == 0


async def test_streams_are_counted_while_they_are_open_and_have_no_latency(house: House) -> None:
    asked = asyncio.create_task(ask(house.unix, "GET", "http://localhost/events"))
    await house.doors.entered.wait()
    assert house.value("holdfast_http_streams", kind="events") == 1
    house.doors.entered.clear()
    async with house.tcp.ws_connect(f"{house.url}/socket"):
        await house.doors.entered.wait()
        assert house.value("holdfast_http_streams", kind="websocket") == 1
        assert house.value("holdfast_http_active_requests") == 2
    house.doors.go_on.set()
    assert await asked == 200
    await until(lambda: house.value("holdfast_http_streams") == 0, "both are over")
    await until(lambda: house.requests() == 2, "both were counted")
    assert house.requests(route="/socket", code="101") == 1
    assert house.value("holdfast_http_request_duration_seconds_count") == 0


async def test_what_is_refused_is_counted_by_its_reason(house: House) -> None:
    assert await ask(house.tcp, "POST", f"{house.url}/things/a") == 403
    assert await ask(house.tcp, "GET", f"{house.url}/wait", headers={"Via": "a proxy"}) == 401
    assert await ask(house.tcp, "GET", f"{house.url}/wait", headers={"Host": "evil"}) == 421
    refused = "holdfast_http_refused_total"
    assert house.value(refused, reason="auth") == 2
    assert house.value(refused, reason="name") == 1
    assert house.value(refused, reason="rate") == 0
    assert house.value(refused, reason="places") == 0


async def test_connections_and_those_without_a_place_are_counted(house: House) -> None:
    streams = [await asyncio.open_connection("127.0.0.1", house.server.port) for _ in range(5)]
    await until(lambda: house.value("holdfast_http_refused_total", reason="places") == 1, "one")
    assert house.value("holdfast_http_connections", door="tcp") == 4
    assert house.value("holdfast_http_places", door="tcp") == 4
    before = house.value("holdfast_http_received_bytes_total", door="tcp")
    streams[0][1].write(b"GET ")
    await until(
        lambda: house.value("holdfast_http_received_bytes_total", door="tcp") == before + 4, "read"
    )
    for _, writer in streams:
        writer.close()
    await until(lambda: house.value("holdfast_http_connections", door="tcp") == 0, "all left")
    assert house.value("holdfast_http_connections", door="socket") == 0


async def test_the_rate_is_the_mean_of_the_last_seconds(house: House) -> None:
    def second() -> float:
        house.traffic.mark()
        house.clock.now_s += 1
        return house.value("holdfast_http_requests_per_second")

    assert second() == 0, "nothing is known yet"
    for _ in range(5):
        await ask(house.unix, "GET", "http://localhost/things/a")
    assert second() == 5
    for _ in range(WINDOW_S - 1):
        last = second()
    assert last == 5 / WINDOW_S
    assert second() == 0


def hostile(chance: random.Random) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Requests by somebody who wants lines of his own."""
    for i in range(200):
        word = "".join(chance.choice('abc%20{}"\\=,') for _ in range(12))
        yield (
            chance.choice(["GET", "POST", "PUT", "PURGE", "HEAD", "OPTIONS"]),
            chance.choice(
                [f"/{i}", f"/things/{i}", f"/v2/models/{i}/infer", f"/%00{i}", f"/{word}"]
            ),
            {"Host": chance.choice(["localhost", f"h{i}"]), f"X-{i}": word},
        )


async def test_nothing_that_a_caller_says_makes_a_line(house: House) -> None:
    chance = random.Random(7)
    for method, path, headers in hostile(chance):
        await ask(house.unix, method, f"http://localhost{path}", headers=headers, data=b"")
    lines = house.lines()
    for method, path, headers in hostile(chance):
        await ask(house.unix, method, f"http://localhost{path}", headers=headers, data=b"")
    assert house.lines() <= lines + 2, "only a status that was not there before"
    known = {"other", "/things/{thing}", "/v2/models/{model}/infer"}
    labels = [one.labels for one in house.families()["holdfast_http_requests"].samples]
    assert {one["route"] for one in labels} <= known
    assert {one["method"] for one in labels} <= {"GET", "POST", "HEAD", "other"}
    assert house.requests(route="other", method="other") > 0
    assert house.requests() == 400


def test_the_collector_is_one_that_a_registry_takes() -> None:
    CollectorRegistry().register(DoorMetrics(Traffic(Clock().monotonic), int))
