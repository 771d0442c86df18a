"""Content over a real broker: the device asks, a controller answers in pieces."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import LinkError, ProtocolError
from agent.protocol import content as wire
from agent.protocol.content import Ask
from agent.updates.chunks import Chunks
from agent.updates.fetched import NotFetched
from agent.updates.source import Absent, Away
from fleet.updates.pieces import Pieces
from tests.outside import Mosquitto
from tests.updates.bed import CONTENT, TARGET, Shop, content, silent
from tests.updates.by_broker import controller, device


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.kill()


async def test_whole_way(tmp_path: Path, broker: Mosquitto) -> None:
    """Metadata and content by the broker alone; an ask that is lost is asked again."""
    shop = Shop(tmp_path / "shop")
    shop.add()
    shop.publish()
    loses = {2, 5}.__contains__
    async with (
        controller(broker.url, shop.served, loses) as asks,
        device(broker.url, 1.5) as chunks,
    ):
        fetched = await content(tmp_path / "device", shop, "mqtt:", chunks=chunks).fetch(
            TARGET, silent
        )
    assert Path(fetched.path).read_bytes() == CONTENT
    assert len(asks) > 5
    with pytest.raises(Away, match="not connected"):
        await drained(chunks, "metadata/timestamp.json", 0, 1)


async def test_nobody_answers(tmp_path: Path, broker: Mosquitto) -> None:
    shop = Shop(tmp_path / "shop")
    async with device(broker.url, 0.3) as chunks:
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
