"""The outbox's doors, on a real store behind a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.api.routes.outbox import OutboxDoors
from agent.records import Range
from agent.store.store import Store
from agent.store.streams import SEQ_MAX
from tests.api.served import Served
from tests.outside import DEADLINE_S
from tests.store.shop import made, stocked

BASE = "http://localhost/api/v1/"


class Desk(Served):
    """Before the doors of a store."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.woken: list[str] = []
        self.doors = OutboxDoors(store, self._wake)
        super().__init__(folder, BASE, self.doors.routes())

    def _wake(self, source: str) -> bool:
        self.woken.append(source)
        return source == "x"

    async def get(self, route: str) -> dict[str, Any]:
        status, document = await self.ask("GET", route)
        assert status == 200, document
        return document

    async def verified(self) -> dict[str, Any]:
        """The state of the verify, once it runs no more."""
        async with asyncio.timeout(DEADLINE_S):
            while (state := await self.get("outbox/verify"))["running"]:
                await asyncio.sleep(0.01)
        return state


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Desk]:
    async with made(folder) as store:
        await stocked(store)
        desk = Desk(store, folder)
        loop = asyncio.create_task(desk.doors.run())
        async with desk:
            yield desk
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened(tmp_path) as found:
        yield found


async def test_what_is_read(desk: Desk) -> None:
    epoch = desk.store.epoch
    streams = await desk.get("outbox")
    assert streams["epoch"] == epoch
    assert [(s["name"], s["held"]) for s in streams["streams"]] == [
        *(("a", 15), ("x.raw", 2), ("x.segments", 0))
    ]
    page = await desk.get("outbox/a?from=5&count=2")
    assert [r["seq"] for r in page["records"]] == [5, 7]
    assert (page["dropped"], page["next"]) == ([[6, 6, "operator"]], 8)
    same = await desk.get(f"outbox/a?from=5&count=2&epoch={epoch}")
    for one in (*page["records"], *same["records"]):
        assert one.pop("age_s") >= 0
    assert same == page
    dead = await desk.get("outbox/x.raw?dead=true")
    assert [r["cause"] for r in dead["records"]] == ["it was too loud"]
    assert (await desk.get("outbox/a/5"))["body"] == {"n": 1}
    account = (await desk.get("ledger"))["epochs"][epoch]["a"]
    assert account["balance"]["dropped"] == {"operator": 1}
    assert account["ranges"] == [[6, 6, "operator"]]


async def test_verify_is_begun_and_asked_for(desk: Desk) -> None:
    before = await desk.get("outbox/verify")
    assert (before["running"], before["report"]) == (False, None)
    status, state = await desk.ask("POST", "outbox/verify?deep=true")
    assert (status, state["running"], state["deep"], state["report"]) == (202, True, True, None)
    status, other = await desk.ask("POST", "outbox/verify")
    assert (status, other["deep"]) == (202, True), "the one that runs"
    report = (await desk.verified())["report"]
    assert (report["balanced"], report["deep"]) == (True, True)
    await desk.store._database.write(lambda c: c.execute("UPDATE streams SET held = 9").rowcount)
    await desk.ask("POST", "outbox/verify")
    state = await desk.verified()
    assert not state["report"]["balanced"]
    assert "a: the ledger says 9 held, 15 records are there" in state["report"]["faults"]


async def test_a_verify_that_the_store_breaks_off_says_so_and_the_next_runs(desk: Desk) -> None:
    await desk.store._database.write(
        lambda c: c.execute("ALTER TABLE dead RENAME TO gone").fetchall()
    )
    await desk.ask("POST", "outbox/verify")
    state = await desk.verified()
    assert (state["report"], "no such table" in state["failure"]["error"]) == (None, True)
    await desk.store._database.write(
        lambda c: c.execute("ALTER TABLE gone RENAME TO dead").fetchall()
    )
    await desk.ask("POST", "outbox/verify")
    assert (await desk.verified())["report"]["balanced"]


