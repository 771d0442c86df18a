"""What the answers and the log say of a request: its name, and nothing that is secret."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.api.entry.refusals import LINE_EACH_S, LINES
from agent.api.form.answers import streamed
from agent.api.form.route import get, post
from agent.errors import HoldfastError
from agent.logs import Journal
from tests.api.entrance import Entrance, bearer
from tests.outside import DEADLINE_S

STATUS = "/api/v1/status"
PAYLOAD = "the-payload-of-a-client"
ID = "X-Request-Id"


class Log(logging.Handler):
    """The lines, as they are written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(Journal())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
async def log() -> AsyncIterator[Log]:
    found, root = Log(), logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(found)
    yield found
    root.removeHandler(found)
    root.setLevel(level)


async def _faulty(request: web.Request) -> web.Response:
    await request.read()
    raise ZeroDivisionError


async def _broken(request: web.Request) -> web.StreamResponse:
    async def pieces():  # type: ignore[no-untyped-def]
        yield b"x"
        raise HoldfastError("it broke")

    return await streamed(request, pieces(), {})


async def _long(request: web.Request) -> web.StreamResponse:
    async def pieces():  # type: ignore[no-untyped-def]
        yield b"x"

    return await streamed(request, pieces(), {})


async def _done(request: web.Request) -> web.Response:
    await request.read()
    return web.json_response({})


async def _late(request: web.Request) -> web.Response:
    """What it began goes on, and is no part of the request any more."""
    log = logging.getLogger("api")
    gone_on = request.app["gone on"]

    async def later() -> None:
        log.warning("said at once")
        await gone_on.wait()
        log.warning("said later")
        gone_on.clear()

    request.app["task"].append(asyncio.create_task(later()))
    await asyncio.to_thread(log.warning, "said in a thread")
    return web.json_response({})


DOORS = [
    post("/api/v1/faulty/{place}", _faulty, "Fails.", None, scopes=("read",)),
    get("/api/v1/broken", _broken, "Breaks off.", None),
    get("/api/v1/long", _long, "Goes on.", None),
]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Entrance]:
    async with Entrance(tmp_path, DOORS) as found:
        yield found


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/api/v1/health", {}, 200),
        ("HEAD", "/api/v1/health", {}, 200),
        ("GET", "/api/v1/long", {}, 200),
        ("GET", "/api/v1/health?a=b", {}, 400),
        ("GET", STATUS, bearer("hf_"), 401),
        ("GET", "/api/v1/tokens", {}, 403),
        ("GET", "/nothing", {}, 404),
        ("PUT", STATUS, {}, 405),
        ("GET", STATUS, {"Expect": "nothing"}, 417),
        ("GET", STATUS, {"Host": "evil.example"}, 421),
        ("POST", "/api/v1/faulty/x", {}, 500),
    ],
)
async def test_every_answer_names_its_request(
    site: Entrance, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    ask = site.visitor.ask
    answers = [await ask(method, path, headers) for _ in range(3)]
    assert {one.status for one in answers} == {status}
    assert len({one.headers[ID] for one in answers}) == 3, "each its own"
    own = await ask(method, path, {**headers, ID: "a.b_c-1"})
    assert own.headers[ID] == "a.b_c-1"
    for wrong in ("", "a b", "x" * 65, "\N{CJK UNIFIED IDEOGRAPH-4E2D}", "a;b"):
        answer = await ask(method, path, {**headers, ID: wrong})
        assert answer.headers[ID] not in ("", wrong)


async def test_a_name_that_is_given_twice_is_none(site: Entrance) -> None:
    answer = await site.visitor.ask("GET", STATUS, [(ID, "a"), (ID, "a")])
    assert answer.headers[ID] != "a"


async def test_lines_about_a_request_name_it(site: Entrance, log: Log) -> None:
    ask = site.visitor.ask
    await ask("POST", "/api/v1/faulty/x", {ID: "first"})
    await ask("GET", STATUS, {ID: "second", **bearer("hf_")})
    with pytest.raises(aiohttp.ClientPayloadError):  # the answer ends before its end
        await ask("GET", "/api/v1/broken", {ID: "third"})
    order = {"name": "x", "scopes": ["read"]}
    await ask("POST", "/api/v1/tokens", {ID: "fourth"}, order, by="unix")
    said = [line for line in log.lines if "[request " in line]
    for name, words in {
        "first": "POST /api/v1/faulty/{place} failed",
        "second": "127.0.0.1 showed a token that is not known, at GET /api/v1/status",
        "third": "broken off",
        "fourth": "ORDER POST /api/v1/tokens by unix socket: 201",
    }.items():
        assert any(f"[request {name}]" in line and words in line for line in said), (name, said)


async def test_an_order_says_who_gave_it_and_nothing_that_he_sent(tmp_path: Path, log: Log) -> None:
    path = "/api/v1/orders/{place}"
    doors = [
        post(path, _done, "Does it.", None),
        get(path, _done, "Tells.", None, scopes=("operate",)),
        post("/api/v1/faulty/{place}", _faulty, "Fails.", None),
        post("/api/v1/asks/{place}", _done, "Asks.", None, scopes=("infer",)),
    ]
    async with Entrance(tmp_path, doors, loopback=("operate", "infer")) as site:
        ask, sly = site.visitor.ask, "x' from 10.0.0.7"
        shown = bearer(await site.token("operate", name=sly))
        person = await site.login(await site.token("operate", name="person"))
        held = {**person, "Origin": site.visitor.origin}
        reader = bearer(await site.token("read", name="reader"))
        ways = [({}, "unix"), ({}, "tcp"), (shown, "tcp"), (shown, "unix"), (held, "tcp")]
        for headers, by in ways:
            answer = await ask("POST", path.format(place=PAYLOAD), headers, PAYLOAD, by)
            assert answer.status == 200
        await ask("POST", "/api/v1/faulty/x", shown, PAYLOAD)
        await ask("GET", path.format(place="x"), shown)
        await ask("POST", "/api/v1/asks/x")
        assert (await ask("POST", path.format(place="x"), reader)).status == 403
    said = [line.partition(" [request ")[0] for line in log.lines if "ORDER" in line]
    order = f"<6>api: ORDER POST {path} by "
    assert said == [
        f"{order}unix socket: 200",
        f"{order}loopback from 127.0.0.1: 200",
        f'{order}token "{sly}" from 127.0.0.1: 200',
        f'{order}token "{sly}" from unix socket: 200',
        f"{order}session of token 'person' from 127.0.0.1: 200",
        f'<6>api: ORDER POST /api/v1/faulty/{{place}} by token "{sly}" from 127.0.0.1: 500',
    ]


async def test_what_a_request_began_does_not_name_it_later(tmp_path: Path, log: Log) -> None:
    door = post("/api/v1/late", _late, "Begins something.", None, scopes=("read",))
    async with Entrance(tmp_path, [door]) as site:
        app = site.server._runner.app
        app._state["gone on"], app._state["task"] = asyncio.Event(), []
        await site.visitor.ask("POST", "/api/v1/late", {ID: "mine"})
        app["gone on"].set()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*app["task"])
    found = {line.partition("said ")[2] for line in log.lines if "said " in line}
    assert found == {"in a thread [request mine]", "at once [request mine]", "later"}


