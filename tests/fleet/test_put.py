"""Blobs in an object store: what the database holds of them, and the ingest's part in it."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import aiohttp
import msgspec
import pytest

from agent.clock import Clock
from agent.protocol.ack import StreamAck
from agent.protocol.grants import Ask, Grant
from fleet.mqtt import asks, s3
from fleet.mqtt.connection import Broker
from fleet.mqtt.ingest import Ingest
from fleet.mqtt.metrics import Metrics
from fleet.mqtt.s3 import Bucket, Keys
from fleet.store import blobs, database
from fleet.store.cloud import Arrival, Cloud
from fleet.store.rows import COLUMNS
from tests.fleet.look import content, rows
from tests.fleet.process import IngestProcess, Line
from tests.fleet.sender import Sender
from tests.fleet.test_ingest import ask as asked
from tests.fleet.test_ingest import metric
from tests.fleet.test_store import acked, refused
from tests.object_store import ACCESS, BUCKET, REGION, SECRET, Apart, ObjectStore, options
from tests.outside import Mosquitto, free_port, running, until

SENDER = Sender()
SOUND = bytes(range(256)) * 40
PLACE = "https://s3/blobs/press-7/e1/a.segments/1"
WHERE = "SELECT seq, blob_url FROM events ORDER BY seq"


def sha256(sound: bytes) -> str:
    return hashlib.sha256(sound).hexdigest()


def question(sound: bytes = SOUND, seq: int = 1) -> Ask:
    return Ask(
        epoch=SENDER.epoch, stream=SENDER.stream, seq=seq, size=len(sound), sha256=sha256(sound)
    )


def record(sound: bytes = SOUND, seq: int = 1) -> Arrival:
    body = msgspec.json.encode({"sha256": sha256(sound)})
    return SENDER.records([SENDER.record(seq, len(sound), body)])


@pytest.fixture
async def cloud(url: str) -> AsyncIterator[Cloud]:
    async with Cloud(database.open(url)) as opened:
        yield opened


@pytest.mark.parametrize("record_first", [True, False])
async def test_a_record_counts_when_its_blob_was_put(cloud: Cloud, record_first: bool) -> None:
    if record_first:
        await cloud.store([record()])
        assert await acked(cloud) == StreamAck()
    verdict = await cloud.note_put(SENDER.device, question(), PLACE)
    assert (verdict.blobs_done, verdict.refused) == (int(record_first), 0)
    if not record_first:
        assert await acked(cloud) == StreamAck(parts={1: len(SOUND)})
        assert (await cloud.store([record()])).blobs_done == 1
    assert await acked(cloud) == StreamAck(1)
    assert await rows(cloud, WHERE) == [(1, PLACE)]
    assert await rows(cloud, "SELECT put FROM blobs") == [(sha256(SOUND),)]
    again = await cloud.note_put(SENDER.device, question(), PLACE)
    assert (again.blobs_done, again.refused) == (0, 0)
    assert await rows(cloud, "SELECT size_bytes FROM streams") == [
        (len(SOUND) + len(msgspec.json.encode({"sha256": sha256(SOUND)})),)
    ]


@pytest.mark.parametrize("record_first", [True, False])
async def test_an_object_that_is_not_the_records_blob_does_not_count(
    cloud: Cloud, record_first: bool
) -> None:
    lie = bytes(len(SOUND))
    if record_first:
        await cloud.store([record()])
    await cloud.note_put(SENDER.device, question(lie), PLACE)
    if not record_first:
        await cloud.store([record()])
    assert await acked(cloud) == StreamAck()
    assert ["not what its record says" in one for one in await refused(cloud)] == [True]
    assert await rows(cloud, WHERE) == [(1, None)]
    await cloud.store([SENDER.piece(1, SOUND, 0, len(SOUND))])
    assert await acked(cloud) == StreamAck(1)
    assert await content(cloud, 1) == SOUND


async def test_an_object_of_another_size_than_the_records_blob_is_refused(cloud: Cloud) -> None:
    await cloud.store([record()])
    verdict = await cloud.note_put(SENDER.device, question(SOUND[:-1]), PLACE)
    assert verdict.refused == 1
    assert [f"{len(SOUND)} bytes by its record" in one for one in await refused(cloud)] == [True]
    assert await acked(cloud) == StreamAck()


async def test_pieces_give_way_to_the_object_and_not_the_other_way(cloud: Cloud) -> None:
    await cloud.store([SENDER.piece(1, SOUND, 0, 5000), SENDER.piece(1, SOUND, 9000, 10_000)])
    await cloud.note_put(SENDER.device, question(), PLACE)
    assert await rows(cloud, "SELECT * FROM pieces") == []
    await cloud.store([SENDER.piece(1, SOUND, 0, len(SOUND)), record()])
    assert await rows(cloud, "SELECT * FROM pieces") == []
    assert await rows(cloud, WHERE) == [(1, PLACE)]
    assert await acked(cloud) == StreamAck(1)


async def test_what_came_in_pieces_stays_there(cloud: Cloud) -> None:
    await cloud.store([SENDER.piece(1, SOUND, 0, len(SOUND)), record()])
    verdict = await cloud.note_put(SENDER.device, question(), PLACE)
    assert (verdict.refused, verdict.blobs_done) == (0, 0)
    assert await rows(cloud, WHERE) == [(1, None)]
    assert await content(cloud, 1) == SOUND


async def test_objects_without_a_record_are_bounded(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "UNSETTLED_MAX", 2)
    told = [await cloud.note_put(SENDER.device, question(seq=n), PLACE) for n in (1, 2, 3)]
    assert [one.refused for one in told] == [0, 0, 1]
    assert ["2 blobs of this stream" in one for one in await refused(cloud)] == [True]


async def test_a_database_of_before_is_brought_up_to_date(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = database.steps
    with monkeypatch.context() as before:
        before.setattr(database, "steps", lambda *of: steps(*of)[:2])
        async with Cloud(database.open(url)) as cloud, cloud.database.begin() as transaction:
            await transaction.execute("INSERT INTO devices (name, first_us) VALUES ('old', 1)")
            await transaction.execute(
                "INSERT INTO streams (device, epoch, name) VALUES (1, 'e', 's')"
            )
            await transaction.execute("INSERT INTO blobs VALUES (1, 1, 5, 5, 5, $1, $1, '')", True)
            await transaction.copy(
                "records",
                COLUMNS,
                [(1, 1, "t", 1, True, "b", 1, 5, 1, b"{}")],
            )
    async with Cloud(database.open(url)) as cloud:
        assert await rows(cloud, WHERE) == [(1, None)]
        assert await rows(cloud, "SELECT put, place FROM blobs") == [("", "")]


# The ingest.


def put(grant: Grant, sound: bytes) -> int:
    """As a device does; the store's answer."""
    headers = {**grant.headers, "Content-Type": "application/octet-stream"}
    try:
        with urlopen(Request(grant.url, sound, headers, method="PUT"), timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_a_device_asks_puts_and_is_told_that_it_is_there(tmp_path: Path, url: str) -> None:
    broker, objects = Mosquitto(tmp_path), Apart()
    with running(broker, objects):
        far = options(tmp_path, objects.store.url)
        ingest = IngestProcess(tmp_path, broker.url, url, *far)
        with running(ingest), Line(broker.port, SENDER) as line:
            granted = line.ask(question())
            assert (granted.stored, granted.refused) == (False, "")
            assert put(granted, bytes(len(SOUND))) == 400
            assert not line.ask(question()).stored
            assert put(granted, SOUND) == 200
            assert line.ask(question()).stored
            until(lambda: line.acked().parts == {1: len(SOUND)}, "the ack of the blob")
            line.send(record())
            line.marked(1)
            until(lambda: metric(ingest, "holdfast_fleet_asks_total") == 3, "three are answered")
            assert metric(ingest, "holdfast_fleet_blobs_total") == 1
            assert ingest.stop() == 0
        place = f"{objects.store.url}/blobs/site/press-7/e1/a.segments/1"
        assert asked(url, lambda cloud: rows(cloud, WHERE)) == [(1, place)]
        assert SECRET not in ingest.log.read_text()
        assert "X-Amz" not in ingest.log.read_text()


@pytest.mark.parametrize("dead", [False, True], ids=["none", "dead"])
def test_without_a_store_that_answers_blobs_come_in_pieces(tmp_path: Path, dead: bool) -> None:
    broker = Mosquitto(tmp_path)
    far = options(tmp_path, f"http://127.0.0.1:{free_port()}") if dead else []
    ingest = IngestProcess(tmp_path, broker.url, f"sqlite:///{tmp_path}/fleet.db", *far)
    with running(broker, ingest), Line(broker.port, SENDER) as line:
        why = "the object store does not answer" if dead else "no object store is configured"
        for _ in range(2):
            assert line.ask(question()).refused.startswith(why)
        line.send(record(), SENDER.piece(1, SOUND, 0, len(SOUND)))
        line.marked(1)


def test_an_ask_that_makes_no_sense_is_refused_and_holds_up_nobody(tmp_path: Path) -> None:
    broker, url = Mosquitto(tmp_path), f"sqlite:///{tmp_path}/fleet.db"
    ingest = IngestProcess(tmp_path, broker.url, url)
    with running(broker, ingest), Line(broker.port, SENDER) as line:
        wrong = [b"", b"poison", msgspec.json.encode(question()).replace(b'"e1"', b'"a/b"')]
        wrong.append(msgspec.json.encode(question()).replace(b"10240", b"%d" % (2 << 30)))
        for one in wrong:
            line.say("blob-ask", one)
        with Line(broker.port, Sender("..")) as nobody:
            nobody.say("blob-ask", msgspec.json.encode(question()))
        assert line.ask(question()).refused
        until(lambda: metric(ingest, "holdfast_fleet_refused_total") == len(wrong) + 1, "refused")
        assert not ingest.dead()


async def test_a_store_that_hangs_holds_up_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LOOK_S", 600.0)
    broker = Mosquitto(tmp_path)

    def device() -> None:
        with Line(broker.port, SENDER) as line:
            for seq in range(1, 21):
                line.say("blob-ask", msgspec.json.encode(question(seq=seq)))
            until(lambda: store.hanging == asks.AT_ONCE, "as many hang as are answered at once")
            line.send(SENDER.batch([1, 2, 3]))
            line.marked(3)
            assert not line.grants
            assert store.hanging == asks.AT_ONCE

    with running(broker):
        async with (
            ObjectStore() as store,
            aiohttp.ClientSession() as session,
            Cloud(database.open(f"sqlite:///{tmp_path}/fleet.db")) as cloud,
        ):
            store.hangs = True
            bucket = Bucket(store.url, BUCKET, REGION, Keys(ACCESS, SECRET), session)
            way = Broker(url=broker.url)
            ingest = Ingest(cloud, way, Metrics(), Clock(), random.Random(), bucket=bucket)
            working = asyncio.create_task(ingest.run())
            await asyncio.to_thread(until, lambda: ingest._connection, "the ingest connects")
            await asyncio.to_thread(device)
            ingest.stop()
            await working
