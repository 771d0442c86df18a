"""Who stands in a door without a word: the places are few, the time is short, the rest goes on."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from agent.api.entry.limits import Limits
from agent.api.server import Server
from agent.clock import Clock
from agent.config import Api
from agent.errors import ConfigError, HoldfastError, StoreError
from agent.health.conditions import Conditions
from agent.health.status import Status
from agent.records import Balance
from tests.outside import DEADLINE_S, Device, as_json, holdfast, running, until

PATIENT = Limits(tcp_places=4, socket_places=2, first_request_s=600, next_request_s=600)
HASTY = Limits(tcp_places=4, socket_places=2, first_request_s=0.1, next_request_s=0.1)
BRIEF_S = 1.0  # time enough for one request, also where the tests have to share the machine
HALF = b"GET /api/v1/health HTTP/1.1\r\nHost: local"
WHOLE = HALF + b"host\r\n\r\n"
STATUS = WHOLE.replace(b"health", b"status")


async def empty() -> dict[str, Balance]:
    """A ledger without streams."""
    return {}


class Stream(NamedTuple):
    """The client's side of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ended(self) -> bytes:
        """What still came until the agent ended the connection."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionError:  # it had not read all that was said
                return b""

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """The next answer: its status and its JSON."""
        async with asyncio.timeout(DEADLINE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.split(": ") for line in head.split("\r\n")[1:] if line)
            body = await self.reader.readexactly(int(fields["Content-Length"]))
        return int(head.split()[1]), msgspec.json.decode(body)


async def no_metrics() -> bytes:
    return b""


class House:
    """A server of its own, and clients at its doors."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.socket = folder / "holdfast.sock"
        self.ledger = empty
        self.clients = AsyncExitStack()
        clock, path = Clock(), folder / "status.json"
        status = Status(dict, Conditions(clock), clock, lambda: self.ledger(), {}, path)
        self.server = Server(Api(port=0, socket=str(self.socket)), status, no_metrics, limits)

    async def _opened(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Stream:
        self.clients.callback(writer.close)
        return Stream(reader, writer)

    async def tcp(self, said: bytes = b"") -> Stream:
        """A connection to the TCP door that has said so much."""
        opened = await self._opened(*await asyncio.open_connection("127.0.0.1", self.server.port))
        opened.writer.write(said)
        return opened

    async def unix(self, said: bytes = b"") -> Stream:
        """A connection to the socket that has said so much."""
        opened = await self._opened(*await asyncio.open_unix_connection(self.socket))
        opened.writer.write(said)
        return opened

    async def answers(self, door: Callable[[bytes], Any]) -> bool:
        """Whether a request at a door is answered."""
        stream: Stream = await door(WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return (await stream.ended()).startswith(b"HTTP/1.1 200 ")

    async def until_it_answers(self, door: Callable[[bytes], Any]) -> None:
        """Ask until there is a place."""
        async with asyncio.timeout(DEADLINE_S):
            while not await self.answers(door):
                pass


@asynccontextmanager
async def opened(folder: Path, limits: Limits) -> AsyncIterator[House]:
    house = House(folder, limits)
    async with house.server, house.clients:
        yield house


@pytest.mark.parametrize("name", ["tcp", "unix"])
async def test_who_comes_when_all_places_are_taken_is_turned_away_at_once(
    tmp_path: Path, name: str
) -> None:
    async with opened(tmp_path, PATIENT) as house:
        door, other = (house.tcp, house.unix) if name == "tcp" else (house.unix, house.tcp)
        places = PATIENT.tcp_places if name == "tcp" else PATIENT.socket_places
        inside = [await door(HALF) for _ in range(places - 1)]
        assert await house.answers(door), "one place is left"
        inside.append(await door(HALF))
        for _ in range(50):
            assert await (await door(HALF)).ended() == b""
        for _ in range(5):
            assert await house.answers(other), "the other door has places of its own"
        for half in inside:  # who has a place keeps it
            half.writer.write(WHOLE.removeprefix(HALF))
            assert (await half.answer())[0] == 200
        inside[0].writer.close()
        await house.until_it_answers(door)


@pytest.mark.parametrize("said", [b"", b"G", HALF, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50])
@pytest.mark.parametrize("name", ["tcp", "unix"])
async def test_a_connection_without_a_whole_request_is_ended(
    tmp_path: Path, name: str, said: bytes
) -> None:
    async with opened(tmp_path, HASTY) as house:
        door = house.tcp if name == "tcp" else house.unix
        for _ in range(3):
            inside = [await door(said) for _ in range(20)]
            for half in inside:
                assert await half.ended() == b""
            await house.until_it_answers(door)


@pytest.mark.parametrize("said", [b"", HALF])
async def test_a_connection_that_was_served_keeps_no_place_without_the_next_request(
    tmp_path: Path, said: bytes
) -> None:
    limits = PATIENT._replace(next_request_s=0.1)
    async with opened(tmp_path, limits) as house:
        for _ in range(3 * limits.tcp_places):
            stream = await house.tcp(WHOLE)
            assert (await stream.answer())[0] == 200
            stream.writer.write(said)
            assert await stream.ended() == b""


async def test_a_connection_that_goes_on_asking_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, PATIENT._replace(first_request_s=BRIEF_S)) as house:
        stream = await house.tcp(WHOLE)
        assert (await stream.answer())[0] == 200
        assert await (await house.tcp(HALF)).ended() == b"", "more than the first limit has passed"
        for _ in range(5):
            stream.writer.write(WHOLE)
            assert (await stream.answer())[0] == 200


async def test_a_request_that_takes_long_is_not_cut_off(tmp_path: Path) -> None:
    async with opened(tmp_path, PATIENT._replace(first_request_s=BRIEF_S)) as house:
        gone_on = asyncio.Event()

        async def ledger() -> dict[str, Balance]:
            await gone_on.wait()
            return await empty()

        house.ledger = ledger
        stream = await house.tcp(STATUS)
        assert await (await house.tcp(HALF)).ended() == b"", "the limit has passed"
        gone_on.set()
        assert (await stream.answer())[0] == 200


async def test_a_client_that_does_not_read_its_answers_keeps_no_place(tmp_path: Path) -> None:
    async with opened(tmp_path, HASTY) as house:
        with socket.create_connection(("127.0.0.1", house.server.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(DEADLINE_S):
                    while True:  # until the agent has had enough
                        await loop.sock_sendall(sock, WHOLE * 100)
        await house.until_it_answers(house.tcp)


async def test_a_broken_store_is_said_with_503_and_its_hint(tmp_path: Path) -> None:
    async with opened(tmp_path, PATIENT) as house:

        async def broken() -> dict[str, Balance]:
            raise StoreError("the store is gone", "bring it back")

        house.ledger = broken
        stream = await house.unix(STATUS)
        wanted = {"error": "the store is gone", "hint": "bring it back"}
        assert await stream.answer() == (503, wanted)
        assert await house.answers(house.tcp)


async def test_any_other_error_of_ours_is_said_with_500_and_its_hint(tmp_path: Path) -> None:
    async with opened(tmp_path, PATIENT) as house:

        async def wrong() -> dict[str, Balance]:
            raise HoldfastError("it went wrong", "do it right")

        house.ledger = wrong
        stream = await house.unix(STATUS)
        assert await stream.answer() == (500, {"error": "it went wrong", "hint": "do it right"})


async def test_a_fault_of_the_agent_is_logged_whole_and_said_with_500(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, PATIENT) as house:

        async def faulty() -> dict[str, Balance]:
            raise ZeroDivisionError("a secret of the inside")

        house.ledger = faulty
        stream = await house.unix(STATUS)
        status, document = await stream.answer()
        assert (status, document.keys()) == (500, {"error", "hint"})
        assert "secret" not in str(document)
        stream.writer.write(WHOLE)
        assert (await stream.answer())[0] == 200, "the connection goes on"
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert "GET /api/v1/status" in record.getMessage()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EADDRINUSE, "stop what holds the port"),
        (errno.EACCES, "set a higher api.port"),
        (errno.EADDRNOTAVAIL, "set another api.host"),
        (errno.EMFILE, "set another api.port"),
    ],
)
async def test_the_hint_of_a_port_is_that_of_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "the loop's own words")

    house = House(tmp_path, PATIENT)
    monkeypatch.setattr(asyncio.get_running_loop(), "create_server", refuse)
    with pytest.raises(ConfigError, match=r"api\.port: 127\.0\.0\.1:0") as caught:
        await house.server.__aenter__()
    assert caught.value.hint.startswith(hint)
    assert not house.socket.exists()