async def test_no_secret_and_no_payload_is_in_the_log(site: Entrance, log: Log) -> None:
    ask = site.visitor.ask
    good, wrong = await site.token("read", "admin"), f"hf_00000000_{'W' * 43}"
    held = await site.login(good)
    cookie = held["Cookie"].partition("=")[2]
    for text in (good, wrong):
        for by in ("tcp", "unix"):
            for path in (STATUS, "/api/v1/tokens", f"/api/v1/tokens/{text}", f"/{text}"):
                await ask("GET", path, bearer(text), by=by)
                await ask("DELETE", path, bearer(text), by=by)
                await ask("GET", f"{path}?token={text}", bearer(text), by=by)
            await ask("GET", STATUS, {"Authorization": f"Basic {text}"}, by=by)
            await ask("POST", f"/api/v1/faulty/{text}?a={text}", bearer(text), PAYLOAD, by=by)
            for body in ({"token": text}, {"token": [text]}, {text: text}, f'{{"token": "{text}'):
                await ask("POST", "/api/v1/session", {}, body, by=by)
            await ask("POST", "/api/v1/tokens", {}, {"name": 5, PAYLOAD: PAYLOAD}, by="unix")
    await ask("POST", "/api/v1/faulty/x", {**held, "Origin": site.visitor.origin}, PAYLOAD)
    await ask("DELETE", "/api/v1/session", {**held, "Origin": site.visitor.origin})
    await ask("GET", STATUS, held)
    for broken in (
        f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer {good}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {good}\0\r\n\r\n",
        f"GET /{good} HTTP/9.x\r\n\r\n",
        f"{good} / HTTP/1.1\r\n\r\n",
        f"POST / HTTP/1.1\r\nContent-Length: {good}\r\n\r\n{PAYLOAD}",
        f"GET {PAYLOAD} \r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.visitor.port)
        writer.write(broken.encode())
        async with asyncio.timeout(DEADLINE_S):
            await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
    whole = "\n".join(log.lines)
    for secret in (good, good[12:], wrong, wrong[12:], cookie, PAYLOAD):
        assert secret not in whole, [line for line in log.lines if secret in line]
    assert "refused" in whole
    assert "failed" in whole
    assert "no HTTP" in whole


async def test_the_log_of_refusals_is_bounded_and_says_how_many_were_left_out(
    site: Entrance, log: Log
) -> None:
    asks = 5 * LINES
    for _ in range(asks):
        await site.visitor.ask("GET", STATUS, {"Via": "x"})
    assert len([line for line in log.lines if "refused: " in line]) == LINES
    site.clock.now_s += LINE_EACH_S
    await site.visitor.ask("GET", STATUS, {"Via": "x"})
    assert f"{asks - LINES} more were refused" in log.lines[-1]


async def test_what_is_no_http_is_one_line_and_no_error(site: Entrance, log: Log) -> None:
    for _ in range(3 * LINES):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.visitor.port)
        writer.write(b"GET / HTTP/1.1\r\nNo colon\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            assert b" 400 " in await reader.readline()
        writer.transport.abort()
    said = [line for line in log.lines if "cannot be read" in line]
    assert 0 < len(said) <= LINES
    assert not [line for line in log.lines if "Traceback" in line]
    assert not [line for line in log.lines if line.startswith("<3>")]


async def test_who_leaves_in_the_middle_does_not_fill_the_log(site: Entrance, log: Log) -> None:
    """Nobody is asked who he is there, and what is kept of the log is short."""
    _, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    writer.write(b"POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    async with asyncio.timeout(DEADLINE_S):
        while not site.server.active_requests:
            await asyncio.sleep(0.01)
        writer.close()
        while not (said := [line for line in log.lines if "not sent to its end" in line]):
            await asyncio.sleep(0.01)
    assert said[0].startswith("<7>")
