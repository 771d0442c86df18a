"""The load: what it counts, and what it refuses to count."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from bench.forms import JSON, post
from bench.load import Load, LoadError, Volley
from bench.served import check
from tests.outside import free_port

RING = [post("/", b"%d" % place, JSON) for place in range(3)]
Answer = Callable[[bytes, int], web.Response]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Its port, and the bodies it was sent."""
    seen: list[bytes] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(await request.read())
        return answer(seen[-1], len(seen))

    app = web.Application()
    app.router.add_post("/", handle)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port, seen
    finally:
        await runner.cleanup()


async def volley(answer: Answer, *, varies: bool = False) -> tuple[Volley, list[bytes]]:
    def ask(port: int) -> Volley:
        with Load(port, RING, varies=varies) as load:
            return load.run(connections=4, seconds=0.3)

    async with server(answer) as (port, seen):
        return await asyncio.to_thread(ask, port), seen


async def test_each_answer_counts_once_and_the_ring_goes_round() -> None:
    found, seen = await volley(lambda body, _: web.Response(body=b"to " + body))
    assert len(found.latencies_s) == len(seen) >= len(RING)
    assert found.bodies == {place: b"to %d" % place for place in range(3)}
    assert set(seen) == {b"0", b"1", b"2"}
    assert found.rate == pytest.approx(len(seen) / found.elapsed_s)
    assert all(0 < latency_s < found.elapsed_s for latency_s in found.latencies_s)


async def test_a_long_answer_that_comes_in_parts_is_one() -> None:
    content = bytes(range(256)) * 4096
    found, _ = await volley(lambda *_: web.Response(body=content))
    assert found.bodies[0] == content


async def test_what_is_not_a_200_counts_for_nothing() -> None:
    with pytest.raises(LoadError, match=r"not a 200.*503"):
        await volley(lambda _, count: web.Response(status=200 if count < 9 else 503))


async def test_another_length_is_an_error_unless_it_may_vary() -> None:
    def answer(_: bytes, count: int) -> web.Response:
        return web.Response(body=b"x" * (1 + count % 2))

    with pytest.raises(LoadError, match="expected"):
        await volley(answer)
    assert (await volley(answer, varies=True))[0].rate > 0


async def test_nobody_there_is_an_error() -> None:
    with Load(free_port(), RING) as load, pytest.raises(LoadError, match="ConnectionRefused"):
        load.run(connections=1, seconds=0.1)


def test_a_number_that_is_none_is_a_wrong_one() -> None:
    right = array("f", [0.0, 1.0])
    check(array("f", [0.0, 1.0001]), right, "it")
    for wrong in (0.9, float("nan")):
        with pytest.raises(ValueError, match="it: an answer is"):
            check(array("f", [0.0, wrong]), right, "it")
