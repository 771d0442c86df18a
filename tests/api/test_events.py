"""Server-sent events: what listeners are told, how many they may be, and how they end."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agent.api.form.events import Bounds, Listeners, event, events
from agent.api.form.route import get
from agent.api.routes.events import EventDoors
from agent.api.server import Server
from agent.changes import Changes
from agent.clock import Clock
from agent.config import Api
from agent.errors import BusyError, NotNow, StoreError, StoreFull
from agent.health.conditions import Conditions
from agent.health.status import Identity, Status
from tests.api.checked import Checker
from tests.api.entrance import Entrance, bearer, is_a_refusal
from tests.api.listening import Listener
from tests.outside import program

DEADLINE_S = 90.0
TIMEOUT = aiohttp.ClientTimeout(total=DEADLINE_S)
LARGE = "x" * 10_000


def _identity() -> Identity:
    return {"device": "site", "version": "0"}


class Site:
    """A server with a device's events, and a stream `/any` that a test feeds."""

    def __init__(self, folder: Path, bounds: Bounds) -> None:
        self.clock = Clock()
        self.conditions = Conditions(self.clock)
        self.made = 0
        self.fault: Exception | None = None
        self.ended = 0
        self.feed: Callable[[], AsyncGenerator[bytes, None]]
        self.listeners = Listeners(bounds)
        self.socket = str(folder / "holdfast.sock")
        status = Status(_identity, self.conditions, self.clock, self._ledger, {}, folder / "s.json")
        doors = EventDoors(status, self.conditions, self.listeners)
        self.server = Server(
            Api(port=0, socket=self.socket),
            status,
            self._no_bytes,
            more=[*doors.routes(), get("/any", self._any, "Any.", events())],
            listeners=self.listeners,
        )
        self.checker = Checker(self.server.document())
        self.open = AsyncExitStack()

    async def __aenter__(self) -> "Site":
        await self.open.enter_async_context(self.server)
        self.local = await self.open.enter_async_context(
            aiohttp.ClientSession(
                "http://localhost", connector=aiohttp.UnixConnector(self.socket), timeout=TIMEOUT
            )
        )
        self.session = await self.open.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{self.server.port}", timeout=TIMEOUT)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.open.aclose()

    async def _ledger(self) -> dict[str, Any]:
        self.made += 1
        if self.fault:
            raise self.fault
        return {}

    async def _no_bytes(self) -> bytes:
        return b""

    async def _any(self, request: web.Request) -> web.StreamResponse:
        return await self.listeners.serve(request, self._counted())

    async def _counted(self) -> AsyncGenerator[bytes, None]:
        try:
            async for one in self.feed():
                yield one
        finally:
            self.ended += 1

    async def until(self, question: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not question():
                await asyncio.sleep(0.002)


@pytest.fixture
async def site(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    bounds = Bounds(**getattr(request, "param", {}))
    async with Site(tmp_path, bounds) as found:
        yield found


async def silence() -> AsyncGenerator[bytes, None]:
    await asyncio.Event().wait()
    yield b""


async def test_the_state_comes_at_once_and_a_condition_when_it_begins(site: Site) -> None:
    async with site.session.get("/api/v1/events") as answer:
        listener = Listener(answer, site.checker)
        first = await listener.next()
        assert first is not None
        assert first.name == "status"
        async with site.session.get("/api/v1/status") as whole:
            assert first.content.keys() == (await whole.json()).keys()
        assert (first.content["status"], first.content["conditions"]) == ("healthy", [])
        site.conditions.hold("sound_lost", "lid", "warning", "it is open", "close it")
        told = await listener.next()
        assert [one["name"] for one in told.content["conditions"]] == ["sound_lost"]
        site.conditions.clear("sound_lost", "lid")
        while told.content["conditions"]:
            told = await listener.next()
        assert told.content["status"] == "healthy"


async def test_a_condition_does_not_wait_for_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.api.routes.events.STATUS_S", 3600.0)
    async with Site(tmp_path, Bounds()) as site, site.session.get("/api/v1/events") as answer:
        listener = Listener(answer, site.checker)
        await listener.next()
        site.conditions.hold("sound_lost", "lid", "warning", "it is open", "close it")
        told = await listener.next()
        assert told.content["conditions"]


async def test_one_maker_for_all_and_none_when_nobody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.api.routes.events.STATUS_S", 3600.0)
    async with asyncio.timeout(DEADLINE_S), Site(tmp_path, Bounds(caller_max=10)) as site:
        assert site.made == 0
        async with AsyncExitStack() as open_:
            for _ in range(10):
                answer = await open_.enter_async_context(site.session.get("/api/v1/events"))
                await Listener(answer, site.checker).next()
            assert site.made == 1
        await site.until(lambda: not len(site.listeners))
        site.conditions.hold("sound_lost", "lid", "warning", "it is open", "close it")
        await asyncio.sleep(0.5)  # long enough for a maker that should have ended
        assert site.made == 1
        async with site.session.get("/api/v1/events") as answer:
            told = await Listener(answer, site.checker).next()
            assert told.content["conditions"], "what was made for others is old"


async def test_a_store_that_cannot_be_read_is_told_and_not_the_end(site: Site) -> None:
    site.fault = StoreError("it lies", "look")
    async with site.session.get("/api/v1/events") as answer:
        listener = Listener(answer, site.checker)
        told = await listener.next()
        assert told == ("trouble", {"error": "it lies", "hint": "look"}, "")
        site.fault = None
        site.conditions.hold("clock_untrusted", "any", "note", "any", "any")
        assert (await listener.next()).name == "status"


async def test_a_fault_nobody_expected_ends_the_stream(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.fault = ZeroDivisionError("a bug")
    async with site.session.get("/api/v1/events") as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await Listener(answer).rest()
    assert "a bug" in caplog.text


async def test_a_trouble_is_the_last_event(site: Site) -> None:
    async def feed() -> AsyncGenerator[bytes, None]:
        yield event("one", {"text": "a\nb\r"}, 7)
        raise NotNow("enough", "go")

    site.feed = feed
    async with site.local.get("/any") as answer:
        assert await Listener(answer).rest() == [
            ("one", {"text": "a\nb\r"}, "7"),
            ("trouble", {"error": "enough", "hint": "go"}, ""),
        ]


async def test_only_the_header_for_who_asks_for_that(site: Site) -> None:
    site.feed = silence
    async with site.session.head("/any") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.read() == b""
    assert len(site.listeners) == 0


@pytest.mark.parametrize("site", [{"heartbeat_s": 0.02}], indirect=True)
async def test_a_heartbeat_where_nothing_happens(site: Site) -> None:
    change = Changes()

    async def feed() -> AsyncGenerator[bytes, None]:
        await change.after(0)
        yield event("one", 1)

    site.feed = feed
    async with site.session.get("/any") as answer:
        listener = Listener(answer)
        coming = asyncio.create_task(listener.next())
        await site.until(lambda: listener.comments > 2)
        change.tell()
        assert await coming == ("one", 1, "")


@pytest.mark.parametrize("site", [{"tcp_max": 2, "socket_max": 1}], indirect=True)
async def test_so_many_listeners_and_no_more(site: Site) -> None:
    site.feed = silence
    async with AsyncExitStack() as held:
        for session in (site.session, site.session, site.local):
            await held.enter_async_context(session.get("/any"))
        for session in (site.session, site.local):
            async with session.get("/any") as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) >= 1
                assert "listen" in (await answer.json())["error"]
    await site.until(lambda: site.ended >= 3 and not len(site.listeners))
    for session in (site.session, site.local):
        async with session.get("/any") as answer:
            assert answer.status == 200, "those who left gave their places back"


async def test_no_caller_takes_all_the_places(tmp_path: Path) -> None:
    """A token is one caller, whatever it listens to and however it comes."""
    listeners = Listeners(Bounds(caller_max=2))

    async def listen(request: web.Request) -> web.StreamResponse:
        return await listeners.serve(request, silence())

    doors = [get(path, listen, "Any.", events()) for path in ("/one", "/other")]
    jar = aiohttp.DummyCookieJar()
    async with (
        asyncio.timeout(DEADLINE_S),
        AsyncExitStack() as held,
        Entrance(tmp_path, doors) as house,
    ):
        tcp = aiohttp.ClientSession(f"http://127.0.0.1:{house.visitor.port}", cookie_jar=jar)
        await held.enter_async_context(tcp)
        phone = await house.token(name="phone")
        shown, session = bearer(phone), await house.login(phone)
        other = bearer(await house.token(name="other"))

        async def listening(path: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
            answer = await held.enter_async_context(tcp.get(path, headers=headers))
            assert answer.status == 200
            return answer

        first, _ = await listening("/one", shown), await listening("/other", session)
        for headers, by in ((shown, "tcp"), (session, "tcp"), (shown, "unix")):
            for path in ("/one", "/other"):
                answer = await house.visitor.ask("GET", path, headers, by=by)
                assert is_a_refusal(answer, 429)
                assert int(answer.headers["Retry-After"]) >= 1
                assert "phone has 2 streams" in answer.document["error"]
                assert "close one" in answer.document["hint"]
        for headers in (other, {}):  # who has the same address, and shows another token, or none
            for _ in range(2):
                await listening("/one", headers)
            assert (await house.visitor.ask("HEAD", "/one", headers)).status == 429
        first.close()
        while len(listeners) == 6:
            await asyncio.sleep(0.002)
        await listening("/other", shown)  # a place is free again


async def test_a_listener_who_leaves_is_noticed_at_once(site: Site) -> None:
    site.feed = silence
    async with site.session.get("/any"):
        assert len(site.listeners) == 1
    await site.until(lambda: site.ended == 1)
    assert site.server._guard.active_requests == 0


def unread(site: Site, route: str) -> socket.socket:
    """A client that asks, and never reads."""
    found = socket.create_connection(("127.0.0.1", site.server.port))
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.sendall(f"GET {route} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return found


@pytest.mark.parametrize("site", [{"patience_s": 0.2}], indirect=True)
async def test_who_does_not_read_is_let_go_and_nothing_piles_up(site: Site) -> None:
    made = 0

    async def feed() -> AsyncGenerator[bytes, None]:
        nonlocal made
        while made < 10_000:
            made += 1
            yield event("one", LARGE)

    site.feed = feed
    with unread(site, "/any"):
        await site.until(lambda: site.ended)
    assert made < 2_000, "100 MB were made for somebody who reads nothing"


async def test_the_newest_state_wins_for_who_is_slow(site: Site) -> None:
    """A listener who stopped for a while gets on with what is true now."""
    change, state, told = Changes(), 0, 0

    async def feed() -> AsyncGenerator[bytes, None]:
        nonlocal told
        seen = said = 0
        while said < 5_000:
            seen, said = await change.after(seen), state
            told += 1
            yield event("state", {"number": said, "text": LARGE})

    site.feed = feed
    async with site.session.get("/any") as answer:
        await site.until(lambda: len(site.listeners))
        quiet = 0
        while quiet < 200:  # until nothing more goes out, for nobody reads
            before = told
            state += 1
            change.tell()
            await asyncio.sleep(0.001)
            quiet = quiet + 1 if told == before else 0
        state = 5_000
        change.tell()
        numbers = [one.content["number"] for one in await Listener(answer).rest()]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 5_000
    assert len(numbers) == told


async def test_all_end_with_the_server_also_who_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.api.server.SHUTDOWN_S", 3600.0)  # nobody else ends them

    async def feed() -> AsyncGenerator[bytes, None]:
        while True:
            yield event("one", LARGE)

    site = Site(tmp_path, Bounds(patience_s=3600.0))
    async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as held:
        await site.__aenter__()
        site.feed = silence
        kind = await held.enter_async_context(site.session.get("/any"))
        local = await held.enter_async_context(site.local.get("/any"))
        site.feed = feed
        rude = unread(site, "/any")
        held.callback(rude.close)
        await site.until(lambda: len(site.listeners) == 3)
        await site.until(lambda: any(one.waits_for_reader for one in site.listeners._streams))
        ending = asyncio.create_task(site.server.__aexit__())
        assert await Listener(kind).rest() == []
        assert await Listener(local).rest() == []
        await site.until(lambda: site.ended == 3)
        await ending
    await site.open.pop_all().aclose()


async def test_curl_reads_them(site: Site) -> None:
    curl = program("curl", "curl")
    url = f"http://127.0.0.1:{site.server.port}/api/v1/events"
    process = await asyncio.create_subprocess_exec(
        *(curl, "-sN", url), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        lines = [await process.stdout.readline() for _ in range(4)]
        assert lines[:3] == [b"retry: 2000\n", b"\n", b"event: status\n"]
        assert json.loads(lines[3].removeprefix(b"data: "))["status"] == "healthy"
    finally:
        process.kill()
        await process.wait()
    await site.until(lambda: not len(site.listeners))


async def test_conditions(site: Site) -> None:
    site.conditions.hold("sound_lost", "lid", "critical", "it is open", "close it")
    async with site.session.get("/api/v1/conditions") as answer:
        told = await answer.json()
    assert told["status"] == "unhealthy"
    assert told["conditions"][0]["remedy"] == "close it"


async def test_changes_wake_from_another_thread() -> None:
    changes = Changes()
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(changes.after(0))
        await asyncio.sleep(0)
        await asyncio.to_thread(changes.tell)
        assert await waiting == 1
        assert await changes.after(0) == 1, "it was told before"


@pytest.mark.parametrize(
    ("fault", "status", "retry"),
    [
        (StoreError("it lies", "look"), 503, "5"),
        (BusyError("full", "wait", 7.2), 503, "8"),
        (StoreFull("no room", "make some"), 507, None),
    ],
)
async def test_when_to_come_again(
    site: Site, fault: Exception, status: int, retry: str | None
) -> None:
    site.fault = fault
    async with site.session.get("/api/v1/status") as answer:
        assert (answer.status, answer.headers.get("Retry-After")) == (status, retry)
        assert (await answer.json())["hint"]
