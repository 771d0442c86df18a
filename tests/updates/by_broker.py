"""Content by a real broker: the device's end, and the controller that answers it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from paho.mqtt.enums import MQTTProtocolVersion

from agent.protocol.topics import Topics
from agent.sync.content import ContentTalk
from agent.updates.chunks import Chunks
from fleet.mqtt.connection import Broker, Connection, Message
from fleet.updates.pieces import Pieces

PREFIX, DEVICE = "holdfast/v1", "device-7"
TOPICS = Topics(PREFIX, DEVICE)


@asynccontextmanager
async def connected(
    url: str, topic: str, heard: Callable[[Message], None]
) -> AsyncIterator[Connection]:
    way = Broker(url=url)
    async with Connection(way, "", MQTTProtocolVersion.MQTTv5, heard, fresh=True) as connection:
        await connection.subscribe({topic: 1})
        yield connection


@asynccontextmanager
async def controller(
    url: str, repository: Path, loses: Callable[[int], bool] = lambda _: False
) -> AsyncIterator[list[bytes]]:
    """Answers asks, but for those that it loses; the asks that came."""
    asks: list[bytes] = []
    pieces, waiting = Pieces(repository), asyncio.Queue[bytes]()

    def heard(message: Message) -> None:
        message.take()
        asks.append(message.payload)
        if not loses(len(asks)):
            waiting.put_nowait(message.payload)

    async def answer(connection: Connection) -> None:
        while True:
            await pieces.answer(DEVICE, await waiting.get(), PREFIX, connection)

    async with connected(url, f"{PREFIX}/+/content-ask", heard) as connection:
        task = asyncio.create_task(answer(connection))
        yield asks
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def device(
    url: str, stall_s: float = 5.0, payload_bytes_max: int = 16_384
) -> AsyncIterator[Chunks]:
    """The device's end, over a connection of its own."""
    talk = ContentTalk(TOPICS, payload_bytes_max, stall_s)
    (topic,) = talk.topics
    async with connected(url, topic, lambda message: talk.heard(Came(message))) as connection:
        task = asyncio.create_task(talk.run(Passing(connection)))
        await asyncio.sleep(0)
        yield talk.chunks
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Passing:
    """The way of the link, which keeps nothing at the broker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def publish(self, topic: str, payload: bytes) -> None:
        await self._connection.publish(topic, payload, retain=False)


class Came:
    """What the link hands on."""

    def __init__(self, message: Message) -> None:
        self.payload = message.payload
        self.taken = message.take
