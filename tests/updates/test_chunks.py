"""Content over a real broker: the device asks, a controller answers in pieces."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from agent.errors import LinkError, ProtocolError
from agent.protocol import content as wire
from agent.protocol.content import Ask
from agent.protocol.topics import Topics
from agent.sync.content import ContentTalk
from agent.updates.chunks import Chunks
from agent.updates.fetched import NotFetched
from agent.updates.source import Absent, Away
from fleet.mqtt.connection import Broker, Connection, Message
from fleet.updates.pieces import Pieces
from tests.outside import Mosquitto
from tests.updates.bed import CONTENT, TARGET, Shop, content, silent

PREFIX, DEVICE = "holdfast/v1", "device-7"
TOPICS = Topics(PREFIX, DEVICE)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@asynccontextmanager
async def connected(
    broker: Mosquitto, topic: str, heard: Callable[[Message], None]
) -> AsyncIterator[Connection]:
    way = Broker(url=broker.url)
    async with Connection(way, "", MQTTProtocolVersion.MQTTv5, heard, fresh=True) as connection:
        await connection.subscribe({topic: 1})
        yield connection


@asynccontextmanager
async def controller(
    broker: Mosquitto, repository: Path, loses: Callable[[int], bool] = lambda _: False
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

    async with connected(broker, f"{PREFIX}/+/content-ask", heard) as connection:
        task = asyncio.create_task(answer(connection))
        yield asks
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def device(broker: Mosquitto, stall_s: float = 5.0) -> AsyncIterator[Chunks]:
    """The device's end, over a connection of its own."""
    talk = ContentTalk(TOPICS, 16_384, stall_s)
    (topic,) = talk.topics
    async with connected(broker, topic, lambda message: talk.heard(Came(message))) as connection:
        task = asyncio.create_task(talk.run(Passing(connection)))
        await asyncio.sleep(0)
        yield talk.chunks
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    with pytest.raises(Away, match="not connected"):
        await drained(talk.chunks, "metadata/timestamp.json", 0, 1)


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


async def test_whole_way(tmp_path: Path, broker: Mosquitto) -> None:
    """Metadata and content by the broker alone; an ask that is lost is asked again."""
    shop = Shop(tmp_path / "shop")
    shop.add()
    shop.publish()
    loses = {2, 5}.__contains__
    async with controller(broker, shop.served, loses) as asks, device(broker, 1.5) as chunks:
        fetched = await content(tmp_path / "device", shop, "mqtt:", chunks=chunks).fetch(
            TARGET, silent
        )
    assert Path(fetched.path).read_bytes() == CONTENT
    assert len(asks) > 5


async def test_nobody_answers(tmp_path: Path, broker: Mosquitto) -> None:
    shop = Shop(tmp_path / "shop")
    async with device(broker, 0.3) as chunks:
        with pytest.raises(NotFetched, match="no piece of metadata") as refused:
            await content(tmp_path / "device", shop, "mqtt:", chunks=chunks, tries_max=1).check()
    assert refused.value.reason == "unreachable"


async def drained(chunks: Chunks, path: str, start: int, span_bytes: int) -> bytes:
    return b"".join([data async for data in chunks.pieces(path, start, span_bytes)])


class Scripted:
    """A controller that answers an ask as the test says."""

    def __init__(self, *answers: list[bytes]) -> None:
        self.asks: list[Ask] = []
        self.chunks = Chunks(self._publish, 4096, 0.3)
        self._answers = list(answers)

    async def _publish(self, ask: bytes) -> None:
        self.asks.append(wire.decode_ask(ask))
        for payload in self._answers.pop(0) if self._answers else []:
            self.chunks.heard(payload)


PATH = "targets/a.bin"


def piece(start: int, data: bytes, size: int = 12) -> bytes:
    return wire.encode(PATH, start, size, data)


async def test_twice_in_disorder_damaged_foreign() -> None:
    """Each byte counts once, in its place; what is missing is asked for from there."""
    damaged = bytearray(piece(4, b"4567"))
    damaged[-1] ^= 1
    foreign = wire.encode("targets/b.bin", 0, 12, b"abcd")
    script = Scripted(
        [piece(0, b"0123"), piece(0, b"0123"), foreign, bytes(damaged), b"", piece(8, b"89ab")],
        [piece(2, b"234567")],
        [],
        [piece(8, b"89ab")],
    )
    assert await drained(script.chunks, PATH, 0, 100) == b"0123456789ab"
    assert [ask.start for ask in script.asks] == [0, 4, 8, 8]


async def test_absent_and_refused() -> None:
    with pytest.raises(Absent):
        await drained(Scripted([wire.encode_none(PATH)]).chunks, PATH, 0, 100)
    with pytest.raises(Away, match="is being mended"):
        refusal = wire.encode_none(PATH, "the disk is being mended")
        await drained(Scripted([refusal]).chunks, PATH, 0, 100)


async def test_no_link() -> None:
    async def publish(_: bytes) -> None:
        raise LinkError("not connected", "wait")

    with pytest.raises(Away, match="not connected"):
        await drained(Chunks(publish, 4096, 0.3), PATH, 0, 100)


async def test_no_more_than_asked_is_kept() -> None:
    """A controller that floods fills no memory."""
    script = Scripted([piece(i, b"x", 10_000) for i in range(5000)])
    with pytest.raises(Away):
        await drained(script.chunks, PATH, 0, 10_000)
    assert len(script.chunks._come) == 0


def test_pieces_stay_in_the_repository(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    pieces = Pieces(shop.served)
    (shop.metadata / "link.json").symlink_to(shop.keys / "root-0.pem")
    for path in ("metadata/none.json", "metadata/link.json", "metadata"):
        ask = f'{{"path":"{path}","start":0,"span_bytes":9,"piece_bytes_max":1024}}'.encode()
        if path == "metadata":
            with pytest.raises(ProtocolError):
                list(pieces.pieces(ask, 16_384))
            continue
        (payload,) = pieces.pieces(ask, 16_384)
        assert wire.decode(payload)[0].absent
    for path in ("metadata/../../keys/root-0.pem", "/etc/passwd", "targets/./x", "terms.json"):
        ask = f'{{"path":"{path}","start":0,"span_bytes":9,"piece_bytes_max":1024}}'.encode()
        with pytest.raises(ProtocolError):
            list(pieces.pieces(ask, 16_384))


def test_pieces_of_a_span(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    (shop.served / "targets").mkdir(exist_ok=True)
    (shop.served / PATH).write_bytes(CONTENT)
    asked = Ask(path=PATH, start=1000, span_bytes=5000, piece_bytes_max=2000)
    found = [wire.decode(one) for one in Pieces(shop.served).pieces(wire.encode_ask(asked), 4096)]
    assert [(header.start, len(data)) for header, data in found] == [
        (1000, 2000),
        (3000, 2000),
        (5000, 1000),
    ]
    assert b"".join(data for _, data in found) == CONTENT[1000:6000]
    past = Ask(path=PATH, start=10**6, span_bytes=1, piece_bytes_max=2000)
    ((header, data),) = [
        wire.decode(one) for one in Pieces(shop.served).pieces(wire.encode_ask(past), 4096)
    ]
    assert (header.size, data) == (len(CONTENT), b"")
