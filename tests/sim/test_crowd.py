"""A crowd that sends, live and from a backlog, while its broker is killed: the database has it all.

The figures that go with it are those of bench/crowd.py.
"""

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.store.outbox import Outbox
from fleet.store import database
from fleet.store.cloud import Cloud
from tests.fleet.look import rows
from tests.fleet.process import IngestProcess
from tests.outside import Mosquitto, running
from tests.sim.crowd import Crowd, Sender, add_records, crowd_of
from tests.sim.shelf import EPOCH, STREAM, Shelf, body

DEVICES = 2000 if os.environ.get("HOLDFAST_LONG") == "1" else 120
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
BACKLOG = 120
DEADLINE_S = 240.0
LINK = {"backoff_s_min": 1.0, "heartbeat_s": 10.0, "batch_records_max": 50}
# What comes while no ingest is connected, the broker takes and forgets: it goes again after this,
# which a stalled machine must not take for an answer, or the link connects once more.
LINK["ack_timeout_s"] = 10.0


@contextmanager
def ingests(folder: Path, url: str, database_url: str, count: int) -> Iterator[list[IngestProcess]]:
    made = [IngestProcess(folder, url, database_url) for _ in range(count)]
    try:
        for one in made:
            one.start()
        yield made
    finally:
        for one in made:
            one.kill()


async def happens(question: Callable[[], bool]) -> None:
    while not question():
        await asyncio.sleep(0.02)


async def sent_through_a_crash(broker: Mosquitto, crowd: Crowd[Sender]) -> None:
    """Each has a backlog and makes live records, before, while and after the broker is away."""
    shelves = [device.shelf for device in crowd.devices]
    for shelf in shelves:
        shelf.fill(BACKLOG)
    adding = asyncio.create_task(add_records(crowd.devices, 1.0))
    await happens(lambda: sum(shelf.delivered for shelf in shelves) > DEVICES * BACKLOG / 4)
    held = sum(shelf.balance.held for shelf in shelves)
    await asyncio.to_thread(broker.kill)
    await crowd.lost()
    before = [shelf.produced for shelf in shelves]
    await happens(lambda: all(s.produced > n for s, n in zip(shelves, before, strict=True)))
    await asyncio.to_thread(broker.start)
    await crowd.connected()
    adding.cancel()
    await happens(lambda: all(shelf.balance.held == 0 for shelf in shelves))
    assert held, "the broker was killed while something was on its way"


async def check(url: str, devices: list[tuple[str, int]]) -> None:
    """The database has of each device what it made, once, and as it was made; and nothing else."""
    async with Cloud(database.open(url, reads_only=True)) as cloud:
        found = await rows(
            cloud, "SELECT device, epoch, stream, seq, body FROM events ORDER BY device, seq"
        )
        wanted = [
            (device, EPOCH, STREAM, seq, body(seq).decode())
            for device, produced in sorted(devices)
            for seq in range(1, produced + 1)
        ]
        assert sorted(found) == sorted(wanted)
        assert await rows(cloud, "SELECT topic, cause FROM refused") == []
        report = await cloud.gaps()
        assert not report.gaps
        assert not any(one.lost for one in report.differences)


@pytest.mark.parametrize(("kind", "count"), [("sqlite", 1), ("postgres", 2)])
async def test_a_crowd_is_stored_once_although_its_broker_is_killed(
    kind: str, count: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    if kind == "postgres":
        url = request.getfixturevalue("cluster").new()
    broker = Mosquitto(tmp_path)
    with running(broker), ingests(tmp_path, broker.url, url, count):
        async with (
            asyncio.timeout(DEADLINE_S),
            crowd_of(Sender, broker.url, DEVICES, SEED, **LINK) as crowd,
        ):
            await sent_through_a_crash(broker, crowd)
            assert all(len(device.served) == 2 for device in crowd.devices), "back, and once"
            assert not any(device.shelf.dead for device in crowd.devices)
            produced = [(device.name, device.shelf.produced) for device in crowd.devices]
    await check(url, produced)


def test_a_shelf_has_the_doors_of_the_outbox() -> None:
    for name, door in inspect.getmembers(Outbox, inspect.isfunction):
        if not name.startswith("_"):
            asked = list(inspect.signature(door).parameters)
            assert list(inspect.signature(getattr(Shelf, name)).parameters) == asked, name