async def test_drop_and_retry(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    body = '{"first": 7, "last": 9, "reason": "dull\\nas ditch water"}'
    assert await desk.ask("POST", "outbox/a/drop", body) == (200, {"dropped": 3, "next": None})
    assert await desk.ask("POST", "outbox/a/drop", body) == (200, {"dropped": 0, "next": None})
    (line,) = [r.getMessage() for r in caplog.records if r.name == "outbox"]
    assert line == "a: an operator gave up 3 records of #7 to #9: 'dull\\nas ditch water'"
    status, document = await desk.ask("POST", "outbox/x.raw/retry", '{"seqs": [4]}')
    wanted = {"retrying": 1, "damaged": [], "next": None, "sending": 0, "listening": True}
    assert (status, document) == (200, wanted)
    assert desk.woken == ["a", "x"]
    assert (await desk.ask("POST", "outbox/x.raw/retry"))[1] == wanted, "all of them"


async def test_what_cannot_be_now_is_said_with_409(desk: Desk) -> None:
    await desk.store.outbox.lease(3, 1 << 20)
    body = '{"first": 5, "reason": "x"}'
    status, document = await desk.ask("POST", "outbox/a/drop", body)
    assert (status, document.keys()) == (409, {"error", "hint"})
    assert "#5 to #8 is out to the far side" in document["error"]
    assert (await desk.store.decisions.drop((desk.store.epoch, "a"), Range(9, 9))).dropped == 1


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ("outbox/nix", "no stream 'nix'"),
        ("outbox/a?epoch=0ld", "no stream 'a' of epoch 0ld"),
        ("outbox/a/6", "a #6 is not held"),
        (f"outbox/a/{SEQ_MAX}", "its seqs are 1 to 20"),
    ],
)
async def test_what_is_not_there_is_said_with_404(desk: Desk, route: str, said: str) -> None:
    status, document = await desk.ask("GET", route)
    assert status == 404
    assert said in document["error"]


@pytest.mark.parametrize(
    ("method", "route", "body", "said"),
    [
        ("GET", "outbox?x=1", None, "unknown parameter 'x'"),
        ("GET", "outbox/a?cuont=1", None, "unknown parameter 'cuont'"),
        ("GET", "outbox/a?count=1&count=2", None, "count stands there twice"),
        ("GET", "outbox/a?count=1001", None, "count: expected `int` <= 1000"),
        ("GET", "outbox/a?count=0", None, "count: expected `int` >= 1"),
        ("GET", "outbox/a?count=", None, "found ''"),
        ("GET", "outbox/a?from=-1", None, "from: expected `int` >= 1"),
        ("GET", f"outbox/a?from={'9' * 5000}", None, "from: integer value out of range"),
        ("GET", "outbox/a?from=%D9%A3", None, "from: expected `int`"),
        ("GET", "outbox/a?dead=yes", None, "dead: expected `bool`, got `str`, found 'yes'"),
        ("GET", "outbox/a/first", None, "the seq in the path: expected a whole number"),
        ("GET", "outbox/a/", None, "found ''"),
        ("POST", "outbox/verify?deep=2", None, "deep: expected `bool`"),
        ("POST", "outbox/a/drop", None, "missing required field `first`"),
        ("POST", "outbox/a/drop", '{"first": 1}', "missing required field `reason`"),
        ("POST", "outbox/a/drop", '{"first": 1, "reason": ""}', "length >= 1 - at `$.reason`"),
        ("POST", "outbox/a/drop", '{"first": "1", "reason": "x"}', "got `str` - at `$.first`"),
        ("POST", "outbox/a/drop", '{"frist": 1}', "unknown field `frist`"),
        ("POST", "outbox/a/drop", b"\xff\xfe", "the body of /api/v1/outbox/a/drop"),
        ("POST", "outbox/x.raw/retry", '{"seqs": [0]}', "at `$.seqs[0]`"),
    ],
)
async def test_what_cannot_be_understood_is_said_with_400(
    desk: Desk, method: str, route: str, body: Any, said: str
) -> None:
    status, document = await desk.ask(method, route, body)
    assert (status, document.keys()) == (400, {"error", "hint"}), document
    assert said in document["error"]
    assert document["hint"]


async def test_tcp_reads_and_changes_nothing(desk: Desk) -> None:
    base = f"http://127.0.0.1:{desk.server.port}/api/v1/outbox"
    async with aiohttp.ClientSession() as tcp:
        for route in ("", "/a", "/a/5", "/verify"):
            async with tcp.get(base + route) as answer:
                assert answer.status == 200
        for route in ("/verify", "/a/drop", "/x.raw/retry"):
            async with tcp.post(base + route) as answer:
                assert answer.status == 403
