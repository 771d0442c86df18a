"""What the tests of the link are built from: a rig, a proxy, a stub of a broker."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from agent import config
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.health.letters import Letters
from agent.known_time import KnownTime
from agent.protocol import batch
from agent.protocol.presence import Heartbeat
from agent.records import Position, RecordType
from agent.store import streams
from agent.store.store import Store
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.sync.link import Link
from agent.sync.up.uplink import Uplink
from tests.listener import Listener
from tests.outside import Mosquitto, free_port
from tests.store.test_store import segment

DEADLINE_S = 90.0


BLOB = bytes(i * 11 % 253 for i in range(300_000))


class Rig:
    """A store, a link and the conditions, as app.py puts them together."""

    def __init__(
        self, folder: Path, url: str, clock: Clock | None = None, **settings: object
    ) -> None:
        self.clock = clock or Clock()
        self.known = KnownTime(folder / "known-time.json", self.clock)
        self.conditions = Conditions(self.clock)
        self.conditions_told: list[dict[str, str]] = []
        self.store = Store(config.Store(path=str(folder / "s.db")), self.clock)
        self.configure(url, **settings)

    def configure(self, url: str, **settings: object) -> None:
        """A link with these settings, over the same store."""
        self.settings = msgspec.convert(
            {
                "ack_from": "ingest",
                "broker_url": url,
                "backoff_s_min": 0.05,
                "backoff_s_max": 0.1,
                "ack_timeout_s": 1.0,
                **settings,
            },
            config.Link,
        )
        epoch = lambda: self.store.epoch  # noqa: E731
        pace = self.pace = Pace(self.settings, self.clock)
        self.uplink = Uplink(
            *(self.settings, "dev", self.store.outbox, self.conditions, self.clock),
            *(pace, Progress(self.clock)),
        )
        self.link = Link(
            *(self.settings, url, "dev", epoch, self.uplink, self._beat),
            *(self.conditions, self.clock, random.Random(1), "0.0.0", pace, self.known),
        )

    async def _beat(self) -> Heartbeat:
        return Heartbeat(
            device="dev",
            epoch=self.store.epoch,
            uptime_s=0,
            status="healthy",
            conditions=self.conditions_told,
            ledger=await self.store.ledger.by_epoch(),
        )

    def holds(self, name: str) -> bool:
        return any(c.name == name for c in self.conditions.all())

    def says(self, word: str) -> bool:
        return any(word in c.cause for c in self.conditions.all())

    async def tear(self, count: int) -> None:
        """Records of which every other one was dropped, and a last one that was not."""

        def operation(connection: sqlite3.Connection) -> None:
            key = streams.stream_id(connection, "x.segments")
            stamp = self.clock.stamp()
            for _ in range(count):
                streams.drop_unheld(connection, key, "full")
                streams.append(connection, key, RecordType.SEGMENT, stamp, b"{}")
            streams.append(connection, key, RecordType.SEGMENT, stamp, b"{}")

        await self.store._database.write(operation)
        self.store.outbox.more.set()

    async def fill(self, count: int, blob: bytes = b"flac") -> None:
        found = [(segment(i), blob) for i in range(count)]
        await self.store.spool.keep("x", found, Position(), "segments")

    async def held(self) -> int:
        return (await self.store.ledger.balances())["x.segments"].held


@asynccontextmanager
async def linked(rig: Rig) -> AsyncIterator[Rig]:
    async with rig.store, live(rig):
        yield rig


@asynccontextmanager
async def live(rig: Rig) -> AsyncIterator[Rig]:
    """The link runs over a store that runs already."""
    task = asyncio.create_task(rig.link.run())
    outbox = rig.store.outbox
    letters = asyncio.create_task(Letters(outbox.buried, outbox.more_buried, rig.conditions).run())
    try:
        yield rig
    finally:
        task.cancel()
        letters.cancel()
        await asyncio.wait([task, letters])
        if not task.cancelled():
            raise AssertionError("the link ended by itself") from task.exception()


async def eventually(question: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not question():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S} s: {what}") from None


async def emptied(rig: Rig) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await rig.held():
            await asyncio.sleep(0.01)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BEGUN = 10  # rounds of the loop, more than an accepted connection takes to reach its handler


@asynccontextmanager
async def served(serve: Serve, port: int | None = None, **options: Any) -> AsyncIterator[int]:
    """A server on the port that it yields. At the end every connection is closed, also one that
    had just been accepted: one that is left to the collector is a warning in a later test, and
    asyncio leaves it where its server is closed before its transport is made."""
    writers = list[asyncio.StreamWriter]()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    port = port or free_port()
    server = await asyncio.start_server(one, "127.0.0.1", port, **options)
    try:
        yield port
    finally:
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(BEGUN):
            await asyncio.sleep(0)
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0)


class Proxy:
    """Stands between device and broker; hangs up on new connections, or swallows everything."""

    def __init__(self, broker: Mosquitto) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.hang_up = False
        self.black_hole = False
        self.connects: list[int] = []  # the protocol versions that were asked for
        self._broker = broker
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = served(self._serve, self.port)
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        await self._server.__aexit__(None, None, None)
        self.cut()  # what came in that instant

    def cut(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4096)
        if first:
            self.connects.append(first[first.index(b"MQTT") + 4])
        if self.hang_up or not first:
            writer.close()
            return
        back, forth = await asyncio.open_connection("127.0.0.1", self._broker.port)
        self._writers += [writer, forth]
        forth.write(first)
        await asyncio.gather(self._copy(reader, forth), self._copy(back, writer))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                if not self.black_hole:
                    target.write(data)
        target.close()


class Stub:
    """A broker of this test's own: it answers to CONNECT and to nothing it is not told to."""

    def __init__(self, connack: bytes = bytes([0, 0, 0])) -> None:
        """`connack`: flags, reason code and properties of the answer to CONNECT."""
        self._connack = bytes([0x20, len(connack)]) + connack
        self.asked: list[bytes] = []  # the bodies of the CONNECTs
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.extra = b""  # sent behind the answer to the first SUBSCRIBE
        self.pubacks = False
        self.published = 0

    @property
    def connects(self) -> int:
        return len(self.asked)

    async def __aenter__(self) -> Self:
        self._server = served(self._serve, self.port)
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.__aexit__(None, None, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    self._answer(*await self._packet(reader), writer)
        finally:
            writer.close()

    def _answer(self, kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 0x10:
            self.asked.append(body)
            writer.write(self._connack)
        elif kind & 0xF0 == 0x80:
            writer.write(bytes([0x90, 4]) + body[:2] + bytes([0, 1]) + self.extra)
        elif kind & 0xF0 == 0x30:
            self.published += 1
            size = int.from_bytes(body[:2], "big")
            if self.pubacks:
                writer.write(bytes([0x40, 2]) + body[2 + size : 4 + size])
        elif kind == 0xC0:
            writer.write(bytes([0xD0, 0]))

    async def _packet(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        kind, size, shift = (await reader.readexactly(1))[0], 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return kind, await reader.readexactly(size)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that takes everything and says nothing."""
    try:
        await reader.read()
    finally:
        writer.close()


def sent(listener: Listener) -> set[int]:
    return {batch.decode(payload)[0].first for payload in listener.at("up")}
