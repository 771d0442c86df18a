"""Content by MQTT: a real daemon hands out a repository, bounded, beside its orders."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.errors import LinkError
from agent.protocol import content as wire
from agent.protocol.content import Ask
from fleet.control import giving
from fleet.control.giving import ASKS_MAX, AT_ONCE, PIECES_OUT, Content, Giving
from fleet.control.metrics import Metrics
from fleet.mqtt.connection import Message
from tests.fleet.control.rig import ControlProcess, fleet, happens
from tests.outside import Mosquitto, running
from tests.sim.commanded import Commanded, Crew
from tests.updates.bed import CONTENT, TARGET, FakeClock, Shop, content, silent
from tests.updates.by_broker import device

PREFIX, PIECE_BYTES = "holdfast/v1", 1024
PATH = "metadata/large.json"


async def test_a_device_fetches_through_the_daemon(tmp_path: Path) -> None:
    """Metadata and target, over nothing but the broker; and orders go on beside it."""
    shop = Shop(tmp_path / "shop")
    shop.add()
    shop.publish()
    broker, url = Mosquitto(tmp_path), f"sqlite:///{tmp_path}/fleet.db"
    control = ControlProcess(tmp_path, broker.url, url, "--content", str(shop.served))
    with running(broker, control):
        async with Crew([Commanded("press-1", broker.url)]), device(broker.url) as chunks:
            there = content(tmp_path / "device", shop, "mqtt:", chunks=chunks)
            fetched, ordered = await asyncio.gather(
                there.fetch(TARGET, silent),
                fleet("send", "x", "--device", "press-1", "--wait", "--database", url),
            )
        assert ordered.returncode == 0, ordered.stderr
        assert Path(fetched.path).read_bytes() == CONTENT
        assert control.stop() == 0


async def test_what_is_no_repository_is_said(tmp_path: Path) -> None:
    broker = ("--broker", "mqtt://127.0.0.1:1", "--database", f"sqlite:///{tmp_path}/fleet.db")
    done = await fleet("control", *broker, "--content", str(tmp_path))
    assert (done.returncode, "no repository is there" in done.stderr) == (78, True)


class Held:
    """A connection whose broker answers when the test says so."""

    def __init__(self) -> None:
        self.out: list[tuple[str, asyncio.Future[None]]] = []
        self.devices: list[str] = []
        self.starts: list[int] = []
        self.most = 0

    def room_bytes(self, topic: str) -> int:
        return 1 << 20

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = True
    ) -> "asyncio.Future[None]":
        assert not retain
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.out.append((topic, answer))
        self.most = max(self.most, len(self.out))
        self.starts.append(wire.decode(payload)[0].start // PIECE_BYTES)
        self.devices.append(topic.split("/")[2])
        return answer

    def answer(self) -> None:
        for _, one in self.out:
            one.set_result(None)
        self.out.clear()


@pytest.fixture
def given(tmp_path: Path) -> Giving:
    (tmp_path / "metadata").mkdir()
    (tmp_path / PATH).write_bytes(bytes(PIECE_BYTES * 100))
    return Giving(Content(tmp_path, 1e12), Clock(), Metrics(), PREFIX)


async def test_it_goes_as_fast_as_it_may_and_no_faster(given: Giving, tmp_path: Path) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    link = Held()
    slow = Giving(Content(tmp_path, 1000.0), FakeClock(), Metrics(), PREFIX, sleep)
    ask(slow, "d", pieces=4)

    async def all_out() -> bool:
        return len(link.out) == 4

    async with run(slow, link):
        await happens(all_out, "all went")
    assert len(waits) == 3, "the first waits for nothing"
    shares = [after - before for before, after in pairwise([0.0, *waits])]
    assert all(PIECE_BYTES <= 1000 * share <= 2 * PIECE_BYTES for share in shares), waits


def ask(given: Giving, name: str, *, pieces: int = 100, door: str = "content-ask") -> bool:
    span = PIECE_BYTES * pieces
    asked = Ask(path=PATH, start=0, span_bytes=span, piece_bytes_max=PIECE_BYTES)
    message = Message(f"{PREFIX}/{name}/{door}", wire.encode_ask(asked), lambda: None, 0)
    return given.takes(message)


@contextlib.asynccontextmanager
async def run(given: Giving, link: Held) -> AsyncIterator[None]:
    task = asyncio.create_task(given.run(link))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_so_many_pieces_are_out_and_no_more(given: Giving) -> None:
    link = Held()
    assert not ask(given, "d", door="result"), "it is the others'"
    for name in range(2 * AT_ONCE):
        assert ask(given, f"d{name}")
        ask(given, f"d{name}", pieces=4)  # the newest counts

    async def full() -> bool:
        return len(link.out) == PIECES_OUT

    async with run(given, link):
        told = 0
        while told < 2 * AT_ONCE * 4:
            await happens(full, "as many are out as may be")
            told += len(link.out)
            link.answer()
    assert (len(link.devices), link.most) == (2 * AT_ONCE * 4, PIECES_OUT)
    so_far = Counter[str]()
    for name in link.devices:
        so_far[name] += 1
        begun = [one for one in so_far if so_far[one] < 4]
        assert len(begun) <= AT_ONCE, "the others wait for their turn"


async def test_a_device_that_asks_again_is_answered_once_more_but_not_twice_at_a_time(
    given: Giving,
) -> None:
    link, pieces = Held(), PIECES_OUT + 2

    async def more() -> bool:
        return bool(link.out)

    ask(given, "d", pieces=pieces)
    async with run(given, link):
        await happens(more, "it is being answered")
        ask(given, "d", pieces=pieces)
        while len(link.starts) < 2 * pieces:
            await happens(more, "it goes on")
            link.answer()
    assert link.starts == [*range(pieces), *range(pieces)]


async def test_who_waits_longest_gives_way_and_a_damaged_ask_holds_up_nobody(
    given: Giving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving, "ASKS_MAX", 3)
    assert ASKS_MAX > 3
    link = Held()
    for name in ("a", "b", "c"):
        ask(given, name, pieces=1)
    given.takes(Message(f"{PREFIX}/b/content-ask", b"{", lambda: None, 0))
    given.takes(Message(f"{PREFIX}/c/content-ask", b" " * 10_000, lambda: None, 0))
    ask(given, "d", pieces=1)

    async def both() -> bool:
        return len(link.devices) == 2

    async with run(given, link):
        await happens(both, "the others are answered")
    assert set(link.devices) == {"c", "d"}


async def test_a_connection_that_ends_ends_it(given: Giving) -> None:
    class Gone(Held):
        async def publish(
            self, topic: str, payload: bytes, *, retain: bool = True
        ) -> "asyncio.Future[None]":
            raise LinkError("the connection ended")

    ask(given, "d")
    with pytest.raises(LinkError):
        await given.run(Gone())
