"""Content as large as a package of the agent, by each way, through breaks and kills.

HOLDFAST_LONG=1 has it done, HOLDFAST_SEED=N kills where a failure that was printed did.
"""

import asyncio
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.protocol import content as wire
from tests.outside import ROOT, Mosquitto
from tests.updates.bed import Shop, serving
from tests.updates.by_broker import controller

SIZE_BYTES = 67_000_000  # the package of today (docs/agent-update.md)
BREAK_BYTES = 9_000_000  # a connection carries no more
GROWN_BYTES_MAX = 12 << 20  # less than half of what is left after the last kill
KILLS = 3
TARGET = "agent/holdfast-1.2.0.tar"
SEED = int(os.environ.get("HOLDFAST_SEED", "0")) or random.randrange(1, 2**31)
pytestmark = pytest.mark.skipif(
    os.environ.get("HOLDFAST_LONG") != "1", reason="HOLDFAST_LONG=1 fetches 67 MB in three ways"
)
Starts = Callable[[], list[int]]  # the bytes from which the content was asked for, so far
Way = Callable[[Path, Path], AbstractAsyncContextManager[tuple[str, str, Starts | None]]]


@asynccontextmanager
async def by_http(_: Path, served: Path) -> AsyncIterator[tuple[str, str, Starts | None]]:
    """A line that breaks again and again."""

    async def breaks(request: web.Request) -> web.StreamResponse:
        start = _start(request.headers.get("Range", ""))
        headers = {"Content-Range": f"bytes {start}-{SIZE_BYTES - 1}/{SIZE_BYTES}"}
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = SIZE_BYTES - start
        await response.prepare(request)
        with (served / request.path.lstrip("/")).open("rb") as file:
            file.seek(start)
            for _ in range(BREAK_BYTES // 100_000):
                await response.write(file.read(100_000))
        if request.transport:
            request.transport.close()
        return response

    async with serving(served) as server:
        server.odd[Path(TARGET).name] = breaks
        yield (
            server.url,
            "",
            lambda: [_start(one) for path, one in server.asked if path.endswith(".tar")],
        )


def _start(wanted: str) -> int:
    return int(wanted.removeprefix("bytes=").partition("-")[0] or 0)


@asynccontextmanager
async def by_broker(folder: Path, served: Path) -> AsyncIterator[tuple[str, str, Starts | None]]:
    broker = Mosquitto(folder)
    broker.start()
    try:
        async with controller(broker.url, served) as asks:
            yield "mqtt:", broker.url, lambda: _asked(asks)
    finally:
        broker.kill()


def _asked(asks: list[bytes]) -> list[int]:
    found = [wire.decode_ask(one) for one in asks]
    return [one.start for one in found if one.path.endswith(".tar")]


@asynccontextmanager
async def by_stick(folder: Path, served: Path) -> AsyncIterator[tuple[str, str, Starts | None]]:
    shutil.copytree(served, folder / "stick")
    yield f"file://{folder}/stick", "", None


@pytest.mark.parametrize("way", [by_http, by_broker, by_stick])
async def test_killed_again_and_again_it_comes_whole(tmp_path: Path, way: Way) -> None:
    print(f"HOLDFAST_SEED={SEED}")
    dice, data = random.Random(SEED), random.Random(SEED).randbytes(SIZE_BYTES)
    shop = Shop(tmp_path / "shop")
    shop.add(data, TARGET, kind="agent", name="holdfast", version="1.2.0")
    shop.publish()
    digest = hashlib.sha256(data).hexdigest()
    part = tmp_path / "device" / "staged" / f"{digest}.part"
    points = sorted(dice.randrange(SIZE_BYTES // 10, SIZE_BYTES * 6 // 10) for _ in range(KILLS))
    async with way(tmp_path, shop.served) as (url, broker_url, starts):
        order = (str(tmp_path / "device"), str(shop.root_file), url, TARGET, broker_url)
        for at in points:
            process = await begun(*order)
            while process.returncode is None and size(part) < at:
                await asyncio.sleep(0.002)
            assert process.returncode is None, "it was killed on the way"
            process.kill()
            await process.wait()
        have, asked = size(part), len(starts()) if starts else 0
        process = await begun(*order)
        said, _ = await process.communicate()
        if starts:
            assert starts()[asked] == have, "no byte comes twice"
    found: dict[str, Any] = json.loads(said)
    assert have >= points[-1]
    assert found["first_share"] > have / SIZE_BYTES
    with Path(found["path"]).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest
    assert found["grown_bytes"] < GROWN_BYTES_MAX, found
    print(f"{way.__name__}: from byte {have:,} on; memory grew by {found['grown_bytes']:,} bytes")


async def begun(*order: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.updates.large_fetching", *order),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )


def size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
