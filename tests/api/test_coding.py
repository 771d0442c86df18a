"""Compressed bodies: taken within their bounds, sent where that pays, else refused."""

import asyncio
import gzip
import json
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from agent.api.entry import coding
from agent.api.entry.coding import STEP_BYTES, Coder, accepted
from agent.api.entry.room import SMALL_BYTES, Room, Share
from agent.errors import BusyError, RequestError, TooLarge
from agent.inference.oip import BODY_BYTES_MAX
from tests.api.test_infer import SEED, Door, opened, x
from tests.inference.house import DEADLINE_S
from tests.outside import ROOT

MIB = 1 << 20
PACK = {"gzip": gzip.compress, "deflate": zlib.compress}
BODY = json.dumps({"inputs": [x([1, 2, 3, 4], [1, 4])]}).encode()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(tmp_path) as found:
        yield found


@pytest.fixture
def share() -> Share:
    return Share(Room())


@pytest.mark.parametrize("kind", PACK)
async def test_what_was_packed_comes_out(kind: str, share: Share) -> None:
    chance = random.Random(SEED)
    for size in (0, 1, 1000, 16 << 10, (16 << 10) + 1, STEP_BYTES, 3 * STEP_BYTES + 1):
        for whole in (bytes(size), chance.randbytes(size)):
            body = PACK[kind](whole)
            share.insist(len(body))
            found = await Coder().unpacked(body, kind, share, max(1, size))
            assert bytes(found) == whole
            if size > SMALL_BYTES:
                assert share.held_bytes == len(body) + size
            share.leave()


@pytest.mark.parametrize("kind", PACK)
async def test_what_is_not_whole_is_refused(kind: str, share: Share) -> None:
    chance = random.Random(SEED)
    body = PACK[kind](chance.randbytes(5000) + bytes(100_000))
    other = PACK["deflate" if kind == "gzip" else "gzip"](b"x")
    wrong = [b"", b"x", other, body + b"x", body + body]
    wrong += [body[: chance.randrange(len(body))] for _ in range(50)]
    for one in wrong:
        with pytest.raises(RequestError, match=kind):
            await Coder().unpacked(one, kind, share, MIB)
    for _ in range(300):  # nothing else comes of it, whatever is in it
        bent = bytearray(body)
        bent[chance.randrange(len(bent))] ^= 1 << chance.randrange(8)
        with suppress(RequestError):
            await Coder().unpacked(bent, kind, share, MIB)


