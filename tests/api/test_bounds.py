"""What a request may bring and how long that may take, at a door that takes an order."""

import asyncio
import gzip
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from aiohttp import web

from agent.api.entry.body import Bound, body_of
from agent.api.entry.pace import BYTES_PER_S, Pace
from agent.api.entry.room import Places, Room, Share
from agent.api.form.answers import document, streamed
from agent.api.form.asked import ORDER_BYTES_MAX, order_of
from agent.api.form.route import BYTES, get, post
from agent.errors import BusyError
from tests.api.house import DEADLINE_S, HEALTH, PATIENT, House

SECRET = b"SESAME"


class Order(msgspec.Struct):
    """Of the door under test."""

    text: str = ""


class Doors:
    """One that takes an order, one whose answer has no end."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        order = await order_of(request, Order, "{}")
        return document({"characters": len(order.text)})

    async def tell(self, request: web.Request) -> web.StreamResponse:
        async def endless() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield bytes(65_536)
            finally:
                self.ended.set()

        return await streamed(request, endless(), {})

    def house(self, folder: Path, **limits: float) -> House:
        more = [
            post("/take", self.take, "Take.", dict, scopes=(), body=Order),
            get("/tell", self.tell, "Tell.", BYTES, scopes=()),
        ]
        return House(folder, PATIENT._replace(**limits), more)


def take(body: bytes, *headers: str) -> bytes:
    lines = ["POST /take HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    lines += [] if "Transfer-Encoding: chunked" in headers else [f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def asked(house: House, said: bytes) -> tuple[int, dict[str, object]]:
    async with asyncio.timeout(DEADLINE_S):
        answer = await asyncio.to_thread(house.asked, said)
    return int(answer.split()[1]), msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])


async def until_free(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while house.places_free != PATIENT.tcp_places:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_order_has_a_largest_size(tmp_path: Path, chunked: bool) -> None:
    async with Doors().house(tmp_path) as house:
        for more, status in ((0, 200), (1, 413)):
            text = b"x" * (ORDER_BYTES_MAX - len(b'{"text":""}') + more)
            body, headers = b'{"text":"%b"}' % text, []
            if chunked:
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
                headers = ["Transfer-Encoding: chunked"]
            found, said = await asked(house, take(body, *headers))
            assert found == status
            assert status == 200 or (said["hint"] and str(ORDER_BYTES_MAX) in str(said["error"]))
        await until_free(house)


class Drops:
    """The request of a client that sends a byte at a time."""

    def __init__(self, left: int) -> None:
        self.path, self.transport, self.content_length = "/take", None, None
        self.content, self.headers, self._left = self, dict[str, str](), left

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        self._left -= 1
        return b" " if self._left >= 0 else b""


async def test_a_byte_of_an_order_costs_no_more_than_the_one_before() -> None:
    """Anybody may log in: what came must not be counted anew at each."""
    async with asyncio.timeout(DEADLINE_S):
        body = await body_of(cast(web.Request, Drops(1 << 20)), Bound(1 << 20))
    assert len(body) == 1 << 20


async def test_an_order_that_is_only_announced_is_refused_at_once(tmp_path: Path) -> None:
    async with Doors().house(tmp_path) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
        writer.write(take(b"").replace(b"Length: 0", b"Length: 100000000"))
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.readline()).split()[1] == b"413"
        writer.close()
        await until_free(house)


async def test_who_asks_first_is_told_to_send_when_it_may_come(tmp_path: Path) -> None:
    async with Doors().house(tmp_path) as house:
        for length, host, wanted in (
            (ORDER_BYTES_MAX + 1, "localhost", b"413"),
            (2, "evil.example", b"421"),
            (2, "localhost", b"100"),
        ):
            reader, writer = await asyncio.open_unix_connection(house.socket)
            lines = ["POST /take HTTP/1.1", f"Host: {host}", "Connection: close"]
            lines += [f"Content-Length: {length}", "Expect: 100-continue", "", ""]
            writer.write("\r\n".join(lines).encode())
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.readline()).split()[1] == wanted
                if wanted == b"100":
                    writer.write(b"{}")
                    assert (await reader.read()).split()[1] == b"200"
            writer.close()
        status, told = await asked(house, take(b"{}", "Expect: nothing"))
        assert (status, "100-continue" in str(told["hint"])) == (417, True)


@pytest.mark.parametrize("encoding", ["gzip", "x", "GZIP", "identity, gzip"])
async def test_an_order_is_not_unpacked(tmp_path: Path, encoding: str) -> None:
    async with Doors().house(tmp_path) as house:
        body = gzip.compress(b"{}")
        found, said = await asked(house, take(body, f"Content-Encoding: {encoding}"))
        assert (found, bool(said["hint"])) == (415, True)
        assert await asked(house, take(b"{}", "Content-Encoding: identity")) == (
            200,
            {"characters": 0},
        )


@pytest.mark.parametrize("said", [b"", b"{"])
@pytest.mark.parametrize("limit", ["body_s", "pause_s"])
async def test_an_order_has_a_bounded_time(
    tmp_path: Path, said: bytes, limit: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Doors().house(tmp_path, **{limit: 0.2}) as house:
        found, told = await asked(house, take(b"{}")[:-2] + said)
        assert (found, "too slowly" in str(told["error"])) == (408, True)
        assert "bytes/s" in str(told["hint"])
        await until_free(house)
    assert "Traceback" not in caplog.text


def pace(per_s: float, whole_s: float = 600.0) -> float:
    """When a body is given up that brings so much in each second; never: when its time is over."""
    found, now_s = Pace(0.0, whole_s, 20.0), 0.0
    while now_s + 1.0 <= found.due_s < whole_s or now_s < whole_s == found.due_s:
        now_s += 1.0
        found.came(int(per_s), now_s)
    return found.due_s


def test_a_body_has_to_keep_a_pace() -> None:
    assert pace(0) == 20.0
    assert 20.0 < pace(BYTES_PER_S / 2) < 60.0
    assert pace(BYTES_PER_S) == 600.0, "some MB come through a bad network"
    assert pace(1 << 30, whole_s=60.0) == 60.0
    fast = Pace(0.0, 600.0, 20.0)
    fast.came(1 << 30, 1.0)
    assert fast.due_s == 21.0, "what was fast may rest no longer than others"
    fast.excuse(100.0)
    assert fast.due_s == 120.0


def test_no_caller_has_all_the_room() -> None:
    room = Room(16 << 20)
    mine, other = Share(room, "a"), Share(room, "b")
    assert not mine.take(13 << 20)
    mine.insist(12 << 20)
    with pytest.raises(BusyError, match="no room"):
        Share(room, "a").insist(1 << 20)
    other.insist(4 << 20)
    assert not Share(room, "c").take(1 << 20)
    for one in (mine, other):
        one.leave()
    assert (room.free_bytes, room.taken_bytes) == (16 << 20, {})


def test_no_caller_has_all_places() -> None:
    places = Places(4, "sounds")
    with places.place("a", 1.0), places.place("a", 1.0), places.place("a", 1.0):
        with pytest.raises(BusyError, match="3 sounds of yours"), places.place("a", 7.0):
            pass
        with (
            places.place("b", 1.0),
            pytest.raises(BusyError, match="4 sounds come in") as refused,
            places.place("c", 7.0),
        ):
            pass
        assert refused.value.retry_s == 7.0
    assert places.taken == 0


async def test_an_answer_without_an_end_has_to_be_taken(tmp_path: Path) -> None:
    doors = Doors()
    async with doors.house(tmp_path, taking_s=0.2, next_request_s=0.1) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
        writer.write(b"GET /tell HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            taken = 0
            while taken < 200 << 20:  # as long as it is taken it goes on
                taken += len(await reader.read(1 << 20))
                assert not doors.ended.is_set()
            await doors.ended.wait()
        writer.close()
        await until_free(house)


@pytest.mark.parametrize(
    "said",
    [
        SECRET + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + SECRET * 3000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + SECRET + b"\r\n\r\n",
        b"GET /" + SECRET * 3000 + b" HTTP/1.1\r\n\r\n",
        b"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + SECRET + b"\r\n\r\n",
        HEALTH.replace(b"close", b"close\r\nContent-Length: 1\r\nTransfer-Encoding: chunked"),
    ],
)
async def test_what_cannot_be_read_is_refused_in_our_form_and_not_logged(
    tmp_path: Path, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Doors().house(tmp_path) as house:
        status, answer = await asked(house, said)
        assert (status, answer.keys()) == (400, {"error", "hint"})
        assert SECRET.decode() not in str(answer)
        await until_free(house)
    assert "SESAME" not in caplog.text
    assert "Traceback" not in caplog.text
