"""A device's PUT over a real store and a real broker, and the cloud that grants it.

`python -m tests.sync.putting FOLDER BROKER_URL` is the device as a process of its own, to be
killed: it puts the blob of the first record that its store holds.
"""

import asyncio
import contextlib
import resource
import sqlite3
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent import config
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.protocol.grants import Ask
from agent.protocol.topics import Topics
from agent.records import Position, Range, Record
from agent.store.outbox import Name
from agent.store.store import Store
from agent.sync.up.puts import Puts
from fleet.mqtt.grants import Grants
from fleet.mqtt.s3 import Bucket, Keys
from tests.object_store import ACCESS, BUCKET, REGION, SECRET, ObjectStore
from tests.outside import until
from tests.store.test_store import segment

DEVICE = "dev"
BLOB = bytes(i * 11 % 253 for i in range(300_000))
BLOBS = (BLOB, BLOB[:70_000])
TOPICS = Topics("holdfast/v1", DEVICE)


class Toll:
    """Notes what was paid for and what went."""

    def __init__(self) -> None:
        self.paid_bytes = self.sent_bytes = 0
        self.live: set[bool] = set()

    async def take(self, size_bytes: int, *, live: bool) -> None:
        self.paid_bytes += size_bytes
        self.live.add(live)

    def sent(self, size_bytes: int) -> None:
        assert size_bytes <= 65_536, "more than a piece at once"
        self.sent_bytes += size_bytes
        assert self.sent_bytes <= self.paid_bytes


class Line:
    """A connection to a real broker, as far as a PUT needs one."""

    def __init__(self, url: str, heard: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._subscribed = asyncio.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_connect = lambda c, *_: c.subscribe(TOPICS.grant, 1)
        self._client.on_subscribe = lambda *_: self._soon(self._subscribed.set)
        self._client.on_disconnect = lambda *_: self._soon(self._over)
        self._client.on_message = lambda _c, _u, m: self._soon(heard, m.payload)
        self._client.connect("127.0.0.1", int(url.rpartition(":")[2]))

    def _soon(self, call: Callable[..., object], *given: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is over
            self._loop.call_soon_threadsafe(call, *given)

    def _over(self) -> None:
        if not self.ended.done():
            self.ended.set_result("the broker went")

    async def __aenter__(self) -> Self:
        self._client.loop_start()
        await asyncio.wait_for(self._subscribed.wait(), 30.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    async def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        self._client.publish(topic, payload, 1)
        return self._loop.create_future()


class Device:
    """Store, line and puts, with records of which each has a blob."""

    def __init__(
        self, folder: Path, url: str, blobs: Sequence[bytes] = BLOBS, **settings: object
    ) -> None:
        known = {"ack_from": "ingest", "broker_url": url, "ack_timeout_s": 5.0, "blobs_by": "put"}
        self._url = url
        self._blobs = blobs
        self.settings = msgspec.convert({**known, **settings}, config.Link)
        self.conditions = Conditions(Clock())
        self.store = Store(config.Store(path=str(folder / "s.db")), Clock())
        self.toll = Toll()
        self.puts = Puts(
            *(self.settings, DEVICE, self.store.outbox, self.conditions, Clock()),
            *(self.toll, self.toll),
        )
        self.name: Name = ("", "")
        self._records: list[Record] = []
        self.line: Line | None = None

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator["Device"]:
        async with self.store, self.puts, Line(self._url, self.puts.heard) as self.line:
            batch = await self.store.outbox.lease(10, 100_000)
            if batch is None:
                found = [(segment(i), blob) for i, blob in enumerate(self._blobs)]
                await self.store.spool.keep("x", found, Position(), "segments")
                batch = await self.store.outbox.lease(10, 100_000)
            assert batch
            self.name, self._records = batch.name, batch.records
            yield self

    async def put(self, number: int = 0, *, live: bool = False) -> bool:
        line: Any = self.line
        return await self.puts.put(line, self.name, self._records[number], live=live)

    async def purge(self) -> None:
        await self.store.outbox.acknowledge(self.name, [Range(1, len(self._blobs))])

    def says(self, word: str) -> bool:
        return any(word in f"{c.name} {c.cause}" for c in self.conditions.all())


class Cloud:
    """An ingest's part in it: hears asks on a real broker, notes what is stored in a database."""

    def __init__(self, port: int, file: Path, grants_of: Bucket | None) -> None:
        self.deaf = False
        self.asks = 0
        self._loop = asyncio.get_running_loop()
        self._file = file
        self._grants = Grants(grants_of, self._note)
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE IF NOT EXISTS objects (device, stream, seq, size)")
        database.close()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._subscribed = False
        self._client.on_connect = lambda c, *_: c.subscribe(
            "$share/ingest/holdfast/v1/+/blob-ask", 1
        )
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        until(lambda: self._subscribed, "the cloud has subscribed")

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed = True

    async def _note(self, device: str, ask: Ask, place: str) -> bool:
        with contextlib.closing(sqlite3.connect(self._file)) as database, database:
            row = (device, ask.stream, ask.seq, ask.size)
            database.execute("INSERT INTO objects VALUES (?, ?, ?, ?)", row)
        return True

    def noted(self) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self._file)) as database:
            return database.execute("SELECT DISTINCT * FROM objects ORDER BY seq").fetchall()

    def _on_message(self, _c: Any, _u: Any, message: mqtt.MQTTMessage) -> None:
        asyncio.run_coroutine_threadsafe(self._answer(message.topic, message.payload), self._loop)

    async def _answer(self, topic: str, payload: bytes) -> None:
        self.asks += 1
        if self.deaf:
            return
        device = topic.split("/")[-2]
        word = await self._grants.answer(device, payload)
        self._client.publish(Topics("holdfast/v1", device).grant, word, 1)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@asynccontextmanager
async def cloud(
    port: int,
    folder: Path,
    store: ObjectStore | None,
    url: str = "",
    trusted: ssl.SSLContext | None = None,
) -> AsyncIterator[Cloud]:
    """A cloud over an object store, or over none."""
    connector = aiohttp.TCPConnector(ssl=trusted or True)
    async with aiohttp.ClientSession(connector=connector) as session:
        keys = Keys(ACCESS, SECRET)
        at = url or (store.url if store else "")
        bucket = Bucket(at, BUCKET, REGION, keys, session) if at else None
        found = Cloud(port, folder / "cloud.db", bucket)
        try:
            yield found
        finally:
            found.stop()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def _put_one(folder: str, url: str) -> None:
    async with Device(Path(folder), url, ack_timeout_s=30.0).at_work() as device:
        before = _peak_bytes()
        print(int(await device.put()), _peak_bytes() - before, flush=True)


if __name__ == "__main__":
    asyncio.run(_put_one(*sys.argv[1:]))