@pytest.mark.parametrize("kind", PACK)
async def test_a_bomb_is_not_unpacked_beyond_its_bound(kind: str, share: Share) -> None:
    bomb = PACK[kind](bytes(256 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="above 16777216 bytes when it is unpacked"):
            await Coder().unpacked(bomb, kind, share, 16 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 48 * MIB
    finally:
        tracemalloc.stop()
    assert share.held_bytes <= len(bomb) + 16 * MIB


async def test_it_takes_no_more_than_its_room() -> None:
    room = Room(10 * MIB)
    share = Share(room)
    with pytest.raises(BusyError):
        await Coder().unpacked(gzip.compress(bytes(64 * MIB)), "gzip", share, BODY_BYTES_MAX)
    assert room.free_bytes >= 0
    share.leave()
    assert room.free_bytes == room.size_bytes


async def test_others_go_on_while_much_is_unpacked(share: Share) -> None:
    body = gzip.compress(bytes(BODY_BYTES_MAX))
    task = asyncio.create_task(Coder().unpacked(body, "gzip", share, BODY_BYTES_MAX))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert len(await task) == BODY_BYTES_MAX
    assert turns > BODY_BYTES_MAX / STEP_BYTES


def test_what_an_accept_encoding_asks_for() -> None:
    for header, best in (
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("GZIP;q=0.5, deflate;q=0.7", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("*;q=0.1", "gzip"),
        ("identity, br", None),
        ("gzip;q=nonsense", None),
    ):
        assert accepted(header) == best, header


def test_a_long_run_of_spaces_holds_up_nobody() -> None:
    """Anybody's header is read, and by the loop: where two patterns share a run, it takes hours."""
    asks = "from agent.api.entry.coding import accepted; accepted('gzip' + ' ' * 1_000_000 + '!')"
    subprocess.run([sys.executable, "-c", asks], check=True, timeout=DEADLINE_S, cwd=ROOT)


@pytest.mark.parametrize("way", [{}, {"Content-Encoding": "identity"}], ids=["lane", "aiohttp"])
async def test_an_answer_is_packed_where_that_pays(door: Door, way: dict[str, str]) -> None:
    alike = json.dumps({"inputs": [x([1.5] * 40_000, [10_000, 4])]}).encode()
    small = json.dumps({"inputs": [x([1.5] * 400, [100, 4])]}).encode()
    noise = np.random.default_rng(SEED).random((10_000, 4), np.float32)
    random_ones = json.dumps({"inputs": [x(noise.tolist(), [10_000, 4])]}).encode()
    for body, packs in ((alike, True), (small, False), (random_ones, True)):
        plain = await door.post("tiny4", body, {"Accept-Encoding": "identity", **way})
        found = await door.post("tiny4", body, {"Accept-Encoding": "gzip", **way})
        assert plain.status == found.status == 200
        assert "Content-Encoding" not in plain.headers
        assert (found.headers.get("Content-Encoding") == "gzip") is packs
        assert found.said == plain.said
        if packs:
            assert int(found.headers["Content-Length"]) < int(plain.headers["Content-Length"])


async def test_in_the_lane_packed_answers_stay_in_their_order(door: Door) -> None:
    large = json.dumps({"inputs": [x([0.5] * 40_000, [10_000, 4])]}).encode()
    asked = b""
    for body in (large, BODY, large, BODY):
        head = "POST /v2/models/tiny4/infer HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip"
        asked += f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", door.server.port)
    writer.write(asked)
    async with asyncio.timeout(DEADLINE_S):
        for rows in (10_000, 1, 10_000, 1):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.partition("Content-Length: ")[2].split("\r\n")[0])
            content = await reader.readexactly(length)
            if "Content-Encoding: gzip" in head:
                content = gzip.decompress(content)
            assert json.loads(content)["outputs"][0]["shape"] == [rows, 4]
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_while_its_answer_is_packed(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = json.dumps({"inputs": [x([0.5] * 40_000, [10_000, 4])]}).encode()
    begun, goes_on = asyncio.Event(), asyncio.Event()
    packing = coding.Coder.packing
    loop = asyncio.get_running_loop()

    def slow(self: Coder, pieces: list[bytes], kind: str) -> "asyncio.Future[bytes] | None":
        async def wait() -> bytes:
            begun.set()
            await goes_on.wait()
            found = packing(self, pieces, kind)
            return await found if found else b""

        return loop.create_task(wait())

    monkeypatch.setattr(Coder, "packing", slow)
    for way in ({}, {"Content-Encoding": "identity"}):
        begun.clear()
        task = asyncio.create_task(door.post("tiny4", large, {"Accept-Encoding": "gzip", **way}))
        async with asyncio.timeout(DEADLINE_S):
            await begun.wait()
            task.cancel()
            while door.server._guard.active_requests:
                await asyncio.sleep(0.001)
    monkeypatch.setattr(Coder, "packing", packing)
    assert (await door.post("tiny4", BODY)).status == 200
    assert door.server._express is not None
    assert door.server._express.inference.room.free_bytes == Room().size_bytes


async def test_a_compressed_body_goes_where_it_is_taken(door: Door) -> None:
    for kind, pack in PACK.items():
        found = await door.post("tiny4", pack(BODY), {"Content-Encoding": kind})
        assert found.said["outputs"][0]["data"] == [1, 2, 3, 4]
    found = await door.post("tiny4", BODY, {"Content-Encoding": "br"})
    assert (found.status, found.headers["Accept-Encoding"]) == (415, "gzip, deflate")
    assert "'br'" in found.said["error"]
    for body in (BODY, b""):
        found = await door.post("tiny4", body, {"Content-Encoding": "gzip, gzip"})
        assert found.status == 415
    url = f"http://127.0.0.1:{door.server.port}/api/v1/health"
    async with door.session.get(
        url, data=gzip.compress(b"x"), headers={"Content-Encoding": "gzip"}
    ) as answer:
        assert (answer.status, answer.headers["Accept-Encoding"]) == (415, "identity")


async def test_a_bomb_at_the_door_is_refused_and_the_connection_goes_on(door: Door) -> None:
    bomb = gzip.compress(bytes(1 << 28))
    for path, status in (("/v2/models/tiny4/infer", 413), ("/api/v1/nothing", 404)):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.server.port)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
        following = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        tracemalloc.start()
        writer.write(f"{head}Content-Length: {len(bomb)}\r\n\r\n".encode() + bomb + following)
        async with asyncio.timeout(DEADLINE_S):
            assert f" {status} ".encode() in await reader.readline()
            assert b"active_requests" in await reader.read()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < (BODY_BYTES_MAX + 32 * MIB if status == 413 else 16 * MIB)
        writer.close()
        await writer.wait_closed()
    assert door.server._express is not None
    assert door.server._express.inference.room.free_bytes == Room().size_bytes