def half(family: int, address: Any) -> socket.socket:
    """A connection that has said half a request, unless it was ended before."""
    sock = socket.socket(family)
    sock.settimeout(DEADLINE_S)
    sock.connect(address)
    with suppress(ConnectionError):
        sock.sendall(HALF)
    return sock


def has_ended(sock: socket.socket) -> bool:
    """Wait until the agent has ended a connection; whether it did without a word."""
    with sock, suppress(ConnectionError):
        return sock.recv(1) == b""
    return True


def test_half_requests_in_their_hundreds_leave_a_real_agent_as_it_was(tmp_path: Path) -> None:
    device = Device(tmp_path, {})
    with running(device):
        log = until(lambda: "/health" in (said := device.log.read_text()) and said, "its port")
        address = ("127.0.0.1", int(log.partition("127.0.0.1:")[2].partition("/")[0]))
        flood = [half(socket.AF_INET, address) for _ in range(400)]
        flood += [half(socket.AF_UNIX, str(device.socket)) for _ in range(8)]
        assert as_json(holdfast("status", "--json", "--config", str(device.config)))
        flood += [half(socket.AF_UNIX, str(device.socket)) for _ in range(100)]
        for sock in flood:
            assert has_ended(sock)
        until(device.answers, "the socket answers")
        with socket.create_connection(address, DEADLINE_S) as sock:
            sock.sendall(WHOLE)
            assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
        assert "Traceback" not in device.log.read_text()
        assert device.stop() == 0
