"""Tokens, rates and names of requests by the short way of `infer`, as by aiohttp's.

test_express.py compares the two on many more requests with and without tokens.
"""

from contextlib import AsyncExitStack
from pathlib import Path

from tests.api.test_express import (
    BY_AIOHTTP,
    LIMITS,
    TOKENS,
    WAYS,
    Client,
    connected,
    infer,
    opened,
    until,
)


def with_token(way: str, scope: str = "infer", model: str = "tiny") -> bytes:
    return infer(b"abcd", model, way, f"Authorization: Bearer {TOKENS[scope]}")


async def test_who_shows_a_token_goes_the_short_way_and_stays_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as house, connected(house) as client:
        for _ in range(3):
            client.writer.write(with_token("X: y"))
            assert (await client.answer()).status == 200
        express = house.server._express
        assert express
        assert len(express._lanes) == 1
        assert sum(TOKENS["infer"].encode() in head for head in express._heads) == 1


async def test_names_of_requests_push_no_header_out_of_memory(tmp_path: Path) -> None:
    async with opened(tmp_path) as house, connected(house) as client:
        for n in range(20):
            client.writer.write(infer(b"abcd", "tiny", f"X-Request-Id: {n}"))
            assert (await client.answer()).headers["x-request-id"] == f"{n}"
        express = house.server._express
        assert express
        assert len(express._lanes) == 1
        assert len(express._heads) == 1, "the rehearsal"


@WAYS
async def test_a_revoked_token_asks_nothing_more(tmp_path: Path, way: str) -> None:
    places = LIMITS._replace(tcp_places=8)
    async with opened(tmp_path, places) as house, AsyncExitStack() as stack:

        async def come(said: bytes) -> Client:
            return await stack.enter_async_context(connected(house, said))

        asking, waiting = await come(with_token(way)), await come(with_token(way, model="never"))
        coming = await come(with_token(way)[:-2])
        here, other = await come(infer(b"abcd", "tiny", way)), await come(with_token(way, "read"))
        assert (await asking.answer()).status == 200
        assert (await here.answer()).status == 200
        assert (await other.answer()).status == 403
        await until(lambda: house.scheduler.open)
        await until(lambda: house.active == (2 if way == BY_AIOHTTP else 1))
        await house.tokens.revoke("00000001")
        assert await waiting.ended() == b"", "without an answer"
        assert await coming.ended() == b""
        await until(house.scheduler.open[0].cancelled)
        async with connected(house, with_token(way)) as again:
            answer = await again.answer()
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        here.writer.write(infer(b"abcd", "tiny", way))
        assert (await here.answer()).status == 200
        await until(lambda: house.active == 0)


@WAYS
async def test_a_token_has_its_rate_by_either_way(tmp_path: Path, way: str) -> None:
    async with opened(tmp_path, rate_per_s_max=4.0) as house:
        statuses = []
        for n in range(6):
            async with connected(house, with_token("X: y" if n % 2 else way)) as client:
                answer = await client.answer()
                statuses.append((answer.status, answer.headers.get("retry-after")))
        assert statuses == [(200, None)] * 4 + [(429, "1")] * 2
        async with connected(house) as here:
            for _ in range(20):
                here.writer.write(infer(b"abcd", "tiny", way))
                assert (await here.answer()).status == 200, "this machine has none"
