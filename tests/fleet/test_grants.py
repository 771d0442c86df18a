"""Answers to asks: one device's odd ask is no reason to refuse another's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import aiohttp
import pytest
from aiohttp import web

from agent.clock import Clock
from agent.protocol.grants import Ask, Grant, decode_grant, encode
from fleet.mqtt import s3
from fleet.mqtt.asks import AT_ONCE, Asks
from fleet.mqtt.connection import Message
from fleet.mqtt.grants import REST_S, Grants
from fleet.mqtt.metrics import Metrics
from fleet.mqtt.s3 import Bucket, BucketError, Keys
from fleet.store import database
from fleet.store.cloud import Cloud
from tests.outside import free_port

LONG = "\U0001f4a5" * 200  # 800 bytes in UTF-8


class Hands(Clock):
    """A clock that is set by hand."""

    at = 0.0

    def monotonic(self) -> float:
        return self.at


class Store:
    """Answers each HEAD with this status."""

    def __init__(self) -> None:
        self.status, self.asked, self.port = 404, 0, free_port()

    async def head(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(status=self.status)


@asynccontextmanager
async def bucket(store: Store) -> AsyncIterator[Bucket]:
    app = web.Application()
    app.router.add_route("HEAD", "/{key:.*}", store.head)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", store.port).start()
        async with aiohttp.ClientSession() as session:
            yield Bucket(f"http://127.0.0.1:{store.port}", "b", "eu", Keys("a", "s"), session)
    finally:
        await runner.cleanup()


def ask(name: str = "e1") -> bytes:
    return encode(Ask(epoch=name, stream=name, seq=1, size=5, sha256="0" * 64))


async def noted(*_: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("status", "rests"), [(400, False), (414, False), (403, True), (503, True)]
)
async def test_it_rests_when_the_store_is_away_and_not_for_one_odd_ask(
    status: int, rests: bool
) -> None:
    store, hands = Store(), Hands()
    async with bucket(store) as ours:
        grants = Grants(ours, noted, clock=hands)

        async def answered(name: str = "e1") -> Grant:
            return decode_grant(await grants.answer("press-7", ask(name)))

        store.status = status
        assert str(status) in (await answered("odd")).refused
        store.status = 404
        assert bool((await answered()).refused) == rests
        hands.at += REST_S
        assert (await answered()).url


async def test_a_key_that_no_store_takes_is_refused_without_asking_it() -> None:
    store = Store()
    async with bucket(store) as ours:
        grants = Grants(ours, noted)
        refused = decode_grant(await grants.answer("press-7", ask(LONG))).refused
        assert "1611 bytes; expected 1024" in refused
        assert store.asked == 0
        assert decode_grant(await grants.answer("press-7", ask())).url
        fits = "p" * (s3.KEY_BYTES_MAX - len("d/e/s/1"))
        for prefix in (fits, f"{fits}p"):
            far = Bucket("http://s", "b", "eu", Keys("a", "s"), ours._session, prefix)
            with nullcontext() if prefix == fits else pytest.raises(BucketError, match="1025"):
                assert far.url("d", "e", "s", 1) == f"http://s/b/{prefix}d/e/s/1"


async def test_an_ask_that_slipped_through_ends_nothing(url: str) -> None:
    answers: asyncio.Queue[str] = asyncio.Queue()

    class Line:
        """A connection that hears all."""

        async def publish(
            self, topic: str, _payload: bytes, *, retain: bool
        ) -> "asyncio.Future[None]":
            assert not retain
            answers.put_nowait(topic)
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

    async with Cloud(database.open(url)) as cloud:
        asks = Asks(cloud, Metrics(), None, lambda *_: None)
        running = asyncio.create_task(asks.run(Line()))  # type: ignore[arg-type]
        for number in range(AT_ONCE):
            odd = ask(f"e{number}")
            asks.heard(Message("holdfast/v1/../blob-ask", odd, lambda: None))
        asks.heard(Message("holdfast/v1/press-7/blob-ask", ask(), lambda: None))
        answered = asyncio.create_task(answers.get())
        done, _ = await asyncio.wait([running, answered], return_when=asyncio.FIRST_COMPLETED)
        assert done == {answered}
        assert answered.result() == "holdfast/v1/press-7/blob-grant"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
