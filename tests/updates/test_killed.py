"""kill -9 of the process that fetches, at any byte: the next one goes on from there.

HOLDFAST_LONG=1 kills it 40 times, HOLDFAST_SEED=N where a failure that was printed did.
"""

import asyncio
import contextlib
import os
import random
import sys
from functools import partial
from pathlib import Path

import psutil

from tests.outside import ROOT, alive, until
from tests.updates.bed import TARGET, Shop, serving

KILLS = 40 if os.environ.get("HOLDFAST_LONG") == "1" else 4
SEED = int(os.environ.get("HOLDFAST_SEED", "0")) or random.randrange(1, 2**31)
SIZE_BYTES = 6 << 20


async def begun(folder: Path, shop: Shop, url: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.updates.fetching", str(folder)),
        *(str(shop.root_file), url, TARGET),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )


def size_of_part(folder: Path) -> int:
    return sum(one.stat().st_size for one in (folder / "staged").glob("*.part"))


def dead(pid: int) -> bool:
    return not alive(pid)


async def test_killed_and_resumed(tmp_path: Path) -> None:
    print(f"HOLDFAST_SEED={SEED}")
    dice, data = random.Random(SEED), random.Random(SEED).randbytes(SIZE_BYTES)
    shop, folder = Shop(tmp_path / "shop"), tmp_path / "device"
    shop.add(data)
    shop.publish()
    points = sorted(dice.randrange(1, SIZE_BYTES // 2) for _ in range(KILLS - 1))
    async with serving(shop.served) as server:
        for at in (-1, *points):  # the first: while the metadata are judged
            process = await begun(folder, shop, server.url)
            if at < 0:
                await asyncio.sleep(dice.random())
            children = await _reached(process, folder, at)
            if process.returncode is None:
                process.kill()
            await process.wait()
            for child in children:  # the process that checks ends with it
                until(partial(dead, child), "the child of a killed agent ends")
        before = size_of_part(folder)
        ready = list((folder / "staged").glob("*[!t]"))  # the last kill may have come too late
        asked = len(server.asked)
        process = await begun(folder, shop, server.url)
        said, _ = await process.communicate()
    path = Path(said.decode().strip())
    assert path.read_bytes() == data, said
    ranges = [one for where, one in server.asked[asked:] if "/targets/" in where]
    left = before < SIZE_BYTES and not ready
    assert ranges == ([f"bytes={before}-{SIZE_BYTES}"] if left else [])
    assert [one.name for one in (folder / "staged").iterdir()] == [path.name]


async def _reached(process: asyncio.subprocess.Process, folder: Path, at: int) -> list[int]:
    """The processes that it has begun, by then."""
    while process.returncode is None and size_of_part(folder) < max(at, 0):
        await asyncio.sleep(0.002)
    with contextlib.suppress(psutil.NoSuchProcess):
        return [one.pid for one in psutil.Process(process.pid).children(recursive=True)]
    return []
