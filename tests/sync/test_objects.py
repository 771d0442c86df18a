"""What an object store answers, or a grant names, whatever it is: the blob is not put, no more."""

import asyncio
import contextlib
import gzip
import resource
from collections.abc import AsyncIterator

import msgspec
import pytest

from agent import config
from agent.sync.up.objects import Body, Objects, Unsafe
from tests.sync.putting import Toll
from tests.sync.rig import DEADLINE_S, served

pytestmark = pytest.mark.asyncio
PIECES, PIECE_BYTES = 8, 65_536
BOMB = gzip.compress(bytes(128 << 20), 1)
ANSWERS = {
    "no HTTP": b"\x00\xff" * 200,
    "a status that is none": b"HTTP/1.1 99999 x\r\n\r\n",
    "many headers": b"HTTP/1.1 200 x\r\n" + b"X-A: b\r\n" * 100_000,
    "a long header": b"HTTP/1.1 200 x\r\nX: " + b"a" * 60_000,
    "a length that is none": b"HTTP/1.1 403 x\r\nContent-Length: " + b"9" * 4000 + b"\r\n\r\n",
    "a chunk that is none": b"HTTP/1.1 403 x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\nx\r\n",
    "no gzip": b"HTTP/1.1 403 x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone",
    "a bomb": b"HTTP/1.1 403 x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB)
    + BOMB,
    "a redirect": b"HTTP/1.1 307 x\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
    "nothing": b"",
}


def body(toll: Toll) -> Body:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            yield bytes(PIECE_BYTES)

    return Body(pieces, toll, toll, live=False)


def objects() -> Objects:
    known = {"ack_from": "ingest", "broker_url": "mqtt://127.0.0.1:1", "ack_timeout_s": DEADLINE_S}
    return Objects(msgspec.convert(known, config.Link))


@pytest.mark.parametrize("late", [False, True], ids=["before all came", "at the end"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_what_a_store_answers_is_told_in_few_words(answer: bytes, late: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            got = 0
            while got < (PIECES * PIECE_BYTES if late else 1):
                got += len(await reader.read(PIECE_BYTES))
            writer.write(answer)
            await writer.drain()
            writer.close()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with served(serve) as port, objects() as client:
        url = f"http://127.0.0.1:{port}/x?X-Amz-Signature=secret"
        said = await client.put(url, {}, PIECES * PIECE_BYTES, body(Toll()))
    assert said.startswith("127.0.0.1")
    assert len(said) < 300
    assert "secret" not in said, "who reads it could write to the store"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:99999/x", "http://127.0.0.1:-1/x", "http://[::1/x", "http:///x"),
        *("file:///etc/passwd", "", "x" * 10_000 + "://h/", "http://127.0.0.1:x/"),
    ],
)
async def test_a_url_that_is_none_is_not_asked(url: str) -> None:
    async with objects() as client:
        with pytest.raises(Unsafe):
            await client.put(url, {}, PIECES * PIECE_BYTES, body(Toll()))


async def test_a_step_whose_time_is_over_ends_the_put_and_nothing_else() -> None:
    """The timeout has begun to end the request, which has not seen it yet; the socket has room."""
    toll, room = Toll(), asyncio.Event()
    sent = body(toll)

    async def send() -> None:
        async for _ in sent.steps(deadline, DEADLINE_S):
            await room.wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as deadline:
            sending = asyncio.create_task(send())
            await asyncio.sleep(0)
            deadline.reschedule(asyncio.get_running_loop().time())
            room.set()
            await asyncio.sleep(DEADLINE_S)
    with pytest.raises(TimeoutError):
        await sending
    assert isinstance(sent.fault, TimeoutError)
