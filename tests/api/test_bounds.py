"""What a request may bring and how long that may take, at a door that takes an order."""

import asyncio
import gzip
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec
import pytest
from aiohttp import web

from agent.api.form.answers import document, streamed
from agent.api.form.asked import ORDER_BYTES_MAX, body_of, order_of
from agent.api.form.route import BYTES, get, post
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
        self.content, self._left = self, left

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        self._left -= 1
        return b" " if self._left >= 0 else b""


async def test_a_byte_of_an_order_costs_no_more_than_the_one_before() -> None:
    """Anybody may log in: what came must not be counted anew at each."""
    async with asyncio.timeout(DEADLINE_S):
        body = await body_of(cast(web.Request, Drops(1 << 20)), 1 << 20)
    assert len(body) == 1 << 20


async def test_an_order_that_is_only_announced_is_refused_at_once(tmp_path: Path) -> None:
    async with Doors().house(tmp_path) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
        writer.write(take(b"").replace(b"Length: 0", b"Length: 100000000"))
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.readline()).split()[1] == b"413"
        writer.close()
        await until_free(house)


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
async def test_an_order_has_a_bounded_time(
    tmp_path: Path, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with Doors().house(tmp_path, body_s=0.2) as house:
        with suppress(ConnectionError):
            answer = await asyncio.to_thread(house.asked, take(b"{}")[:-2] + said)
            assert answer == b""
        await until_free(house)
    assert "Traceback" not in caplog.text


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
